"""Scored pairs to TRL's format, and the account of pairs without signal (pytest tests/data/test_preference.py)."""

import pytest

from common.data.preference import accepted, pairs_without_signal, preference_dataset
from common.schema import ScoredPair


def pair(number, response="No.", revised="Yes.", original=1.0, better=4.0, **more):
    return ScoredPair(id=f"p{number}", experiment="safety", split="train", prompt="Hello?", response=response, response_revised=revised,
                      score_response=original, score_revised=better, scale=(0, 5), **more)  # fmt: skip


def test_chosen_is_always_the_revision_whatever_the_scores_say():
    row = preference_dataset([pair(0, original=5.0, better=0.0, system="Be kind.")])[0]
    assert row["prompt"] == [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello?"}]
    assert row["chosen"] == [{"role": "assistant", "content": "Yes."}] and row["rejected"] == [{"role": "assistant", "content": "No."}]
    assert (row["score_chosen"], row["score_rejected"]) == (0.0, 1.0)


def test_no_pair_is_dropped_and_missing_scores_stay_missing():
    dataset = preference_dataset([pair(0), pair(1, better=None), pair(2, original=3.0, better=3.0)])
    assert dataset["id"] == ["p0", "p1", "p2"] and dataset[1]["score_chosen"] is None


def test_acceptance_is_strict():
    assert [p.id for p in accepted([pair(0), pair(1, original=4.0), pair(2, original=5.0), pair(3, better=None)])] == ["p0"]


def test_pairs_without_signal_are_listed_by_reason(load_micro):
    _, tokenizer = load_micro()
    same_start = "word " * 30
    pairs = [
        pair("fine"), pair("same", response="Yes."), pair("empty", response=" "), pair("tied", original=4.0), pair("unscored", original=None),
        pair("cut", response=same_start + "left", revised=same_start + "right"),
    ]  # fmt: skip
    assert pairs_without_signal(pairs, tokenizer, max_length=24) == {
        "identical": ["psame"], "empty": ["pempty"], "cut": ["pcut"], "tied": ["ptied"], "unscored": ["punscored"],
    }  # fmt: skip


@pytest.mark.parametrize("score, expected", [(0, 0.0), (5, 1.0), (2.5, 0.5)])
def test_scores_are_normalised_by_the_scale(score, expected):
    assert pair(0, better=score).normalised()[1] == expected


@pytest.mark.parametrize("original, better", [(0.0, 0.0), (0.0, None), (None, 0.0), (None, None)])
def test_a_pair_is_scored_where_both_answers_have_a_score_and_zero_is_one(original, better):
    assert pair(0, original=original, better=better).is_scored == (None not in (original, better))
    assert "is_scored" not in pair(0).model_dump()
