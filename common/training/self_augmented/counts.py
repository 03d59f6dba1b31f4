"""What became of the answers that a student made while it trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

LOGGED = "made/"
"""Begins the names of counts in a training's log."""


@dataclass
class Counts:
    """answers: made so far. distinct: different ones among them, prompt included. ended: by the student itself.
    identical: to the good answer, from which nothing is learned."""

    answers: int = 0
    distinct: int = 0
    ended: int = 0
    identical: int = 0

    @property
    def logged(self) -> dict[str, int]:
        return {f"{LOGGED}{name}": count for name, count in asdict(self).items()}

    def __str__(self) -> str:
        return (
            f"{self.answers} answers made, {self.distinct} of them distinct, {self.ended} ended by the student itself, "
            f"{self.identical} identical to the good answer"
        )


def counts_of(history: Sequence[Mapping[str, float]]) -> Counts | None:
    """The counts at the end of a training's log; None for a student that made no answers."""
    logged = [step for step in history if f"{LOGGED}answers" in step]
    return Counts(**{name: int(logged[-1][f"{LOGGED}{name}"]) for name in asdict(Counts())}) if logged else None
