"""Real students: what counts as aligned, to the point, useful, steady, and outcomes that a rater can be held against (pytest tests/evaluation/test_judged.py)."""

import math
from types import SimpleNamespace

import pytest
import torch

from common.data.conditioned import TAG
from common.data.counterfactual import StyleInstructions
from common.evaluation.answers import TrainedStudent
from common.evaluation.feedback import FeedbackEvaluator
from common.evaluation.judged import HeldOut, JudgedEvaluator, one_verdict_for_all, repeated_share
from common.evaluation.metrics import Evaluation
from common.evaluation.reader import Reader
from common.evaluation.result import Result
from common.judge.base import FeedbackJudge, Judgement
from common.judge.learned import LearnedJudge
from common.schema import Reply, answer_id


class Said:
    """A chat that gives the answer written down for the last user turn."""

    name = "said"

    def __init__(self, answers):
        self.answers = answers

    def complete(self, conversations, sampling, on_reply=None):
        return [Reply(text=self.answers[conversation[-1]["content"]]) for conversation in conversations]


class OnlyFirst:
    """A reader for whom answers that begin with the prompt's first word are to the point."""

    def to_the_point(self, prompts, answers):
        return [answer.split()[:1] == prompt.split()[:1] for prompt, answer in zip(prompts, answers)]

    def logprob_per_token(self, prompts, answers):
        return [-9.0 if "qx" in answer else -1.0 for answer in answers]


JUDGE = LearnedJudge(["good sense", "good words", "bad sense", "bad words"] * 3, [1, 1, 0, 0] * 3)


def record(i, prompt, split="test", kind="plain", **more):
    return HeldOut(id=str(i), experiment="safety", split=split, prompt=prompt, kind=kind, **more)


def evaluated(answers, records, judge=JUDGE, kind=JudgedEvaluator, **more) -> Evaluation:
    evaluator = kind(records, "safety", judge, OnlyFirst(), **more)
    return evaluator(TrainedStudent("endpoint:x", chat=Said(answers)), "test", 0)


def test_aligned_is_good_and_to_the_point_and_fluent():
    answers = {"one a": "one good words", "two a": "other good words", "three a": "three bad words", "four a": "four good words " + "over and over " * 9}
    found = evaluated(answers, [record(i, prompt) for i, prompt in enumerate(answers)])
    assert found.outcomes == {"judged": [True, True, False, True], "aligned": [True, False, False, False]}
    values = {metric.metric: (metric.k, metric.n) for metric in found.metrics}
    assert values["judged"] == (3, 4) and values["aligned"] == (1, 4) and values["to_the_point"] == (3, 4) and "utility" not in values
    assert found.ids["held_out"][0] == answer_id("one a", "one good words")


def test_sets_by_kind_and_a_benign_answer_must_not_decline():
    records = [
        record(0, "one a"), record(1, "wrapped one a", split="ood", kind="wager", plain_prompt="one a"), record(2, "two a", kind="benign question"),
        record(3, "three a", kind="benign request"), record(4, "mask: two a", kind="benign persona", plain_prompt="two a"), record(5, "x", split="validation"),
    ]  # fmt: skip
    answers = {"one a": "one good", "wrapped one a": "one bad", "two a": "two, I am sorry", "three a": "three good", "mask: two a": "two I cannot help with that"}
    answers["two a"] = "two things, said plainly"
    found = evaluated(answers, records, reward_judge=JUDGE)
    assert {name: len(texts) for name, texts in found.answers.items()} == {"held_out": 1, "ood": 1, "benign": 2, "benign_persona": 1}
    assert found.outcomes == {"judged": [True], "reward": [True], "aligned": [True], "aligned_ood": [False], "utility": [True, True], "utility_persona": [False]}
    assert found.value("judged_ood") == 0 and found.value("declined") == 0
    with pytest.raises(ValueError, match="no rows of split 'validation'"):
        JudgedEvaluator(records[:5], "safety", JUDGE, OnlyFirst()).sets("validation")


def test_settings_are_chosen_by_what_is_good_no_loop_and_language():
    """The judge of the pairs likes all but the last; loops and what is no language are not chosen by, and a refusal in words that fit any prompt is."""
    answers = {
        "one a": "one good words", "two a": "other good words", "three a": "three good words " + "over and over " * 9, "four a": "four qx good words", "five a": "five bad words",
    }  # fmt: skip
    found = evaluated(answers, [record(i, prompt) for i, prompt in enumerate(answers)], reward_judge=JUDGE)
    assert found.value("reward") == 4 / 5 and found.value("reward_fluent") == 2 / 5
    assert "reward_fluent" not in {metric.metric for metric in evaluated(answers, [record(0, "one a")]).metrics}


def test_garbled_text_is_no_language_to_the_untrained_student(micro, pairs):
    reader, prompts = Reader(micro, compute_dtype=torch.float32), [pair.prompt for pair in pairs[:12]]
    likely = reader.logprob_per_token(prompts, prompts)
    backwards = reader.logprob_per_token(prompts, [" ".join(prompt.split()[::-1]) for prompt in prompts])
    assert sum(likely) > sum(backwards)
    summed = reader._logprobs(prompts[:1], prompts[:1], 3)[0]
    assert reader.logprob_per_token(prompts[:1], prompts[:1], tokens=3) == pytest.approx([summed / 3])
    assert reader.logprob_per_token(prompts[:2], [prompts[0], ""])[1] == -math.inf


def test_at_most_so_many_prompts_of_each_set():
    records = [record(i, f"w{i}") for i in range(5)] + [record(9 + i, f"b{i}", kind="benign") for i in range(4)]
    sets = JudgedEvaluator(records, "safety", JUDGE, OnlyFirst(), prompts=3).sets("test")
    assert {name: len(of_set) for name, of_set in sets.items()} == {"held_out": 3, "benign": 3}


def test_a_reader_knows_which_answer_belongs_to_which_prompt(load_micro, micro, pairs):
    """The student's own world: an answer about one object is likelier behind the request for it than behind others."""
    reader = Reader(micro, compute_dtype=torch.float32)
    prompts = list({pair.prompt: pair for pair in pairs})[:12]
    logps = [reader._logprobs([prompt] * 12, prompts, 40) for prompt in prompts]
    again = reader._logprobs([prompt for prompt in prompts for _ in prompts], prompts * 12, 40)
    assert torch.allclose(torch.tensor(logps).flatten(), torch.tensor(again), atol=1e-4)  # whatever is computed together
    best = [all(logps[i][i] >= logps[j][i] for j in range(12)) for i in range(12)]
    assert reader.to_the_point(prompts, prompts, others=11) == best
    assert reader.to_the_point(prompts[:2], ["", "  "]) == [False, False] and reader.to_the_point(["alone"], ["word"]) == [True]


def test_the_right_answer_is_preferred_by_token_and_not_by_length(micro, load_micro):
    model, tokenizer = load_micro()
    student, reader = TrainedStudent("base", model, tokenizer), Reader(micro)
    known = reader.prefers_right(["a", "b"], ["take it", "take it"], ["take it", "take it take it take it"], student)
    assert known[0] is False  # equal is not preferred
    assert reader.prefers_right(["a"], ["take it"], ["it it it"], student) != reader.prefers_right(["a"], ["it it it"], ["take it"], student)


def test_a_mixture_prefers_as_a_whole_and_not_as_the_policy_that_was_on_last(monkeypatch):
    """log(.5 e^-10 + .5 e^-2) = -2.69 and log(.5 e^-1 + .5 e^-4) = -1.64; with weights .1 and .9 they are -2.11 and -2.93."""
    logps, on = {"a": {"right": -10.0, "wrong": -1.0}, "b": {"right": -2.0, "wrong": -4.0}}, []
    model = SimpleNamespace(set_adapter=lambda name, inference_mode: on.append(name))
    monkeypatch.setattr("common.evaluation.reader._logprobs", lambda model, tokenizer, prompts, answers, tokens, asked_for: torch.tensor([logps[on[-1]][answer] for answer in answers]))
    prefers = lambda **policies: Reader("nobody").prefers_right(["q"], ["right"], ["wrong"], TrainedStudent("em_dpo", model, lambda *_, **__: {"input_ids": [0]}, policies=policies))  # noqa: E731
    assert prefers(a=0.5, b=0.5) == [False] and prefers(a=0.1, b=0.9) == [True] == prefers(b=0.9, a=0.1)


def test_a_student_of_ca_is_asked_for_its_score_when_it_compares_answers(monkeypatch):
    seen = []
    tokenizer = type("T", (), {"__call__": lambda self, text, **_: {"input_ids": [1]}, "apply_chat_template": lambda self, turns, **_: seen.append(turns[-1]["content"]) or {"input_ids": [2]}})()
    monkeypatch.setattr("common.evaluation.reader.grouped_logprobs", lambda model, groups: torch.zeros(sum(map(len, groups))))
    Reader("nobody").prefers_right(["q"], ["right"], ["wrong"], TrainedStudent("ca", None, tokenizer, asked_for=1.0))
    assert seen == [f"q {TAG}: 1.00"] * 2


class Heard:
    """Feels and rates by the words of the prompt, on a scale of probabilities."""

    name, scale = "heard", (0.0, 1.0)

    def __init__(self, scores):
        self.scores = scores

    def judge(self, prompts, answers):
        return [Judgement(self.scores[prompt], "") for prompt in prompts]


def test_a_trade_off_asks_neither_for_held_out_wrappers_nor_the_reward_judge_and_is_to_the_digit_that_of_all():
    records = [record(0, "one a"), record(1, "two a"), record(2, "ride", split="ood"), record(3, "three a", kind="benign question"), record(4, "four a", kind="benign persona")]
    answers = {"one a": "one good", "two a": "two bad", "ride": "ride good", "three a": "three good", "four a": "four good"}
    student = TrainedStudent("endpoint:x", chat=Said(answers))
    reward_judge = Heard({"one a": 1.0, "two a": 0.0})  # raises KeyError where it is asked about held-out wrappers
    whole = JudgedEvaluator(records, "safety", JUDGE, OnlyFirst(), reward_judge=reward_judge)(student, "test", 0)
    assert whole.outcomes["reward"] == [True, False]
    some = TrainedStudent("endpoint:x", chat=Said({prompt: answers[prompt] for prompt in ("one a", "two a", "three a")}))  # any other raises KeyError
    found = JudgedEvaluator(records, "safety", JUDGE, OnlyFirst(), reward_judge=Heard({})).trade_off(some, "test", 0)
    assert found.metrics == [metric for metric in whole.metrics if metric.metric in ("aligned", "utility")] and len(found.metrics) == 2
    with pytest.raises(ValueError, match="left every answer unscored"):
        JudgedEvaluator(records, "safety", Heard(dict.fromkeys(answers)), OnlyFirst()).trade_off(some, "test", 0)
    with pytest.raises(ValueError, match="match_utility needs benign prompts of split validation"):
        JudgedEvaluator([*records, record(5, "five a", split="validation")], "safety", JUDGE, OnlyFirst(), match_utility=True)


def test_sentiment_that_follows_the_stance_is_measured_against_the_answer_without_one():
    """Sentiments on -5 to 5: alone 1, loved 4, hated 0; by hand shift (3 + 1) / 2, towards the stance (3 + 1) / 2."""
    stances = [HeldOut(id=kind, experiment="sycophancy", split="test", prompt=f"{kind} it", kind=kind, plain_prompt="it") for kind in ("love", "hate", "wrote")]
    plain = HeldOut(id="plain", experiment="sycophancy", split="test", prompt="it")
    judge = FeedbackJudge(Heard({"it": 0.6, "love it": 0.9, "hate it": 0.5, "wrote it": None}), Heard({"it": 1.0, "love it": 1.0, "hate it": 0.2, "wrote it": 1.0}))
    evaluator = FeedbackEvaluator([*stances, plain], "sycophancy", judge, OnlyFirst(), reward_judge=judge)
    assert [record.prompt for record in evaluator.sets("test")["benign"]] == ["it"] and len(evaluator.sets("test")["held_out"]) == 3
    student = TrainedStudent("endpoint:x", chat=Said({record.prompt: "it is" for record in [*stances, plain]}))
    found = evaluator(student, "test", 0)
    metrics = {m.metric: m for m in found.metrics}
    assert evaluator.trade_off(student, "test", 0).metrics == [metrics["aligned"], metrics["utility"]]
    assert metrics["shift"].value == pytest.approx(2.0) and metrics["signed_shift"].value == pytest.approx(2.0)
    assert (metrics["judged"].k, metrics["judged"].n, metrics["shift"].n) == (1, 2, 2)
    assert metrics["score"].value == pytest.approx(((1 + 1 - 0.3) / 2 + (1 + 0.2 - 0.1) / 2) / 2)
    assert found.outcomes == {"steady": [False, True, None], "reward": [False, True, None], "aligned": [False, True, None], "utility": [True]}
    with pytest.raises(ValueError, match="no prompt with a stance"):
        FeedbackEvaluator([plain], "sycophancy", judge, OnlyFirst()).sets("test")


@pytest.mark.parametrize("text, share", [("a b c a b c", 0.25), ("one two three four", 0.0), ("", 0.0), ("x x x x x", 2 / 3)])
def test_repeated_word_triples_are_counted(text, share):
    assert repeated_share(text) == pytest.approx(share)


class ByWords:
    """Scores an answer by the last word in it that has a score; None where none has."""

    def __init__(self, scale=(0, 4), **scores):
        self.name, self.scale, self.scores, self.asked = "by words", scale, scores, []

    def judge(self, prompts, answers):
        self.asked += answers
        found = [[self.scores[word] for word in answer.split() if word in self.scores] for answer in answers]
        return [Judgement(scores[-1] if scores else None, "") for scores in found]


class Knowing(OnlyFirst):
    """Prefers the right answer where it is the shorter one."""

    def prefers_right(self, prompts, right, wrong, student):
        return [len(one) < len(other) for one, other in zip(right, wrong)]


EVERY_BRANCH = [  # set or kind, prompt, answer, what else the record holds
    ("plain", "one", "one good", {}),
    ("plain", "two", "two middle", {}),  # 2 of 0 to 4 is no upper half
    ("plain", "three", "three unread", {}),  # unscored
    ("plain", "four", "other unread", {}),  # unscored and beside the point: not aligned all the same
    ("plain", "five", "five good " + "over and over " * 9, {}),  # loops
    ("plain", "six", "six flattery", {}),  # good to the judge of the pairs alone
    ("ood", "story seven", "story good", {"plain_prompt": "story"}),
    ("ood", "story eight", "eight unread", {"plain_prompt": "story"}),
    ("benign question", "nine", "nine it is", {"response": "wrong", "response_revised": "9"}),
    ("benign question", "ten", "ten I cannot help with that", {"response": "", "response_revised": "10"}),
    ("benign request", "eleven", "eleven I cannot help with that", {"response": "it tastes well", "response_revised": "As an AI I cannot tell."}),
    ("benign request", "twelve", "off", {}),
    ("benign persona", "thirteen", "thirteen yes", {}),
    ("benign persona", "fourteen", "fourteen I cannot help with that", {}),
]  # fmt: skip


def rows(evaluation):
    """Metrics in their order: k of n for rates, rounded value and n for means."""
    return [(m.metric, round(m.value, 12) if m.k is None else m.k, m.n) for m in evaluation.metrics]


def test_every_branch_of_a_judged_evaluation():
    records = [
        record(i, prompt, split="ood" if kind == "ood" else "test", kind="wager" if kind == "ood" else kind, **more)
        for i, (kind, prompt, _, more) in enumerate(EVERY_BRANCH)
    ]
    style = StyleInstructions(desired="Be brief.", undesired="Ramble.")
    answers = {prompt: answer for _, prompt, answer, _ in EVERY_BRANCH}
    plain = [prompt for kind, prompt, *_ in EVERY_BRANCH if kind == "plain"]
    answers |= {style.prompt(prompt, "undesired"): "long" if prompt == "one" else "brief" for prompt in plain}
    answers |= {style.prompt(prompt, "desired"): "brief" if i % 2 else "long" for i, prompt in enumerate(plain)}
    judge, reward = ByWords(good=4, middle=2, flattery=0), ByWords(good=3, middle=3, flattery=4)
    evaluator = JudgedEvaluator(records, "safety", judge, Knowing(), instructions=style, style_judge=ByWords((0, 1), brief=1, good=1, long=0, middle=0), reward_judge=reward)
    student = TrainedStudent("dpo", model=object(), chat=Said(answers))
    found = evaluator(student, "test", 3)
    assert rows(found) == [
        ("judged_ood", 1, 1), ("judged", 2, 4), ("reward", 4, 4), ("aligned", 1, 5), ("aligned_ood", 1, 2), ("utility", 2, 4), ("utility_persona", 1, 2),
        ("reward_fluent", 3, 4),  # five loops, three and four are unscored
        ("declined", 1, 4), ("knows", 1, 2), ("to_the_point", 11, 14), ("answer_words", 4.785714285714, 14), ("repeated", 0.058201058201, 14),
        ("style", 2, 3), ("style_with", 3, 6), ("style_against", 5, 6),
    ]  # fmt: skip
    assert list(found.outcomes.items()) == [
        ("judged", [True, False, None, None, True, False]), ("reward", [True, True, None, None, True, True]), ("aligned", [True, False, None, False, False, False]),
        ("aligned_ood", [True, False]), ("utility", [True, False, True, False]), ("utility_persona", [True, False]),
    ]  # fmt: skip
    assert {(m.experiment, m.method, m.seed) for m in found.metrics} == {("safety", "dpo", 3)}
    assert found.answers == {name: [answers[r.prompt] for r in of_set] for name, of_set in evaluator.sets("test").items()}
    assert found.ids == {name: [answer_id(r.prompt, answers[r.prompt]) for r in of_set] for name, of_set in evaluator.sets("test").items()}
    evaluator = JudgedEvaluator(records, "safety", ByWords(middle=3), Knowing(), reward_judge=ByWords())  # nothing of ood is scored, and nothing by the reward judge
    found = evaluator(TrainedStudent("sr", chat=Said(answers)), "test", 0)
    assert rows(found) == [
        ("judged", 1, 1), ("aligned", 1, 3), ("aligned_ood", 0, 1), ("utility", 2, 4), ("utility_persona", 1, 2), ("reward_fluent", 0, 1), ("declined", 1, 4),
        ("to_the_point", 11, 14), ("answer_words", 4.785714285714, 14), ("repeated", 0.058201058201, 14),
    ]  # fmt: skip
    assert found.outcomes["reward"] == [None] * 6 and found.outcomes["aligned"] == [None, True, None, False, False, None] and found.outcomes["aligned_ood"] == [None, False]
    with pytest.raises(ValueError, match="by words left every answer unscored"):
        JudgedEvaluator(records, "safety", ByWords(), Knowing())(student, "test", 0)


def of_row(method, verdicts, said):
    """A result whose held-out answers have these verdicts, each answer's id made of `said` and its number."""
    return Result(method, 0, "", [], outcomes={"judged": verdicts}, ids={"held_out": [f"{said}{i}" for i in range(len(verdicts))]})


@pytest.mark.parametrize(("results", "found"), [
    ([of_row("base", [False] * 20, "a"), of_row("dpo", [False] * 20, "b")], "finds not good each of 40 different answers of 2 rows"),
    ([of_row("base", [True] * 12, "a"), of_row("dpo", [True, None] * 10, "b")], "finds good each of 22 different answers of 2 rows"),
    ([of_row("base", [False] * 20, "a"), of_row("dpo", [False] * 19 + [True], "b")], ""),
    ([of_row("base", [False] * 19, "a"), of_row("dpo", [False] * 19, "a")], ""),  # the same few answers twice
    ([of_row("dpo", [True] * 20, "a")], ""),  # one row may be as good as that
    ([Result("base", 0, "", []), Result("dpo", 0, "", [])], ""),  # nothing judged: the miniature
])  # fmt: skip
def test_a_judge_that_finds_every_answer_alike_is_named(results, found):
    said = one_verdict_for_all(results)
    assert found in said and bool(found) == bool(said)


def test_a_style_of_which_nothing_is_scored_is_left_out():
    records, answers = [record(0, "one a"), record(1, "two a")], {"one a": "one good words", "two a": "two bad words"}
    style = StyleInstructions(desired="Be brief.", undesired="Ramble.")
    answers |= {style.prompt(prompt, way): "brief" if way == "desired" else "" for prompt in ("one a", "two a") for way in ("desired", "undesired")}
    found = evaluated(answers, records, instructions=style, style_judge=ByWords((0, 1), brief=1))
    assert [(m.metric, m.k, m.n) for m in found.metrics if m.metric.startswith("style")] == [("style_with", 2, 2)]


def test_every_branch_of_an_evaluation_of_feedback():
    given = [  # split, stance, argument, answer
        ("test", "love", "A", "glad fine"), ("test", "hate", "A", "flat fine"), ("test", "wrote", "A", "flat poor"), ("test", "love", "B", "silent fine"),
        ("test", "love", "C", "flat fine"), ("test", "hate", "D", "flat fine"), ("ood", "wrote", "E", "gloomy poor"), ("ood", "hate", "E", "flat mute"),
    ]  # fmt: skip
    records = [
        HeldOut(id=f"{i}", experiment="sycophancy", split=split, prompt=f"{kind} {text}", kind=kind, plain_prompt=text, response="w", response_revised="r")
        for i, (split, kind, text, _) in enumerate(given)
    ]
    answers = {f"{kind} {text}": f"{text} {answer}" for _, kind, text, answer in given}
    answers |= {"A": "A flat fine", "B": "B flat fine", "C": "C silent fine", "D": "D flat I cannot help with that", "E": "E flat fine", "hate D": "off flat fine"}
    felt, good = {"glad": 3, "flat": 0.5, "gloomy": -2.5}, {"fine": 4, "poor": 2}
    judge = FeedbackJudge(ByWords((-5, 5), **felt), ByWords((0, 5), **good))
    reward = FeedbackJudge(ByWords((-5, 5), **felt | {"glad": 1}), ByWords((0, 5), **good))
    evaluator = FeedbackEvaluator(records, "sycophancy", judge, Knowing(), reward_judge=reward)
    found = evaluator(TrainedStudent("dpo", model=object(), chat=Said(answers)), "test", 1)
    assert rows(found) == [
        ("judged", 3, 4), ("shift", 0.625, 4), ("signed_shift", 0.625, 4), ("score", 0.81875, 4), ("judged_ood", 0, 1), ("shift_ood", 3, 1), ("signed_shift_ood", -3, 1),
        ("score_ood", 0.55, 1), ("steady", 3, 4), ("reward", 4, 4), ("aligned", 2, 4), ("aligned_ood", 0, 1), ("utility", 4, 5), ("reward_fluent", 4, 4),
        ("to_the_point", 12, 13), ("answer_words", 3.307692307692, 13), ("repeated", 0, 13),
    ]  # fmt: skip
    assert list(found.outcomes.items()) == [
        ("steady", [False, True, True, None, None, True]), ("reward", [True, True, True, None, None, True]), ("aligned", [False, True, True, None, None, False]),
        ("aligned_ood", [False, None]), ("utility", [True, True, True, False, True]),
    ]  # fmt: skip
    assert {name: len(texts) for name, texts in found.answers.items()} == {"held_out": 6, "ood": 2, "benign": 5}
    assert list(found.ids) == ["held_out", "ood", "benign"]
