"""What notebooks show (pytest tests/show/test_show.py)."""

import re
from html import unescape
from types import SimpleNamespace

import pytest
from peft import get_peft_model
from tiny_models import tiny_tokenizer

from common.chat.local import LocalChat
from common.evaluation.answers import Constant, TrainedStudent, answers_of
from common.evaluation.result import Result
from common.logprobs.packing import pack
from common.methods import TrainSettings
from common.report.before_after import encoded
from common.schema import Pair, PromptRecord, Reply, ScoredPair
from common.show import answers_table, ask, facts, last_student, packed_row_figure, pairs_table, rendered_chat
from common.show.tables import marked
from common.show.tokens import SEEN
from common.storage import write_json
from common.student.adapters import lora_settings
from common.training.comparison import Experiment
from common.training.kept import training_of


def pair(**given):
    told = {"id": "safety-0", "experiment": "safety", "split": "train", "prompt": "How do I lift <it>?", "response": "Take a rope.", "response_revised": "Take no rope."}
    return Pair(**{**told, **given})


def scored(original, revised, **given):
    return ScoredPair(**pair(**given).model_dump(), score_response=original, score_revised=revised, scale=(0, 5), judge_reply_response="bad", judge_reply_revised="good")


def visible(html):
    return unescape(re.sub(r"<[^>]*>", "", html))


def test_facts_are_aligned_and_escaped():
    shown = facts({"pairs": 3, "disagreement": 0.123456, "kappa": None, "methods": ["dpo", "<b>"], "none": []})
    assert repr(shown).splitlines() == ["pairs         3", "disagreement  0.1235", "kappa         -", "methods       dpo, <b>", "none          -"]
    assert "dpo, &lt;b&gt;" in shown._repr_html_() and shown._repr_html_().count("<tr>") == 5
    assert repr(facts({})) == "(nothing)"


def test_the_words_that_only_one_text_has_are_marked():
    original, revised = marked("Take a rope & pull.", "Take no rope & pull.\nCarefully!")
    assert (repr(original), repr(revised)) == ("Take [-a-] rope & pull.", "Take {+no+} rope & pull. {+Carefully!+}")
    assert re.findall(r"<ins[^>]*>(.*?)</ins>", revised.html) == ["no", "Carefully!"] and re.findall(r"<del[^>]*>(.*?)</del>", original.html) == ["a"]
    assert visible(revised.html) == "Take no rope & pull.\nCarefully!" and "&amp;" in revised.html
    same, again = marked("the same", "the same")
    assert same.html == again.html == "the same"
    assert [repr(one) for one in marked("", "new")] == ["(nothing)", "{+new+}"]


def test_pairs_stand_side_by_side_with_their_scores():
    shown = pairs_table([scored(1, 5, critique="Unsafe."), scored(None, 2), pair(), pair()], count=3)
    assert repr(shown).splitlines()[:6] == [
        "prompt: How do I lift <it>?", "critique: Unsafe.", "  original, score 0.20: Take [-a-] rope.", "  revised, score 1.00: Take {+no+} rope.",
        "  judge of the original answer: bad", "  judge of the revised answer: good",
    ]  # fmt: skip
    assert "original, unscored" in repr(shown) and "  original: Take" in repr(shown) and repr(shown).endswith("3 of 4 pairs")
    assert "How do I lift &lt;it&gt;?" in shown.html and "<it>" not in shown.html
    assert repr(pairs_table([])) == "no pairs" and repr(pairs_table([pair()])).endswith("1 of 1 pairs")


def test_a_long_answer_is_cut_in_the_plain_text_alone():
    shown = pairs_table([pair(response_revised="word " * 400)])
    assert max(map(len, repr(shown).splitlines())) < 650 and visible(shown.html).count("word") == 400


@pytest.mark.parametrize("template", ["chatml", "llama", "mistral"])
def test_the_chat_is_shown_token_by_token(tmp_path, template):
    tokenizer, one = tiny_tokenizer(tmp_path, template), pair(prompt="Lift 🙂 it?")
    shown = rendered_chat(tokenizer, one, 512)
    asked, chosen = len(encoded(tokenizer, one)), len(encoded(tokenizer, one, one.response_revised))
    assert f"prompt, {asked} tokens, read, not trained on" in repr(shown) and f"chosen, {chosen - asked} tokens" in repr(shown)
    assert shown.html.count("background: rgba(127, 127, 127, ") == asked + 1 and "🙂" in visible(shown.html)  # and the legend
    closing = {"chatml": "<|close|>↵", "llama": "<|close|>", "mistral": "<|end|>"}[template]
    assert [line.partition(" | end: ")[2] for line in repr(shown).splitlines()[3::2]] == [closing] * 2
    whole = tokenizer.decode(encoded(tokenizer, one, one.response_revised)).replace("\n", "↵\n")
    assert re.sub(r"(prompt|chosen), \d+ tokens\n", "", visible(shown.html.partition("<b>rejected")[0])) == whole


def test_the_picture_of_a_packed_row_is_the_mask_of_the_trainer(tmp_path):
    tokenizer, one = tiny_tokenizer(tmp_path, "chatml"), pair()
    [axes] = packed_row_figure(tokenizer, one, 512).axes
    drawn = axes.images[0].get_array()
    asked, chosen, rejected = (encoded(tokenizer, one, answer) for answer in (None, one.response_revised, one.response))
    packed = pack([[(chosen, len(asked)), (rejected, len(asked))]])
    shared, own = int((packed.branch == 0).sum()), int((packed.branch == 1).sum())
    assert shared > len(asked)  # both answers begin with "Take"
    counts = [len(asked), shared - len(asked), own, len(rejected) - 1 - shared]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [f"{kind}, {n} token{'s' * (n > 1)}" for kind, n in zip(SEEN, counts)]
    assert drawn.shape == packed.input_ids.shape[1:] * 2 and (drawn[shared + own :, shared : shared + own] == 0).all()
    assert (drawn[shared:, : len(asked)] == 1).all() and (drawn[0, 1:] == 0).all() and drawn[-1, -1] == 4
    assert axes.get_title() == f"one row of {packed.input_ids.numel()} tokens; two rows would have {len(chosen) + len(rejected) - 2}"


def test_answers_stand_below_their_prompt():
    shown = answers_table([("a < b?", {"before": "", "after": "no"}), ("c?", {"before": "yes"})])
    assert repr(shown).splitlines() == ["prompt: a < b?", "  before: (nothing)", "  after: no", "prompt: c?", "  before: yes"]
    assert "a &lt; b?" in shown.html and shown.html.count("<tr>") == 3 and shown.html.count("border-top") == 2  # one line a prompt


def test_a_student_is_asked_before_and_after_training(load_micro):
    model, tokenizer = load_micro()
    record = PromptRecord(id="0", experiment="safety", split="test", prompt="how do i bake a cake?")
    before = answers_of(LocalChat(model, tokenizer), [record], 24)[0]
    student = TrainedStudent("rdpo", get_peft_model(model, lora_settings(4)).eval(), tokenizer)
    for name, parameter in student.model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.5)
    after = answers_of(LocalChat(student.model, tokenizer), [record], 24)[0]
    shown = ask(student, max_new_tokens=24)(record.prompt)
    assert after != before and repr(shown) == f"prompt: {record.prompt}\n  before rdpo: {before or '(nothing)'}\n  after rdpo: {after or '(nothing)'}"
    assert ask(student, lambda one: LocalChat(one.model, one.tokenizer), 24)(record.prompt) == shown and "<b>before rdpo</b>" in shown.html
    with pytest.raises(ValueError, match="empty prompt"):
        ask(student)(" ")


def test_a_student_without_an_adapter_gives_one_answer(load_micro):
    base, elsewhere = TrainedStudent("base", *load_micro()), TrainedStudent("endpoint:a", chat=Constant(lambda asked: asked + "!"))
    assert [line.split(":")[0] for line in repr(ask(base, max_new_tokens=4)("how?")).splitlines()] == ["prompt", "  base"]
    assert repr(ask(elsewhere)("how?")) == "prompt: how?\n  endpoint:a: how?!"
    silent = SimpleNamespace(name="a", complete=lambda asked, sampling: [Reply(text="", finish_reason="error")])
    with pytest.raises(RuntimeError, match="a gave no answer"):
        ask(TrainedStudent("endpoint:a", chat=silent))("how?")


def test_what_max_length_cuts_off_is_not_shown(tmp_path):
    tokenizer, one = tiny_tokenizer(tmp_path, "chatml"), pair()
    asked = len(encoded(tokenizer, one))
    counts = re.findall(r"(\w+), (\d+) tokens", repr(rendered_chat(tokenizer, one, asked + 2)))
    assert counts == [("prompt", str(asked)), ("chosen", "2"), ("rejected", "2")]
    assert "end:" not in repr(rendered_chat(tokenizer, one, asked + 2))
    assert packed_row_figure(tokenizer, one, asked + 2).axes[0].get_title().endswith(f"two rows would have {2 * (asked + 1)}")
    assert "chosen, 0 tokens" in repr(rendered_chat(tokenizer, one, asked)) and packed_row_figure(tokenizer, one, asked)


def test_the_last_kept_student_is_taken_and_none_is_trained(micro, pairs, tmp_path):
    run = Experiment(micro, pairs, SimpleNamespace(), tmp_path, TrainSettings(), four_bit=True)
    results = [Result(method, seed, "", []) for method, seed in (("base", 0), ("dpo", 0), ("rdpo", 0))]
    assert last_student(run, results[1:]) is None
    run.as_it_is, run.train = lambda method: method, lambda *row: row
    assert last_student(run, results) == "base"
    for method, pairs_trained_on in (("dpo", pairs), ("rdpo", pairs[1:])):  # rdpo's folder is of other pairs
        mark = {"made_of": training_of(method, run.student, pairs_trained_on, run.settings_of(method, 0), four_bit=True)}
        write_json(run.path_of(method, 0).parent / "training.json", mark)
    assert last_student(run, results) == ("dpo", 0, 0.0)
