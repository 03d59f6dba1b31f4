"""Losses against several references, by worked numbers and in their limits (pytest tests/foundation/test_references.py)."""

import math

import pytest
import torch

from common.loss import (
    LOSSES,
    adaptive_weight,
    clip_rates,
    clip_reference,
    combined_reference,
    knobs_of,
    preference_loss,
    uses_scores,
    weighted_loss,
    weighted_references,
)

SECOND, OWN, POLICY = (torch.tensor(pair, dtype=torch.float64)[:, None] for pair in ((-30, -33), (-20, -24), (-19, -25)))


def close(value, *expected):
    assert value.flatten().tolist() == pytest.approx(expected, abs=1e-6)


def loss_of(reference, policy=POLICY):
    losses, chosen, rejected = preference_loss("dpo", *policy, *reference, beta=0.1)
    return losses, chosen - rejected


def test_mrpo_worked_by_hand():
    close(adaptive_weight(OWN, SECOND), 0.428571)
    rates = clip_rates(OWN, SECOND, 0.1)
    close(rates, 0.046729, 0.053271)
    close(clip_reference(OWN, SECOND, rates), -20.934579, -25.278505)
    ((weight, reference),) = weighted_references("combined", OWN, SECOND)
    assert weight == 1.0
    close(reference, -20.633137, -24.908550)
    close(torch.cat(loss_of(reference)), 0.610631, 0.172459)
    close(loss_of(reference, OWN)[1], -0.027541)  # policy = base: u is not 0


@pytest.mark.parametrize("weight, reference, u, loss", [
    (0.5, (-20.572713, -24.831009), 0.174170, 0.609849), (1.0, (-20.0, -24.0), 0.2, 0.598139), (0.0, (-20.934579, -25.278505), 0.165607, 0.613768),
])  # fmt: skip
def test_a_fixed_weight(weight, reference, u, loss):
    ((_, found),) = weighted_references("combined", OWN, SECOND, weight)
    close(found, *reference)
    close(torch.cat(loss_of(found)), loss, u)


@pytest.mark.parametrize("rate, reference, u, loss", [
    (0.1, (-21.433781, -25.793689), 0.164009, 0.614501), (math.inf, (-29.306898, -32.306976), 0.299992, 0.554359),
], ids=["one rate for both answers", "no clip"])  # fmt: skip
def test_other_rates(rate, reference, u, loss):
    found = combined_reference(OWN, clip_reference(OWN, SECOND, rate), torch.tensor([0.5], dtype=torch.float64))
    close(found, *reference)
    close(torch.cat(loss_of(found)), loss, u)


def drawn(dtype=torch.float32):
    """Log-probabilities of 200 pairs of long answers, (2, 200) each: own, second, policy."""
    torch.manual_seed(0)
    return [-(torch.rand(2, 200) * 900 + 1).to(dtype) for _ in range(3)]


@pytest.mark.parametrize("method", LOSSES)
@pytest.mark.parametrize("kind, limit", [("own", {}), ("combined", {"eta": 0.0}), ("combined", {"eta": 0.0, "weight": 0.3}), ("combined", {"weight": 1.0}), ("both", {"weight": 0.0})])
def test_in_the_limit_it_is_the_own_base_to_the_bit(method, kind, limit):
    own, second, policy = drawn()
    scores = torch.rand(2, 200) if uses_scores(method) else (None, None)
    knobs = knobs_of(method)
    expected = preference_loss(method, *policy, *own, *scores, beta=0.1, **knobs)
    found = weighted_loss(method, policy, weighted_references(kind, own, second, **limit), *scores, beta=0.1, **knobs)
    assert all(map(torch.equal, found, expected))


def test_the_combined_reference_lies_between_the_own_and_the_clipped_one():
    own, second, _ = drawn(torch.float64)
    for eta in (0.01, 0.1, 1.0):
        ((_, reference),) = weighted_references("combined", own, second, eta=eta)
        assert reference.isfinite().all()
        assert ((reference - own).abs() <= clip_rates(own, second, eta) * own.abs() + 1e-9).all()
    assert torch.allclose(clip_rates(own, second, 0.1).sum(dim=0), torch.tensor(0.1, dtype=torch.float64))


def test_each_reference_alone_and_both_in_a_loss_of_their_own():
    own, second, policy = drawn()
    loss = lambda references: weighted_loss("dpo", policy, references, beta=0.1)[0]  # noqa: E731
    alone = preference_loss("dpo", *policy, *second, beta=0.1)[0]
    assert torch.equal(loss(weighted_references("second", own, second)), alone)
    clipped = clip_reference(own, second, clip_rates(own, second, 0.1))
    parts = [preference_loss("dpo", *policy, *reference, beta=0.1)[0] for reference in (clipped, own)]
    share = adaptive_weight(own, second)
    torch.testing.assert_close(loss(weighted_references("both", own, second)), share * parts[0] + (1 - share) * parts[1])
    worked = weighted_loss("dpo", POLICY, weighted_references("both", OWN, SECOND), beta=0.1)[0]
    close(worked, 3 / 7 * 0.613768 + 4 / 7 * 0.598139)
