"""The study of both readings and of recipes: what is run, with whose settings, and what is read out (pytest tests/study/test_readings.py)."""

import json
import math
from collections import Counter
from contextlib import nullcontext

import pytest
from test_study import table_of

from common.evaluation.result import Result
from common.methods import METHODS
from common.schema import Metric
from common.storage import write_json
from common.study import run as evidence
from common.study.design import OF_READINGS, READINGS, SEEDS, TRIAL_SEEDS, TRIALS, Cell, parts, trial_settings
from common.study.readings import (
    BAR,
    NAMED,
    NOISES,
    TRAINED,
    against_the_best,
    noise_table,
    recipe_table,
    tau_table,
    write_report,
)
from common.study.rows import Study, behaviour
from common.training.tuning import write_trials

NEW = {"rdpo_label", "rdpo_ml", "label_nll", "filter_nll", "route"}


def test_every_method_stands_in_each_of_nine_cells():
    for experiment in ("safety", "roleplay-robustness", "sycophancy"):
        rows = parts(experiment)["readings"]
        counts = Counter((row.method, row.cell.noise) for row in rows)
        assert counts == {(method, noise): 10 if noise == 0.3 else 5 for method in READINGS for noise in NOISES} and len(set(rows)) == len(rows)
        assert {row.cell.unlike_centre.keys() <= {"noise"} for row in rows} == {True}
        assert {(row.method, row.changed["tau"], row.seed) for row in parts(experiment)["tau"]} == {("rdpo_label", tau, seed) for tau in (0.0, 0.25, 0.5, 0.75, 1.0) for seed in SEEDS[:5]}
    assert NEW < set(READINGS) and {method for pair in NAMED for method in pair} <= set(TRAINED)


def test_two_knobs_have_columns_of_their_own_and_the_rest_is_what_all_methods_try():
    dpo, label, routed = (trial_settings(method) for method in ("dpo", "rdpo_label", "route"))
    for name in ("learning_rate", "beta", "epochs"):
        assert [t[name] for t in label] == [t[name] for t in dpo] == [t[name] for t in routed]
    quantiles = lambda values, low, high: sorted(int(8 * math.log(value / low) / math.log(high / low)) for value in values)  # noqa: E731
    assert quantiles([t["tau"] for t in label], 0.25, 0.75) == quantiles([t["eta"] for t in label], 0.5, 8.0) == quantiles([t["clear"] for t in routed], 0.1, 0.8) == list(range(TRIALS))
    order = lambda name: sorted(range(TRIALS), key=lambda i: label[i][name])  # noqa: E731
    assert order("tau") != order("eta")
    assert {METHODS[method].tuned_as for method in NEW} == NEW and METHODS["dpo_nll"].tuned_as == "dpo"


def test_only_methods_without_trials_get_them_and_beside_their_rows(tmp_path, monkeypatch):
    """A run into a folder of its own with trials, rows and students made up: whose settings each method gets, and where they are kept."""
    home, to, asked = tmp_path / "evidence", tmp_path / "readings", {}
    for name in ("FOLDER", "RESULTS"):
        monkeypatch.setattr(evidence, name, home)
    rivals = {method: {"learning_rate": 1e-3, "sft_learning_rate": 1e-3, "epochs": 1} for method in ("sft", "dsc", "dpo", "rdpo", "rdpo_filter")}
    write_json(home / "safety" / "trials.json", {"chosen": rivals})

    def finish(label, pool, run, tasks):
        asked[label] = list(tasks)
        return [], []

    def tried(experiment, needed, pool, folder):
        write_json(folder / experiment / "trials.json", {"chosen": {method: {"learning_rate": 2e-3, "sft_learning_rate": 2e-3, "epochs": 2, "tau": 0.4} for method in [*needed, "sft"]}})  # and SFT's of another day
        asked["needed"], asked["kept in"] = set(needed), folder
        return []

    monkeypatch.setattr(evidence, "ProcessPoolExecutor", lambda *given: nullcontext())
    monkeypatch.setattr(evidence, "finish", finish)
    monkeypatch.setattr(evidence, "_keep_students", lambda *given: None)
    monkeypatch.setattr(evidence, "_try_settings", tried)
    monkeypatch.setattr(evidence, "_measure", lambda part, pool, rows, folder: asked.update({part: rows}) or [])
    assert evidence.run_study(["safety"], OF_READINGS, 1, to) == []
    assert asked["needed"] == NEW and asked["kept in"] == to
    assert {seed for _, seed in asked["base students"]} == {*SEEDS, *TRIAL_SEEDS}
    assert {row.method: row.setting.get("learning_rate") for row in asked["readings"]} == {"base": None, **dict.fromkeys(rivals, 1e-3), "dpo_nll": 1e-3, **dict.fromkeys(NEW, 2e-3)}
    assert {row.setting["tau"] for row in asked["tau"]} == {0.0, 0.25, 0.5, 0.75, 1.0}
    assert json.loads((home / "safety" / "trials.json").read_text())["chosen"] == rivals


def test_trials_that_were_kept_are_gone_on_from_unless_a_method_would_try_others(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence, "RESULTS", tmp_path / "evidence")
    write_json(tmp_path / "evidence" / "safety" / "trials.json", {"chosen": {"dpo": {"beta": 0.1}}})
    to = tmp_path / "readings"
    assert evidence._tried_before("safety", to) == {"dpo": {"beta": 0.1}}
    for method, settings in (("route", trial_settings("route")), ("filter_nll", trial_settings("filter_nll")[1:])):
        seen = [Metric(experiment="safety", method=method, seed=100, metric=name, value=0.5, n=10, low=0.0, high=1.0) for name in ("reward", "utility")]
        write_trials([(method, setting, Result(method, 100, "", seen)) for setting in settings], to / "safety" / "trials.json")
    assert evidence._tried_before("safety", to) == {"dpo": {"beta": 0.1}, "route": trial_settings("route")[0]}
    assert evidence._tried_before("safety", to, own_trials=True) == {"route": trial_settings("route")[0]}


def made_up(path):
    """Safety in its three cells: filter_nll a constant .02 below DPO without noise, above it elsewhere; rDPO (label) far below."""
    of = {0.0: {"dpo": 0.9, "filter_nll": 0.88, "rdpo_label": 0.5}, 0.3: {"dpo": 0.6, "filter_nll": 0.8, "rdpo_label": 0.5}, 0.5: {"dpo": 0.3, "filter_nll": 0.7, "rdpo_label": 0.5}}
    values = []
    for noise, methods in of.items():
        cell = {} if noise == 0.3 else {"noise": noise}
        values += [(method, metric, cell, [value + 0.01 * seed for seed in range(5)]) for method, value in methods.items() for metric in (behaviour("safety"), "harmlessness", "utility")]
    values += [("rdpo_label", behaviour("safety"), {"tau": tau}, [0.4 + 0.1 * tau + 0.01 * seed for seed in range(5)]) for tau in (0.0, 0.5, 1.0)]
    return Study(table_of(values, path))


def test_the_recipe_is_the_method_that_no_cell_speaks_against(tmp_path):
    rows = against_the_best(made_up(tmp_path / "table.csv"))
    assert len(rows) == 9 and BAR == -0.05
    found = {(row["method"], row["noise"]): (row["best_other"], round(row["difference"], 6), row["passes"]) for row in rows}
    assert found["filter_nll", 0.0] == ("dpo", -0.02, True) and found["filter_nll", 0.5] == ("rdpo_label", 0.2, True)
    assert found["dpo", 0.0] == ("filter_nll", 0.02, True) and found["dpo", 0.3] == ("filter_nll", -0.2, False)
    table = recipe_table(rows).to_dict("records")
    assert [(row["method"], row["cells passed"]) for row in table] == [(METHODS["filter_nll"].label, "3 of 3"), ("DPO", "1 of 3"), ("rDPO (label)", "0 of 3")]
    assert table[1]["worst cell"] == "safety, 50% noise" and table[1]["difference there"] == "-0.40 [-0.40, -0.40]"


def test_tables_by_noise_and_by_tau_and_the_whole_report(tmp_path):
    study = made_up(tmp_path / "table.csv")
    (row,) = [row for row in noise_table(study, "safety", behaviour("safety")).to_dict("records") if row["method"] == "DPO"]
    assert row["0% noise"] == "0.92 [0.90, 0.94]" and row["50% noise"] == "0.32 [0.30, 0.34]"
    taus = tau_table(study).set_index("tau")["safety"].to_dict()
    assert taus == {"0": "0.42 [0.40, 0.44], -0.10 [-0.10, -0.10]", "0.5": "0.47 [0.45, 0.49], -0.05 [-0.05, -0.05]", "1": "0.52 [0.50, 0.54]"}
    written = {path.name for path in write_report(tmp_path, tmp_path / "typeset")}
    assert {"table.md", "readings.png"} <= written and {path.name for path in tmp_path.glob("*/table.md")} == {"table.md"}
    assert {"recipe", "tau", "safety", "safety-utility"} <= {path.parent.name for path in tmp_path.glob("*/table.md")}
    assert json.loads((tmp_path / "contrasts.json").read_text()) == []  # none of the named pairs was measured


@pytest.mark.parametrize("jobs", ["0", "-1"])
def test_the_command_needs_a_worker(jobs, monkeypatch, capsys):
    from common.study import readings

    monkeypatch.setattr("sys.argv", ["readings", "--jobs", jobs])
    with pytest.raises(SystemExit):
        readings.main()
    assert "--jobs must be at least 1" in capsys.readouterr().err


def test_cells_are_those_of_the_first_study():
    assert {row.cell for row in parts("safety")["readings"]} == {Cell("safety"), Cell("safety", noise=0.0), Cell("safety", noise=0.5)}
