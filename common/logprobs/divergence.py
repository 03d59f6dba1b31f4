"""How far a policy's next words have moved from the reference's, along given answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from common.logprobs.compute import laid_out
from common.logprobs.head import logits_by_head, positions_at_once
from common.logprobs.packing import Sequence
from common.logprobs.rows import causal_model, packed_states


def answer_kl(
    model: torch.nn.Module, sequences: list[Sequence], reference: Callable[[], AbstractContextManager[torch.nn.Module]]
) -> float:
    """KL(policy || reference), nats a token: at every token of every answer the divergence of the two distributions over
    all words, exactly, and their mean over an answer, then over answers. 0 where the two are the same model.

    The answers are given, so this is no estimate of the KL on the policy's own answers, which are others the further it
    moves. The policy's words of all answers are kept: tokens by vocabulary in float32.

    Args:
        reference: context in which its model computes the reference, such as the same model with adapters off.
    """
    lengths, values, begin = [len(ids) - start for ids, start in sequences], [], 0
    with torch.no_grad():
        policy = torch.cat(list(_log_distributions(model, sequences)))
        with reference() as other:
            for of_other in _log_distributions(other, sequences):
                own = policy[begin : begin + len(of_other)]
                values.append((own.exp() * (own - of_other)).sum(dim=1))
                begin += len(of_other)
    return float(torch.stack([answer.mean() for answer in torch.cat(values).split(lengths)]).mean())


def _log_distributions(model: torch.nn.Module, sequences: list[Sequence]) -> Iterator[Tensor]:
    """(tokens, vocabulary), float32, some at a time: log-probability of every word at every token of all answers."""
    if laid := laid_out(model, [[sequence] for sequence in sequences]):
        causal = causal_model(model)
        states, output, _ = packed_states(model, *laid)
        for some in states.split(positions_at_once(causal)):
            yield logits_by_head(causal, output, some).float().log_softmax(dim=1)
        return
    for ids, start in sequences:
        row = torch.tensor([ids], device=next(model.parameters()).device)
        kept = len(ids) - start + 1  # the token before the answer predicts its first
        logits = model(input_ids=row, attention_mask=torch.ones_like(row), use_cache=False, logits_to_keep=kept).logits
        yield logits[0, :-1].float().log_softmax(dim=1)
