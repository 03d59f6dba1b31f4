"""Equal tuning: what is tried, what is chosen, and that each method is then trained with its own choice."""

import json
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from common.evaluation.metrics import Evaluation
from common.evaluation.result import Result
from common.methods import TrainSettings
from common.notebook import tune as tuning_command
from common.notebook.tune import main
from common.schema import Metric
from common.training.comparison import Experiment
from common.training.extrapolate import value_of
from common.training.kept import read_tuned
from common.training.tuning import criterion, read_trials, settings_of, tune, write_trials


def result_of(method: str, reward: float, utility: float) -> Result:
    metric = lambda name, value: Metric(experiment="safety", method=method, seed=0, metric=name, value=value, n=10, low=0.0, high=1.0)  # noqa: E731
    return Result(method, 0, "", [metric("reward", reward), metric("utility", utility)])


def test_every_combination_is_tried_and_a_rate_is_everybodys():
    settings = settings_of({"learning_rate": [1e-4, 5e-4], "beta": [0.1, 0.3]})
    assert [(s["learning_rate"], s["beta"]) for s in settings] == [(1e-4, 0.1), (1e-4, 0.3), (5e-4, 0.1), (5e-4, 0.3)]
    assert all(s["sft_learning_rate"] == s["learning_rate"] for s in settings)
    assert settings_of({"epochs": [1, 2]}) == [{"epochs": 1}, {"epochs": 2}]


def test_the_criterion_is_the_mean_of_the_reward_judges_view_and_utility():
    assert criterion(result_of("dpo", 0.5, 1.0)) == 0.75
    result = result_of("dpo", 0.5, 1.0)  # of a real student: what its judge likes of answers that are none does not count
    result.metrics.append(result.metrics[0].model_copy(update={"metric": "reward_fluent", "value": 0.2}))
    assert criterion(result) == 0.6


def test_expo_s_factor_is_chosen_by_the_same_so_that_gibberish_which_the_judge_likes_does_not_win():
    names = {"experiment": "safety", "method": "dpo", "seed": 0, "n": 10, "low": 0.0, "high": 1.0}
    of = lambda **values: Evaluation([Metric(metric=name, value=value, **names) for name, value in values.items()], {})  # noqa: E731
    as_trained, turned_up = of(reward=0.6, reward_fluent=0.6, utility=0.8), of(reward=1.0, reward_fluent=0.2, utility=0.5)
    assert value_of(as_trained, "aligned") == pytest.approx(0.7) and value_of(turned_up, "aligned") == pytest.approx(0.35)
    assert value_of(of(reward=0.6, utility=0.8), "aligned") == pytest.approx(0.7) and value_of(of(aligned=0.2, utility=0.8), "aligned") == 0.5


def test_the_best_setting_is_chosen_per_method_the_first_on_a_tie_and_earlier_trials_stay(tmp_path):
    path = tmp_path / "trials.json"
    low, high = {"learning_rate": 1e-4}, {"learning_rate": 5e-4}
    trials = [("dpo", low, result_of("dpo", 0.2, 1.0)), ("dpo", high, result_of("dpo", 0.6, 0.9)), ("sft", low, result_of("sft", 0.5, 0.5)), ("sft", high, result_of("sft", 0.4, 0.6))]
    assert write_trials(trials, path) == {"dpo": high, "sft": low}
    assert write_trials([("rdpo", low, result_of("rdpo", 0.1, 0.1))], path) == {"dpo": high, "sft": low, "rdpo": low}
    assert read_tuned(path) == {"dpo": high, "sft": low, "rdpo": low}
    kept = read_trials(path)
    assert len(kept) == 5 and kept[1] == {"method": "dpo", "swapped": 0.0, "seed": 0, "criterion": 0.75, "setting": high, "metrics": {"reward": 0.6, "utility": 0.9}}
    write_trials([("dpo", low, result_of("dpo", 0.9, 0.9))], path)  # a method's new trials replace its old ones
    assert read_tuned(path)["dpo"] == low and len(read_trials(path)) == 4


def test_trials_that_an_earlier_file_of_choices_holds_stay(tmp_path):
    path = tmp_path / "trials.json"
    before = {"method": "sft", "swapped": 0.0, "seed": 0, "criterion": 0.5, "setting": {"learning_rate": 1e-4}, "metrics": {"reward": 0.5}}
    path.write_text(json.dumps({"chosen": {"sft": before["setting"]}, "trials": [before | {"metrics": {"reward": [0.5, 10]}}]}))
    assert read_trials(path) == [before]
    assert set(write_trials([("dpo", {"learning_rate": 5e-4}, result_of("dpo", 0.6, 0.9))], path)) == {"sft", "dpo"}
    assert read_trials(path)[0] == before


def test_a_file_without_a_choice_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="tuned: no file .*common.notebook.tune"):
        read_tuned(tmp_path / "none.json")
    (tmp_path / "other.json").write_text("[1]")
    with pytest.raises(ValueError, match="holds no trials"):
        read_tuned(tmp_path / "other.json")


@pytest.fixture
def experiment(tmp_path) -> Experiment:
    evaluator = SimpleNamespace(reward_judge="judge", sets=lambda split: {"held_out": [], "benign": []})
    return Experiment("student", [], evaluator, tmp_path, TrainSettings(learning_rate=1e-4, beta=0.1))


def test_a_search_tries_every_trained_method_under_every_setting_in_a_folder_of_its_own(experiment, tmp_path, monkeypatch):
    seen = []
    look = lambda run, *row: seen.append((*row, run.settings.learning_rate, run.output))  # noqa: E731
    monkeypatch.setattr(Experiment, "result", look)
    before = dict(vars(experiment))
    by_method = tune(experiment, ["base", "sft", "dpo"], settings_of({"learning_rate": [1e-4, 5e-4]}), 0.3)
    assert [method for method, _, _ in next(by_method)] == ["sft", "sft"] and len(seen) == 2  # its choice can be written before the next is tried
    assert [method for method, _, _ in next(by_method)] == ["dpo", "dpo"] and not list(by_method)
    assert [(method, rate) for method, _, _, rate, _ in seen] == [("sft", 1e-4), ("sft", 5e-4), ("dpo", 1e-4), ("dpo", 5e-4)]
    assert {(seed, swapped) for _, seed, swapped, _, _ in seen} == {(0, 0.3)}
    assert vars(experiment) == before  # each trial has an experiment of its own
    assert len({output for *_, output in seen}) == 2 and all(output.is_relative_to(tmp_path / "tuning") for *_, output in seen)


def test_without_reward_judge_or_benign_prompts_nothing_is_trained(experiment, monkeypatch):
    monkeypatch.setattr(experiment, "result", None)
    for evaluator in (SimpleNamespace(), SimpleNamespace(reward_judge="judge", sets=lambda split: {"held_out": []})):
        experiment.evaluator = evaluator
        with pytest.raises(ValueError, match="trials need reward_judge.*benign"):
            tune(experiment, ["dpo"], [{"epochs": 1}], 0.0)


def test_a_stopped_search_leaves_the_choices_of_the_methods_that_ended(tmp_path, monkeypatch):
    def result(run, method, seed, swapped):
        if method == "dpo":
            raise KeyboardInterrupt
        return result_of(method, run.settings.learning_rate * 1000, 1.0)

    run = Experiment("student", [], SimpleNamespace(reward_judge="judge", sets=lambda split: {"benign": []}), tmp_path, TrainSettings())
    monkeypatch.setattr(Experiment, "result", result)
    monkeypatch.setattr(tuning_command, "open_experiment", lambda parameters: run)
    monkeypatch.setattr(tuning_command, "resolve", lambda path: tmp_path / "trials.json")
    with pytest.raises(KeyboardInterrupt):
        main(["small", "--experiment", "safety", "--method", "sft", "--method", "dpo"])
    assert read_tuned(tmp_path / "trials.json") == {"sft": {"learning_rate": 1e-3, "sft_learning_rate": 1e-3}}


@pytest.mark.parametrize("arguments", [["nowhere"], ["miniature", "--experiment", "safety"], ["small", "--experiment", "chess"]])
def test_the_command_says_what_is_wrong(arguments, monkeypatch):
    monkeypatch.setattr("sys.argv", ["tuning", *arguments])
    with pytest.raises(SystemExit, match="tuning: "):
        main()


def test_a_method_takes_its_own_choice_and_the_others_the_shared_settings(experiment):
    experiment.tuned = {"dpo": {"learning_rate": 5e-4}}
    assert experiment.settings_of("dpo", 3) == TrainSettings(learning_rate=5e-4, beta=0.1, seed=3)
    assert asdict(experiment.settings_of("rdpo", 0)) == asdict(experiment.settings)


def test_a_method_without_trials_of_its_own_takes_those_of_the_method_it_is_tuned_as(experiment, monkeypatch, capsys):
    experiment.tuned = {"dpo": {"learning_rate": 5e-4}, "dpo_expo": {"learning_rate": 1.0}, "rdpo_nll": {"learning_rate": 7e-4}}
    rates = {method: experiment.settings_of(method, 0).learning_rate for method in ("em_dpo", "dpo_nll", "dpo_expo", "rdpo_nll", "base", "rdpo")}
    assert rates == {"em_dpo": 5e-4, "dpo_nll": 5e-4, "dpo_expo": 5e-4, "rdpo_nll": 7e-4, "base": experiment.settings.learning_rate, "rdpo": experiment.settings.learning_rate}
    monkeypatch.setattr(Experiment, "result", lambda self, *row: SimpleNamespace(metrics=[], method=row[0]))
    monkeypatch.setattr("common.training.comparison.one_verdict_for_all", lambda results: "")
    experiment.run(["base", "dpo_nll", "token_dpo", "rdpo"], [0])
    assert "without trials, so with the shared settings: token_dpo, rdpo\n" in capsys.readouterr().out


def test_the_trial_that_was_chosen_is_not_trained_again(micro, pairs, tmp_path, monkeypatch):
    evaluator = SimpleNamespace(reward_judge="judge", sets=lambda split: {"held_out": [], "benign": []})
    run = Experiment(micro, pairs[:8], evaluator, tmp_path, TrainSettings(learning_rate=1e-4, batch_size=4, epochs=1), compute_dtype=torch.float32)
    folder = tmp_path / "tuning" / "learning_rate-0.001"
    trial = run.with_settings(run.settings.changed(learning_rate=1e-3), folder).train("dpo", 0)
    with monkeypatch.context() as patch:
        patch.setattr("common.training.kept.train", None)
        with pytest.raises(TypeError):
            run.train("dpo", 0)  # at another rate
        run.tuned = {"dpo": {"learning_rate": 1e-3}}
        again = run.train("dpo", 0)
    assert again.mark == trial.mark and again.history == trial.history and len(again.history) > 0
    one, other = (load_file(place / "seed-0/dpo/adapter/adapter_model.safetensors") for place in (folder, tmp_path))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("values", ["2e-4", ["2e-4"], 0.001, None, []], ids=str)
def test_values_to_try_that_are_no_numbers_are_named(values):
    with pytest.raises(ValueError, match="tuning: learning_rate = .*give a list of numbers, such as .2.0e-4"):
        settings_of({"learning_rate": values})
