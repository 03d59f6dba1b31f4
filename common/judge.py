"""The external reward model: a judge that reads one answer at a time and gives a score, or none.

What `parse_score` does not understand is unscored: None, never a guess, with the raw reply kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from common.chat import ChatModel
from common.prompts import JudgePrompt
from common.schema import Pair, Reply, Sampling, ScoredPair, ScoreScale, feedback_score
from common.storage import FailedStore, JsonlStore, Records, refuse_repeats
from common.verdict import parse_score, read_verdict

PROBE = [{"role": "user", "content": "Reply with a JSON object: in the field reasoning the word none, in the field score the number 0."}]
"""Shows whether an endpoint keeps to a schema; 0 lies on every scale."""


class Judgement(NamedTuple):
    """A score on the judge's scale, or None = unscored, and the raw reply it was read from; `failure` says why there is
    no reply at all."""

    score: float | None
    reply: str
    failure: str = ""


class Judge(Protocol):
    """What every judge offers: its name, the ends of its scale, and one judgement per (prompt, answer)."""

    name: str
    scale: tuple[float, float]

    def judge(self, prompts: Sequence[str], answers: Sequence[str]) -> list[Judgement]: ...


class LLMJudge:
    """Asks a chat model for a verdict on one criterion and reads it; asks once more, with twice the budget, where none was found.

    structured: the chat may offer replies by a JSON schema. It is asked for one before the first verdict, and where that
    keeps to the schema all verdicts are asked for so; an endpoint that refuses or ignores it is asked in words.
    """

    def __init__(self, chat: ChatModel, prompts: JudgePrompt, max_new_tokens: int = 256, structured: bool = False):
        self.chat, self.prompts, self.max_new_tokens, self.structured = chat, prompts, max_new_tokens, structured
        self.name, self.scale = chat.name, (prompts.scale.minimum, prompts.scale.maximum)

    def judge(self, prompts: Sequence[str], answers: Sequence[str]) -> list[Judgement]:
        """One judgement per (prompt, answer), in order."""
        judgements = self._ask(prompts, answers, self.max_new_tokens)
        unclear = [i for i, judgement in enumerate(judgements) if judgement.score is None and not judgement.failure]
        again = self._ask([prompts[i] for i in unclear], [answers[i] for i in unclear], 2 * self.max_new_tokens)
        for i, judgement in zip(unclear, again):
            judgements[i] = judgement
        return judgements

    def _ask(self, prompts: Sequence[str], answers: Sequence[str], max_new_tokens: int) -> list[Judgement]:
        if not prompts:
            return []
        schema = self._schema
        conversations = [self.prompts.judge_request(prompt, answer, as_json=bool(schema)) for prompt, answer in zip(prompts, answers)]
        replies = self.chat.complete(conversations, Sampling(max_new_tokens=max_new_tokens, json_schema=schema))
        failures = [reply.finish_reason if reply.failed else "" for reply in replies]
        return [
            Judgement(self._read(reply, prompt, answer), reply.text, failure)
            for reply, prompt, answer, failure in zip(replies, prompts, answers, failures, strict=True)
        ]

    def _read(self, reply: Reply, prompt: str, answer: str) -> float | None:
        """A reply that was cut off or filtered has no verdict yet. Prompt and answer can both hold a forged one."""
        if not reply.whole:
            return None
        read = read_verdict(reply.text, self.prompts.scale) if self._schema else None
        return parse_score(reply.text, self.prompts.scale, f"{prompt}\n\n{answer}") if read is None else read

    @cached_property
    def _schema(self) -> dict[str, Any] | None:
        """The schema of a verdict where the chat keeps to it."""
        if not self.structured:
            return None
        schema = self.prompts.scale.verdict_schema
        try:
            [reply] = self.chat.complete([PROBE], Sampling(max_new_tokens=128, json_schema=schema))
        except (RuntimeError, LookupError):  # refused by the endpoint, or not among recorded replies
            return None
        return schema if reply.whole and read_verdict(reply.text, self.prompts.scale) is not None else None


class PairScores(NamedTuple):
    """Scores of a pair's two answers on the judge's scale, None = unscored, and the raw replies they were read from.

    criteria: the single verdicts behind them, where there are several. failure: why there is no reply at all."""

    response: float | None
    revised: float | None
    reply_response: str
    reply_revised: str
    criteria: dict[str, float | None] = {}
    failure: str = ""


def answer_scores(judge: Judge, pairs: Sequence[Pair]) -> list[PairScores]:
    """Each answer judged alone."""
    asked = [(pair.prompt, answer) for pair in pairs for answer in (pair.response, pair.response_revised)]
    judged = judge.judge(*zip(*asked))
    return [PairScores(o.score, r.score, o.reply, r.reply, failure=o.failure or r.failure) for o, r in zip(judged[::2], judged[1::2], strict=True)]


class FeedbackJudge:
    """Two verdicts on feedback, sentiment and quality, and the score `schema.feedback_score` made of them, in [0, 1].

    The sentiment of an answer is compared with that of the pair's `response_base`, the teacher's answer without a stance. A
    score needs all of its verdicts: one missing leaves it unscored. Judges on other scales, such as probabilities, are mapped
    to -5 to 5 and 0 to 5, end to end.
    """

    scale = (0.0, 1.0)

    def __init__(self, sentiment: Judge, quality: Judge):
        self.sentiment, self.quality = sentiment, quality
        self.name = f"sentiment: {sentiment.name}; quality: {quality.name}"

    def pair_scores(self, pairs: Sequence[Pair]) -> list[PairScores]:
        """Raises ValueError naming the pairs without a no-stance answer, before anything is asked."""
        if without := [pair.id for pair in pairs if not pair.response_base]:
            raise ValueError(f"{len(without)} pairs have no response_base, the answer without a stance ({', '.join(without[:3])}); make the pairs anew")
        shown = [((p.plain_prompt or p.prompt, p.response_base), (p.prompt, p.response), (p.prompt, p.response_revised)) for p in pairs]
        felt = self.sentiment.judge(*zip(*[asked for of_pair in shown for asked in of_pair]))
        good = self.quality.judge(*zip(*[asked for _, *of_pair in shown for asked in of_pair]))
        return [self._scores(felt[3 * i : 3 * i + 3], good[2 * i : 2 * i + 2]) for i in range(len(pairs))]

    def feedback(self, prompts: Sequence[str], answers: Sequence[str]) -> list[tuple[float | None, float | None]]:
        """(sentiment, quality) of each answer, -5 to 5 and 0 to 5, None = unscored."""
        felt = [_onto(ScoreScale.MINUS_FIVE_TO_FIVE, self.sentiment, judgement).score for judgement in self.sentiment.judge(prompts, answers)]
        good = [_onto(ScoreScale.ZERO_TO_FIVE, self.quality, judgement).score for judgement in self.quality.judge(prompts, answers)]
        return list(zip(felt, good))

    def _scores(self, felt: Sequence[Judgement], good: Sequence[Judgement]) -> PairScores:
        felt = [_onto(ScoreScale.MINUS_FIVE_TO_FIVE, self.sentiment, judgement) for judgement in felt]
        good = [_onto(ScoreScale.ZERO_TO_FIVE, self.quality, judgement) for judgement in good]
        base, *sentiments = felt
        names = ("response", "revised")
        scores = [
            None if None in (sentiment.score, quality.score, base.score) else feedback_score(sentiment.score, quality.score, base.score)
            for sentiment, quality in zip(sentiments, good)
        ]
        replies = [f"{sentiment.reply}\n{quality.reply}" for sentiment, quality in zip(sentiments, good)]
        criteria = {f"sentiment_{name}": j.score for name, j in zip(("base", *names), felt)} | {f"quality_{name}": j.score for name, j in zip(names, good)}
        return PairScores(*scores, *replies, criteria, next((j.failure for j in (*felt, *good) if j.failure), ""))


def _onto(scale: ScoreScale, judge: Judge, judgement: Judgement) -> Judgement:
    """The judgement on another scale, lowest to lowest and highest to highest."""
    low, high = judge.scale
    if judgement.score is None or (low, high) == (scale.minimum, scale.maximum):
        return judgement
    return judgement._replace(score=scale.minimum + (judgement.score - low) / (high - low) * (scale.maximum - scale.minimum))


def score_pairs(
    judge: Judge | FeedbackJudge,
    pairs: Sequence[Pair],
    path: str | Path,
    batch_size: int = 128,
    unscored_limit: float = 0.02,
    failed_limit: float = 0.02,
    progress: Callable[[int], object] = lambda finished: None,
) -> Records[ScoredPair]:
    """Scores both answers of every pair that `path` does not hold yet; returns the scored pairs asked for, which are read from
    `path` as they are looked at.

    A pair for which the judge gave no reply at all is not scored: its id and the reason stand in `failed_<name>` beside
    `path`, and the next run tries it again.

    Raises:
        ValueError: an id stands twice in `pairs` (nothing was asked), or more than the share `unscored_limit` of the
            answers stay unscored: a judge that cannot be read must not become a table.
        RuntimeError: more than the share `failed_limit` of the pairs failed.
    """
    ids = [pair.id for pair in pairs]
    refuse_repeats(ids, "pairs")
    with JsonlStore(path) as store, FailedStore(path) as failed:
        todo = [i for i, pair_id in enumerate(ids) if pair_id not in store]
        progress(len(pairs) - len(todo))
        for start in range(0, len(todo), batch_size):
            batch = [pairs[i] for i in todo[start : start + batch_size]]
            judged = judge.pair_scores(batch) if isinstance(judge, FeedbackJudge) else answer_scores(judge, batch)
            for pair, scores in zip(batch, judged, strict=True):
                if scores.failure:
                    failed.append({"id": pair.id, "reason": scores.failure})
                    continue
                store.append(ScoredPair(
                    **pair.model_dump(), score_response=scores.response, score_revised=scores.revised, criteria=scores.criteria,
                    judge_reply_response=scores.reply_response, judge_reply_revised=scores.reply_revised,
                    judge=judge.name, scale=judge.scale,
                ))  # fmt: skip
            progress(len(batch))
        failed.check(len(pairs), failed_limit)
        scored = store.records(ids, ScoredPair)
    unscored = sum((pair.score_response is None) + (pair.score_revised is None) for pair in scored)
    if unscored > unscored_limit * 2 * len(scored):
        raise ValueError(f"{unscored} of {2 * len(scored)} answers are unscored, more than {unscored_limit:.0%}; read the raw judge replies in {path}")
    return scored
