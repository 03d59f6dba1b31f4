"""Reward head and yes/no judge against plain unbatched forwards, and judges against labels (pytest tests/test_local_judges.py)."""

import math
from types import SimpleNamespace

import pytest
import torch
from tiny_models import tiny_causal_model, tiny_reward_model, tiny_tokenizer
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast

from common.judge import Judgement, Labelled, calibrate, judge_agreement
from common.local_judges import RewardHeadJudge, YesNoJudge, single_tokens
from common.statistics import agreement

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


def scripted_judge(scores, scale=(0.0, 1.0)):
    """A judge that looks its scores up by answer, and counts what it is asked."""
    asked = []

    def judge(prompts, answers):
        asked.extend(answers)
        return [Judgement(scores[answer], f"read {answer}") for answer in answers]

    return SimpleNamespace(name="scripted", scale=scale, judge=judge, asked=asked)


def test_agreement_worked_by_hand():
    # 10 answers, both say 1 on 4 and 0 on 3: equal 0.7; chance 0.6 * 0.5 + 0.4 * 0.5 = 0.5, so kappa = 0.2 / 0.5
    assert agreement([1] * 6 + [0] * 4, [1] * 4 + [0] * 2 + [1] + [0] * 3) == {"equal": pytest.approx(0.7), "kappa": pytest.approx(0.4), "n": 10}
    assert agreement([1, 1], [1, 1]) == {"equal": 1.0, "kappa": None, "n": 2}
    assert agreement([], []) == {"equal": None, "kappa": None, "n": 0}
    with pytest.raises(ValueError, match="got 1 and 2"):
        agreement([1], [1, 0])


def test_judge_agreement_lists_the_errors_and_counts_the_unscored_apart():
    judge = scripted_judge({"a": 5.0, "b": 2.5, "c": 3.0, "d": None, "e": 0.0}, scale=(0, 5))
    found = judge_agreement(judge, [Labelled(f"q{answer}", answer, label) for answer, label in zip("abcde", (1, 1, 0, 1, 0))])
    assert (found["equal"], found["n"], found["unscored"], found["kappa"]) == (0.5, 4, 1, 0.0)
    assert found["errors"] == [
        {"prompt": "qb", "answer": "b", "label": 1, "score": 2.5, "reply": "read b"},  # the middle of the scale is not its upper half
        {"prompt": "qc", "answer": "c", "label": 0, "score": 3.0, "reply": "read c"},
    ]


def shifted(count=40):
    """Answers whose scores tell the labels apart at 0.8 and not at 0.5."""
    labelled = [Labelled("q", f"answer {i}", i % 2) for i in range(count)]
    return scripted_judge({item.answer: 0.7 + 0.2 * item.label + 0.001 * i for i, item in enumerate(labelled)}), labelled


def test_calibration_moves_the_half_and_is_checked_on_labels_it_did_not_see():
    judge, labelled = shifted()
    calibrated, check = calibrate(judge, labelled)
    assert judge.asked == [item.answer for item in labelled]  # each is judged, and paid, once
    assert (check["as it is"]["equal"], check["as it is"]["kappa"], check["as it is"]["n"]) == (0.5, 0.0, 20)
    assert (check["calibrated"]["equal"], check["calibrated"]["kappa"], check["calibrated"]["errors"]) == (1.0, 1.0, [])
    low, high = calibrated.judge(["q"] * 2, ["answer 0", "answer 1"])
    assert 0 < low.score < 0.5 < high.score < 1 and low.reply == "read answer 0"


def test_calibration_keeps_the_order_and_leaves_the_unscored_alone():
    judge, labelled = shifted()
    calibrated, _ = calibrate(judge, labelled)
    mapped = [j.score for j in calibrated.map([Judgement(x / 10, "") for x in range(11)])]
    assert mapped == sorted(mapped) and len(set(mapped)) == 11
    assert calibrated.map([Judgement(None, "mute")]) == [Judgement(None, "mute")]


def test_a_judge_that_cannot_be_calibrated_says_why():
    judge, labelled = shifted()
    with pytest.raises(ValueError, match="scores answers of label 1 lower"):
        calibrate(judge, [item._replace(label=1 - item.label) for item in labelled])
    with pytest.raises(ValueError, match="both labels and different scores"):
        calibrate(judge, [item._replace(label=1) for item in labelled])
    with pytest.raises(ValueError, match="both labels and different scores"):
        calibrate(scripted_judge(dict.fromkeys((item.answer for item in labelled), 0.5)), labelled)
