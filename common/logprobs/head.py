"""The language-model head on the positions that are asked for, in chunks: the logits of a whole batch never stand in
memory. Where a trainer asks, it is watched: what its log says of the predicted words is taken while they are there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.utils import ModelOutput


LOGITS_AT_ONCE = 2**23
"""Logits held at a time: 32 MiB in float32, 170 positions of a vocabulary of 49 152."""


def target_logprobs(
    causal: PreTrainedModel, output: type[ModelOutput], states: Tensor, targets: Tensor, watch: bool = False
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target under the state that predicts it.

    Args:
        causal: the model, without wrappers.
        output: what its decoder returns.
        states: (scored, width), from the decoder.
        targets: (scored,), token ids.

    Returns:
        (scored,), float32, nats; and (scored, 4) of `watched`, or (scored, 0) where nobody watches.
    """
    head, logits_of = causal.get_output_embeddings(), partial(logits_by_head, causal, output)
    size = positions_at_once(causal)
    if not (torch.is_grad_enabled() and states.requires_grad):
        score = _score
    elif any(
        parameter.requires_grad
        for module in (head, *(child for child in causal.children() if child is not causal.base_model))
        for parameter in module.parameters()
    ):  # something is trained behind the decoder
        score = partial(checkpoint, _score, use_reentrant=False)
    else:
        return _ScoreWithGradient.apply(logits_of, watch, size, states, targets)
    chunks = [score(logits_of, watch, *chunk) for chunk in zip(states.split(size), targets.split(size))]
    logps, seen = zip(*chunks)
    return torch.cat(logps), torch.cat(seen)


def positions_at_once(causal: PreTrainedModel) -> int:
    return max(1, LOGITS_AT_ONCE // causal.get_output_embeddings().weight.shape[0])


def scored(logits: Tensor, targets: Tensor, watch: bool) -> tuple[Tensor, Tensor]:
    """As `target_logprobs`, from logits (scored, vocabulary)."""
    logits = logits.float()
    logps = logits.log_softmax(dim=1)
    scores = logps.gather(1, targets.unsqueeze(1)).squeeze(1)
    return scores, watched(logits, logps.exp(), targets) if watch else unwatched(targets)


@torch.no_grad()
def watched(logits: Tensor, probabilities: Tensor, targets: Tensor) -> Tensor:
    """(tokens, 4), float32, without gradient, from logits and probabilities (tokens, vocabulary), float32, and the ids of
    targets (tokens,): entropy of the next word in nats, mean logit over the vocabulary, whether the target is the
    likeliest word, and 1."""
    likeliest = logits.argmax(dim=1, keepdim=True)
    of_all = (logits.gather(1, likeliest) - probabilities.gather(1, likeliest).log()).squeeze(1)  # their logsumexp
    entropy = of_all - (probabilities * logits).sum(dim=1)  # autocast would take a dot product in bfloat16
    if entropy.isnan().any():  # a word that cannot come adds 0
        entropy = of_all - (probabilities * logits.clamp(min=torch.finfo(logits.dtype).min)).sum(dim=1)
    right = (likeliest.squeeze(1) == targets).float()
    return torch.stack((entropy, logits.mean(dim=1), right, torch.ones_like(entropy)), dim=1)


def unwatched(targets: Tensor) -> Tensor:
    """(tokens, 0): what nobody watches."""
    return torch.empty(len(targets), 0, device=targets.device)


def _score(
    logits_of: Callable[[Tensor], Tensor], watch: bool, states: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor]:
    return scored(logits_of(states), targets, watch)


def logits_by_head(causal: PreTrainedModel, output: type[ModelOutput], states: Tensor) -> Tensor:
    """(positions, width) to (positions, vocabulary) by the model's own forward, its decoder replaced by what it
    returned before: so whatever an architecture does between decoder and logits (Gemma's soft cap, scales) is done."""
    states = states.unsqueeze(0)
    with _forward_of(causal.base_model, lambda *args, **kwargs: output(last_hidden_state=states)):
        return causal(inputs_embeds=states, use_cache=False).logits.squeeze(0)


@contextmanager
def _forward_of(module: torch.nn.Module, forward: Callable[..., ModelOutput]) -> Iterator[None]:
    before = vars(module).get("forward")  # where a library has put one of its own
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if before is not None:
            module.forward = before


class _ScoreWithGradient(torch.autograd.Function):
    """`_score` for a frozen head, `size` positions at a time. A position's score depends on its own state alone, so the
    gradient is taken with the score, while the logits are there, and backward neither keeps nor recomputes them. What is
    kept is allocated before the first logits: small tensors between large ones would keep the allocator from giving the
    large ones' memory to the next."""

    @staticmethod
    def forward(
        ctx, logits_of: Callable[[Tensor], Tensor], watch: bool, size: int, states: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        scores = torch.empty(len(targets), device=states.device)
        seen = torch.empty(len(targets), 4 * watch, device=states.device)
        of_states = torch.empty_like(states)
        for begin in range(0, len(targets), size):
            some = slice(begin, begin + size)
            at = targets[some].unsqueeze(1)
            with torch.enable_grad():
                own = states[some].detach().requires_grad_()
                logits = logits_of(own)
            floats = logits.detach().float()
            logps = floats.log_softmax(dim=1)
            scores[some] = logps.gather(1, at).squeeze(1)
            probabilities = logps.exp_()
            if watch:
                seen[some] = watched(floats, probabilities, targets[some])
            one = torch.ones_like(at, dtype=torch.float32)
            pull = probabilities.scatter_add_(1, at, -one)  # d score / d logits = onehot - softmax
            of_states[some] = -torch.autograd.grad(logits, own, pull.to(logits.dtype))[0]
        ctx.save_for_backward(of_states)
        ctx.mark_non_differentiable(seen)
        return scores, seen

    @staticmethod
    def backward(ctx, gradient: Tensor, _):
        (of_states,) = ctx.saved_tensors
        return None, None, None, (of_states * gradient.unsqueeze(1)).to(of_states.dtype), None
