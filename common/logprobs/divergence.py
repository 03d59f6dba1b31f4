"""How far a policy's next words have moved from the reference's, along given answers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

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
    moves.

    Args:
        reference: context in which its model computes the reference, such as the same model with adapters off.
    """
    lengths, values = [len(ids) - start for ids, start in sequences], []
    with torch.no_grad():
        own = _parts(model, sequences)
        with reference() as other:
            theirs = _parts(other, sequences)
        for of_policy, of_reference in zip(own, theirs, strict=True):
            logps = of_policy().float().log_softmax(dim=1)
            with reference():
                others = of_reference().float().log_softmax(dim=1)
            values.append((logps.exp() * (logps - others)).sum(dim=1))
    return float(torch.stack([answer.mean() for answer in torch.cat(values).split(lengths)]).mean())


def _parts(model: torch.nn.Module, sequences: list[Sequence]) -> list[Callable[[], Tensor]]:
    """What gives the logits (tokens, vocabulary) at the tokens of all answers, some tokens at a time, so that no two
    parts of them stand in memory together. The decoder has run, where the model can be packed."""
    if laid := laid_out(model, [[sequence] for sequence in sequences]):
        causal = causal_model(model)
        states, output, _ = packed_states(model, *laid)
        return [partial(logits_by_head, causal, output, some) for some in states.split(positions_at_once(causal))]
    return [partial(_logits_alone, model, *sequence) for sequence in sequences]


def _logits_alone(model: torch.nn.Module, ids: list[int], start: int) -> Tensor:
    row = torch.tensor([ids], device=next(model.parameters()).device)
    kept = len(ids) - start + 1  # the token before the answer predicts its first
    logits = model(input_ids=row, attention_mask=torch.ones_like(row), use_cache=False, logits_to_keep=kept).logits
    return logits[0, :-1]
