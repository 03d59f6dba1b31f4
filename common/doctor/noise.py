"""Label noise estimated from scores, corrected for the judge's own error (`statistics.label_reliability`, our own).

Of a pair one answer deserves a yes and the other a no. The interval is Wilson's of the share of untied pairs whose chosen
answer scored higher, put through the same line; it takes the judge's sensitivity and specificity as known, and holds for
untied pairs. Of a judge taken as perfect every contradicted pair is a wrong label.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple

from common.data.formats.record import Preferences
from common.doctor.rows import DoctorRow
from common.statistics import judged_tau, label_reliability, order_reliability, wilson_interval

LEAST_GAIN = 0.2
"""Of s + c - 1, as in `statistics.corrected_rate`: a judge little better than chance corrects nothing."""
MANIFESTS = ("reward_score.manifest.json", "judge.manifest.json")
"""Of what makes a `scored.jsonl`: step 2 and `rdpo judge`."""


class Noise(NamedTuple):
    """scored, tied, untied, contradicted: pairs. right_order: j. wrong: share of untied pairs with a wrong label, with
    its 95 % interval; None without untied pairs."""

    scored: int
    tied: int
    untied: int
    contradicted: int
    right_order: float
    wrong: tuple[float, float, float] | None


class JudgeCheck(NamedTuple):
    """A judge's sensitivity and specificity, with the name of the manifest that notes them."""

    sensitivity: float
    specificity: float
    manifest: str

    @property
    def accuracy(self) -> tuple[float, float] | None:
        """Both; None for a judge that corrects nothing."""
        return self[:2] if corrects(*self[:2]) else None


def noted_check(found: Preferences) -> JudgeCheck | None:
    """The check of the judge whose scores these are: of a `scored.jsonl`, as the manifest of its making beside it notes
    it. None where no manifest notes the one judge of these rows, or no check with one sensitivity and specificity."""
    return noted_beside(found.source, {pair.fields.get("judge") for pair in found.pairs if None not in pair.normalised})


def noted_beside(scored: str | Path, judges: Set[str | None]) -> JudgeCheck | None:
    """`noted_check` of the scores in a file, by the names of their judges."""
    source = Path(scored).expanduser()
    for path in map(source.with_name, MANIFESTS) if source.name == "scored.jsonl" else ():
        noted = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if judges == {noted.get("judge")} and (errors := noted_errors(noted)):
            return JudgeCheck(*errors, path.name)
    return None


def noted_errors(noted: Mapping[str, Any]) -> tuple[float, float] | None:
    """Sensitivity and specificity of a judge by the manifest of its scoring: on the labels it was checked on, in the
    miniature on all answers. None where there were no labels of both kinds, or several criteria."""
    if (disagreement := noted.get("disagreement")) is not None:
        return 1 - disagreement, 1 - disagreement
    checks = noted.get("checks", {}).get("score", {})
    checked = checks.get("calibrated") or checks.get("judge") or {}
    errors = checked.get("sensitivity"), checked.get("specificity")
    return None if None in errors else errors


def tau_of_judge(higher: float, errors: tuple[float, float]) -> float:
    """`statistics.judged_tau` to three decimals, which is printed. higher: share of untied pairs whose chosen answer scored
    higher; errors: the judge's sensitivity and specificity."""
    tau = round(judged_tau(higher, *errors), 3)
    print(f"tau = {tau:g}: the judge finds {errors[0]:.0%} of good answers good and {errors[1]:.0%} of bad ones bad")
    return tau


def corrects(sensitivity: float, specificity: float) -> bool:
    """Whether a judge is enough better than chance for its errors to be taken out."""
    return sensitivity + specificity - 1 > LEAST_GAIN


def order_right(sensitivity: float, specificity: float) -> float:
    """`statistics.order_reliability`. Raises ValueError for a judge little better than chance, too."""
    right = order_reliability(sensitivity, specificity)
    if not corrects(sensitivity, specificity):
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
