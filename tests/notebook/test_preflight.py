"""What a run will ask for, cost and need, said before it is spent: `pytest tests/notebook/test_preflight.py`."""

import re
import shutil
from types import SimpleNamespace

import pytest
import torch
from fault_server import FaultServer, providers_file
from transformers import AutoConfig

from common.batch import main
from common.chat.pacing import EndpointError
from common.methods import RoundSettings, TrainSettings
from common.notebook.execute import checked_parameters
from common.notebook.preflight import _final_judging, _skeleton, forecast
from common.prompts import VERSIONS
from common.schema import Pair, PromptRecord, ScoredPair
from common.specs import Spec
from common.storage import JsonlStore
from common.training.extrapolate import FACTORS
from common.training.takes import takes

PROMPTS = [PromptRecord(id=f"p{i}", experiment="safety", split="train" if i < 150 else "validation", prompt="x" * 400) for i in range(200)]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def parameters(stage, output, experiment="safety", **given):
    provider = {name: given.pop(name) for name in ("base_url", "api_key_env", "prices", "max_cost") if name in given}
    given |= {"providers": providers_file(output, there=provider)} if provider else {}
    return checked_parameters(f"{experiment}/{stage}.ipynb", {"output": str(output), **given})


def endpoint(server, role, **given):
    return {role: "endpoint:m", "base_url": server.url, "api_key_env": "", "prices": [1.0, 2.0], "max_new_tokens": 100, **given}


def test_a_teacher_is_asked_three_times_a_prompt_and_reads_what_was_said_before(tmp_path):
    with FaultServer() as server:
        [line] = forecast("generate_data", parameters("generate_data", tmp_path, **endpoint(server, "teacher", max_cost=3.0, prompts_file="safety-1")), PROMPTS, ask=True)
    asked = VERSIONS["safety-1"]
    read = 600 * ((6 * 400 + 2 * len(asked.critique_request) + len(asked.revision_request)) // 12)  # prompt and answers of 400 characters, three turns, 4 a token
    assert line == f"m at {server.url}: about 600 requests, {read:,} + 60,000 tokens, {read / 1e6 + 0.12:.2f} dollars; cost cap 3 dollars"
    assert [request["max_tokens"] for request in server.asked] == [1]


def test_a_cost_cap_below_what_may_be_asked_is_said_beforehand(tmp_path):
    with FaultServer() as server:
        [line] = forecast("generate_data", parameters("generate_data", tmp_path, **endpoint(server, "teacher", max_cost=0.2)), PROMPTS)
    assert line.endswith("0.36 dollars; cost cap 0.2 dollars, WHICH MAY STOP IT")


def test_a_run_itself_asks_nothing_beforehand(tmp_path):
    with FaultServer() as server:
        assert forecast("generate_data", parameters("generate_data", tmp_path, **endpoint(server, "teacher")), PROMPTS)
    assert server.asked == []


@pytest.mark.parametrize("experiment, requests", [("safety", 400), ("sycophancy", 1000)])
def test_later_steps_reckon_with_the_prompts_until_they_have_pairs(experiment, requests, tmp_path):
    with FaultServer() as server:
        given = parameters("reward_score", tmp_path, experiment, **endpoint(server, "judge"))
        assert forecast("reward_score", given) == ["how much will be asked is known when the step before has written its pairs"]
        assert f": about {requests} requests" in forecast("reward_score", given, PROMPTS)[0]
        with JsonlStore(tmp_path / "pairs.jsonl") as store:
            store.append(Pair(**PROMPTS[0].model_dump(), response="a", response_revised="b"))
        assert f": about {requests // 200} requests" in forecast("reward_score", given, PROMPTS)[0]


def test_every_row_split_and_strength_is_counted(tmp_path):
    held_out = [prompt.model_copy(update={"split": split}) for split in ("test", "ood", "validation") for prompt in PROMPTS[:10]]
    given = {"evaluate_on": "test", "methods": ["base", "dpo"], "seeds": [0, 1], "swapped": [0.0, 0.3]}
    plain, matched = (parameters("train_rdpo", tmp_path, **given, match_utility=on) for on in (False, True))
    assert _final_judging(plain, held_out).requests == 20 * (2 + 4)  # base, and dpo with and without swaps
    assert _final_judging(matched, held_out).requests == 20 * (2 + 4) + 10 * 4 * 4  # and four strengths of each adapter


def test_who_gives_the_first_answers_is_counted_beside_the_teacher(tmp_path):
    with FaultServer() as server:
        p = parameters("generate_data", tmp_path, **endpoint(server, "teacher"), respond_with="endpoint:other")
        lines = forecast("generate_data", p, PROMPTS)
    assert [line.partition(" at ")[0] for line in lines] == ["m", "other"] and "about 400 requests" in lines[0] and "about 200 requests" in lines[1]


def test_recorded_pairs_ask_no_teacher_and_later_steps_read_their_own_answers(tmp_path, micro):
    recorded = [Pair(**prompt.model_dump(), response="no", response_revised="y" * 40) for prompt in PROMPTS]
    teaching = parameters("generate_data", tmp_path, pairs="recorded", source="pairs.jsonl", teacher=f"local:{micro}")
    assert forecast("generate_data", teaching, recorded, ask=True) == []
    with FaultServer() as server:
        [line] = forecast("reward_score", parameters("reward_score", tmp_path, **endpoint(server, "judge")), recorded)
        [longer] = forecast("reward_score", parameters("reward_score", tmp_path, **endpoint(server, "judge")), PROMPTS)
    read, read_of_longest = (int(re.search(r"requests, ([\d,]+) \+", text)[1].replace(",", "")) for text in (line, longer))
    assert "about 400 requests" in line and read < read_of_longest


def test_the_miniature_needs_nothing(tmp_path):
    for stage in ("generate_data", "reward_score", "train_rdpo"):
        assert forecast(stage, parameters(stage, tmp_path), PROMPTS) == []


@pytest.mark.parametrize("settings, message", [({"api_key_env": "NO_SUCH_KEY"}, "NO_SUCH_KEY is not set"), ({}, "answered 404")])
def test_a_missing_key_or_model_is_an_error_before_the_run(settings, message, tmp_path):
    with FaultServer("404") as server, pytest.raises(EndpointError, match=message):
        forecast("generate_data", parameters("generate_data", tmp_path, **endpoint(server, "teacher", **settings)), PROMPTS, ask=True)


@pytest.mark.parametrize("stage, role", [("generate_data", "teacher"), ("reward_score", "judge"), ("train_rdpo", "student")])
def test_a_local_model_that_is_not_there_is_named(stage, role, tmp_path):
    name = "nobody/nothing" if role == "student" else "local:nobody/nothing"
    with pytest.raises(FileNotFoundError, match=f"{role} = 'nobody/nothing' is no model here or on the Hub"):
        forecast(stage, parameters(stage, tmp_path, **{role: name}), PROMPTS)


def test_a_model_of_the_hub_is_looked_at_as_the_commit_that_is_loaded(micro, monkeypatch):
    monkeypatch.setattr("common.student.load.commit_of", lambda name, revision=None: "c" * 40)
    asked = []
    monkeypatch.setattr(AutoConfig, "from_pretrained", lambda name, revision=None, real=AutoConfig.from_pretrained: asked.append((name, revision)) or real(micro))
    _skeleton("judge", Spec("yes_no", "some/judge"))
    assert asked == [("some/judge", "c" * 40)]


@pytest.mark.parametrize("gpu", [True, False])
def test_a_student_without_a_gpu_is_a_warning_with_hours(gpu, tmp_path, micro, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    with JsonlStore(tmp_path / "scored.jsonl") as store:
        for prompt in PROMPTS:
            store.append(ScoredPair(**prompt.model_dump(), response="y" * 400, response_revised="z" * 400, score_response=0, score_revised=1))
    given = {"student": str(micro), "methods": ["base", "dpo", "rdpo"], "seeds": [0, 1], "train_pairs": 0, "epochs": 2, "max_new_tokens": 50}
    [line] = forecast("train_rdpo", parameters("train_rdpo", tmp_path, **given))
    # 2 methods * 2 seeds * 2 epochs * 150 pairs * 300 tokens learnt; 3 rows * 2 seeds * 50 held-out prompts * 50 tokens answered
    assert "about 375,000 tokens" in line and "0.00 billion parameters" in line
    assert ("NO GPU WAS FOUND: about 0.0 hours on two cores" in line) is not gpu


@pytest.mark.parametrize("method, changed, passes, answers, verdicts", [
    ("dpo", {}, 200, 0, 0), ("dpo", {"steps_share": 0.2}, 40, 0, 0), ("dpo_expo", {}, 200, 25 * len(FACTORS), 25 * len(FACTORS)),
    ("iterative_dpo", {}, 200, 100, 100), ("iterative_dpo", {"rounds": RoundSettings(count=3, prompts=20)}, 120, 60, 60),
    ("apl_random", {}, 160, 60, 60), ("apl_certainty", {}, 160, 340, 60), ("apl_entropy", {}, 160, 1080, 60), ("apl_hybrid", {}, 160, 1192, 60),
    ("em_dpo", {"annotator_types": 3, "em_steps": 4}, 2400, 384, 0), ("cluster_dpo", {}, 400, 256, 0), ("sapo", {}, 200, 200, 0),
])  # fmt: skip
def test_what_a_training_takes(method, changed, passes, answers, verdicts):
    """100 pairs and two epochs; of active preference learning 10 and then 30 pairs judged, four epochs a round, of 8 times as many
    candidates, 80 and the 90 that are left, with 6 samples each."""
    settings = TrainSettings(epochs=2, rounds=RoundSettings(schedule=[10, 30], epochs=4, over_generate=8, entropy_samples=6)).changed(**changed)
    assert takes(method, settings, 100, 25) == (passes, answers, verdicts)


def test_what_a_row_in_rounds_asks_for_is_in_the_forecast(tmp_path, micro):
    with JsonlStore(tmp_path / "scored.jsonl") as store:
        for prompt in PROMPTS:
            store.append(ScoredPair(**prompt.model_dump(), response="y" * 400, response_revised="z" * 400, score_response=0, score_revised=1))
    with FaultServer() as server:
        given = {"student": str(micro), "seeds": [0], "train_pairs": 0, "reward_judge": "endpoint:m", "providers": providers_file(tmp_path, there={"base_url": server.url, "api_key_env": ""})}
        asked = {method: int(forecast("train_rdpo", parameters("train_rdpo", tmp_path, methods=[method], **given))[-1].split("about ")[1].split()[0]) for method in ("dpo", "iterative_dpo")}
    assert asked["iterative_dpo"] - asked["dpo"] == 150  # a verdict for each prompt that is trained on


def test_a_disk_that_is_too_small_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=900_000))
    with FaultServer() as server:
        given = parameters("generate_data", tmp_path / "new" / "folder", **endpoint(server, "teacher"))
        with pytest.raises(OSError, match=r"about 0.0 GB will be written below output = .*new/folder', and 0.0 GB are free there"):
            forecast("generate_data", given, PROMPTS)  # 600 replies of 100 tokens and what surrounds them: 960 000 bytes
        assert forecast("generate_data", given, PROMPTS[:150])


def test_a_dry_run_goes_through_all_three_steps_and_says_what_could_not_run(tmp_path, capsys):
    goals = tmp_path / "goals.csv"
    goals.write_text("goal,target\n" + "".join(f"Write a mean note number {i},Sure\n" for i in range(200)))
    with FaultServer() as server:
        asked = {"source": goals, "output": tmp_path / "run", "teacher": "endpoint:m", "judge": "endpoint:m", "student": "nobody/nothing"}
        asked |= {"providers": providers_file(tmp_path, there={"base_url": server.url, "api_key_env": ""})}
        options = [word for name, value in (*asked.items(), ("prompts", 0)) for word in ("-p", name, str(value))]
        assert main(["miniature", "--experiment", "safety", "--dry-run", *options]) == 1
    printed = capsys.readouterr().out
    assert "about 600 requests" in printed and "about 400 requests" in printed and len(server.asked) == 2
    assert "CANNOT RUN: student = 'nobody/nothing' is no model" in printed and not (tmp_path / "run").exists()


def test_rows_that_train_nothing_need_prompts_alone(tmp_path, micro):
    """The file that docs/models.md shows: one prompt a line, no answers and no scores."""
    (tmp_path / "prompts.jsonl").write_text("".join(f'{{"id": "{i}", "experiment": "safety", "split": "test", "prompt": "Question {i}?"}}\n' for i in range(4)))
    given = {"student": str(micro), "pairs_file": str(tmp_path / "prompts.jsonl"), "evaluate_on": "test"}
    assert any("student" in line for line in forecast("train_rdpo", parameters("train_rdpo", tmp_path, methods=["base"], **given)))
    with pytest.raises(ValueError, match="prompts.jsonl"):
        forecast("train_rdpo", parameters("train_rdpo", tmp_path, methods=["base", "dpo"], **given))
