"""How a rejected answer is made of a good one, on token ids: where it is cut, and what is put in its place.

Both as in SAPO's code (yinyueqin/SAPO, sapo/alignment/utils.py and trainer.py).
"""

from __future__ import annotations

import random
from collections.abc import Collection
from typing import NamedTuple

KEPT_BEHIND = 3
"""Tokens of a good answer that stay behind a segment, at least, where it does not begin the answer: the authors'."""


class Remade(NamedTuple):
    """A rejected answer. ended: the student ended it itself, so nothing of the good one follows."""

    tokens: list[int]
    ended: bool


def cut_point(tokens: int, segment: int, rng: random.Random) -> int:
    """Where a segment begins in a good answer of so many tokens: drawn among the places that leave `KEPT_BEHIND` tokens
    behind it, and 0, the answer's beginning, where none does."""
    return rng.randint(0, max(0, tokens - KEPT_BEHIND - segment))


def spliced(good: list[int], cut: int, piece: list[int], stops: Collection[int]) -> Remade:
    """The good answer with a piece in the place of as many of its tokens, from `cut` on.

    A piece with one of `stops` ends the answer there; what the chat template writes behind the end of the good answer
    follows (ours: the authors' answers end with the stop itself).
    """
    end = next((i for i, token in enumerate(piece) if token in stops), None)
    if end is None:
        return Remade(good[:cut] + piece + good[cut + len(piece) :], ended=False)
    last = max((i for i, token in enumerate(good) if token in stops), default=len(good))
    return Remade(good[:cut] + piece[: end + 1] + good[last + 1 :], ended=True)
