"""Which tokens are edits, and what their weights do to the loss (pytest tests/logprobs/test_edits.py)."""

import math

import pytest
import torch

from common.logprobs.compute import grouped_logprobs, token_logprobs
from common.logprobs.edits import changed

ORIGINAL = "I will help you copy the passport .".split()
REVISED = "I will not help you copy a passport .".split()


def places(marks):
    return [number for number, mark in enumerate(marks) if mark]


def test_the_edits_of_a_revision_are_as_few_as_possible():
    away, new = changed(ORIGINAL, REVISED)
    assert (places(away), places(new)) == ([5], [2, 6])
    many = [number % 2 for number in range(220)]
    one = [*many[:100], 7, *many[101:]]
    assert [sum(marks) for marks in changed(many, one)] == [1, 1]  # difflib marks 52
    assert changed([1, 2], [1, 2]) == ([False] * 2, [False] * 2) and changed([1, 2], [1, 9, 2]) == ([False] * 2, [False, True, False])
    assert changed([1, 2], [3, 4, 5]) == ([True] * 2, [True] * 3) and changed([1, 2, 0], [1, 0]) == ([False, True, False], [False, False])


@pytest.mark.parametrize("weight, D, loss", [(1.0, 1.2, 0.634946), (0.5, 1.5, 0.620957), (0.0, 1.8, 0.607192)])
def test_token_weighted_dpo_worked_by_hand(weight, D, loss):
    ratios = {"original": [-0.1, 0.2, 0.3, 0.1, 0, 0.4, -0.2, 0.1], "revised": [-0.1, 0.2, 1.5, -0.3, 0.1, 0, 0.7, -0.2, 0.1]}
    away, new = changed(ORIGINAL, REVISED)
    counted = lambda marks, values: sum(value * (1.0 if mark else weight) for mark, value in zip(marks, values))  # noqa: E731
    found = counted(new, ratios["revised"]) - counted(away, ratios["original"])
    assert found == pytest.approx(D) and math.log1p(math.exp(-0.1 * found)) == pytest.approx(loss, abs=1e-6)


@pytest.mark.parametrize("packed", [True, False])
def test_weighted_sums_are_sums_of_weighted_tokens(packed, load_micro):
    model, _ = load_micro()
    groups = [[([5, 9, 7, 12, 30, 4], 3), ([5, 9, 7, 11, 4], 3)], [([8, 6, 21, 4], 2), ([8, 6, 22, 23, 4], 2)]]
    with torch.no_grad():
        logps, sequence = token_logprobs(model, groups, packed=packed)
        assert sequence.tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3, 3]
        whole = grouped_logprobs(model, groups, packed=packed)
        torch.testing.assert_close(torch.stack([logps[sequence == number].sum() for number in range(4)]), whole)
        weights = torch.linspace(0, 1, len(logps))
        torch.testing.assert_close(grouped_logprobs(model, groups, packed=packed, weights=weights), torch.stack([(weights * logps)[sequence == number].sum() for number in range(4)]))
        assert torch.equal(grouped_logprobs(model, groups, packed=packed, weights=torch.ones(len(logps))), whole) or not packed
