"""The collator that carries external scores and weights to the loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from trl.trainer.dpo_trainer import DataCollatorForPreference

from common.data.preference import SCORES, WEIGHT

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
