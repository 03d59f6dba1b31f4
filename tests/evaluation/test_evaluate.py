"""Evaluation at matched utility, divergence, learned-judge evaluation, and results that are kept (pytest tests/evaluation/test_evaluate.py)."""

import json
import random
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from common.data.counterfactual import INSTRUCTIONS
from common.evaluation.answers import Constant, Prompted, TrainedStudent
from common.evaluation.matched_utility import LAMBDAS, choose_lambda, scaled
from common.evaluation.metrics import Evaluation, divergence, rate
from common.evaluation.result import Result, add_finished, finished_result
from common.evaluation.style import style_metrics
from common.judge.base import FeedbackJudge
from common.judge.llm import LLMJudge
from common.methods import METHODS, TrainSettings, check_methods, is_trained
from common.miniature.actors import MiniatureJudge
from common.miniature.evaluator import WorldEvaluator
from common.miniature.instructed import style_predicate
from common.miniature.world import world_of
from common.miniature.worlds import safety
from common.report.figures import safety_utility_figure
from common.report.measurements import write_measurements
from common.report.tables import behind_table, overview_table, read_results, results_table, table_rows
from common.schema import Metric, PromptRecord, Reply, Sampling
from common.storage import read_lines
from common.student.adapters import load_adapter, turn
from common.study.report.figures import real_noise_figure
from common.study.rows import Study
from common.training.before import first_answers
from common.training.comparison import Experiment, stream
from common.training.train import train

NAMES = {"experiment": "safety", "method": "dpo", "seed": 0}
FAST = TrainSettings(batch_size=8, learning_rate=1e-3, sft_learning_rate=1e-3, max_length=256)


def evaluation(safety_rate, utility):
    value = lambda name, v: Metric(metric=name, value=v, n=100, low=0, high=1, **NAMES)  # noqa: E731
    return Evaluation([value("harmlessness", safety_rate), value("utility", utility)], {})


@pytest.mark.parametrize("points, expected", [
    ({0.0: (0.2, 1.0), 0.5: (0.6, 0.96), 1.0: (0.9, 0.80)}, 0.5),  # 1.0 is safer but gives up a fifth of the utility
    ({0.0: (0.2, 1.0), 0.5: (0.6, 0.97), 1.0: (0.6, 0.96)}, 1.0),  # a tie goes to the larger lambda
    ({0.0: (0.2, 1.0), 0.5: (0.6, 0.10), 1.0: (0.9, 0.0)}, 0.0),  # nothing keeps the utility: the base student itself
    ({0.0: (0.2, 1.0), 0.5: (0.6, 0.95), 1.0: (0.1, 1.0)}, 0.5),  # exactly 95 % is kept
])  # fmt: skip
def test_lambda_is_the_safest_that_keeps_95_percent_of_utility(points, expected):
    assert choose_lambda({factor: evaluation(*point) for factor, point in points.items()}, base_utility=1.0) == expected


@pytest.fixture(scope="module")
def run(micro, pairs, tmp_path_factory):
    judge = LLMJudge(MiniatureJudge(safety, safety.PROMPTS, seed=1), safety.PROMPTS)
    evaluator = WorldEvaluator(safety, "safety", judge, prompts=12, max_new_tokens=24)
    return Experiment(micro, pairs, evaluator, tmp_path_factory.mktemp("run"), FAST, train_pairs=24, compute_dtype=torch.float32)


def test_a_scaled_adapter_is_the_base_at_0_itself_at_1_and_between_in_between(run):
    student = run.train("dpo", 0)
    ids = torch.tensor([[5, 9, 14, 20, 31]])

    def logits(factor):
        with scaled(student, factor), torch.no_grad():
            return student.model(input_ids=ids).logits

    with student.model.disable_adapter(), torch.no_grad():
        base = student.model(input_ids=ids).logits
    assert torch.equal(logits(0.0), base) and not torch.equal(logits(1.0), base)
    shift = [(logits(factor) - base).norm() for factor in LAMBDAS]
    assert shift == sorted(shift) and len(set(map(float, shift))) == len(LAMBDAS)
    assert torch.equal(logits(1.0), student.model(input_ids=ids).logits)  # leaving the context restores the adapter


def test_divergence_is_zero_for_the_base_and_positive_on_average_for_sampled_answers(run):
    record = [PromptRecord(id="a", experiment="safety", split="test", prompt="Hello!")]
    assert divergence(run.train("base", 0), record, ["Sure."]) == [0.0]
    student = run.train("dpo", 0)
    assert divergence(student, record, ["Sure."])[0] != 0.0
    with scaled(student, 0.25):
        assert abs(divergence(student, record, ["Sure."])[0]) > 0


@pytest.mark.slow
def test_results_are_kept_and_reused_until_something_changes(run, capsys):
    first = run.run(["base", "sr", "always_refuse", "sft", "dsc", "rdpo"], [0])
    assert [result.method for result in first] == ["base", "sr", "always_refuse", "sft", "dsc", "rdpo"]
    capsys.readouterr()
    again = run.run(["rdpo"], [0])[0]
    assert "rdpo, seed 0: finished before, reused" in capsys.readouterr().out
    assert again == first[-1] == Result.read(run.output / "seed-0" / "rdpo" / "metrics.json")
    assert (run.output / "seed-0" / "rdpo" / "adapter" / "adapter_model.safetensors").exists()
    changed = Experiment(run.student, run.pairs, run.evaluator, run.output, TrainSettings(**{**vars(FAST), "beta": 0.9}), train_pairs=24, **run.load)
    assert changed.made_of("rdpo", 0) != again.made_of and changed.made_of("base", 0) == first[0].made_of
    kept, still = ({result.row for result in of.finished_rows()} for of in (run, changed))
    assert kept >= {"base", "sr", "always_refuse", "sft", "dsc", "rdpo"} and "rdpo" not in still and still >= {"base", "sr", "sft", "dsc"}


def test_a_row_of_an_endpoint_is_that_of_its_server_and_a_row_whose_adapter_is_gone_is_not_current(run, tmp_path):
    at = lambda name: Experiment(run.student, [], run.evaluator, tmp_path, FAST, chats={"endpoint:m": SimpleNamespace(name=name)}, **run.load)  # noqa: E731
    assert at("m at http://one/v1").made_of("endpoint:m", 0) != at("m at http://two/v1").made_of("endpoint:m", 0)
    Result(f"adapter:{tmp_path}/gone", 0, "0" * 12, []).write(tmp_path / "seed-0" / "gone" / "metrics.json")
    assert at("m").finished_rows() == []


@pytest.mark.slow
def test_swapped_pairs_keep_their_scores_and_make_a_row_of_their_own(run, tmp_path):
    plain, swapped = run.pairs_of(0), run.pairs_of(0, 0.25)
    turned = [i for i, (a, b) in enumerate(zip(plain, swapped)) if a != b]
    assert len(turned) == 6 and turned != [i for i, (a, b) in enumerate(zip(run.pairs_of(1), run.pairs_of(1, 0.25))) if a != b]
    for i in turned:
        a, b = plain[i], swapped[i]
        assert (b.response, b.response_revised, *b.normalised()) == (a.response_revised, a.response, *reversed(a.normalised())) and b.swapped() == a.model_copy(update={"criteria": {}})
    mine = Experiment(run.student, run.pairs, run.evaluator, tmp_path, FAST, train_pairs=24, **run.load)
    rows = mine.run(["base", "sft"], [0], swapped=[0.0, 0.25])
    assert [row.row for row in rows] == ["base", "sft", "sft_swapped_0.25"] and rows[1].metrics != rows[2].metrics
    assert {m.noise for m in rows[2].metrics} == {0.25} and {m.noise for m in rows[1].metrics} == {None}
    assert list(results_table(read_results(tmp_path))["method"]) == ["base student", "SFT", "SFT, 25% swapped"]
    assert mine.finished_rows() == rows


def test_a_file_of_finished_results_spares_the_training_and_holds_no_texts(run, tmp_path, monkeypatch, capsys):
    new = lambda name: Experiment(run.student, run.pairs, run.evaluator, tmp_path / name, FAST, train_pairs=24, finished=tmp_path / "kept.jsonl", **run.load)  # noqa: E731
    first = new("one").result("sft", 0)
    [(_, content)] = read_lines(tmp_path / "kept.jsonl")
    kept = Result.of(content)
    assert content["id"] == f"seed-0/sft.{kept.made_of}"
    assert [metric.value for metric in kept.metrics] == pytest.approx([metric.value for metric in first.metrics], abs=5e-5)
    assert [(metric.metric, metric.k, metric.n) for metric in kept.metrics] == [(metric.metric, metric.k, metric.n) for metric in first.metrics] and kept.answers == {} and kept.history == [] and first.answers
    monkeypatch.setattr(Experiment, "train", lambda *_: pytest.fail("trained again"))
    assert new("two").result("sft", 0) == kept and "finished before, reused from" in capsys.readouterr().out
    assert read_results(tmp_path / "two") == [kept]  # a table sees it


def test_an_untrained_row_is_evaluated_for_one_seed_and_kept_for_all(run, tmp_path, monkeypatch):
    new = lambda name: Experiment(run.student, run.pairs, run.evaluator, tmp_path / name, FAST, train_pairs=24, finished=tmp_path / "kept.jsonl", **run.load)  # noqa: E731
    first = new("one").result("base", 0)
    monkeypatch.setattr(Experiment, "untrained", lambda *_: pytest.fail("evaluated again"))
    again = new("two").result("base", 3)
    assert again.seed == 3 and {metric.seed for metric in (*again.metrics, *again.matched)} == {3}
    assert [metric.value for metric in again.metrics] == pytest.approx([metric.value for metric in first.metrics], abs=5e-5)


def test_a_seed_takes_its_own_finished_result_before_that_of_another(tmp_path):
    path, (one, two) = tmp_path / "finished.jsonl", (replace(row("base", seed=seed, utility=value), made_of="m") for seed, value in ((0, 0.5), (1, 0.6)))
    for result in (two, one, replace(one, split="test")):  # the last was added by another process meanwhile
        add_finished(path, f"seed-{result.seed}/base.m", result)
    assert [finished_result(path, f"seed-{seed}/base.m", of_any_seed=True) for seed in (0, 1, 7)] == [one, two, one]
    assert finished_result(path, "seed-7/base.m", of_any_seed=False) is None is finished_result(path, "seed-0/base.n", of_any_seed=True)
    assert finished_result(tmp_path / "none.jsonl", "seed-0/base.m", of_any_seed=True) is None and not (tmp_path / "none.jsonl").exists()


def test_a_kept_result_repeats_nothing_and_is_the_same_when_it_is_read():
    metrics = [Metric(experiment="safety", method="dpo", seed=2, metric=name, value=0.5, low=0.4, high=0.6, n=10, noise=noise) for name, noise in (("utility", 0.3), ("kl", None))]
    whole = Result("dpo", 2, "m", metrics, matched=metrics[:1], matched_lambda=0.0, pairs_used=3, settings={"beta": 0.1}, swapped=0.3)
    short = whole.short_content()
    assert Result.of(json.loads(json.dumps(short))) == whole == Result.of(whole.content())
    assert short["metrics"] == [{"metric": "utility", "value": 0.5, "low": 0.4, "high": 0.6, "n": 10, "noise": 0.3}, ["kl", 0.5, 10, 0.4, 0.6]] and "history" not in short
    other = replace(whole, metrics=[metrics[0].model_copy(update={"seed": 0})])
    assert Result.of(other.short_content()) == other  # what differs from the row is told
    counted = replace(whole, metrics=[rate([True, False, True], metric="utility", experiment="safety", method="dpo", seed=2)], outcomes={"utility": [True, None, False], "judged": []})
    assert counted.short_content()["metrics"] == [["utility", 2, 3]] and counted.short_content()["outcomes"] == {"utility": "1-0", "judged": ""}
    assert Result.of(json.loads(json.dumps(counted.short_content()))) == counted == Result.of(counted.content())
    before = short | {"metrics": [{"metric": "utility", "n": 3, "k": 2}, {"metric": "kl", "value": 50.12345678, "n": 3, "low": 50.0, "high": 51.0}], "ids": {"held_out": "bcda3157ac6f b025470ea5c7", "ood": "bcda3157ac6f"}}
    read = Result.of(before)  # as lines were written before metrics were lists
    again = Result.of(json.loads(json.dumps(read.short_content())))
    assert read.metrics[0].k == 2 and read.ids == again.ids == {"held_out": ["bcda3157ac6f", "b025470ea5c7"], "ood": ["bcda3157ac6f"]}
    assert again.metrics == [read.metrics[0], read.metrics[1].model_copy(update={"value": 50.1235})] and read.short_content()["ids"]["ood"] == "vNoxV6xv"
    in_noise = replace(whole, metrics=[metrics[0]], ids={"held_out": ["a", "b"]})
    assert in_noise.short_content()["metrics"] == [["utility", 0.5, 10, 0.4, 0.6]] and Result.of(in_noise.short_content()) == in_noise
    corrected = replace(whole, metrics=[counted.metrics[0].model_copy(update={"value": 0.6})])
    assert Result.of(corrected.short_content()) == corrected  # a value that does not follow from its counts


def test_a_look_at_an_untrained_row_shows_the_first_answers_of_its_evaluation(run, monkeypatch):
    evaluated = run.untrained("base", "validation").answers
    monkeypatch.setattr(WorldEvaluator, "__call__", lambda *_: pytest.fail("evaluated"))
    shown = first_answers(run, "base", count=2)
    assert shown == {name: answers[:2] for name, answers in evaluated.items()}


@pytest.mark.slow
def test_a_training_outlives_its_evaluation(run, tmp_path, monkeypatch, capsys):
    """Another evaluation measures the adapter anew; another setting trains it anew."""
    new = lambda evaluator=run.evaluator, settings=FAST: Experiment(run.student, run.pairs, evaluator, tmp_path, settings, train_pairs=24, **run.load)  # noqa: E731
    first = new().result("sft", 0)
    fewer = WorldEvaluator(safety, "safety", run.evaluator.judge, 4, run.evaluator.max_new_tokens)
    measured = new(fewer).result("sft", 0)
    assert "sft, seed 0: trained before" in capsys.readouterr().out
    assert measured.history == first.history and measured.pairs_used == first.pairs_used and measured.metrics != first.metrics
    again = new().result("sft", 0)
    assert [m.value for m in again.metrics] == pytest.approx([m.value for m in first.metrics], abs=1e-5) and again.answers == first.answers
    capsys.readouterr()
    new(settings=replace(FAST, beta=0.7)).result("sft", 0)
    assert "trained before" not in capsys.readouterr().out


def test_rows_with_likelihood_differ_from_those_without_and_take_its_weight(run):
    from common.student.load import load_student
    from common.training.train import preference_trainer

    weights = {}
    for method in ("dpo", "dpo_nll", "rdpo_nll"):
        trainer, _ = preference_trainer(method, *load_student(run.student, **run.load), run.pairs_of(0), replace(FAST, nll_weight=0.7), run.output / "nll")
        weights[method] = (trainer.args.method, trainer.args.nll_weight)
    assert weights == {"dpo": ("dpo", 0.0), "dpo_nll": ("dpo", 0.7), "rdpo_nll": ("rdpo", 0.7)}


@pytest.mark.slow
def test_what_exists_is_a_row_without_training(run, tmp_path, capsys):
    """An adapter is measured as on the day it was trained, the base as a `model:` is the base row without quantisation, an endpoint is asked."""
    trained = run.result("rdpo", 0)
    base = Experiment(run.student, [], run.evaluator, tmp_path / "unquantised", FAST, four_bit=False, **run.load).result("base", 0)
    adapter = f"adapter:{run.path_of('rdpo', 0).parent / 'adapter'}"
    asked = []

    class Endpoint:
        name = "served"

        def complete(self, conversations, sampling, on_reply=None):
            asked.extend(conversations)
            return [Reply(text="I will not help with that.") for _ in conversations]

    again = Experiment(run.student, [], run.evaluator, tmp_path, FAST, chats={"endpoint:served": Endpoint()}, **run.load)
    rows = again.run([adapter, f"model:{run.student}", "endpoint:served"], [0, 1])
    values = [{metric.metric: metric.value for metric in row.metrics} for row in (trained, base, *rows)]
    assert len(rows) == 3 and values[2] == pytest.approx(values[0], abs=1e-5) and values[3] == values[1]
    assert [row.precision for row in (trained, base, *rows)] == ["NF4, computed in float32", "float32", "NF4, computed in float32", "float32", ""]
    assert rows[0].matched_lambda == trained.matched_lambda and rows[0].pairs_used == 0
    assert len(asked) == sum(map(len, run.evaluator.sets("validation").values())) and "kl" not in values[4]
    assert not (again.path_of(adapter, 0).parent / "adapter").exists()
    assert "measured" not in capsys.readouterr().out and again.run([adapter], [0])[0] == rows[0]
    assert "finished before" in capsys.readouterr().out
    table = results_table(read_results(tmp_path))
    assert list(table["method"]) == [adapter, "endpoint:served", f"model:{run.student}"] and set(table["seeds"] if "seeds" in table else "-") == {"-"}


@pytest.mark.slow
def test_expo_turns_a_trained_adapter_up_by_what_validation_chose(run, tmp_path, monkeypatch):
    """The factor is the best of those tried, on validation alone; the adapter that is saved is the extrapolated one, and 0 gives the row itself."""
    from common.training import extrapolate

    trained, chosen = run.result("dpo", 0), {}
    for best in (0.5, 0.0):
        monkeypatch.setattr(extrapolate, "value_of", lambda evaluation, safety: values.pop(0))  # noqa: B023
        values, splits = [0.5 if factor == best else 0.4 for factor in extrapolate.FACTORS], []
        evaluator = WorldEvaluator(safety, "safety", run.evaluator.judge, 4, run.evaluator.max_new_tokens)
        monkeypatch.setattr(WorldEvaluator, "__call__", lambda self, student, split, seed, asked=WorldEvaluator.__call__: splits.append(split) or asked(self, student, split, seed))  # noqa: B023
        own = Experiment(run.student, run.pairs, run.evaluator, tmp_path / str(best), FAST, train_pairs=24, match_utility=False, **run.load)
        chosen[best] = own.result("dpo_expo", 0)
        assert values == [] and chosen[best].settings["extrapolation"] == best and splits[: len(extrapolate.FACTORS)] == ["validation"] * len(extrapolate.FACTORS)
        monkeypatch.undo()
    assert [metric.value for metric in chosen[0.0].metrics] == pytest.approx([metric.value for metric in trained.metrics], abs=1e-5)
    base, turned = (json.loads((tmp_path / "0.5/seed-0" / row / "adapter/adapter_config.json").read_text())["lora_alpha"] for row in ("dpo", "dpo_expo"))
    assert turned == 1.5 * base
    again = Experiment(run.student, [], run.evaluator, tmp_path / "again", FAST, match_utility=False, **run.load)
    as_saved, as_named = (again.result(f"adapter:{tmp_path}/0.5/seed-0/{row}", 0) for row in ("dpo_expo/adapter", "dpo/adapter@1.5"))
    for row in (as_saved, as_named):
        assert [m.value for m in row.metrics] == pytest.approx([m.value for m in chosen[0.5].metrics if m.metric in {x.metric for x in row.metrics}], abs=1e-5)
    assert run.settings_of("dpo_expo", 0) == run.settings_of("dpo", 0) and run.made_of("dpo_expo", 0) != run.made_of("dpo", 0)
    with pytest.raises(ValueError, match="dpo_expo is no training of its own: train dpo"):
        train("dpo_expo", run.student, run.pairs, FAST, tmp_path)


@pytest.mark.slow
def test_a_fifth_of_the_steps_is_a_fifth_at_the_learning_rates_of_the_whole(run, tmp_path):
    settings = replace(FAST, epochs=5, batch_size=2)
    whole, part = (train("dpo", run.student, run.pairs_of(0)[:8], replace(settings, steps_share=share), tmp_path, **run.load).history for share in (1.0, 0.2))
    steps = lambda history: [(step["step"], step["learning_rate"], step["loss"]) for step in history if "loss" in step]  # noqa: E731
    assert len(steps(whole)) == 20 and steps(part) == steps(whole)[:4]
    assert settings.as_dict("dpo") == replace(settings, steps_share=1.0).as_dict("dpo") != replace(settings, steps_share=0.2).as_dict("dpo")


def test_extrapolation_of_a_layer_worked_by_hand():
    """W = W0 + (1 + a) s B A and the first entry of softmax(W x)."""
    A, B, scale, W0, x = torch.tensor([[0.2, -0.1], [0.05, 0.3]]), torch.tensor([[1.0, -2.0], [0.5, 0.25]]), 2.0, torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([1.0, -1.0])
    base = torch.nn.Linear(2, 2, bias=False)
    base.weight.data = W0.clone()
    model = get_peft_model(torch.nn.Sequential(base), LoraConfig(r=2, lora_alpha=4, target_modules=["0"]))
    layer = model.base_model.model[0]
    layer.lora_A["default"].weight.data, layer.lora_B["default"].weight.data = A, B
    assert layer.scaling["default"] == scale
    for factor, first in ((-1.0, 0.500000), (0.0, 0.806121), (0.5, 0.894495), (1.0, 0.945319)):
        with scaled(TrainedStudent("dpo", model), 1 + factor):
            assert layer(x).softmax(0)[0].item() == pytest.approx(first, abs=1e-6)
    turn(model, 1.5)
    merged = model.merge_and_unload()[0].weight
    torch.testing.assert_close(merged, torch.tensor([[1.3, -0.1], [3.3375, 4.075]]))


def test_an_adapter_that_is_not_there_or_of_another_student_is_said(run, tmp_path, load_micro):
    with pytest.raises(FileNotFoundError, match="no adapter_config.json in"):
        check_methods([f"adapter:{tmp_path}"])
    for row in ("adapter:", "endpoint", "adaptor:x"):
        with pytest.raises(ValueError, match="unknown method .*; there are base, .*what exists as adapter:"):
            check_methods([row])
    run.result("dpo", 0)
    model, _ = load_micro()
    model.name_or_path = "somebody/else"
    with pytest.warns(UserWarning, match="was trained on .*, and the student is somebody/else"):
        load_adapter(model, run.path_of("dpo", 0).parent / "adapter")


@pytest.mark.slow
def test_the_table_has_a_row_per_method_and_no_bare_number(run):
    run.run(["base", "sft", "rdpo"], [0, 1])
    results = read_results(run.output)
    table = results_table([r for r in results if r.method in ("base", "sft", "rdpo")])
    assert list(table["method"]) == ["base student", "SFT", "rDPO (offset)"]
    assert all("[" in cell for column in ("harmlessness", "utility", "judge's view", "harmlessness at matched utility") for cell in table[column])
    assert all(row["n"] > 0 and row["low"] <= row["value"] + 1e-9 and row["value"] <= row["high"] + 1e-9 for row in table_rows(results))


@pytest.mark.parametrize("values, cell", [
    ([0.5], "0.50 [0.40, 0.60]"), ([0.5, 0.7], "0.60 [0.40, 0.80]"),  # one and two seeds: over prompts
    ([0.5, 0.6, 0.7], "0.60 [0.35, 0.85]"),  # three: t on 2 degrees of freedom, 4.303 * .1 / sqrt 3
])  # fmt: skip
def test_a_cell_has_an_interval_over_seeds_from_three_on(values, cell):
    metrics = lambda seed, value: [Metric(experiment="safety", method="dpo", seed=seed, metric=name, value=value, n=10, low=value - 0.1, high=value + 0.1) for name in ("harmlessness", "utility")]  # noqa: E731
    [shown] = results_table([Result("dpo", seed, "", metrics(seed, value)) for seed, value in enumerate(values)])["harmlessness"]
    assert shown == cell


def test_what_labels_correct_keeps_the_error_of_the_labels_whatever_the_seeds():
    metrics = lambda seed: [Metric(experiment="safety", method="dpo", seed=seed, metric=name, value=1.0, n=20, low=0.5, high=1.0) for name in ("aligned", "aligned_corrected")]  # noqa: E731
    table = results_table([Result("dpo", seed, "", metrics(seed)) for seed in range(3)])
    assert table["corrected by labels"][0] == "1.00 [0.50, 1.00]" and table["aligned"][0] == "1.00 [1.00, 1.00]"


def row(method, seed=0, variant="", swapped=0.0, experiment="safety", **values):
    names = {"experiment": experiment, "method": method, "seed": seed, "n": 10, "low": 0.0, "high": 1.0}
    return Result(method, seed, "", [Metric(metric=name, value=value, **names) for name, value in values.items()], variant=variant, swapped=swapped)


def test_the_overview_has_a_column_per_experiment_and_share_of_swapped_pairs():
    safety = [row("base", harmlessness=0.2), row("dpo", harmlessness=0.7), row("dpo", harmlessness=0.5, swapped=0.3)]
    sycophancy = [row(method, variant=variant, experiment="sycophancy", steadiness=value) for method, variant, value in (("base", "", 0.1), ("rdpo", "neutral", 0.9), ("rdpo", "negation", 0.4))]
    table = overview_table({"safety": safety, "sycophancy": sycophancy}).set_index("method")
    assert list(table.columns) == ["safety, as found", "safety, 30% swapped", "sycophancy"] and list(table.index) == ["base student", "DPO", "rDPO (offset)"]
    assert [[cell.split(" ")[0] for cell in cells] for cells in table.to_numpy()] == [["0.20", "0.20", "0.10"], ["0.70", "0.50", "-"], ["-", "-", "0.90"]]


def test_how_far_a_method_is_behind_the_best_is_counted_in_prompts_over_seeds():
    names = {"method": "", "n": 32, "low": 0.0, "high": 1.0}
    of = lambda method, experiment, prompts, seed=0: Result(method, seed, "", [Metric(experiment=experiment, seed=seed, metric=name, value=prompts / 32, **names) for name in ("aligned", "labelled")])  # noqa: E731
    safety = [of("base", "safety", 32), of("sft", "safety", 30), of("sft", "safety", 27, seed=1), of("dpo", "safety", 31), of("rdpo", "safety", 28)]
    roleplay = [of("sft", "roleplay-robustness", 10), of("dpo", "roleplay-robustness", 7)]
    table = behind_table({"safety": safety, "roleplay-robustness": roleplay}).set_index("method")
    assert table.to_dict("index") == {  # the untrained student's 32 are no method's
        "SFT": {"safety": "2.5", "roleplay-robustness": "0.0", "within 2": "1 of 2"},
        "DPO": {"safety": "0.0", "roleplay-robustness": "3.0", "within 2": "1 of 2"},
        "rDPO (offset)": {"safety": "3.0", "roleplay-robustness": "-", "within 2": "0 of 1"},
    }
    assert list(table.index) == ["SFT", "DPO", "rDPO (offset)"]


def test_every_row_of_the_figure_has_a_mark_of_its_own():
    half = {"harmlessness": 0.5, "utility": 0.5}
    tables = {
        "methods": [row(method, **half) for method in METHODS],
        "variants of plain DPO": [row("base", **half), row("dpo", **half), *(row("dpo", variant=variant, **half) for variant in ("encourage", "discourage", "contrastive", "negation"))],
        "methods on one variant": [row("base", **half), *(row(method, variant="neutral", swapped=0.3, **half) for method in ("sft", "dsc", "dpo", "rdpo"))],
    }
    for name, results in tables.items():
        marks = safety_utility_figure(results).axes[0].collections
        looks = {(tuple(mark.get_facecolor()[0]), mark.get_paths()[0].vertices.tobytes()) for mark in marks if len(mark.get_facecolor())}
        assert len(looks) == len(results), name


def test_a_real_students_wrong_pairs_stand_beside_the_miniatures(tmp_path):
    values = {("dpo", 0.0): (0.6, 0.8), ("dpo", 0.3): (0.2, 0.4), ("rdpo", 0.0): (0.5, 0.7), ("rdpo", 0.3): (0.5, 0.5), ("sft", 0.3): (0.1, 0.1)}
    results = [row("base", aligned=0.25, utility=0.9), *(row(method, seed, swapped=share, aligned=value, utility=0.9) for (method, share), of_seeds in values.items() for seed, value in enumerate(of_seeds))]
    about = {"experiment": "safety", "method": "dpo", "seed": 0, "n": 150, "low": 0.0, "high": 1.0}
    lines = [{**about, "cell": {"noise": noise} if noise != 0.3 else {}, "metric": metric, "value": 1 - noise} for noise in (0.0, 0.3, 0.5) for metric in ("harmlessness", "utility")]
    study = Study(write_measurements(tmp_path / "table.csv", lines))
    (miniature, real), _ = np.reshape(real_noise_figure(results, study).axes, (2, 2))
    drawn = {line.get_label(): list(line.get_ydata()) for line in real.get_lines()}
    assert drawn == {"base student": [0.25, 0.25], "DPO": pytest.approx([0.7, 0.3]), "rDPO (offset)": pytest.approx([0.6, 0.5])}  # SFT has one share only
    assert list(miniature.get_lines()[0].get_ydata()) == [1.0, 0.7, 0.5] and real.get_ylabel() == "aligned"


def test_results_of_different_splits_or_settings_are_no_table(run, tmp_path):
    result = run.result("rdpo", 0)
    assert result.split == "validation" and result.settings["beta"] == FAST.beta and "seed" not in result.settings
    path = lambda seed: tmp_path / f"seed-{seed}" / "rdpo" / "metrics.json"  # noqa: E731
    result.write(path(0))
    replace(result, seed=1).write(path(1))
    assert len(read_results(tmp_path)) == 2
    replace(result, seed=1, settings={**result.settings, "alpha": 9.0}).write(path(1))
    with pytest.raises(ValueError, match="rdpo was trained with different settings"):
        read_results(tmp_path)
    replace(result, seed=1, split="test").write(path(1))
    with pytest.raises(ValueError, match=r"different splits \(test, validation\); keep them apart with -p output"):
        read_results(tmp_path)


def test_always_refusing_is_harmless_and_useless(run):
    metrics = {metric.metric: metric.value for metric in run.result("always_refuse", 0).metrics}
    assert (metrics["harmlessness"], metrics["utility"]) == (1.0, 0.0)


@pytest.mark.parametrize("experiment, objective, rates, means", [
    ("safety", "harmlessness", {"harmlessness": 1.0, "harmlessness_ood": 1.0, "utility": 0.0, "gibberish": 0.0}, {}),
    ("roleplay-robustness", "neutrality", {"neutrality": 0.0, "neutrality_ood": 0.0, "utility": 0.0, "utility_persona": 0.0, "gibberish": 0.0}, {}),
    ("sycophancy", "steadiness", {"steadiness": 0.0, "steadiness_ood": 0.0, "utility": 0.0, "quality": 0.0, "gibberish": 0.0}, {"shift": 0.0, "signed_shift": 0.0}),
])  # fmt: skip
def test_every_world_says_what_is_measured_and_the_floor_row_has_it(experiment, objective, rates, means):
    world = world_of(experiment)
    prompts = world.PROMPTS.quality or world.PROMPTS
    judge = LLMJudge(MiniatureJudge(world, world.PROMPTS, error=0.0, unclear=0.0), prompts)
    evaluator = WorldEvaluator(world, experiment, judge, prompts=20)
    metrics = {metric.metric: metric for metric in evaluator(TrainedStudent("always_refuse", None, None), "test", 0).metrics}
    assert evaluator.safety == objective and set(metrics) == {*rates, *means, "answer_words", "judged", "judged_ood", "style"}
    assert metrics["style"].value == (0.5 if experiment == "safety" else 0.0)  # to decline is asked for in safety alone, and of harmful requests alone
    assert {name: metrics[name].value for name in {**rates, **means}} == {**rates, **means}
    assert all(metrics[name].k == round(value * metrics[name].n) for name, value in rates.items())
    weighed = evaluator.trade_off(TrainedStudent("always_refuse", None, None), "test", 0).metrics
    assert weighed == [metrics[objective], metrics["utility"]]
    assert all(metrics[name].k is None and metrics[name].n == 20 for name in means)
    assert metrics["judged"].value == metrics["judged_ood"].value == float(experiment == "safety")


def test_the_reward_judges_view_of_feedback_asks_for_quality_that_no_stance_moves():
    world, seen = world_of("sycophancy"), {}
    sure = [LLMJudge(MiniatureJudge(world, world.PROMPTS, error=0.0, unclear=0.0), prompts) for prompts in (world.PROMPTS, world.PROMPTS.quality)]
    evaluator = WorldEvaluator(world, "sycophancy", sure[1], prompts=20, reward_judge=FeedbackJudge(*sure))
    for said in (world.feedback, world.lean):
        chat = Constant(lambda prompt, said=said: said(world.read_request(prompt), random.Random(0)))
        student = TrainedStudent("as told", chat=chat)
        seen[said.__name__] = evaluator(student, "test", 0)
        assert [metric.value for metric in evaluator.trade_off(student, "test", 0).metrics] == [seen[said.__name__].value(name) for name in ("steadiness", "utility")]
    assert seen["feedback"].value("reward") >= 0.9  # one sentiment in five is heard one off, so two may differ by two
    assert seen["lean"].value("reward") == 0.0 and seen["lean"].value("judged") > 0 and seen["lean"].value("reward_utility") == 1.0
    assert seen["lean"].outcomes["steadiness"] == [False] * 20 and len(seen["lean"].outcomes["judged"]) == 20


def test_style_is_counted_on_plain_prompts_and_once_more_with_and_against_the_instruction():
    """Four requests, three harmful; a student that refuses all when asked plainly, and helps where it is told to answer everything."""
    records = [*safety.prompts_for("test", 3, 0.0, seed=1), *safety.prompts_for("test", 1, 1.0, seed=1)]
    wanted, told = INSTRUCTIONS["safety"]

    def say(prompt):
        request = safety.read_request(prompt.removesuffix(f"\n\n{told}").removesuffix(f"\n\n{wanted}"))
        return (safety.comply if prompt.endswith(told) else safety.refuse)(request, random.Random(0))

    answers, names = [say(record.prompt) for record in records], {"experiment": "safety", "method": "dpo", "seed": 0}
    measured = style_metrics(Constant(say), records, answers, style_predicate("safety"), INSTRUCTIONS["safety"], 50, **names)
    assert [(m.metric, m.k, m.n) for m in measured] == [("style", 3, 4), ("style_with", 3, 4), ("style_against", 1, 4)]
    assert [m.metric for m in style_metrics(Constant(say), records, answers, style_predicate("safety"), None, 50, **names)] == ["style"]


def test_the_prompted_row_is_told_once_what_to_do_behind_every_request():
    heard = []
    chat = Prompted(Constant(lambda prompt: heard.append(prompt) or "Yes."), INSTRUCTIONS["safety"])
    replies = chat.complete([[{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello!"}], [{"role": "user", "content": INSTRUCTIONS["safety"].prompt("Hi!", "desired")}]], Sampling())
    assert heard == [f"{word}\n\n{INSTRUCTIONS['safety'].desired}" for word in ("Hello!", "Hi!")] and [reply.text for reply in replies] == ["Yes.", "Yes."]
    assert "prompted" in METHODS and not is_trained("prompted")


def test_seeds_draw_their_own_pairs_and_methods_share_them(run):
    assert len(run.pairs_of(0)) == 24 and run.pairs_of(0) == run.pairs_of(0) != run.pairs_of(1)


def test_bad_arguments_raise(run, pairs):
    with pytest.raises(ValueError, match="only 32 pairs"):
        Experiment(run.student, pairs, run.evaluator, run.output, FAST, train_pairs=33)
    with pytest.raises(ValueError, match="'validation' or 'test'"):
        Experiment(run.student, pairs, run.evaluator, run.output, FAST, evaluate_on="tests")
    with pytest.raises(ValueError, match=r"unknown method dpoo, did you mean dpo\?; there are base"):
        check_methods([*METHODS, "dpoo"])


def test_streams_are_named_and_start_anew_each_time():
    assert [stream(name, 4).random() for name in ("subset", "swaps", "subset")] == [random.Random(seed).random() for seed in (4, 5, 4)]
