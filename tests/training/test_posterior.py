"""Hidden types of annotators as pure functions, on numbers worked out by hand (pytest tests/training/test_annotators.py)."""

import numpy as np
import pytest

from common.schema import ScoredPair
from common.training.annotators.mixture import least_regret, regrets
from common.training.annotators.posterior import (
    CONCENTRATION,
    LEAST_SHARE,
    clustered_start,
    drawn_start,
    log_joint,
    posterior,
)

GAPS = np.array([[2, 1, -2, -1, 0.5, 0.5], [-1, 0, 1, 2, 0.5, 0.5]], dtype=float).T  # (pairs, types)
WHO = [0, 0, 1, 1, 2, 2]
SHARES = (0.6, 0.4)


def test_the_e_step_on_three_annotators_with_two_pairs_each():
    joint = log_joint(GAPS, WHO, SHARES)
    np.testing.assert_allclose(joint.T, [[-0.951015, -3.951015, -1.458980], [-2.922700, -1.356480, -1.864445]], atol=1e-6)
    found = posterior(joint)
    np.testing.assert_allclose(found[:, 0], [0.877792, 0.069491, 0.600000], atol=1e-6)
    np.testing.assert_allclose(found.mean(axis=0), [0.515761, 0.484239], atol=1e-6)
    weighted = found[WHO, 0] * np.logaddexp(0, -GAPS[:, 0])
    assert weighted.mean() == pytest.approx(0.199058, abs=1e-6)  # the M step's loss of the first type


def test_likelihoods_too_small_for_a_float_still_give_probabilities():
    found = posterior(log_joint(np.array([[-800.0, -801.0]] * 32 + [[900.0, -900.0]] * 32), [0] * 32 + [1] * 32, (0.5, 0.5)))
    assert np.isfinite(found).all() and np.allclose(found.sum(axis=1), 1) and found[0, 0] == pytest.approx(1 / (1 + np.exp(-32)))
    assert found[1].tolist() == [1.0, 0.0]


def test_thirty_two_pairs_saturate_and_one_type_takes_everybody():
    assert posterior(log_joint(np.tile([1.0, -1.0], (32, 1)), [0] * 32, (0.5, 0.5)))[0, 0] > 1 - 1e-12
    assert posterior(log_joint(GAPS[:, :1], WHO, (1.0,))).tolist() == [[1.0]] * 3


def test_a_type_without_a_share_keeps_a_least_one_from_which_it_can_come_back():
    joint = log_joint(GAPS, WHO, (1.0, 0.0))
    assert joint[0, 1] - log_joint(GAPS, WHO, (1.0, 1.0))[0, 1] == pytest.approx(np.log(LEAST_SHARE))
    strong = log_joint(np.array([[-30.0, 30.0]]), [0], (1.0, 0.0))
    assert posterior(strong)[0, 1] > 0.99


def test_alike_policies_and_shares_are_a_fixed_point_and_numbers_of_types_mean_nothing():
    same = np.repeat(GAPS[:, :1], 2, axis=1)
    assert (posterior(log_joint(same, WHO, (0.5, 0.5))) == 0.5).all()
    np.testing.assert_array_equal(posterior(log_joint(GAPS[:, ::-1], WHO, SHARES[::-1])), posterior(log_joint(GAPS, WHO, SHARES))[:, ::-1])


def test_the_drawn_start_is_skewed_and_the_seed_s():
    start = drawn_start(2_000, 3, seed=0)
    assert start.shape == (2_000, 3) and np.allclose(start.sum(axis=1), 1)
    np.testing.assert_allclose(start.mean(axis=0), np.array([10, 5, 5]) / 20, atol=0.01)
    assert (start == drawn_start(2_000, 3, seed=0)).all() and (start != drawn_start(2_000, 3, seed=1)).any() and CONCENTRATION[0] != CONCENTRATION[1]


def test_the_clustered_start_puts_those_together_who_prefer_the_same_words():
    pair = lambda i, first, second: ScoredPair(id=str(i), experiment="safety", split="train", prompt=f"{i}?", response=first, response_revised=second, score_response=0, score_revised=1)  # noqa: E731
    pairs = [pair(i, *(["I refuse that", f"take tool {i}"] if i % 2 else [f"take tool {i}", "I refuse that"])) for i in range(12)]
    who = [i % 2 + 2 * (i % 3 == 0) for i in range(12)]  # even and odd annotators prefer the other answer
    start = clustered_start(pairs, who, 2, seed=0)
    assert (start[0] == start[2]).all() and (start[1] == start[3]).all() and (start[0] == 1 - start[1]).all()
    assert set(start.flatten()) == {0.0, 1.0}


@pytest.mark.parametrize("importance, weights, worst", [((1, 1), (2 / 3, 1 / 3), 4 / 3), (None, (2 / 3, 1 / 3), 4 / 3), ((2, 1), (0.8, 0.2), 1.6)])
def test_the_mixture_of_least_regret(importance, weights, worst):
    regret = regrets([[5, 1], [2, 4]], importance)
    if importance != (2, 1):
        assert regret.tolist() == [[0, 0], [0, 4], [2, 0]]
    found, value = least_regret(regret)
    np.testing.assert_allclose(found, weights, atol=1e-6)
    assert value == pytest.approx(worst, abs=1e-6) == pytest.approx((regret @ found).max())


def multiplicative_weights(regret, steps):
    """The authors' solver, optimistic multiplicative weights: the column player's average."""
    rate, (rows, columns) = 5 / np.sqrt(steps), regret.shape
    x, y = np.ones((steps, rows)) / rows, np.ones((steps, columns)) / columns
    for t in range(1, steps):
        x[t] = x[t - 1] * np.exp(2 * rate * (regret @ y[t - 1]) - rate * (regret @ y[t - 2]))
        y[t] = y[t - 1] * np.exp(-2 * rate * (regret.T @ x[t - 1]) + rate * (regret.T @ x[t - 2]))
        x[t], y[t] = x[t] / x[t].sum(), y[t] / y[t].sum()
    return y.mean(axis=0)


@pytest.mark.slow
def test_the_linear_program_agrees_with_the_authors_solver():
    averaged = multiplicative_weights(regrets([[5, 1], [2, 4]]), 20_000)
    np.testing.assert_allclose(averaged, [0.666822, 0.333178], atol=1e-6)
    rng = np.random.default_rng(0)
    for types in (2, 3, 4):
        regret = regrets(rng.normal(size=(types, types)) + 4 * np.eye(types))
        by_program, value = least_regret(regret)
        averaged = multiplicative_weights(regret, 20_000)
        assert by_program.min() >= 0 and by_program.sum() == pytest.approx(1) and value <= (regret @ averaged).max() + 1e-9
        assert value == pytest.approx((regret @ averaged).max(), abs=0.02)


def test_one_policy_answers_alone_and_a_broken_one_is_refused():
    assert [part.tolist() if hasattr(part, "tolist") else part for part in least_regret(regrets([[3.0]]))] == [[1.0], 0.0]
    with pytest.raises(ValueError, match="no finite number"):
        least_regret(regrets([[np.inf, 1], [1, 1]]))
