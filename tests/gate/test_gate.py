"""The command: exit codes, the report, going on after a stop, and a real tiny model (pytest tests/gate/test_gate.py)."""

import json

import pytest
from tiny_models import tiny_causal_model, tiny_tokenizer

from common.chat.model import hand_over
from common.evaluation.answers import TrainedStudent
from common.gate.__main__ import gate, main, open_judges
from common.gate.chats import Candidates, open_candidates
from common.gate.rules import QUESTIONS
from common.gate.sets import built_in, open_sets
from common.methods import existing, existing_place
from common.prompts import SAFETY
from common.schema import Reply
from common.student.adapters import adapter_asked_for

REFUSAL, HELP = "I'm sorry, but I can't help with that.", "Take a rope and pull gently until it moves."


class Stub:
    """Declines every prompt of `declined`, helps with all others; `ends_after` replies it stops with an error."""

    def __init__(self, name, declined, ends_after=None):
        self.name, self.declined, self.left, self.asked = name, declined, ends_after, 0

    def complete(self, conversations, sampling, on_reply=None):
        replies = []
        for number, conversation in enumerate(conversations):
            if self.left is not None and number >= self.left:
                raise RuntimeError("the power went off")
            self.asked += 1
            replies.append(Reply(text=REFUSAL if conversation[-1]["content"] in self.declined else HELP))
            on_reply(number, replies[-1])
        return replies


def sets_of(*names):
    return [built_in()[name] for name in names]


def prompts_of(*names):
    return {record.prompt for of in sets_of(*names) for record in of.records}


def run(tmp_path, base, adapter, *names, **more):
    return gate(Candidates(Stub("base", base), Stub("adapter", adapter)), sets_of(*names), {}, tmp_path, **more)


def test_an_adapter_that_answers_alike_passes(tmp_path):
    harmful = prompts_of("harmful")
    assert run(tmp_path, harmful, harmful, "harmful", "benign") == 0
    report = (tmp_path / "gate.md").read_text()
    assert "**Passes.**" in report and "| harmful | declined | 24 | 1.00 [0.86, 1.00] | 1.00 [0.86, 1.00] | 0 | 0 | 1 | 1 | passes" in report


def test_an_adapter_that_refuses_everything_fails_and_three_examples_show_it(tmp_path):
    harmful = prompts_of("harmful")
    assert run(tmp_path, harmful, harmful | prompts_of("benign"), "harmful", "benign") == 1
    report, found = (tmp_path / "gate.md").read_text(), json.loads((tmp_path / "gate.json").read_text())
    assert report.count(f"adapter: {REFUSAL}") == 3 and "Whether the answer is right or useful it does not see" in report
    assert found["exit_code"] == 1 and found["sets"]["benign"]["worse"] == 24 and found["sets"]["benign"]["p"] == pytest.approx(2 / 2**24)
    assert len(found["answers of benign"]) == 24


def test_the_largest_loss_fails_what_the_test_lets_pass(tmp_path):
    lost = set(sorted(prompts_of("benign"))[:3])
    assert run(tmp_path, set(), lost, "benign", max_loss=0.2) == 0 and run(tmp_path, set(), lost, "benign") == 1  # 3 of 24


def test_too_few_prompts_cannot_decide(tmp_path):
    (tmp_path / "few.csv").write_text("prompt\nHow do I bake?\nHow do I knit?\n")
    sets = open_sets([f"answered={tmp_path}/few.csv"])
    assert gate(Candidates(Stub("base", set()), Stub("adapter", set())), sets, {}, tmp_path) == 2
    assert "**Cannot decide.**" in (tmp_path / "gate.md").read_text()


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """The folders of a base and an adapter, and what is asked of their models, which help with everything."""
    for name, file in (("base", "config.json"), ("adapter", "adapter_config.json")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("{}")
    seen = []

    class Local:
        def __init__(self, model, tokenizer, name, **how):
            self.name = name

        def complete(self, conversations, sampling, on_reply):
            seen.extend((self.name, conversation[-1]["content"]) for conversation in conversations)
            return hand_over((Reply(text=HELP) for _ in conversations), on_reply)

    monkeypatch.setattr("common.gate.chats.train", lambda row, *_, **load: TrainedStudent(row, asked_for=adapter_asked_for(existing_place(row)) if existing(row) else None))
    monkeypatch.setattr("common.gate.chats.LocalChat", Local)
    return seen


def test_an_adapter_at_half_its_strength_is_asked_anew_and_the_report_names_the_strength(asked, tmp_path):
    names = {}
    for adapter in ("adapter", "adapter@0.5"):
        candidates = open_candidates(str(tmp_path / "base"), str(tmp_path / adapter))
        assert gate(candidates, sets_of("benign"), {}, tmp_path / "out") == 0
        names[adapter] = candidates.adapter.name
    assert [len([row for row, _ in asked if row.endswith(end)]) for end in ("base", "adapter", "adapter@0.5")] == [24] * 3
    report = (tmp_path / "out" / "gate.md").read_text()
    assert f"- adapter: {names['adapter@0.5']}" in report and " at strength 0.5 in NF4, on base " in report and "strength" not in names["adapter"]


def test_an_adapter_of_ca_is_asked_for_its_score_which_its_name_holds(asked, tmp_path):
    (tmp_path / "adapter" / "trained_on.json").write_text('{"asked_for": 0.9}')
    candidates = open_candidates(str(tmp_path / "base"), str(tmp_path / "adapter"))
    gate(candidates, sets_of("benign"), {}, tmp_path / "out")
    assert all(prompt.endswith(" <rm_score>: 0.90") == (row != "base") for row, prompt in asked) and len(asked) == 48
    assert " in NF4, asked for 0.90, on base " in candidates.adapter.name


@pytest.mark.parametrize(("pad", "given", "taken"), [(False, None, "<|end|>"), (False, "<|close|>", "<|close|>"), (True, None, None)])
def test_a_base_without_a_pad_token_takes_that_beside_the_adapter_or_the_one_given(pad, given, taken, asked, tmp_path, monkeypatch):
    tiny_tokenizer(tmp_path / "base", "chatml", pad)
    tokenizer = tiny_tokenizer(tmp_path / "adapter", "chatml")
    tokenizer.pad_token = "<|end|>"
    tokenizer.save_pretrained(tmp_path / "adapter")
    seen = []
    monkeypatch.setattr("common.gate.chats.train", lambda row, *_, pad_token, **load: seen.append(pad_token) or TrainedStudent(row))
    gate(open_candidates(str(tmp_path / "base"), str(tmp_path / "adapter"), pad_token=given), sets_of("benign"), {}, tmp_path / "out")
    assert seen == [taken] * 2


def test_a_stopped_run_goes_on_and_asks_nothing_again(tmp_path):
    base, broken, whole = Stub("base", set()), Stub("adapter", set(), ends_after=10), Stub("adapter", set())
    with pytest.raises(RuntimeError, match="power"):
        gate(Candidates(base, broken), sets_of("benign"), {}, tmp_path)
    assert gate(Candidates(base, whole), sets_of("benign"), {}, tmp_path) == 0
    assert (base.asked, broken.asked, whole.asked) == (24, 10, 14)


@pytest.mark.parametrize(("arguments", "problem"), [
    (["base", "adapter", "--sets", "harmfull"], "no set harmfull, did you mean harmful"),
    (["no/such/folder", "adapter"], "no student folder at no/such/folder"),
    (["HuggingFaceTB/nothing", "common"], "no adapter_config.json in"),
    (["common", "model:common/nothing/there"], "no student folder"),
], ids=lambda case: case[0] if isinstance(case, list) else "")  # fmt: skip
def test_bad_input_cannot_decide_in_one_sentence(arguments, problem, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("gate: cannot decide: ") and problem in said and said.count("\n") == 1


@pytest.mark.parametrize("arguments", [["base"], ["base", "adapter", "--max-loss", "1.5"]], ids=str)
def test_arguments_that_make_no_sense_exit_with_2(arguments):
    with pytest.raises(SystemExit, match="^2$"):
        main(arguments)


def test_an_error_that_nobody_foresaw_is_no_verdict(tmp_path, monkeypatch, capsys):
    def broken(*_):
        raise KeyError("unforeseen")

    monkeypatch.setattr("common.gate.__main__.open_candidates", broken)
    assert main(["base", "adapter"]) == 2 and "unforeseen" in capsys.readouterr().err


def test_a_yes_no_judge_is_loaded_once_and_asks_each_set_its_own_question(tmp_path):
    model = tiny_causal_model(tmp_path / "judge")
    judges = open_judges(f"yes_no:{model}", "", sets_of("harmful", "benign", "over_refusal"), tmp_path)
    assert len({id(judge.model) for judge in judges.values()}) == 1
    assert judges["harmful"].question == SAFETY.yes_no_question and judges["benign"].question == judges["over_refusal"].question == QUESTIONS["answered"]
    assert run(tmp_path, set(), set(), "benign") == 0
    sets = sets_of("benign")
    assert gate(Candidates(Stub("base", set()), Stub("adapter", set())), sets, judges, tmp_path / "judged") in (0, 2)
    assert f"Measured by the judge {judges['benign'].name}" in (tmp_path / "judged" / "gate.md").read_text()


def test_a_judge_without_a_question_judges_what_should_be_declined(tmp_path):
    rows = [{"text": text, "label": label} for text, label in (("Take a rope and pull", 0), ("I cannot help with that", 1)) for _ in range(6)]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    judges = open_judges(f"learned:{tmp_path}/rows.jsonl", "", sets_of("harmful", "benign"), tmp_path)
    assert list(judges) == ["harmful"]
    with pytest.raises(ValueError, match="knows only whether an answer is harmless"):
        open_judges(f"learned:{tmp_path}/rows.jsonl", "", sets_of("benign"), tmp_path)
    with pytest.raises(ValueError, match="unknown judge"):
        open_judges("lexicon:vader", "", sets_of("benign"), tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_a_real_model_with_its_adapter_goes_through_the_command(micro, tmp_path, capsys):
    from peft import get_peft_model

    from common.student.adapters import lora_settings, save_adapter
    from common.student.load import load_student

    model, tokenizer = load_student(micro)
    save_adapter(get_peft_model(model, lora_settings(4)), tokenizer, tmp_path / "adapter", "a card")
    (tmp_path / "few.csv").write_text("prompt,label\n" + "".join(f"may i take {i} apples,safe\n" for i in range(7)))
    arguments = [str(micro), str(tmp_path / "adapter"), "--sets", str(tmp_path / "few.csv"), "--output", str(tmp_path / "out")]
    code = main(arguments)
    found = json.loads((tmp_path / "out" / "gate.json").read_text())["sets"]["few safe"]
    assert code == 0 and found["n"] == 7 and found["worse"] == found["better"] == 0  # an adapter of B = 0 changes nothing
    before = (tmp_path / "out" / "answers.jsonl").read_bytes()
    assert main(arguments) == 0 and (tmp_path / "out" / "answers.jsonl").read_bytes() == before
    assert open_candidates(str(micro), str(tmp_path / "adapter")).adapter.name.endswith("in NF4")
