"""What sets chosen and rejected answers apart besides their worth: length, style, scores at one end, mixed sources."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from common.data.text_rules import declines, speaks_of_earlier
from common.doctor.rows import DoctorRow
from common.statistics import holm, mcnemar_exact, wilson_interval

AS_AN_AI = re.compile(r"\bas an? (?:ai|artificial intelligence|(?:large )?language model)\b", re.I)
REVISED = re.compile(
    r"\brevised\b|\b(?:here is|here's|this is) (?:the|a|an|my) (?:\w+ )?(?:improved|better|rewritten|corrected)\b", re.I
)
LIST = re.compile(r"^\s*(?:[-*•]|\d+[.)]) ", re.M)
BOLD = re.compile(r"\*\*\S.*?\*\*|^#+ ", re.M)
CERTAINLY = re.compile(r"^\W*(?:sure|certainly|of course|absolutely|great question)\b", re.I)
SORRY = re.compile(r"\b(?:sorry|apologi[sz]e|apologies)\b", re.I)
MARKERS: dict[str, Callable[[str], object]] = {
    "declines": declines, "speaks of an earlier answer": speaks_of_earlier, "says revised or improved": REVISED.search, "as an AI": AS_AN_AI.search,
    "is sorry": SORRY.search, "opens with sure or certainly": CERTAINLY.search, "has a list": LIST.search, "has bold text or headings": BOLD.search,
}  # fmt: skip
TRACES = ("speaks of an earlier answer", "says revised or improved")
"""Markers that a chosen answer should not have: its reader never saw an earlier one."""
SIGNIFICANT = 0.05
ONE_END = 0.8
"""Share of the scores at one end of the scale from which they are called skewed."""
FEW_VALUES, LEAST_SCORES = 2, 20
"""Distinct values that are called few, and the scores that it takes to say anything of their values."""


class Effect(NamedTuple):
    """Cohen's d of paired differences (mean by standard deviation) with a 95 % interval; None where none is defined."""

    n: int
    mean: float
    d: float | None
    low: float | None
    high: float | None


def paired_effect(differences: Sequence[float]) -> Effect:
    """d and its large-sample interval, d ± 1.96 sqrt(1 / n + d² / 2n); fewer than two, or all the same, give no d."""
    values = np.asarray(differences, dtype=float)
    mean = float(values.mean()) if values.size else float("nan")
    if values.size < 2 or values.std(ddof=1) == 0:
        return Effect(values.size, mean, None, None, None)
    d = mean / float(values.std(ddof=1))
    half = 1.96 * float(np.sqrt(1 / values.size + d * d / (2 * values.size)))
    return Effect(values.size, mean, d, d - half, d + half)


class Lengths(NamedTuple):
    """labels: words of chosen less rejected. scores: words of the higher less the lower scored answer, untied pairs.

    longer: of untied pairs with unequal lengths, in how many the longer answer scored higher, of how many.
    correlation: Pearson's, of score gap and length gap; None where one of them is constant.
    """

    labels: Effect
    scores: Effect
    longer: tuple[int, int]
    correlation: float | None


def word_gap(row: DoctorRow) -> int:
    """Words of chosen less those of rejected."""
    return len(row.chosen.split()) - len(row.rejected.split())


def lengths(rows: Sequence[DoctorRow]) -> Lengths:
    """Lengths of chosen against rejected, and of higher against lower scored answers, in words."""
    gaps = [word_gap(row) for row in rows]
    scored = [(gap, row.gap) for gap, row in zip(gaps, rows) if row.gap is not None]
    of_better = [gap if score > 0 else -gap for gap, score in scored if score]
    decided = [gap for gap in of_better if gap]
    varied = len(scored) > 2 and all(len(set(column)) > 1 for column in zip(*scored))
    return Lengths(
        paired_effect(gaps), paired_effect(of_better), (sum(gap > 0 for gap in decided), len(decided)),
        float(np.corrcoef(np.asarray(scored).T)[0, 1]) if varied else None,
    )  # fmt: skip


class Marker(NamedTuple):
    """chosen, rejected: rows where only that answer has the marker. p: exact McNemar test, corrected by Holm for the
    number of markers."""

    name: str
    chosen: list[int]
    rejected: list[int]
    n: int
    p: float

    @property
    def is_one_sided(self) -> bool:
        return self.p < SIGNIFICANT


def markers(rows: Sequence[DoctorRow]) -> list[Marker]:
    """Every marker with the rows in which only one answer has it."""
    sides = {}
    for name, has in MARKERS.items():
        both = [(bool(has(row.chosen)), bool(has(row.rejected))) for row in rows]
        sides[name] = [[i for i, pair in enumerate(both) if pair == one] for one in ((True, False), (False, True))]
    corrected = holm([mcnemar_exact(*map(len, pair)) for pair in sides.values()])
    return [Marker(name, *pair, len(rows), p) for (name, pair), p in zip(sides.items(), corrected)]


def skew(rows: Sequence[DoctorRow]) -> list[str]:
    """Sentences about scores that say little: few values, or nearly all at one end; [] for nothing to say."""
    scores = [score for row in rows for score in (row.score_chosen, row.score_rejected) if row.gap is not None]
    if len(scores) < LEAST_SCORES:
        return []
    said, values = [], Counter(scores)
    if len(values) <= FEW_VALUES:
        said.append(
            f"The {len(scores)} scores have {len(values)} distinct value{'s' * (len(values) > 1)}, so they cannot say by how much an answer is better."
        )
    for name, end in (("lowest", 0.0), ("highest", 1.0)):
        if len(values) > 1 and values[end] >= ONE_END * len(scores):
            low, high = wilson_interval(values[end], len(scores))
            said.append(
                f"{values[end]} of {len(scores)} scores ({values[end] / len(scores):.2f} [{low:.2f}, {high:.2f}]) are the {name} of the scale."
            )
    if len(values) > 1 and (spread := max(scores) - min(scores)) < 0.25:
        said.append(f"The {len(scores)} scores use {spread:.2f} of the scale; check the score range.")
    return said


class Source(NamedTuple):
    """Rows of one value of a column, with the mean scores in [0, 1] of those that are scored (None for none)."""

    column: str
    value: str
    n: int
    scored: int
    chosen: float | None
    rejected: float | None


def sources(rows: Sequence[DoctorRow]) -> list[Source]:
    """Columns that name judge, annotator, scale or model with several values, each with its mean scores."""
    found = []
    for column in dict.fromkeys(name for row in rows for name in row.groups):
        by_value: dict[str, list[DoctorRow]] = {}
        for row in rows:
            by_value.setdefault(row.groups.get(column, ""), []).append(row)
        if len(by_value) > 1:
            for value, those in sorted(by_value.items(), key=lambda item: -len(item[1])):
                scored = [row for row in those if row.gap is not None]
                means = [
                    float(np.mean([getattr(row, name) for row in scored])) if scored else None
                    for name in ("score_chosen", "score_rejected")
                ]
                found.append(Source(column, value, len(those), len(scored), *means))
    return found
