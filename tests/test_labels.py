"""Labelled answers and what they say of a judge (pytest tests/test_labels.py)."""

import json

import pytest

from common.judge import FeedbackJudge, Judgement
from common.labels import read_labels, trusted
from common.local_judges import LocalJudge
from common.run import ROOT
from common.schema import fingerprint


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
    key = fingerprint("a question", "an answer")
    path = write(tmp_path / "labels.jsonl", [{"id": key, "score": [1, 0]}])
    texts = write(tmp_path / "texts.jsonl", [{"prompt": "another", "answer": "answer"}, {"prompt": "a question", "answer": "an answer", "model": "m"}])
    labelled, again = read_labels(path, texts=texts)
    assert [tuple(item) for item in labelled] == [("a question", "an answer", 1)] and again == [0]
    with pytest.raises(ValueError, match="labels.jsonl, line 1: only an id; give labels_texts"):
        read_labels(path)
    with pytest.raises(ValueError, match="texts.jsonl has no answer of this id"):
        read_labels(path, texts=write(tmp_path / "texts.jsonl", [{"prompt": "another", "answer": "answer"}]))


@pytest.mark.parametrize("readings", [None, [1], [1, 2], 1, [1, "yes"]], ids=str)
def test_a_line_without_two_labels_is_named(tmp_path, readings):
    path = write(tmp_path / "labels.jsonl", [{"prompt": "p", "answer": "a", "score": [1, 1]}, {"prompt": "p", "answer": "a", "score": readings}])
    with pytest.raises(ValueError, match="labels.jsonl, line 2: score must hold the labels of two readings"):
        read_labels(path)


@pytest.mark.parametrize("name, criterion", [("roleplay-robustness", "score"), ("sycophancy", "sentiment"), ("sycophancy", "quality")])
def test_the_labels_of_the_project_are_forty_answers_of_both_kinds(name, criterion):
    labelled, again = read_labels(ROOT / "results" / "labels" / f"{name}.jsonl", criterion)
    ids = [json.loads(line)["id"] for line in (ROOT / "results" / "labels" / f"{name}.jsonl").read_text().splitlines()]
    assert ids == [fingerprint(item.prompt, item.answer) for item in labelled]
    assert len(labelled) == 40 and {item.label for item in labelled} == {*again} == {0, 1}
