"""Intervals and exact tests against published values, hand-worked numbers and simulation: `pytest tests/foundation/test_statistics.py`."""

import math

import numpy as np
import pytest

from common.statistics import (
    judged_tau,
    label_reliability,
    order_reliability,
    holm,
    mcnemar_exact,
    paired_bootstrap,
    paired_t_test,
    seed_interval,
    sign_flip_test,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [(0, 52, 0.0, 0.069), (26, 52, 0.369, 0.631), (20, 200, 0.066, 0.149), (47, 468, 0.076, 0.131)],
)
def test_wilson_interval(k, n, low, high):
    assert wilson_interval(k, n) == pytest.approx((low, high), abs=5e-4)


def test_wilson_interval_worked_by_hand():
    # k = 1, n = 4, z = 1.96, z^2 = 3.8415: (1 + 1.9207 +- 1.96 sqrt(1 * 3 / 4 + .9604)) / (4 + 3.8415) = (2.9207 +- 2.5634) / 7.8415
    assert wilson_interval(1, 4) == pytest.approx((0.0456, 0.6994), abs=1e-4)


def test_wilson_interval_mirrors_failures():
    low, high = wilson_interval(7, 30)
    assert wilson_interval(23, 30) == pytest.approx((1 - high, 1 - low))


def test_wilson_interval_knows_nothing_without_trials():
    assert wilson_interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("k", "n"), [(-1, 5), (6, 5), (1, 0)])
def test_wilson_interval_refuses_impossible_counts(k, n):
    with pytest.raises(ValueError, match=f"k={k}, n={n}"):
        wilson_interval(k, n)


@pytest.mark.parametrize(("b", "c", "p"), [(5, 0, 0.063), (6, 0, 0.031), (8, 1, 0.039), (10, 2, 0.039), (15, 5, 0.041)])
def test_mcnemar(b, c, p):
    assert mcnemar_exact(b, c) == pytest.approx(p, abs=6e-4)
    assert mcnemar_exact(c, b) == mcnemar_exact(b, c)


def test_sign_flips_count_all_patterns():
    assert sign_flip_test([0.1, 0.2, 0.3, 0.4]) == pytest.approx(2 / 16) and sign_flip_test([0.0, 0.0]) == 1.0 and math.isnan(sign_flip_test([0.5]))
    assert sign_flip_test([3.0, -1.0]) == 1.0  # means 1, 2, -1 and -2: all as far from 0 as the 1 that was found


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (4, 4)])
def test_mcnemar_of_no_evidence_is_one(b, c):
    assert mcnemar_exact(b, c) == pytest.approx(1.0)


@pytest.mark.parametrize(("b", "c"), [(-1, 2), (2, -1)])
def test_mcnemar_refuses_negative_counts(b, c):
    with pytest.raises(ValueError, match="negative"):
        mcnemar_exact(b, c)


def test_seed_interval_worked_by_hand():
    # mean 2, sd 1, t(.975, 2) = 4.3027: half width 4.3027 / sqrt(3) = 2.4841
    assert seed_interval([1, 2, 3]) == pytest.approx((2, -0.4841, 4.4841), abs=1e-4)


def test_seed_interval_follows_the_confidence():
    # t(.90, 2) = 1.8856: half width 1.8856 / sqrt(3) = 1.0887
    assert seed_interval([1, 2, 3], confidence=0.8) == pytest.approx((2, 0.9113, 3.0887), abs=1e-4)


def test_seed_interval_covers_what_it_says_with_three_seeds():
    draws = np.random.default_rng(0).normal(0.3, 0.1, size=(2000, 3))
    covered = np.mean([low <= 0.3 <= high for _, low, high in map(seed_interval, draws)])
    assert 0.93 <= covered <= 0.97  # sd of the estimate: sqrt(.95 * .05 / 2000) = .005


def test_one_seed_has_no_interval():
    mean, low, high = seed_interval([0.25])
    assert mean == 0.25 and math.isnan(low) and math.isnan(high)


def test_no_seed_raises():
    with pytest.raises(ValueError, match="no values"):
        seed_interval([])


@pytest.fixture
def answers():
    """0/1 outcomes of two systems on the same 40 prompts."""
    rng = np.random.default_rng(1)
    return rng.integers(2, size=40), rng.integers(2, size=40)


def test_paired_bootstrap_worked_by_hand():
    # Two prompts with differences 1 and 0: resampled means 0, 1/2, 1 with probabilities 1/4, 1/2, 1/4
    assert paired_bootstrap([1, 1], [0, 1]) == (0.5, 0.0, 1.0)


def test_paired_bootstrap_is_antisymmetric(answers):
    a, b = answers
    difference, low, high = paired_bootstrap(a, b)
    assert difference == np.mean(a) - np.mean(b) and low < difference < high
    assert paired_bootstrap(b, a) == pytest.approx((-difference, -high, -low))


def test_paired_bootstrap_of_equal_systems_is_zero(answers):
    assert paired_bootstrap(answers[0], answers[0]) == (0, 0, 0)


def test_paired_bootstrap_pairs_the_prompts(answers):
    a, _ = answers
    assert paired_bootstrap(a + 0.25, a) == (0.25, 0.25, 0.25)  # prompts differ widely, the systems always by 1/4


def test_paired_bootstrap_agrees_with_the_normal_interval():
    a, b = np.random.default_rng(2).normal(size=(2, 400))
    half = 1.96 * np.std(a - b, ddof=1) / 20
    _, low, high = paired_bootstrap(a, b)
    assert (high - low) / 2 == pytest.approx(half, rel=0.05)


def test_paired_bootstrap_is_repeatable_by_its_seed(answers):
    assert paired_bootstrap(*answers, seed=3) == paired_bootstrap(*answers, seed=3)
    a, b = np.random.default_rng(3).normal(size=(2, 20))
    assert paired_bootstrap(a, b, seed=3) != paired_bootstrap(a, b, seed=4)


def test_clusters_undo_duplicated_rows(answers):
    a, b = (np.repeat(outcome, 4) for outcome in answers)
    _, low, high = paired_bootstrap(a, b)
    _, cluster_low, cluster_high = paired_bootstrap(a, b, clusters=np.repeat(np.arange(40), 4))
    assert 1.8 < (cluster_high - cluster_low) / (high - low) < 2.2  # four copies of each row look like sqrt(4) = 2 times the precision
    assert (cluster_low, cluster_high) == pytest.approx(paired_bootstrap(*answers)[1:])


def test_a_large_cluster_weighs_by_its_prompts():
    clusters = [label for label in range(20) for _ in range(9)] + list(range(20, 40))  # 20 clusters of nine, 20 of one
    difference, low, high = paired_bootstrap([1] * 180 + [0] * 20, [0] * 200, clusters=clusters)
    assert difference == 0.9 and 0.8 < low < 0.9 < high < 1.0  # cluster means alone would lie around 1/2


@pytest.mark.parametrize("labels", [["y", "y", "x"], [7, 7, 3], [("a", 0), ("a", 0), ("b", 0)]], ids=["text", "numbers", "tuples"])
def test_clusters_may_be_any_labels(labels):
    assert paired_bootstrap([1, 1, 0], [0, 0, 0], clusters=labels) == paired_bootstrap([1, 1, 0], [0, 0, 0], clusters=[0, 0, 1])


@pytest.mark.parametrize(
    ("a", "b", "clusters"),
    [([], [], None), ([1, 0, 1], [1, 0], None), ([1, 0, 1], [1], None), ([1, 0], [1, 1], ["x"]), ([1, 0], [1, 1], ["x", "y", "z"])],
    ids=["empty", "lengths differ", "one against three", "too few labels", "too many labels"],
)
def test_paired_bootstrap_refuses(a, b, clusters):
    with pytest.raises(ValueError):
        paired_bootstrap(a, b, clusters)


def test_a_paired_t_test_over_seeds_by_hand():
    # differences .3, .2, .4: t = .3 / (.1 / sqrt 3) = 5.196 on 2 degrees of freedom, p = 1 - t / sqrt(t^2 + 2)
    assert paired_t_test([0.3, 0.2, 0.4]) == pytest.approx(1 - 5.196152 / (27 + 2) ** 0.5, abs=1e-6)
    assert paired_t_test([0.0, 0.0]) == 1.0 and math.isnan(paired_t_test([0.3]))


def test_holm_corrects_step_by_step_and_keeps_the_order_of_the_p_values():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])  # 3 * .01; 2 * .03; 1 * .04 is below the one before
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([0.2]) == [0.2] and holm([]) == []


def test_reliability_of_a_judge_and_of_labels_by_hand():
    judge = order_reliability(0.9, 0.8)
    assert judge == pytest.approx(0.72 / 0.74)  # .72 rightly apart, .02 wrongly, the rest tied
    assert order_reliability(0.5, 0.5) == 0.5 and order_reliability(1.0, 0.3) == 1.0 and order_reliability(0.2, 0.2) == pytest.approx(0.04 / 0.68)
    higher = judge * 0.7 + (1 - judge) * 0.3  # of labels that are right in 7 of 10
    assert label_reliability(higher, judge) == pytest.approx(0.7) and label_reliability(1.0, judge) == 1.0 and label_reliability(0.0, judge) == 0.0
    assert judged_tau(higher, 0.9, 0.8) == pytest.approx(0.4 / (0.4 + 2 * 0.72 / 0.74 - 1))


def test_tau_of_a_perfect_judge_is_a_half_beside_perfect_labels_and_nothing_beside_chance():
    assert judged_tau(1.0, 1.0, 1.0) == 0.5 and judged_tau(0.5, 1.0, 1.0) == 0.0 and judged_tau(0.2, 1.0, 1.0) == 0.0
    assert 0.5 < judged_tau(0.75, 0.7, 0.7) < 1  # labels better than the judge


@pytest.mark.parametrize("ask, said", [
    (lambda: order_reliability(1.2, 0.5), "sensitivity is a share"), (lambda: order_reliability(1.0, 0.0), "orders none"), (lambda: order_reliability(0.5, math.nan), "specificity is a share"),
    (lambda: label_reliability(0.7, 0.5), "no better than chance"), (lambda: judged_tau(0.7, 0.3, 0.4), "orders 22% of pairs rightly"),
])  # fmt: skip
def test_what_no_judge_can_tell_is_refused(ask, said):
    with pytest.raises(ValueError, match=said):
        ask()
