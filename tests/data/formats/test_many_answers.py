"""Formats with rated answers, two or more a prompt, ten rows each (pytest tests/data/formats/test_many_answers.py)."""

import pytest
from written import ALL, DRINKS, ask, assistant, bad, good, read, texts, user

ARGILLA = [{"instruction": ask(drink), "generations": [bad(drink), good(drink), f"Ask about {drink} later."], "ratings": [1, 5, 3]} for drink in DRINKS]
HELPSTEER = [
    {"prompt": ask(drink), "response": text(drink), "helpfulness": helpful, "correctness": correct, "coherence": 4, "complexity": 1, "verbosity": verbose}
    for drink in DRINKS[:5] for text, helpful, correct, verbose in ((good, 4, 3, 4), (bad, 1, 3, 0))
]  # fmt: skip
KTO = [{"prompt": ask(drink), "completion": text(drink), "label": label} for drink in DRINKS[:5] for text, label in ((good, True), (bad, False))]


def test_argilla_s_best_and_worst_rated_generation(tmp_path):
    found = read(tmp_path, ARGILLA, (1, 5))
    assert texts(found) == ALL and found.format == "rated generations (Argilla, distilabel)" and found.scored == 10
    assert found.pairs[0].normalised == (1.0, 0.0) and found.left_out.counts == {"answers beside the best and the worst": 10}


def test_generations_may_be_messages(tmp_path):
    answers = [[assistant(bad("tea"))], assistant(good("tea")), "Ask about tea later."]
    assert texts(read(tmp_path, [{**ARGILLA[0], "generations": answers}], (1, 5))) == [ALL[0]]
    with pytest.raises(ValueError, match="line 1: column generations: 7 is no message"):
        read(tmp_path, [{**ARGILLA[0], "generations": [7, 8, 9]}], (1, 5))


def test_ratings_that_make_no_pair_are_counted(tmp_path):
    rows = [*ARGILLA, {**ARGILLA[0], "ratings": [2, 2, 2]}, {**ARGILLA[0], "ratings": [2, None, ""]}, {**ARGILLA[0], "generations": [], "ratings": []}]
    found = read(tmp_path, rows, (1, 5))
    assert texts(found) == ALL
    assert found.left_out.counts == {"answers beside the best and the worst": 10, "prompts whose answers are scored alike": 1, "answers without a score": 2, "prompts with fewer than two scored answers": 2}


def test_distilabel_s_other_names_and_ratings_as_text(tmp_path):
    rows = [{"input": ask(drink), "system": "Be brief.", "generations": [good(drink), bad(drink)], "rating": ["4", "2,5"]} for drink in DRINKS]
    found = read(tmp_path, rows, (1, 5))
    assert texts(found) == ALL and found.pairs[0].score_rejected == 2.5 and found.pairs[0].system == "Be brief."


@pytest.mark.parametrize("changed, message", [
    ({"ratings": [1, 2]}, "line 2: 3 generations and 2 ratings; give one for each"), ({"ratings": [1, 9, 3]}, "line 2: column ratings: 9 lies outside 1 to 5"),
    ({"ratings": [1, "good", 3]}, "line 2: column ratings: 'good' is no finite, valid number"), ({"generations": "['a', 'b']"}, "line 2: column generations: .* is no list; save the data as JSONL or Parquet"),
])  # fmt: skip
def test_broken_ratings_are_named(changed, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, [ARGILLA[0], {**ARGILLA[1], **changed}], (1, 5))


def test_helpsteer_s_rows_are_joined_by_prompt_and_scored_by_helpfulness(tmp_path):
    found = read(tmp_path, HELPSTEER, (0, 4))
    assert texts(found) == ALL[:5] and found.format == "attribute scores, weighed by helpfulness" and found.pairs[0].normalised == (1.0, 0.25)
    assert found.pairs[1].where.endswith("rows.jsonl, line 3 and line 4")


def test_weights_make_a_mean_that_stays_on_the_range(tmp_path):
    found = read(tmp_path, HELPSTEER, (0, 4), {"helpfulness": 0.5, "correctness": 0.25, "verbosity": -0.25})
    assert (found.pairs[0].score_chosen, found.pairs[0].score_rejected) == (0.5 * 4 + 0.25 * 3 + 0.25 * 0, 0.5 * 1 + 0.25 * 3 + 0.25 * 4)
    turned = read(tmp_path, HELPSTEER, (0, 4), {"verbosity": -1})
    assert texts(turned)[0] == (ask("tea"), bad("tea"), good("tea")) and turned.pairs[0].normalised == (1.0, 0.0)
    assert read(tmp_path, HELPSTEER[:1] + [{**HELPSTEER[1], "helpfulness": None}] + HELPSTEER[2:], (0, 4)).left_out.counts == {"answers without a score": 1, "prompts with fewer than two scored answers": 1}


@pytest.mark.parametrize("weights, message", [
    ({"helpfullness": 1}, "the nearest is attribute scores, weighed by helpfullness, which also needs helpfullness, did you mean helpfulness?"),
    ({"helpfulness": 0}, "the weight of helpfulness is a finite number other than 0"), ({"helpfulness": float("nan")}, "the weight of helpfulness is a finite"),
])  # fmt: skip
def test_weights_that_weigh_nothing_are_refused(weights, message, tmp_path):
    with pytest.raises(ValueError) as refused:
        read(tmp_path, HELPSTEER, (0, 4), weights)
    assert message in str(refused.value)


def test_answers_that_weigh_the_same_are_no_pair_for_an_error_of_rounding(tmp_path):
    rows = [{"prompt": "P?", "response": text, "helpfulness": h, "correctness": c} for text, h, c in (("a", 1, 0), ("b", 0, 3))]
    with pytest.raises(ValueError, match="prompts whose answers are scored alike: 1"):
        read(tmp_path, rows, (0, 4), {"helpfulness": 0.3, "correctness": 0.1})


def test_answers_are_compared_within_one_annotator(tmp_path):
    thumb = lambda text, label, who: {"prompt": "P?", "completion": text, "label": label, "annotator": who}  # noqa: E731
    found = read(tmp_path, [thumb("a", True, "ann"), thumb("a", False, "ben"), thumb("b", True, "ben"), thumb("b", False, "ann")])
    assert [(one.chosen, one.rejected, one.annotator) for one in found.pairs] == [("a", "b", "ann"), ("b", "a", "ben")]
    rated = lambda text, score, who: {"prompt": "P?", "response": text, "helpfulness": score, "annotator": who}  # noqa: E731
    found = read(tmp_path, [rated("a", 4, "ann"), rated("b", 1, "ann"), rated("a", 0, "ben"), rated("b", 2, "ben")], (0, 4))
    assert [(one.chosen, one.rejected, one.annotator) for one in found.pairs] == [("a", "b", "ann"), ("b", "a", "ben")]


def test_weights_for_another_format_are_refused(tmp_path):
    with pytest.raises(ValueError, match="read as rated generations .*, which has no attribute scores to weigh; leave the weights out"):
        read(tmp_path, ARGILLA, (1, 5), {"helpfulness": 1})


def test_helpsteer_2_s_prompts_of_several_turns(tmp_path):
    prompt = "Hello.\n<extra_id_1>Assistant\nGood day.\n<extra_id_1>User\nHow do I warm tea?"
    found = read(tmp_path, [{**row, "prompt": prompt} for row in HELPSTEER[:2]] + [{**row, "prompt": prompt + "\n<extra_id_1>Assistant\nSlowly."} for row in HELPSTEER[2:4]], (0, 4))
    assert texts(found) == ALL[:1] and found.pairs[0].history == [user("Hello."), assistant("Good day.")]
    assert found.left_out.counts == {"prompts without a request before the answer": 1}


@pytest.mark.parametrize("written_as", [lambda row: row, lambda row: {**row, "label": str(row["label"])}, lambda row: {**row, "label": int(row["label"])}, lambda row: {"prompt": [user(row["prompt"])], "completion": [assistant(row["completion"])], "label": row["label"]}])
def test_thumbs_are_joined_by_prompt(written_as, tmp_path):
    found = read(tmp_path, [written_as(row) for row in [*KTO[::2], *KTO[1::2]]])
    assert texts(found) == ALL[:5] and found.format == "thumbs up and down (KTO)" and found.scored == 0
    assert found.pairs[0].where.endswith("line 1 and line 6")


def test_thumbs_without_one_of_the_other_label_are_counted(tmp_path):
    found = read(tmp_path, [*KTO, {**KTO[0], "completion": "Gently."}, {**KTO[0], "prompt": "And rice?"}])
    assert texts(found) == ALL[:5] and found.left_out.counts == {"answers without one of the other label to their prompt": 2}
    with pytest.raises(ValueError, match="line 11: column label: 'maybe' is neither true nor false"):
        read(tmp_path, [*KTO, {**KTO[0], "label": "maybe"}])
    with pytest.raises(ValueError, match=r"no pair in .*read as thumbs .*; 5 rows, 0 pairs.*other label to their prompt: 5 \(first: line 1\); give other rows"):
        read(tmp_path, KTO[::2])
