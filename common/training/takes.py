"""What a training takes, estimated before it begins: how often pairs are trained on, and what is asked of whom."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

from common.methods import METHODS, RoundSettings, TrainSettings
from common.training.annotators.run import MIXED_ON
from common.training.extrapolate import FACTORS
from common.training.rounds.acquisition import prefiltered
from common.training.rounds.arms import ARMS, Arm


class Takes(NamedTuple):
    """passes: a pair trained on once. answers: of the student, within its training or to choose by. verdicts: asked of
    the reward judge, at most. Each at most: pairs drop out, EM may end early, and what is kept costs nothing."""

    passes: int
    answers: int = 0
    verdicts: int = 0


def takes(method: str, settings: TrainSettings, pairs: int, validation: int) -> Takes:
    """Of a trained row on so many pairs. validation: prompts that a row which extrapolates chooses its factor by."""
    row, rounds = METHODS[method], settings.rounds
    passes = math.ceil(pairs * settings.epochs * settings.steps_share)
    if row.rounds and ARMS[row.rounds].goes_on:
        part = min(pairs, rounds.count * rounds.prompts or pairs)
        return Takes(part * settings.epochs, part, part)
    if row.rounds:
        answers = sum(_acquiring(ARMS[row.rounds], rounds, *gap, pairs) for gap in pairwise([0, *rounds.schedule]))
        return Takes(sum(rounds.schedule) * rounds.epochs, answers, 2 * rounds.schedule[-1])
    if row.types:
        trainings = settings.annotator_types * (settings.em_steps if row.types == "em" else 1)
        return Takes(passes * trainings, MIXED_ON * settings.annotator_types)
    if row.extrapolates:
        return Takes(passes, validation * len(FACTORS), validation * len(FACTORS))
    return Takes(passes, passes if row.remakes else 0)


def _acquiring(arm: Arm, rounds: RoundSettings, before: int, judged: int, pairs: int) -> int:
    """Answers of a round of active preference learning, in which pairs up to `judged` are judged after `before`."""
    wanted = judged - before
    drawn = min(wanted * rounds.over_generate, pairs - before) if arm.chooses else wanted
    if not arm.by_entropy:
        return 2 * drawn
    kept = prefiltered(wanted, rounds.over_generate) if arm.by_certainty else wanted
    return drawn * rounds.entropy_samples + 2 * min(kept, drawn)
