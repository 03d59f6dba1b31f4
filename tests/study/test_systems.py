"""The studies of systems with measures of their own: what is measured, what is kept, and how it is compared (pytest tests/study/test_systems.py)."""


import pytest
import torch

from common.evaluation.answers import TrainedStudent
from common.methods import TrainSettings
from common.miniature import lab
from common.miniature.worlds import safety
from common.reversegen.rounds import Verdict
from common.schema import Metric
from common.storage import write_json, write_jsonl
from common.student.load import load_student
from common.study.systems import annotators, failures, wordings
from common.study.systems import run as command

FAST = TrainSettings(batch_size=8, max_length=256, epochs=1, lora_rank=4)
DPO = {"learning_rate": 3e-3, "beta": 0.3}


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
    """Reference log-probabilities of their own, and trainings of seconds."""
    monkeypatch.setattr("common.training.train.resolve", lambda path: tmp_path / "cache")
    for module in (annotators, failures, wordings):
        monkeypatch.setattr(module, "SETTINGS", FAST)
        monkeypatch.setattr(module, "MAX_NEW_TOKENS", 12)


@pytest.fixture
def evaluator(monkeypatch):
    own = lab.evaluator("safety", prompts=6, max_new_tokens=12)
    for module in (annotators, failures):
        monkeypatch.setattr(module, "evaluator_of", lambda cell, seed: own)
    return own


def values_of(metrics):
    return {(one.method, one.metric): one.value for one in metrics}


def test_the_worst_type_is_that_which_gets_the_least_of_the_mixture():
    first, second = {"right": [True, True, False], "help": [True, False, False]}, {"right": [False] * 3, "help": [True, True, False]}
    assert annotators.worst_of_mixture([0.75, 0.25], [first, second]) == [1.0, 0.25, 0.0]  # help gets 1.25, right 1.5
    assert annotators.worst_of_mixture([0.25, 0.75], [first, second]) == [0.25, 0.25, 0.0]
    assert annotators.worst_of_mixture([1.0], [{"right": [True, False]}]) == [1.0, 0.0]


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_annotators_are_measured_by_what_their_types_want(share, micro, pairs, evaluator, tmp_path, monkeypatch):
    monkeypatch.setattr(annotators, "scored_pairs", lambda cell, seed, student: list(pairs))
    monkeypatch.setattr(annotators, "ANNOTATORS", 6)
    found = values_of(annotators.measure(0, micro, tmp_path, DPO | {"em_steps": 2}, share))
    types = ["right", "help"] if share else ["right"]
    methods = ["base", "dpo", "cluster_dpo", "em_dpo"] + ["dpo_of_types"] * (share > 0)
    assert {(method, of) for method in methods for of in types} <= set(found)
    assert {method for method, metric in found if metric == "worst"} == {"base", "dpo", "cluster_dpo", "em_dpo"}
    assert found["dpo", "worst"] == min(found["dpo", of] for of in types) and 0.5 <= found["em_dpo", "recovered"] <= 1
    assert (tmp_path / "em_dpo" / "adapter" / "types.json").exists() and (tmp_path / "dpo-help").exists() == (share > 0)


def test_ways_of_decoding_are_compared_on_held_out_requests(micro, tmp_path, monkeypatch):
    def learnt(student, records, meaning, settings, folder, **how):
        assert {(record.split, record.kind) for record in records} == {("train", "plain")} and settings.sft_learning_rate == wordings.LEARNT["sft_learning_rate"]
        return TrainedStudent("sft", *load_student(student, compute_dtype=torch.float32))

    monkeypatch.setattr(wordings, "paraphraser", learnt)
    monkeypatch.setattr(wordings, "PROMPTS", 4)
    metrics = wordings.measure(1, micro, tmp_path, {})
    assert {one.method for one in metrics} == set(wordings.WAYS) and {one.metric for one in metrics} == set(wordings.COLUMNS)
    assert {(one.n, one.seed) for one in metrics} == {(16, 1)}  # four texts for each of four requests


def test_prompts_are_failed_on_where_the_answer_is_wrong():
    harmful, benign = (safety.prompts_for("train", 2, share, 0) for share in (0.0, 1.0))
    answers = [safety.always_refuse(record.prompt) for record in (*harmful, *benign)]
    found = failures.failing([*harmful, *benign], answers, [True, False, None, False], experiment="safety", method="random", seed=0)
    assert {one.metric: (one.k, one.n) for one in found} == {"failing": (2, 4), "judged_failing": (2, 3), "harmful": (2, 4)}


def test_failures_are_counted_round_by_round_also_where_the_search_stops(micro, evaluator, tmp_path, monkeypatch):
    new = safety.prompts_for("train", 8, 0.5, 99)

    def search(proposer, target, records, judge, final_judge, read, folder, settings, search, **more):
        assert len(records) == 24 and judge.name != final_judge.name and target.load().method == "rdpo"
        for number in range(2):
            verdicts = [Verdict(id=f"p{i}", prompt=record, answer=safety.always_refuse(record.prompt), score=float(i >= 4 * number)) for i, record in enumerate(new)]
            write_jsonl(folder / f"round-{number}-x" / "verdicts.jsonl", [one.model_dump(mode="json") for one in verdicts])
            write_json(folder / f"round-{number}-x" / "round.json", {"proposed": 20, "valid": 16, "distinct": 8})
        raise ValueError("no failure is confirmed")

    monkeypatch.setattr(failures, "find_failures", search)
    monkeypatch.setattr(failures, "CELL", failures.Cell(pairs=24))
    monkeypatch.setattr(failures, "SEARCH", failures.Search(rounds=2, proposals=6))
    metrics = failures.measure(0, micro, tmp_path, DPO)
    found, counts = values_of(metrics), {(one.method, one.metric): one.n for one in metrics}
    wrong = sum(not safety.read_request(record.prompt).harmful for record in new) / 8
    assert found["warm_up", "failing"] == found["round_1", "failing"] == wrong and found["warm_up", "harmful"] == 1 - wrong
    assert (found["warm_up", "judged_failing"], found["round_1", "judged_failing"]) == (0.0, 0.5)
    assert (found["round_1", "valid"], found["round_1", "distinct"]) == (0.8, 0.5) and counts["random", "failing"] == 6
    assert {method for method, _ in found} == {"warm_up", "round_1", "random"}


class Made:
    """A study in place of the real ones."""

    SEEDS, CASES, TUNED_AS, MADE_OF = (0, 1), ((("share", 0.5),), ()), "dpo", {"x": 1}
    ROWS = {"new": (("new", {"share": 0.5}), ("old", {"share": 0.5})), "old": (("old", {}), ("old", {})), "none": (("x", {}), ("x", {}))}
    COLUMNS, NOTE, asked = {"good": "found good", "more": "more"}, "A note.", []

    @classmethod
    def measure(cls, seed, student, folder, setting, **case):
        cls.asked.append((seed, setting, case))
        return [Metric(experiment="safety", method="new", seed=seed, metric="good", value=1 / 3, n=3, low=0.1, high=0.9)]


def test_what_is_measured_is_kept_until_it_is_made_of_something_else(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "SYSTEMS", {"made": Made})
    monkeypatch.setattr(command, "RESULTS", tmp_path)
    monkeypatch.setattr(command, "admitted_student", lambda *asked: tmp_path / "student")
    monkeypatch.setattr(command, "weights_of", lambda student: "weights")
    monkeypatch.setattr(Made, "asked", [])
    write_json(tmp_path / "safety" / "trials.json", {"chosen": {"dpo": {"beta": 0.3}}})
    case = Made.CASES[0]
    [line] = command.measured("made", case, 1, tmp_path)
    assert line == {"experiment": "safety", "method": "new", "seed": 1, "metric": "good", "n": 3, "value": 0.3333, "low": 0.1, "high": 0.9, "cell": {"share": 0.5}}
    assert command.measured("made", case, 1, tmp_path) == [line] and Made.asked == [(1, {"beta": 0.3}, {"share": 0.5})]
    monkeypatch.setattr(Made, "MADE_OF", {"x": 2})
    command.measured("made", case, 1, tmp_path)
    command.measured("made", case, 0, tmp_path)
    assert [seed for seed, *_ in Made.asked] == [1, 1, 0]


def test_the_report_pairs_rows_by_seed(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "SYSTEMS", {"made": Made, "not run": Made})
    lines = [
        {"experiment": "safety", "method": method, "seed": seed, "cell": cell, "metric": "good", "value": value + 0.1 * seed, "n": 10, "low": 0.0, "high": 1.0}
        for method, cell, value in (("new", {"share": 0.5}, 0.6), ("old", {"share": 0.5}, 0.4), ("old", {}, 0.2)) for seed in range(2)
    ]
    command.write_measurements(tmp_path / "made.csv", lines)
    assert {path.name for path in command.write_report(tmp_path, tmp_path / "typeset")} == {"table.md", "table.tex", "table.html"}
    new, old = (tmp_path / "made" / "table.md").read_text().splitlines()[2:4]
    assert new.split("|")[2].strip() == "2" and new.split("|")[3].strip() == "0.65 [0.01, 1.29], +0.20 [+0.20, +0.20]" and old.split("|")[3].strip() == "0.25 [-0.39, 0.89]"


def test_every_row_of_a_table_has_methods_and_cases_that_are_measured():
    for study in command.SYSTEMS.values():
        cases = [dict(case) for case in study.CASES]
        assert all(case in cases for two in study.ROWS.values() for _, case in two)
