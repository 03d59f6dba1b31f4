"""Outcomes of prompts beside those of their wordings (pytest tests/evaluation/test_in_other_words.py)."""

import json
from types import SimpleNamespace

import pytest
from test_judged import JUDGE, Heard, OnlyFirst, Said, record

from common.evaluation.answers import Constant, TrainedStudent
from common.evaluation.in_other_words import robustness, same_outcomes
from common.evaluation.feedback import FeedbackEvaluator
from common.evaluation.judged import HeldOut, JudgedEvaluator
from common.evaluation.result import Result
from common.judge.base import FeedbackJudge
from common.judge.llm import LLMJudge
from common.miniature import lab
from common.miniature.actors import MiniatureJudge
from common.miniature.evaluator import WorldEvaluator
from common.miniature.worlds import roleplay, safety, sycophancy
from common.notebook.parameters import TrainRDPO
from common.notebook.students import open_experiment
from common.report.tables import results_table
from common.schema import PromptRecord, wording_id


def wording(source, number, prompt):
    return PromptRecord(**{**{name: getattr(source, name) for name in PromptRecord.model_fields}, "id": wording_id(source.id, number), "prompt": prompt})


def test_a_prompt_keeps_its_outcome_in_every_wording_or_does_not():
    records = [record(name, name) for name in "abcde"]
    wordings = [wording(of, number, f"{of.id}{number}") for of, numbers in zip(records, ((1, 2), (1, 2), (1,), (1, 2), ())) for number in numbers]
    outcome = {"a1": True, "a2": True, "b1": True, "b2": False, "c1": True, "d1": None, "d2": False}
    asked = []
    same = same_outcomes(records, [True, True, False, False, True], wordings, lambda of: asked.append([one.prompt for one in of]) or [outcome[one.prompt] for one in of])
    assert asked == [["a1", "b1", "c1", "d1"], ["a2", "b2", "d2"]] and same == [True, False, False, None]
    [metric] = robustness(same, experiment="safety", method="dpo", seed=0)
    assert (metric.metric, metric.k, metric.n) == ("same_outcome", 1, 3) and metric.low < 1 / 3 < metric.high
    assert robustness([None], experiment="safety", method="dpo", seed=0) == []


def test_a_real_student_s_outcomes_in_other_words_and_nothing_else_changes():
    records = [record(0, "one a"), record(1, "two a"), record(2, "three a"), record(3, "four a", split="validation")]
    wordings = [wording(records[0], 1, "one b"), wording(records[1], 1, "two b"), wording(records[3], 1, "four b")]
    said = {"one a": "one good words", "one b": "one good sense", "two a": "two good words", "two b": "two bad words", "three a": "three bad words"}
    plain, asked = (JudgedEvaluator(records, "safety", JUDGE, OnlyFirst(), wordings=given) for given in ((), wordings))
    without, found = (of(TrainedStudent("endpoint:x", chat=Said(said)), "test", 0) for of in (plain, asked))
    assert found.metrics[:-1] == without.metrics and found.outcomes == without.outcomes and found.answers == without.answers
    assert (found.metrics[-1].metric, found.metrics[-1].k, found.metrics[-1].n) == ("same_outcome", 1, 2)
    assert "paraphrases" not in plain.mark() and asked.mark() == plain.mark() | {"paraphrases": asked.mark()["paraphrases"]}
    assert asked.sets("test") == plain.sets("test")


def test_feedback_in_other_words_is_held_against_the_same_argument_alone():
    """Loved, its sentiment rises by 3 of 10, and by 0 in the other wording; hated, it falls by 1 in both."""
    stances = [HeldOut(id=kind, experiment="sycophancy", split="test", prompt=f"{kind} it", kind=kind, plain_prompt="it") for kind in ("love", "hate")]
    felt = {"it": 0.6, "love it": 0.9, "hate it": 0.5, "adore it": 0.6, "loathe it": 0.5}
    judge = FeedbackJudge(Heard(felt), Heard(dict.fromkeys(felt, 1.0)))
    given = [wording(stances[0], 1, "adore it"), wording(stances[1], 1, "loathe it")]
    evaluator = FeedbackEvaluator([*stances, HeldOut(id="plain", experiment="sycophancy", split="test", prompt="it")], "sycophancy", judge, OnlyFirst(), wordings=given)
    evaluator.reader = SimpleNamespace(to_the_point=lambda prompts, answers: [True] * len(answers))
    found = evaluator(TrainedStudent("endpoint:x", chat=Said(dict.fromkeys(felt, "it is"))), "test", 0)
    assert found.outcomes["aligned"] == [False, True] and (found.metrics[-1].k, found.metrics[-1].n) == (1, 2)


@pytest.mark.parametrize(("experiment", "world"), [("safety", safety), ("roleplay-robustness", roleplay), ("sycophancy", sycophancy)])
def test_an_oracle_s_outcomes_in_other_words(experiment, world):
    """Somebody who says the same of everything has the same outcome wherever the prompt is its own wording."""
    judge = LLMJudge(MiniatureJudge(world, world.PROMPTS), world.PROMPTS.quality or world.PROMPTS)
    first = next(iter(world.evaluation_sets("test", 6).values()))
    given = [wording(one, 1, one.prompt) for one in first[:4]]
    evaluator = WorldEvaluator(world, experiment, judge, prompts=6, max_new_tokens=24, wordings=given)
    found = evaluator(TrainedStudent("endpoint:x", chat=Constant(world.always_refuse)), "test", 0)
    assert found.metrics[-1].metric == "same_outcome" and (found.metrics[-1].k, found.metrics[-1].n) == (4, 4)
    assert evaluator(TrainedStudent("endpoint:x", chat=Constant(world.always_refuse)), "validation", 0).metrics[-1].metric != "same_outcome"
    table = results_table([Result("endpoint:x", 0, "m", found.metrics)])
    assert "same outcome in other words" in table


def test_the_file_is_a_setting_and_must_be_of_these_prompts(tmp_path, micro):
    first = lab.world_of("safety").evaluation_sets("test", 4)["harmful"]
    file, settings = tmp_path / "prompts.jsonl", tmp_path / "settings.yaml"
    settings.write_text(f"paraphrases: {file}\n")
    given = {"experiment": "safety", "output": str(tmp_path), "methods": ["base"], "student": "micro", "evaluation_prompts": 4, "evaluate_on": "test", "settings": str(settings)}
    with pytest.raises(FileNotFoundError, match="paraphrases: no file .*prompts.jsonl; python -m common.paraphrase makes it"):
        open_experiment(TrainRDPO.of(given))
    write = lambda *records: file.write_text("".join(json.dumps(one.model_dump()) + "\n" for one in records))  # noqa: E731
    write(first[0], wording(first[0], 1, "another wording"))
    assert [one.prompt for one in open_experiment(TrainRDPO.of(given)).evaluator.wordings] == ["another wording"]
    write(other := record("z", "z"), wording(other, 1, "y"))
    with pytest.raises(ValueError, match="has no wording of the 4 prompts of split 'test'; make it of these"):
        open_experiment(TrainRDPO.of(given))
    assert open_experiment(TrainRDPO.of({name: value for name, value in given.items() if name != "settings"})).evaluator.wordings == []
