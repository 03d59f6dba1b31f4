"""Label noise estimated from scores, corrected for the judge's own error.

The formula is ours. Of a pair one answer deserves a yes and the other a no. A judge with sensitivity s (yes to what
deserves it) and specificity c (no to what does not), whose verdicts on the two answers err independently, puts them

- in the right order with probability s c,
- in the wrong order with (1 - s)(1 - c), and ties them otherwise.

So of untied pairs the share j = s c / (s c + (1 - s)(1 - c)) is in the right order. If the labels are right in a share
t of the pairs, whatever the judge makes of them, the chosen answer scores higher in the share

    q = j t + (1 - j)(1 - t),    hence    t = (q - 1 + j) / (2 j - 1),

cut to [0, 1]. The interval is Wilson's of q put through the same line. It takes s and c as known, and holds for untied
pairs. A judge taken as perfect has j = 1 and t = q.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from common.doctor.rows import DoctorRow
from common.statistics import wilson_interval

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
    """j: the share of untied pairs that a judge puts in the right order. Raises ValueError for rates outside [0, 1],
    and for a judge little better than chance."""
    if not (0 <= sensitivity <= 1 and 0 <= specificity <= 1):
        raise ValueError(f"sensitivity and specificity are shares, not {sensitivity:g} and {specificity:g}")
    if sensitivity + specificity - 1 <= LEAST_GAIN:
        raise ValueError(
            f"a judge with sensitivity {sensitivity:g} and specificity {specificity:g} is little better than chance and corrects nothing; their sum must exceed {1 + LEAST_GAIN:g}"
        )
    right, wrong = sensitivity * specificity, (1 - sensitivity) * (1 - specificity)
    return right / (right + wrong)


def noise_of(rows: Sequence[DoctorRow], judge_accuracy: tuple[float, float] | None = None) -> Noise:
    """The labels' noise by the scores. judge_accuracy: sensitivity and specificity; None takes the judge as perfect."""
    j = order_right(*judge_accuracy) if judge_accuracy else 1.0
    gaps = [row.gap for row in rows if row.gap is not None]
    untied, contradicted = sum(gap != 0 for gap in gaps), sum(gap < 0 for gap in gaps)
    if not untied:
        return Noise(len(gaps), len(gaps), 0, 0, j, None)
    agree = (untied - contradicted) / untied
    low, high = wilson_interval(untied - contradicted, untied)
    wrong = tuple(1 - min(1.0, max(0.0, (q - 1 + j) / (2 * j - 1))) for q in (agree, high, low))
    return Noise(len(gaps), len(gaps) - untied, untied, contradicted, j, wrong)
