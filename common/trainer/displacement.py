"""Whether a training pushes the good answers away: the most asked question about DPO's curves, answered in a sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

CHOSEN, REJECTED, EXPLORED, KL = "shift/chosen", "shift/rejected", "shift/explored", "kl"
"""Logged: mean change of the answers' log-probability a token against the reference, and `divergence.answer_kl` of the
chosen ones, both in nats."""
FALLEN = 0.25
"""Nats a token that chosen or explored answers may lose before it is called bad: each of their words is then a fifth less likely.
Ours."""
TIMES = 10
"""How often a training measures KL; each costs the forwards of a few answers. What a tenth of it logs is its end."""
PAGE = "docs/method.md#when-chosen-answers-fall"


def last_of(history: Sequence[Mapping[str, float]], name: str) -> float:
    """Mean of what the last tenth of the steps that logged `name` logged; NaN for none."""
    values = [step[name] for step in history if name in step]
    last = values[-max(1, len(values) // TIMES) :]
    return sum(last) / len(last) if last else math.nan


def movement(history: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """What a training's log says at its end of `CHOSEN`, `REJECTED` and `KL`; without those it never logged, so empty
    for a supervised row."""
    found = {name: last_of(history, name) for name in (CHOSEN, REJECTED, EXPLORED, KL)}
    return {name: value for name, value in found.items() if not math.isnan(value)}


def warning(history: Sequence[Mapping[str, float]]) -> str:
    """A sentence where chosen answers have lost more than `FALLEN`, and one where the student's explored ones have; ""
    for neither."""
    moved, said = movement(history), []
    if moved.get(CHOSEN, 0.0) < -FALLEN:
        rejected = moved[REJECTED]
        others, what = (
            (f"rejected ones {-rejected:.2f}", "the loss pushes both down, and what gains is neither")
            if rejected < 0
            else (
                f"and rejected ones gained {rejected:.2f}",
                "where the scores contradict the pairs, some losses reverse them",
            )
        )
        said.append(
            f"chosen answers lost {-moved[CHOSEN]:.2f} nats a token against the reference, {others}: {what}; see {PAGE}"
        )
    if moved.get(EXPLORED, 0.0) < -FALLEN:
        said.append(
            f"the student's explored answers lost {-moved[EXPLORED]:.2f} nats a token against the reference, and nothing bounds "
            "how far optimism pushes them down; lower optimism or learning_rate"
        )
    return "; ".join(said)
