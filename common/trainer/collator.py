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
EXPLORED_IDS, EXPLORED_REFERENCE = "explored_ids", "ref_explored_logps"
SECOND = ("second_chosen_logps", "second_rejected_logps")
ROWS = ("input_ids", "attention_mask", "completion_mask")
TEXT_ONLY = "RDPOTrainer trains on text alone: give processing_class=processor.tokenizer of a text model, or take TRL's DPOTrainer"


@dataclass
class ScoreCollator(DataCollatorForPreference):
    """TRL's collator, with scores, a second reference and a weight beside the tokens. `inner`: a collator of preference
    data that makes the tokens instead.

    Where examples have `explored_ids`, a third completion of their prompt, which may be empty, `explored_input_ids`,
    `explored_attention_mask` and `explored_completion_mask` (batch, length) are what the first half of TRL's three
    tensors would be with it as the chosen one.

    >>> collator = ScoreCollator(pad_token_id=0)
    >>> collator([{"prompt_ids": [1, 2], "chosen_ids": [3], "rejected_ids": [4, 5], "score_chosen": 1.0,
    "score_rejected": 0.2}]) {'input_ids': tensor([[1, 2, 3, 0],
                          [1, 2, 4, 5]]),
     ...,
     'score_chosen': tensor([1.]), 'score_rejected': tensor([0.2000])}
    """

    inner: Callable[[list[dict[str, Any]]], dict[str, Any]] | None = None

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        tokens = self.inner or super().torch_call
        batch = tokens(examples)
        if EXPLORED_IDS in examples[0]:
            third = tokens(
                [example | {"chosen_ids": example[EXPLORED_IDS], "rejected_ids": []} for example in examples]
            )
            batch |= {f"explored_{name}": third[name][: len(examples)] for name in ROWS}
        for name in (*SCORES, *SECOND, EXPLORED_REFERENCE, WEIGHT):
            if name in examples[0]:
                batch[name] = torch.tensor([example[name] for example in examples], dtype=torch.float32)
        return batch


def sides_there(inputs: dict[str, Tensor], computed: Tensor | None = None) -> Tensor | None:
    """`computed` (batch, 2), None for all, with a third side: whether the pair has an explored completion. As it is for a
    batch without the column."""
    if "explored_completion_mask" not in inputs:
        return computed
    explored = inputs["explored_completion_mask"].bool().any(dim=1, keepdim=True)
    both = torch.ones_like(explored).expand(-1, 2) if computed is None else computed
    return torch.cat((both, explored), dim=1)


def groups_of(inputs: dict[str, Tensor]) -> list[list[Sequence]]:
    """[chosen, rejected] of every pair, with the explored completion where it has one, as the collator truncated and
    padded them."""
    sequences = _sequences(*(inputs[name] for name in ROWS))
    pairs = len(sequences) // 2
    groups = [[sequences[i], sequences[pairs + i]] for i in range(pairs)]
    if (sides := sides_there(inputs)) is not None:
        third = _sequences(*(inputs[f"explored_{name}"] for name in ROWS))
        groups = [[*group, one] if has else group for group, one, has in zip(groups, third, sides[:, 2].tolist())]
    return groups


def _sequences(ids: Tensor, kept: Tensor, scored: Tensor) -> list[Sequence]:
    rows = zip(ids.cpu(), kept.cpu().bool(), scored.cpu().sum(dim=1))
    return [
        (row[mask].tolist(), max(1, int(mask.sum() - count))) for row, mask, count in rows
    ]  # nothing predicts a first token
