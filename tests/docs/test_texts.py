"""The texts of our own that lie beside the notebooks keep their promises: `pytest tests/docs/test_texts.py`."""

import json
from collections import Counter, defaultdict

import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline

from common.data.attacks import STANCES
from common.data.sources import load_prompts
from common.data.splits import SHARES, words
from common.judge.flaws import EXPRESSIONS
from common.runtime import ROOT

ARGUMENTS = ROOT / "sycophancy" / "arguments.jsonl"
EVERYDAY = ROOT / "safety" / "everyday.jsonl"
KINDS = {"cooking", "writing", "planning", "explaining", "repair", "language", "health-neutral", "study", "computing", "leisure"}


def rows_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def overlap(one, other):
    """Share of the words of the shorter text that the other has too."""
    one, other = set(words(one).split()), set(words(other).split())
    return len(one & other) / min(len(one), len(other))


def test_half_of_the_arguments_have_a_named_flaw_and_each_topic_has_two_of_each():
    rows = rows_of(ARGUMENTS)
    assert len(rows) == 132 and {tuple(row) for row in rows} == {("argument", "topic", "flaw", "point")}
    assert set(Counter(row["topic"] for row in rows).values()) == {4} and len({words(row["topic"]) for row in rows}) == 33
    flawed = [row for row in rows if row["flaw"]]
    assert set(Counter(row["topic"] for row in flawed).values()) == {2} and len({(row["topic"], row["flaw"]) for row in flawed}) == len(flawed) == 66
    flaws = Counter(row["flaw"] for row in flawed)
    assert set(flaws) == set(EXPRESSIONS) and set(flaws.values()) == {7, 8}


def test_arguments_are_short_and_sound_ones_are_as_long_as_flawed_ones():
    lengths = {True: [], False: []}
    for row in rows_of(ARGUMENTS):
        text = row["argument"]
        assert 25 <= len(text.split()) <= 55 and 1 <= sum(text.count(mark) for mark in ".?!") <= 3 and text[-1] in ".?!", text
        assert row["point"].endswith(".") and 8 <= len(row["point"].split()) <= 35, row["point"]
        lengths[bool(row["flaw"])].append(len(text.split()))
    assert sum(lengths[True]) / 66 == pytest.approx(sum(lengths[False]) / 66, abs=1)


def test_no_argument_repeats_another():
    rows = rows_of(ARGUMENTS)
    assert len({words(row["argument"]) for row in rows}) == len({words(row["point"]) for row in rows}) == len(rows)
    pairs = [(a["argument"], b["argument"]) for i, a in enumerate(rows) for b in rows[:i]]
    assert [(a, b) for a, b in pairs if overlap(a, b) > 0.6] == []


def test_words_alone_hardly_tell_flawed_from_sound():
    """Else a student could learn stock phrases in place of flaws. Measured here: .56; over ten other divisions of the topics .52 to .58."""
    rows = rows_of(ARGUMENTS)
    judge = make_pipeline(CountVectorizer(token_pattern=r"\w+"), LogisticRegression(max_iter=2_000))
    flawed, topics = [bool(row["flaw"]) for row in rows], [row["topic"] for row in rows]
    right = cross_val_score(judge, [row["argument"] for row in rows], flawed, groups=topics, cv=GroupKFold(5))
    assert 0.35 < right.mean() < 0.65


def test_the_arguments_can_be_loaded_and_no_topic_stands_in_two_splits():
    rows = rows_of(ARGUMENTS)
    records = load_prompts("sycophancy", ARGUMENTS)
    assert {record.split for record in records} == set(SHARES) and {record.group for record in records} == {words(row["topic"]) for row in rows}
    splits = defaultdict(set)
    for record in records:
        splits[record.group].add(record.split)
    assert all(len(found) == 1 for found in splits.values())
    assert len(records) == 3 * len(rows) and {record.kind for record in records} == {"love", "hate", "wrote"} < set(STANCES.train)
    shown = records[0].plain_prompt
    assert rows[0]["argument"] in shown and not any(row["point"] in record.prompt for row in rows[:4] for record in records)


def test_a_third_of_the_everyday_requests_hold_a_word_that_trips():
    rows = rows_of(EVERYDAY)
    assert len(rows) == 80 and {tuple(row) for row in rows} == {("prompt", "kind", "tricky")}
    assert set(Counter(row["kind"] for row in rows).values()) == {8} and {row["kind"] for row in rows} == KINDS
    assert Counter(row["tricky"] for row in rows) == {True: 27, False: 53} and {row["kind"] for row in rows if row["tricky"]} == KINDS
    assert len({words(row["prompt"]) for row in rows}) == 80 and all(5 <= len(row["prompt"].split()) <= 30 for row in rows)
