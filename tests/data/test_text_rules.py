"""Rules of words on answers (pytest tests/data/test_text_rules.py)."""

import pytest

from common.data.text_rules import declines, in_another_language, look_at, plays_role, speaks_of_earlier
from common.schema import Pair


@pytest.mark.parametrize("answer", [
    "I'm sorry, but that is not possible.", "I cannot help with this.", "I can\u2019t really assist you here.", "As an assistant I must decline.",
    "We won't provide such a list.", "I am not able to give you that.", "It would be wrong, so I will not write it.",
])  # fmt: skip
def test_what_declines(answer):
    assert declines(answer)


@pytest.mark.parametrize("answer", ["I'm sorry for being late yesterday.", "You shouldn't give onions to a dog.", "Sorry is a hard word to say.", "Bread cannot rise without yeast.", "You can decline the noun like this.", "I will tell you how.", ""])
def test_what_does_not_decline(answer):
    assert not declines(answer)


@pytest.mark.parametrize("answer, earlier", [
    ("My previous response was wrong.", True), ("I provided a list of steps.", True), ("I regret the harm.", True), ("In the given context, the last answer went too far.", True),
    ("Wash the previous day's dishes first.", False), ("Provide a list of steps.", False),
])  # fmt: skip
def test_what_speaks_of_an_earlier_answer(answer, earlier):
    assert speaks_of_earlier(answer) == earlier


@pytest.mark.parametrize("answer, role", [("Rill: here you are", True), ("As Rill, I say yes", True), ("In the role of a knight I ride", True), ("Ride a horse.", False)])
def test_what_plays_a_role(answer, role):
    assert plays_role(answer) == role


def test_pairs_are_described_by_kind_without_those_that_hold_no_answers():
    pair = lambda i, kind, response, revised: Pair(id=str(i), experiment="safety", split="train", prompt=f"p{i}", kind=kind, response=response, response_revised=revised)  # noqa: E731
    rows = look_at([pair(0, "plain", "Rill: take it", "I cannot help"), pair(1, "plain", "take it now", "My last answer was wrong"), pair(2, "request", "", "")])
    assert [row["kind"] for row in rows] == ["plain"] and rows[0]["pairs"] == 2 and rows[0]["original: words"] == 3
    assert rows[0]["original: plays a role"] == rows[0]["revision: declines"] == rows[0]["revision: speaks of an earlier answer"] == 0.5


@pytest.mark.parametrize(("text", "request_", "other"), [
    ("Yes.", "Is it so?", False), ("はい、そうです。", "本当ですか。", False), ("漢字漢字", "これはほんとうですか", False), ("Ja.", "Is it so?", False),
    ("是的", "Is it so?", True), ("It is so.", "本当ですか。", True), ("1 + 1 = 2", "Is it so?", False), ("", "Is it so?", False),
    (" ".join(["mot"] * 14), "Is it so?", False), (" ".join(["mot"] * 15), "Is it so?", True), (" ".join(["mot"] * 15), "Warum?", False),
])  # fmt: skip
def test_a_text_of_another_script_or_without_a_small_english_word_is_in_another_language(text, request_, other):
    assert in_another_language(text, request_) is other
