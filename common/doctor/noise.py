"""Label noise estimated from scores, corrected for the judge's own error (`statistics.label_reliability`, our own).

Of a pair one answer deserves a yes and the other a no. The interval is Wilson's of the share of untied pairs whose chosen
answer scored higher, put through the same line; it takes the judge's sensitivity and specificity as known, and holds for
untied pairs. Of a judge taken as perfect every contradicted pair is a wrong label.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from common.doctor.rows import DoctorRow
from common.statistics import label_reliability, order_reliability, wilson_interval

LEAST_GAIN = 0.2
"""Of s + c - 1, as in `statistics.corrected_rate`: a judge little better than chance corrects nothing."""


class Noise(NamedTuple):
    """scored, tied, untied, contradicted: pairs. right_order: j. wrong: share of untied pairs with a wrong label, with
    its 95 % interval; None without untied pairs."""

    scored: int
    tied: int
    untied: int
    contradicted: int
    right_order: float
    wrong: tuple[float, float, float] | None


def order_right(sensitivity: float, specificity: float) -> float:
    """`statistics.order_reliability`. Raises ValueError for a judge little better than chance, too."""
    right = order_reliability(sensitivity, specificity)
    if sensitivity + specificity - 1 <= LEAST_GAIN:
        raise ValueError(
            f"a judge with sensitivity {sensitivity:g} and specificity {specificity:g} is little better than chance and corrects nothing; their sum must exceed {1 + LEAST_GAIN:g}"
        )
    return right


def noise_of(rows: Sequence[DoctorRow], judge_accuracy: tuple[float, float] | None = None) -> Noise:
    """The labels' noise by the scores. judge_accuracy: sensitivity and specificity; None takes the judge as perfect."""
    j = order_right(*judge_accuracy) if judge_accuracy else 1.0
    gaps = [row.gap for row in rows if row.gap is not None]
    untied, contradicted = sum(gap != 0 for gap in gaps), sum(gap < 0 for gap in gaps)
    if not untied:
        return Noise(len(gaps), len(gaps), 0, 0, j, None)
    agree = (untied - contradicted) / untied
    low, high = wilson_interval(untied - contradicted, untied)
    wrong = tuple(1 - label_reliability(q, j) for q in (agree, high, low))
    return Noise(len(gaps), len(gaps) - untied, untied, contradicted, j, wrong)
