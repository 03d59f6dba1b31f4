"""What a training log says of answers that move away from the reference (pytest tests/trainer/test_displacement.py)."""

import math
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from test_trainer import adapter_of, randomise_adapter, trainer_for, with_gaps

from common.evaluation.card import card
from common.evaluation.result import Result
from common.logprobs.divergence import answer_kl
from common.methods import TrainSettings
from common.report.before_after import PAIRS, report
from common.report.figures import training_figure
from common.schema import Metric, ScoredPair
from common.student.load import load_student
from common.trainer.displacement import CHOSEN, FALLEN, KL, REJECTED, last_of, movement, warning
from common.trainer.kl import KLMeter
from common.training.train import _report_progress


def test_kl_of_an_answer_is_the_mean_over_its_tokens_of_the_divergence_over_all_words(load_micro):
    """A second model in the reference's place, so that both are known by hand."""
    policy, _ = load_micro()
    other, _ = load_micro()
    with torch.no_grad():
        other.get_output_embeddings().weight.add_(0.02 * torch.randn_like(other.get_output_embeddings().weight))
    ids, start = [5, 9, 7, 12, 30, 4], 3
    with torch.no_grad():
        p, q = (model(torch.tensor([ids])).logits[0, start - 1 : -1].double().log_softmax(1) for model in (policy, other))
    by_hand = (p.exp() * (p - q)).sum(1).mean().item()
    short = (ids[:4], 3)
    assert by_hand > 1e-3 and answer_kl(policy, [(ids, start)], lambda: nullcontext(other)) == pytest.approx(by_hand, rel=1e-4)
    of_short = (p.exp() * (p - q)).sum(1)[0].item()
    assert answer_kl(policy, [(ids, start), short], lambda: nullcontext(other)) == pytest.approx((by_hand + of_short) / 2, rel=1e-4)
    assert answer_kl(policy, [(ids, start)], lambda: nullcontext(policy)) == 0.0


def test_the_shift_is_the_change_of_log_probability_a_token(load_micro, pairs, tmp_path):
    trainer = trainer_for(load_micro, with_gaps(pairs), tmp_path, method="dpo")
    randomise_adapter(trainer.model)
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.compute_loss(trainer.model.train(), batch)
    with torch.no_grad():
        chosen, rejected = trainer._logps(trainer.model, batch)
    tokens = batch["completion_mask"].sum(1).chunk(2)
    for name, logps, reference, length in ((CHOSEN, chosen, "ref_chosen_logps", tokens[0]), (REJECTED, rejected, "ref_rejected_logps", tokens[1])):
        assert trainer._metrics["train"][name] == [pytest.approx(((logps - batch[reference]) / length).mean().item(), rel=1e-4)]


@pytest.mark.slow
def test_kl_is_measured_in_every_tenth_of_a_training_and_changes_nothing(load_micro, pairs, tmp_path):
    adapters = []
    for measured in (True, False):
        torch.manual_seed(0)
        trainer = trainer_for(load_micro, [pair for pair in pairs if pair.is_scored][:4], tmp_path, method="dpo", num_train_epochs=20, seed=3)
        if not measured:
            trainer.remove_callback(KLMeter)
        trainer.train()
        adapters.append(torch.cat([p.detach().flatten() for p in adapter_of(trainer.model).values()]))
        logged = [step["step"] for step in trainer.state.log_history if KL in step]
        assert logged == ([5, 10, 15, 20] if measured else [])
        if measured:
            assert 0 < trainer.state.log_history[4][KL] < trainer.state.log_history[-2][KL] and trainer.model.training
    assert torch.equal(*adapters)


@pytest.mark.slow
def test_a_training_ends_where_kl_passes_its_budget(load_micro, pairs, tmp_path, capsys):
    options = {"method": "dpo", "num_train_epochs": 20, "learning_rate": 5e-3}
    whole = trainer_for(load_micro, pairs[:4], tmp_path, **options)
    whole.train()
    budget = max(step[KL] for step in whole.state.log_history if KL in step) / 2
    capsys.readouterr()
    trainer = trainer_for(load_micro, pairs[:4], tmp_path, kl_budget=budget, **options)
    trainer.train()
    measured = [step[KL] for step in trainer.state.log_history if KL in step]
    assert trainer.state.global_step == len(measured) < 20  # at every logged step
    assert measured[-1] > budget >= max(measured[:-1], default=0)
    assert f"stopped after step {trainer.state.global_step} of 20: KL to the reference is" in capsys.readouterr().out


def test_a_budget_needs_a_reference_beside_the_policy(micro, load_micro, pairs, tmp_path):
    whole = lambda: load_student(micro, four_bit=False, compute_dtype=torch.float32)  # noqa: E731
    with pytest.raises(ValueError, match="kl_budget needs a reference beside the policy"):
        trainer_for(whole, pairs, tmp_path, peft=False, kl_budget=0.1)
    with pytest.raises(ValueError, match="cannot be negative"):
        trainer_for(load_micro, pairs, tmp_path, kl_budget=-0.1)


def history(chosen, rejected):
    return [{"step": i, "loss": 0.5, "rewards/chosen": 0.0, "rewards/rejected": 0.0, "rewards/margins": 0.0, CHOSEN: chosen * i / 20, REJECTED: rejected * i / 20, **({KL: 0.1} if i % 2 else {})} for i in range(1, 21)]


def test_the_end_of_a_training_is_its_last_tenth():
    assert last_of(history(-1.0, -2.0), CHOSEN) == pytest.approx(-0.975) and math.isnan(last_of([{"loss": 1.0}], CHOSEN))
    assert movement(history(-1.0, -2.0)) == {CHOSEN: pytest.approx(-0.975), REJECTED: pytest.approx(-1.95), KL: pytest.approx(0.1)}
    assert movement([{"loss": 1.0}]) == {}


def test_one_sentence_where_chosen_answers_fall_and_none_elsewhere():
    assert warning(history(-1.0, -2.0)) == "chosen answers lost 0.97 nats a token against the reference, rejected ones 1.95: the loss pushes both down, and what gains is neither; see docs/method.md#when-chosen-answers-fall"
    assert warning(history(-1.0, 0.3)) == "chosen answers lost 0.97 nats a token against the reference, and rejected ones gained 0.29: where the scores contradict the pairs, some losses reverse them; see docs/method.md#when-chosen-answers-fall"
    assert warning(history(-FALLEN, -2.0)) == warning(history(0.3, -2.0)) == warning([]) == ""


def test_a_training_shows_the_shift_while_it_runs_and_says_at_its_end_what_is_bad(capsys):
    callbacks = []
    _report_progress(SimpleNamespace(remove_callback=lambda kind: None, add_callback=callbacks.append), "training dpo, seed 0")
    [shown] = callbacks
    shown.on_train_begin(None, SimpleNamespace(max_steps=2, global_step=0), None)
    shown.on_log(None, None, None, logs={CHOSEN: -0.5})
    shown.on_step_end(None, None, None)
    shown.on_step_end(None, None, None)
    shown.on_train_end(None, SimpleNamespace(log_history=history(-1.0, -2.0)), None)
    printed = capsys.readouterr().out
    assert "training dpo, seed 0: 2/2, " in printed and ", chosen -0.50 nats a token" in printed
    assert printed.splitlines()[-1] == f"training dpo, seed 0: {warning(history(-1.0, -2.0))}"


def test_the_report_on_own_data_has_the_shift_and_the_sentence():
    of = {name: 0.5 for name in ("better_likelier_before", "better_likelier_after", "reward_accuracy", "logp_better_before", "logp_better_after", "logp_worse_before", "logp_worse_after")}
    metrics = [Metric(experiment="own", method="dpo", seed=0, metric=name, value=value, low=0.4, high=0.6, n=10) for name, value in of.items()]
    metrics += [Metric(experiment="own", method="dpo", seed=0, metric=name, value=0.1, low=0.0, high=0.4, n=10, k=1) for name in ("turned_right", "turned_wrong")]
    held_out = [ScoredPair(id="a", experiment="own", split="test", prompt="Why?", response="No.", response_revised="Yes.", score_response=0.0, score_revised=1.0)]
    counts = {split: dict.fromkeys(PAIRS, 0) for split in ("train", "test")}
    text = report(Result("dpo", 0, "", metrics, answers={"before": ["No."], "after": ["Yes."]}, history=history(-1.0, -2.0)), held_out, counts, "student")
    assert f"in nats a token: shift/chosen -0.97, shift/rejected -1.95, kl +0.10. Note: {warning(history(-1.0, -2.0))}." in text


def test_the_card_and_the_picture_tell_it():
    metric = Metric(experiment="own", method="dpo", seed=0, metric="aligned", value=0.5, low=0.4, high=0.6, n=10)
    told = card("student", TrainSettings(), Result("dpo", 0, "", [metric], history=history(-1.0, -2.0)))
    assert "- shift/chosen: -0.975 nats a token" in told and "**Chosen answers lost 0.97 nats a token" in told
    assert "nats a token" not in card("student", TrainSettings(), Result("sft", 0, "", [metric], history=[{"loss": 1.0}]))
    last = training_figure(Result("dpo", 0, "", [metric], history=history(-1.0, -2.0))).axes[2]
    assert [line.get_label() for line in last.lines if not line.get_label().startswith("_")] == ["chosen", "rejected", "KL"]
    old = [{name: value for name, value in step.items() if "/" not in name or "rewards" in name} for step in history(0, 0)]
    assert len(training_figure(Result("dpo", 0, "", [metric], history=old)).axes) == 3  # kept before it was measured
