"""ExPO, model extrapolation (arXiv 2404.16792): beyond where the training stopped, without training.

theta = theta_1 + a (theta_1 - theta_0), where theta_0 is the model that the training began with and theta_1 what came of
it. The authors subtract every parameter (chujiezheng/LLM-Extrapolation, extrapolate.py). A fresh LoRA adapter *is* that
difference, so here it counts 1 + a times: exactly, on NF4 weights too. a is chosen on the validation split, as theirs is
by a reward model; it may be 0, and then the row is the training itself.
"""

from __future__ import annotations

from common.evaluation.answers import TrainedStudent
from common.evaluation.matched_utility import scaled
from common.evaluation.metrics import Evaluation, Evaluator, to_choose_by
from common.student.adapters import turn

FACTORS = (0.0, 0.1, 0.3, 0.5, 1.0)
"""Values of a that are tried; the authors call .3 and .5 usually good."""


def value_of(evaluation: Evaluation, safety: str) -> float:
    """What a factor is chosen by: as settings are, or without the judge of the pairs by the wanted behaviour."""
    return to_choose_by(evaluation.metrics, safety)


def extrapolated(student: TrainedStudent, evaluator: Evaluator, seed: int, method: str) -> tuple[TrainedStudent, float]:
    """(the student with its adapter turned up, the factor a that was best on validation, the smallest on a tie). The
    adapter stays turned up, so that what is saved of it is the extrapolated student."""
    values = {}
    for factor in FACTORS:
        with scaled(student, 1 + factor):
            values[factor] = value_of(evaluator(student, "validation", seed), evaluator.safety)
    best = max(values, key=lambda factor: (values[factor], -factor))
    turn(student.model, 1 + best)
    student.method = method
    return student, best
