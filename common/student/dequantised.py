"""Generation with NF4 weights that are dequantised once, not at every token."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch.nn import functional

MOST_BYTES = 2**30
"""Of dequantised weights that a process may hold beside the student."""


@contextmanager
def dequantised(model: torch.nn.Module) -> Iterator[None]:
    """Within it, the NF4 layers of a model on a CPU multiply with weights that are dequantised beforehand: the same
    operations on the same numbers, so answers are equal to the bit, and a step of a small model no longer begins with
    unpacking all of it.

    Without effect on a GPU, whose kernels unpack while they multiply, and for weights of more than `MOST_BYTES`. For
    use without gradients; the weights must not change within.
    """
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit

    layers = [
        module for module in model.modules() if isinstance(module, Linear4bit) and module.weight.device.type == "cpu"
    ]
    layers = [layer for layer in layers if layer.weight.quant_state is not None]
    dtype = lambda layer: layer.compute_dtype or layer.weight.quant_state.dtype  # noqa: E731
    size = sum(math.prod(layer.weight.quant_state.shape) * dtype(layer).itemsize for layer in layers)
    if size > MOST_BYTES:
        layers = []
    for layer in layers:
        weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state).to(dtype(layer))
        layer.forward = partial(_multiplied, weight=weight, bias=layer.bias)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _multiplied(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    bias = None if bias is None else bias.to(weight.dtype)
    return functional.linear(x.to(weight.dtype), weight, bias).to(x.dtype)
