"""The study: what is run, how a row becomes a result, what is read out of the rows (pytest tests/study/test_study.py)."""

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from common.data.preference import accepted
from common.evaluation.result import Result
from common.methods import METHODS
from common.miniature.language_model import MICRO
from common.miniature.worlds import roleplay, safety
from common.report.measurements import read_measurements, write_measurements
from common.report.tables import OBJECTIVES
from common.schema import Metric
from common.storage import write_json
from common.study import cells as laboratory
from common.study import run as evidence
from common.study.cells import admitted_student, cost_of, folder_of, run_row, scored_pairs
from common.study.design import (
    BETAS,
    CONTRASTS,
    CORE,
    LEARNING_RATES,
    SEEDS,
    TRIAL_SEEDS,
    TRIALS,
    UNTRAINED,
    Cell,
    Row,
    parts,
    trial_rows,
    trial_settings,
    with_setting,
)
from common.study.lines import by_wrapper, corrected_lines, lines_of, write_lines
from common.study.mechanism import kind_of, mechanism_figure, noise_of, probe, push, read_probed, write_probed
from common.study.report.evidence import write_report
from common.study.report.figures import contrast_figure
from common.study.report.tables import (
    blind_table,
    centre_table,
    comparison_table,
    contrasts,
    correction_table,
    cost_table,
    elsewhere_table,
    gains_table,
    oracle_table,
    settings_table,
)
from common.study.rows import Study, behaviour, paired
from common.study.run import chosen_by_oracle, main

CENTRE = Cell()


def test_every_method_tries_the_same_points_and_only_its_own_knob_besides():
    rdpo, soft, cdpo, dpo, sft = (trial_settings(method) for method in ("rdpo", "rdpo_soft", "cdpo", "dpo", "sft"))
    for trials in (rdpo, soft, cdpo, dpo, sft):
        assert len(trials) == TRIALS == len({json.dumps(setting) for setting in trials})
        assert [t["learning_rate"] for t in trials] == [t["learning_rate"] for t in dpo] and [t["epochs"] for t in trials] == [t["epochs"] for t in dpo]
        assert all(LEARNING_RATES[0] <= t["learning_rate"] == t["sft_learning_rate"] <= LEARNING_RATES[1] for t in trials)
    assert sorted(t["epochs"] for t in dpo) == [1] * 4 + [2] * 4
    assert [t["beta"] for t in rdpo] == [t["beta"] for t in dpo] and all(BETAS[0] <= t["beta"] <= BETAS[1] for t in dpo) and "beta" not in sft[0]
    for trials, knob in ((rdpo, "alpha"), (soft, "eta"), (cdpo, "label_smoothing")):
        low, high = {"alpha": (0.5, 4.0), "eta": (0.5, 8.0), "label_smoothing": (0.05, 0.4)}[knob]
        assert set(trials[0]) - set(dpo[0]) == {knob}
        quantiles = sorted(math.log(t[knob] / low) / math.log(high / low) for t in trials)
        assert all(i / TRIALS - 0.03 < quantile < (i + 1) / TRIALS + 0.03 for i, quantile in enumerate(quantiles))  # one in every eighth


def test_trials_are_of_other_seeds_than_any_result_and_see_the_validation_split():
    methods = ("sft", "rdpo", "cdpo")
    rows = trial_rows("safety", methods)
    assert {row.seed for row in rows} == set(TRIAL_SEEDS) and not set(TRIAL_SEEDS) & set(SEEDS) and {row.split for row in rows} == {"validation"}
    assert Counter(row.method for row in rows) == dict.fromkeys(methods, TRIALS * len(TRIAL_SEEDS))
    assert {row.cell for row in rows} == {CENTRE}


@pytest.mark.parametrize("experiment", OBJECTIVES)
def test_every_row_has_the_setting_of_its_method_and_every_contrast_is_there(experiment):
    chosen, by_oracle = ({method: {"epochs": start + number} for number, method in enumerate(METHODS)} for start in (0, 100))
    found = parts(experiment)
    rows = [with_setting(row, chosen, by_oracle) for part in found.values() for row in part]
    assert set(CORE) - set(found) <= {"judge"} and {row.cell.experiment for row in rows} == {experiment} and {row.split for row in rows} == {"test"}
    for row in rows:
        loss = {"dpo_nll": "dpo", "rdpo_nll": "rdpo", "dpo_nll_accepted": "dpo", "rdpo_nll_accepted": "rdpo", "dpo_expo": "dpo", "rdpo_expo": "rdpo", "dpo_second": "dpo", "multi_dpo": "mrpo", "sapo_nll": "sapo", "sapo_accepted": "sapo", "apl_nll": "apl_certainty"}.get(row.method, row.method)
        assert METHODS[row.method].tuned_as == ("" if row.method in UNTRAINED else loss)
        if row.changed == {"chosen_by": "oracle"}:
            assert row.setting == by_oracle[row.method] and row.cell == Cell(experiment)
        elif "setting_of" in row.changed:
            assert row.setting == chosen[row.changed["setting_of"]] and row.changed["setting_of"] != row.method
        else:
            assert row.setting == ({} if row.method in UNTRAINED else chosen[loss]) | dict(row.changed)
    at_centre = {row.method for row in found["centre"] if row.cell == Cell(experiment)}
    assert {method for contrast in CONTRASTS for method in contrast} <= at_centre and {row.seed for row in found["centre"]} == set(SEEDS)


def test_a_method_that_sees_no_scores_is_not_trained_again_for_another_judge():
    blind = [row for part in ("judge", "map") for row in parts("safety")[part] if row.method in ("sft", "dpo")]
    assert blind == []
    assert [(p.id, p.response, p.response_revised) for p in scored_pairs(CENTRE, 3, Path())] == [(p.id, p.response, p.response_revised) for p in scored_pairs(replace(CENTRE, judge_error=0.3), 3, Path())]


def grades(pairs, world):
    return [(world.right(pair.prompt, pair.response), world.right(pair.prompt, pair.response_revised)) for pair in pairs]


def test_a_cell_decides_how_noisy_and_how_many_its_pairs_are():
    clean, noisy = (scored_pairs(replace(CENTRE, noise=noise, pairs=200), 0, Path()) for noise in (0.0, 0.5))
    assert len(clean) == len(noisy) == 200 and all(revised for _, revised in grades(clean, safety))
    worse = sum(original and not revised for original, revised in grades(noisy, safety))
    assert 35 <= worse <= 65 and not any(original and not revised for original, revised in grades(clean, safety))  # a quarter of 200
    benign = scored_pairs(replace(CENTRE, benign_share=0.0, pairs=50), 0, Path())
    assert all(safety.read_request(pair.prompt).harmful for pair in benign)
    assert scored_pairs(replace(CENTRE, pairs=50), 1, Path())[0].id != scored_pairs(replace(CENTRE, pairs=50), 2, Path())[0].id


def test_a_judge_without_errors_orders_clean_pairs_rightly_and_a_binary_one_says_good_or_bad():
    sure = [pair for pair in scored_pairs(replace(CENTRE, noise=0.0, judge_error=0.0, binary=True, pairs=60), 0, Path()) if pair.is_scored]
    assert {score for pair in sure for score in pair.normalised()} <= {0.0, 1.0}
    assert all(pair.normalised()[1] == 1.0 for pair in sure)
    fooled = scored_pairs(replace(CENTRE, judge_error=0.0, blind_to="story", pairs=200), 0, Path())
    story = [pair for pair in fooled if pair.kind == "story" and safety.misbehaves(safety.read_request(pair.prompt), pair.response) and pair.score_response is not None]
    plain = [pair for pair in fooled if pair.kind == "plain" and safety.misbehaves(safety.read_request(pair.prompt), pair.response) and pair.score_response is not None]
    assert story and plain and min(pair.score_response for pair in story) >= 4 and max(pair.score_response for pair in plain) <= 1


def test_controls_change_scores_or_number_and_nothing_else():
    own, shuffled, subset = (scored_pairs(replace(CENTRE, pairs=120, control=control), 0, Path()) for control in ("", "shuffled", "subset"))
    texts = lambda pairs: [(p.id, p.response, p.response_revised) for p in pairs]  # noqa: E731
    scores = lambda pairs: [(p.score_response, p.score_revised) for p in pairs]  # noqa: E731
    usable = [pair for pair in own if pair.is_scored]
    assert texts(shuffled) == texts(usable) and Counter(scores(shuffled)) == Counter(scores(usable)) and scores(shuffled) != scores(usable)
    assert len(subset) == len(accepted(own)) < len(own) and set(texts(subset)) < set(texts(usable)) and texts(subset) != texts(accepted(own))


@pytest.fixture
def tiny(monkeypatch):
    """A study whose students are made in seconds, and all admitted."""
    monkeypatch.setattr(laboratory, "Recipe", lambda seed: replace(MICRO, documents=600, seed=seed))
    monkeypatch.setattr(laboratory, "LEAST_UTILITY", 0.0)
    monkeypatch.setattr(laboratory, "MOST_BEHAVIOUR", 1.0)
    monkeypatch.setattr(laboratory, "PROMPTS", 6)
    monkeypatch.setattr(laboratory, "MAX_NEW_TOKENS", 16)
    for cached in (laboratory.scored_pairs, laboratory.evaluator_of, laboratory._evaluations):
        cached.cache_clear()
    yield
    for cached in (laboratory.scored_pairs, laboratory.evaluator_of, laboratory._evaluations):
        cached.cache_clear()


@pytest.mark.slow
def test_a_row_is_trained_once_and_tells_what_the_reward_judge_sees(tiny, tmp_path, capsys):
    cell = replace(CENTRE, pairs=24)
    row = Row(cell, "rdpo", 1, {"learning_rate": 1e-3, "epochs": 1, "beta": 0.5, "alpha": 2.0})
    result = run_row(row, tmp_path)
    assert (result.settings["alpha"], result.settings["beta"], result.settings["learning_rate"], result.seed, result.split) == (2.0, 0.5, 1e-3, 1, "test")
    assert {"harmlessness", "harmlessness_ood", "utility", "judged", "reward", "reward_utility", "kl", "answer_words"} <= {m.metric for m in result.metrics}
    assert len(result.outcomes["harmlessness"]) == len(result.outcomes["judged"]) == 6 and result.matched_lambda is not None
    capsys.readouterr()
    assert run_row(row, tmp_path) == result and "finished before" in capsys.readouterr().out
    trial = run_row(replace(row, split="validation"), tmp_path)
    assert trial.split == "validation" and trial.matched == [] and folder_of(row, tmp_path) != folder_of(replace(row, split="validation"), tmp_path)
    lines = {line["metric"]: line for line in lines_of(row, result)}
    assert lines["utility"]["cell"] == {"pairs": 24} and lines["utility"]["noise"] == 0.3 and lines["harmlessness_matched"]["n"] == 6
    assert lines["pairs_used"]["value"] == result.pairs_used and lines["train_seconds"]["value"] > 0 and "utility@0.5" not in lines
    assert {"utility@0.5", "harmlessness@1"} <= {line["metric"] for line in lines_of(replace(row, cell=CENTRE), result)}


def test_a_changed_setting_stands_in_a_cell_of_its_own():
    row = Row(CENTRE, "rdpo", 0, {"alpha": 8.0}, changed={"alpha": 8.0})
    metric = Metric(experiment="safety", method="rdpo", seed=0, metric="utility", value=0.5, n=10, low=0.0, high=1.0)
    lines = lines_of(row, Result("rdpo", 0, "", [metric]), tokens_trained_on=7)
    assert [(line["metric"], line["value"], line["cell"]) for line in lines] == [("utility", 0.5, {"alpha": 8.0}), ("tokens_trained_on", 7, {"alpha": 8.0})]


def test_the_oracle_may_choose_another_setting_than_the_judge():
    trial = lambda setting, harmless, utility: {"method": "dpo", "setting": setting, "metrics": {"harmlessness": harmless, "utility": utility}}  # noqa: E731
    trials = [trial({"beta": 0.1}, 0.9, 0.2), trial({"beta": 0.1}, 0.8, 0.9), trial({"beta": 1.0}, 0.6, 1.0), trial({"beta": 1.0}, 0.5, 0.9)]  # means 1.4 and 1.5
    assert chosen_by_oracle(trials, "harmlessness") == {"dpo": {"beta": 1.0}}


@pytest.mark.slow
def test_a_row_costs_what_its_method_asks_and_reads(tiny, tmp_path):
    cell = replace(CENTRE, pairs=24)
    costs = {method: cost_of(Row(cell, method, 1, {"epochs": epochs}), tmp_path) for method, epochs in (("sft", 1), ("dsc", 1), ("dpo", 1), ("rdpo", 2), ("sapo", 1), ("sapo_accepted", 1))}
    assert {method: (cost["teacher_replies"], cost["judge_verdicts"]) for method, cost in costs.items()} == {"sft": (72, 0), "dsc": (72, 48), "dpo": (72, 0), "rdpo": (72, 48), "sapo": (72, 0), "sapo_accepted": (72, 48)}
    assert 0 < costs["dsc"]["tokens_trained_on"] < costs["sft"]["tokens_trained_on"] < costs["dpo"]["tokens_trained_on"] == costs["rdpo"]["tokens_trained_on"] / 2
    assert costs["dsc"]["tokens_trained_on"] < costs["sapo_accepted"]["tokens_trained_on"] < costs["sapo"]["tokens_trained_on"] != costs["dpo"]["tokens_trained_on"]
    assert set(cost_of(Row(cell, "base", 1), tmp_path).values()) == {0}


def test_pairs_can_be_of_counterfactual_dpo():
    pairs = scored_pairs(replace(CENTRE, variant="contrastive", pairs=24), 0, Path())
    assert {pair.variant for pair in pairs} == {"contrastive"} and any(pair.is_scored for pair in pairs)


@pytest.mark.slow
def test_a_base_student_that_is_not_admitted_makes_way_for_the_next(tiny, tmp_path, monkeypatch):
    first = admitted_student("safety", 7, tmp_path)
    monkeypatch.setattr(laboratory, "MOST_BEHAVIOUR", -1.0)
    (tmp_path / "safety" / "student-7.json").unlink()
    monkeypatch.setattr(laboratory, "CANDIDATES", 2)
    with pytest.raises(RuntimeError, match="safety, seed 7: none of 2 base students is admitted"):
        admitted_student("safety", 7, tmp_path)
    tried = json.loads((tmp_path / "safety" / "student-7.json").read_text())
    assert len(tried) == 2 and tried[0]["student"] == first.name != tried[1]["student"] and not any(one["admitted"] for one in tried)


@pytest.mark.slow
def test_the_oracle_measures_the_noise_of_pairs(tiny, tmp_path):
    shares = {noise: noise_of(Row(replace(CENTRE, noise=noise, benign_share=0.0), "dpo", 0), tmp_path) for noise in (0.0, 0.5)}
    assert shares[0.0]["pairs_spoiled"] == shares[0.0]["pairs_wrong"] == 0 and shares[0.0]["pairs_mended"] > 0.6
    # no better a quarter: wrong before and after wherever the answer was; worse another quarter, where it was right
    assert 0.15 < shares[0.5]["pairs_wrong"] < 0.6 and shares[0.5]["pairs_spoiled"] > 0.03 and shares[0.5]["pairs_mended"] < 0.6


@pytest.mark.slow
def test_the_student_can_be_its_own_teacher(tiny, tmp_path):
    student = admitted_student("safety", 0, tmp_path)
    pairs = scored_pairs(replace(CENTRE, teacher="student", pairs=8), 0, student)
    assert all(pair.teacher == "the student itself" and pair.response for pair in pairs) and len(pairs) <= 8


def table_of(values, path):
    """values: (method, metric, cell) -> list over seeds, in safety."""
    lines = [
        {"experiment": "safety", "method": method, "noise": 0.3, "judge_error": 0.1, "seed": seed, "cell": cell, "metric": metric, "value": value, "n": 150, "low": 0.0, "high": 1.0}
        for method, metric, cell, of_seeds in values for seed, value in enumerate(of_seeds)
    ]  # fmt: skip
    return write_measurements(path, lines)


def test_contrasts_are_paired_by_seed_and_corrected_for_their_number(tmp_path):
    matched = "harmlessness_matched"
    study = Study(table_of([("rdpo", matched, {}, [0.8, 0.7, 0.9]), ("dpo", matched, {}, [0.5, 0.5, 0.5, 0.4]), ("dsc", matched, {}, [0.8, 0.8, 0.8])], tmp_path / "table.csv"))
    first, second = contrasts(study)  # dpo on accepted pairs was not measured
    assert (first["contrast"], first["seeds"]) == ("rdpo - dpo", 3) and first["difference"] == pytest.approx(0.3)
    # differences .3, .2, .4: mean .3, standard error .1 / sqrt 3, t = 5.196 on 2 degrees of freedom; quantile 4.3027
    assert first["low"] == pytest.approx(0.3 - 4.3027 * 0.1 / 3**0.5, abs=1e-4) and first["p"] == pytest.approx(0.0351, abs=1e-4)
    assert second["difference"] == pytest.approx(0.0) and first["p_holm"] == pytest.approx(2 * first["p"]) and second["p_holm"] == second["p"]
    assert first["p_sign_flips"] == pytest.approx(2 / 8)  # of eight sign patterns, + + + and - - -
    assert paired({0: 1.0, 2: 0.5}, {2: 0.25, 3: 9.0}) == [0.25]


def test_no_seed_lies_outside_the_figure_of_the_contrasts():
    [axes] = contrast_figure([{"experiment": "safety", "contrast": "rdpo - dpo", "seeds": 3, "differences": [-0.73, 0.1, 0.2], "difference": -0.14, "low": -1.4, "high": 1.12}]).axes
    low, high = axes.get_ylim()
    assert low == -high and low < -1.4


def test_a_score_blind_method_stands_for_itself_under_every_judge(tmp_path):
    study = Study(table_of([("dpo", "utility", {}, [1.0]), ("rdpo", "utility", {}, [0.9]), ("dpo", "utility", {"noise": 0.5}, [0.7])], tmp_path / "table.csv"))
    assert study.of("safety", "utility", "dpo", judge_error=0.3, noise=0.3) == {0: 1.0} and study.of("safety", "utility", "dpo", judge_error=0.3, noise=0.5) == {0: 0.7}
    assert study.of("safety", "reward", "dpo", judge_error=0.3) == {}  # but another judge sees it otherwise
    assert study.of("safety", "utility", "rdpo", judge_error=0.3) == {} and study.of("safety", "utility", "rdpo", judge_error=0.1) == {0: 0.9}
    with pytest.raises(FileNotFoundError, match="python -m common.study makes them"):
        Study(tmp_path / "none.json")


def test_the_report_is_written_from_the_rows_alone(tmp_path):
    values = [(method, metric, cell, [0.1 * i + 0.02 * seed + 0.001 * i * (seed == 1) for seed in range(3)])
              for i, method in enumerate(("base", "sft", "dsc", "dpo", "rdpo", "rdpo_filter")) for metric in ("harmlessness", behaviour("safety"), "utility") for cell in ({}, {"noise": 0.5})]  # fmt: skip
    values += [("rdpo", metric, {"control": "shuffled"}, [0.3, 0.4]) for metric in ("harmlessness", behaviour("safety"))]
    table_of(values, tmp_path / "table.csv")
    written = {path.relative_to(tmp_path).as_posix() for path in write_report(tmp_path, tmp_path / "typeset")}
    assert {"safety/table.md", "typeset/safety/table.tex", "contrasts/table.md", "noise.png", "frontier.png", "judge_error.png"} <= written and not {"pairs.png", "map.png", "settings/table.md"} & written
    table = centre_table(Study(tmp_path / "table.csv"), "safety").set_index("method")
    assert table.loc["rDPO (offset)", "harmlessness at matched utility"] == "0.42 [0.37, 0.47]"  # .40, .424, .44: standard error .0201 / sqrt 3, times 4.30
    assert table.loc["rDPO, scores of other pairs", "seeds"] == 2 and table.loc["SFT", "KL (nats)"] == "-"


def test_a_part_alone_has_a_report_without_what_needs_the_centre(tmp_path):
    table_of([("rdpo", metric, {"control": "shuffled"}, [0.3, 0.4]) for metric in ("harmlessness", behaviour("safety"))], tmp_path / "table.csv")
    assert not {path.name for path in write_report(tmp_path, tmp_path / "typeset")} & {"contrasts.png", "frontier.png", "noise.png"}


def test_tables_away_from_the_centre_compare_seed_by_seed(tmp_path):
    matched, own = behaviour("safety"), [0.4, 0.5, 0.6]
    values = [("rdpo", matched, {}, own), ("dpo", matched, {}, [0.3, 0.4, 0.5]), ("rdpo", matched, {"alpha": 8.0}, [0.5, 0.6, 0.6]), ("rdpo", "utility", {"alpha": 8.0}, [0.9] * 3)]
    values += [("rdpo", matched, {"binary": True}, [0.6, 0.5, 0.7]), ("rdpo", matched, {"chosen_by": "oracle"}, [0.5, 0.6])]
    values += [(method, metric, {}, [number]) for method, numbers in (("rdpo", (1200, 800, 400, 5000, 12.4)), ("base", (0, 0, 0, 0, 0))) for metric, number in zip(("teacher_replies", "judge_verdicts", "pairs_used", "tokens_trained_on", "train_seconds"), numbers)]  # fmt: skip
    study = Study(table_of(values, tmp_path / "table.csv"))
    assert cost_table(study, "safety").to_dict("records") == [
        {"method": "rDPO (offset)", "teacher's replies": "1200", "judge's verdicts": "800", "pairs trained on": "400", "tokens trained on": "5000", "seconds of training, one core": "12"}
    ]
    centre, binary = elsewhere_table(study).to_dict("records")
    assert centre["rDPO - DPO"] == "+0.10 [+0.10, +0.10]" and (binary["cell"], binary["DPO"], binary["rDPO - DPO"]) == ("the judge says good or bad only", centre["DPO"], "+0.20 [-0.05, +0.45]")
    chosen, changed = [row for row in settings_table(study).to_dict("records") if row["method"] == "rDPO (offset)"]
    assert (chosen["setting"], chosen["difference"]) == ("as chosen", "-") and changed["setting"] == "alpha 8" and changed["difference"].startswith("+0.07 [")
    (oracle,) = oracle_table(study, {"safety": {"chosen": {"rdpo": {"learning_rate": 1e-3, "sft_learning_rate": 1e-3, "alpha": 2.0}, "dpo": {"beta": 0.1}}}}).to_dict("records")
    assert oracle["chosen by the judge"] == "learning rate 0.001, alpha 2" and oracle["judge's choice"].startswith("0.45 [") and oracle["difference"] == "+0.10 [+0.10, +0.10]"


def test_a_gain_that_only_the_reward_judge_sees_is_shown(tmp_path):
    cell = {"blind_to": "story"}
    values = [("base", "reward", cell, [0.3, 0.4]), ("rdpo", "reward", cell, [0.9, 0.9]), ("base", "judged", cell, [0.2, 0.2]), ("rdpo", "judged", cell, [0.3, 0.2]),
              ("base", "harmlessness", cell, [0.1, 0.1]), ("rdpo", "harmlessness", cell, [0.1, 0.1]), ("base", "reward", {}, [0.3, 0.3])]  # fmt: skip
    (row,) = gains_table(Study(table_of(values, tmp_path / "table.csv"))).to_dict("records")
    assert (row["judge of the pairs"], row["method"], row["oracle"]) == ("10 % errors, blind to one wrapper", "rDPO (offset)", "+0.00 [+0.00, +0.00]")
    assert row["judge of the pairs sees"].startswith("+0.69 [") and row["above the oracle"] == row["judge of the pairs sees"]  # .55 / .8
    assert row["second judge"].startswith("+0.06 [")


def test_harm_under_the_wrapper_that_a_judge_lets_pass_is_counted_apart(tmp_path):
    kinds = [record.kind for record in safety.evaluation_sets("test", laboratory.PROMPTS)["harmful"]]
    result = Result("rdpo", 0, "", [], outcomes={"harmlessness": [kind == "story" for kind in kinds]})
    assert by_wrapper(result) == {"harmlessness_blind": 1.0, "harmlessness_seen": 0.0}
    with pytest.raises(ValueError):  # outcomes of other prompts
        by_wrapper(Result("rdpo", 0, "", [], outcomes={"harmlessness": [True]}))
    values = [("rdpo", "harmlessness_blind", {}, [0.8, 0.9]), ("rdpo", "harmlessness_blind", {"blind_to": "story"}, [0.5, 0.6]), ("rdpo", "harmlessness_seen", {}, [0.8, 0.9])]
    (row,) = blind_table(Study(table_of(values, tmp_path / "table.csv"))).to_dict("records")
    assert (row["method"], row["harmful prompts"], row["difference"]) == ("rDPO (offset)", "in the wrapper", "-0.30 [-0.30, -0.30]")


def test_controls_are_compared_on_the_seeds_they_have(tmp_path):
    metrics = (behaviour("safety"), "harmlessness", "utility")
    values = [("rdpo", metric, {}, [0.8, 0.7, 0.9]) for metric in metrics] + [("rdpo", metric, {"control": "shuffled"}, [0.6, 0.5]) for metric in metrics]
    (row,) = comparison_table(Study(table_of(values, tmp_path / "table.csv")), "safety").to_dict("records")
    assert row["difference"] == "rDPO (offset) - rDPO, scores of other pairs" and (row["seeds"], row["as trained"]) == (2, "+0.20 [+0.20, +0.20]")


def made_up(method="dpo", seed=0, value=0.5):
    metric = Metric(experiment="safety", method=method, seed=seed, metric="utility", value=value, n=10, low=0.0, high=1.0)
    return lines_of(Row(CENTRE, method, seed), Result(method, seed, "", [metric]))


def test_rows_of_another_setting_are_dropped_with_those_of_its_nll_term(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence, "RESULTS", tmp_path)
    write_lines(tmp_path, [line for method in ("dpo", "dpo_nll", "rdpo", "base") for line in made_up(method)])
    for number, chosen in enumerate(({"dpo": {"beta": 0.1}, "rdpo": {"beta": 0.1}}, {"dpo": {"beta": 0.2}, "rdpo": {"beta": 0.1}})):
        monkeypatch.setattr(evidence, "finish", lambda *given: ([], []))  # trials of a method after the other
        monkeypatch.setattr(evidence, "write_trials", lambda found, path: (write_json(path, {"chosen": chosen}), chosen)[1])  # noqa: B023
        assert evidence._try_settings("safety", ["dpo", "rdpo"], None, tmp_path) == []
        assert [line["method"] for line in read_measurements(tmp_path / "table.csv")] == [["base", "dpo", "dpo_nll", "rdpo"], ["base", "rdpo"]][number]


def test_rows_of_another_base_student_are_dropped(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evidence, "FOLDER", tmp_path / "runs")
    to, students = tmp_path / "results", {seed: tmp_path / f"student-{seed}" for seed in (0, 1)}
    for seed, student in students.items():
        student.mkdir()
        (student / "config.json").write_text("{}")
        (student / "model.safetensors").write_bytes(bytes([seed]))
        write_json(tmp_path / f"runs/safety/student-{seed}.json", [{"student": "a", "admitted": False}, {"student": "b", "admitted": True}])
    write_lines(to, made_up(seed=0) + made_up(seed=1) + made_up(seed=2))
    evidence._keep_students("safety", students, to)
    evidence._keep_students("safety", students, to)
    assert "dropped" not in capsys.readouterr().out and set(Study(to / "table.csv").of("safety", "utility", "dpo")) == {0, 1, 2}
    (other := tmp_path / "other").mkdir()
    (other / "config.json").write_text("{}")
    (other / "model.safetensors").write_bytes(b"another CPU")
    evidence._keep_students("safety", {1: other}, to)
    assert "1 lines of safety dropped, whose base students were others: seeds 1" in capsys.readouterr().out
    assert set(Study(to / "table.csv").of("safety", "utility", "dpo")) == {0, 2}
    kept = json.loads((to / "safety/students.json").read_text())
    assert list(kept) == ["0", "1"] and "weights" not in kept["1"][0] and kept["0"][1]["weights"] != kept["1"][1]["weights"]


def test_rows_written_again_take_the_place_of_their_old_ones(tmp_path):
    write_lines(tmp_path, made_up(seed=0) + made_up(seed=1, value=0.6))
    write_lines(tmp_path, made_up(seed=1, value=0.7))
    assert Study(tmp_path / "table.csv").of("safety", "utility", "dpo") == {0: 0.5, 1: 0.7}
    assert len(read_measurements(tmp_path / "table.csv")) == 2


def test_judged_rates_are_corrected_by_labels_of_all_rows_of_a_seed():
    """A judge that calls 10 % of the wrong right and 20 % of the right wrong, on rows of 100 answers."""
    def row_of(method, right):  # the judge finds .8 of the right ones good and .1 of the wrong ones
        truth = [True] * right + [False] * (100 - right)
        said = [i % 5 > 0 if true else i % 10 == 0 for i, true in enumerate(truth)]
        return Row(CENTRE, method, 0), Result(method, 0, "", [], outcomes={"harmlessness": truth, "judged": said})

    results = dict([row_of("base", 20), row_of("dpo", 50), row_of("rdpo", 80)])
    lines = {line["method"]: line for line in corrected_lines(results, labels=300)}
    for method, truth in (("base", 0.2), ("dpo", 0.5), ("rdpo", 0.8)):
        judged = 0.8 * truth + 0.1 * (1 - truth)
        assert lines[method]["metric"] == "judged_corrected" and lines[method]["value"] == pytest.approx(truth, abs=0.02) and abs(judged - truth) > 0.03
        assert lines[method]["low"] < truth < lines[method]["high"]
    steady = {replace(row, cell=Cell("sycophancy")): result for row, result in results.items()}
    assert corrected_lines(steady) == []  # the judge there was asked for something else


def test_the_correction_is_held_against_the_oracle(tmp_path):
    path = table_of([("dpo", "harmlessness", {}, [0.5, 0.9]), ("dpo", "judged", {}, [0.6, 0.7]), ("dpo", "judged_corrected", {}, [0.52, 0.88])], tmp_path / "table.csv")
    lines = [line | ({"low": 0.89, "high": 0.95} if (line["metric"], line["seed"]) == ("judged_corrected", 1) else {"low": 0.51, "high": 0.6}) for line in read_measurements(path)]
    write_measurements(path, lines)
    assert correction_table(Study(path)).to_dict("records") == [
        {"experiment": "safety", "rows": 2, "error as judged": "0.150", "error corrected": "0.020", "interval holds the truth": "50%"}
    ]  # .1 and .2; .02 twice; .9 lies in [.89, .95] and .5 not in [.51, .6]


def test_the_push_is_the_slope_of_the_loss_for_a_pair_that_the_judge_sees_so():
    setting = {"beta": 0.5, "alpha": 2.0, "eta": 3.0}
    sigmoid = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    assert push("dpo", setting, [1.0], -0.8) == pytest.approx([0.5 * sigmoid(-0.5)])
    assert push("rdpo", setting, [1.0], 0.8) == pytest.approx([0.5 * sigmoid(-0.5 + 1.6)])  # a clean pair is pushed further
    assert push("rdpo", setting, [1.0], -0.8) == pytest.approx([0.5 * sigmoid(-0.5 - 1.6)])
    assert push("rdpo_soft", setting, [0.0], -0.8) == pytest.approx([0.5 * (sigmoid(-2.4) - 0.5)])  # and here a mislabelled one is reversed
    assert push("rdpo_filter", setting, [-3.0, 3.0], -0.8) == [0.0, 0.0]


@pytest.mark.slow
def test_a_probed_training_begins_at_the_reference_and_tells_the_kinds_apart(tiny, tmp_path):
    row = Row(replace(CENTRE, pairs=48, noise=0.5, benign_share=0.0), "dpo", 0, {"learning_rate": 2e-3, "epochs": 2, "beta": 0.3})
    records = probe(row, tmp_path)
    assert {record["kind"] for record in records} == {"clean", "no signal", "mislabelled"} and {record["method"] for record in records} == {"dpo"}
    assert all(abs(record[side]) < 1e-4 for record in records if record["done"] == 0 for side in ("chosen", "rejected"))
    end = {record["kind"]: record["chosen"] - record["rejected"] for record in records if record["done"] == 1}
    assert any(abs(value) > 0.01 for value in end.values())
    counts = Counter(kind_of(pair, "safety") for pair in scored_pairs(row.cell, 0, Path()) if pair.is_scored)
    assert {record["kind"]: record["n"] for record in records} == {kind: min(40, n) for kind, n in counts.items()}
    assert read_probed(write_probed(tmp_path / "mechanism.csv", records)) == records
    assert probe(row, tmp_path) == records and mechanism_figure(records, {"dpo": row.setting}).axes


def test_the_command_says_what_there_is(capsys):
    with pytest.raises(SystemExit, match="unknown part chess; there are centre"):
        main(["--part", "chess"])
    with pytest.raises(SystemExit, match="2"):
        main(["--experiment", "safty"])
    assert "invalid choice: 'safty'" in (said := capsys.readouterr().err) and "did you mean safety?" in said


def test_roleplay_and_sycophancy_have_pairs_in_every_cell_of_theirs():
    for experiment, world in (("roleplay-robustness", roleplay),):
        pairs = scored_pairs(Cell(experiment, noise=0.0, pairs=40), 0, Path())
        assert all(world.right(pair.prompt, pair.response_revised) for pair in pairs)
    assert all(pair.response_base for pair in scored_pairs(Cell("sycophancy", pairs=20), 0, Path()))
