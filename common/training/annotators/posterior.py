"""The E step of EM-DPO (arXiv 2405.15065), and what it begins with, as pure functions.

As in the authors' code (keertanavc/multi_pref_DPO, trainers.py and utils.py): an annotator's probability of a type is
that type's share times the likelihood of all the annotator's pairs under the type's policy, normalised over the types.
A share of 0 is final in their code: no annotator ever gets that type again. `LEAST_SHARE` is ours.

Arrays have a row for each annotator and a column for each type, in float64; which type has which number means nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import log_softmax

from common.schema import ScoredPair

LEAST_SHARE = 1e-6
"""What the share of a type never falls below."""
SETTLED = 0.01
"""EM ends where no probability changes by as much (ours)."""
CONCENTRATION = (10.0, 5.0)
"""Of the authors' Dirichlet start with two types: of the first type, and of every other one, where there are more
(ours). Equal ones would begin near the point where all types are alike, which EM never leaves."""


def log_joint(reward_gaps: np.ndarray, annotator: Sequence[int], shares: Sequence[float]) -> np.ndarray:
    """log(share of the type) + sum of log sigmoid(u) over an annotator's pairs: (annotators, types).

    Args:
        reward_gaps: (pairs, types), u = beta * D of every pair under every type's policy.
        annotator: (pairs,) whose the pair is, from 0.
        shares: (types,).
    """
    logliks = -np.logaddexp(0.0, -np.asarray(reward_gaps, dtype=np.float64))
    summed = np.zeros((max(annotator) + 1, logliks.shape[1]))
    np.add.at(summed, np.asarray(annotator), logliks)
    return np.log(np.maximum(shares, LEAST_SHARE)) + summed


def posterior(joint: np.ndarray) -> np.ndarray:
    """Probability of every type for each annotator, of `log_joint`; rows have sum 1 however small the likelihoods are."""
    return np.exp(log_softmax(joint, axis=1))


def drawn_start(annotators: int, types: int, seed: int) -> np.ndarray:
    """The authors' first start: probabilities drawn from a skewed Dirichlet distribution (`CONCENTRATION`)."""
    concentration = [CONCENTRATION[0], *[CONCENTRATION[1]] * (types - 1)]
    return np.random.default_rng(seed).dirichlet(concentration, annotators)


def clustered_start(pairs: Sequence[ScoredPair], annotator: Sequence[int], types: int, seed: int) -> np.ndarray:
    """The authors' later start: every annotator wholly of the type that is its cluster by k-means.

    What they cluster by is not in their code. Here it is an annotator's mean TF-IDF vector of chosen minus that of
    rejected answers: which words it prefers (ours)."""
    from sklearn.cluster import KMeans
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = [pair.response_revised for pair in pairs] + [pair.response for pair in pairs]
    vectors = TfidfVectorizer(token_pattern=r"\S+").fit_transform(texts)
    differences = (vectors[: len(pairs)] - vectors[len(pairs) :]).toarray()
    annotator = np.asarray(annotator)
    features = np.stack([differences[annotator == one].mean(axis=0) for one in range(max(annotator) + 1)])
    clusters = KMeans(types, n_init=10, random_state=seed).fit_predict(features)
    return np.eye(types)[clusters]
