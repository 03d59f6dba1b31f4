"""A frozen product with a LoRA adapter beside it as one operation of autograd: PEFT's chain copies, casts, scales and
adds in passes of their own, which take as long as a small student's products on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


class AdaptedProduct(torch.autograd.Function):
    """x W' + bias + s x A' B', where A and B alone are trained.

    x: (..., in). weight: (out, in), frozen, in the dtype of x. bias: (out,) or None. a, b: (rank, in) and (out, rank) in
    any dtype, the LoRA factors. The sum is rounded once, where PEFT's chain rounds each of its terms, so that in bfloat16
    the two agree to its rounding; gradients of the factors have their dtype.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float) -> Tensor:
        rows, down, up = x.flatten(0, -2), a.to(x.dtype), (scaling * b).to(x.dtype)
        within = rows @ down.T
        ctx.save_for_backward(rows, within, weight, down, up)
        ctx.scaling, ctx.dtypes = scaling, (a.dtype, b.dtype)
        return functional.linear(rows, weight, bias).addmm_(within, up.T).unflatten(0, x.shape[:-1])

    @staticmethod
    def backward(ctx, gradient: Tensor):
        rows, within, weight, down, up = ctx.saved_tensors
        gradients = gradient.flatten(0, -2)
        of_within = gradients @ up
        of_x = (gradients @ weight).addmm_(of_within, down) if ctx.needs_input_grad[0] else None
        of_a, of_b = of_within.T @ rows, (gradients.T @ within).to(ctx.dtypes[1]) * ctx.scaling
        of_x = None if of_x is None else of_x.unflatten(0, gradient.shape[:-1])
        return of_x, None, None, of_a.to(ctx.dtypes[0]), of_b, None
