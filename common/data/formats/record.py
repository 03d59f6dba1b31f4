"""What every format becomes: preferences, and an account of the rows that gave none."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from common.data.preference import SCORES
from common.data.readers import Row, score_of
from common.schema import Message, in_unit

BOTH = ("chosen", "rejected")
NO_BEGINNING = "rows whose texts share no beginning"
EMPTY, ALIKE, REPEATED = "rows with an empty text", "rows whose two answers are the same text", "repeated rows"


@dataclass(frozen=True)
class Preference:
    """Two answers to a prompt, one preferred, as a source says it.

    where: file and line, for messages. history: turns before the prompt, user and assistant in turn. score_chosen,
    score_rejected: on `scale` (lowest, highest), None where one is missing. split, group: as the source names them.
    annotator: who preferred `chosen`, "" where nobody is named.
    fields: the row's columns. halves: whether one held half a character.
    """

    where: str
    prompt: str
    chosen: str
    rejected: str
    system: str = ""
    history: list[Message] = field(default_factory=list)
    score_chosen: float | None = None
    score_rejected: float | None = None
    scale: tuple[float, float] = (0.0, 1.0)
    split: str = ""
    group: str = ""
    annotator: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)
    halves: bool = False

    @property
    def opening(self) -> str:
        """What must stay in one split: the group, else the conversation's first request."""
        return self.group or (self.history[0]["content"] if self.history else self.prompt)

    @property
    def normalised(self) -> tuple[float | None, float | None]:
        """(score_chosen, score_rejected) in [0, 1]."""
        return in_unit(self.score_chosen, self.scale), in_unit(self.score_rejected, self.scale)


def annotator_of(row: Row) -> str:
    """Who preferred or rated what is in a row, "" where nobody is named."""
    cell = row.fields.get("annotator")
    return "" if cell is None else str(cell).strip()


class NoPreference(Exception):
    """A row that can be read and gives no preference; the message is the reason, as the account counts it."""


@dataclass
class LeftOut:
    """What gives no preference: counts by reason, and the place of each reason's first."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, where: str) -> None:
        self.counts[reason] += 1
        self.first.setdefault(reason, where.rpartition(", ")[2])

    def lines(self) -> list[str]:
        """A line a reason, the most frequent first, each with its first place."""
        return [f"  left out, {why}: {n} (first: {self.first[why]})" for why, n in self.counts.most_common()]

    def plus(self, other: LeftOut) -> LeftOut:
        return LeftOut(self.counts + other.counts, {**other.first, **self.first})


@dataclass(frozen=True)
class Reading:
    """How a source is read, and what gave no pair.

    score_range: lowest and highest score. weights: attribute -> weight, of attribute scores.
    """

    score_range: tuple[float, float] = (0.0, 1.0)
    weights: Mapping[str, float] = field(default_factory=dict)
    left_out: LeftOut = field(default_factory=LeftOut)

    def score(self, row: Row, name: str, cell: Any) -> float | None:
        """The score in a cell. Raises ValueError naming row and column: no number, or outside the range."""
        try:
            score = score_of(cell)
        except ValueError as error:
            raise ValueError(f"{row.where}: column {name}: {error}") from None
        low, high = self.score_range
        if score is not None and not low <= score <= high:
            raise ValueError(
                f"{row.where}: column {name}: {score:g} lies outside {low:g} to {high:g}; "
                "give the range of the scores with --score-range LOW HIGH"
            )
        return score


def check_score_range(low: float, high: float) -> None:
    """Raises ValueError unless they are finite and in order."""
    if not 0 < high - low < math.inf:
        raise ValueError(f"the score range is lowest and highest, not {low:g} and {high:g}")


@dataclass(frozen=True)
class Preferences:
    """The preferences of a source, the format that they were recognised in, and what gave none.

    unread: where no preference has both scores, columns that may hold scores by a name that is not known."""

    source: str
    format: str
    rows: int
    pairs: Sequence[Preference]
    left_out: LeftOut
    unread: Sequence[str] = ()

    @property
    def scored(self) -> int:
        """Preferences with both scores."""
        return sum(None not in (pair.score_chosen, pair.score_rejected) for pair in self.pairs)

    def account(self) -> str:
        """Format and counts as lines of text, each reason for a missing row with its first place."""
        told = f"{self.source}: read as {self.format}; {self.rows} rows, {len(self.pairs)} pairs, "
        told += f"{self.scored} with both scores"
        unread = [
            f"  not read, though it may hold scores: column {name}; call it {' or '.join(SCORES)}"
            for name in self.unread
        ]
        return "\n".join([told, *self.left_out.lines(), *unread])

    def as_dict(self) -> dict[str, Any]:
        """The account for a manifest."""
        counts = {"rows": self.rows, "pairs": len(self.pairs), "scored": self.scored}
        return {"source": self.source, "format": self.format, **counts, "left_out": dict(self.left_out.counts)}
