"""What a batch of pairs adds to the training log, under TRL's names where TRL has them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

SIDES = ("chosen", "rejected", "explored")
Side = tuple[Tensor, Tensor, Tensor]
"""Of an answer: reward, log-probability, and its change against the reference a token, (batch,) each."""


def of_answers(sides: Sequence[Side]) -> dict[str, Tensor]:
    """What is logged of chosen, rejected and, where there are any, explored answers, (batch,) each; NaN where an answer
    was not computed."""
    values = {
        f"{name}/{side}": value
        for side, of_side in zip(SIDES, sides)
        for name, value in zip(("rewards", "logps", "shift"), of_side)
    }
    margins = values["rewards/chosen"] - values["rewards/rejected"]
    return values | {
        "rewards/margins": margins,
        "rewards/accuracies": torch.where(margins.isnan(), margins, (margins > 0).float()),
    }


def of_words(seen: Tensor) -> dict[str, float]:
    """Means over answer tokens, from sums of `head.watched` over chosen and over rejected ones, (2, 4); NaN without
    tokens. The accuracy is that of the chosen answers, as TRL's."""
    both, chosen, rejected = ((sums / sums[3]).tolist() for sums in (seen.sum(dim=0), *seen))
    return {
        "entropy": both[0],
        "logits/chosen": chosen[1],
        "logits/rejected": rejected[1],
        "mean_token_accuracy": chosen[2],
    }
