"""Refined DPO (rDPO) and its neighbours as pure functions of log-probabilities and scores.

What is the paper's and what is ours. The abstract of arXiv 2402.08005 says that the DPO loss is generalised by scores
of an external reward model; its equation was not available to us. There are two readings, both ours:

- `rdpo`, the offset: L = -log sigmoid(beta * D - alpha * (s_r - s_o)). It follows when the objective is reward plus
  alpha * score under a KL penalty, has the form of MODPO's margin (arXiv 2310.03708), and was published later with
  theory as DPO with rating information (arXiv 2602.00603, there called RDPO, alpha = beta / beta_1). It damps a pair
  whose revision scored worse and never reverses it.
- `rdpo_label`, the soft label: a machine-written digest of the paper names a preference probability tau that weighs the
  teacher's preference against the reward model's scores. At tau = 1/2 a pair that the scores contradict is silenced.

Whoever has the paper's equation passes it as a callable `method`. Not to be confused with robust DPO (arXiv 2403.00409,
here `robust`) or length-regularised R-DPO.

Notation: D = log-ratio of the chosen minus log-ratio of the rejected completion (policy to reference, summed over
completion tokens, nats); u = beta * D; g = score_chosen - score_rejected with scores in [0, 1], so g in [-1, 1].
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def dpo(u: Tensor) -> Tensor:
    """-log sigmoid(u). DPO, arXiv 2305.18290 eq. 7."""
    return -F.logsigmoid(u)


def cdpo(u: Tensor, *, label_smoothing: float = 0.1) -> Tensor:
    """-(1 - eps) log sigmoid(u) - eps log sigmoid(-u). Conservative DPO (Mitchell's note, eq. 3); eps = 0 is DPO."""
    _check_label_smoothing(label_smoothing)
    return -(1 - label_smoothing) * F.logsigmoid(u) - label_smoothing * F.logsigmoid(-u)


def robust(u: Tensor, *, label_smoothing: float = 0.1) -> Tensor:
    """[-(1 - eps) log sigmoid(u) + eps log sigmoid(-u)] / (1 - 2 eps). Robust DPO, arXiv 2403.00409; eps = 0 is DPO.

    Unbiased under random flips of rate eps; not bounded from below."""
    _check_label_smoothing(label_smoothing)
    return (-(1 - label_smoothing) * F.logsigmoid(u) + label_smoothing * F.logsigmoid(-u)) / (1 - 2 * label_smoothing)


def ipo(log_ratio_gap: Tensor, *, beta: float) -> Tensor:
    """(D - 1 / (2 beta))^2. IPO, arXiv 2310.12036 eq. 17, on sequence sums as written there (TRL averages over tokens).

    The target of D grows without bound as beta goes to 0. Raises ValueError unless beta > 0."""
    if not beta > 0:
        raise ValueError(f"ipo pulls D towards 1 / (2 beta), so beta must be positive, got {beta}")
    return (log_ratio_gap - 1 / (2 * beta)) ** 2


def rdpo(u: Tensor, score_gap: Tensor, *, alpha: float = 1.0) -> Tensor:
    """-log sigmoid(u - alpha * g). Refined DPO, signed score offset: our first reading; the same form in arXiv
    2602.00603. A tie, or alpha = 0, is DPO."""
    return -F.logsigmoid(u - alpha * score_gap)


def rdpo_label(u: Tensor, score_gap: Tensor, *, tau: float = 0.5, eta: float = 1.0) -> Tensor:
    """-p log sigmoid(u) - (1 - p) log sigmoid(-u) with p = tau + (1 - tau) sigmoid(eta * g). Refined DPO, soft label:
    our second reading. tau = 1 is DPO, tau = 0 is `rdpo_soft`; a tie gives p = (1 + tau) / 2, half of DPO's push at tau
    = 1/2.

    Raises ValueError unless tau lies in [0, 1]."""
    if not 0 <= tau <= 1:
        raise ValueError(f"tau is the weight of the teacher's preference and lies in [0, 1], not {tau}")
    p = tau + (1 - tau) * torch.sigmoid(eta * score_gap)
    return -p * F.logsigmoid(u) - (1 - p) * F.logsigmoid(-u)


def rdpo_ml(u: Tensor, score_gap: Tensor, *, eta: float = 1.0, variance: float = 1.0) -> Tensor:
    """-log sigmoid(u) + (eta * g - u)^2 / (2 * variance): DPO's likelihood of the teacher's order times a Gaussian one
    of the score gap, as the maximum-likelihood form of arXiv 2602.00603 (ML-RDPO) was described to us; eta brings g to
    u's unit. A large variance is DPO. Raises ValueError unless variance > 0."""
    if not variance > 0:
        raise ValueError(f"variance must be positive, got {variance}")
    return -F.logsigmoid(u) + (eta * score_gap - u) ** 2 / (2 * variance)


def rdpo_soft(u: Tensor, score_gap: Tensor, *, eta: float = 1.0) -> Tensor:
    """-p log sigmoid(u) - (1 - p) log sigmoid(-u) with p = sigmoid(eta * g): soft labels from scores, as in MMPO. A tie
    is p = 1/2, which holds u at 0; a worse revision (g < 0) is reversed: exchanging a pair's answers along with their
    scores changes nothing, so the teacher's order plays no part."""
    p = torch.sigmoid(eta * score_gap)
    return -p * F.logsigmoid(u) - (1 - p) * F.logsigmoid(-u)


def rdpo_squared(u: Tensor, score_gap: Tensor, *, eta: float = 1.0) -> Tensor:
    """(u - eta * g)^2: regression of the implicit reward gap on the score gap (Nemotron's `rpo_sq`). A tie has target
    0. As in `rdpo_soft`, the teacher's order plays no part."""
    return (u - eta * score_gap) ** 2


def rdpo_filter(u: Tensor, score_gap: Tensor) -> Tensor:
    """-log sigmoid(u) where g > 0, else 0: DPO on accepted pairs, with dSC's strict acceptance (arXiv 2312.01957).
    Pairs that are not accepted count in the batch mean with loss 0; the trainer does not forward them."""
    return torch.where(score_gap > 0, -F.logsigmoid(u), torch.zeros_like(u))


def route(u: Tensor, score_gap: Tensor, *, clear: float = 0.3) -> Tensor:
    """-log sigmoid(u) where g > clear, else 0: the preference half of routing by score, in the manner of MixDPO (arXiv
    2602.00954: DPO where the gap is clear, SFT where it is small). Its other half, the likelihood of whichever answer
    scored higher, is the trainer's (`nll_on="better"`). clear = 0 is `rdpo_filter`, clear = 1 likelihood alone.

    Raises ValueError unless clear lies in [0, 1]."""
    if not 0 <= clear <= 1:
        raise ValueError(f"clear is the score gap above which a pair is clear and lies in [0, 1], not {clear}")
    return torch.where(score_gap > clear, -F.logsigmoid(u), torch.zeros_like(u))


def rdpo_flip(u: Tensor, score_gap: Tensor) -> Tensor:
    """-log sigmoid(u), with chosen and rejected swapped where g < 0. A tie is DPO; elsewhere the teacher's order plays
    no part."""
    return -F.logsigmoid(torch.where(score_gap < 0, -u, u))


LOSSES: dict[str, Callable[..., Tensor]] = {
    function.__name__: function
    for function in (dpo, cdpo, robust, ipo, rdpo, rdpo_label, rdpo_ml, rdpo_soft, rdpo_squared, rdpo_filter, rdpo_flip, route)
}  # fmt: skip
LOOKS_AT: dict[str, Callable[..., Tensor]] = {
    "rdpo_filter": lambda score_gap: score_gap > 0,
    "route": lambda score_gap, clear: score_gap > clear,
}
"""Losses that are 0 for some pairs, whatever the policy: score gaps (batch,) -> where they are not."""
LIKELIHOOD: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "all": lambda score_gap: (torch.ones_like(score_gap), torch.zeros_like(score_gap)),
    "accepted": lambda score_gap: ((score_gap > 0).float(), torch.zeros_like(score_gap)),
    "better": lambda score_gap: ((score_gap > 0).float(), (score_gap < 0).float()),
}
"""Which answers a likelihood term counts: score gaps (batch,) -> 1 or 0 for each chosen and each rejected one."""


def preference_loss(
    method: str | Callable[..., Tensor],
    policy_chosen_logps: Tensor,
    policy_rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    score_chosen: Tensor | None = None,
    score_rejected: Tensor | None = None,
    beta: float = 0.1,
    **knobs: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses and implicit rewards of a batch of preference pairs.

    Args:
        method: a name in `LOSSES`, or a callable that gets the same tensors, `beta` and the knobs by keyword and
            returns the losses, shape (batch,): the hook for whoever has the paper's own equation.
        policy_chosen_logps, policy_rejected_logps, reference_chosen_logps, reference_rejected_logps: (batch,)
            log-probabilities summed over completion tokens, nats.
        score_chosen, score_rejected: (batch,) external scores in [0, 1], higher is better.
        beta: strength of the pull to the reference; higher stays closer.
        **knobs: `alpha` (rdpo), `tau` (rdpo_label), `eta` (rdpo_label, rdpo_ml, rdpo_soft, rdpo_squared), `variance`
            (rdpo_ml), `clear` (route), `label_smoothing` (cdpo, robust).

    Returns:
        losses (batch,), not reduced; chosen_rewards and rejected_rewards (batch,), beta * log-ratio, detached.

    Raises:
        ValueError: unknown method or knob, a score-aware loss without scores or with one that is not finite.
    """
    chosen_log_ratio = policy_chosen_logps - reference_chosen_logps  # (batch,)
    rejected_log_ratio = policy_rejected_logps - reference_rejected_logps  # (batch,)
    rewards = (beta * chosen_log_ratio).detach(), (beta * rejected_log_ratio).detach()
    if callable(method):
        losses = method(
            policy_chosen_logps=policy_chosen_logps, policy_rejected_logps=policy_rejected_logps,
            reference_chosen_logps=reference_chosen_logps, reference_rejected_logps=reference_rejected_logps,
            score_chosen=score_chosen, score_rejected=score_rejected, beta=beta, **knobs,
        )  # fmt: skip
        return losses, *rewards

    check_method(method, knobs)
    inputs: dict[str, Tensor | float] = {
        "log_ratio_gap": chosen_log_ratio - rejected_log_ratio,
        "u": beta * (chosen_log_ratio - rejected_log_ratio),
        "beta": beta,
        **knobs,
    }
    if uses_scores(method):
        if score_chosen is None or score_rejected is None:
            raise ValueError(
                f"the loss {method!r} needs score_chosen and score_rejected; without scores use 'dpo', 'cdpo', 'robust' or 'ipo'"
            )
        inputs["score_gap"] = score_chosen - score_rejected
        if (
            not inputs["score_gap"].isfinite().all()
        ):  # NaN > 0 is false: rdpo_filter would drop the pair, rdpo_flip would trust it
            raise ValueError(f"the loss {method!r} got a score that is NaN or infinite; leave unscored pairs out")
    wanted = inspect.signature(LOSSES[method]).parameters
    return LOSSES[method](**{name: value for name, value in inputs.items() if name in wanted}), *rewards


def weighted_loss(
    method: str | Callable[..., Tensor],
    policy: Sequence[Tensor],
    references: Sequence[tuple[Tensor | float, Sequence[Tensor]]],
    *scores: Tensor | None,
    **knobs: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Average `preference_loss` over weighted references.

    policy: (batch,) log-probabilities of chosen and of rejected. references: each with its weight, (batch,) or a
    number. scores, knobs, what is returned and raised: as in `preference_loss`."""
    parts = [
        [weight * value for value in preference_loss(method, *policy, *reference, *scores, **knobs)]
        for weight, reference in references
    ]
    losses, chosen_rewards, rejected_rewards = map(sum, zip(*parts))
    return losses, chosen_rewards, rejected_rewards


def optimism_term(policy_logps: Tensor, reference_logps: Tensor, *, beta: float, optimism: float) -> Tensor:
    """optimism * beta * log-ratio of an explored answer, to be added to a loss: SELM (arXiv 2405.19332), as in the
    authors' code (shenao-zhang/SELM, selm_trainer.py), where the answer is the student's own greedy one.

    It is pushed down, by a force of optimism * beta whatever its probability: the term has no lower bound. 0 is none.

    policy_logps, reference_logps: (batch,) log-probabilities summed over completion tokens, nats. Returns (batch,)."""
    return optimism * beta * (policy_logps - reference_logps)


REFERENCES = ("own", "combined", "second", "both")
"""What a policy is compared with: its own base, that and a second model combined, the second alone, or each in a loss
of its own."""


def weighted_references(
    kind: str, own: Tensor, second: Tensor, weight: float | None = None, eta: float = 0.1
) -> list[tuple[Tensor | float, Tensor]]:
    """References of a kind in `REFERENCES`, each with its weight, for `weighted_loss`.

    combined is MRPO with two references (arXiv 2405.16388) as in the authors' code (thaihungle/MRPO,
    trainer_mref.py); both is the naive multi-reference DPO beside it: `weight` times the loss against the second, which
    is clipped as well, and the rest times the loss against the own base.

    Args:
        own, second: (2, batch) log-probabilities of chosen and rejected, summed over tokens, nats.
        weight: a of the authors' code, in [0, 1]; None is `adaptive_weight`. What it multiplies is the second's loss in
            both, and in combined, as their code has it, the own base's share: see `combined_reference`.
        eta: see `clip_rates`; 0 is the own base.
    """
    if kind == "own":
        return [(1.0, own)]
    if kind == "second":
        return [(1.0, second)]
    share = adaptive_weight(own, second) if weight is None else torch.full_like(own[0], weight)
    clipped = clip_reference(own, second, clip_rates(own, second, eta))
    if kind == "both":
        return [(share, clipped), (1 - share, own)]
    return [(1.0, combined_reference(own, clipped, share))]


def adaptive_weight(own: Tensor, second: Tensor) -> Tensor:
    """Share of the second model in both models' log-ratios of chosen to rejected.

    own, second: (2, batch). Returns (batch,), |gap of second| / (|gap of second| + |gap of own| + 1e-6)."""
    size_own, size_second = ((logps[0] - logps[1]).abs() for logps in (own, second))
    return size_second / (size_second + size_own + 1e-6)


def clip_rates(own: Tensor, second: Tensor, eta: float) -> Tensor:
    """How far the second reference may be from the own, as a share of it: eta, divided between a pair's two answers.

    own, second: (2, batch). Returns (2, batch): eta times each answer's share in the mean log-probability of both
    models."""
    sizes = ((own + second) / 2).abs()
    return eta * sizes / sizes.sum(dim=0).clamp(min=1e-6)


def clip_reference(own: Tensor, second: Tensor, rates: Tensor | float) -> Tensor:
    """The second reference, clipped to own * (1 + rates) ... own * (1 - rates); of any shape."""
    return torch.clamp(second, min=own * (1 + rates), max=own * (1 - rates))


def combined_reference(own: Tensor, second: Tensor, weight: Tensor) -> Tensor:
    """Combine two references into one: 1 / p = weight / p_own + (1 - weight) / p_second.

    So the authors' code has it: r1 + r2 - log(a e^r1 + (1 - a) e^r2) with r1 the second model's log-probability, where
    a weight of 1 is the *own* base. Exactly the own base where both agree or the weight is 1.

    own, second: log-probabilities, nats; the authors clip the second before. weight: in [0, 1]. All of shapes that
    broadcast."""
    gap = own - second
    shift = torch.logaddexp(weight.log(), torch.log1p(-weight) + gap)
    return torch.where(gap == 0, own, own - shift)


def check_method(method: str, knobs: Iterable[str] = ()) -> None:
    """Raises ValueError for an unknown method, or for a knob that it does not have."""
    if method not in LOSSES:
        raise ValueError(f"unknown loss {method!r}; there are {', '.join(LOSSES)}")
    for knob in knobs:
        if knob not in knobs_of(method):
            raise ValueError(
                f"the loss {method!r} has no knob {knob!r}; it has {', '.join(knobs_of(method)) or 'none'}"
            )


def knobs_of(method: str) -> dict[str, float]:
    """The loss's own knobs, besides beta, with their defaults: its keyword arguments."""
    own = inspect.signature(LOSSES[method]).parameters.values()
    return {knob.name: knob.default for knob in own if knob.kind is knob.KEYWORD_ONLY and knob.name != "beta"}


def uses_scores(method: str) -> bool:
    """Whether the loss looks at the external scores."""
    return "score_gap" in inspect.signature(LOSSES[method]).parameters


def _check_label_smoothing(value: float) -> None:
    if not 0 <= value < 0.5:
        raise ValueError(f"label_smoothing is the rate of flipped labels and lies in [0, 0.5), not {value}")
