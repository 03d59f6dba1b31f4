"""The collator that carries external scores and weights to the loss, and the pairs that its batches hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from trl.trainer.dpo_trainer import DataCollatorForPreference

from common.data.preference import SCORES, WEIGHT
from common.logprobs.packing import Sequence

TOKENS = ("prompt_ids", "chosen_ids", "rejected_ids")
REFERENCE = ("ref_chosen_logps", "ref_rejected_logps")
SECOND = ("second_chosen_logps", "second_rejected_logps")
TEXT_ONLY = "RDPOTrainer trains on text alone: give processing_class=processor.tokenizer of a text model, or take TRL's DPOTrainer"


@dataclass
class ScoreCollator(DataCollatorForPreference):
    """TRL's collator, with scores, a second reference and a weight beside the tokens. `inner`: a collator of preference
    data that makes the tokens instead.

    >>> collator = ScoreCollator(pad_token_id=0)
    >>> collator([{"prompt_ids": [1, 2], "chosen_ids": [3], "rejected_ids": [4, 5], "score_chosen": 1.0,
    "score_rejected": 0.2}]) {'input_ids': tensor([[1, 2, 3, 0],
                          [1, 2, 4, 5]]),
     ...,
     'score_chosen': tensor([1.]), 'score_rejected': tensor([0.2000])}
    """

    inner: Callable[[list[dict[str, Any]]], dict[str, Any]] | None = None

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = (self.inner or super().torch_call)(examples)
        for name in (*SCORES, *SECOND, WEIGHT):
            if name in examples[0]:
                batch[name] = torch.tensor([example[name] for example in examples], dtype=torch.float32)
        return batch


def groups_of(inputs: dict[str, Tensor]) -> list[list[Sequence]]:
    """[chosen, rejected] of every pair, as the collator truncated and padded them."""
    ids, kept, scored = (inputs[name].cpu() for name in ("input_ids", "attention_mask", "completion_mask"))
    rows = zip(ids, kept.bool(), scored.sum(dim=1))
    sequences = [
        (row[mask].tolist(), max(1, int(mask.sum() - count))) for row, mask, count in rows
    ]  # nothing predicts a first token
    pairs = len(sequences) // 2
    return [[sequences[i], sequences[pairs + i]] for i in range(pairs)]
