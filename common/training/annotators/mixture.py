"""The mixture of policies with the least worst regret (MMRA of EM-DPO, arXiv 2405.15065), as pure functions.

As in the authors' code (keertanavc/multi_pref_DPO, find_weightsv2.py), but that the zero-sum game is solved exactly, by a
linear program, where theirs takes 100,000 steps of optimistic multiplicative weights. Where several mixtures are equally
good, such as for equal policies, they may come to another one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import linprog


def regrets(log_ratios: np.ndarray, importance: Sequence[float] | None = None) -> np.ndarray:
    """What type k loses where policy j answers: (types + 1, types), with a first row of zeros for nobody.

    Args:
        log_ratios: (types, types), [k, j] the mean over answers y of policy j of log pi_k(y) - log pi_ref(y), nats.
        importance: (types,) how much a type's regret counts, all alike where None.

    Raises ValueError for a log-ratio that is not finite.
    """
    log_ratios = np.asarray(log_ratios, dtype=np.float64)
    if not np.isfinite(log_ratios).all():
        raise ValueError("a log-ratio is no finite number: some policy gives an answer no probability at all")
    weights = np.ones(len(log_ratios)) if importance is None else np.asarray(importance, dtype=np.float64)
    lost = weights[:, None] * (log_ratios.diagonal()[:, None] - log_ratios)
    return np.vstack([np.zeros(len(log_ratios)), lost])


def least_regret(regret: np.ndarray) -> tuple[np.ndarray, float]:
    """(probability of every policy, the worst regret under it) of the mixture whose worst regret is the least."""
    rows, policies = regret.shape  # minimise t with regret @ weights <= t, weights on the simplex
    found = linprog(
        [*np.zeros(policies), 1.0], A_ub=np.hstack([regret, -np.ones((rows, 1))]), b_ub=np.zeros(rows),
        A_eq=[[*np.ones(policies), 0.0]], b_eq=[1.0], bounds=[*[(0, None)] * policies, (None, None)],
    )  # fmt: skip
    weights = np.maximum(found.x[:-1], 0.0)
    return weights / weights.sum(), float(found.x[-1])
