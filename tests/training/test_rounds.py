"""Rows that train in rounds (pytest tests/training/test_rounds.py)."""

import json
import math
import random
import shutil
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from training.loops import (
    SETTINGS,
    ByLetters,
    Evaluator,
    adapter_of,
    contents,
    given,
    killed,
    lines_of,
    looped,
    rounds_of,
    stopped,
)

from common.judge.base import Judgement
from common.methods import METHODS, RoundSettings
from common.methods.settings import READ_BY
from common.miniature import lab
from common.notebook.parameters import TrainRDPO
from common.schema import Reply, ScoredPair
from common.student.adapters import BASE_FILE, save_adapter
from common.training.comparison import Experiment
from common.training.kept import training_of
from common.training.rounds import stages
from common.training.rounds.acquisition import best_and_worst, entropy, highest, margin, prefiltered
from common.training.rounds.arms import ARMS
from common.training.rounds.run import asked_in_rounds, check_rounds
from common.training.train import train

ONCE = SETTINGS.changed(epochs=1)


@pytest.fixture(scope="module")
def whole(micro, tmp_path_factory):
    """Method -> its uninterrupted run, which tests share: folder, student, evaluator."""

    @cache
    def run(method):
        folder, evaluator = tmp_path_factory.mktemp(method), Evaluator()
        return SimpleNamespace(folder=folder, trained=looped(method, micro, folder, evaluator=evaluator), evaluator=evaluator)

    return run


def test_oracle_numbers_of_the_acquisition():
    policy, reference = [(-10, -11), (-12, -9), (-8, -8.5), (-9, -15)], [(-10, -10), (-10, -10), (-8, -8), (-10, -10)]
    margins = [margin(one, other, beta=0.2) for one, other in zip(policy, reference)]
    assert margins == pytest.approx([0.2, 0.6, 0.1, 1.2], abs=1e-6)
    assert highest(margins, random.Random(0)) == [3, 1, 0, 2]
    entropies = [entropy(logps) for logps in ((-10, -12), (-3, -5), (-20, -18))]
    assert entropies == pytest.approx([11, 4, 19], abs=1e-6) and highest(entropies, random.Random(0)) == [2, 0, 1]
    assert [prefiltered(10, factor) for factor in (1, 4, 8)] == [10, 20, 29]


def test_equal_values_are_drawn_by_the_seed():
    orders = [highest([0.0] * 20, random.Random(seed)) for seed in (1, 1, 2)]
    assert orders[0] == orders[1] != orders[2] and all(sorted(order) == list(range(20)) for order in orders)
    assert orders[0] != list(range(20))


@pytest.mark.parametrize(
    "new, revised, original, best",
    [
        (0.6, 0.8, 0.2, ("revised", "original")),
        (0.9, 0.8, 0.2, ("new", "original")),
        (0.1, 0.8, 0.2, ("revised", "new")),
        (0.8, 0.8, 0.8, None),
        (0.8, 0.8, 0.2, ("revised", "original")),
        (0.2, 0.8, 0.2, ("revised", "original")),
        (0.2, 0.2, 0.8, ("original", "revised")),
        (0.5, 0.2, 0.8, ("original", "revised")),
        (0.9, 0.2, 0.2, ("new", "original")),
        (0.1, 0.2, 0.2, ("revised", "new")),
    ],
)
def test_the_best_of_three_is_chosen_and_the_worst_rejected(new, revised, original, best):
    assert best_and_worst({"new": new, "revised": revised, "original": original}) == best


def test_every_row_in_rounds_has_an_arm_that_reads_its_settings():
    assert {row.rounds for row in METHODS.values() if row.rounds} == set(ARMS) == set(READ_BY)
    read = {method: set(SETTINGS.as_dict(method)["rounds"]) for method, row in METHODS.items() if row.rounds}
    assert read["iterative_dpo"] == {"count", "prompts"} and read["apl_random"] == {"schedule", "epochs", "candidate_temperature"}
    assert read["apl_certainty"] == read["apl_random"] | {"over_generate"} == read["apl_hybrid"] - {"entropy_samples"}
    cut = SETTINGS.changed(rounds=RoundSettings(cut_at_sentence=True)).as_dict("apl_random")["rounds"]
    assert set(cut) == read["apl_random"] | {"cut_at_sentence"} and cut["cut_at_sentence"] is True
    assert "rounds" not in SETTINGS.as_dict("dpo")


def test_iterative_dpo_goes_on_from_round_to_round(whole):
    made = whole("iterative_dpo")
    trained, evaluator, (first, second) = made.trained, made.evaluator, rounds_of(made.folder)
    on = [{line["prompt_id"] for line in lines_of(place / "answers.jsonl")} for place in (first, second)]
    assert len(on[0]) == len(on[1]) == 6 and not on[0] & on[1]
    names = list(dict.fromkeys(evaluator.names))
    assert len(names) == 2 and names[0] == "iterative_dpo" and names[1].split()[1] == json.loads((first / "training.json").read_text())["made_of"]
    figures = [json.loads((place / "round.json").read_text()) for place in (first, second)]
    assert [one["first"]["loss"] for one in figures] == pytest.approx([math.log(2)] * 2, abs=2e-6)
    assert figures[0]["last"]["loss"] < 0.6 and figures[1]["last"]["loss"] < 0.6
    assert figures[1]["answers"] == 6 and figures[1]["verdicts"] == figures[1]["pairs_judged"] <= 6
    assert trained.pairs_used == sum(one["pairs_used"] for one in figures) and list(trained.model.peft_config) == ["default"]
    assert not (second / "adapter" / "ref").exists() and (second / "adapter" / BASE_FILE).exists()
    assert (made.folder / "adapter" / "adapter_model.safetensors").read_bytes() == (second / "adapter" / "adapter_model.safetensors").read_bytes()
    for pair in map(lambda line: ScoredPair(**line), lines_of(second / "preferred.jsonl")):
        assert pair.score_revised > pair.score_response
        assert ByLetters().judge([], [pair.response_revised, pair.response]) == [(pair.score_revised, "", ""), (pair.score_response, "", "")]


class Echo:
    """Answers with what the pair holds already, or with something new that is cut off."""

    name = "echo"

    def __init__(self, pairs, cut=False):
        self.answers, self.cut = {pair.prompt: pair.response for pair in pairs}, cut

    def complete(self, conversations, sampling, on_reply=None):
        texts = ["eeee" if self.cut else self.answers[conversation[-1]["content"]] for conversation in conversations]
        return [Reply(text=text, finish_reason="length" if self.cut else "stop") for text in texts]


@pytest.mark.parametrize("in_rounds, alone, cut", [("iterative_dpo", "dpo", False), ("rdpo_rounds", "rdpo", True)])
def test_one_round_without_new_answers_is_the_method_itself(in_rounds, alone, cut, micro, tmp_path):
    pairs, settings = given(), ONCE.changed(rounds=RoundSettings(count=1))
    evaluator = Evaluator(chat=Echo(pairs, cut))
    trained = looped(in_rounds, micro, tmp_path / "rounds", pairs, evaluator, settings)
    usual = train(alone, micro, pairs, settings, tmp_path / "alone", **lab.LOADED)
    assert torch.equal(adapter_of(trained), adapter_of(usual)) and adapter_of(usual).abs().sum() > 0
    assert evaluator.reward_judge.asked == []


class NeverEnds(Echo):
    """Answers with a whole sentence and the beginning of the next one, which differ from call to call; it notes how."""

    def __init__(self):
        self.repetition_penalty, self.asked = 1.1, []

    def complete(self, conversations, sampling, on_reply=None):
        self.asked.append((sampling.temperature, self.repetition_penalty))
        return [Reply(text=f"There {'e' * (1 + sampling.seed % 5)} we see {number} of them here. And then the", finish_reason="length") for number, _ in enumerate(conversations)]


def test_an_answer_that_was_cut_off_counts_to_its_last_sentence_where_asked_for(micro, tmp_path):
    cut = ONCE.changed(rounds=RoundSettings(count=1, cut_at_sentence=True))
    evaluator = Evaluator(chat=NeverEnds())
    looped("iterative_dpo", micro, tmp_path / "cut", evaluator=evaluator, settings=cut)
    assert evaluator.reward_judge.asked and all(answer.endswith(".") for answer in evaluator.reward_judge.asked)
    untouched = Evaluator(chat=NeverEnds())
    looped("iterative_dpo", micro, tmp_path / "whole", evaluator=untouched, settings=ONCE.changed(rounds=RoundSettings(count=1)))
    assert untouched.reward_judge.asked == []


def test_entropy_s_samples_are_drawn_from_the_distribution_that_scores_them(micro, tmp_path):
    """Without repetition penalty and uncut; the answers to be judged as in evaluations."""
    chat = NeverEnds()
    looped("apl_entropy", micro, tmp_path, evaluator=Evaluator(chat=chat), settings=ONCE.changed(rounds=RoundSettings(epochs=1, schedule=[3], over_generate=2, entropy_samples=2, cut_at_sentence=True)))
    assert set(chat.asked) == {(1.0, 1.0), (0.7, 1.1)}
    (place,) = rounds_of(tmp_path)
    texts = {line["id"].rpartition(".")[2][0]: line["text"] for line in lines_of(place / "answers.jsonl")}
    assert texts["e"].endswith("And then the") and texts["a"].endswith(".")


def test_what_a_row_asked_for_is_told_of_its_own_rounds(whole):
    made = whole("iterative_dpo")
    figures = [json.loads((place / "round.json").read_text()) for place in rounds_of(made.folder)]
    assert asked_in_rounds(made.folder) == {"trainings": 2} | {name: sum(one[name] for one in figures) for name in ("answers", "tokens", "verdicts")}


def test_scores_of_two_judges_in_one_comparison_are_told(micro, tmp_path, capsys):
    pairs = [pair.model_copy(update={"judge": name}) for pair, name in zip(given(), ["letters", "words"] * 6)]
    once = ONCE.changed(rounds=RoundSettings(count=1))
    check_rounds("iterative_dpo", pairs, Evaluator(), once)
    assert "scored by words, and the answers of its rounds are by letters" in capsys.readouterr().out
    check_rounds("iterative_dpo", pairs[::2], Evaluator(), once)
    assert capsys.readouterr().out == ""


def test_a_training_goes_on_from_an_adapter_in_float32(micro, tmp_path):
    pairs = given()
    first = train("dpo", micro, pairs, SETTINGS, tmp_path / "first", **lab.LOADED)
    save_adapter(first.model, first.tokenizer, tmp_path / "adapter", "card")
    start = adapter_of(first).clone()
    assert not torch.equal(start, start.bfloat16().float())
    still = SETTINGS.changed(learning_rate=1e-12, epochs=1)
    again = train("dpo", micro, pairs, still, tmp_path / "again", tmp_path / "adapter", **lab.LOADED)
    assert [step["loss"] for step in again.history if "loss" in step] == pytest.approx([math.log(2)] * 3, abs=2e-6)
    torch.testing.assert_close(adapter_of(again), start, rtol=0, atol=1e-9)
    marks = {training_of("dpo", micro, pairs, still, adapter) for adapter in (None, tmp_path / "adapter")}
    save_adapter(_moved(again).model, again.tokenizer, tmp_path / "other", "card")
    assert len(marks | {training_of("dpo", micro, pairs, still, tmp_path / "other")}) == 3


def _moved(trained):
    for parameter in trained.model.parameters():
        if parameter.requires_grad:
            parameter.data += 1e-3
    return trained


def test_a_start_adapter_of_another_base_or_beside_another_reference_is_refused(micro, tmp_path):
    trained = train("dpo", micro, given(4), SETTINGS.changed(epochs=1), tmp_path, **lab.LOADED)
    save_adapter(trained.model, trained.tokenizer, tmp_path / "adapter", "card")
    with pytest.raises(ValueError, match="reference = unquantised"):
        train("dpo", micro, given(4), SETTINGS.changed(reference="unquantised"), tmp_path, tmp_path / "adapter", **lab.LOADED)
    made = tmp_path / "adapter" / BASE_FILE
    made.write_text(json.dumps(json.loads(made.read_text()) | {"weights": "000000000000"}))
    with pytest.raises(ValueError, match="was trained on .* whose weights are others"):
        train("dpo", micro, given(4), SETTINGS, tmp_path, tmp_path / "adapter", **lab.LOADED)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["apl_random", "apl_entropy", "apl_certainty", "apl_hybrid"])
def test_active_preference_learning_judges_up_to_its_schedule(method, whole):
    trained, (first, second) = whole(method).trained, rounds_of(whole(method).folder)
    added = [[ScoredPair(**line) for line in lines_of(place / "preferred.jsonl")] for place in (first, second)]
    judged = [[ScoredPair(**line) for line in lines_of(place / "scored.jsonl")] for place in (first, second)]
    assert [len(pairs) for pairs in judged] == [3, 2] and len({pair.id.rpartition("#")[0] for pairs in judged for pair in pairs}) == 5
    assert [len(pairs) for pairs in added] == [sum(pair.score_revised != pair.score_response for pair in pairs) for pairs in judged]
    assert trained.pairs_used == sum(map(len, added))
    for pair in added[0] + added[1]:
        assert pair.score_revised > pair.score_response and pair.response != pair.response_revised
    figures = [json.loads((place / "round.json").read_text()) for place in (first, second)]
    assert [one["pairs_judged"] for one in figures] == [3, 2] and figures[0]["verdicts"] == 2 * figures[0]["pairs_judged"]
    assert [one["first"]["loss"] for one in figures] == pytest.approx([math.log(2)] * 2, abs=2e-6)  # from the base student
    passes = [json.loads((place / "selected.json").read_text())["passes"] for place in (first, second)]
    values = [[value for one in of_round for _, value in one["kept"]] for of_round in passes]
    if method == "apl_random":
        assert set(values[0] + values[1]) == {None} and passes[0][0]["drawn"] == 3
    if method in ("apl_certainty", "apl_hybrid"):
        assert set(values[0]) == {0.0} and all(value > 0 for value in values[1])
    if method != "apl_random":
        assert passes[0][0]["drawn"] == 6 and all(
            [value for _, value in one["kept"]] == sorted((value for _, value in one["kept"]), reverse=True) for of_round in passes for one in of_round
        )


@pytest.mark.slow
def test_certainty_prefers_the_pairs_whose_implicit_rewards_differ_most(micro, tmp_path):
    evaluator = Evaluator()
    looped("apl_certainty", micro, tmp_path, evaluator=evaluator, settings=ONCE.changed(rounds=RoundSettings(epochs=1, schedule=[4, 5], over_generate=8)))
    first, second = rounds_of(tmp_path)
    ((one,), *_) = [json.loads((second / "selected.json").read_text())["passes"][0]["kept"]]
    from common.student.adapters import load_adapter
    from common.student.load import load_student

    base, tokenizer = load_student(micro, **lab.LOADED)
    student = SimpleNamespace(model=load_adapter(base, first / "adapter"), tokenizer=tokenizer)
    answers = {}
    for line in lines_of(second / "answers.jsonl"):
        answers.setdefault(line["prompt_id"], []).append(stages.Answer(**line))
    pairs = [pair for pair in given() if pair.id in answers and stages._usable(answers[pair.id])]
    policy = stages.log_probabilities(student, pairs, answers)
    with student.model.disable_adapter():
        reference = stages.log_probabilities(student, pairs, answers)
    margins = {pair.id: margin(tuple(p), tuple(r), SETTINGS.beta) for pair, p, r in zip(pairs, policy, reference)}
    assert len(margins) > 3 and one[0] == max(margins, key=margins.__getitem__)
    assert one[1] == pytest.approx(margins[one[0]], abs=1e-5)


def test_the_first_round_without_a_difference_draws_by_the_seed(micro, tmp_path, monkeypatch):
    class Selected(Exception):
        pass

    def scored(self, pairs):
        raise Selected

    monkeypatch.setattr(stages.Round, "scored", scored)
    kept = []
    for seed in (0, 0, 1):
        shutil.rmtree(tmp_path / "row", ignore_errors=True)
        with pytest.raises(Selected):
            looped("apl_certainty", micro, tmp_path / "row", settings=ONCE.changed(seed=seed, rounds=RoundSettings(epochs=1, schedule=[3], over_generate=4)))
        kept.append(json.loads((rounds_of(tmp_path / "row")[0] / "selected.json").read_text())["passes"][0]["kept"])
    assert kept[0] == kept[1] != kept[2]


def test_nothing_is_selected_from_answers_that_are_not_all_there(micro, tmp_path):
    class Fails(Echo):
        def complete(self, conversations, sampling, on_reply=None):
            return [*super().complete(conversations[1:], sampling), Reply(text="", finish_reason="error: gone")]

    for method in ("iterative_dpo", "apl_certainty"):
        evaluator = Evaluator(chat=Fails(given()))
        with pytest.raises(RuntimeError, match="failed"):
            looped(method, micro, tmp_path / method, evaluator=evaluator)
        (place,) = rounds_of(tmp_path / method)
        assert not (place / "selected.json").exists() and (place / "answers.jsonl").exists() and evaluator.reward_judge.asked == []


@pytest.mark.slow
@pytest.mark.parametrize("method, every", [("iterative_dpo", 3), ("apl_hybrid", 5)])
def test_a_row_that_is_killed_at_boundaries_writes_the_same_bytes(method, every, micro, whole, tmp_path):
    """`make reliability` stops at all of them."""
    stops = stopped(method, micro, tmp_path, every)
    assert len(stops) >= 4 and contents(tmp_path) == contents(whole(method).folder)
    assert looped(method, micro, tmp_path).pairs_used == whole(method).trained.pairs_used


@pytest.mark.slow
def test_a_process_killed_within_a_group_of_answers_and_later_within_the_verdicts_goes_on(micro, whole, tmp_path):
    assert killed("apl_certainty", micro, tmp_path, (5, 9)) == [9, 9]  # of 12 answers; the other 7 and 2 of 3 verdicts
    (place,) = rounds_of(tmp_path)
    assert len(lines_of(place / "answers.jsonl")) == 12 and len(lines_of(place / "scored.jsonl")) == 2
    looped("apl_certainty", micro, tmp_path)
    assert contents(tmp_path) == contents(whole("apl_certainty").folder)


@pytest.mark.slow
def test_other_settings_have_other_rounds_and_a_longer_schedule_finds_the_shorter_one(micro, tmp_path, monkeypatch):
    short, long, other = (ONCE.changed(rounds=RoundSettings(epochs=1, schedule=schedule, candidate_temperature=t)) for schedule, t in (([3], 0.7), ([3, 5], 0.7), ([3], 0.9)))
    looped("apl_random", micro, tmp_path, settings=short)
    (before,) = rounds_of(tmp_path)
    judge = ByLetters()
    looped("apl_random", micro, tmp_path, evaluator=Evaluator(judge), settings=long)
    assert before in rounds_of(tmp_path) and len(rounds_of(tmp_path)) == 2 and len(judge.asked) < 10
    looped("apl_random", micro, tmp_path, settings=other)
    assert [place.name[:8] for place in rounds_of(tmp_path)] == ["round-0-", "round-0-", "round-1-"]


def experiment(micro, folder, evaluator=None, pairs=None, settings=SETTINGS):
    evaluator = evaluator or lab.evaluator("safety", prompts=8, max_new_tokens=24, reward_judge=ByLetters())
    return Experiment(micro, pairs or given(), evaluator, folder, settings, match_utility=False, **lab.LOADED)


@pytest.mark.parametrize(
    "method, changed, message",
    [
        ("iterative_dpo", {"count": 4, "prompts": 6}, r"count = 4 rounds of 6 prompts each need more than the 12 scored pairs"),
        ("apl_random", {"schedule": [4, 13]}, r"schedule = \[4, 13\] has more pairs judged than there are prompts, 12 with scored pairs"),
    ],
)
def test_more_prompts_than_there_are_is_said_before_anything_is_asked(method, changed, message, micro, tmp_path):
    with pytest.raises(ValueError, match=message):
        experiment(micro, tmp_path, settings=SETTINGS.changed(rounds=RoundSettings(**changed))).run(["dpo", method], [0])
    assert not (tmp_path / "seed-0").exists()


def test_a_row_in_rounds_needs_the_judge_of_the_pairs(micro, tmp_path):
    with pytest.raises(ValueError, match="iterative_dpo: .* name it as reward_judge"):
        experiment(micro, tmp_path, lab.evaluator("safety", prompts=8, max_new_tokens=24)).run(["dpo", "iterative_dpo"], [0])
    judge = ByLetters()
    judge.scale = (0, 5)
    with pytest.raises(ValueError, match="scored on the scale .* name the judge that scored the pairs"):
        looped("iterative_dpo", micro, tmp_path, evaluator=Evaluator(judge))
    with pytest.raises(ValueError, match="leave reference = unquantised out"):
        looped("iterative_dpo", micro, tmp_path, settings=SETTINGS.changed(reference="unquantised"))


@pytest.mark.slow
def test_a_later_round_of_active_learning_without_new_pairs_trains_on_those_before(micro, tmp_path):
    class EqualFromNowOn(ByLetters):
        def judge(self, prompts, answers):
            self.asked += answers
            return [Judgement(number / 100 if len(self.asked) <= 6 else 0.5, "") for number, _ in enumerate(answers)]

    trained = looped("apl_random", micro, tmp_path, evaluator=Evaluator(EqualFromNowOn()), settings=ONCE.changed(rounds=RoundSettings(epochs=1, schedule=[3, 5])))
    added, used = zip(*((found["added"], found["pairs_used"]) for found in (json.loads((place / "round.json").read_text()) for place in rounds_of(tmp_path))))
    assert added == (3, 0) and used == (3, 3) and trained.pairs_used == 3


@pytest.mark.parametrize("method", ["iterative_dpo", "apl_random"])
def test_a_judge_that_finds_all_answers_equal_ends_the_row_and_its_verdicts_stay(method, micro, tmp_path):
    class Same(ByLetters):
        def judge(self, prompts, answers):
            self.asked += answers
            return [Judgement(0.5, "") for _ in answers]

    pairs = [pair.model_copy(update={"score_response": 0.5, "score_revised": 0.5}) for pair in given()]
    judge = Same()
    for _ in range(2):
        with pytest.raises(ValueError, match="no pair has a preferred answer .* nothing to train on"):
            looped(method, micro, tmp_path, pairs, Evaluator(judge))
    (place,) = rounds_of(tmp_path)
    assert len(lines_of(place / "scored.jsonl")) * 2 == len(judge.asked)


@pytest.mark.parametrize(
    "given, message",
    [
        ({"schedule": [64, 64]}, "does not rise"),
        ({"schedule": []}, "schedule"),
        ({"count": 0}, "count = 0"),
        ({"candidate_temperature": 0.0}, "candidate_temperature = 0.0"),
        ({"shedule": [4]}, "unknown setting 'shedule', did you mean schedule"),
    ],
)
def test_settings_of_rounds_are_checked(given, message):
    with pytest.raises(ValueError, match=f"rounds: .*{message}"):
        RoundSettings.of(given)


def test_the_settings_of_rounds_come_from_the_settings_file(tmp_path):
    (tmp_path / "rare.yaml").write_text("rounds: {count: 2, schedule: [10, 20]}\nreward_judge: miniature\n")
    p = TrainRDPO.of({"experiment": "safety", "output": "runs/x", "settings": str(tmp_path / "rare.yaml")})
    assert p.training.rounds == RoundSettings(count=2, schedule=[10, 20]) and p.reward_judge == "miniature"
    with pytest.raises(ValueError, match="does not rise"):
        TrainRDPO.of({"experiment": "safety", "output": "runs/x", "rounds": {"schedule": [3, 2]}})


@pytest.mark.slow
def test_a_row_in_rounds_stands_in_the_table_as_others_do(micro, tmp_path):
    results = experiment(micro, tmp_path, settings=ONCE).run(["iterative_dpo"], [0])
    again = experiment(micro, tmp_path, settings=ONCE).run(["iterative_dpo"], [0])
    assert results[0].made_of == again[0].made_of and results[0].settings["rounds"] == {"count": 2, "prompts": 6}
    assert "iterative_dpo" in (tmp_path / "seed-0" / "iterative_dpo" / "adapter" / "README.md").read_text()
    others = [experiment(micro, tmp_path, settings=ONCE.changed(rounds=RoundSettings(**one))).made_of("iterative_dpo", 0) for one in ({"count": 1, "prompts": 6}, {"count": 2, "prompts": 5})]
    assert len({results[0].made_of, *others}) == 3
