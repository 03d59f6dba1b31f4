"""SELM: iterative DPO whose loss looks at the student's own answer as well (pytest tests/training/test_selm.py)."""

import json
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from training.loops import SETTINGS, ByLetters, adapter_of, given, lines_of, looped, rounds_of

from common.methods import METHODS
from common.schema import Reply, ScoredPair
from common.storage import write_json, write_jsonl
from common.training.rounds.run import figures
from common.training.rounds.stages import Round, explored


@pytest.fixture(scope="module")
def run(micro, tmp_path_factory):
    """(method, optimism) -> its run, which tests share: folder, student."""

    @cache
    def made(method, optimism):
        folder = tmp_path_factory.mktemp(method)
        return SimpleNamespace(folder=folder, trained=looped(method, micro, folder, settings=SETTINGS.changed(optimism=optimism)))

    return made


def test_the_rows_differ_from_iterative_dpo_by_the_term_alone():
    for row, control in (("selm", "iterative_dpo"), ("selm_nll", "iterative_nll")):
        mine, theirs = (SETTINGS.as_dict(name) for name in (row, control))
        assert mine == theirs | {"optimism": 0.001} and METHODS[row].search == {"optimism": (1e-4, 1e-1)}
        assert (METHODS[row].loss, METHODS[row].nll_on, METHODS[row].rounds) == (METHODS[control].loss, METHODS[control].nll_on, METHODS[control].rounds)


@pytest.mark.slow
def test_without_optimism_selm_is_iterative_dpo_to_the_bit(run):
    without, control = run("selm", 0.0), run("iterative_dpo", 0.0)
    assert torch.equal(adapter_of(without.trained), adapter_of(control.trained))
    for mine, theirs in zip(rounds_of(without.folder), rounds_of(control.folder), strict=True):
        pairs = [[ScoredPair(**line) for line in lines_of(place / "preferred.jsonl")] for place in (mine, theirs)]
        assert [pair.model_copy(update={"explored": None}) for pair in pairs[0]] == pairs[1]
        assert all(pair.explored for pair in pairs[0]) and "explored" not in (theirs / "preferred.jsonl").read_text()


@pytest.mark.slow
def test_the_explored_answers_of_a_round_are_what_its_student_said_and_their_fall_is_logged(run):
    made = run("selm", 20.0)
    for place in rounds_of(made.folder):
        said = {line["prompt_id"]: line["text"] for line in lines_of(place / "answers.jsonl")}
        pairs = [ScoredPair(**line) for line in lines_of(place / "preferred.jsonl")]
        assert pairs and all(pair.explored.text == said[pair.id.partition("#")[0]] for pair in pairs)
        round_ = json.loads((place / "round.json").read_text())
        assert round_["explored"] == len(pairs)
        assert round_["first"]["rewards/explored"] == pytest.approx(0.0, abs=1e-5)
        assert round_["last"]["rewards/explored"] < 0 and round_["last"]["logps/explored"] < round_["first"]["logps/explored"]
    assert not torch.equal(adapter_of(made.trained), adapter_of(run("selm", 0.0).trained))


class Says:
    """Answers each prompt with what is given for it."""

    name = "says"

    def __init__(self, replies):
        self.replies = replies

    def complete(self, conversations, sampling, on_reply=None):
        assert sampling.temperature == 0
        return [self.replies[conversation[-1]["content"]] for conversation in conversations]


class Scores(ByLetters):
    """Knows the score of every answer."""

    def __init__(self, scores):
        super().__init__()
        self.scores = scores

    def judge(self, prompts, answers):
        return [judged._replace(score=self.scores[answer]) for judged, answer in zip(super().judge(prompts, answers), answers)]


def stage(method, folder, pairs, replies, judge):
    student = SimpleNamespace(mark="m")
    chat = Says({pair.prompt: reply for pair, reply in zip(pairs, replies)})
    return explored(Round(method, 0, folder, pairs, judge, SETTINGS, lambda: student, lambda student: chat, 52))


def test_the_answer_that_is_explored_and_the_pair_that_is_trained_on(tmp_path):
    """The greedy answer beside the best and the worst of the three; cut off, it is in the extra term alone."""
    of = [("better", (0.9, 0.8, 0.2)), ("between", (0.6, 0.8, 0.2)), ("worse", (0.1, 0.8, 0.2)), ("equal", (0.8, 0.8, 0.8))]
    of += [("the chosen", (None, 0.8, 0.2)), ("cut", (None, 0.8, 0.2)), ("none", (None, 0.8, 0.2))]
    pairs, replies, scores = [], [], {}
    for pair, (name, (new, high, low)) in zip(given(len(of)), of):
        pairs.append(pair.model_copy(update={"response": f"{name} l", "response_revised": f"{name} w", "score_revised": high, "score_response": low}))
        text = {"the chosen": "the chosen w", "none": ""}.get(name, f"{name} y")
        replies.append(Reply(text=text, finish_reason="length" if name in ("cut", "none") else "stop"))
        scores[text] = new
    judge = Scores(scores)
    found = stage("selm", tmp_path / "selm", pairs, replies, judge)
    assert [(pair.response_revised, pair.response) for pair in found] == [
        ("better y", "better l"), ("between w", "between l"), ("worse w", "worse y"), ("the chosen w", "the chosen l"), ("cut w", "cut l"), ("none w", "none l"),
    ]  # fmt: skip
    assert [(pair.explored.text, pair.explored.whole) for pair in found] == [
        ("better y", True), ("between y", True), ("worse y", True), ("the chosen w", True), ("cut y", False), ("", False),
    ]  # fmt: skip
    assert not {"the chosen w", "cut y", ""} & set(judge.asked)
    control = stage("iterative_dpo", tmp_path / "control", pairs, replies, judge)
    assert [pair.model_copy(update={"explored": None, "teacher": "x"}) for pair in found] == [pair.model_copy(update={"teacher": "x"}) for pair in control]


def test_a_round_says_where_the_explored_answers_fell_too_far(tmp_path):
    history = [{"loss": 0.6, "shift/explored": -0.4, "rewards/explored": -1.0, "logps/explored": -30.0}]
    write_json(tmp_path / "made_of.json", {"prompts": ["a"]})
    said = [Reply(text="e"), Reply(text="e", finish_reason="length"), Reply(text="", finish_reason="length")]
    write_jsonl(tmp_path / "preferred.jsonl", [pair.model_copy(update={"explored": reply}).model_dump(mode="json") for pair, reply in zip(given(3), said)])
    for shift, warned in ((-0.4, True), (-0.1, False)):
        write_json(tmp_path / "training.json", {"history": [history[0] | {"shift/explored": shift}], "pairs_used": 1})
        found = figures(tmp_path)
        assert ("explored answers lost 0.40 nats a token" in found.get("warning", "")) == warned == ("warning" in found)
        assert found["explored"] == 2 and found["last"] == {"loss": 0.6, "rewards/explored": -1.0, "logps/explored": -30.0}
