"""Log-probabilities of completions: what sequences share is computed once, and the language-model head sees only the
positions that predict a completion, in chunks."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from common.logprobs.packing import Packed, Sequence, dense_mask, pack, stretches_mask
from common.logprobs.rows import in_rows, logprobs_and_output, packed_tokens, summed, tokens_in_rows

if TYPE_CHECKING:
    from common.logprobs.rows import MaskMaker


SHORT_ROW = 192
"""Tokens of a row below which a CPU computes one masked attention sooner than many small ones."""


def pair_logprobs(
    model: torch.nn.Module,
    prompt_ids: list[list[int]],
    chosen_ids: list[list[int]],
    rejected_ids: list[list[int]],
    *,
    packed: bool = True,
) -> tuple[Tensor, Tensor]:
    """Summed log-probabilities of chosen and rejected completions.

    Args:
        model: a causal model or a wrapper around one; called as it is, adapters and hooks included.
        prompt_ids, chosen_ids, rejected_ids: token ids, one list per pair; no list may be empty.
        packed: False takes padded rows, one per completion.

    Returns:
        chosen_logps, rejected_logps: (batch,), float32, nats, summed over completion tokens.

    Raises:
        ValueError: an empty prompt or completion, naming the pair.
    """
    for name, rows in (("prompt", prompt_ids), ("chosen", chosen_ids), ("rejected", rejected_ids)):
        empty = [i for i, row in enumerate(rows) if not row]
        if empty:
            raise ValueError(f"pair {empty[0]} has an empty {name}; leave such pairs out before training")
    triples = zip(prompt_ids, chosen_ids, rejected_ids, strict=True)
    groups = [
        [(prompt + chosen, len(prompt)), (prompt + rejected, len(prompt))] for prompt, chosen, rejected in triples
    ]
    chosen_logps, rejected_logps = grouped_logprobs(model, groups, packed=packed).view(-1, 2).unbind(1)
    return chosen_logps, rejected_logps


def summed_logprobs(model: torch.nn.Module, prompt_ids: list[list[int]], completion_ids: list[list[int]]) -> Tensor:
    """Summed log-probability of one completion per prompt, none of them empty: (batch,), float32, nats."""
    return grouped_logprobs(
        model,
        [[(prompt + completion, len(prompt))] for prompt, completion in zip(prompt_ids, completion_ids, strict=True)],
    )


def grouped_logprobs(
    model: torch.nn.Module, groups: list[list[Sequence]], *, packed: bool = True, weights: Tensor | None = None
) -> Tensor:
    """Summed log-probability of the scored tokens of every sequence: (sequences,), float32, nats.

    A group is what shares its beginning (see `common.logprobs.packing`). A model that cannot be packed exactly gets
    padded rows, one per sequence, and the same numbers; so it does with `packed=False`.

    weights: of the scored tokens, (tokens,), sequence after sequence: how often each log-probability counts.
    """
    return watched_logprobs(model, groups, packed=packed, weights=weights, watch=False)[0]


def watched_logprobs(
    model: torch.nn.Module,
    groups: list[list[Sequence]],
    *,
    packed: bool = True,
    weights: Tensor | None = None,
    watch: bool = True,
) -> tuple[Tensor, Tensor]:
    """`grouped_logprobs`, and sums of `head.watched` over the scored tokens of every sequence, unweighted: (sequences,),
    (sequences, 4)."""
    if weights is None and (not packed or _mask_maker(model) is None):
        logps, _, seen = in_rows(model, list(chain.from_iterable(groups)), watch)
        return logps, seen
    logps, sequence, seen = _tokens(model, groups, packed, watch)
    logps = logps if weights is None else logps * weights.to(logps.device)
    return tuple(summed(values, sequence, sum(map(len, groups))) for values in (logps, seen))


def token_logprobs(
    model: torch.nn.Module, groups: list[list[Sequence]], *, packed: bool = True
) -> tuple[Tensor, Tensor]:
    """Log-probability of every scored token, sequence after sequence, and the number of its sequence: (tokens,) float32
    in nats, (tokens,)."""
    return _tokens(model, groups, packed)[:2]


def _tokens(
    model: torch.nn.Module, groups: list[list[Sequence]], packed: bool, watch: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    if not packed or (laid := laid_out(model, groups)) is None:
        return tokens_in_rows(model, list(chain.from_iterable(groups)), watch)
    return packed_tokens(model, *laid, watch)


def laid_out(model: torch.nn.Module, groups: list[list[Sequence]]) -> tuple[Packed, MaskMaker] | None:
    """Packed rows and what makes their masks; None for a model that cannot be packed exactly."""
    if (make := _mask_maker(model)) is None:
        return None
    rows = pack(groups)
    short = make is stretches_mask and rows.input_ids.size(1) < SHORT_ROW
    return rows, dense_mask if short else make


def balanced_logprobs(model: torch.nn.Module, groups: list[list[Sequence]]) -> tuple[Tensor, Tensor, Tensor]:
    """`watched_logprobs` of a mixture of experts in padded rows, and its load-balancing loss, (), over the tokens of
    all rows: a packed row would count a shared prompt once."""
    logps, output, seen = in_rows(model, list(chain.from_iterable(groups)), watch=True, output_router_logits=True)
    return logps, seen, output.aux_loss


def completion_logprobs(
    model: torch.nn.Module, input_ids: Tensor, attention_mask: Tensor, completion_mask: Tensor
) -> Tensor:
    """Log-probability of every completion token, 0 elsewhere, from padded rows.

    Args:
        model: called as it is, wrappers and hooks included.
        input_ids, attention_mask, completion_mask: (rows, length), padded on the right; the last marks completion
            tokens with 1.

    Returns:
        (rows, kept) in float32, nats: the positions from the first completion token of any row to the end. The head is
        computed for these alone, so that a long prompt costs no logits.
    """
    return logprobs_and_output(model, input_ids, attention_mask, completion_mask)[0]


def _mask_maker(model: torch.nn.Module):
    """`masks.mask_maker`, imported with the first model: it brings transformers, seconds that a judge can do without."""
    from common.logprobs.masks import mask_maker

    return mask_maker(model)
