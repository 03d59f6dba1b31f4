"""A rater's labels against what is counted: blind samples, agreement, corrected rates (pytest tests/evaluation/test_raters.py)."""

import io
import json
import random
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from common.evaluation.answers import Constant
from common.evaluation.judged import HeldOut, JudgedEvaluator
from common.evaluation.raters import (
    agreements,
    blind_pairs,
    blind_sample,
    contrasts,
    main,
    rated,
    ratings_in,
    read_ratings,
    revisions,
    with_labels,
    write_examples,
)
from common.evaluation.result import Result, excerpts
from common.judge.learned import LearnedJudge
from common.methods import TrainSettings
from common.schema import Metric, PromptRecord, ScoredPair, answer_id
from common.statistics import corrected_rate
from common.training.comparison import Experiment

NAMES = {"experiment": "safety", "seed": 0}


def record(i):
    return PromptRecord(id=str(i), experiment="safety", split="test", prompt=f"prompt {i}")


SETS = {"held_out": [record(i) for i in range(20)], "benign": [record(100 + i) for i in range(10)]}


def result(method, aligned, useful):
    answers = {name: [f"{method} says {r.id}" for r in records] for name, records in SETS.items()}
    ids = {name: [answer_id(r.prompt, a) for r, a in zip(SETS[name], of_set)] for name, of_set in answers.items()}
    metrics = [Metric(metric=name, method=method, value=sum(x) / len(x), n=len(x), k=sum(x), low=0, high=1, **NAMES) for name, x in (("aligned", aligned), ("utility", useful))]
    return Result(method, 0, "", metrics, answers=answers, outcomes={"aligned": aligned, "utility": useful}, ids=ids)


BASE, DPO = result("base", [False] * 15 + [True] * 5, [True] * 10), result("dpo", [True] * 15 + [False] * 5, [True] * 5 + [False] * 5)


def test_a_sample_is_blind_and_the_same_again_and_holds_every_held_out_answer():
    sample = blind_sample([BASE, DPO], SETS, count=10)
    assert len({item["id"] for item in sample}) == 50 and all(set(item) == {"id", "set", "prompt", "answer"} for item in sample)
    counts = {(method, name): sum(item["set"] == name and item["answer"].startswith(method) for item in sample) for method in ("base", "dpo") for name in SETS}
    assert counts == {("base", "held_out"): 20, ("dpo", "held_out"): 20, ("base", "benign"): 5, ("dpo", "benign"): 5}
    assert sample == blind_sample([BASE, DPO], SETS, count=10) != blind_sample([BASE, DPO], SETS, count=10, seed=1)
    assert [item["id"] for item in sample] != sorted(item["id"] for item in sample)
    assert len(blind_sample([BASE, DPO], SETS, count=1000)) == 60


def labelled(of, wrong=()):
    return {i: ((label, label) if n not in wrong else (1 - label, label)) for n, (i, label) in enumerate(of.items())}


def truth():
    return {i: int(outcome) for of in (BASE, DPO) for name, key in (("aligned", "held_out"), ("utility", "benign")) for i, outcome in zip(of.ids[key], of.outcomes[name])}


def test_agreement_with_a_rater_who_sees_it_alike_and_with_one_who_does_not():
    checks = agreements([BASE, DPO], labelled(truth()))
    assert checks["rater twice"]["kappa"] == checks["aligned"]["kappa"] == checks["utility"]["kappa"] == 1.0
    assert (checks["aligned"]["n"], checks["utility"]["n"], checks["aligned"]["labelled 1"]) == (40, 20, 20)
    some = agreements([BASE, DPO], labelled(truth(), wrong={0, 1}))
    assert some["aligned"]["equal"] == pytest.approx(38 / 40) and some["rater twice"]["equal"] == pytest.approx(58 / 60)
    assert agreements([BASE, DPO], {}) == {} and rated([BASE], {"nobody": (1, 1)}) == {}


def test_rates_are_corrected_towards_the_labels_and_only_where_there_are_any():
    generous = {i: (0, 0) if n % 2 and label else (label, label) for n, (i, label) in enumerate(truth().items())}  # half of what is counted is not so
    unread = {of.ids["held_out"][0] for of in (BASE, DPO)}
    rows = {of.method: {m.metric: m for m in of.metrics} for of in with_labels([BASE, DPO], {i: labels for i, labels in generous.items() if i not in unread})}
    assert rows["dpo"]["aligned_corrected"].value < rows["dpo"]["aligned"].value and rows["dpo"]["aligned_corrected"].value > rows["base"]["aligned_corrected"].value
    assert (rows["dpo"]["labelled"].n, rows["base"]["labelled"].k) == (19, sum(generous[i][0] for i in BASE.ids["held_out"][1:]))
    assert "aligned_corrected" not in {m.metric for m in with_labels([BASE, DPO], generous)[0].metrics}  # all read, nothing to correct
    few = {i: (1, 1) for i in BASE.ids["held_out"][:9]}  # of 20
    assert "labelled" not in {m.metric for m in with_labels([BASE], few)[0].metrics}
    untouched = with_labels([BASE], {})
    assert [m.metric for m in untouched[0].metrics] == [m.metric for m in BASE.metrics] == ["aligned", "utility"]


def test_of_a_large_set_all_held_out_answers_are_kept_and_can_be_labelled(tmp_path, monkeypatch):
    asked = [HeldOut(id=f"{kind} {i}", experiment="safety", split="test", prompt=f"{kind} {i}", kind=kind) for kind in ("plain", "benign") for i in range(210)]
    reader = SimpleNamespace(to_the_point=lambda prompts, answers: [True] * len(answers))
    judge = LearnedJudge(["good", "bad"] * 3, [1, 0] * 3)
    evaluator = JudgedEvaluator(asked, "safety", judge, reader)
    run = Experiment(tmp_path, [], evaluator, tmp_path, TrainSettings(), "test", chats={"endpoint:x": Constant(lambda prompt: f"good {prompt}")})
    row = run.result("endpoint:x", 0)
    assert {name: len(answers) for name, answers in row.answers.items()} == {"held_out": 210, "benign": 100}
    sample = blind_sample([row], evaluator.sets("test"), count=10)
    assert sum(item["set"] == "held_out" for item in sample) == 210
    [read] = with_labels([row], {item["id"]: (1, 1) for item in sample})
    assert {metric.metric: metric.n for metric in read.metrics}["labelled"] == 210


def test_contrasts_are_paired_on_the_prompts_that_both_rows_have():
    """15 prompts only rDPO has aligned, 5 only DPO: difference 10 / 20, and 2 * P(X <= 5 | 20, 1/2) = 0.0414."""
    rdpo = result("rdpo", [True] * 15 + [False] * 5, [True] * 10)
    dpo = result("dpo", [False] * 15 + [True] * 5, [True] * 10)
    [counted] = contrasts([BASE, dpo, rdpo], {})
    assert (counted["contrast"], counted["seen_by"], counted["n"], counted["first"], counted["second"]) == ("rdpo - dpo", "aligned", 20, 15, 5)
    assert counted["difference"] == 0.5 and counted["p"] == pytest.approx(0.0414, abs=1e-4)
    read = {i: (1, 1) for i in rdpo.ids["held_out"][:12] + dpo.ids["held_out"][2:18]}  # ten prompts with both answers read
    by = {one["seen_by"]: one for one in contrasts([dpo, rdpo], read)}
    assert (by["labelled"]["n"], by["labelled"]["difference"], by["labelled"]["p"]) == (10, 0.0, 1.0)
    assert contrasts([dpo, replace(rdpo, swapped=0.3)], {}) == [] == contrasts([dpo, replace(rdpo, seed=1)], {})


def test_a_corrected_rate_by_hand_and_its_coverage():
    """p = .5, sensitivity .9, specificity .8, many labels: (.5 + .8 - 1) / (.9 + .8 - 1) = .4286."""
    value, low, high = corrected_rate(500, 1000, 9000, 10_000, 8000, 10_000)
    assert value == pytest.approx(0.4286, abs=1e-3) and low < value < high and high - low < 0.12
    assert corrected_rate(5, 10, 5, 10, 5, 10) is None  # no better than chance
    for k in (0, 1, 100, 190, 200):  # no error was seen, so nothing is corrected
        value, low, high = corrected_rate(k, 200, 16, 16, 16, 16)
        assert value == pytest.approx(k / 200) and low <= value <= high
    draw, inside = random.Random(0), 0
    for _ in range(400):
        count = lambda p, n: sum(draw.random() < p for _ in range(n))  # noqa: E731
        _, low, high = corrected_rate(count(0.3 * 0.85 + 0.7 * 0.1, 60), 60, count(0.85, 40), 40, count(0.9, 50), 50)
        inside += low <= 0.3 <= high
    assert 0.92 < inside / 400 <= 1


@pytest.mark.parametrize("line", ['{"id": "a", "label": [1]}', '{"label": [1, 1]}', '{"id": "a", "label": [1, 2]}', '{"id": ["a"], "label": [1, 1]}', '{"id": 3, "label": [1, 1]}', '{"id": "b", "label": [1, 1]}'])
def test_a_bad_label_names_its_line(line, tmp_path):
    path = tmp_path / "labels.jsonl"
    path.write_text('{"id": "b", "label": [0, 1]}\n' + line + "\n")
    with pytest.raises(ValueError, match="labels.jsonl, line 2: (column (id|label)|the id 'b' stands in .*line 1 too)"):
        read_ratings(path)
    path.write_text(json.dumps({"id": "b", "label": [0, 1], "set": "held_out"}) + "\n")
    assert read_ratings(path) == {"b": (0, 1)}


def test_examples_are_the_first_prompts_whatever_they_show_and_outlive_the_answers(tmp_path):
    long = replace(DPO, answers={**DPO.answers, "held_out": [f"a | {'word ' * n}" for n in range(8, 28)]})
    write_examples([BASE, long], SETS, tmp_path / "examples.md")
    text = (tmp_path / "examples.md").read_text()
    assert "**prompt 4** (plain)" in text and "prompt 5" not in text and "| base | base says 1 |" in text and text.index("| base") < text.index("| dpo")
    assert f"| dpo | a \\| {'word ' * 10}|\n" in text and f"| dpo | a \\| {'word ' * 10}… |\n" in text  # 12 words of safety's, and what is longer
    kept = [replace(row, answers=excerpts(row)) for row in (BASE, long)]
    assert kept[1].answers.keys() == {"held_out"} and len(kept[1].answers["held_out"]) == 5 and excerpts(kept[1]) == kept[1].answers
    write_examples(kept, SETS, tmp_path / "again.md")
    assert (tmp_path / "again.md").read_text() == text
    assert excerpts(replace(BASE, answers={})) == {}


def test_an_excerpt_is_nothing_to_label():
    long = replace(DPO, answers={"held_out": [" ".join([text, *"abcdefghijklmn"]) for text in DPO.answers["held_out"]]})
    ids = [answer_id(r.prompt, a) for r, a in zip(SETS["held_out"], long.answers["held_out"])]
    long = replace(long, ids={"held_out": ids})
    assert len(blind_sample([long], SETS)) == 20 and blind_sample([replace(long, answers=excerpts(long))], SETS) == []


def scored(i, original, revised, split="train"):
    return ScoredPair(id=f"p{i}", experiment="safety", split=split, prompt=f"prompt {i}", response=f"original {i}", response_revised=f"revised {i}", score_response=original, score_revised=revised)


def test_a_sample_of_pairs_hides_which_answer_is_the_revision():
    pairs = [scored(i, 0.0, 1.0) for i in range(100)] + [scored(100, 0.0, 1.0, "test")]
    sample = blind_pairs(pairs, count=60)
    assert len({item["id"] for item in sample}) == 60 and "p100" not in {item["id"] for item in sample}
    assert all({item["first"].split()[0], item["second"].split()[0]} == {"original", "revised"} for item in sample)
    assert 15 < sum(item["first"].startswith("revised") for item in sample) < 45
    assert sample == blind_pairs(pairs, count=60) and len(blind_pairs(pairs, count=500)) == 100


def test_labels_are_read_from_either_form_and_not_from_both(tmp_path):
    assert ratings_in(tmp_path) == {}
    (tmp_path / "labels.jsonl").write_text('{"id": "a", "set": "held_out", "label": [1, 0]}\n{"id": "b", "label": [0, 0]}\n')
    before = ratings_in(tmp_path)
    (tmp_path / "labels.csv").write_text("id,label,set\na,1 0,\nb,0 0,ood\n")
    with pytest.raises(ValueError, match="labels.csv and labels.jsonl are both there; put all labels into one of them"):
        ratings_in(tmp_path)
    (tmp_path / "labels.jsonl").unlink()
    assert ratings_in(tmp_path) == before == {"a": (1, 0), "b": (0, 0)}


def test_labels_of_pairs_give_the_teachers_noise_and_how_often_the_scores_are_right():
    pairs = [scored(i, 0.2, 0.8) for i in range(6)] + [scored(6, 0.5, 0.5), scored(7, None, 0.5)]
    of_revision = {item["id"]: "first" if item["first"].startswith("revised") else "second" for item in blind_pairs(pairs)}
    other = {"first": "second", "second": "first"}
    labels = [{"id": f"p{i}", "label": of_revision[f"p{i}"]} for i in (0, 1, 2, 6, 7)]  # better; the last two have no order of scores
    labels += [{"id": "p3", "label": other[of_revision["p3"]]}, {"id": "p4", "label": "same"}]
    found = revisions(pairs, labels)
    assert (found["labelled"], found["better"], found["same"], found["worse"]) == (7, 5, 1, 1)
    assert (found["judge_right"]["value"], found["judge_right"]["n"]) == (0.75, 4)
    assert revisions(pairs, labels[-1:])["judge_right"] == {"value": None, "low": 0.0, "high": 1.0, "n": 0}
    with pytest.raises(ValueError, match="1 ids stand more than once \\('p3'\\)"):
        revisions(pairs, [*labels, labels[-2]])
    for wrong, said in (({"id": "p0", "label": "better"}, "p0 is labelled 'better'; write first, second or same"), ({"id": "p99", "label": "same"}, "'p99' is the id of no pair"), ({"label": "same"}, "None is the id of no pair")):
        with pytest.raises(ValueError, match=said):
            revisions(pairs, [wrong])
    with pytest.raises(ValueError, match="none of 1 pairs is of split train"):
        blind_pairs([pairs[0].model_copy(update={"split": "test"})])


def test_the_command_counts_a_label_once_and_writes_json_to_any_terminal(tmp_path, monkeypatch, capsys):
    (tmp_path / "scored.jsonl").write_text("".join(scored(i, 0.2, 0.8).model_copy(update={"prompt": f"naïve 🙂 {i}"}).model_dump_json() + "\n" for i in range(3)))
    (tmp_path / "labels.csv").write_text("id;label\r\np0;same\r\np1;same\r\n;\r\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["rating", "scored.jsonl", "labels.csv"])
    main()
    assert json.loads(capsys.readouterr().out)["labelled"] == 2
    (tmp_path / "labels.csv").write_text("id;label\np0;same\np1;first\np0;same\n")
    with pytest.raises(SystemExit, match=r"rating: .*labels\.csv, line 4: the id 'p0' stands in .*line 2 too"):
        main()
    printed = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", printed)
    monkeypatch.setattr(sys, "argv", ["rating", "scored.jsonl"])
    main()
    printed.flush()
    assert {json.loads(line)["prompt"] for line in printed.buffer.getvalue().splitlines()} == {f"naïve 🙂 {i}" for i in range(3)}
