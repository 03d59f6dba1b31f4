"""From a notebook's parameters to teacher and judge: `pytest tests/test_backends.py`."""

import pytest
from fault_server import FaultServer

from common.backends import open_judge, open_teacher, paid
from common.notebook import declared_parameters
from common.chat import KeptChat
from common.schema import Sampling

ASKED = [[{"role": "user", "content": "Hello?"}]]


def parameters(stage, output, **given):
    return {**declared_parameters(f"safety/{stage}.ipynb"), "output": str(output), **given}


def test_an_endpoint_is_recorded_and_then_needed_no_more(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with FaultServer() as server:
        endpoint = {"teacher": "endpoint:m", "base_url": server.url, "api_key_env": "", "prices": [1.0, 2.0], "max_cost": 1.0}
        teacher = open_teacher(parameters("generate_data", tmp_path, **endpoint))
        replies = teacher.complete(ASKED, Sampling())
    recorded = open_teacher(parameters("generate_data", tmp_path, teacher="recorded"))
    assert recorded.name == teacher.name == f"m at {server.url}" and recorded.complete(ASKED, Sampling()) == replies


def test_a_local_folder_is_a_judge_too(tmp_path, micro):
    judge = open_judge(parameters("reward_score", tmp_path, judge=f"local:{micro}", max_new_tokens=8))
    [judgement] = judge.judge(["Hello?"], ["Hello!"])
    assert isinstance(judge.chat, KeptChat) and judgement.score is None and (tmp_path / "judge_replies.jsonl").exists()


@pytest.mark.parametrize("teacher", ["miniatur", "endpoint:", "local", "gpt"])
def test_an_unknown_teacher_is_refused_with_the_choice(teacher, tmp_path):
    with pytest.raises(ValueError, match=f"unknown teacher '{teacher}'; there are miniature, endpoint:MODEL, local:FOLDER_OR_HUB_NAME, recorded"):
        open_teacher(parameters("generate_data", tmp_path, teacher=teacher))


def test_what_a_run_paid_is_counted_and_kept_replies_are_free(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with FaultServer() as server:
        endpoint = {"judge": "endpoint:m", "base_url": server.url, "api_key_env": "", "prices": [1000.0, 2000.0]}
        given = {**parameters("reward_score", tmp_path, **endpoint), "experiment": "sycophancy"}
        both = open_judge(given)
        both.sentiment.chat.complete(ASKED, Sampling(max_new_tokens=4))
        both.quality.chat.complete([*ASKED, [{"role": "user", "content": "And you?"}]], Sampling(max_new_tokens=4))
        again = open_judge(given)
        again.sentiment.chat.complete(ASKED, Sampling(max_new_tokens=4))
    # one word read and two, four written each: (1 + 2) * 1000 + 8 * 2000 dollars a million
    assert paid(both) == {"requests": 2, "prompt_tokens": 3, "completion_tokens": 8, "dollars": 0.019}
    assert paid(again) == {"dollars": 0.0}
    assert paid(open_judge(parameters("reward_score", tmp_path))) == {}


def test_a_yes_no_judge_is_refused_where_two_verdicts_are_needed(tmp_path):
    with pytest.raises(ValueError, match="needs sentiment and quality"):
        open_judge({**parameters("reward_score", tmp_path, judge="yes_no:folder"), "experiment": "sycophancy"})
