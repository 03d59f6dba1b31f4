"""How far a policy's next words have moved from the reference's, along given answers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch

from common.logprobs.packing import Sequence


def answer_kl(
    model: torch.nn.Module, sequences: list[Sequence], reference: Callable[[], AbstractContextManager[torch.nn.Module]]
) -> float:
    """KL(policy || reference), nats a token: at every token of every answer the divergence of the two distributions over
    all words, exactly, and their mean over an answer, then over answers. 0 where the two are the same model.

    The answers are given, so this is no estimate of the KL on the policy's own answers, which are others the further it
    moves. One answer is computed at a time, and the policy's words of all are kept: tokens by vocabulary in float32.

    Args:
        reference: context in which its model computes the reference, such as the same model with adapters off.
    """
    with torch.no_grad():
        policies = [_log_distributions(model, sequence) for sequence in sequences]
        with reference() as other:
            values = [
                (policy.exp() * (policy - _log_distributions(other, sequence))).sum(dim=1).mean()
                for policy, sequence in zip(policies, sequences)
            ]
    return float(torch.stack(values).mean())


def _log_distributions(model: torch.nn.Module, sequence: Sequence) -> torch.Tensor:
    """(answer tokens, vocabulary), float32: log-probability of every word at every token of the answer."""
    ids, start = sequence
    row = torch.tensor([ids], device=next(model.parameters()).device)
    kept = len(ids) - start + 1  # the token before the answer predicts its first
    logits = model(input_ids=row, attention_mask=torch.ones_like(row), use_cache=False, logits_to_keep=kept).logits
    return logits[0, :-1].float().log_softmax(dim=1)
