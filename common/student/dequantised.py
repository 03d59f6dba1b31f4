"""Small models on a CPU with NF4 weights that are dequantised once, not at every token or step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch.nn import functional

from common.student.product import AdaptedProduct

MOST_BYTES = 2**30
"""Of dequantised weights that a process may hold beside the student."""


@contextmanager
def dequantised(model: torch.nn.Module, training: bool = False) -> Iterator[None]:
    """Within it, the NF4 layers of a model on a CPU multiply with weights that are dequantised beforehand: the same
    operations on the same numbers, and a step of a small model no longer begins with unpacking all of it.

    A plain LoRA adapter in float32 is added to them, which spares two more products a layer and changes logits by
    float32's rounding alone. In bfloat16 it would be rounded away and stays apart.
    training: adapters stay apart, since they change; in bfloat16 each is one operation with its layer (`AdaptedProduct`).

    Without effect on a GPU, whose kernels unpack while they multiply, for weights of more than `MOST_BYTES`, and within
    itself. The quantised weights must not change within, nor be sharded.
    """
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit
    from peft.tuners.lora.bnb import Linear4bit as Adapted4bit

    layers = [
        module for module in model.modules() if isinstance(module, Linear4bit) and module.weight.device.type == "cpu"
    ]
    layers = [layer for layer in layers if layer.weight.quant_state is not None]
    dtype = lambda layer: layer.compute_dtype or layer.weight.quant_state.dtype  # noqa: E731
    size = sum(math.prod(layer.weight.quant_state.shape) * dtype(layer).itemsize for layer in layers)
    if size > MOST_BYTES:
        layers = []
    adapted = {id(module.base_layer): module for module in model.modules() if type(module) is Adapted4bit}
    changed = []
    for layer in layers:
        if any("forward" in vars(module) for module in (layer, adapted.get(id(layer), layer))):
            continue  # by one around this one
        weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state).to(dtype(layer))
        adapter, bias = adapted.get(id(layer)), layer.bias
        if not training and adapter is not None and weight.dtype == torch.float32 and _is_plain(adapter):
            for name in adapter.active_adapters:
                weight += adapter.get_delta_weight(name)
            layer = adapter
        elif training and adapter is not None and weight.dtype == torch.bfloat16:
            adapter.forward = partial(_with_adapter, adapter, weight=weight, bias=bias)
            changed.append(adapter)
        layer.forward = partial(_multiplied, weight=weight, bias=bias)
        changed.append(layer)
    try:
        yield
    finally:
        for module in changed:
            del module.forward


def _is_plain(adapter: torch.nn.Module) -> bool:
    """Whether the layer adds s B A x to its output, with float32 factors, and nothing else."""
    names = [name for name in adapter.active_adapters if name in adapter.lora_A]
    factors = [part[name].weight for name in names for part in (adapter.lora_A, adapter.lora_B)]
    return (
        bool(names)
        and names == list(adapter.active_adapters)
        and not (adapter.disable_adapters or adapter.merged or adapter.training)
        and not any(name in adapter.lora_variant or adapter.lora_bias.get(name) for name in names)
        and all(factor.dtype == torch.float32 for factor in factors)
    )


def _multiplied(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    bias = None if bias is None else bias.to(weight.dtype)
    return functional.linear(x.to(weight.dtype), weight, bias).to(x.dtype)


def _with_adapter(adapter: torch.nn.Module, x: torch.Tensor, *args, weight, bias, **kwargs) -> torch.Tensor:
    """The adapter's own forward where it is more than one plain product beside its layer."""
    names = adapter.active_adapters
    name = names[0] if len(names) == 1 and names[0] in adapter.lora_A else ""
    off = not name or adapter.disable_adapters or adapter.merged or args or kwargs
    if (
        off
        or (bias is not None and bias.requires_grad)
        or name in adapter.lora_variant
        or adapter.lora_bias.get(name)
        or getattr(adapter.lora_dropout[name], "p", 0)
    ):
        return type(adapter).forward(adapter, x, *args, **kwargs)
    a, b = adapter.lora_A[name].weight, adapter.lora_B[name].weight
    bias = None if bias is None else bias.to(weight.dtype)
    return AdaptedProduct.apply(x.to(weight.dtype), weight, bias, a, b, adapter.scaling[name]).to(x.dtype)
