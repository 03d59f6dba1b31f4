"""From a notebook's parameters to teacher and judge: `pytest tests/test_backends.py`."""

import pytest
from fault_server import FaultServer

from common.backends import open_judge, open_teacher
from common.batch import declared_parameters
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
