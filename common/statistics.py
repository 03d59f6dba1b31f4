"""Intervals and exact tests: one rate, paired comparisons on the same prompts, and values over training seeds."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from scipy import stats


def rate_of(k: int, n: int) -> dict[str, float]:
    """A rate of k in n and its 95 % Wilson interval: value, low, high."""
    low, high = wilson_interval(k, n)
    return {"value": k / n, "low": low, "high": high}


def wilson_interval(k: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """(low, high) of a rate with k successes in n trials (Wilson score interval). n = 0 gives (0, 1)."""
    if not 0 <= k <= n:
        raise ValueError(f"need 0 <= k <= n, got k={k}, n={n}")
    if n == 0:
        return 0.0, 1.0
    interval = stats.binomtest(k, n).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def seed_interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """(mean, low, high) over per-seed values or per-seed paired differences: Student's t interval.

    A percentile bootstrap over 3 to 5 seeds covers 77-84 % where it says 95, hence t. One value gives (value, nan,
    nan).
    """
    values = np.asarray(values, dtype=float)
    if values.size == 0:
        raise ValueError("no values")
    mean = float(values.mean())
    if values.size == 1:
        return mean, float("nan"), float("nan")
    half = float(stats.t.ppf((1 + confidence) / 2, values.size - 1) * values.std(ddof=1) / np.sqrt(values.size))
    return mean, mean - half, mean + half


def paired_t_test(differences: Sequence[float]) -> float:
    """Two-sided p-value of per-seed paired differences with mean 0 (Student's t). 1 where all are 0, nan for fewer than
    two."""
    values = np.asarray(differences, dtype=float)
    if values.size < 2:
        return float("nan")
    return float(stats.ttest_1samp(values, 0.0).pvalue) if values.any() else 1.0


def sign_flip_test(differences: Sequence[float]) -> float:
    """Two-sided exact p-value of per-seed paired differences whose signs are a coin's: of all sign patterns, the share
    with a mean at least as far from 0. No shape is assumed; n seeds give no p below 2 / 2**n. nan for fewer than two."""
    values = np.asarray(differences, dtype=float)
    if values.size < 2:
        return float("nan")
    return float(
        stats.permutation_test(
            (values,), np.mean, permutation_type="samples", n_resamples=np.inf, vectorized=True
        ).pvalue
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values corrected for their number (Holm's step-down), in the order given; none above 1."""
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected


def mcnemar_exact(b: int, c: int) -> float:
    """Two-sided exact p-value for two systems on the same prompts: b only the first solved, c only the second."""
    if b < 0 or c < 0:
        raise ValueError(f"counts cannot be negative, got b={b}, c={c}")
    return 1.0 if b + c == 0 else float(stats.binomtest(b, b + c, 0.5).pvalue)


def paired_bootstrap(
    a: Sequence[float],
    b: Sequence[float],
    clusters: Sequence[Hashable] | None = None,
    seed: int = 0,
    resamples: int = 10_000,
) -> tuple[float, float, float]:
    """(mean of a - b, low, high): 95 % percentile interval over prompts, the same prompts for both systems.

    clusters: one label per prompt; whole clusters are resampled, for prompts that share a source or a template.
    """
    if len(a) != len(b) or len(a) == 0:
        raise ValueError(f"need one value per prompt for both systems, got {len(a)} and {len(b)}")
    difference = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    numbers: dict[Hashable, int] = {}
    labels = np.asarray(
        [numbers.setdefault(label, len(numbers)) for label in (clusters if clusters is not None else range(len(a)))]
    )
    if len(labels) != difference.size:
        raise ValueError(f"{len(labels)} cluster labels for {difference.size} prompts")
    sums, sizes = np.bincount(labels, weights=difference), np.bincount(labels)
    drawn = np.random.default_rng(seed).integers(len(sums), size=(resamples, len(sums)))
    means = sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(difference.mean()), float(low), float(high)


def agreement(first: Sequence[int], second: Sequence[int]) -> dict[str, float | int | None]:
    """Share of equal labels and Cohen's kappa of two raters of the same answers.

    kappa is 1 for equal labels, 0 for what chance gives, None where it is undefined: no answers, or one and the same
    label throughout.
    """
    from sklearn.metrics import cohen_kappa_score

    if len(first) != len(second):
        raise ValueError(f"two raters of the same answers give as many labels, got {len(first)} and {len(second)}")
    n = len(first)
    equal = sum(a == b for a, b in zip(first, second)) / n if n else None
    return {
        "equal": equal,
        "kappa": float(cohen_kappa_score(first, second)) if len({*first, *second}) > 1 else None,
        "n": n,
    }


def corrected_rate(
    k: int, n: int, right_yes: int, yes: int, right_no: int, no: int
) -> tuple[float, float, float] | None:
    """(value, low, high) of a rate that a judge with known errors counted as k of n, with a 95 % interval cut at 0 and
    1.

    Of labelled answers the judge said yes to `right_yes` of the `yes` that deserve it, and no to `right_no` of the
    `no`. With sensitivity s and specificity t the rate is (p + t - 1) / (s + t - 1), the shares as they are; interval as
    in arXiv 2511.21140, after adding 4 pseudo-answers to p and 2 to s and to t, which would pull the rate itself towards
    0 and 1. It holds where the errors are the same for whoever answered. None where fewer than 5 labelled answers
    deserve a yes, or a no, or where s + t is at most 1.2: a judge little better than chance corrects nothing.
    """
    if min(yes, no) < 5:
        return None
    p, sensitivity, specificity = (k + 2) / (n + 4), (right_yes + 1) / (yes + 2), (right_no + 1) / (no + 2)
    gain, as_seen = sensitivity + specificity - 1, right_yes / yes + right_no / no - 1
    if gain <= 0.2 or as_seen <= 0:
        return None
    value = min(1.0, max(0.0, (k / n + right_no / no - 1) / as_seen)) if n else float("nan")
    centre = min(1.0, max(0.0, (p + specificity - 1) / gain))
    error = np.sqrt(
        p * (1 - p) / (n + 4)
        + (1 - centre) ** 2 * specificity * (1 - specificity) / (no + 2)
        + centre**2 * sensitivity * (1 - sensitivity) / (yes + 2)
    )
    half = 1.96 * float(error) / gain
    return value, max(0.0, min(centre - half, value)), min(1.0, max(centre + half, value))


def order_reliability(sensitivity: float, specificity: float) -> float:
    """P(a judge scores the better of two answers higher | it does not tie them): s c / (s c + (1 - s)(1 - c)), where it
    finds a share s of good answers good and a share c of bad ones bad, each read alone, and one of the two is good. Our
    own. 1/2 for a judge that guesses, 1 for one that makes a single kind of error.

    Raises ValueError for what is no share, and for a judge that says the same of every answer."""
    for name, share in (("sensitivity", sensitivity), ("specificity", specificity)):
        if not 0 <= share <= 1:
            raise ValueError(f"{name} is a share and lies in [0, 1], not {share}")
    right, wrong = sensitivity * specificity, (1 - sensitivity) * (1 - specificity)
    if not right + wrong:
        raise ValueError("a judge that says the same of every answer orders none")
    return right / (right + wrong)


def label_reliability(higher: float, judge: float) -> float:
    """P(the chosen answer is the better one), t, from the share `higher` of untied pairs whose chosen answer a judge
    scores higher: higher = j t + (1 - j)(1 - t), so t = (higher - 1 + j) / (2 j - 1), cut at 0 and 1; `judge` is j of
    `order_reliability`. Our own. Raises ValueError for a judge that orders no better than chance."""
    if judge <= 0.5:
        raise ValueError(f"the judge orders {judge:.0%} of pairs rightly, no better than chance, and tells nothing")
    return min(1.0, max(0.0, (higher - 1 + judge) / (2 * judge - 1)))


def judged_tau(higher: float, sensitivity: float, specificity: float) -> float:
    """tau of `rdpo_label`, our own: how far labels and judge order pairs better than chance, the labels' share of both,
    (2 t - 1) / ((2 t - 1) + (2 j - 1)), with t = `label_reliability` and j = `order_reliability`.

    1/2 where both are perfect; 0, the scores alone, for labels no better than chance. Raises what those two do."""
    judge = order_reliability(sensitivity, specificity)
    labels = max(0.5, label_reliability(higher, judge))
    return (2 * labels - 1) / ((2 * labels - 1) + (2 * judge - 1))
