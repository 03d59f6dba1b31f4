"""Log-probabilities of completions, with the language-model head on completion positions only."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def completion_logprobs(model: torch.nn.Module, input_ids: Tensor, attention_mask: Tensor, completion_mask: Tensor) -> Tensor:
    """Log-probability of every completion token, 0 elsewhere.

    Args:
        model: called as it is, wrappers and hooks included.
        input_ids, attention_mask, completion_mask: (rows, length), padded on the right; the last marks completion
            tokens with 1.

    Returns:
        (rows, kept) in float32, nats: the positions from the first completion token of any row to the end. The head is
        computed for these alone, so that a long prompt costs no logits.
    """
    first = int(completion_mask.any(dim=0).int().argmax())  # the earliest completion token of any row
    kept = input_ids.size(1) - first
    logits = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, logits_to_keep=kept + 1).logits
    logits = logits[:, -kept - 1 : -1].float()  # position t predicts token t + 1
    targets = input_ids[:, first:]
    logps = torch.gather(logits, 2, targets.unsqueeze(2)).squeeze(2) - logits.logsumexp(dim=2)
    return torch.where(completion_mask[:, first:].bool(), logps, torch.zeros_like(logps))


def pair_logprobs(
    model: PreTrainedModel, prompt_ids: list[list[int]], chosen_ids: list[list[int]], rejected_ids: list[list[int]]
) -> tuple[Tensor, Tensor]:
    """Summed log-probabilities of chosen and rejected completions.

    Args:
        prompt_ids, chosen_ids, rejected_ids: token ids, one list per pair; no list may be empty.

    Returns:
        chosen_logps, rejected_logps: (batch,), float32, nats, summed over completion tokens.

    Raises:
        ValueError: an empty prompt or completion, naming the pair.
    """
    for name, rows in (("prompt", prompt_ids), ("chosen", chosen_ids), ("rejected", rejected_ids)):
        empty = [i for i, row in enumerate(rows) if not row]
        if empty:
            raise ValueError(f"pair {empty[0]} has an empty {name}; leave such pairs out before training")
    chosen, rejected = summed_logprobs(model, prompt_ids * 2, chosen_ids + rejected_ids).chunk(2)
    return chosen, rejected


def summed_logprobs(model: PreTrainedModel, prompt_ids: list[list[int]], completion_ids: list[list[int]]) -> Tensor:
    """Summed log-probability of one completion per prompt, none of them empty: (batch,), float32, nats."""
    rows = [prompt + completion for prompt, completion in zip(prompt_ids, completion_ids, strict=True)]
    width, device = max(map(len, rows)), next(model.parameters()).device
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
    starts = torch.tensor([len(prompt) for prompt in prompt_ids], device=device)
    completion = mask * (torch.arange(width, device=device) >= starts.unsqueeze(1))
    return completion_logprobs(model, ids, mask, completion).sum(dim=1)
