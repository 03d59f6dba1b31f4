"""The losses against hand-worked numbers, float64 formulas, gradients and limits: `pytest tests/foundation/test_loss.py`."""

import math

import pytest
import torch

from common.loss import LOSSES, preference_loss

SCORE_AWARE = ["rdpo", "rdpo_label", "rdpo_ml", "rdpo_soft", "rdpo_squared", "rdpo_filter", "rdpo_flip", "route"]


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def softplus(x):  # -log sigmoid(-x)
    return math.log1p(math.exp(-abs(x))) + max(x, 0.0)


def soft_label(u, p):
    return p * softplus(-u) + (1 - p) * softplus(u)


# The formulas once more, in float64 and in other words: D = log-ratio gap, g = score gap, b = beta.
FORMULAS = {
    "dpo": lambda D, g, b: softplus(-b * D),
    "cdpo": lambda D, g, b, label_smoothing=0.1: soft_label(b * D, 1 - label_smoothing),
    "robust": lambda D, g, b, label_smoothing=0.1: softplus(-b * D) - label_smoothing / (1 - 2 * label_smoothing) * b * D,
    "ipo": lambda D, g, b: D**2 - D / b + 1 / (4 * b**2),
    "rdpo": lambda D, g, b, alpha=1.0: softplus(alpha * g - b * D),
    "rdpo_label": lambda D, g, b, tau=0.5, eta=1.0: soft_label(b * D, 1 - (1 - tau) * (1 - sigmoid(eta * g))),
    "rdpo_ml": lambda D, g, b, eta=1.0, variance=1.0: softplus(-b * D) + (b * D - eta * g) ** 2 / variance / 2,
    "rdpo_soft": lambda D, g, b, eta=1.0: soft_label(b * D, sigmoid(eta * g)),
    "rdpo_squared": lambda D, g, b, eta=1.0: (b * D) ** 2 - 2 * b * D * eta * g + (eta * g) ** 2,
    "rdpo_filter": lambda D, g, b: softplus(-b * D) if g > 0 else 0.0,
    "rdpo_flip": lambda D, g, b: softplus(b * D) if g < 0 else softplus(-b * D),
    "route": lambda D, g, b, clear=0.3: softplus(-b * D) if g > clear else 0.0,
}
KNOBS = [(name, {}) for name in FORMULAS] + [
    ("cdpo", {"label_smoothing": 0.3}),
    ("robust", {"label_smoothing": 0.3}),
    ("rdpo", {"alpha": 2.5}),
    ("rdpo_label", {"tau": 0.3, "eta": 4.0}),
    ("rdpo_ml", {"eta": 2.0, "variance": 0.4}),
    ("rdpo_soft", {"eta": 2.2}),
    ("rdpo_squared", {"eta": 3.0}),
    ("route", {"clear": 0.0}),
    ("route", {"clear": 0.8}),
]
each_loss = pytest.mark.parametrize(("method", "knobs"), KNOBS, ids=lambda value: value if isinstance(value, str) else "-".join(value) or "defaults")


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def batch():
    """Four log-probability columns and two score columns of five pairs; score gaps .8, .25, 0, -.25, -1."""
    return (
        tensor(-10.0, -3.0, -7.5, -40.0, -12.0),
        tensor(-15.0, -1.0, -9.0, -22.0, -12.5),
        tensor(-12.0, -2.0, -8.0, -39.0, -11.0),
        tensor(-14.0, -4.0, -8.0, -30.0, -14.0),
        tensor(0.9, 0.5, 0.4, 0.25, 0.0),
        tensor(0.1, 0.25, 0.4, 0.5, 1.0),
    )


def losses_at(u, method, gap=0.0, **knobs):
    """Losses with beta = 1, where u is all that the policy does."""
    zero = torch.zeros_like(u)
    return preference_loss(method, u, zero, zero, zero, zero + max(gap, 0), zero + max(-gap, 0), beta=1.0, **knobs)[0]


def test_the_losses_there_are():
    assert list(LOSSES) == ["dpo", "cdpo", "robust", "ipo", "rdpo", "rdpo_label", "rdpo_ml", "rdpo_soft", "rdpo_squared", "rdpo_filter", "rdpo_flip", "route"]


# One pair: D = (-10 + 12) - (-15 + 14) = 3, beta = 1/2, u = 1.5, g = 3/4 - 1/4 = 1/2. Then -log S(1.5) = log(1 + e^-1.5)
# = .2014133 =: A, and -log S(-1.5) = A + 1.5 = 1.7014133 =: B.
@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("dpo", 0.2014133),  # A
        ("cdpo", 0.3514133),  # .9 A + .1 B = A + .15
        ("robust", 0.0139133),  # (.9 A - .1 B) / .8 = A - .15 / .8
        ("ipo", 4.0),  # (3 - 1 / (2 * .5))^2 = 2^2
        ("rdpo", 0.3132617),  # log(1 + e^-(1.5 - .5)) = log(1.3678794)
        ("rdpo_label", 0.4845688),  # p = (1 + S(.5)) / 2 = .8112297; A + 1.5 * .1887703
        ("rdpo_ml", 0.7014133),  # A + (.5 - 1.5)^2 / 2
        ("rdpo_soft", 0.7677243),  # p = S(.5) = .6224593; p A + (1 - p) B = A + 1.5 * .3775407
        ("rdpo_squared", 1.0),  # (1.5 - .5)^2
        ("rdpo_filter", 0.2014133),  # accepted: A
        ("rdpo_flip", 0.2014133),  # not swapped: A
    ],
)
def test_one_pair_worked_by_hand(method, expected):
    loss, _, _ = preference_loss(method, *map(tensor, (-10, -15, -12, -14, 0.75, 0.25)), beta=0.5)
    assert loss.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("rdpo", 0.1269280),  # log(1 + e^-(1.5 + .5)) = log(1.1353353)
        ("rdpo_label", 0.6682579),  # p = (1 + S(-.5)) / 2 = .6887703; A + 1.5 * .3112297
        ("rdpo_ml", 2.2014133),  # A + (-.5 - 1.5)^2 / 2
        ("rdpo_soft", 1.1351022),  # p = S(-.5) = .3775407; A + 1.5 * .6224593
        ("rdpo_squared", 4.0),  # (1.5 + .5)^2
        ("rdpo_filter", 0.0),  # not accepted
        ("rdpo_flip", 1.7014133),  # swapped: B
    ],
)
def test_one_worse_revision_worked_by_hand(method, expected):
    loss, _, _ = preference_loss(method, *map(tensor, (-10, -15, -12, -14, 0.25, 0.75)), beta=0.5)
    assert loss.item() == pytest.approx(expected, abs=1e-6)


@each_loss
def test_losses_equal_an_independent_float64_formula(method, knobs):
    columns = batch()
    losses, _, _ = preference_loss(method, *columns, beta=0.3, **knobs)
    chosen, rejected, ref_chosen, ref_rejected, s_chosen, s_rejected = (column.tolist() for column in columns)
    for i, loss in enumerate(losses.tolist()):
        gap = (chosen[i] - ref_chosen[i]) - (rejected[i] - ref_rejected[i])
        assert loss == pytest.approx(FORMULAS[method](gap, s_chosen[i] - s_rejected[i], 0.3, **knobs), abs=1e-6)


@pytest.mark.parametrize("clear", [-0.1, 1.5])
def test_a_clear_gap_outside_the_scale_is_refused(clear):
    with pytest.raises(ValueError, match="clear is the score gap above which a pair is clear and lies in .0, 1., not"):
        preference_loss("route", *batch(), beta=0.3, clear=clear)


@pytest.mark.parametrize("method", SCORE_AWARE)
def test_soft_labels_squares_and_flips_do_not_see_which_answer_the_teacher_called_better(method):
    told = [column[[0, 1, 3, 4]] for column in batch()]  # without the tie
    chosen, rejected, ref_chosen, ref_rejected, s_chosen, s_rejected = told
    exchanged = (rejected, chosen, ref_rejected, ref_chosen, s_rejected, s_chosen)
    blind = torch.allclose(*(preference_loss(method, *columns, beta=0.3)[0] for columns in (told, exchanged)))
    assert blind == (method in {"rdpo_soft", "rdpo_squared", "rdpo_flip"})


@each_loss
def test_gradients_equal_finite_differences(method, knobs):
    chosen, rejected, *rest = batch()
    policy = (chosen.requires_grad_(), rejected.requires_grad_())
    assert torch.autograd.gradcheck(lambda c, r: preference_loss(method, c, r, *rest, beta=0.3, **knobs)[0], policy, eps=1e-5, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("method", "gap", "pushes"),
    [
        ("dpo", 0, [0.982, 0.881, 0.731, 0.500, 0.269, 0.119, 0.018]),
        ("cdpo", 0, [0.882, 0.781, 0.631, 0.400, 0.169, 0.019, -0.082]),
        ("robust", 0, [1.107, 1.006, 0.856, 0.625, 0.394, 0.244, 0.143]),
        ("rdpo", 1, [0.993, 0.953, 0.881, 0.731, 0.500, 0.269, 0.047]),
        ("rdpo", -1, [0.953, 0.731, 0.500, 0.269, 0.119, 0.047, 0.007]),
        ("rdpo_soft", 1, [0.713, 0.612, 0.462, 0.231, 0.000, -0.150, -0.251]),
        ("rdpo_soft", -1, [0.251, 0.150, 0.000, -0.231, -0.462, -0.612, -0.713]),
        ("rdpo_squared", 1, [10, 6, 4, 2, 0, -2, -6]),
    ],
    ids=["dpo", "cdpo", "robust", "offset+1", "offset-1", "soft+1", "soft-1", "squared+1"],
)
def test_push_table(method, gap, pushes):
    u = tensor(-4, -2, -1, 0, 1, 2, 4).requires_grad_()
    losses_at(u, method, gap).sum().backward()
    assert (-u.grad).tolist() == pytest.approx(pushes, abs=1e-3)


@pytest.mark.parametrize(
    ("method", "gap", "knobs"),
    [
        ("rdpo", 0.0, {"alpha": 3.0}),
        ("rdpo", -0.7, {"alpha": 0.0}),
        ("cdpo", 0.5, {"label_smoothing": 0.0}),
        ("robust", 0.5, {"label_smoothing": 0.0}),
        ("rdpo_label", -0.7, {"tau": 1.0, "eta": 3.0}),
        ("rdpo_ml", -0.7, {"variance": 1e12}),
        ("rdpo_filter", 0.01, {}),
        ("rdpo_flip", 0.0, {}),
        ("rdpo_flip", 0.01, {}),
    ],
    ids=["rdpo-tie", "rdpo-alpha-0", "cdpo-eps-0", "robust-eps-0", "label-tau-1", "ml-wide", "filter-accepted", "flip-tie", "flip-accepted"],
)
def test_limits_that_equal_dpo(method, gap, knobs):
    u = torch.linspace(-6, 6, 25, dtype=torch.float64)
    assert losses_at(u, method, gap, **knobs).tolist() == pytest.approx(losses_at(u, "dpo").tolist(), abs=1e-7)


def test_soft_label_of_a_tie_is_one_half():
    u = tensor(-3, 0, 3)
    assert losses_at(u, "rdpo_soft").tolist() == pytest.approx([softplus(x) / 2 + softplus(-x) / 2 for x in (-3, 0, 3)], abs=1e-7)


@pytest.mark.parametrize(
    ("tau", "pushes"),
    [
        (0.0, [-0.482, -0.417, -0.190, 0, 0.190, 0.417, 0.482]),
        (0.25, [-0.237, -0.188, -0.017, 0.125, 0.267, 0.438, 0.487]),
        (0.5, [0.009, 0.042, 0.155, 0.250, 0.345, 0.458, 0.491]),
        (0.75, [0.254, 0.271, 0.328, 0.375, 0.422, 0.479, 0.496]),
    ],
)
def test_push_table_of_the_label_reading(tau, pushes):
    """At the start (u = 0) with eta 4: at tau = 1/2 a contradicted pair is silenced, never reversed; a tie keeps half of DPO's push."""
    for gap, push in zip((-1, -0.6, -0.2, 0, 0.2, 0.6, 1), pushes):
        u = tensor(0.0).requires_grad_()
        losses_at(u, "rdpo_label", gap, tau=tau, eta=4.0).sum().backward()
        assert -u.grad.item() == pytest.approx(push, abs=6e-4)


def test_the_label_reading_is_dpo_at_one_end_and_soft_labels_at_the_other_to_the_bit():
    columns = [column.float() for column in batch()]
    for tau, other, knobs in ((1.0, "dpo", {}), (0.0, "rdpo_soft", {"eta": 2.0})):
        label, same = preference_loss("rdpo_label", *columns, tau=tau, eta=2.0)[0], preference_loss(other, *columns, **knobs)[0]
        assert torch.equal(label, same)


@pytest.mark.parametrize(("method", "knobs"), [("rdpo_label", {"tau": -0.1}), ("rdpo_label", {"tau": 1.01}), ("rdpo_label", {"tau": math.nan}), ("rdpo_ml", {"variance": 0.0})])
def test_knobs_without_a_meaning_raise(method, knobs):
    with pytest.raises(ValueError, match="lies in|must be positive"):
        preference_loss(method, *batch(), **knobs)


def test_squared_target_of_a_tie_is_zero():
    assert losses_at(tensor(-3, 0, 2), "rdpo_squared").tolist() == [9, 0, 4]


@pytest.mark.parametrize("gap", [0.0, -0.01, -1.0])
def test_filter_gives_an_unaccepted_pair_neither_loss_nor_push(gap):
    u = tensor(-5, 0, 5).requires_grad_()
    losses = losses_at(u, "rdpo_filter", gap)
    losses.sum().backward()
    assert losses.tolist() == [0, 0, 0] and u.grad.tolist() == [0, 0, 0]


@pytest.mark.parametrize("method", LOSSES)
def test_far_log_ratios_stay_finite(method):
    u = tensor(-1e4, 1e4).requires_grad_()
    losses = losses_at(u, method, gap=-1.0)
    losses.sum().backward()
    assert losses.isfinite().all() and u.grad.isfinite().all()


@pytest.mark.parametrize("method", LOSSES)
def test_a_pair_does_not_see_its_neighbours(method):
    columns = batch()
    alone = [preference_loss(method, *(column[i : i + 1] for column in columns))[0].item() for i in range(5)]
    assert preference_loss(method, *columns)[0].tolist() == pytest.approx(alone, abs=1e-12)


@pytest.mark.parametrize("method", LOSSES)
def test_rewards_are_beta_times_log_ratio_and_detached(method):
    chosen, rejected, *rest = batch()
    losses, chosen_rewards, rejected_rewards = preference_loss(method, chosen.requires_grad_(), rejected.requires_grad_(), *rest, beta=0.5)
    assert chosen_rewards.tolist() == [1.0, -0.5, 0.25, -0.5, -0.5]  # (-10 + 12) / 2, (-3 + 2) / 2, ...
    assert rejected_rewards.tolist() == [-0.5, 1.5, -0.5, 4.0, 0.75]  # (-15 + 14) / 2, (-1 + 4) / 2, ...
    assert losses.requires_grad and not chosen_rewards.requires_grad and not rejected_rewards.requires_grad


@pytest.mark.parametrize("method", SCORE_AWARE)
@pytest.mark.parametrize("missing", ["both", "chosen", "rejected"])
def test_score_aware_loss_without_scores_raises(method, missing):
    *logps, score_chosen, score_rejected = batch()
    scores = {"both": (None, None), "chosen": (None, score_rejected), "rejected": (score_chosen, None)}[missing]
    with pytest.raises(ValueError, match=f"'{method}' needs score_chosen and score_rejected"):
        preference_loss(method, *logps, *scores)


@pytest.mark.parametrize("method", SCORE_AWARE)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_raises(method, bad):
    *logps, score_chosen, score_rejected = batch()
    score_rejected[2] = bad
    with pytest.raises(ValueError, match=f"'{method}' got a score that is NaN or infinite"):
        preference_loss(method, *logps, score_chosen, score_rejected)


@pytest.mark.parametrize("beta", [0.0, -0.1, math.nan])
def test_ipo_has_no_target_without_a_positive_beta(beta):
    with pytest.raises(ValueError, match="beta must be positive"):
        preference_loss("ipo", *batch(), beta=beta)


@pytest.mark.parametrize("method", [name for name in LOSSES if name not in SCORE_AWARE])
def test_other_losses_ignore_scores(method):
    *logps, score_chosen, score_rejected = batch()
    assert torch.equal(preference_loss(method, *logps)[0], preference_loss(method, *logps, score_chosen, score_rejected)[0])


def test_unknown_method_lists_the_names():
    with pytest.raises(ValueError, match="'rdpo_offset'.*" + ", ".join(LOSSES)):
        preference_loss("rdpo_offset", *batch())


@pytest.mark.parametrize(
    ("method", "knob", "has"),
    [
        ("dpo", "alpha", "none"),
        ("ipo", "label_smoothing", "none"),
        ("cdpo", "u", "label_smoothing"),
        ("rdpo", "eta", "alpha"),
        ("rdpo_soft", "alpha", "eta"),
    ],
)
def test_a_knob_the_loss_lacks_raises(method, knob, has):
    with pytest.raises(ValueError, match=f"'{method}' has no knob '{knob}'; it has {has}"):
        preference_loss(method, *batch(), **{knob: 0.1})


@pytest.mark.parametrize("method", ["cdpo", "robust"])
@pytest.mark.parametrize("rate", [-0.01, 0.5, 1.0, math.nan])
def test_label_smoothing_outside_its_range_raises(method, rate):
    with pytest.raises(ValueError, match=r"lies in \[0, 0.5\)"):
        preference_loss(method, *batch(), label_smoothing=rate)


def test_a_callable_gets_the_same_tensors_and_knobs():
    columns, seen = batch(), {}

    def paper(**given):
        seen.update(given)
        return 2 * given["policy_chosen_logps"]

    losses, chosen_rewards, _ = preference_loss(paper, *columns, beta=0.5, temperature=3.0)
    names = ["policy_chosen_logps", "policy_rejected_logps", "reference_chosen_logps", "reference_rejected_logps", "score_chosen", "score_rejected"]
    assert all(seen.pop(name) is column for name, column in zip(names, columns, strict=True))
    assert seen == {"beta": 0.5, "temperature": 3.0}
    assert losses.tolist() == [-20, -6, -15, -80, -24] and chosen_rewards[0] == 1.0
