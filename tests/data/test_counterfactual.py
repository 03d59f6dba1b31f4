"""Counterfactual DPO: which prompts are asked, which answer is chosen under which prompt, resume: `pytest tests/data/test_counterfactual.py`."""

import json
from types import SimpleNamespace

import pytest

from common.chat.model import hand_over
from common.data.counterfactual import (
    INSTRUCTIONS,
    PAIRS,
    VARIANTS,
    StyleInstructions,
    generate_counterfactual_pairs,
    variant_named,
)
from common.data.preference import preference_dataset
from common.evaluation.style import style_followed, style_question
from common.judge.base import Judgement
from common.prompts import PROMPTS
from common.schema import PromptRecord, Reply, Sampling, ScoredPair

SAMPLING = Sampling(temperature=0.7, max_new_tokens=64, seed=3)
STYLE = StyleInstructions(desired="Be brief.", undesired="Ramble.")


def scripted_chat(fails_at_call=None):
    """A model that says how it was asked, and notes every conversation."""
    asked, calls, seeds = [], [], []

    def complete(conversations, sampling, on_reply=None):
        calls.append(len(conversations))
        if len(calls) - 1 == fails_at_call:
            raise ConnectionError("the model is gone")
        assert sampling.model_copy(update={"seed": 3}) == SAMPLING
        seeds.append(sampling.seed)
        asked.extend(conversations)
        return hand_over([Reply(text=f"<{conversation[-1]['content']}>", prompt_tokens=7, completion_tokens=5) for conversation in conversations], on_reply)

    return SimpleNamespace(name="scripted", complete=complete, asked=asked, calls=calls, seeds=seeds)


def records(count, system=""):
    return [PromptRecord(id=f"id{i}", experiment="safety", split="train", system=system, prompt=f"q{i}", kind="wrapped") for i in range(count)]


def made(variant, chat=None, count=1, path=None, **more):
    return generate_counterfactual_pairs(chat or scripted_chat(), records(count), STYLE, variant, SAMPLING, path, **more)


@pytest.mark.parametrize(
    ("variant", "prompt", "chosen", "rejected"),
    [
        ("encourage", "q0", "<q0\n\nBe brief.>", "<q0>"),
        ("discourage", "q0", "<q0>", "<q0\n\nRamble.>"),
        ("contrastive", "q0", "<q0\n\nBe brief.>", "<q0\n\nRamble.>"),
        ("negation", "q0\n\nRamble.", "<q0>", "<q0\n\nRamble.>"),
    ],
)
def test_each_variant_asks_and_pairs_as_its_table_says(variant, prompt, chosen, rejected, tmp_path):
    [pair] = made(variant, path=tmp_path / "pairs.jsonl")
    [row] = preference_dataset([ScoredPair(**pair.model_dump(), score_response=0.0, score_revised=1.0)])
    assert [row[name][-1]["content"] for name in ("prompt", "chosen", "rejected")] == [prompt, chosen, rejected]
    assert (pair.prompt, pair.variant) == ("q0", variant)  # what judge and oracle see is the plain prompt


def test_the_neutral_answer_is_that_to_the_request_without_its_stance(tmp_path):
    dressed = [record.model_copy(update={"plain_prompt": f"bare {record.prompt}"}) for record in records(1)]
    chat = scripted_chat()
    [pair] = generate_counterfactual_pairs(chat, dressed, STYLE, "neutral", SAMPLING, tmp_path / "pairs.jsonl", base=True)
    assert (pair.prompt, pair.response, pair.response_revised, pair.instruction) == ("q0", "<q0>", "<bare q0>", "")
    assert chat.seeds == [3, 4]  # the base answer is another draw than the chosen one
    with pytest.raises(ValueError, match="neutral pairs need prompts with a plain_prompt"):
        made("neutral", path=tmp_path / "plain.jsonl")


def test_all_variants_are_tested_and_every_experiment_has_instructions():
    assert list(VARIANTS) == ["encourage", "discourage", "contrastive", "negation", "neutral"]
    assert set(PROMPTS) <= set(INSTRUCTIONS) == {"safety", "roleplay-robustness", "sycophancy"}


def test_a_pair_keeps_the_record_and_counts_both_answers(tmp_path):
    chat = scripted_chat()
    [pair] = generate_counterfactual_pairs(chat, records(1, system="Be kind."), STYLE, "contrastive", SAMPLING, tmp_path / "pairs.jsonl")
    assert pair.model_dump() == {
        **records(1, system="Be kind.")[0].model_dump(), "response": "<q0\n\nRamble.>", "critique": "", "response_revised": "<q0\n\nBe brief.>", "response_base": "",
        "teacher": "scripted", "sampling": SAMPLING.model_dump(), "usage": {"prompt_tokens": 14, "completion_tokens": 10},
        "variant": "contrastive", "instruction": "",
    }  # fmt: skip
    assert [conversation[0] for conversation in chat.asked] == 2 * [{"role": "system", "content": "Be kind."}]


def test_a_finished_file_asks_nothing_and_only_the_prompts_asked_for_come_back(tmp_path):
    path, chat = tmp_path / "pairs.jsonl", scripted_chat()
    whole = made("encourage", count=4, path=path)
    assert generate_counterfactual_pairs(chat, records(4)[1:3], STYLE, "encourage", SAMPLING, path) == whole[1:3]
    assert chat.asked == []


@pytest.mark.parametrize("call", range(3))
def test_a_crash_loses_at_most_one_batch_and_resumes_to_the_same_file(tmp_path, call):
    whole, path, steps = tmp_path / "whole.jsonl", tmp_path / "crashed.jsonl", []
    made("contrastive", count=5, path=whole)
    with pytest.raises(ConnectionError):
        made("contrastive", scripted_chat(fails_at_call=call), count=5, path=path, batch_size=2)
    assert len(path.read_bytes().splitlines()) == 2 * call
    chat = scripted_chat()
    made("contrastive", chat, count=5, path=path, batch_size=2, progress=steps.append)
    assert path.read_bytes() == whole.read_bytes()
    assert len(chat.asked) == 2 * (5 - 2 * call) and steps[0] == 4 * call and sum(steps) == 10


def test_an_unknown_variant_is_refused_before_the_file_is_made(tmp_path):
    with pytest.raises(ValueError, match="'contrast'.*encourage, discourage, contrastive, negation"):
        made("contrast", path=tmp_path / "pairs.jsonl")
    assert not (tmp_path / "pairs.jsonl").exists()


def test_style_by_predicate_and_by_judge_with_unscored_answers_left_out():
    answers = ["short", "a much longer answer", "mute", "half"]
    assert style_followed(["ask"] * 3 + ["a longer question"], answers, lambda prompt, answer: len(answer) < len(prompt)) == [False, False, False, True]
    scores = {"short": 5, "a much longer answer": 0, "mute": None, "half": 2.5}
    judge = SimpleNamespace(name="words", scale=(0, 5), judge=lambda prompts, answers: [Judgement(scores[answer], "") for answer in answers])
    assert style_followed(["q"] * 4, answers, judge) == [True, False, False]  # the middle of the scale is not its upper half


def test_a_cut_answer_makes_no_pair_and_is_written_down(tmp_path):
    path, chat = tmp_path / "pairs.jsonl", scripted_chat()
    whole = chat.complete
    cut = lambda reply: reply.model_copy(update={"finish_reason": "length"}) if reply.text == "<q1\n\nBe brief.>" else reply  # noqa: E731
    chat.complete = lambda conversations, sampling, on_reply: [cut(reply) for reply in whole(conversations, sampling)]
    with pytest.raises(RuntimeError, match="1 of 3 failed"):
        made("encourage", chat, count=3, path=path)
    assert json.loads((tmp_path / "failed_pairs.jsonl").read_text()) == {"id": "id1", "turn": "desired", "reason": "length"}
    assert [pair.id for pair in made("encourage", count=3, path=path)] == ["id0", "id1", "id2"]
    assert not (tmp_path / "failed_pairs.jsonl").exists()


def test_two_criteria_need_the_answer_to_the_bare_prompt_too(tmp_path):
    path, chat = tmp_path / "pairs.jsonl", scripted_chat()
    dressed = [record.model_copy(update={"plain_prompt": f"bare {record.prompt}"}) for record in records(2)]
    made_pairs = generate_counterfactual_pairs(chat, dressed, STYLE, "negation", SAMPLING, path, base=True)
    assert [(pair.response, pair.response_revised, pair.response_base, pair.instruction) for pair in made_pairs] == [
        (f"<q{i}\n\nRamble.>", f"<q{i}>", f"<bare q{i}>", "Ramble.") for i in range(2)
    ]
    assert len(chat.asked) == 6 and made_pairs[0].usage == {"prompt_tokens": 21, "completion_tokens": 15}


@pytest.mark.parametrize("pairs, variant", [("self_critique", ""), *((f"counterfactual_{variant}", variant) for variant in VARIANTS)])
def test_a_kind_of_pairs_names_its_variant(pairs, variant):
    assert variant_named(pairs) == variant and pairs in PAIRS and len(PAIRS) == 7


@pytest.mark.parametrize("pairs", ["counterfactual_contrast", "contrastive", ""])
def test_an_unknown_kind_of_pairs_is_refused_with_the_choice(pairs):
    with pytest.raises(ValueError, match=f"unknown pairs '{pairs}'; there are self_critique, recorded, counterfactual_encourage, .*counterfactual_negation"):
        variant_named(pairs)


def test_a_style_is_asked_for_in_words_that_every_judge_can_take():
    question = style_question("Be brief {or not}.")
    [message] = question.judge_request("Who?", "Me. {prompt}")
    assert message["content"].count("Be brief {or not}.") == 1 and "Request:\nWho?" in message["content"] and "Answer:\nMe. {prompt}" in message["content"]
    assert "[[1]]" in message["content"] and question.yes_no_question.endswith("Be brief {or not}.")
