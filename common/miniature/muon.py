"""Muon that orthogonalises in float32. torch's own does it in bfloat16, which a CPU without bfloat16 units takes ten
times as long for: pre-training a miniature's student on such a machine took 520 s and takes 120 (LOG.md)."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.775, 2.0315)
"""Coefficients of the quintic iteration, those of torch and of Muon's author."""


class Muon(torch.optim.Optimizer):
    """`torch.optim.Muon` with Nesterov momentum, in float32: a matrix moves by its momentum with all singular values
    near 1.

    Args:
        matrices: parameters of two dimensions, every one of them with a gradient at each step.
        lr: of a square matrix; one with more rows than columns moves by sqrt(rows / columns) as much.
        steps: of the Newton-Schulz iteration.
    """

    def __init__(self, matrices: Iterable[Tensor], lr: float, weight_decay: float, steps: int):
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "steps": steps})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for matrix in group["params"]:
                average = self.state[matrix].setdefault("momentum", torch.zeros_like(matrix))
                average.lerp_(matrix.grad, 1 - MOMENTUM)
                update = orthogonalised(matrix.grad.lerp(average, MOMENTUM), group["steps"])
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(update, alpha=-group["lr"] * max(1.0, matrix.size(0) / matrix.size(1)) ** 0.5)


def orthogonalised(matrix: Tensor, steps: int) -> Tensor:
    """The matrix with its singular values moved towards 1 by so many steps of a Newton-Schulz iteration; (rows,
    columns) in and out."""
    a, b, c = NEWTON_SCHULZ
    wide = matrix.T if matrix.size(0) > matrix.size(1) else matrix
    wide = wide / wide.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide.T if matrix.size(0) > matrix.size(1) else wide
