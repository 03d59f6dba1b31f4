"""Which pairs a judge is asked about, and which answer is preferred, as pure functions of log-probabilities and scores.

Active preference learning (APL, arXiv 2402.08114) asks about the pairs that promise most. Entropy and certainty are the
authors' (willmuldrew/active-preference-learning, experiment5.py); their code has no hybrid, whose order, entropy before
certainty, is the abstract's, and whose shares are ours. At the start every certainty is 0: ties are drawn by the seed.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import NamedTuple


def entropy(logps: Sequence[float]) -> float:
    """Estimated entropy of the answers to a prompt, nats: minus the mean log-probability of samples at temperature 1.
    Each is a sum over tokens, so prompts with long answers have more; of a sample that was cut off its beginning counts."""
    return -sum(logps) / len(logps)


def margin(policy: tuple[float, float], reference: tuple[float, float], beta: float) -> float:
    """Certainty of a policy about two answers: the distance of their implicit rewards, beta times log-ratio each."""
    first, second = (beta * (of_policy - of_reference) for of_policy, of_reference in zip(policy, reference))
    return abs(first - second)


def highest(values: Sequence[float], rng: random.Random) -> list[int]:
    """Positions from the highest value to the lowest, equal ones in a drawn order."""
    order = rng.sample(range(len(values)), len(values))
    return sorted(order, key=lambda i: -values[i])


def prefiltered(wanted: int, over_generate: int) -> int:
    """Prompts that hybrid's entropy keeps of `wanted * over_generate` for its certainty: both choose one in the same
    number (ours)."""
    return math.ceil(wanted * math.sqrt(over_generate))


class Preferred(NamedTuple):
    """Names of two answers."""

    chosen: str
    rejected: str


def best_and_worst(scores: dict[str, float]) -> Preferred | None:
    """The answers with the highest and the lowest score; None where all are equal. On a tie an earlier answer is chosen:
    `revised`, `original`, `new`; and rejected: `original`, `revised`, `new`, so that the teacher's pair stays where it
    can."""
    chosen = max((name for name in ("revised", "original", "new") if name in scores), key=scores.__getitem__)
    rejected = min((name for name in ("original", "revised", "new") if name in scores), key=scores.__getitem__)
    return Preferred(chosen, rejected) if scores[chosen] > scores[rejected] else None
