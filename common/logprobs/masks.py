"""Which masks give a model's own numbers in packed rows: tried out once per model, before any is trusted."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, takewhile
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from common.logprobs import attention as shared_attention
from common.logprobs.packing import Packed, dense_mask, pack, sparse_mask, stretches_mask
from common.logprobs.rows import causal_model, in_rows, is_sharded, layer_kinds, packed_logprobs
from common.student.load import forbid_cpu_repacking

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from common.logprobs.rows import MaskMaker


_makers: WeakKeyDictionary[torch.nn.Module, dict[tuple[str, bool], MaskMaker | None]] = WeakKeyDictionary()
"""Of a causal model: the masks found for its attention, with and without virtual tokens in front."""


def packs_exactly(model: torch.nn.Module) -> bool:
    """Whether packed rows give this model's own numbers; tried out once per model and attention on two small pairs.

    False, with one warning that says why, for recurrent and chunked layers, for positions that do not restart, for
    virtual tokens in front (prompt and prefix tuning), and for a forward that ignores masks or position ids.
    """
    return mask_maker(model) is not None


def give_attention_back(model: torch.nn.Module) -> None:
    """Sets sdpa again where `common.logprobs.attention` took its place for packed rows. Not between a forward and its
    backward."""
    causal = causal_model(model)
    if causal.config._attn_implementation == shared_attention.NAME:
        causal.set_attn_implementation("sdpa")


def mask_maker(model: torch.nn.Module) -> MaskMaker | None:
    """The fastest masks with which packed rows give this model's own numbers, None where no mask does. Leaves the model
    with the attention that takes them."""
    causal = causal_model(model)
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
    unknown = set(layer_kinds(config)) - {"full_attention", "sliding_attention"}
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
    with in_evaluation_mode(model), _narrow_window(config), torch.no_grad():
        plain = in_rows(model, list(chain.from_iterable(groups)))[0]
        try:
            found = packed_logprobs(model, rows, make)
            _try_backward(model if is_sharded(model) else causal, rows, make)
        except Exception as error:
            return f"it takes no packed rows ({type(error).__name__}: {error})"
    tolerance = 1e-4 if causal.dtype == torch.float32 and not torch.is_autocast_enabled(plain.device.type) else 3e-2
    off = float((found - plain).abs().max() / plain.abs().max())
    return None if off < tolerance else f"packed rows change its log-probabilities by {off:.0e} of their size"


def _try_backward(model: torch.nn.Module, rows: Packed, make: MaskMaker) -> None:
    """Raises where gradients cannot pass, before a training finds out: a kernel may know the way forward alone."""
    embedded: list[Tensor] = []
    keep = (
        causal_model(model)
        .get_input_embeddings()
        .register_forward_hook(
            lambda module, args, output: embedded.append(output.detach().requires_grad_()) or embedded[0]
        )
    )
    try:
        with torch.enable_grad():
            torch.autograd.grad(packed_logprobs(model, rows, make).sum(), embedded[0])
    finally:
        keep.remove()


@contextmanager
def in_evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """The model as for evaluation, without dropout; every module gets its own mode back."""
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
