"""One forward over rows: padded, a completion each, or packed, where what sequences share is computed once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from common.logprobs.head import scored, target_logprobs, unwatched, watched
from common.logprobs.packing import Packed, Sequence, dense_mask

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.utils import ModelOutput

    MaskMaker = Callable[..., Tensor]


def summed(values: Tensor, sequence: Tensor, sequences: int) -> Tensor:
    """Sums over the tokens of every sequence: (tokens, ...) to (sequences, ...)."""
    return torch.zeros(sequences, *values.shape[1:], device=values.device).index_add(0, sequence, values)


def logprobs_and_output(
    model: torch.nn.Module,
    input_ids: Tensor,
    attention_mask: Tensor,
    completion_mask: Tensor,
    watch: bool = False,
    **asked: bool,
) -> tuple[Tensor, ModelOutput, Tensor]:
    """(rows, kept) as `compute.completion_logprobs`, the model's output, and `head.watched` of the completion tokens."""
    first = int(completion_mask.any(dim=0).int().argmax())  # the earliest completion token of any row
    kept = input_ids.size(1) - first
    output = model(
        input_ids=input_ids, attention_mask=attention_mask, use_cache=False, logits_to_keep=kept + 1, **asked
    )
    logits = output.logits[:, -kept - 1 : -1].float()  # position t predicts token t + 1
    targets, scored = input_ids[:, first:], completion_mask[:, first:].bool()
    logps = torch.gather(logits, 2, targets.unsqueeze(2)).squeeze(2) - logits.logsumexp(dim=2)
    if watch:
        of_words = logits.detach()[scored]
        seen = watched(of_words, of_words.softmax(dim=-1), targets[scored])
    else:
        seen = unwatched(targets[scored])
    return torch.where(scored, logps, torch.zeros_like(logps)), output, seen


def in_rows(
    model: torch.nn.Module, sequences: list[Sequence], watch: bool = False, **asked: bool
) -> tuple[Tensor, ModelOutput, Tensor]:
    """Summed log-probabilities (sequences,), the model's output, and sums of `head.watched`, (sequences, 4 or 0)."""
    ids, mask, completion = _padded(model, sequences)
    logps, output, seen = logprobs_and_output(model, ids, mask, completion, watch, **asked)
    return logps.sum(dim=1), output, summed(seen, completion.nonzero()[:, 0], len(sequences))


def tokens_in_rows(
    model: torch.nn.Module, sequences: list[Sequence], watch: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """As `packed_tokens`."""
    ids, mask, completion = _padded(model, sequences)
    logps, _, seen = logprobs_and_output(model, ids, mask, completion, watch)
    return logps[completion[:, -logps.size(1) :].bool()], completion.nonzero()[:, 0], seen


def _padded(model: torch.nn.Module, sequences: list[Sequence]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, attention mask and completion mask of rows, one per sequence: (rows, length) each."""
    width, device = max(len(ids) for ids, _ in sequences), next(model.parameters()).device
    ids = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in sequences], device=device)
    mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in sequences], device=device)
    starts = torch.tensor([start for _, start in sequences], device=device)
    return ids, mask, mask * (torch.arange(width, device=device) >= starts.unsqueeze(1))


def packed_logprobs(model: torch.nn.Module, packed: Packed, make: MaskMaker) -> Tensor:
    logps, sequence, _ = packed_tokens(model, packed, make)
    return summed(logps, sequence, packed.sequences)


def packed_tokens(
    model: torch.nn.Module, packed: Packed, make: MaskMaker, watch: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probability of every scored token, the number of its sequence, and what `target_logprobs` watched.

    A sharded model has the weights of its head within its own forward alone; there the head sees all scored positions at
    once.
    """
    packed, sharded = packed.to(next(model.parameters()).device), is_sharded(model)
    states, output, logits = packed_states(model, packed, make, whole_head=sharded)
    if sharded:
        logps, seen = scored(logits, packed.targets, watch)
    else:
        logps, seen = target_logprobs(causal_model(model), output, states, packed.targets, watch)
    return logps, packed.sequence, seen


def packed_states(
    model: torch.nn.Module, packed: Packed, make: MaskMaker, whole_head: bool = False
) -> tuple[Tensor, type[ModelOutput], Tensor]:
    """The decoder's states that predict the scored tokens, (scored, width), the type of its output, and logits: of the
    scored tokens where the head sees them all, else of one position."""
    causal = causal_model(model)
    outputs: list[ModelOutput] = []

    def keep(decoder, args, output):
        states = output.last_hidden_state.flatten(0, 1)
        asked = states.index_select(0, packed.source)
        outputs.append(type(output)(last_hidden_state=asked))
        states = asked if whole_head else states[:1]
        return type(output)(last_hidden_state=states.unsqueeze(0))  # a slice of three dimensions would copy the head

    hook = causal.base_model.register_forward_hook(keep)
    try:  # through the wrapper; the head sees one position here
        answer = model(
            input_ids=packed.input_ids,
            attention_mask=_masks(causal, packed, make),
            position_ids=packed.position_ids,
            use_cache=False,
        )
    finally:
        hook.remove()
    return outputs[0].last_hidden_state, type(outputs[0]), answer.logits[0]


def is_sharded(model: torch.nn.Module) -> bool:
    """Whether its weights are spread over processes (FSDP2), which must then call it equally often."""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule)


def causal_model(model: torch.nn.Module) -> PreTrainedModel:
    """The causal model inside a wrapper (PEFT, distributed, ...)."""
    from transformers import PreTrainedModel

    return next(
        module
        for module in model.modules()
        if isinstance(module, PreTrainedModel) and module.get_output_embeddings() is not None
    )


def _masks(causal: PreTrainedModel, packed: Packed, make: MaskMaker):
    """One mask, or one per kind of layer for a model that mixes full and sliding-window attention."""
    config = causal.config.get_text_config()
    make = partial(dense_mask, dtype=causal.dtype) if make is dense_mask else make
    masks = {
        kind: make(packed, window=config.sliding_window if kind == "sliding_attention" else None)
        for kind in layer_kinds(config)
    }
    return masks if len(masks) > 1 else next(iter(masks.values()))


def layer_kinds(config) -> list[str]:
    only = "full_attention" if getattr(config, "sliding_window", None) is None else "sliding_attention"
    return sorted(set(getattr(config, "layer_types", None) or [only]))
