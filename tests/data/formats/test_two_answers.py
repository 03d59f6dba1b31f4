"""Formats with two answers a row, ten rows each, and what gives no pair (pytest tests/data/formats/test_two_answers.py)."""

import pytest
from written import ALL, DRINKS, ask, assistant, bad, good, read, texts, turn, user, written

from common.data.formats.read import read_preferences


def transcript(*said):
    return "".join(f"\n\n{('Human', 'Assistant')[i % 2]}: {text}" for i, text in enumerate(said))


PLAIN = [{"prompt": ask(drink), "chosen": good(drink), "rejected": bad(drink)} for drink in DRINKS]
IMPLICIT = [{"chosen": [user(ask(drink)), assistant(good(drink))], "rejected": [user(ask(drink)), assistant(bad(drink))]} for drink in DRINKS]
FORMATS = {
    "TRL's plain texts": PLAIN,
    "texts with a system prompt, as truthy-dpo": [{"id": n, "source": "ours", "system": "Be brief.", **row} for n, row in enumerate(PLAIN)],
    "Orca pairs": [{"system": "Be brief.", "question": ask(drink), "chosen": good(drink), "rejected": bad(drink)} for drink in DRINKS],
    "instructions with an input (Alpaca)": [{"instruction": ask(drink), "input": "", "chosen": good(drink), "rejected": bad(drink), "system": "Be brief."} for drink in DRINKS],
    "Orca pairs, distilabel's edition": [{"system": "Be brief.", "input": ask(drink), "chosen": good(drink), "rejected": bad(drink), "chosen_score": None} for drink in DRINKS],
    "message lists, prompt in its own column": [{"prompt": [user(ask(drink))], "chosen": [assistant(good(drink))], "rejected": [assistant(bad(drink))]} for drink in DRINKS],
    "message lists, prompt inside (implicit)": IMPLICIT,
    "HH-RLHF transcripts": [{"chosen": transcript(ask(drink), good(drink)), "rejected": transcript(ask(drink), bad(drink))} for drink in DRINKS],
}  # fmt: skip


@pytest.mark.parametrize(("name", "rows"), FORMATS.items(), ids=FORMATS)
def test_ten_rows_give_the_same_ten_pairs(name, rows, tmp_path):
    found = read(tmp_path, rows)
    assert texts(found) == ALL and found.format == name.split(", distilabel")[0] and not found.left_out.counts and found.scored == 0
    assert {one.system for one in found.pairs} == {"Be brief." if "system" in rows[0] else ""} and not any(one.history for one in found.pairs)
    assert found.pairs[2].where.endswith("rows.jsonl, line 3") and f"read as {found.format}; 10 rows, 10 pairs, 0 with both scores" in found.account()


def test_ultrafeedback_binarized_brings_scores_and_its_prompt_twice(tmp_path):
    rows = [{"prompt": ask(drink), "prompt_id": str(n), **IMPLICIT[n], "messages": IMPLICIT[n]["chosen"], "score_chosen": 8.0, "score_rejected": 3.0} for n, drink in enumerate(DRINKS)]
    found = read(tmp_path, rows, (1, 10))
    assert texts(found) == ALL and found.scored == 10 and found.format == "message lists, prompt in its own column"
    assert (found.pairs[0].score_chosen, found.pairs[0].score_rejected) == (8.0, 3.0) and found.pairs[0].normalised == (7 / 9, 2 / 9)
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 1: column score_chosen: 8 lies outside 0 to 1; give the range of the scores with --score-range"):
        read_preferences(tmp_path / "rows.jsonl")


@pytest.mark.parametrize("chosen, rejected", [("chosen_score", "rejected_score"), ("chosen_rating", "rejected_rating"), ("chosen-rating", "rejected-rating"), ("rating_chosen", "rating_rejected")])
def test_scores_under_the_names_that_others_use(chosen, rejected, tmp_path):
    found = read(tmp_path, [{**row, chosen: 5, rejected: "2"} for row in PLAIN], (1, 5))
    assert found.scored == 10 and (found.pairs[0].score_chosen, found.pairs[0].score_rejected) == (5.0, 2.0)


def test_one_score_column_alone_is_refused(tmp_path):
    with pytest.raises(ValueError, match="line 1: it has score_chosen alone; give both of score_chosen and score_rejected, or none"):
        read(tmp_path, [{**row, "score_chosen": 1} for row in PLAIN])


def test_a_table_of_texts_with_scores(tmp_path):
    found = read(tmp_path, [{**row, "score_chosen": 1, "score_rejected": None} for row in PLAIN])
    assert found.format == "a table of texts with scores" and found.scored == 0 and found.pairs[0].score_chosen == 1.0


def test_a_conversation_s_turns_become_system_history_and_prompt(tmp_path):
    before = [turn("system", "Be brief."), user("Hello."), assistant("Good day."), user(ask("tea"))]
    rows = [
        {"chosen": [*before, assistant("Yes.")], "rejected": [*before, assistant("No.")]},
        {"chosen": [user(" Hello. "), assistant("Good day."), user(ask("tea")), assistant("Yes.")], "rejected": [*before[1:], assistant("No.")]},
    ]
    found = read(tmp_path, rows)
    assert [(one.system, one.history, one.prompt, one.opening) for one in found.pairs] == [(system, before[1:3], ask("tea"), "Hello.") for system in ("Be brief.", "")]
    explicit = read(tmp_path, [{"prompt": before, "chosen": [assistant("Yes.")], "rejected": [assistant("No.")]}])
    assert (explicit.pairs[0].system, explicit.pairs[0].history, explicit.pairs[0].prompt) == ("Be brief.", before[1:3], ask("tea"))
    assert texts(read(tmp_path, [{"prompt": ask("tea"), "chosen": [assistant("Yes.")], "rejected": [assistant("No.")]}])) == [(ask("tea"), "Yes.", "No.")]


def test_transcripts_of_several_turns(tmp_path):
    rows = [
        {"chosen": transcript("Hello.", "Good day.", ask("tea"), "Slowly.\n\nAnd stir."), "rejected": transcript("Hello.", "Good day.", ask("tea"), "No.")},
        {"chosen": transcript("Hello.", "Good day."), "rejected": transcript("Hello!", "No.")},
        {"chosen": transcript("Hello.", "Good day.", "And?"), "rejected": transcript("Hello.", "Good day.", "So?")},
        {"chosen": "Well. " + transcript("Hello.", "Yes."), "rejected": transcript("Hello.", "No.")},
        {"chosen": transcript("Hello.", "Yes."), "rejected": transcript("Hello.", "Yes.")},
    ]
    found = read(tmp_path, rows)
    assert texts(found) == [(ask("tea"), "Slowly.\n\nAnd stir.", "No."), ("Hello.", "Yes.", "Yes.")] and found.pairs[0].history == [user("Hello."), assistant("Good day.")]
    assert found.left_out.counts == {"rows whose answers follow different turns": 1, "rows whose last turn is not the assistant's": 1, "rows with words before the first turn": 1}
    assert "left out, rows whose answers follow different turns: 1 (first: line 2)" in found.account() and found.as_dict()["left_out"]["rows with words before the first turn"] == 1
    beside = read(tmp_path, [{"prompt": transcript("Hello.", "Good day.", ask("tea"), ""), "chosen": "Yes.", "rejected": "No."}])
    assert texts(beside) == [(ask("tea"), "Yes.", "No.")] and len(beside.pairs[0].history) == 2


def test_a_prompt_inside_of_texts_is_what_both_share_up_to_a_space(tmp_path):
    rows = [{"chosen": f"The {drink} is warm.", "rejected": f"The {drink} is water-cold."} for drink in DRINKS]
    rows += [{"chosen": "Yes.", "rejected": "No."}, {"chosen": "The tea is", "rejected": "The tea is cold."}]
    found = read(tmp_path, rows)
    assert texts(found)[:10] == [(f"The {drink} is", "warm.", "water-cold.") for drink in DRINKS] and texts(found)[10] == ("The tea", "is", "is cold.")
    assert found.format == "TRL's plain texts, prompt inside (implicit)" and found.left_out.counts == {"rows whose texts share no beginning": 1}


@pytest.mark.parametrize("column", ["user_prompt", "Prompt", "Question", "problem", "request", "user_input", "task"])
def test_a_prompt_in_a_column_of_another_name_is_asked_for_and_not_cut_out_of_the_answers(column, tmp_path):
    rows = [{column: ask(drink), "chosen": f"The {drink} is warm.", "rejected": f"The {drink} is cold."} for drink in DRINKS]
    with pytest.raises(ValueError, match="the nearest is TRL's plain texts, which also needs prompt"):
        read(tmp_path, rows)


def test_answers_that_share_no_beginning_hold_no_prompt(tmp_path):
    rows = [{"zzz": ask(drink), "chosen": good(drink), "rejected": bad(drink)} for drink in DRINKS] + [{"chosen": "It is so.", "rejected": "It is not."}]
    with pytest.raises(ValueError, match="rows.jsonl, line 1: chosen and rejected share no beginning, nor do those of most other rows, so the prompt is not in them; give it in a column prompt"):
        read(tmp_path, rows)


@pytest.mark.parametrize("names", [("chosen-score", "rejected-score"), ("Score_chosen", "Score_rejected"), ("chosen reward", "rejected reward"), ("chosen_avg_rating", "rejected_avg_rating")])
def test_scores_are_read_by_any_usual_name(names, tmp_path):
    [one] = read(tmp_path, [{"prompt": "P?", "chosen": "a", "rejected": "b", names[0]: 0.75, names[1]: 0.25}]).pairs
    assert (one.score_chosen, one.score_rejected) == (0.75, 0.25)


def test_scores_under_two_names_are_read_where_they_are_and_unknown_names_are_told(tmp_path):
    rows = [{"prompt": "P?", "chosen": "a", "rejected": "b", "score_chosen": 1.0, "score_rejected": 0.0, "chosen_rating": None, "rejected_rating": None}]
    rows += [{"prompt": "Q?", "chosen": "a", "rejected": "b", "score_chosen": None, "score_rejected": None, "chosen_rating": 0.5, "rejected_rating": 0.25}]
    assert [one.normalised for one in read(tmp_path, rows).pairs] == [(1.0, 0.0), (0.5, 0.25)]
    with pytest.raises(ValueError, match="line 1: it has chosen_score alone; give both of score_chosen and score_rejected, or none"):
        read(tmp_path, [{"prompt": "P?", "chosen": "a", "rejected": "b", "chosen_score": 1.0}])
    unread = read(tmp_path, [{"prompt": "P?", "chosen": "a", "rejected": "b", "my_scores": 3}])
    assert unread.account().endswith("not read, though it may hold scores: column my_scores; call it score_chosen or score_rejected")


def test_a_system_turn_on_one_side_alone_belongs_to_the_whole(tmp_path):
    asked, said = [user(ask("tea"))], lambda text: [assistant(text)]
    system = [{"role": "system", "content": "Be brief."}]
    for prompt, before in ((asked, system + asked), (system + asked, asked), (system + asked, system + asked), (system + asked, [])):
        [one] = read(tmp_path, [{"prompt": prompt, "chosen": before + said("Yes."), "rejected": before + said("No.")}]).pairs
        assert (one.system, one.history, one.prompt, one.chosen) == ("Be brief.", [], ask("tea"), "Yes.")
    other = [{"role": "system", "content": "Be long."}]
    with pytest.raises(ValueError, match="rows whose prompt and answers have different system turns: 1"):
        read(tmp_path, [{"prompt": system + asked, "chosen": other + asked + said("Yes."), "rejected": other + asked + said("No.")}])


def test_an_instruction_s_history_and_context_are_part_of_what_is_asked(tmp_path):
    row = {"instruction": "And why?", "context": "Zero is a number.", "history": [["Is 0 even?", " It is. "]], "chosen": "a", "rejected": "b"}
    [one] = read(tmp_path, [row]).pairs
    assert one.history == [user("Is 0 even?"), assistant("It is.")] and one.prompt == "And why?\n\nZero is a number." and one.opening == "Is 0 even?"
    assert read(tmp_path, [{**row, "history": None, "context": None}]).pairs[0].prompt == "And why?"


def test_a_prompt_inside_of_texts_may_end_with_its_line(tmp_path):
    rows = [{"chosen": "What is 2+2?\nFour", "rejected": "What is 2+2?\nTwo"}, {"chosen": "### Response:\nParis", "rejected": "### Response:\nLyon"}]
    assert texts(read(tmp_path, rows)) == [("What is 2+2?", "Four", "Two"), ("### Response:", "Paris", "Lyon")]


def test_an_instruction_is_never_left_out(tmp_path):
    row = {"instruction": "Translate into German.", "input": "good morning", "chosen": "guten Morgen", "rejected": "gut Morgen"}
    assert texts(read(tmp_path, [row])) == [("Translate into German.\n\ngood morning", "guten Morgen", "gut Morgen")]
    beside = {**PLAIN[0], "input": "", "question": "another", "score_chosen": 1, "score_rejected": 0}
    assert texts(read(tmp_path, [beside])) == [(ask("tea"), good("tea"), bad("tea"))]  # a prompt goes before them
    with pytest.raises(ValueError, match="no known format; its columns are chosen, query, rejected"):
        read(tmp_path, [{"query": "Is it?", "chosen": "The one.", "rejected": "The other."}])


ODD = {
    "rows with a turn of role 'tool'": [user("a"), turn("tool", "b"), assistant("c")],
    "rows with a turn that is no text": [user("a"), turn("assistant", None)],
    "rows whose last turn is not the assistant's": [user("a"), assistant("b"), user("c")],
    "rows without a request before the answer": [assistant("b")],
    "rows whose turns do not alternate between user and assistant": [user("a"), user("b"), assistant("c")],
}


@pytest.mark.parametrize(("reason", "odd"), ODD.items(), ids=ODD)
def test_rows_that_give_no_pair_are_counted_by_reason(reason, odd, tmp_path):
    found = read(tmp_path, [*IMPLICIT, {"chosen": odd, "rejected": odd}, {"chosen": odd, "rejected": odd}])
    assert texts(found) == ALL and found.rows == 12 and found.left_out.counts == {reason: 2} and found.left_out.first == {reason: "line 11"}


@pytest.mark.parametrize("broken, message", [
    ("So.", "line 11: column chosen: 'So.' is no list of messages, as the first row has one"),
    (["So."], "line 11: column chosen: 'So.' is no message; each has a role and a content"),
    ([{"from": "human", "value": "So."}], "line 11: column chosen: .* is no message"),
])  # fmt: skip
def test_what_is_no_message_is_named(broken, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, [*IMPLICIT, {**IMPLICIT[0], "chosen": broken}])


def test_lists_printed_into_a_csv_are_refused(tmp_path):
    (tmp_path / "rows.csv").write_text('prompt,chosen,rejected\nTea?,"[{\'role\': \'assistant\', \'content\': \'Yes.\'}]","[{\'role\': \'assistant\', \'content\': \'No.\'}]"\n')
    with pytest.raises(ValueError, match=r"rows\.csv, line 2: column chosen: messages in place of a text"):
        read_preferences(tmp_path / "rows.csv")


def test_the_notebooks_pairs_keep_scale_split_and_group(tmp_path):
    line = {"id": "1", "experiment": "safety", "split": "ood", "prompt": "Tea?", "instruction": "In one word.", "group": "drinks", "response": "No.", "response_revised": "Yes.", "score_response": -5, "score_revised": 5, "scale": [-5, 5]}
    found = read_preferences(written(tmp_path, [line], "scored.jsonl"))
    [one] = found.pairs
    assert (one.prompt, one.chosen, one.rejected, one.split, one.opening) == ("Tea?\n\nIn one word.", "Yes.", "No.", "ood", "drinks") and one.normalised == (1.0, 0.0)
