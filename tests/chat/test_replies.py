"""Every reply cleaned and understood in one place, whoever said it: `pytest tests/chat/test_replies.py`."""

import time

import pytest

from common.chat.kept import KeptChat
from common.chat.replies import clean, understood
from common.schema import Reply, Sampling, fingerprint
from common.storage import JsonlStore

THOUGHTS = [
    "<think>\nplan\n</think>\n\nfine", "plan, plan\n</think>\n\nfine", "<THINKING>plan</Thinking>fine", "<think>\n\n</think>\n\nfine", "<thought>plan</thought>\nfine",
    "<think>plan <think>more</think> plan</think>fine", "<seed:think>plan</seed:think>fine", "<reasoning>plan</reasoning>\nfine", "<think/>fine", "<think type='x'>plan</think >fine",
    "◁think▷plan◁/think▷fine", "[THINK]plan[/THINK]fine", "<|begin_of_thought|>plan<|end_of_thought|>\n\nfine", "<|START_THINKING|>plan<|END_THINKING|>fine", "<unused94>thought\nplan<unused95>fine",
    "<|channel|>analysis<|message|>plan<|end|><|start|>assistant<|channel|>final<|message|>fine<|return|>", "analysisWe plan.assistantfinalfine",
    "Here is my thought process: plan. Here is my response: fine", "fine\n<think>and then it was cut",
]  # fmt: skip
TOKENS = [
    "fine<|im_end|>", "fine<|im_end|>\n<|im_start|>user\nmore", "fine</s>", "<s> fine </s>", "fine<|eot_id|>", "fine<end_of_turn>", "fine<eos>", "fine<|end_of_text|>", "fine<｜end▁of▁sentence｜>",
    "fine [INST] and another [/INST]", "<|im_start|>assistant\nfine", "<|start_header_id|>assistant<|end_header_id|>\n\nfine<|eot_id|>", "<start_of_turn>model\nfine", "assistant\n\nfine", "<bos>fine",
]  # fmt: skip


@pytest.mark.parametrize("text", THOUGHTS)
def test_thoughts_are_no_part_of_an_answer(text):
    assert clean(text) == "fine"


@pytest.mark.parametrize("text", TOKENS)
def test_tokens_of_the_template_end_or_open_an_answer(text):
    assert clean(text) == "fine"


@pytest.mark.parametrize("text", ["Write `<think>` first.", "Models end with `<|im_end|>`.", "a < b and c > d", "I <s>never</s> seldom do.", "A <b>bold</b> word", "Say <think> to begin.", "f <| g |> h", "As an assistant\nI think."])
def test_words_about_tags_stay(text):
    assert clean(text) == text


@pytest.mark.parametrize("text", ["<think>never ends", "<|channel|>analysis<|message|>never ends", "<think>a</think>", " \u200b\n", "", "<|im_end|>", "<think>\nI wonder"])
def test_a_reply_of_thoughts_alone_or_of_nothing_fails_and_a_cut_one_is_cut(text):
    assert understood(text).finish_reason == "error: no words in the reply" and understood(text).failed
    assert understood(text, "length").finish_reason == "length"


def test_half_characters_are_replaced_and_whole_ones_joined():
    assert clean("ok \ud83d") == "ok \ufffd" and clean("\ud83d\ude00") == "😀"
    assert fingerprint("\ud83d") == fingerprint("\ufffd")


@pytest.mark.parametrize(("reason", "kept"), [
    *((reason, "stop") for reason in ("stop", "eos", "EOS_TOKEN", "end_turn", "stop_sequence", "COMPLETE", "FinishReason.STOP", None, "", "whatever", "tool_calls")),
    *((reason, "length") for reason in ("length", "max_tokens", "MAX_TOKENS", "model_length", "FINISH_REASON_MAX_TOKENS", "max-output-tokens", "model_context_window_exceeded")),
    *((reason, "content_filter") for reason in ("content_filter", "SAFETY", "refusal", "RECITATION", "guardrail_intervened", "PROHIBITED_CONTENT", "sensitive")),
    *((reason, f"error: the model ended with {reason}") for reason in ("error", "abort", "insufficient_system_resource")),
])  # fmt: skip
def test_every_servers_finish_reason_means_answer_cut_refused_or_failed(reason, kept):
    reply = understood("fine", reason)
    assert reply.finish_reason == kept and (reply.whole, reply.failed) == (kept == "stop", kept.startswith("error"))


def test_a_reply_that_ended_for_no_known_reason_with_its_budget_used_up_is_cut():
    assert understood("fine", None, budget=16, completion_tokens=16).finish_reason == "length"
    assert understood("fine", "stop", budget=16, completion_tokens=16).finish_reason == understood("fine", None, budget=16, completion_tokens=15).finish_reason == "stop"


@pytest.mark.parametrize("text", ["<think>" * 20_000, "\n" * 100_000, "<think>x" * 9_000 + "</think>" * 9_000, "<s>" * 30_000 + "</s>" * 30_000, "<think " * 20_000, "< " * 50_000, "analysis" + "x" * 100_000])
def test_it_takes_time_in_proportion_to_the_text(text):
    start = time.perf_counter()
    clean(text)
    assert time.perf_counter() - start < 2


def test_replies_kept_by_anybody_are_handed_over_clean(tmp_path):
    conversation = [{"role": "user", "content": "q"}]
    with JsonlStore(tmp_path / "r.jsonl") as store:
        store.append({"id": fingerprint("m", conversation, Sampling().model_dump(), digits=32), "chat": "m", **Reply(text="<think>plan</think>fine</s>").model_dump()})
    assert [reply.text for reply in KeptChat(None, tmp_path / "r.jsonl").complete([conversation], Sampling())] == ["fine"]
