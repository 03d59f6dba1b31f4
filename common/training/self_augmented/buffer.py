"""The pairs that were made, from which every batch is drawn."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass


def draw_probabilities(drawn: Sequence[int]) -> list[float]:
    """Probability of each pair, in proportion to 1 / (times drawn + 1), as in SAPO's code (yinyueqin/SAPO,
    sapo/alignment/utils.py)."""
    weights = [1 / (times + 1) for times in drawn]
    return [weight / sum(weights) for weight in weights]


@dataclass
class MadePair:
    """Token ids of a prompt and its two answers, and how often they were drawn."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]
    drawn: int = 0


class Buffer:
    """At most `size` pairs, of which the oldest leaves for a new one."""

    def __init__(self, size: int, rng: random.Random):
        self.pairs, self.rng = deque[MadePair](maxlen=size), rng

    def add(self, pairs: Sequence[MadePair]) -> None:
        self.pairs.extend(pairs)

    def draw(self, count: int) -> list[MadePair]:
        """So many pairs, with replacement, by `draw_probabilities`; none of an empty buffer."""
        if not self.pairs:
            return []
        found = self.rng.choices(self.pairs, draw_probabilities([pair.drawn for pair in self.pairs]), k=count)
        for pair in found:
            pair.drawn += 1
        return found
