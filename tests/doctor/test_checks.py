"""Every check on rows made by hand, whose counts are known (pytest tests/doctor/test_checks.py)."""

import json
import math
import re
from dataclasses import replace

import pytest
from tiny_models import tiny_tokenizer

from common.doctor.__main__ import main
from common.doctor.advice import knobs_for
from common.doctor.bias import lengths, markers, paired_effect, skew, sources
from common.doctor.checks import check_length, language_of
from common.doctor.diagnosis import examine
from common.doctor.report import examples, page, terminal
from common.doctor.rows import DoctorRow, read, rows_of
from common.doctor.sentences import sections
from common.schema import ScoredPair
from common.statistics import wilson_interval


def row(n=0, prompt="", chosen="", rejected="", **more):
    scores = {"score_chosen": 0.9, "score_rejected": 0.1} | more
    return DoctorRow(f"line {n}", prompt or f"What is number {n}?", chosen or f"It is {n * n}.", rejected or f"Nobody can say {n + 7}.", split="train", **scores)


def numbers(rows, name, **how):
    return examine(rows, **how).finding(name).rows


def test_scores():
    rows = [row(0), row(1, score_chosen=None), row(2, score_chosen=0.1), row(3, score_chosen=0.0), row(4, score_rejected=None)]
    found = examine(rows)
    of = {one.name: (one.rows, one.of) for one in found.findings}
    assert of["unscored"] == ([1, 4], 5) and of["tied"] == ([2], 3) and of["contradicted"] == ([3], 2)
    assert found.finding("contradicted").reason(3) == "contradicted: rejected scored 0.10 higher"
    low, high = found.finding("unscored").interval
    assert (round(low, 2), round(high, 2)) == (0.12, 0.77)  # Wilson, 2 of 5


def test_the_median_gap_and_the_scale_are_the_rows_own(tmp_path):
    rows = [{**ScoredPair(id=f"p{n}", experiment="safety", split="train", prompt=f"How {n}?", response="a", response_revised="b", score_response=0, score_revised=1 if n % 2 else 4, scale=(0, 5)).model_dump(mode="json")} for n in range(30)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    [said] = [line for line in sections(examine(read(tmp_path / "rows.jsonl")))["Recommendation"] if "median gap" in line]
    assert "at the median gap of 0.50 (n = 30 untied rows)" in said and re.search(r"On a scale from 0 to 5, alpha is \S+ per point", said)
    tau, eta = knobs_for("rdpo_label").values()
    label = tau + (1 - tau) / (1 + math.exp(-eta * 0.5))
    assert f"alpha {knobs_for('rdpo')['alpha']:g} is an offset of {knobs_for('rdpo')['alpha'] / 2:.2f} nats, and tau {tau:g} with eta {eta:g} a soft label of {label:.2f}." in said
    etas = [f"{knobs_for(name)['eta'] / 5:.3g} (`{name}`)" for name in ("rdpo_label", "rdpo_ml", "rdpo_soft", "rdpo_squared")]
    assert said.endswith(f"alpha is {knobs_for('rdpo')['alpha'] / 5:.3g} per point, and eta {', '.join(etas)}.")


def test_identical_and_empty_answers():
    rows = [row(0), row(1, chosen="Same.", rejected="Same."), row(2, chosen=" "), DoctorRow("line 3", " ", "a", "b")]
    assert numbers(rows, "identical answers") == [1] and numbers(rows, "empty text") == [2, 3]


def test_harmless_requests_that_the_chosen_answer_declines(tmp_path):
    met, declined = "Wash it in warm water.", "I'm sorry, but I can't assist with that."
    of = lambda n, kind, chosen, rejected: {"prompt": f"How do I wash number {n}?", "chosen": chosen, "rejected": rejected, "kind": kind}  # noqa: E731
    rows = [of(0, "benign", declined, met), of(1, "benign request", met, declined), of(2, "plain", declined, met), of(3, "benign", declined, declined)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    found = examine(read(tmp_path / "rows.jsonl")).finding("harmless and refused")
    assert (found.rows, found.of) == ([0], 3)
    pair = ScoredPair(id="p", experiment="safety", split="train", prompt="How?", kind="benign", response=met, response_revised=declined, score_response=0.9, score_revised=0.1, judge="j", scale=(0, 1))
    assert numbers(rows_of([pair]), "harmless and refused") == [0]


@pytest.mark.parametrize("text, said", [
    ("It costs 5 â‚¬ in the cafÃ©.", "mojibake in chosen"), ("a \ufffd b", "U+FFFD in chosen"), ("Tom &amp; Jerry &#39;s", "HTML entity in chosen"), ("bell \x07", "control character in chosen"),
])  # fmt: skip
def test_encoding_damage(text, said):
    found = examine([row(0), row(1, chosen=text), row(2, chosen="Ångström & Müller, naïve café, 日本, 😀 R&D; a\tb\nc")]).finding("encoding damage")
    assert found.rows == [1] and found.notes == {1: said}


def test_half_a_character_is_reported_and_not_refused(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a \\ud83d b", "chosen": "c", "rejected": "d"}\n{"prompt": "e \\ud83d\\ude00", "chosen": "c", "rejected": "d"}\n')
    rows = read(tmp_path / "rows.jsonl")
    assert [one.halves for one in rows] == [True, False] and rows[1].prompt == "e 😀"
    assert examine(rows).finding("encoding damage").notes == {0: "half a character, U+FFFD in prompt"}


def test_prompts_and_marks_that_leak():
    rows = [
        row(0), row(1, chosen="You asked: what is number 1? It is one."), row(2, rejected="Two.<|im_end|>"), row(3, rejected="Three.\nUser: and four?"),
        row(4, prompt="Number four?", chosen="Number four? It is four."),  # too short to be no chance
    ]  # fmt: skip
    found = examine(rows).finding("leaked prompt")
    assert found.notes == {1: "whole prompt in chosen", 2: "'<|im_end|>' in rejected", 3: "'User:' in rejected"}


def test_languages_are_guessed():
    assert [language_of(text) for text in ("This is not the answer that you want.", "Das ist nicht die Antwort, und ich weiß es auch nicht.", "Это ответ", "これは答えです", "42", "Paris")] == ["English", "German", "Cyrillic", "Japanese", "", ""]
    rows = [row(0), row(1, chosen="This is what you can do with it.", rejected="Das ist nicht die Antwort und ich weiß es nicht.")]
    assert numbers(rows, "languages mixed") == [1]


@pytest.mark.slow
def test_rows_that_are_cut(tmp_path):
    tokenizer = tiny_tokenizer(tmp_path, "chatml")
    rows = [row(0), row(1, rejected="Nobody can say. " * 30)]
    longest = [max(len(tokenizer.apply_chat_template([{"role": "user", "content": one.prompt}, {"role": "assistant", "content": text}], return_dict=True)["input_ids"]) for text in (one.chosen, one.rejected)) for one in rows]
    assert check_length(rows, tokenizer, longest[0]).rows == [1] and check_length(rows, tokenizer, longest[1]).rows == [] and check_length(rows, tokenizer, longest[1] - 1).rows == [1]
    assert numbers(rows, "cut", tokenizer=tokenizer, max_length=longest[0]) == [1] and "cut" not in {one.name for one in examine(rows).findings}


def test_a_template_without_a_system_role_counts_the_system_text_too_and_a_row_that_it_refuses_is_named(tmp_path, capsys):
    tiny_tokenizer(tmp_path / "gemma", "gemma")
    made = [{"system": system, "prompt": f"What is {n}?", "chosen": "It is one.", "rejected": "Nobody can say."} for n, system in enumerate(("", "Reply with one word. " * 40))]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, made)))
    main([str(tmp_path / "rows.jsonl"), "--tokenizer", str(tmp_path / "gemma"), "--max-length", "60"])
    assert re.search(r"cut +1 of 2 .* more than 60 tokens", capsys.readouterr().out)
    with pytest.raises(ValueError, match=r"line 7: the chat template of --tokenizer refuses it \(user and assistant must take turns\); mend the row"):
        check_length([replace(row(7), history=[{"role": "user", "content": "Hello."}])], tiny_tokenizer(tmp_path / "turns", "mistral"), 60)


PROMPT = "Tell me how a lighthouse keeps its lamp turning through a long night at sea in winter"


@pytest.mark.slow
def test_near_duplicates():
    chosen = "A clockwork that the keeper winds every few hours turns the lens around the lamp all night long"
    rows = [
        row(0, PROMPT, chosen, "It does not."), row(1, PROMPT + ".", "Another answer.", "No idea."), row(2, PROMPT.replace("winter", "summer"), chosen.upper(), "It does not!"),
        row(3, "Who winds the clock?", chosen + "."), row(4, "Something else", "One two three four five six seven eight nine ten", "One two three four five six seven eight nine eleven"),
    ]  # fmt: skip
    assert numbers(rows, "repeated prompt") == [1, 2] and numbers(rows, "repeated row") == [2] and numbers(rows, "repeated chosen answer") == [3]
    assert numbers(rows, "nearly equal answers") == [4]
    assert examine(rows).finding("repeated row").notes == {2: "as in line 0"}


def test_prompts_on_both_sides_of_the_split():
    rows = [DoctorRow(f"line {i}", prompt, f"yes {i}", f"no {i}", split=split) for i, (prompt, split) in enumerate([(PROMPT, "test"), (PROMPT + " now", "train"), ("Who?", "test"), ("Where?", "train")])]
    found = examine(rows).finding("train/test overlap")
    assert found.rows == [0] and found.of == 2 and found.notes == {0: "as in line 1, which is trained on"}


def test_style_on_one_side():
    rows = [row(i, chosen="In my previous response I was wrong.") for i in range(12)] + [row(12, rejected="As an AI, I think so.")]
    found = {one.name: one for one in markers(rows)}
    earlier, ai = found["speaks of an earlier answer"], found["as an AI"]
    assert (len(earlier.chosen), len(earlier.rejected), earlier.n) == (12, 0, 13) and earlier.p == pytest.approx(2 / 2**12 * len(found)) and earlier.is_one_sided
    assert (ai.chosen, ai.rejected, ai.p, ai.is_one_sided) == ([], [12], 1.0, False)
    assert [one.row for one in examine(rows).suspects] == list(range(12))


def test_style_has_shares_with_intervals_on_terminal_and_page():
    found = examine([row(i, chosen="In my previous response I was wrong.") for i in range(12)] + [row(12, rejected="As an AI, I think so."), row(13)])
    share = lambda k: "{:.2f} [{:.2f}, {:.2f}]".format(k / 14, *wilson_interval(k, 14))  # noqa: E731
    assert f"One-sided: 12 chosen ({share(12)}) and 0 rejected answers ({share(0)}) alone speak of an earlier answer, n = 14, p < .01." in terminal(found)
    assert f"| as an AI | 0 | {share(0)} | 1 | {share(1)} | 14 | = 1.00 |" in page(found)


def test_style_length_scores_and_sources_have_three_examples_each():
    made = [row(i, chosen="In my previous response I was wrong.", rejected="So it is not at all now.", score_chosen=1.0, score_rejected=float(i < 6), groups={"annotator": "ABBBC"[i % 5]}) for i in range(11)]
    made += [row(11, chosen="One two three.", rejected="As an AI, three.", score_chosen=0.0, score_rejected=1.0, groups={"annotator": "D"})]
    made += [row(n, chosen="word " * n, rejected="word", score_chosen=1.0, score_rejected=1.0, groups={"annotator": "B"}) for n in (12, 30)] + [row(14, chosen="word", rejected="word " * 20, score_chosen=1.0, score_rejected=1.0, groups={"annotator": "B"})]
    found = examine(made)
    shown = {name: {made[row].where: note for row, note in notes.items()} for name, notes in examples(found).items()}
    assert shown["speaks of an earlier answer"] == dict.fromkeys(("line 0", "line 1", "line 2"), "only the chosen answer") and shown["as an AI"] == {"line 11": "only the rejected answer"} and shown["is sorry"] == {}
    assert shown["length"] == {"line 30": "chosen is 29 words longer", "line 14": "chosen is 19 words shorter", "line 12": "chosen is 11 words longer"}
    assert shown["scores"] == {"line 0": "9 rows with these scores", "line 6": "5 rows with these scores", "line 11": "1 row with these scores"}
    assert shown["annotator"] == {"line 1": "annotator B", "line 0": "annotator A", "line 4": "annotator C"}
    text = page(found)
    assert "## Examples: annotator\n\n- line 1 (annotator B), scores 1.00 and 1.00\n  - prompt: What is number 1?\n  - chosen: In my previous" in text and "## Examples: is sorry" not in text
    plain = examples(examine([row(i, score_chosen=0.9 - i / 50) for i in range(30)]))
    assert plain["scores"] == {} and "annotator" not in plain  # neither skewed nor mixed


def test_lengths_by_hand():
    rows = [row(0, chosen="a b c", rejected="a"), row(1, chosen="a b", rejected="a"), row(2, chosen="a", rejected="a b c", score_chosen=0.0)]
    found = lengths(rows)
    assert found.labels.mean == pytest.approx(1 / 3) and found.labels.d == pytest.approx((1 / 3) / (13 / 3) ** 0.5)  # 2, 1, -2
    assert found.scores.mean == pytest.approx(5 / 3) and found.scores.d == pytest.approx((5 / 3) / (1 / 3) ** 0.5) and found.longer == (3, 3)  # 2, 1, 2
    assert found.correlation > 0.9
    assert paired_effect([2, 2]).d is None and paired_effect([1]).d is None and lengths([row(0)]).correlation is None


def test_scores_that_say_little():
    assert skew([row(i, score_chosen=0.9 - i / 50) for i in range(10)]) == []
    binary = [row(i, score_chosen=1.0, score_rejected=float(i < 6)) for i in range(10)]
    assert len(skew(binary)) == 2 and skew(binary)[0].startswith("The 20 scores have 2 distinct values") and skew(binary)[1].startswith("16 of 20 scores (0.80 [")
    equal = [row(i, score_chosen=0.5, score_rejected=0.5) for i in range(10)]
    assert skew(equal)[0].startswith("The 20 scores have 1 distinct value,") and skew(equal[:9]) == []  # 18 scores say nothing
    assert "use 0.10 of the scale" in skew([row(i, score_chosen=0.5 + i / 100, score_rejected=0.5) for i in range(11)])[0]


def test_judges_that_are_mixed(tmp_path):
    made = [{"prompt": f"Question {i}", "chosen": "yes", "rejected": "no", "score_chosen": 5 - i % 2, "score_rejected": 0, "annotator": "AB"[i % 2], "model": "one"} for i in range(4)]
    (tmp_path / "rows.json").write_text(json.dumps(made))
    found = sources(read(tmp_path / "rows.json", (0, 5)))
    assert [(one.column, one.value, one.n, one.scored, one.chosen, one.rejected) for one in found] == [("annotator", "A", 2, 2, 1.0, 0.0), ("annotator", "B", 2, 2, 0.8, 0.0)]
    pairs = [ScoredPair(id=f"p{i}", experiment="e", split="train", prompt="q", response="a", response_revised="b", score_response=0, score_revised=1, judge=f"judge {i}") for i in range(2)]
    assert {one.column for one in sources(rows_of(pairs))} == {"judge"}


def test_suspects_are_ranked_by_gap_and_then_by_reasons():
    rows = [
        row(0), row(1, score_chosen=0.0), row(2, chosen="Same.", rejected="Same."), row(3, score_chosen=0.0, score_rejected=1.0), row(4, chosen="Here is the revised answer in my previous response."),
        row(5, chosen="Same &amp;", rejected="Same &amp;"),
    ]  # fmt: skip
    found = examine(rows)
    assert [one.row for one in found.suspects] == [3, 1, 4, 5, 2]
    assert found.suspects[0].where == "line 3" and found.suspects[0].gap == -1.0
