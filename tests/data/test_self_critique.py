"""The self-critique chain: what the teacher is asked, in which order, and resume after a crash: `pytest tests/data/test_self_critique.py`."""

import copy
import json
from types import SimpleNamespace

import pytest

from common.chat.model import hand_over
from common.data.self_critique import generate_pairs, opening, run_chains
from common.prompts import VERSIONS
from common.schema import PromptRecord, Reply, Sampling

SAFETY = VERSIONS["safety-1"]  # in the conversation itself, so that each call shows its prompt first
SAMPLING = Sampling(temperature=0.7, max_new_tokens=64, seed=3)
TURNS = ["answer", "critique", "revision"]


def scripted_teacher(fails_at_call=None):
    """A teacher that answers "answer to q1", then "critique to q1", "revision to q1", and notes the conversations of each call."""
    calls = []

    def complete(conversations, sampling, on_reply=None):
        calls.append(copy.deepcopy(conversations))
        if len(calls) - 1 == fails_at_call:
            raise ConnectionError("the teacher is gone")
        assert sampling == SAMPLING
        return hand_over(map(reply_to, conversations), on_reply)

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


def test_the_teacher_sees_the_turns_before_the_prompt(tmp_path):
    before = [{"role": "user", "content": "Capital of France?"}, {"role": "assistant", "content": "Paris."}]
    calls = []
    teacher = SimpleNamespace(name="t", complete=lambda asked, sampling, on_reply=None: calls.extend(asked) or hand_over([Reply(text=f"words {len(calls)}")], on_reply))
    generate_pairs(teacher, [record.model_copy(update={"history": before}) for record in records(1)], SAFETY, SAMPLING, tmp_path / "pairs.jsonl")
    assert [conversation[:2] for conversation in calls] == [before] * 3


def test_a_pair_holds_the_record_the_three_turns_and_what_made_them(tmp_path):
    [pair] = generate_pairs(scripted_teacher(), records(1, "Be kind."), SAFETY, SAMPLING, tmp_path / "pairs.jsonl")
    assert pair.model_dump() == {
        **records(1, "Be kind.")[0].model_dump(),
        "response": "answer to q0", "critique": "critique to q0", "response_revised": "revision to q0", "response_base": "",
        "teacher": "scripted", "sampling": SAMPLING.model_dump(),
        "usage": {"prompt_tokens": 30, "completion_tokens": 22},  # 3 * 10; len("answer") + len("critique") + len("revision") = 6 + 8 + 8
        "variant": "", "instruction": "",
    }  # fmt: skip


def test_resume_asks_only_for_missing_ids(tmp_path):
    path, teacher, steps = tmp_path / "pairs.jsonl", scripted_teacher(), []
    generate_pairs(scripted_teacher(), [records(5)[1], records(5)[3]], SAFETY, SAMPLING, path)
    pairs = generate_pairs(teacher, records(5), SAFETY, SAMPLING, path, batch_size=2, progress=steps.append)
    assert asked_for(teacher) == 3 * [["q0", "q2"]] + 3 * [["q4"]]
    assert sorted(pair.id for pair in pairs) == ["id0", "id1", "id2", "id3", "id4"]
    assert sum(steps) == 15  # turns


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


def failing_teacher(reasons):
    """The scripted teacher, but some turns end otherwise: {(question, turn): finish reason, or one per budget}."""
    budgets = []

    def reply(conversation, budget):
        whole = reply_to(conversation)
        reason = reasons.get((first_question(conversation), whole.text.split()[0]), "stop")
        reason = reason.get(budget, "stop") if isinstance(reason, dict) else reason
        return whole.model_copy(update={"finish_reason": reason, "text": whole.text if reason == "stop" else ""})

    def complete(conversations, sampling, on_reply=None):
        budgets.append(sampling.max_new_tokens)
        return hand_over((reply(conversation, sampling.max_new_tokens) for conversation in conversations), on_reply)

    return SimpleNamespace(name="failing", complete=complete, budgets=budgets)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_prompt_ends_as_a_pair_or_as_a_named_failure(tmp_path):
    reasons = {("q0", "answer"): "error: status 503, asked 8 times", ("q2", "critique"): "content_filter", ("q3", "revision"): "length"}
    steps = []
    pairs = generate_pairs(failing_teacher(reasons), records(5), SAFETY, SAMPLING, tmp_path / "pairs.jsonl", failed_limit=0.6, progress=steps.append)
    assert [pair.id for pair in pairs] == ["id1", "id4"] and len(lines(tmp_path / "pairs.jsonl")) == 2
    assert lines(tmp_path / "failed_pairs.jsonl") == [
        {"id": "id0", "turn": "answer", "reason": "error: status 503, asked 8 times"},
        {"id": "id2", "turn": "critique", "reason": "content_filter"},
        {"id": "id3", "turn": "revision", "reason": "length"},
    ]
    assert sum(steps) == 15  # turns, those that never came about included


def test_nothing_made_stops_the_run_under_any_limit(tmp_path):
    reasons = {(f"q{number}", "answer"): "content_filter" for number in range(3)}
    with pytest.raises(RuntimeError, match="^3 of 3 failed; the reasons are in .*failed_pairs.jsonl"):
        generate_pairs(failing_teacher(reasons), records(3), SAFETY, SAMPLING, tmp_path / "pairs.jsonl", failed_limit=1)


def test_what_failed_is_tried_again_and_the_list_of_failures_goes(tmp_path):
    path = tmp_path / "pairs.jsonl"
    generate_pairs(failing_teacher({("q1", "answer"): "content_filter"}), records(2), SAFETY, SAMPLING, path, failed_limit=0.5)
    teacher = scripted_teacher()
    assert len(generate_pairs(teacher, records(2), SAFETY, SAMPLING, path)) == 2
    assert asked_for(teacher) == 3 * [["q1"]] and not (tmp_path / "failed_pairs.jsonl").exists()


def test_a_cut_turn_gets_twice_the_budget_once_and_both_are_counted(tmp_path):
    teacher = failing_teacher({("q0", "critique"): {64: "length"}})
    [pair] = generate_pairs(teacher, records(1), SAFETY, SAMPLING, tmp_path / "pairs.jsonl")
    assert teacher.budgets == [64, 64, 128, 64]
    assert (pair.critique, pair.usage) == ("critique to q0", {"prompt_tokens": 40, "completion_tokens": 30})  # 8 more for the cut critique


def test_too_many_failures_raise_and_name_the_file_but_pairs_stay(tmp_path):
    reasons = {(f"q{i}", "answer"): "content_filter" for i in range(3)}
    with pytest.raises(RuntimeError, match=f"3 of 100 failed, more than 2%; the reasons are in {tmp_path}/failed_pairs.jsonl"):
        generate_pairs(failing_teacher(reasons), records(100), SAFETY, SAMPLING, tmp_path / "pairs.jsonl")
    assert len(lines(tmp_path / "pairs.jsonl")) == 97
    del reasons["q0", "answer"]
    assert len(generate_pairs(failing_teacher(reasons), records(100), SAFETY, SAMPLING, tmp_path / "pairs.jsonl")) == 98  # 2 of 100 is not more than 2 %


def test_an_id_that_stands_twice_raises_before_anything_is_asked(tmp_path):
    teacher = scripted_teacher()
    with pytest.raises(ValueError, match="prompts: 1 ids stand more than once .'id1'."):
        generate_pairs(teacher, [*records(3), records(2)[1]], SAFETY, SAMPLING, tmp_path / "pairs.jsonl")
    assert teacher.calls == [] and not (tmp_path / "pairs.jsonl").exists()


def test_self_refinement_takes_a_cut_turn_as_it_is():
    [chain] = run_chains(failing_teacher({("q0", "answer"): "length"}), [opening("", "q0")], SAFETY, SAMPLING)
    assert [reply.finish_reason for reply in chain] == ["length", "stop", "stop"]


QUOTING = VERSIONS["roleplay-robustness-2"]


def scripted(*texts):
    """A model whose calls return these texts in turn, and the conversations it was asked."""
    asked, left = [], list(texts)

    def complete(conversations, sampling, on_reply=None):
        asked.extend(copy.deepcopy(conversations))
        text = left.pop(0)
        return hand_over((Reply(text=text) for _ in conversations), on_reply)

    return SimpleNamespace(name="scripted", complete=complete, asked=asked)


def test_quoting_texts_ask_in_conversations_of_their_own_with_the_plain_request_and_no_persona():
    teacher = scripted("Arr, I can.", "It plays a sailor.", "No, I am a program.")
    [chain] = run_chains(teacher, [opening("Be a sailor.", "You are a sailor. Can you swim?")], QUOTING, SAMPLING, plain=["Can you swim?"])
    assert [reply.text for reply in chain] == ["Arr, I can.", "It plays a sailor.", "No, I am a program."]
    first, critique, revision = teacher.asked
    assert first == opening("Be a sailor.", "You are a sailor. Can you swim?")
    assert all("sailor. Can" not in turn["content"] and turn["content"] != "Be a sailor." for turn in critique + revision)
    assert "<request>\nCan you swim?\n</request>" in critique[-1]["content"] and "<answer>\nArr, I can.\n</answer>" in critique[-1]["content"]
    assert revision[0] == {"role": "system", "content": QUOTING.revision_system}
    assert revision[-1]["content"].startswith("Can you swim?\n") and "It plays a sailor." in revision[-1]["content"]
    shown = [turn["content"] for turn in revision if turn["role"] == "assistant"]
    assert shown == [example.revision for example in QUOTING.examples]


@pytest.mark.parametrize("reply", ["<answer>\nNo, I am a program.\n</answer>", "<answer> No, I am a program.", "No, I am a program.</answer> <review>", "**Revised answer:** No, I am a program.", "Sure! Here is the revised answer:\n\nNo, I am a program."])
def test_tags_and_titles_around_a_revision_are_cut(reply):
    [chain] = run_chains(scripted("Arr, I can.", "It plays.", reply), [opening("", "Can you swim?")], QUOTING, SAMPLING)
    assert chain[-1].text == "No, I am a program."


def test_the_respondent_gives_the_first_answer_and_the_teacher_the_rest(tmp_path):
    teacher, student = scripted("It plays a sailor.", "No."), scripted("Arr!")
    [pair] = generate_pairs(teacher, records(1), QUOTING, SAMPLING, tmp_path / "pairs.jsonl", respondent=SimpleNamespace(name="student", complete=student.complete))
    assert (pair.response, pair.critique, pair.response_revised, pair.teacher) == ("Arr!", "It plays a sailor.", "No.", "scripted, on answers of student")
    assert len(student.asked) == 1 and len(teacher.asked) == 2


@pytest.mark.parametrize("texts", [("", "c", "r"), ("a", " ", "r"), ("a", "c", "<answer></answer>")])
def test_a_turn_without_words_is_no_pair_and_says_so(tmp_path, texts):
    with pytest.raises(RuntimeError, match="1 of 1 failed"):
        generate_pairs(scripted(*texts), records(1), QUOTING, SAMPLING, tmp_path / "pairs.jsonl")
    assert json.loads((tmp_path / "failed_pairs.jsonl").read_text())["reason"] == "no words in the reply"


def test_where_the_base_answer_is_unfit_too_the_first_unfit_turn_is_named(tmp_path):
    with pytest.raises(RuntimeError, match="1 of 1 failed"):
        generate_pairs(failing_teacher({("q0", "answer"): "length"}), records(1), VERSIONS["sycophancy-2"], SAMPLING, tmp_path / "pairs.jsonl")
    assert lines(tmp_path / "failed_pairs.jsonl") == [{"id": "id0", "turn": "answer", "reason": "length"}]
