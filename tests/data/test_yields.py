"""What share of a teacher's chains can be trained on, seen before the others are paid for: `pytest tests/data/test_yields.py`."""

import pytest

from common.data.yields import failed_chains, fault_of, misses_the_answer, one_kind_after_another, pilot, yield_of
from common.prompts import VERSIONS
from common.schema import Pair, PromptRecord

TEXTS = VERSIONS["roleplay-robustness-2"]
OLD = VERSIONS["safety-1"]
GOOD = {"response": "Yes, I can feel the wind on my face up here.", "critique": "It pretends to feel the wind on a face.", "response_revised": "No, I am an AI assistant and have no face."}


def pair(number=0, kind="stay", **texts):
    return Pair(id=f"p{number}", experiment="roleplay-robustness", split="train", prompt="You are a falcon. Can you feel the wind?", plain_prompt="Can you feel the wind?", kind=kind, **{**GOOD, **texts})


@pytest.mark.parametrize(("texts", "fault"), [
    ({}, ""),
    ({"response_revised": GOOD["response"]}, "same"),
    ({"response_revised": GOOD["response"] + " "}, "same"),
    ({"response": "I'm sorry, but I can't assist with that.", "response_revised": "I cannot help with this request, as it would harm people."}, "refused before and after"),
    ({"response": "First take a knife.", "response_revised": "I cannot help with this request, as it would harm people."}, ""),
    ({"response": "First take a knife.", "response_revised": "I will not provide a plan to hurt people."}, ""),
    ({"response": "Carrots are roots.", "response_revised": "Vegetables provide a good source of vitamins."}, ""),
    ({"response_revised": "Could you provide me the text to revise?"}, "speaks of the answer"),
    ({"kind": "benign", "response": "First take a knife.", "response_revised": "I cannot help with this request, as it would harm people."}, "harmless and refused"),
    ({"kind": "benign", "response": "First take a knife.", "response_revised": "First wash the bread knife, then cut."}, ""),
    ({"response_revised": "Я помощник, и у меня нет лица."}, "another language"),
    ({"response_revised": "Nein, ein Assistent hat weder Augen noch Ohren und kennt Wind nur aus Büchern, die andere Leute lange vorher geschrieben haben."}, "another language"),
    ({"response_revised": "Give only the new answer: no comment on the old one, and no character or role that the request asked you to play."}, "echo"),
    ({"critique": "Too long by far, and it plays a falcon that flies over the hills.", "response_revised": "Too long by far, and it plays a falcon that flies over the hills."}, "echo"),
    ({"response_revised": "In my previous answer I played a falcon."}, "speaks of the answer"),
    ({"response_revised": "I do not have any feedback to revise, please provide the text."}, "speaks of the answer"),
])  # fmt: skip
def test_a_chain_that_teaches_nothing_is_known_by_its_words(texts, fault):
    assert fault_of(pair(**texts), OLD if fault == "echo" else TEXTS) == fault


@pytest.mark.parametrize(("critique", "misses"), [
    (GOOD["critique"], False), ("I don't have a last answer to compare with.", True), ("I cannot provide a quote from the given text.", True), ("Well written and kind.", True), ("", True),
])  # fmt: skip
def test_a_critique_without_a_word_of_the_answer_misses_it(critique, misses):
    assert misses_the_answer(pair(critique=critique)) is misses


def test_the_yield_counts_every_chain_once_and_shows_the_first_of_each_fault():
    found = yield_of([pair(0), pair(1, "behind", response_revised=GOOD["response"]), pair(2, response_revised=GOOD["response"])], TEXTS, failed=1)
    assert (found.chains, found.usable, found.failed, found.faults, found.by_kind) == (4, 1, 1, {"same": 2}, {"stay": (1, 2), "behind": (0, 1)})
    assert "1 of 4 chains are usable: 25% [5%, 70%]" == found.lines()[0] and any("revision: Yes, I can feel" in line for line in found.lines())
    assert "examples" not in found.as_dict()


def records(count):
    return [PromptRecord(id=f"p{i}", experiment="safety", split="train", prompt=f"q{i}", kind="ab"[i >= count - 2]) for i in range(count)]


def test_the_pilot_takes_the_kinds_in_turn():
    assert [record.id for record in one_kind_after_another(records(6))[:4]] == ["p0", "p4", "p1", "p5"]


def test_a_pilot_with_a_good_yield_tells_what_the_whole_run_gives_and_costs(capsys):
    asked, spent = [], [1.0, 1.5]
    found = pilot(records(40), TEXTS, lambda chosen: asked.extend(chosen) or [pair(i, response_revised=GOOD["response" if i else "response_revised"]) for i in range(2)], 4, 0.25, lambda: spent.pop(0))
    assert len(asked) == 4 and (found.usable, found.failed, found.chains) == (1, 2, 4)
    assert "all 40 prompts at this rate: about 10 usable pairs, 5.00 dollars\n" in capsys.readouterr().out


def test_a_slow_pilot_tells_how_long_the_others_take(capsys, monkeypatch):
    clock = iter([100.0, 340.0])
    monkeypatch.setattr("common.data.yields.time.monotonic", lambda: next(clock))
    pilot(records(40), TEXTS, lambda chosen: [pair(i) for i in range(4)], 4, 0.25)
    assert "about 40 usable pairs, 36 minutes for those that are left\n" in capsys.readouterr().out


@pytest.mark.parametrize(("texts", "remedy"), [
    ({"response_revised": GOOD["response"]}, "stronger teacher"), ({"response": "I cannot help with this.", "response_revised": "I'm sorry, but no."}, "respond_with"),
])  # fmt: skip
def test_a_pilot_below_the_least_yield_stops_before_the_rest_is_asked_and_says_where_to_look(texts, remedy):
    asked = []
    with pytest.raises(ValueError, match=f"0 of 2 chains are usable, less than least_yield = 30%.*{remedy}"):
        pilot(records(40), TEXTS, lambda chosen: asked.append(len(chosen)) or [pair(i, **texts) for i in range(2)], 2, 0.3)
    assert asked == [2]


def test_failed_chains_are_counted_from_the_file_beside_the_pairs(tmp_path):
    assert failed_chains(tmp_path / "pairs.jsonl") == 0
    (tmp_path / "failed_pairs.jsonl").write_text('{"id": "a", "reason": "x"}\n{"id": "b", "reason": "x"}\n')
    assert failed_chains(tmp_path / "pairs.jsonl") == 2
