"""The self-critique chain: what the teacher is asked, in which order, and resume after a crash: `pytest tests/test_self_critique.py`."""

import copy
from types import SimpleNamespace

import pytest

from common.prompts import SAFETY
from common.schema import PromptRecord, Reply, Sampling
from common.self_critique import generate_pairs, opening, run_chains

SAMPLING = Sampling(temperature=0.7, max_new_tokens=64, seed=3)
TURNS = ["answer", "critique", "revision"]


def scripted_teacher(fails_at_call=None):
    """A teacher that answers "answer to q1", then "critique to q1", "revision to q1", and notes the conversations of each call."""
    calls = []

    def complete(conversations, sampling):
        calls.append(copy.deepcopy(conversations))
        if len(calls) - 1 == fails_at_call:
            raise ConnectionError("the teacher is gone")
        assert sampling == SAMPLING
        return [reply_to(conversation) for conversation in conversations]

    return SimpleNamespace(name="scripted", complete=complete, calls=calls)


def reply_to(conversation):
    turn = TURNS[sum(message["role"] == "assistant" for message in conversation)]
    return Reply(text=f"{turn} to {first_question(conversation)}", prompt_tokens=10, completion_tokens=len(turn))


def first_question(conversation):
    return next(message["content"] for message in conversation if message["role"] == "user")


def records(count, system=""):
    return [PromptRecord(id=f"id{i}", experiment="safety", split="train", system=system, prompt=f"q{i}", kind="wrapped") for i in range(count)]


def asked_for(teacher):
    """The prompts of each call."""
    return [[first_question(conversation) for conversation in call] for call in teacher.calls]


def test_the_teacher_sees_its_answer_then_its_critique():
    teacher = scripted_teacher()
    run_chains(teacher, [opening("Be kind.", "q0")], SAFETY, SAMPLING)
    said = [
        ("system", "Be kind."),
        ("user", "q0"),
        ("assistant", "answer to q0"),
        ("user", SAFETY.critique_request),
        ("assistant", "critique to q0"),
        ("user", SAFETY.revision_request),
    ]
    conversations = [[(turn["role"], turn["content"]) for turn in call[0]] for call in teacher.calls]
    assert conversations == [said[:2], said[:4], said[:6]]


def test_chains_are_asked_together_turn_by_turn_and_keep_apart():
    teacher = scripted_teacher()
    chains = run_chains(teacher, [opening("", f"q{i}") for i in range(3)], SAFETY, SAMPLING)
    assert [[reply.text for reply in chain] for chain in chains] == [[f"{turn} to q{i}" for turn in TURNS] for i in range(3)]
    assert asked_for(teacher) == 3 * [["q0", "q1", "q2"]]


def test_the_openings_of_the_caller_are_left_alone():
    openings = [opening("Be kind.", "q0")]
    run_chains(scripted_teacher(), openings, SAFETY, SAMPLING)
    assert openings == [opening("Be kind.", "q0")]


@pytest.mark.parametrize(("system", "roles"), [("You are a pirate.", ["system", "user"]), ("", ["user"])], ids=["system", "none"])
def test_the_system_prompt_is_the_records_and_an_empty_one_is_no_message(tmp_path, system, roles):
    teacher = scripted_teacher()
    [pair] = generate_pairs(teacher, records(1, system), SAFETY, SAMPLING, tmp_path / "pairs.jsonl")
    for call in teacher.calls:
        assert [turn["role"] for turn in call[0][: len(roles)]] == roles
        assert [turn["content"] for turn in call[0] if turn["role"] == "system"] == [system] * (len(roles) - 1)
    assert pair.system == system


def test_a_pair_holds_the_record_the_three_turns_and_what_made_them(tmp_path):
    [pair] = generate_pairs(scripted_teacher(), records(1, "Be kind."), SAFETY, SAMPLING, tmp_path / "pairs.jsonl")
    assert pair.model_dump() == {
        **records(1, "Be kind.")[0].model_dump(),
        "response": "answer to q0", "critique": "critique to q0", "response_revised": "revision to q0", "response_base": "",
        "teacher": "scripted", "sampling": SAMPLING.model_dump(),
        "usage": {"prompt_tokens": 30, "completion_tokens": 22},  # 3 * 10; len("answer") + len("critique") + len("revision") = 6 + 8 + 8
    }  # fmt: skip


def test_resume_asks_only_for_missing_ids(tmp_path):
    path, teacher, steps = tmp_path / "pairs.jsonl", scripted_teacher(), []
    generate_pairs(scripted_teacher(), [records(5)[1], records(5)[3]], SAFETY, SAMPLING, path)
    pairs = generate_pairs(teacher, records(5), SAFETY, SAMPLING, path, batch_size=2, progress=steps.append)
    assert asked_for(teacher) == 3 * [["q0", "q2"]] + 3 * [["q4"]]
    assert sorted(pair.id for pair in pairs) == ["id0", "id1", "id2", "id3", "id4"]
    assert steps == [2, 2, 1]  # 2 from disk, then batches of 2 and 1


def test_a_finished_file_asks_nothing(tmp_path):
    path, teacher = tmp_path / "pairs.jsonl", scripted_teacher()
    made = generate_pairs(scripted_teacher(), records(3), SAFETY, SAMPLING, path)
    before = path.read_bytes()
    assert generate_pairs(teacher, records(3), SAFETY, SAMPLING, path) == made
    assert teacher.calls == [] and path.read_bytes() == before


def test_only_the_prompts_asked_for_come_back(tmp_path):
    generate_pairs(scripted_teacher(), records(4), SAFETY, SAMPLING, tmp_path / "pairs.jsonl")
    pairs = generate_pairs(scripted_teacher(), records(4)[1:3], SAFETY, SAMPLING, tmp_path / "pairs.jsonl")
    assert [pair.id for pair in pairs] == ["id1", "id2"]


@pytest.mark.parametrize("call", range(9))  # 3 batches of 3 turns
def test_a_crash_at_any_call_loses_at_most_one_batch_and_resumes_to_the_same_file(tmp_path, call):
    whole, path, teacher = tmp_path / "whole.jsonl", tmp_path / "crashed.jsonl", scripted_teacher()
    generate_pairs(scripted_teacher(), records(6), SAFETY, SAMPLING, whole, batch_size=2)
    with pytest.raises(ConnectionError):
        generate_pairs(scripted_teacher(fails_at_call=call), records(6), SAFETY, SAMPLING, path, batch_size=2)
    finished = 2 * (call // 3)
    assert len(path.read_bytes().splitlines()) == finished

    generate_pairs(teacher, records(6), SAFETY, SAMPLING, path, batch_size=2)
    assert sorted({prompt for call in asked_for(teacher) for prompt in call}) == [f"q{i}" for i in range(finished, 6)]
    assert path.read_bytes() == whole.read_bytes()
