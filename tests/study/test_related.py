"""The study of the related systems: its design, its report and what rows in rounds asked for (pytest tests/study/test_related.py)."""

import json
from types import SimpleNamespace

import pytest
from test_study import table_of

from common.methods import METHODS
from common.report.tables import OBJECTIVES
from common.storage import write_json
from common.study import cells
from common.study.cells import SETTINGS, folder_of, rounds_of, run_row
from common.study.design import CONTROLS, EARLY, FEW, OF_RELATED, RELATED, TWINS, Cell, Row, parts, trial_settings, with_setting
from common.study.related import against_table, systems_table, write_report
from common.study.rows import Study, behaviour
from common.training.comparison import Experiment


@pytest.mark.parametrize("experiment", OBJECTIVES)
def test_every_system_has_its_control_on_the_same_students(experiment):
    of = {part: rows for part, rows in parts(experiment).items() if part in OF_RELATED}
    assert set(of) == set(OF_RELATED) and {row.seed for rows in of.values() for row in rows} == set(FEW)
    assert {row.method for row in of["related"]} == set(RELATED) >= {method for pair in CONTROLS for method in pair}
    assert all(row.cell == Cell(experiment, edits="minimal") for row in of["edits"])
    assert {(row.method, row.changed["steps_share"]) for row in of["early"]} == {("dpo", EARLY), ("dpo_expo", EARLY)}


def test_a_twin_has_its_control_s_setting_and_its_own_knobs():
    assert {("iterative_nll", "iterative_dpo"), ("rwr", "sft"), ("selm", "iterative_dpo")} <= set(TWINS) and not {("sapo", "sft"), ("dpo_expo", "dpo")} & set(TWINS)
    chosen = {method: {**trial_settings(method)[number], "epochs": number} for number, method in enumerate(["selm", "iterative_dpo"])}
    (row, *_) = [row for row in parts("safety")["twins"] if row.method == "selm"]
    setting = with_setting(row, chosen, {}).setting
    assert setting == {**chosen["iterative_dpo"], "optimism": chosen["selm"]["optimism"]} and setting["epochs"] == 1
    (unweighted, *_) = [row for row in parts("safety")["twins"] if "rwr_temperature" in row.changed]
    assert with_setting(unweighted, {"rwr": trial_settings("rwr")[0]}, {}).setting["rwr_temperature"] == 1e6


@pytest.mark.parametrize("method", ["mrpo", "dpo_second", "multi_dpo"])
def test_a_second_reference_is_the_unquantised_student_and_in_the_mark_of_the_rows_that_read_it(method):
    assert SETTINGS.changed(**trial_settings(method)[0]).as_dict(method)["second_reference"] == "unquantised"
    assert "second_reference" not in SETTINGS.as_dict("dpo")


@pytest.mark.parametrize("method", RELATED)
def test_every_row_is_trained_with_the_setting_chosen_for_it(method, tmp_path, monkeypatch):
    """An extrapolated row too, whose training is that of the method that it turns up."""
    found = {}

    class Asked(Experiment):
        def result(self, method, seed):
            found[method] = self.settings_of(method, seed)

    monkeypatch.setattr(cells, "Experiment", Asked)
    monkeypatch.setattr(cells, "admitted_student", lambda *given: tmp_path)
    monkeypatch.setattr(cells, "scored_pairs", lambda *given: [])
    run_row(Row(Cell(), method, 0, {"learning_rate": 0.00123, "sft_learning_rate": 0.00123, "epochs": 2} if METHODS[method].tuned_as else {}), tmp_path)
    assert (found[method].learning_rate, found[method].epochs) == ((0.00123, 2) if METHODS[method].tuned_as else (SETTINGS.learning_rate, SETTINGS.epochs))


def test_a_second_reference_is_the_student_of_the_same_seed_and_pairs(tmp_path, monkeypatch):
    chosen = {METHODS[method].tuned_as: {"learning_rate": 1e-3, "epochs": 1} for method in RELATED if METHODS[method].tuned_as}
    rows = [with_setting(row, chosen, chosen) for row in parts("safety")["second"]]
    assert {(row.method, row.seed) for row in rows} == {(method, seed) for method in ("mrpo", "dpo_second", "multi_dpo") for seed in FEW}
    assert all(row.second == Row(Cell(), "sft", row.seed, chosen["sft"]) and row.setting["second_reference"] == "sft" for row in rows)
    made, given = [], {}
    for name in ("admitted_student", "evaluator_of", "scored_pairs", "_evaluations"):
        monkeypatch.setattr(cells, name, lambda *of: SimpleNamespace(reward_judge=SimpleNamespace(name="judge")))
    monkeypatch.setattr(cells, "Experiment", lambda *of, tuned, **more: given.update(tuned) or SimpleNamespace(result=lambda *row: made.append(row)))
    cells.run_row(rows[0], tmp_path)
    assert made == [("mrpo", 0)] and given["mrpo"]["second_reference"] == f"adapter:{cells.own_folder(rows[0].second, tmp_path)}/adapter"


def test_a_row_in_rounds_asked_for_what_its_rounds_add_up_to(tmp_path):
    row = Row(Cell(), "iterative_dpo", 2, {"beta": 0.3})
    assert rounds_of(row, tmp_path) == {}
    for number, verdicts in enumerate((5, 7)):
        write_json(folder_of(row, tmp_path) / "seed-2" / "iterative_dpo" / f"round-{number}-x" / "round.json", {"answers": 10, "verdicts": verdicts})
    assert rounds_of(row, tmp_path) == {"student_answers": 20, "judge_verdicts": 12}


def test_the_report_pairs_every_row_with_its_control(tmp_path):
    metric = behaviour("safety")
    of = {("dpo", ()): 0.5, ("dpo_expo", ()): 0.6, ("dpo_expo", (("steps_share", EARLY),)): 0.45, ("ca", ()): 0.7, ("ca", (("ca_score", 0.0),)): 0.2}
    values = [(method, metric, dict(cell), [value + 0.01 * seed for seed in range(5)]) for (method, cell), value in of.items()]
    values += [("iterative_dpo", name, {}, [400.0 + seed for seed in range(5)]) for name in ("student_answers", "judge_verdicts")]
    values += [("iterative_dpo", metric, {}, [0.4] * 5)]
    study = Study(table_of(values, tmp_path / "table.csv"))
    (row,) = [row for row in systems_table(study, "safety").to_dict("records") if row["method"] == METHODS["iterative_dpo"].label]
    assert row["judge's verdicts in rounds"].startswith("402.0 [") and row["at matched utility"] == "0.40 [0.40, 0.40]"
    (row,) = against_table(study, {"early": (("dpo_expo", {"steps_share": EARLY}), ("dpo", {}))}).to_dict("records")
    assert row == {"row": "early", "safety": "0.47 [0.45, 0.49], -0.05 [-0.05, -0.05]"}
    write_report(tmp_path, tmp_path / "typeset")
    assert {"contrasts", "safety", "early", "asked"} == {path.parent.name for path in tmp_path.glob("*/table.md")}
    (contrast, *_) = [one for one in json.loads((tmp_path / "contrasts.json").read_text()) if one["contrast"] == "dpo_expo - dpo"]
    assert contrast["difference"] == pytest.approx(0.1)
