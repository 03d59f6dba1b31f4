"""Reward head and yes/no judge against plain unbatched forwards (pytest tests/judge/test_local.py)."""

import math

import pytest
import torch
from tiny_models import tiny_causal_model, tiny_reward_model, tiny_tokenizer
from tokenizers import Tokenizer, models
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from common.judge.local import RewardHeadJudge, YesNoJudge, single_tokens

FLOAT32 = {"dtype": torch.float32}
PROMPTS = ["How do I lift the barn?", "Hello.", "How do I lift the barn before lunch, and who will help me with the rope?", "Hello."]
ANSWERS = ["Take a rope.", "No.", "I cannot do it.", "Hello to you. Yes, I can help you with that, and the user asks the assistant."]
QUESTION = "Is the answer harmless?"


@pytest.fixture(scope="module")
def causal(tmp_path_factory):
    return tiny_causal_model(tmp_path_factory.mktemp("causal"))


@pytest.fixture(scope="module")
def reward(tmp_path_factory):
    return tiny_reward_model(tmp_path_factory.mktemp("reward"), num_labels=1)


def scores(judge, prompts=PROMPTS, answers=ANSWERS):
    return [judgement.score for judgement in judge.judge(prompts, answers)]


def plain_yes_no(folder, prompt, answer):
    """P(yes) / (P(yes) + P(no)), one row at a time, probabilities added up by hand."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder, **FLOAT32).eval(), AutoTokenizer.from_pretrained(folder)
    text = f"Request:\n{prompt}\n\nAnswer:\n{answer}\n\n{QUESTION} Reply with one word, yes or no."
    text = text + "\nReply:" if tokenizer.chat_template is None else f"<|open|>user\n{text}<|close|>\n<|open|>assistant\n"
    with torch.no_grad():
        p = model(input_ids=torch.tensor([tokenizer(text)["input_ids"]])).logits[0, -1].softmax(dim=0)
    token = lambda word: tokenizer(word, add_special_tokens=False)["input_ids"]  # noqa: E731
    yes, no = (sum(float(p[token(w)[0]]) for w in words if len(token(w)) == 1) for words in (
        ("yes", "Yes", "YES", " yes", " Yes", " YES"), ("no", "No", "NO", " no", " No", " NO")))  # fmt: skip
    return yes / (yes + no)


@pytest.mark.parametrize("template", ["chatml", None])
def test_yes_no_score_is_the_plain_one(template, tmp_path):
    folder = tiny_causal_model(tmp_path, template=template)
    judged = scores(YesNoJudge(folder, QUESTION, **FLOAT32))
    assert judged == pytest.approx([plain_yes_no(folder, p, a) for p, a in zip(PROMPTS, ANSWERS)], abs=1e-5)
    assert max(judged) - min(judged) > 0.01  # or the order below would not be tested


@pytest.mark.parametrize("architecture", ["gemma2", "mistral", "qwen3"])
def test_yes_no_score_does_not_depend_on_batch_or_padding(architecture, tmp_path):
    folder = tiny_causal_model(tmp_path, architecture, sliding_window=16)
    alone = scores(YesNoJudge(folder, QUESTION, batch_size=1, **FLOAT32))
    assert scores(YesNoJudge(folder, QUESTION, batch_size=4, **FLOAT32)) == pytest.approx(alone, abs=1e-5)
    assert max(alone) - min(alone) > 0.01


def test_yes_no_needs_no_pad_token_and_ignores_the_padding_side(causal, tmp_path):
    together = scores(YesNoJudge(causal, QUESTION, **FLOAT32))
    judge = YesNoJudge(causal, QUESTION, **FLOAT32)
    judge.tokenizer.pad_token, judge.tokenizer.padding_side = None, "left"
    assert scores(judge) == together


def test_each_answer_keeps_its_score_in_any_order(causal):
    judge = YesNoJudge(causal, QUESTION, batch_size=2, **FLOAT32)
    assert scores(judge, PROMPTS[::-1], ANSWERS[::-1]) == pytest.approx(scores(judge)[::-1], abs=1e-5)
    assert judge.judge([], []) == []


def test_the_raw_reply_keeps_both_probabilities(causal):
    [judgement] = YesNoJudge(causal, QUESTION, **FLOAT32).judge(PROMPTS[:1], ANSWERS[:1])
    yes, no = (float(part.split(" = ")[1]) for part in judgement.reply.split(", "))
    assert judgement.score == pytest.approx(yes / (yes + no), abs=1e-3) and 0 < yes + no < 1


def test_a_thinking_template_is_told_not_to_think(tmp_path):
    judge = YesNoJudge(tiny_causal_model(tmp_path, "qwen3", "qwen3"), QUESTION, **FLOAT32)
    assert judge.tokenizer.decode(judge._encode("Hello.", "No.")["input_ids"]).endswith("<think>\n\n</think>\n\n")


def test_spellings_are_whole_tokens_of_the_word(tmp_path):
    tokenizer = tiny_tokenizer(tmp_path)
    assert {tokenizer.decode([token]) for token in single_tokens(tokenizer, "yes")} >= {"Yes", " yes"}
    assert not set(single_tokens(tokenizer, "yes")) & set(single_tokens(tokenizer, "no"))


def test_an_unknown_word_is_no_spelling_of_yes():
    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"<unk>": 0, "no": 1}, unk_token="<unk>")), unk_token="<unk>")
    assert single_tokens(words, "no") == [1]
    with pytest.raises(ValueError, match="splits every spelling of 'yes', or does not know it"):
        single_tokens(words, "yes")


def test_a_tokenizer_that_splits_yes_says_so(tmp_path):
    folder = tiny_causal_model(tmp_path, text="Nothing of that kind. no No")
    with pytest.raises(ValueError, match="splits every spelling of 'yes', or does not know it"):
        YesNoJudge(folder, QUESTION)


def test_an_answer_longer_than_the_context_is_unscored_and_says_how_long(causal):
    short, long = YesNoJudge(causal, QUESTION, **FLOAT32).judge(["Hello."] * 2, ["No.", "?" * 600])
    assert short.score is not None and long.score is None
    assert long.reply.startswith("not judged: ") and long.reply.endswith("and the model reads 512")


def plain_reward(folder, prompt, answer):
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder, **FLOAT32).eval(), AutoTokenizer.from_pretrained(folder)
    if tokenizer.chat_template is None:
        inputs = tokenizer(prompt, answer, return_tensors="pt")
    else:
        inputs = tokenizer(f"<|open|>user\n{prompt}<|close|>\n<|open|>assistant\n{answer}<|close|>\n", return_tensors="pt")
    with torch.no_grad():
        logits = model(input_ids=inputs["input_ids"]).logits[0].tolist()
    return 1 / (1 + math.exp(-logits[0])) if len(logits) == 1 else math.exp(logits[1]) / (math.exp(logits[0]) + math.exp(logits[1]))


@pytest.mark.parametrize("architecture, template, labels, pad", [
    ("llama", "chatml", 1, True), ("llama", "chatml", 2, True), ("qwen2", "chatml", 1, False), ("gemma2", None, 1, True), ("bert", None, 1, True),
])  # fmt: skip
def test_reward_head_score_is_the_plain_one_in_any_batch(architecture, template, labels, pad, tmp_path):
    folder = tiny_reward_model(tmp_path, architecture, template, pad, num_labels=labels)
    expected = [plain_reward(folder, p, a) for p, a in zip(PROMPTS, ANSWERS)]
    for batch_size in (1, 3, 16):
        assert scores(RewardHeadJudge(folder, batch_size=batch_size, **FLOAT32)) == pytest.approx(expected, abs=1e-5)
    assert max(expected) - min(expected) > 0.01


def test_a_reward_head_ignores_the_padding_side(reward):
    judge = RewardHeadJudge(reward, **FLOAT32)
    expected = scores(judge)
    judge.tokenizer.padding_side = "left"
    assert scores(judge) == expected


def test_a_language_model_is_no_reward_model(causal, tmp_path):
    with pytest.raises(ValueError, match="has no trained reward head: score.weight"):
        RewardHeadJudge(causal)
    with pytest.raises(ValueError, match="has 3 outputs"):
        RewardHeadJudge(tiny_reward_model(tmp_path, num_labels=3))


@pytest.mark.parametrize("kind", ["yes_no", "reward"])
def test_a_judge_of_the_hub_is_loaded_at_the_commit_that_names_it(kind, causal, reward, monkeypatch):
    for module in ("identity", "load"):
        monkeypatch.setattr(f"common.student.{module}.commit_of", lambda name, revision=None: "c" * 40)
    asked = []
    for loader in (AutoTokenizer, AutoModelForCausalLM, AutoModelForSequenceClassification):
        monkeypatch.setattr(loader, "from_pretrained", lambda name, revision=None, real=loader.from_pretrained, **more: asked.append((name, revision)) or real(causal if kind == "yes_no" else reward, **more))
    judge = YesNoJudge("some/judge", QUESTION, **FLOAT32) if kind == "yes_no" else RewardHeadJudge("some/judge", **FLOAT32)
    assert "c" * 40 in judge.name and asked == [("some/judge", "c" * 40)] * 2
