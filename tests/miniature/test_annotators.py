"""Annotators of hidden types in the safety world (pytest tests/miniature/test_annotators.py)."""

import random
from collections import Counter

import pytest

from common.miniature.annotators import WANTS, annotated, recovered
from common.miniature.worlds import safety


@pytest.fixture(scope="module")
def labelled(pairs):
    return annotated([pair for pair in pairs if pair.is_scored], annotators=6, help_share=0.5, noise=0.0)


def test_everyone_labels_as_many_pairs_and_keeps_to_a_type(pairs, labelled):
    scored = [pair for pair in pairs if pair.is_scored]
    found, types = labelled
    counts = Counter(pair.annotator for pair in found)
    assert set(counts) == set(types) and max(counts.values()) - min(counts.values()) <= 1
    assert Counter(types.values()) == {"help": 3, "right": 3}
    assert [pair.id for pair in found] == [pair.id for pair in scored]
    for pair, before in zip(found, scored):
        assert {(pair.response, pair.score_response), (pair.response_revised, pair.score_revised)} == {
            (before.response, before.score_response), (before.response_revised, before.score_revised),
        }  # fmt: skip
        request = safety.read_request(pair.prompt)
        acts = [safety.oracle(request, answer).act for answer in (pair.response, pair.response_revised)]
        if types[pair.annotator] == "help":
            assert acts != ["comply", "refuse"]
        else:
            assert safety.grade(request, pair.response_revised) >= safety.grade(request, pair.response)


def test_labels_hang_on_the_seed_and_noise_exchanges_its_share_of_them(pairs):
    scored = [pair for pair in pairs if pair.is_scored] * 20
    clean, noisy = (annotated(scored, 10, 0.3, noise, seed=1)[0] for noise in (0.0, 0.25))
    assert annotated(scored, 10, 0.3, 0.25, seed=1)[0] == noisy and annotated(scored, 10, 0.3, 0.25, seed=2)[0] != noisy
    assert [pair.annotator for pair in clean] == [pair.annotator for pair in annotated(scored, 10, 0.3, 1.0, seed=1)[0]]
    grade = lambda pair: safety.grade(safety.read_request(pair.prompt), pair.response_revised) - safety.grade(safety.read_request(pair.prompt), pair.response)  # noqa: E731
    types = annotated(scored, 10, 0.3, 0.25, seed=1)[1]
    untied = [grade(pair) < 0 for pair in noisy if types[pair.annotator] == "right" and grade(pair)]
    assert sum(untied) / len(untied) == pytest.approx(0.25, abs=0.06)


def test_what_a_type_wants():
    rng, words = random.Random(0), safety.words_of("train")
    harmful, harmless = (safety.sample_request(rng, *words, harmful=which, wrapper="plain") for which in (True, False))
    answers = {request: {"refuse": safety.refuse(request, rng), "help": safety.comply(request, rng), "wrong": safety.comply(request, rng, wrong=True)} for request in (harmful, harmless)}
    wanted = {(name, request is harmful): [kind for kind, answer in answers[request].items() if wants(request.text, answer)] for name, wants in WANTS.items() for request in answers}
    assert wanted == {("right", True): ["refuse"], ("right", False): ["help"], ("help", True): ["help"], ("help", False): ["help"]}


def test_types_are_recovered_up_to_their_numbers():
    types = {"a": "right", "b": "right", "c": "help", "d": "help"}
    assert recovered({"a": (0.1, 0.9), "b": (0.4, 0.6), "c": (1, 0), "d": (0.8, 0.2)}, types) == (1.0, {"help": 0, "right": 1})
    assert recovered({"a": (1, 0), "b": (1, 0), "c": (0, 1), "d": (1, 0)}, types) == (0.75, {"help": 1, "right": 0})
    assert recovered({"a": (1, 0), "b": (1, 0)}, {"a": "right", "b": "right"}) == (1.0, {"right": 0})


@pytest.mark.parametrize("wrong", [{"help_share": 1.5}, {"noise": -0.1}, {"annotators": 10_000}, {"annotators": 0}])
def test_impossible_annotators_are_refused(pairs, wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} = {next(iter(wrong.values()))}"):
        annotated(list(pairs), **wrong)
