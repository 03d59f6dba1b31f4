"""Label noise by hand, and what the rule recommends from a small table (pytest tests/doctor/test_noise.py)."""

import json
from dataclasses import replace

import numpy as np
import pytest

from common.doctor import advice
from common.doctor.advice import knobs_for, recommend
from common.doctor.noise import noise_of, order_right
from common.doctor.rows import DoctorRow
from common.methods import METHODS, is_trained
from common.report.measurements import write_measurements
from common.statistics import wilson_interval


def rows(agree, against=0, tied=0, unscored=0):
    scores = [(1.0, 0.0)] * agree + [(0.0, 1.0)] * against + [(0.5, 0.5)] * tied + [(None, 0.5)] * unscored
    return [DoctorRow(f"line {i}", f"Question {i}", "yes", "no", *pair, split="train") for i, pair in enumerate(scores)]


def test_a_perfect_judge_takes_every_contradiction_for_a_wrong_label():
    noise = noise_of(rows(70, 20, 10, 5))
    low, high = wilson_interval(20, 90)
    assert (noise.scored, noise.tied, noise.untied, noise.contradicted) == (100, 10, 90, 20)
    assert noise.wrong == pytest.approx((2 / 9, low, high))


def test_the_judge_s_error_is_taken_out():
    assert order_right(0.9, 0.8) == pytest.approx(0.72 / 0.74) and order_right(1, 1) == 1
    j = 0.72 / 0.74
    noise = noise_of(rows(70, 30), (0.9, 0.8))
    wrong = 1 - (0.7 - 1 + j) / (2 * j - 1)
    assert noise.wrong[0] == pytest.approx(wrong) and noise.wrong[1] < wrong < noise.wrong[2]
    assert noise_of(rows(100), (0.8, 0.8)).wrong[0] == 0.0  # cut at 0


@pytest.mark.slow
def test_the_formula_on_a_simulated_judge():
    """30 % wrong labels, and a judge whose verdicts on both answers err independently."""
    rng, n, s, c = np.random.default_rng(0), 200_000, 0.85, 0.75
    label_right = rng.random(n) < 0.7
    good, bad = (rng.random(n) < s).astype(float), (rng.random(n) > c).astype(float)
    chosen, rejected = np.where(label_right, good, bad), np.where(label_right, bad, good)
    made = [DoctorRow("", "q", "a", "b", *pair) for pair in zip(chosen.tolist(), rejected.tolist())]
    low, high = noise_of(made, (s, c)).wrong[1:]
    assert low < 0.3 < high and high - low < 0.01


@pytest.mark.parametrize("accuracy, message", [((0.6, 0.6), "little better than chance"), ((1.2, 0.9), "is a share and lies in"), ((0.5, 0.5), "little better")])
def test_a_judge_that_corrects_nothing_is_refused(accuracy, message):
    with pytest.raises(ValueError, match=message):
        noise_of(rows(3), accuracy)


def test_without_untied_rows_there_is_no_number():
    assert noise_of(rows(0, tied=4)).wrong is None and noise_of(rows(0, unscored=4)).wrong is None and noise_of([]).wrong is None


VALUES = {  # cell -> method -> value of each of two seeds, alike in three experiments but for .1
    "{}": {"rdpo": (0.6, 0.8), "rdpo_filter": (0.7, 0.7), "dpo": (0.5, 0.6), "sft": (0.4, 0.4), "base": (0.9, 0.9)},
    '{"noise": 0.0}': {"rdpo": (0.7, 0.7), "rdpo_filter": (0.6, 0.6), "dpo": (0.9, 0.8)},
    '{"noise": 0.5}': {"rdpo": (0.5, 0.5), "rdpo_filter": (0.8, 0.7), "dpo": (0.2, 0.3)},
}
ACCEPTED = {"{}": 220, '{"noise": 0.0}': 300, '{"noise": 0.5}': 160}
"""Of 400 scored pairs, by cell."""
OBJECTIVES = {"safety": "harmlessness", "roleplay-robustness": "neutrality", "sycophancy": "steadiness"}


def study(folder, values, name="evidence", experiments=tuple(OBJECTIVES)):
    lines = [
        {"experiment": experiment, "method": method, "seed": seed, "cell": json.loads(cell), "metric": metric, "value": value + 0.1 * (number - 1), "n": 150, "low": 0.0, "high": 1.0}
        for number, experiment in enumerate(experiments) for cell, methods in values.items() for method, of in methods.items() for seed, value in enumerate(of)
        for metric in (f"{OBJECTIVES[experiment]}_matched", "utility_matched")
    ]  # fmt: skip
    lines += [
        {"experiment": experiment, "method": method, "seed": 0, "cell": json.loads(cell), "metric": "pairs_used", "value": value, "n": 1, "low": value, "high": value}
        for experiment in experiments for cell in values for method, value in (("dsc", ACCEPTED[cell]), ("dpo", 400))
    ]  # fmt: skip
    (folder / name).mkdir(parents=True, exist_ok=True)
    write_measurements(folder / name / "table.csv", lines)
    return folder


def test_the_best_mean_in_the_nearest_cell_wins(tmp_path):
    folder = study(tmp_path, VALUES)
    noisy = recommend(rows(170, 130, 100), folder)
    assert (noisy.method, noisy.cell, noisy.accepted) == ("rdpo_filter", {"noise": 0.5, "pairs": 400}, 170)
    best = noisy.table[0]
    assert (best.method, best.seeds, best.students, best.source) == ("rdpo_filter", 2, 6, "evidence") and best.mean == pytest.approx(0.75)
    assert best.low == pytest.approx(0.75 - 12.7062 * 0.05, abs=1e-4)  # Student's t with one degree of freedom, standard error .05
    assert recommend(rows(310, 10, 80), folder).method == "dpo" and recommend(rows(310, 10, 80), folder).cell["noise"] == 0.0
    assert "is near" in noisy.reasons[1] and "so the two are not separated" in recommend(rows(230, 90, 80), folder).reasons[-1]


def test_what_was_never_measured_is_called_unknown(tmp_path):
    folder = study(tmp_path, VALUES)
    told = recommend(rows(1700, 300), folder).reasons[1]
    assert told == "The accepted share is 0.85 here, of 2000 scored rows. The study has no such cell, so we do not know; the nearest that all experiments share is 0.75 in the study's cell with 0% teacher noise and 400 pairs."


def test_only_scored_rows_to_train_on_are_counted(tmp_path):
    """280 of 350 accepted are .8; with held out rows that all contradict they would be .4, and with unscored ones 1400 rows."""
    folder = study(tmp_path, VALUES)
    held_out = [replace(row, split=split) for row, split in zip(rows(0, against=350), ("test", "validation", "ood") * 117)]
    found = recommend([*rows(280, 70, unscored=700), *held_out], folder)
    assert found.accepted == 280 and found.cell["noise"] == 0.0 and found.reasons[0].startswith("280 of 350 scored rows to train on remain")
    assert found.reasons[1] == "The accepted share is 0.80 here, of 350 scored rows, and 0.75 in the study's cell with 0% teacher noise and 400 pairs, which is near."
    assert recommend([replace(row, split="") for row in rows(280, 70)], folder).accepted == 280


def test_few_accepted_pairs_leave_the_filter_out(tmp_path):
    few = recommend(rows(60, 20, 30), study(tmp_path, VALUES))
    assert few.method == "rdpo" and "that limit is a guess" in few.reasons[0]


@pytest.mark.parametrize("made", [[], rows(1), rows(19), rows(0, unscored=19), rows(19, unscored=100)])
def test_too_few_usable_rows_get_no_method(made, tmp_path):
    found = recommend(made, study(tmp_path, VALUES))
    assert (found.method, found.knobs, found.cell, found.table) == ("", {}, None, []) and "we do not know" in found.reasons[0] and len(found.reasons) == 1


def test_one_row_to_train_on_is_one(tmp_path):
    held_out = lambda made: [made[0], *(replace(row, split="test") for row in made[1:])]  # noqa: E731
    none, tied = (recommend(held_out(made), study(tmp_path, VALUES)).reasons[0] for made in (rows(0, unscored=20), rows(0, tied=20)))
    assert none == "The one row to train on lacks a score, so only methods without scores are compared."
    assert tied == "The one scored row to train on is a tie, so only methods without scores are compared."


def test_without_scores_only_methods_without_scores_are_compared(tmp_path):
    folder = study(tmp_path, VALUES)
    none, ties = recommend(rows(0, unscored=300), folder), recommend(rows(0, tied=300), folder)
    assert none.method == ties.method == "dpo" and none.reasons[0].startswith("None of the 300 rows to train on") and ties.reasons[0].startswith("All 300 scored rows to train on are ties")
    assert none.reasons[1].startswith("Noise is unknown here")


def test_a_later_study_s_rows_are_taken_where_there_are_some(tmp_path):
    study(tmp_path, VALUES)
    later = recommend(rows(230, 90, 80), study(tmp_path, {"{}": {"rdpo_label": (0.9, 0.9), "rdpo": (0.3, 0.3)}}, "readings"))
    assert (later.method, later.table[0].source) == ("rdpo_label", "readings")
    assert later.reasons[-1] == "No paired difference to the next, DPO on accepted pairs, is known: the two were measured in two studies, on other students."
    assert {one.method: (round(one.mean, 2), one.source) for one in later.table}["rdpo"] == (0.3, "readings") and {one.method for one in later.table} == {"rdpo_label", "rdpo_filter", "dpo", "sft", "rdpo"}
    assert study(tmp_path, {"{}": {"filter_nll": (1.0, 1.0)}}, "readings", ["safety"]) and recommend(rows(230, 90, 80), tmp_path).method == "rdpo"  # one experiment is not three
    paired = recommend(rows(230, 90, 80), study(tmp_path, {"{}": {"rdpo_label": (0.9, 0.9), "rdpo": (0.3, 0.4), "rdpo_filter": (0.9, 0.7)}}, "readings")).reasons[-1]
    assert paired == "Its difference to the next, DPO on accepted pairs, is +0.10 [-1.17, +1.37] on the same 2 seeds, so the two are not separated."  # 0 and .2


def test_knobs_are_the_median_of_the_trials_else_the_default(tmp_path):
    for experiment, alpha in zip(OBJECTIVES, (1.0, 3.0, 2.5)):
        (tmp_path / "evidence" / experiment).mkdir(parents=True)
        (tmp_path / "evidence" / experiment / "trials.json").write_text(json.dumps({"chosen": {"rdpo": {"alpha": alpha}, "rdpo_label": {"tau": 0.4}}}))
    assert knobs_for("rdpo", tmp_path) == knobs_for("rdpo_nll", tmp_path) == {"alpha": 2.5}
    assert knobs_for("rdpo_label", tmp_path) == {"tau": 0.4, "eta": 1.0} and knobs_for("sft", tmp_path) == {}


def test_without_results_the_recommendation_has_no_numbers(tmp_path):
    methods = {name: recommend(made, tmp_path) for name, made in {"scores": rows(200), "few accepted": rows(20), "no scores": rows(0, unscored=20)}.items()}
    assert {name: one.method for name, one in methods.items()} == advice.WITHOUT_RESULTS
    assert all(one.table == [] and "recommendation without numbers" in one.reasons[-1] for one in methods.values())


def test_the_committed_study_gives_an_answer():
    found = recommend(rows(220, 90, 80), advice.RESULTS)
    assert is_trained(found.method) and METHODS[found.method].sees_scores and found.cell == {"noise": 0.3, "pairs": 400} and found.table[0].students >= 15
    assert found.method == "rdpo_filter" and found.table[0].mean == pytest.approx(0.861, abs=5e-4) and (found.table[0].source, found.table[0].seeds) == ("readings", 10)
