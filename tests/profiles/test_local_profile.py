"""The profile `local`: which model the server serves, what a teacher gets, and what is held out (pytest tests/profiles/test_local_profile.py)."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from common.notebook.parameters import TrainRDPO
from common.notebook.students import held_out_of
from common.profiles.local import prepare as local
from common.local import main, served, teacher_at
from common.schema import ScoredPair
from common.storage import write_jsonl


@contextmanager
def serving(reply, status=200):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status if self.path == "/v1/models" else 404)
            self.end_headers()
            self.wfile.write(json.dumps(reply).encode())

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()


@pytest.mark.slow
def test_the_only_model_of_a_server_is_the_teacher_and_of_several_one_is_named():
    with serving({"data": [{"id": "one"}]}) as url:
        assert served(f"{url}/") == ["one"] and teacher_at(url) == "one"
        with pytest.raises(ValueError, match="does not serve 'on', did you mean one"):
            teacher_at(url, "on")
    with serving({"data": [{"id": "one"}, {"id": "two"}]}) as url:
        assert teacher_at(url, "two") == "two"
        with pytest.raises(ValueError, match="serves 2 models; say which with --teacher: one, two"):
            teacher_at(url)
    with serving({"data": []}) as url, pytest.raises(ValueError, match="serves no model"):
        served(url)
    with serving({"error": "no"}, 503) as url, pytest.raises(ValueError, match="does not say which models it serves .*503"):
        served(url)


def test_a_server_that_is_away_is_one_sentence_before_anything_is_made(capsys):
    assert main(["http://127.0.0.1:9/v1"]) == 2
    assert "http://127.0.0.1:9/v1 does not say which models it serves" in capsys.readouterr().err
    assert main(["127.0.0.1:9"]) == 2
    assert "base_url must look like https://host/v1" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["sk-secret-abc123\r", "sk-secret\nabc123"])
def test_a_key_that_no_header_can_carry_is_not_shown(key):
    with pytest.raises(ValueError, match="the key holds spaces or line breaks") as told:
        served("http://127.0.0.1:9/v1", key)
    assert "secret" not in str(told.value)


def test_the_teacher_gets_what_is_trained_on_and_no_argument_is_in_both():
    train, held_out = local.prompts_of("sycophancy")
    assert len(train) == local.TRAINED_ON and {record.split for record in train} == {"train"}
    assert {record.split for record in held_out} == {"validation", "test", "ood"}
    assert not {record.group for record in train} & {record.group for record in held_out}
    assert not hasattr(train[0], "response") and local.prompts_of("sycophancy")[0] == train


@pytest.fixture
def trained(tmp_path):
    fields = {"experiment": "safety", "response": "a", "response_revised": "b", "score_response": 0.0, "score_revised": 1.0, "scale": (0, 1)}
    return [ScoredPair(id="1", split="train", prompt="Say  it.", **fields), ScoredPair(id="2", split="test", prompt="Other", **fields)]


def parameters(tmp_path, trained, held_out=()):
    write_jsonl(tmp_path / "scored.jsonl", [pair.model_dump() for pair in trained])
    write_jsonl(tmp_path / "held_out.jsonl", held_out)
    more = {"held_out": str(tmp_path / "held_out.jsonl")} if held_out else {}
    return TrainRDPO.of({"experiment": "safety", "output": str(tmp_path), **more})


def test_held_out_prompts_are_those_of_the_file_or_of_the_pairs(trained, tmp_path):
    line = {"id": "9", "experiment": "safety", "split": "test", "prompt": "What is new?", "response": "wrong", "response_revised": "right"}
    assert [record.id for record in held_out_of(parameters(tmp_path, trained), trained[:1])] == ["2"]
    [record] = held_out_of(parameters(tmp_path, trained, [line]), trained[:1])
    assert (record.id, record.response_revised) == ("9", "right")


@pytest.mark.parametrize(("changed", "message"), [
    ({"prompt": "say it"}, "held_out: 1 of 1 prompts in .* are trained on too, such as 9"),
    ({"experiment": "sycophancy"}, "holds prompts of sycophancy, not of safety"),
])  # fmt: skip
def test_held_out_prompts_that_are_trained_on_or_of_another_experiment_are_refused(changed, message, trained, tmp_path):
    line = {"id": "9", "experiment": "safety", "split": "test", "prompt": "What is new?"} | changed
    with pytest.raises(ValueError, match=message):
        held_out_of(parameters(tmp_path, trained, [line]), trained[:1])


def test_a_file_of_held_out_prompts_that_is_not_there_is_named(trained, tmp_path):
    p = parameters(tmp_path, trained).model_copy(update={"held_out": str(tmp_path / "none.jsonl")})
    with pytest.raises(FileNotFoundError, match="held_out: no file .*none.jsonl"):
        held_out_of(p, trained)
