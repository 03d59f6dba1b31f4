"""What a batch of pairs adds to the training log, under TRL's names where TRL has them."""

from __future__ import annotations

import torch
from torch import Tensor

from common.trainer.displacement import CHOSEN, REJECTED

Sides = tuple[Tensor, Tensor, Tensor]
"""Of an answer: reward, log-probability, and its change against the reference a token, (batch,) each."""


def of_pairs(chosen: Sides, rejected: Sides) -> dict[str, Tensor]:
    """(batch,) each; NaN where an answer was not computed."""
    (chosen_rewards, chosen_logps, chosen_shift), (rejected_rewards, rejected_logps, rejected_shift) = chosen, rejected
    margins = chosen_rewards - rejected_rewards
    return {
        "rewards/chosen": chosen_rewards,
        "rewards/rejected": rejected_rewards,
        "rewards/margins": margins,
        "rewards/accuracies": torch.where(margins.isnan(), margins, (margins > 0).float()),
        "logps/chosen": chosen_logps,
        "logps/rejected": rejected_logps,
        CHOSEN: chosen_shift,
        REJECTED: rejected_shift,
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
