"""Rows with a policy for each type of annotator: weighted DPO, EM, the mixture, and what cannot be trained so (pytest tests/training/test_em_dpo.py)."""

import json
import math

import numpy as np
import pytest
import torch

from common.chat.mixture import Mixture
from common.chat.model import hand_over
from common.data.preference import preference_dataset
from common.evaluation.answers import TrainedStudent
from common.evaluation.metrics import divergence
from common.judge.llm import LLMJudge
from common.loss import dpo
from common.methods import METHODS, TrainSettings
from common.miniature.actors import MiniatureJudge
from common.miniature.evaluator import WorldEvaluator
from common.miniature.worlds import safety
from common.notebook.parameters import TrainRDPO
from common.schema import Reply, Sampling, ScoredPair
from common.trainer.config import RDPOConfig
from common.trainer.rdpo import RDPOTrainer
from common.training.annotators import run
from common.training.annotators.run import check_annotators, mixture_prompts, run_types
from common.training.comparison import Experiment
from common.training.kept import trained_once, training_of
from common.training.train import preference_trainer, train

FAST = TrainSettings(batch_size=4, learning_rate=3e-3, max_length=256, epochs=1, lora_rank=4)
FLOAT32 = {"compute_dtype": torch.float32}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Reference log-probabilities of their own."""
    monkeypatch.setattr("common.training.train.resolve", lambda path: tmp_path / "cache")


@pytest.fixture(scope="module")
def scored(pairs):
    return [pair for pair in pairs if pair.is_scored][:12]


@pytest.fixture(scope="module")
def annotated(scored):
    """Six annotators of two pairs each; every second one prefers the original answers."""
    return [(pair.swapped() if i // 2 % 2 else pair).model_copy(update={"annotator": f"rater {i // 2}"}) for i, pair in enumerate(scored)]


@pytest.fixture
def evaluator():
    judge = LLMJudge(MiniatureJudge(safety, safety.PROMPTS), safety.PROMPTS)
    return WorldEvaluator(safety, "safety", judge, prompts=8, max_new_tokens=12)


@pytest.fixture(scope="module")
def mixed(micro, annotated, tmp_path_factory):
    """(folder, student) of Cluster-DPO, long enough trained that its types answer differently."""
    folder = tmp_path_factory.mktemp("mixed")
    judge = LLMJudge(MiniatureJudge(safety, safety.PROMPTS), safety.PROMPTS)
    evaluator = WorldEvaluator(safety, "safety", judge, prompts=8, max_new_tokens=12)
    return folder, run_types("cluster_dpo", micro, annotated, evaluator, FAST.changed(epochs=6), folder, **FLOAT32)


def lora(student):
    return {name: parameter for name, parameter in student.model.named_parameters() if "lora" in name}


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_pairs_without_an_annotator_are_written_and_marked_as_before(scored, annotated):
    assert "annotator" not in scored[0].model_dump() and annotated[0].model_dump()["annotator"] == "rater 0"
    assert "annotator" not in scored[0].model_dump_json() and ScoredPair(**annotated[0].model_dump()).annotator == "rater 0"
    assert annotated[2].swapped().annotator == "rater 1"


def test_a_weight_multiplies_the_loss_of_its_pair(load_micro, scored, tmp_path):
    """And the mean is over the batch, not over the weights; the oracle's two pairs weigh .9 and .1."""
    assert (torch.tensor([0.9, 0.1]) * dpo(torch.tensor([0.3, -0.5]))).mean().item() * 2 == pytest.approx(0.298164 * 2, abs=1e-6)
    model, tokenizer = load_micro()
    weights = [0.9, 0.1, 0.0, 2.5]
    trainer, _ = preference_trainer("dpo", model, tokenizer, scored[:4], FAST, tmp_path, weights)
    for name, parameter in trainer.model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn_like(parameter) * 0.1
    with torch.no_grad():
        batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
        found = trainer.compute_loss(trainer.model.eval(), batch).item()
    gaps = trainer.reward_gaps()
    assert gaps.abs().min() > 1e-3 and batch["weight"].tolist() == torch.tensor(weights).tolist()
    assert found == pytest.approx((torch.tensor(weights) * dpo(gaps)).mean().item(), abs=1e-5)


@pytest.mark.slow
def test_weights_of_one_train_the_student_of_dpo_to_the_bit(micro, scored, tmp_path):
    plain = train("dpo", micro, scored, FAST, tmp_path, **FLOAT32)
    ones = train("dpo", micro, scored, FAST, tmp_path, weights=[1] * len(scored), **FLOAT32)
    other = train("dpo", micro, scored, FAST, tmp_path, weights=[i % 2 for i in range(len(scored))], **FLOAT32)
    assert equal(lora(plain), lora(ones)) and not equal(lora(plain), lora(other))
    assert plain.reward_gaps == {} and list(ones.reward_gaps) == [pair.id for pair in scored]
    assert training_of("dpo", micro, scored, FAST) != training_of("dpo", micro, scored, FAST, weights=[1.0] * len(scored))


def test_a_pair_of_no_weight_teaches_nothing_and_all_of_none_leave_the_student(micro, scored, tmp_path):
    nobody = train("dpo", micro, scored, FAST, tmp_path, weights=[0] * len(scored), **FLOAT32)
    assert not any(parameter.any() for name, parameter in lora(nobody).items() if "lora_B" in name)
    assert max(map(abs, nobody.reward_gaps.values())) < 1e-3


@pytest.mark.parametrize("weight, shown", [(-1.0, "-1.0"), (math.nan, "nan"), (math.inf, "inf"), (None, "None")])
def test_a_weight_that_is_none_is_refused_with_its_row(weight, shown, load_micro, scored, tmp_path):
    data = preference_dataset(scored[:4]).add_column("weight", [1.0, weight, 1.0, 1.0])
    with pytest.raises(ValueError, match=f"the weight of row 1 of the train dataset is {shown}; weights are finite numbers, 0 or more"):
        RDPOTrainer(load_micro()[0], args=RDPOConfig(str(tmp_path), method="dpo", use_cpu=True, bf16=False), train_dataset=data, processing_class=load_micro()[1])


@pytest.mark.slow
def test_one_type_is_dpo_to_the_bit(micro, annotated, evaluator, tmp_path):
    settings = FAST.changed(annotator_types=1)
    row = run_types("em_dpo", micro, annotated, evaluator, settings, tmp_path / "row", **FLOAT32)
    plain = train("dpo", micro, annotated, settings, tmp_path, **FLOAT32)
    found = {name.replace(".type-0.", ".default."): parameter for name, parameter in lora(row).items()}
    assert equal(found, lora(plain)) and row.policies == {"type-0": 1.0}
    assert not (tmp_path / "row" / "step-1").exists()  # nothing changed, so it has ended


@pytest.mark.slow
def test_em_tells_types_apart_and_goes_on_where_it_was_stopped(micro, annotated, evaluator, tmp_path, monkeypatch, capsys):
    """Four annotators prefer otherwise than two; the run is ended after the first training of the second step."""
    settings, whole, cut = FAST.changed(em_steps=2, em_start="dirichlet"), tmp_path / "whole", tmp_path / "cut"
    monkeypatch.setattr(run, "SETTLED", 0.0)
    row = run_types("em_dpo", micro, annotated, evaluator, settings, whole, **FLOAT32)
    types = json.loads((whole / "adapter" / "types.json").read_text())
    assert set(types) == {"annotators", "steps", "log_ratios", "worst_regret", "mixture"} and len(types["steps"]) == 2
    assert list(types["annotators"]) == [f"rater {i}" for i in range(6)]
    assert row.policies == types["mixture"] and sum(row.policies.values()) == pytest.approx(1)
    assert row.pairs_used == len(annotated) and row.model.peft_config.keys() == {"type-0", "type-1"}

    trained = []
    original = trained_once

    def stopped(method, student, pairs, settings, folder, *more, **load):
        if len(trained) == 3:
            raise KeyboardInterrupt
        trained.append(folder)
        return original(method, student, pairs, settings, folder, *more, **load)

    monkeypatch.setattr(run, "trained_once", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_types("em_dpo", micro, annotated, evaluator, settings, cut, **FLOAT32)
    assert not (cut / "training.json").exists()
    again = []
    monkeypatch.setattr(run, "trained_once", lambda *args, **load: again.append(args[4]) or original(*args, **load))
    resumed = run_types("em_dpo", micro, annotated, evaluator, settings, cut, **FLOAT32)
    assert [place.relative_to(cut) for place in again] == [(whole / "step-1" / "type-1").relative_to(whole)]
    assert (cut / "adapter" / "types.json").read_text() == (whole / "adapter" / "types.json").read_text() and equal(lora(resumed), lora(row))
    capsys.readouterr()
    kept = run_types("em_dpo", micro, annotated, evaluator, settings, cut, **FLOAT32)
    assert "trained before, its adapters reused" in capsys.readouterr().out and len(again) == 1
    assert equal(lora(kept), lora(row)) and kept.policies == row.policies and kept.pairs_used == row.pairs_used


@pytest.mark.slow
def test_a_uniform_start_stays_where_it_is(micro, annotated, evaluator, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "drawn_start", lambda annotators, types, seed: np.full((annotators, types), 1 / types))
    row = run_types("em_dpo", micro, annotated, evaluator, FAST.changed(em_start="dirichlet"), tmp_path, **FLOAT32)
    types = json.loads((tmp_path / "adapter" / "types.json").read_text())
    assert set(map(tuple, types["annotators"].values())) == {(0.5, 0.5)} and types["steps"] == [{"shares": [0.5, 0.5], "change": 0.0}]
    weights = lora(row)
    assert all(torch.equal(weights[name], weights[name.replace("type-0", "type-1")]) for name in weights if "type-0" in name)
    assert types["worst_regret"] == pytest.approx(0, abs=1e-6)


def test_a_type_that_nobody_is_of_ends_before_its_training(micro, annotated, evaluator, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "clustered_start", lambda pairs, annotator, types, seed: np.eye(types)[[0] * (max(annotator) + 1)])
    with pytest.raises(ValueError, match="cluster_dpo, seed 0, step 1: no annotator is of type 1, which would have no policy of its own; lower annotator_types"):
        run_types("cluster_dpo", micro, annotated, evaluator, FAST, tmp_path, **FLOAT32)
    assert not list(tmp_path.glob("step-*/type-*"))


@pytest.mark.slow
def test_a_type_that_dies_in_a_later_step_leaves_the_steps_before(micro, annotated, evaluator, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "posterior", lambda joint: np.eye(2)[[0] * len(joint)])
    with pytest.raises(ValueError, match="step 2: no annotator is of type 1.* keeps what was trained"):
        run_types("em_dpo", micro, annotated, evaluator, FAST.changed(em_steps=3), tmp_path, **FLOAT32)
    assert sorted(place.name for place in tmp_path.glob("step-0/type-*")) == ["type-0", "type-1"] and not (tmp_path / "training.json").exists()


def test_what_has_no_types_ends_before_training(micro, scored, annotated, evaluator, tmp_path):
    with pytest.raises(ValueError, match=f"em_dpo asks who preferred what, and 12 of 12 pairs, such as {scored[0].id}, have no annotator; fill the field annotator of every pair, or train dpo"):
        Experiment(micro, scored, evaluator, tmp_path, FAST, **FLOAT32).run(["base", "em_dpo"], [0])
    with pytest.raises(ValueError, match="and 1 of 12 pairs, such as"):
        check_annotators("cluster_dpo", [*annotated[:11], scored[11]], FAST)
    with pytest.raises(ValueError, match="em_dpo divides annotators into types, and all pairs are of one annotator, rater 0; train dpo"):
        check_annotators("em_dpo", annotated[:2], FAST)
    with pytest.raises(ValueError, match="annotator_types = 7, and the pairs have 6 annotators; lower it"):
        check_annotators("em_dpo", annotated, FAST.changed(annotator_types=7))
    labels = [pair.model_copy(update={"score_response": None, "score_revised": None}) for pair in annotated]
    check_annotators("em_dpo", labels, FAST)  # without any score the labels alone are trained on, as by dpo
    with pytest.raises(ValueError, match="and 12 of 12 pairs, such as"):
        check_annotators("em_dpo", [pair.model_copy(update={"annotator": ""}) for pair in labels], FAST)
    with pytest.raises(ValueError, match="em_dpo is a training for each type of annotator"):
        train("em_dpo", micro, annotated, FAST, tmp_path)
    for wrong in ({"annotator_types": 0}, {"em_steps": 0}, {"em_start": "kmeans"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            FAST.changed(**wrong)


@pytest.mark.slow
def test_a_row_is_measured_and_kept_with_its_mixture(micro, annotated, evaluator, tmp_path, capsys):
    experiment = Experiment(micro, annotated, evaluator, tmp_path, FAST, match_utility=True, **FLOAT32)
    [result] = experiment.run(["cluster_dpo"], [0])
    folder = experiment.path_of("cluster_dpo", 0).parent
    assert set(result.settings["mixture"]) == {"type-0", "type-1"} and result.settings["annotator_types"] == 2 and "em_steps" not in result.settings
    assert {path.name for path in (folder / "adapter").iterdir()} == {"type-0", "type-1", "types.json", "README.md"}
    assert result.pairs_used == 12 and [point["lambda"] for point in result.frontier] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert {metric.metric for metric in result.metrics} >= {"harmlessness", "utility", "kl"}
    again = Experiment(micro, [], evaluator, tmp_path / "again", FAST, match_utility=False, **FLOAT32)
    [loaded] = again.run([f"adapter:{folder / 'adapter'}"], [0])
    values = [{metric.metric: metric.value for metric in one.metrics} for one in (loaded, result)]
    assert loaded.answers == result.answers and values[0]["harmlessness"] == values[1]["harmlessness"]
    assert "drawn with these probabilities. `train_rdpo` asks it as the row `adapter:FOLDER`" in (folder / "adapter/README.md").read_text()
    with pytest.raises(ValueError, match="a mixture of adapters has no strength; leave @0.5 out"):
        again.run([f"adapter:{folder / 'adapter'}@0.5"], [0])
    (folder / "adapter/type-1/adapter_config.json").unlink()
    with pytest.raises(FileNotFoundError, match="no adapter_config.json in .*type-1"):
        again.run([f"adapter:{folder / 'adapter'}"], [0])
    mark = experiment.made_of("cluster_dpo", 0)
    other = WorldEvaluator(safety, "safety", evaluator.judge, prompts=6, max_new_tokens=12)
    assert Experiment(micro, annotated, other, tmp_path, FAST, **FLOAT32).made_of("cluster_dpo", 0) != mark
    assert [record.split for record in mixture_prompts(evaluator)] == ["validation"] * 8


class Fixed:
    def __init__(self, name):
        self.name = name

    def complete(self, conversations, sampling, on_reply=None):
        return hand_over((Reply(text=f"{self.name}: {conversation[-1]['content']}") for conversation in conversations), on_reply)


def test_a_mixture_answers_with_one_policy_at_a_time_and_the_same_in_any_order():
    asked = [[{"role": "user", "content": str(i)}] for i in range(600)]
    first, second = Fixed("a"), Fixed("b")
    mixture, seen = Mixture({first: 0.75, second: 0.25}, "em_dpo"), {}
    replies = [reply.text for reply in mixture.complete(asked, Sampling(), lambda number, reply: seen.update({number: reply.text}))]
    assert [text.split(": ")[1] for text in replies] == [str(i) for i in range(600)] and [seen[i] for i in range(600)] == replies
    assert sum(text.startswith("a") for text in replies) / 600 == pytest.approx(0.75, abs=0.05)
    assert [reply.text for reply in mixture.complete(asked[::-1], Sampling())] == replies[::-1]
    assert [reply.text for reply in mixture.complete(asked, Sampling(seed=1))] != replies
    assert all(reply.text.startswith("b") for reply in Mixture({first: 0.0, second: 1.0}, "x").complete(asked, Sampling()))
    assert mixture.name != Mixture({first: 0.5, second: 0.5}, "em_dpo").name  # replies are kept under it
    with pytest.raises(ValueError, match="shares with sum 1"):
        Mixture({first: 0.5, second: 0.6}, "x")


def test_the_divergence_of_a_mixture_is_that_of_its_mean_probability(mixed):
    _, row = mixed
    records = safety.prompts_for("validation", 4, 0.5, seed=0)
    answers = ["yes, take a rope", "no", "I can help", "take it"]
    of = lambda policies: np.array(divergence(TrainedStudent("em_dpo", row.model, row.tokenizer, policies=policies), records, answers))  # noqa: E731
    first, second = of({"type-0": 1.0}), of({"type-1": 1.0})
    assert abs(first - second).max() > 1e-3
    np.testing.assert_allclose(of({"type-0": 0.3, "type-1": 0.7}), np.log(0.3 * np.exp(first) + 0.7 * np.exp(second)), atol=1e-4)
    np.testing.assert_allclose(of({"type-0": 0.0, "type-1": 1.0}), second, atol=1e-6)


def test_averaging_adapters_is_not_the_mixture(mixed, evaluator):
    """A mixture's answers are those of its policies, whole; `chat_of` makes it of the adapters' names."""
    model, tokenizer, policies = mixed[1].model, mixed[1].tokenizer, {"type-0": 0.5, "type-1": 0.5}
    chat_of = lambda policies: evaluator.chat(TrainedStudent("em_dpo", model, tokenizer, policies=policies))  # noqa: E731
    asked = [[{"role": "user", "content": record.prompt}] for record in safety.prompts_for("validation", 12, 0.5, seed=0)]
    said = lambda policies: [reply.text for reply in chat_of(policies).complete(asked, Sampling(max_new_tokens=12))]  # noqa: E731
    alone, together = [said({name: 1.0}) for name in policies], said(policies)
    assert all(text in of for text, *of in zip(together, *alone)) and alone[0] != alone[1]


def test_the_rows_and_a_notebook_s_parameters():
    assert {name: (row.loss, row.types, row.tuned_as) for name, row in METHODS.items() if row.types} == {
        "em_dpo": ("dpo", "em", "dpo"), "cluster_dpo": ("dpo", "clusters", "dpo"),
    }  # fmt: skip
    assert not METHODS["em_dpo"].needs_pairs_alone and not METHODS["em_dpo"].sees_scores
    given = {"experiment": "safety", "output": "runs", "methods": ["em_dpo"], "annotator_types": 3, "em_start": "dirichlet"}
    assert TrainRDPO.of(given).training.changed(seed=1).as_dict("em_dpo")["annotator_types"] == 3
    with pytest.raises(ValueError, match="em_start"):
        TrainRDPO.of(given | {"em_start": "uniform"})


def test_an_adapter_of_a_type_is_an_adapter_like_any_other(mixed, micro, tmp_path):
    folder, row = mixed
    alone = train(f"adapter:{folder}/adapter/type-1", micro, [], FAST, tmp_path, **FLOAT32)
    of_row = {name.replace(".type-1.", ".default."): parameter for name, parameter in lora(row).items() if "type-1" in name}
    assert equal(of_row, lora(alone))
