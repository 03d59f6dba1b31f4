"""Does the outcome survive other words? Held-out prompts beside their wordings (`common.paraphrase`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count

from common.evaluation.metrics import rate
from common.schema import Metric, PromptRecord, fingerprint, wording_id

SAME_OUTCOME = "same_outcome"
"""Share of prompts whose outcome is the same in all wordings."""
Outcomes = Sequence[bool | None]
"""Whether each answer is as wanted, None = unscored."""


def same_outcomes(
    records: Sequence[PromptRecord],
    outcomes: Outcomes,
    wordings: Sequence[PromptRecord],
    outcomes_of: Callable[[Sequence[PromptRecord]], Outcomes],
) -> list[bool | None]:
    """Whether each prompt that has wordings keeps its outcome in every one of them; None where one of these outcomes is
    unscored. outcomes_of: asked about the first wordings, then the second, so that no two of one prompt are together."""
    by_id = {wording.id: wording for wording in wordings}
    same: dict[int, bool | None] = {}
    for number in count(1):
        again = {
            place: by_id[wording_id(record.id, number)]
            for place, record in enumerate(records)
            if wording_id(record.id, number) in by_id
        }
        if not again:
            return list(same.values())
        for place, outcome in zip(again, outcomes_of(list(again.values())), strict=True):
            both, before = (outcomes[place], outcome), same.get(place, True)
            same[place] = None if None in both or before is None else before and both[0] == both[1]


def robustness(same: Sequence[bool | None], **names) -> list[Metric]:
    """The metric `SAME_OUTCOME` with its interval; [] where no prompt has scored wordings."""
    scored = [value for value in same if value is not None]
    return [rate(scored, metric=SAME_OUTCOME, **names)] if scored else []


def mark_of_wordings(wordings: Sequence[PromptRecord]) -> dict[str, str]:
    """The wordings' part of an evaluator's mark; {} without any."""
    return {"paraphrases": fingerprint([wording.model_dump() for wording in wordings])} if wordings else {}
