"""Score pairs with a judge, each verdict kept as soon as it is given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from common.judge.base import ENOUGH, FeedbackJudge, Judge, PairScores
from common.schema import Pair, ScoredPair, mark_of_pairs
from common.storage import Records, make_missing


def judged_texts(pairs: Iterable[Pair]) -> str:
    """What a file of scores notes of the pairs that were scored."""
    return mark_of_pairs(pair.model_dump(mode="json") for pair in pairs)


def answer_scores(judge: Judge, pairs: Sequence[Pair]) -> list[PairScores]:
    """Each answer judged alone."""
    asked = [(pair.prompt, answer) for pair in pairs for answer in (pair.response, pair.response_revised)]
    judged = judge.judge(*zip(*asked))
    return [
        PairScores(o.score, r.score, o.reply, r.reply, failure=o.failure or r.failure)
        for o, r in zip(judged[::2], judged[1::2], strict=True)
    ]


def score_pairs(
    judge: Judge | FeedbackJudge,
    pairs: Sequence[Pair],
    path: str | Path,
    batch_size: int = 128,
    unscored_limit: float = 0.02,
    failed_limit: float = 0.02,
    progress: Callable[[int], object] = lambda finished: None,
) -> Records[ScoredPair]:
    """Scores both answers of every pair that `path` does not hold yet; returns the scored pairs asked for, which are
    read from `path` as they are looked at.

    A pair for which the judge gave no reply at all is not scored: its id and the reason stand in `failed_<name>` beside
    `path`, and the next run tries it again.

    Raises:
        ValueError: an id stands twice in `pairs` (nothing was asked), or more than the share `unscored_limit` of the
            answers stay unscored: a judge that cannot be read must not become a table.
        RuntimeError: more than the share `failed_limit` of the pairs failed.
    """

    def make(batch: list[Pair]) -> Iterator[ScoredPair | dict[str, str]]:
        judged = judge.pair_scores(batch) if isinstance(judge, FeedbackJudge) else answer_scores(judge, batch)
        for pair, scores in zip(batch, judged, strict=True):
            yield {"id": pair.id, "reason": scores.failure} if scores.failure else ScoredPair(
                **pair.model_dump(), score_response=scores.response, score_revised=scores.revised, criteria=scores.criteria,
                judge_reply_response=scores.reply_response, judge_reply_revised=scores.reply_revised, judge=judge.name, scale=judge.scale,
            )  # fmt: skip
        progress(len(batch))

    scored = make_missing(pairs, make, path, ScoredPair, "pairs", batch_size, failed_limit, progress)
    unscored = sum((pair.score_response is None) + (pair.score_revised is None) for pair in scored)
    if unscored > unscored_limit * 2 * len(scored):
        raise ValueError(
            f"{unscored} of {2 * len(scored)} answers are unscored, more than {unscored_limit:.0%}; read the raw judge replies in {path}"
        )
    given = {score for pair in scored for score in (pair.score_response, pair.score_revised) if score is not None}
    if len(given) == 1 and 2 * len(scored) - unscored >= ENOUGH:
        print(
            f"WARNING: {judge.name} gives {given.pop():g} to each of {2 * len(scored) - unscored} answers, which tells nothing of them; methods that read scores see ties alone. Try another judge",
            flush=True,
        )
    return scored
