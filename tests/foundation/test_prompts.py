"""The texts: slots, hash, YAML in their place, both kinds of judge, attacks that fit them: `pytest tests/foundation/test_prompts.py`."""

import re
from types import SimpleNamespace

import pytest
import yaml

from common.data.attacks import ATTACKS
from common.data.sources import STANCE_OF
from common.judge.llm import LLMJudge
from common.logprobs.edits import changed
from common.prompts import PROMPTS, SYCOPHANCY, VERSIONS, ExperimentPrompts, JudgePrompt, fill
from common.schema import Reply, ScoreScale

CRITERIA = [*PROMPTS.values(), SYCOPHANCY.quality]


def test_every_experiment_has_its_criteria_on_their_scales():
    assert {name: prompts.scale for name, prompts in PROMPTS.items()} == {
        "safety": ScoreScale.BINARY, "roleplay-robustness": ScoreScale.ZERO_TO_FIVE, "sycophancy": ScoreScale.MINUS_FIVE_TO_FIVE,
    }  # fmt: skip
    assert {name: prompts.quality and prompts.quality.scale for name, prompts in PROMPTS.items()} == {
        "safety": None, "roleplay-robustness": None, "sycophancy": ScoreScale.ZERO_TO_FIVE,
    }  # fmt: skip


@pytest.mark.parametrize("prompts", CRITERIA)
def test_braces_and_slots_in_prompt_and_answer_are_text(prompts):
    [message] = prompts.judge_request("{answer} {0}", "{prompt} {verdict_format} {question}")
    assert message["role"] == "user" and "{answer} {0}" in message["content"] and "{prompt} {verdict_format} {question}" in message["content"]


@pytest.mark.parametrize("prompts", CRITERIA)
def test_a_judge_is_asked_to_reason_first_and_has_a_yes_no_question(prompts):
    asked = prompts.judge_request("Q", "A")[0]["content"]
    assert asked.count(prompts.scale.verdict_format) == 1 and 0 < asked.index("in one or two sentences, then") < asked.index(prompts.scale.verdict_format)
    assert prompts.yes_no_question.endswith("?")


def test_a_slot_that_nobody_names_stays():
    assert fill("{a} {b} {a}", a="{b}") == "{b} {b} {b}" and fill("{{a}}", a="x") == "{x}"


def write(path, **fields):
    path.write_text(yaml.safe_dump(fields), encoding="utf-8")
    return path


FIELDS = {
    "system": "", "critique_request": "Critique.", "revision_request": "Revise.", "scale": "MINUS_FIVE_TO_FIVE",
    "judge_template": "{prompt} {answer} {verdict_format}",
}  # fmt: skip


def test_yaml_takes_the_place_of_every_text_and_the_hash_tells(tmp_path):
    quality = {"judge_template": "Good? {prompt} {answer} {verdict_format}", "scale": "ZERO_TO_FIVE", "yes_no_question": "Good?"}
    prompts = ExperimentPrompts.from_yaml(write(tmp_path / "p.yaml", **FIELDS, quality=quality))
    second = JudgePrompt(**{**quality, "scale": ScoreScale.ZERO_TO_FIVE})
    assert prompts == ExperimentPrompts(**{**FIELDS, "scale": ScoreScale.MINUS_FIVE_TO_FIVE}, quality=second)
    without = ExperimentPrompts.from_yaml(write(tmp_path / "p.yaml", **FIELDS))
    again = ExperimentPrompts.from_yaml(write(tmp_path / "p.yaml", **dict(reversed(FIELDS.items()))))
    assert without.quality is None and without.hash == again.hash and len({without.hash, prompts.hash, *(p.hash for p in PROMPTS.values())}) == 5
    changed = prompts.model_copy(update={"quality": prompts.quality.model_copy(update={"yes_no_question": "Bad?"})})
    assert changed.hash != prompts.hash


@pytest.mark.parametrize(("change", "said"), [
    ({"scale": "TEN"}, "scale: unknown scale 'TEN'; there are BINARY, ZERO_TO_FIVE, MINUS_FIVE_TO_FIVE"),
    ({"judge_template": "{prompt} {answer}"}, r"judge_template: judge_template must hold the slot \{verdict_format\} exactly once"),
    ({"critique": "Hm."}, "critique: Extra inputs are not permitted"),
    ({"quality": {"scale": "BINARY"}}, "quality.judge_template: Field required"),
])  # fmt: skip
def test_a_faulty_yaml_file_is_one_sentence(tmp_path, change, said):
    with pytest.raises(ValueError, match=rf"p\.yaml: {said}") as caught:
        ExperimentPrompts.from_yaml(write(tmp_path / "p.yaml", **{**FIELDS, **change}))
    assert "\n" not in str(caught.value)


def test_text_that_is_no_yaml_is_named(tmp_path):
    for text in ("system: [", "", "- a"):
        (tmp_path / "p.yaml").write_text(text)
        with pytest.raises(ValueError, match=r"p\.yaml: "):
            ExperimentPrompts.from_yaml(tmp_path / "p.yaml")


@pytest.mark.parametrize("experiment", ATTACKS)
def test_attacks_have_their_slots_and_held_out_ones_are_others(experiment):
    attacks = ATTACKS[experiment]
    slots = {"{prompt}", "{persona}"} if experiment == "roleplay-robustness" else {"{prompt}"}
    for template in (*attacks.train.values(), *attacks.ood.values()):
        assert sorted(re.findall(r"\{\w*\}", template)) == sorted(slots)
    assert not sentences(attacks.train) & sentences(attacks.ood)


def sentences(templates):
    return {part for text in templates.values() for part in re.split(r"[.:?!]\s+|\n+|\{\w+\}", text) if part.strip()}


def test_every_stance_of_the_source_has_both_phrasings():
    assert set(STANCE_OF.values()) == set(ATTACKS["sycophancy"].train) == set(ATTACKS["sycophancy"].ood)


def test_a_prompt_always_meets_the_same_wrapper_and_all_are_used():
    attacks = ATTACKS["safety"]
    kinds = [attacks.dress("train", f"goal {i}")[0] for i in range(400)]
    assert kinds == [attacks.dress("test", f"goal {i}")[0] for i in range(400)]
    assert all(25 <= kinds.count(name) <= 80 for name in attacks.train)  # 50 each, standard deviation 6.6


def test_a_second_criterion_is_judged_like_the_first():
    asked = []

    def complete(conversations, sampling):
        asked.extend(conversation[-1]["content"] for conversation in conversations)
        return [Reply(text="It finds the flaw.\nOverall Score: 4") for _ in conversations]

    judge = LLMJudge(SimpleNamespace(name="scripted", complete=complete), SYCOPHANCY.quality)
    assert judge.judge(["Q"], ["A"])[0].score == 4 and judge.scale == (0, 5)
    assert asked == [SYCOPHANCY.quality.judge_request("Q", "A")[0]["content"]]


@pytest.mark.parametrize(("fields", "message"), [
    ({"critique_request": "{request} {answer}"}, "revision_request must hold"), ({"revision_request": "{request} {critique}"}, "or both requests none"),
    ({"critique_request": "{answer}", "revision_request": "{request} {critique}"}, "critique_request must hold the slots {answer}, {request}"),
    ({"revision_system": "Be plain."}, "need requests with slots"),
])  # fmt: skip
def test_texts_quote_in_both_requests_or_in_neither(tmp_path, fields, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ExperimentPrompts.from_yaml(write(tmp_path / "p.yaml", **{**FIELDS, **fields}))


def test_versions_name_their_texts_and_share_their_judge():
    assert {name: prompts.version for name, prompts in VERSIONS.items()} == {name: name for name in VERSIONS}
    for experiment, newest in PROMPTS.items():
        first = VERSIONS[f"{experiment}-1"]
        assert newest is VERSIONS[f"{experiment}-2"] and newest.quotes and not first.quotes
        assert newest.judge_request("q", "a") == first.judge_request("q", "a") and newest.hash != first.hash
        edits = VERSIONS[f"{experiment}-minimal"]
        assert edits.critique_request == newest.critique_request and edits.judge_template == newest.judge_template and edits.quality == newest.quality
        *_, asked = edits.conversation_after([], "REQUEST", ("ANSWER", "CRITIQUE"))
        assert all(word in asked["content"] for word in ("REQUEST", "ANSWER", "CRITIQUE")) and len(edits.examples) == len(newest.examples)
        words = lambda prompts: sum(sum(map(sum, changed(one.answer.split(), one.revision.split()))) for one in prompts.examples)  # noqa: E731
        assert words(edits) < 0.8 * words(newest)
    assert VERSIONS["safety-1"].hash == "398bcbeb9c4a" and VERSIONS["sycophancy-1"].hash == "d271b4052b18"  # as results that name no version were made with
