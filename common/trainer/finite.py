"""A training that ends before its last step: where its numbers are no numbers any more, or where it is told to."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import TrainerCallback


class StopWhenNotFinite(TrainerCallback):
    """Ends a training whose gradient or final weights are NaN or infinite with a ValueError; such a gradient never
    reaches the weights. Gradients of scaled float16, where those steps are skipped, are left alone."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if not args.fp16 and not _all_finite(
            [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        ):
            raise ValueError(not_finite(f"gradient of step {state.global_step + 1}", args))

    def on_train_end(self, args, state, control, model=None, **kwargs):
        if not _all_finite([parameter.detach() for parameter in model.parameters() if parameter.requires_grad]):
            raise ValueError(not_finite("size of the trained weights", args))


class EndAfter(TrainerCallback):
    """Ends a training after a share of its steps, at least one; the learning rates are those of the whole."""

    def __init__(self, share: float):
        self.share = share

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step >= max(1, round(self.share * state.max_steps)):
            control.should_log = control.should_training_stop = True


def _all_finite(tensors: list[Tensor]) -> bool:
    norms = [torch.linalg.vector_norm(tensor, dtype=torch.float32).to(tensors[0].device) for tensor in tensors]
    return not norms or bool(torch.stack(norms).isfinite().all())


def not_finite(what: str, args) -> str:
    """What an error says of a number that is none, and what to do."""
    return f"the {what} is NaN or infinite; lower learning_rate ({args.learning_rate:g}), or look for extreme settings and broken weights"
