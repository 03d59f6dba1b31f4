"""Log-probabilities of completions: what sequences share is computed once, and the language-model head sees only the
positions that predict a completion, in chunks."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain, takewhile
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from common.logprobs import attention as shared_attention
from common.logprobs.head import target_logprobs
from common.logprobs.packing import Packed, Sequence, dense_mask, pack, sparse_mask, stretches_mask
from common.student.load import forbid_cpu_repacking

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.utils import ModelOutput

    MaskMaker = Callable[..., Tensor]


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
    if weights is None and (not packed or _mask_maker(model) is None):
        return _in_rows(model, list(chain.from_iterable(groups)))[0]
    logps, sequence = token_logprobs(model, groups, packed=packed)
    return _summed(logps if weights is None else logps * weights.to(logps.device), sequence, sum(map(len, groups)))


def token_logprobs(
    model: torch.nn.Module, groups: list[list[Sequence]], *, packed: bool = True
) -> tuple[Tensor, Tensor]:
    """Log-probability of every scored token, sequence after sequence, and the number of its sequence: (tokens,) float32
    in nats, (tokens,)."""
    if not packed or (make := _mask_maker(model)) is None:
        return _tokens_in_rows(model, list(chain.from_iterable(groups)))
    rows = pack(groups)
    if make is stretches_mask and rows.input_ids.size(1) < SHORT_ROW:
        make = dense_mask
    return _packed_tokens(model, rows, make)


def _summed(logps: Tensor, sequence: Tensor, sequences: int) -> Tensor:
    return torch.zeros(sequences, device=logps.device).index_add(0, sequence, logps)


def balanced_logprobs(model: torch.nn.Module, groups: list[list[Sequence]]) -> tuple[Tensor, Tensor]:
    """`grouped_logprobs` of a mixture of experts in padded rows, and its load-balancing loss, (), over the tokens of
    all rows: a packed row would count a shared prompt once."""
    logps, output = _in_rows(model, list(chain.from_iterable(groups)), output_router_logits=True)
    return logps, output.aux_loss


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
    return _completion_logprobs(model, input_ids, attention_mask, completion_mask)[0]


def _completion_logprobs(
    model: torch.nn.Module, input_ids: Tensor, attention_mask: Tensor, completion_mask: Tensor, **asked: bool
) -> tuple[Tensor, ModelOutput]:
    first = int(completion_mask.any(dim=0).int().argmax())  # the earliest completion token of any row
    kept = input_ids.size(1) - first
    output = model(
        input_ids=input_ids, attention_mask=attention_mask, use_cache=False, logits_to_keep=kept + 1, **asked
    )
    logits = output.logits[:, -kept - 1 : -1].float()  # position t predicts token t + 1
    targets = input_ids[:, first:]
    logps = torch.gather(logits, 2, targets.unsqueeze(2)).squeeze(2) - logits.logsumexp(dim=2)
    return torch.where(completion_mask[:, first:].bool(), logps, torch.zeros_like(logps)), output


def _in_rows(model: torch.nn.Module, sequences: list[Sequence], **asked: bool) -> tuple[Tensor, ModelOutput]:
    logps, output = _completion_logprobs(model, *_padded(model, sequences), **asked)
    return logps.sum(dim=1), output


def _tokens_in_rows(model: torch.nn.Module, sequences: list[Sequence]) -> tuple[Tensor, Tensor]:
    ids, mask, completion = _padded(model, sequences)
    logps, _ = _completion_logprobs(model, ids, mask, completion)
    scored = completion[:, -logps.size(1) :].bool()
    return logps[scored], scored.nonzero()[:, 0]


def _padded(model: torch.nn.Module, sequences: list[Sequence]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, attention mask and completion mask of rows, one per sequence: (rows, length) each."""
    width, device = max(len(ids) for ids, _ in sequences), next(model.parameters()).device
    ids = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in sequences], device=device)
    mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in sequences], device=device)
    starts = torch.tensor([start for _, start in sequences], device=device)
    return ids, mask, mask * (torch.arange(width, device=device) >= starts.unsqueeze(1))


def _packed_logprobs(model: torch.nn.Module, packed: Packed, make: MaskMaker) -> Tensor:
    return _summed(*_packed_tokens(model, packed, make), packed.sequences)


def _packed_tokens(model: torch.nn.Module, packed: Packed, make: MaskMaker) -> tuple[Tensor, Tensor]:
    causal = _causal_model(model)
    packed = packed.to(next(model.parameters()).device)
    outputs: list[ModelOutput] = []

    def keep(decoder, args, output):
        outputs.append(output)
        return type(output)(
            last_hidden_state=output.last_hidden_state[0, :1].unsqueeze(0)
        )  # a slice of three dimensions would copy the head

    hook = causal.base_model.register_forward_hook(keep)
    try:  # through the wrapper; the head sees one position here, and the scored ones below
        model(
            input_ids=packed.input_ids,
            attention_mask=_masks(causal, packed, make),
            position_ids=packed.position_ids,
            use_cache=False,
        )
    finally:
        hook.remove()
    states = outputs[0].last_hidden_state.flatten(0, 1).index_select(0, packed.source)
    return target_logprobs(causal, type(outputs[0]), states, packed.targets), packed.sequence


def _causal_model(model: torch.nn.Module) -> PreTrainedModel:
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
        for kind in _layer_kinds(config)
    }
    return masks if len(masks) > 1 else next(iter(masks.values()))


def _layer_kinds(config) -> list[str]:
    only = "full_attention" if getattr(config, "sliding_window", None) is None else "sliding_attention"
    return sorted(set(getattr(config, "layer_types", None) or [only]))


_makers: WeakKeyDictionary[torch.nn.Module, dict[tuple[str, bool], MaskMaker | None]] = WeakKeyDictionary()
"""Of a causal model: the masks found for its attention, with and without virtual tokens in front."""


def packs_exactly(model: torch.nn.Module) -> bool:
    """Whether packed rows give this model's own numbers; tried out once per model and attention on two small pairs.

    False, with one warning that says why, for recurrent and chunked layers, for positions that do not restart, for
    virtual tokens in front (prompt and prefix tuning), and for a forward that ignores masks or position ids.
    """
    return _mask_maker(model) is not None


def give_attention_back(model: torch.nn.Module) -> None:
    """Sets sdpa again where `common.logprobs.attention` took its place for packed rows. Not between a forward and its
    backward."""
    causal = _causal_model(model)
    if causal.config._attn_implementation == shared_attention.NAME:
        causal.set_attn_implementation("sdpa")


def _mask_maker(model: torch.nn.Module) -> MaskMaker | None:
    """The fastest masks with which packed rows give this model's own numbers, None where no mask does. Leaves the model
    with the attention that takes them."""
    causal = _causal_model(model)
    found, attention, virtual = (
        _makers.setdefault(causal, {}),
        causal.config._attn_implementation,
        _has_virtual_tokens(model, causal),
    )
    if (attention, virtual) not in found:
        reasons = []
        for taken, make in _candidates(causal):
            causal.set_attn_implementation(taken)
            reasons.append(_reason_not_to_pack(model, causal, make))
            if reasons[-1] is None:
                found[attention, virtual] = found[taken, virtual] = make
                break
        else:
            causal.set_attn_implementation(attention)
            found[attention, virtual] = None
            warnings.warn(
                f"{type(causal).__name__} is computed in padded rows, one per completion: {reasons[-1]}", stacklevel=3
            )
    make = found[attention, virtual]
    if attention == "sdpa" and make in (stretches_mask, sparse_mask):
        causal.set_attn_implementation(shared_attention.NAME)
    return make


def _candidates(causal: PreTrainedModel) -> list[tuple[str, MaskMaker]]:
    """Attention and masks to try, the fastest first. sdpa makes way for an attention that skips what is hidden."""
    config, attention = causal.config.get_text_config(), causal.config._attn_implementation
    if attention == "flex_attention":
        return [(attention, sparse_mask)]
    if attention not in ("sdpa", shared_attention.NAME) or any(
        getattr(config, name, 0) for name in ("attention_dropout", "attn_pdrop")
    ):
        return [(attention, dense_mask)]
    return [
        (shared_attention.NAME, stretches_mask if causal.device.type == "cpu" else sparse_mask),
        (shared_attention.NAME, dense_mask),
    ]


def _has_virtual_tokens(model: torch.nn.Module, causal: PreTrainedModel) -> bool:
    wrappers = takewhile(lambda module: module is not causal, model.modules())
    return any(
        config.is_prompt_learning for wrapper in wrappers if (config := getattr(wrapper, "active_peft_config", None))
    )


def _reason_not_to_pack(model: torch.nn.Module, causal: PreTrainedModel, make: MaskMaker) -> str | None:
    config = causal.config.get_text_config()
    if _has_virtual_tokens(model, causal):
        return "virtual tokens stand before every row (prompt or prefix tuning)"
    unknown = set(_layer_kinds(config)) - {"full_attention", "sliding_attention"}
    if unknown or getattr(causal, "_is_stateful", False):
        return f"it has layers that no mask can part ({', '.join(sorted(unknown)) or 'recurrent'})"
    if "flash" in config._attn_implementation:
        return f"{config._attn_implementation} takes no mask; load it with attn_implementation='sdpa' or 'eager'"
    token = lambda *numbers: [11 * number % min(config.vocab_size, 97) for number in numbers]  # noqa: E731
    groups = [
        [(token(1, 2, 3, 4, 5, 6, 7, 8), 6), (token(1, 2, 3, 4, 5, 6, 9, 10, 11), 6)],
        [(token(12, 13, 14, 15, 16), 3), (token(12, 13, 14, 17, 18, 19), 3)],
    ]
    rows = pack(groups, row_tokens=64)
    with _as_for_evaluation(model), _narrow_window(config), torch.no_grad():
        plain, _ = _in_rows(model, list(chain.from_iterable(groups)))
        try:
            found = _packed_logprobs(model, rows, make)
            _try_backward(causal, rows, make)
        except Exception as error:
            return f"it takes no packed rows ({type(error).__name__}: {error})"
    tolerance = 1e-4 if causal.dtype == torch.float32 and not torch.is_autocast_enabled(plain.device.type) else 3e-2
    off = float((found - plain).abs().max() / plain.abs().max())
    return None if off < tolerance else f"packed rows change its log-probabilities by {off:.0e} of their size"


def _try_backward(causal: PreTrainedModel, rows: Packed, make: MaskMaker) -> None:
    """Raises where gradients cannot pass, before a training finds out: a kernel may know the way forward alone."""
    embedded: list[Tensor] = []
    keep = causal.get_input_embeddings().register_forward_hook(
        lambda module, args, output: embedded.append(output.detach().requires_grad_()) or embedded[0]
    )
    try:
        with torch.enable_grad():
            torch.autograd.grad(_packed_logprobs(causal, rows, make).sum(), embedded[0])
    finally:
        keep.remove()


@contextmanager
def _as_for_evaluation(model: torch.nn.Module) -> Iterator[None]:
    forbid_cpu_repacking(model)  # one forward in evaluation mode would spoil the gradients of NF4 weights
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _narrow_window(config) -> Iterator[None]:
    """A window that the probe's few tokens reach beyond: masks are made from the config at every forward."""
    window = getattr(config, "sliding_window", None)
    if window is not None:
        config.sliding_window = min(window, 4)
    try:
        yield
    finally:
        if window is not None:
            config.sliding_window = window
