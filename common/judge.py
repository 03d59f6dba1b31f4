"""The external reward model: a judge that reads one answer at a time and gives a score, or none.

What `parse_score` does not understand is unscored: None, never a guess, with the raw reply kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from common.chat import ChatModel
from common.prompts import JudgePrompt
from common.schema import Pair, Reply, Sampling, ScoredPair, feedback_score
from common.statistics import agreement
from common.storage import FailedStore, JsonlStore, Records, refuse_repeats
from common.verdict import parse_score

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
    """Asks a chat model for a verdict on one criterion and reads it; asks once more, with twice the budget, where none was found."""

    def __init__(self, chat: ChatModel, prompts: JudgePrompt, max_new_tokens: int = 256):
        self.chat, self.prompts, self.max_new_tokens = chat, prompts, max_new_tokens
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
        conversations = [self.prompts.judge_request(prompt, answer) for prompt, answer in zip(prompts, answers)]
        replies = self.chat.complete(conversations, Sampling(max_new_tokens=max_new_tokens)) if conversations else []
        failures = [reply.finish_reason if reply.failed else "" for reply in replies]
        return [
            Judgement(self._read(reply, prompt, answer), reply.text, failure)
            for reply, prompt, answer, failure in zip(replies, prompts, answers, failures, strict=True)
        ]

    def _read(self, reply: Reply, prompt: str, answer: str) -> float | None:
        """A reply that was cut off or filtered has no verdict yet. Prompt and answer can both hold a forged one."""
        return parse_score(reply.text, self.prompts.scale, f"{prompt}\n\n{answer}") if reply.whole else None


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
    score needs all of its verdicts: one missing leaves it unscored.
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

    def _scores(self, felt: Sequence[Judgement], good: Sequence[Judgement]) -> PairScores:
        base, *sentiments = felt
        names = ("response", "revised")
        scores = [
            None if None in (sentiment.score, quality.score, base.score) else feedback_score(sentiment.score, quality.score, base.score)
            for sentiment, quality in zip(sentiments, good)
        ]
        replies = [f"{sentiment.reply}\n{quality.reply}" for sentiment, quality in zip(sentiments, good)]
        criteria = {f"sentiment_{name}": j.score for name, j in zip(("base", *names), felt)} | {f"quality_{name}": j.score for name, j in zip(names, good)}
        return PairScores(*scores, *replies, criteria, next((j.failure for j in (*felt, *good) if j.failure), ""))


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


class LearnedJudge:
    """A reward model learned from labelled answers: logistic regression on words and word pairs. No network, no GPU.

    It judges style more than truth and holds only for text like that it was fitted on: check it on labelled answers of
    the model at hand before trusting it. Scores are probabilities in [0, 1] that the answer belongs to label 1.
    """

    scale = (0.0, 1.0)

    def __init__(self, answers: Sequence[str], labels: Sequence[int], name: str = "learned judge"):
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline

        if len(set(labels)) < 2:
            raise ValueError("a judge is learned from answers of both labels, 0 and 1")
        self.name = name
        words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
        self._model = make_pipeline(words, LogisticRegression(C=10.0, max_iter=1000)).fit(answers, labels)

    def judge(self, prompts: Sequence[str], answers: Sequence[str]) -> list[Judgement]:
        """One judgement per answer; the prompt is not read."""
        return [Judgement(float(p), f"p = {p:.3f}") for p in self._model.predict_proba(answers)[:, 1]] if answers else []


def cross_fitted_scores(answers: Sequence[str], labels: Sequence[int], groups: Sequence[str], folds: int = 5) -> list[float]:
    """Scores of a `LearnedJudge` for the very answers it learns from: each answer is scored by a judge that saw no answer
    of its group."""
    from sklearn.model_selection import GroupKFold

    scores = [0.0] * len(answers)
    for fit, held_out in GroupKFold(folds).split(answers, labels, groups):
        judge = LearnedJudge([answers[i] for i in fit], [labels[i] for i in fit])
        for i, judgement in zip(held_out, judge.judge([""] * len(held_out), [answers[i] for i in held_out])):
            scores[i] = judgement.score
    return scores


class Labelled(NamedTuple):
    """An answer that a rater labelled: 1 for what the judge should score high, else 0."""

    prompt: str
    answer: str
    label: int


def judge_agreement(judge: Judge, labelled: Sequence[Labelled]) -> dict[str, Any]:
    """The judge against a rater's labels: look at this before trusting it.

    The judge says 1 where its score lies in the upper half of its scale, as the tables count it. Returns share of `equal`
    verdicts, Cohen's `kappa`, `n`, how many answers stayed `unscored` (they are in neither), and the `errors`, each with
    prompt, answer, label, score and raw reply.
    """
    return _agreement(labelled, _judged(judge, labelled), sum(judge.scale) / 2)


class CalibratedJudge:
    """A judge whose scores are mapped to the probability of a rater's label 1: Platt scaling, a logistic regression on
    the score, which moves the point that counts as half and keeps the order of the answers. It has two parameters, so a few
    dozen labels are enough (isotonic regression wants hundreds).

    Raises ValueError when labels or scores are all the same, or the scores fall where the labels rise.
    """

    scale = (0.0, 1.0)

    def __init__(self, judge: Judge, scores: Sequence[float], labels: Sequence[int]):
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        if len(set(labels)) < 2 or len(set(scores)) < 2:
            raise ValueError(f"{judge.name} cannot be calibrated: that takes answers of both labels and different scores")
        self._judge, self.name = judge, f"{judge.name}, calibrated"
        self._model = make_pipeline(StandardScaler(), LogisticRegression()).fit([[score] for score in scores], labels)
        if self._model[-1].coef_[0, 0] <= 0:
            raise ValueError(f"{judge.name} scores answers of label 1 lower than those of label 0; turn its question around or take another judge")

    def judge(self, prompts: Sequence[str], answers: Sequence[str]) -> list[Judgement]:
        """One judgement per answer; what the judge leaves unscored stays so."""
        return self.map(self._judge.judge(prompts, answers))

    def map(self, judged: Sequence[Judgement]) -> list[Judgement]:
        """The judge's own judgements with calibrated scores."""
        return [j if j.score is None else Judgement(float(self._model.predict_proba([[j.score]])[0, 1]), j.reply) for j in judged]


def calibrate(judge: Judge, labelled: Sequence[Labelled], seed: int = 0) -> tuple[CalibratedJudge, dict[str, dict[str, Any]]]:
    """A calibrated judge, fitted on one half of the labels, and its `judge_agreement` on the other half beside that of the
    judge as it is. The halves hold both labels in equal shares; each answer is judged once."""
    from sklearn.model_selection import train_test_split

    fit, check = train_test_split(range(len(labelled)), test_size=0.5, stratify=[item.label for item in labelled], random_state=seed)
    judged = _judged(judge, labelled)
    scored = [(judged[i].score, labelled[i].label) for i in fit if judged[i].score is not None]
    calibrated = CalibratedJudge(judge, [score for score, _ in scored], [label for _, label in scored])
    held_out, verdicts = [labelled[i] for i in check], [judged[i] for i in check]
    return calibrated, {
        "as it is": _agreement(held_out, verdicts, sum(judge.scale) / 2),
        "calibrated": _agreement(held_out, calibrated.map(verdicts), 0.5),
    }


def _judged(judge: Judge, labelled: Sequence[Labelled]) -> list[Judgement]:
    return judge.judge([item.prompt for item in labelled], [item.answer for item in labelled])


def _agreement(labelled: Sequence[Labelled], judged: Sequence[Judgement], middle: float) -> dict[str, Any]:
    scored = [(item, judgement) for item, judgement in zip(labelled, judged, strict=True) if judgement.score is not None]
    verdicts = [int(judgement.score > middle) for _, judgement in scored]
    errors = [{**item._asdict(), "score": judgement.score, "reply": judgement.reply} for (item, judgement), verdict in zip(scored, verdicts) if verdict != item.label]
    return {**agreement([item.label for item, _ in scored], verdicts), "unscored": len(labelled) - len(scored), "errors": errors}
