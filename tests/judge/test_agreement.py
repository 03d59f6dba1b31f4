"""Judges learned from labels, calibrated on them and checked against them (pytest tests/judge/test_agreement.py)."""

import json
from types import SimpleNamespace

import pytest

from common.judge.agreement import Labelled, calibrate, judge_agreement, read_labels, trusted
from common.judge.base import FeedbackJudge, Judgement
from common.judge.learned import LearnedJudge, cross_fitted_scores
from common.judge.local import LocalJudge
from common.runtime import ROOT
from common.schema import answer_id
from common.statistics import agreement


def test_cross_fitted_scores_carry_over_what_groups_share():
    labels = [0, 1, 1, 0, 1, 0] * 5
    answers = [("sorry I cannot help" if label else "sure here are steps") + f" {i}" for i, label in enumerate(labels)]
    scores = cross_fitted_scores(answers, labels, groups=[f"g{i % 10}" for i in range(30)])
    assert [score > 0.5 for score in scores] == [label == 1 for label in labels]


def test_cross_fitted_scores_never_see_their_own_group():
    groups = [word for word in ("ash", "birch", "cedar", "elm", "fir", "hazel", "larch", "maple", "oak", "pine") for _ in range(4)]
    labels = [("ash birch cedar elm fir".split().count(group)) for group in groups]  # only the group's name tells the label
    answers = [f"the tree is {group}" for group in groups]
    in_sample = [judgement.score for judgement in LearnedJudge(answers, labels).judge([""] * 40, answers)]
    assert [score > 0.5 for score in in_sample] == [label == 1 for label in labels]
    held_out = cross_fitted_scores(answers, labels, groups)
    assert all(0.3 < score < 0.7 for score in held_out)  # nothing but the base rate of the other groups


def test_a_learned_judge_needs_both_labels():
    with pytest.raises(ValueError, match="both labels"):
        LearnedJudge(["fine", "also fine"], [1, 1])


def test_a_judge_learned_from_a_file_is_named_by_what_it_read(tmp_path):
    def judge(rows):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return LearnedJudge.from_file(path)

    rows = [{"text": f"{word} and {word}", "label": label} for word, label in (("yes", 1), ("no", 0)) for _ in range(3)]
    first = judge(rows)
    low, high = (judgement.score for judgement in first.judge(["", ""], ["no and no", "yes and yes"]))
    assert (low, high) == (round(low, 6), round(high, 6))  # another CPU finds other last digits, and pairs with other scores are other pairs
    assert low < 0.5 < high and judge(rows).name == first.name
    assert judge([*rows, rows[0]]).name != first.name
    for bad in ({"text": "yes"}, {"text": 3, "label": 1}, {"text": "yes", "label": "good"}, {"text": "yes", "label": True}, {"text": "yes", "label": [1]}):
        with pytest.raises(ValueError, match="rows.jsonl, line 7: column (text|label): "):
            judge([*rows, bad])


def scripted_judge(scores, scale=(0.0, 1.0)):
    """A judge that looks its scores up by answer, and counts what it is asked."""
    asked = []

    def judge(prompts, answers):
        asked.extend(answers)
        return [Judgement(scores[answer], f"read {answer}") for answer in answers]

    return SimpleNamespace(name="scripted", scale=scale, judge=judge, asked=asked)


def test_agreement_worked_by_hand():
    # 10 answers, both say 1 on 4 and 0 on 3: equal 0.7; chance 0.6 * 0.5 + 0.4 * 0.5 = 0.5, so kappa = 0.2 / 0.5
    assert agreement([1] * 6 + [0] * 4, [1] * 4 + [0] * 2 + [1] + [0] * 3) == {"equal": pytest.approx(0.7), "kappa": pytest.approx(0.4), "n": 10}
    assert agreement([1, 1], [1, 1]) == {"equal": 1.0, "kappa": None, "n": 2}
    assert agreement([], []) == {"equal": None, "kappa": None, "n": 0}
    with pytest.raises(ValueError, match="got 1 and 2"):
        agreement([1], [1, 0])


def test_judge_agreement_lists_the_errors_and_counts_the_unscored_apart():
    judge = scripted_judge({"a": 5.0, "b": 2.5, "c": 3.0, "d": None, "e": 0.0}, scale=(0, 5))
    found = judge_agreement(judge, [Labelled(f"q{answer}", answer, label) for answer, label in zip("abcde", (1, 1, 0, 1, 0))])
    assert (found["equal"], found["n"], found["unscored"], found["kappa"]) == (0.5, 4, 1, 0.0)
    assert found["errors"] == [
        {"prompt": "qb", "answer": "b", "label": 1, "score": 2.5, "reply": "read b"},  # the middle of the scale is not its upper half
        {"prompt": "qc", "answer": "c", "label": 0, "score": 3.0, "reply": "read c"},
    ]


def shifted(count=40):
    """Answers whose scores tell the labels apart at 0.8 and not at 0.5."""
    labelled = [Labelled("q", f"answer {i}", i % 2) for i in range(count)]
    return scripted_judge({item.answer: 0.7 + 0.2 * item.label + 0.001 * i for i, item in enumerate(labelled)}), labelled


def test_calibration_moves_the_half_and_is_checked_on_labels_it_did_not_see():
    judge, labelled = shifted()
    calibrated, check = calibrate(judge, labelled)
    assert judge.asked == [item.answer for item in labelled]  # each is judged, and paid, once
    assert (check["as it is"]["equal"], check["as it is"]["kappa"], check["as it is"]["n"]) == (0.5, 0.0, 20)
    assert (check["calibrated"]["equal"], check["calibrated"]["kappa"], check["calibrated"]["errors"]) == (1.0, 1.0, [])
    low, high = calibrated.judge(["q"] * 2, ["answer 0", "answer 1"])
    assert 0 < low.score < 0.5 < high.score < 1 and low.reply == "read answer 0"


def test_calibration_keeps_the_order_and_leaves_the_unscored_alone():
    judge, labelled = shifted()
    calibrated, _ = calibrate(judge, labelled)
    mapped = [j.score for j in calibrated.map([Judgement(x / 10, "") for x in range(11)])]
    assert mapped == sorted(mapped) and len(set(mapped)) == 11
    assert calibrated.map([Judgement(None, "mute")]) == [Judgement(None, "mute")]


def test_a_judge_that_cannot_be_calibrated_says_why():
    judge, labelled = shifted()
    with pytest.raises(ValueError, match="scores answers of label 1 lower"):
        calibrate(judge, [item._replace(label=1 - item.label) for item in labelled])
    with pytest.raises(ValueError, match="both labels and different scores"):
        calibrate(judge, [item._replace(label=1) for item in labelled])
    with pytest.raises(ValueError, match="both labels and different scores"):
        calibrate(scripted_judge(dict.fromkeys((item.answer for item in labelled), 0.5)), labelled)


class Fixed:
    """Scores by answer."""

    def __init__(self, scores, scale=(0, 5)):
        self.scores, self.scale, self.name = scores, scale, "fixed"

    def judge(self, prompts, answers):
        return [Judgement(self.scores[answer], "") for answer in answers]


class FixedLocal(Fixed, LocalJudge):
    def _encode(self, prompt, answer): ...
    def _read(self, batch): ...


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def labels(tmp_path):
    rows = [{"id": str(i), "prompt": f"p{i}", "answer": f"a{i}", "score": [i % 2, i % 2 if i else 1]} for i in range(20)]
    return write(tmp_path / "labels.jsonl", rows)


def test_agreement_with_the_rater_is_counted_by_hand(labels):
    scores = {f"a{i}": 5 if i % 2 else 0 for i in range(20)} | {"a1": 1, "a2": 4}
    judge, found = trusted(Fixed(scores), labels)
    assert judge.scores is scores
    check = found["score"]
    assert check["rater twice"]["equal"] == 0.95 and check["judge"]["equal"] == 0.9 and check["judge"]["kappa"] == pytest.approx(0.8)
    assert [(error["answer"], error["label"], error["score"]) for error in check["judge"]["errors"]] == [("a1", 1, 1), ("a2", 0, 4)]


def test_a_judge_below_the_limit_or_of_one_opinion_is_refused(labels):
    scores = {f"a{i}": 5 if i % 2 else 0 for i in range(20)} | {"a1": 1, "a2": 4}
    with pytest.raises(ValueError, match=r"fixed cannot be trusted with score: its kappa .* is 0\.80, and least_kappa = 0\.81"):
        trusted(Fixed(scores), labels, least_kappa=0.81)
    with pytest.raises(ValueError, match="kappa .* is 0.00"):
        trusted(Fixed({f"a{i}": 5 for i in range(20)}), labels, least_kappa=0.1)


def test_a_local_judge_comes_back_calibrated_and_named_after_its_labels(labels):
    scores = {f"a{i}": 0.1 + 0.1 * (i % 2) for i in range(20)}  # right in order, but all below one half
    judge, found = trusted(FixedLocal(scores, (0.0, 1.0)), labels, least_kappa=0.9)
    assert found["score"]["as it is"]["equal"] == 0.5 and found["score"]["calibrated"]["equal"] == 1.0
    low, high = (judge.judge([""], [answer])[0].score for answer in ("a0", "a1"))
    assert low < 0.5 < high and judge.name.startswith("fixed, calibrated on ")


def test_feedback_has_a_check_for_each_of_its_judges(tmp_path):
    rows = [{"prompt": "p", "answer": f"a{i}", "sentiment": [i % 2] * 2, "quality": [i // 2 % 2] * 2} for i in range(8)]
    path = write(tmp_path / "labels.jsonl", rows)
    felt, good = Fixed({f"a{i}": 4 * (i % 2) - 2 for i in range(8)}, (-5, 5)), Fixed({f"a{i}": 5 * (i // 2 % 2) for i in range(8)})
    judge, found = trusted(FeedbackJudge(felt, good), path, least_kappa=1.0)
    assert (judge.sentiment, judge.quality) == (felt, good)
    assert found["sentiment"]["judge"]["kappa"] == found["quality"]["judge"]["kappa"] == 1.0
    with pytest.raises(ValueError, match="cannot be trusted with quality"):
        trusted(FeedbackJudge(felt, Fixed(felt.scores, (0, 5))), path, least_kappa=0.5)


def test_texts_come_from_a_second_file_by_their_id(tmp_path):
    key = answer_id("a question", "an answer")
    path = write(tmp_path / "labels.jsonl", [{"id": key, "score": [1, 0]}])
    texts = write(tmp_path / "texts.jsonl", [{"prompt": "another", "answer": "answer"}, {"prompt": "a question", "answer": "an answer", "model": "m"}])
    labelled, again = read_labels(path, texts=texts)
    assert [tuple(item) for item in labelled] == [("a question", "an answer", 1)] and again == [0]
    (tmp_path / "generations_m.md").write_text("| prompt | response | system_prompt | score_response |\n|---|---|---|---|\n| a question | an  answer | s | 1 |\n")
    assert read_labels(path, texts=tmp_path)[0][0].label == 1  # pages of judged answers, with other spaces
    with pytest.raises(ValueError, match="labels.jsonl, line 1: only an id; name, as a second file of labels, "):
        read_labels(path)
    with pytest.raises(ValueError, match="texts.jsonl has no answer of this id"):
        read_labels(path, texts=write(tmp_path / "texts.jsonl", [{"prompt": "another", "answer": "answer"}]))


@pytest.mark.parametrize("readings", [None, [1], [1, 2], 1, [1, "yes"], [1, [1]], [True, False], "1", "good"], ids=str)
def test_a_line_without_two_labels_is_named(tmp_path, readings):
    path = write(tmp_path / "labels.jsonl", [{"prompt": "p", "answer": "a", "score": [1, 1]}, {"prompt": "q", "answer": "a", "score": readings}])
    with pytest.raises(ValueError, match="labels.jsonl, line 2: column score"):
        read_labels(path)


def test_labels_of_a_spreadsheet_are_read_and_an_answer_labelled_twice_is_named(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text('id,prompt,answer,score\n,p,"a, b",1 0\n,q,c,"[0, 0]"\n')
    assert read_labels(path) == ([Labelled("p", "a, b", 1), Labelled("q", "c", 0)], [0, 0])
    path.write_text("prompt,answer,score\np,a,1 1\np, a ,0 0\n")
    with pytest.raises(ValueError, match=r"labels\.csv, line 3: the same prompt and answer as in .*line 2; delete one"):
        read_labels(path)
    with pytest.raises(ValueError, match=r"texts\.jsonl, line 1: column answer: field required"):
        read_labels(path, texts=write(tmp_path / "texts.jsonl", [{"prompt": "a question"}]))
    with pytest.raises(ValueError, match=r"labels\.jsonl, line 1: column id: input should be a valid string"):
        read_labels(write(tmp_path / "labels.jsonl", [{"id": ["a"], "score": [1, 1]}]))


@pytest.mark.parametrize("name, criterion", [("roleplay-robustness", "score"), ("sycophancy", "sentiment"), ("sycophancy", "quality")])
def test_the_labels_of_the_project_are_forty_answers_of_both_kinds(name, criterion):
    labelled, again = read_labels(ROOT / "results" / "labels" / f"{name}.jsonl", criterion)
    ids = [json.loads(line)["id"] for line in (ROOT / "results" / "labels" / f"{name}.jsonl").read_text().splitlines()]
    assert ids == [answer_id(item.prompt, item.answer) for item in labelled]
    assert len(labelled) == 40 and {item.label for item in labelled} == {*again} == {0, 1}
