"""From a notebook's parameters to teacher and judge: `pytest tests/notebook/test_front_desk.py`."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fault_server import FaultServer, providers_file

from common.chat.kept import KeptChat
from common.data.counterfactual import INSTRUCTIONS
from common.evaluation.answers import TrainedStudent
from common.judge.agreement import CalibratedJudge
from common.judge.scoring import score_pairs
from common.miniature import lab
from common.miniature.language_model import MICRO
from common.miniature.worlds import safety
from common.notebook.chats import open_respondent, open_teacher, paid
from common.notebook.execute import checked_parameters
from common.notebook.judges import open_judge
from common.notebook.preflight import forecast
from common.notebook.prompts import open_prompts, texts_of
from common.notebook.students import open_experiment, pairs_to_score, settings_of
from common.schema import Pair, Sampling, ScoredPair

ASKED = [[{"role": "user", "content": "Hello?"}]]


def parameters(stage, output, **given):
    provider = {name: given.pop(name) for name in ("base_url", "api_key_env", "prices", "max_cost") if name in given}
    given |= {"providers": providers_file(output, there=provider)} if provider else {}
    return checked_parameters(f"safety/{stage}.ipynb", {"output": str(output), **given})


def test_an_endpoint_is_recorded_and_then_needed_no_more(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with FaultServer() as server:
        endpoint = {"teacher": "endpoint:m", "base_url": server.url, "api_key_env": "", "prices": [1.0, 2.0], "max_cost": 1.0}
        teacher = open_teacher(parameters("generate_data", tmp_path, **endpoint))
        replies = teacher.complete(ASKED, Sampling())
    recorded = open_teacher(parameters("generate_data", tmp_path, teacher="recorded"))
    assert recorded.name == teacher.name == f"m at {server.url}" and recorded.complete(ASKED, Sampling()) == replies


def test_first_answers_come_from_the_teacher_or_from_whom_respond_with_names_and_are_kept_apart(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with FaultServer() as server:
        asked = {"teacher": "endpoint:m", "base_url": server.url, "api_key_env": "", "source": "goals.csv"}
        assert open_respondent(parameters("generate_data", tmp_path, **asked)) is None
        student = open_respondent(parameters("generate_data", tmp_path, **asked, respond_with="endpoint:student"))
        student.complete(ASKED, Sampling())
    assert student.name == f"student at {server.url}" and (tmp_path / "respond_with_replies.jsonl").exists()
    with pytest.raises(ValueError, match="needs a real teacher"):
        open_respondent(parameters("generate_data", tmp_path, respond_with="endpoint:student"))


@pytest.mark.parametrize(("named", "version"), [("", "safety-2"), ("safety-1", "safety-1"), ("roleplay-robustness-1", "roleplay-robustness-1")])
def test_a_version_of_the_texts_is_named_like_a_file(named, version, tmp_path):
    assert texts_of(parameters("generate_data", tmp_path, teacher="endpoint:m", prompts_file=named)).version == version


def test_a_real_teacher_is_not_paid_for_the_texts_of_the_miniature(tmp_path):
    with pytest.raises(ValueError, match="teacher = endpoint:m needs source"):
        open_prompts(parameters("generate_data", tmp_path, teacher="endpoint:m"))


def test_a_local_folder_is_a_judge_too(tmp_path, micro):
    judge = open_judge(parameters("reward_score", tmp_path, judge=f"local:{micro}", max_new_tokens=8))
    [judgement] = judge.judge(["Hello?"], ["Hello!"])
    assert isinstance(judge.chat, KeptChat) and judgement.score is None and (tmp_path / "judge_replies.jsonl").exists()


@pytest.mark.parametrize("teacher", ["miniatur", "endpoint:", "local", "gpt"])
def test_an_unknown_teacher_is_refused_with_the_choice(teacher, tmp_path):
    with pytest.raises(ValueError, match=f"unknown teacher '{teacher}'.*; there are miniature, recorded, endpoint:..., local:..."):
        open_teacher(parameters("generate_data", tmp_path, teacher=teacher))


def test_what_a_run_paid_is_counted_and_kept_replies_are_free(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with FaultServer() as server:
        endpoint = {"judge": "endpoint:m", "base_url": server.url, "api_key_env": "", "prices": [1000.0, 2000.0]}
        given = parameters("reward_score", tmp_path, **endpoint, experiment="sycophancy")
        both = open_judge(given)
        both.sentiment.chat.complete(ASKED, Sampling(max_new_tokens=4))
        both.quality.chat.complete([*ASKED, [{"role": "user", "content": "And you?"}]], Sampling(max_new_tokens=4))
        again = open_judge(given)
        again.sentiment.chat.complete(ASKED, Sampling(max_new_tokens=4))
    # one word read and two, four written each: (1 + 2) * 1000 + 8 * 2000 dollars a million
    assert paid(both) == {"requests": 2, "prompt_tokens": 3, "completion_tokens": 8, "dollars": 0.019}
    assert paid(again) == {"dollars": 0.0}
    assert paid(open_judge(parameters("reward_score", tmp_path))) == {}


def test_two_verdicts_are_two_questions_to_one_model_and_a_reward_head_cannot_give_them(tmp_path, micro):
    given = parameters("reward_score", tmp_path, judge=f"yes_no:{micro}", experiment="sycophancy")
    with pytest.raises(ValueError, match="needs sentiment and quality"):
        open_judge(given.model_copy(update={"judge": "reward:folder"}))
    judge = open_judge(given)
    assert judge.sentiment.model is judge.quality.model and judge.sentiment.question != judge.quality.question != ""
    assert judge.sentiment.name != judge.quality.name
    [(felt, good)] = judge.feedback(["What do you think of it?"], ["It is sound."])
    assert -5 < felt < 5 and 0 < good < 5


def held_out_pairs(folder, variant):
    """A scored file of three test pairs and a train pair, of Counterfactual DPO or, with variant "", of self-critique."""
    instruction = INSTRUCTIONS["safety"].undesired if variant == "negation" else ""
    pairs = [
        ScoredPair(
            id=f"id{i}", experiment="safety", split="test" if i else "train", prompt=f"Hello {i}!", response="No.", response_revised="Yes.",
            score_response=0.0, score_revised=1.0, variant=variant, instruction=instruction,
        )
        for i in range(4)
    ]  # fmt: skip
    (folder / "scored.jsonl").write_text("\n".join(pair.model_dump_json() for pair in pairs) + "\n")
    return str(folder / "scored.jsonl")


@pytest.mark.parametrize("variant, metrics", [("negation", {"style", "style_with", "style_against"}), ("", set())])
def test_the_style_of_a_real_student_is_asked_of_the_final_judge(variant, metrics, tmp_path, micro, load_micro):
    """A local folder as judge: it answers gibberish, so all stay unscored, but what it was asked is on disk."""
    given = {"student": str(micro), "pairs_file": held_out_pairs(tmp_path, variant), "final_judge": f"yes_no:{micro}", "train_pairs": 0, "max_new_tokens": 4}
    judge_asks = []
    run = open_experiment(parameters("train_rdpo", tmp_path, **given))
    student = TrainedStudent("base", *load_micro())
    for judge in {id(j): j for j in (run.evaluator.judge, run.evaluator.style_judge) if j}.values():
        answer = judge.judge
        judge.judge = lambda prompts, answers, judge=judge, answer=answer: judge_asks.append((judge.question, list(prompts))) or answer(prompts, answers)
    measured = {metric.metric for metric in run.evaluator(student, "test", 0).metrics}
    assert measured == {"judged", "aligned", "to_the_point", "answer_words", "repeated"} | metrics
    plain = [f"Hello {i}!" for i in (1, 2, 3)]  # the judge never sees the instruction, not even negation's
    assert [prompts for _, prompts in judge_asks] == [plain] * (4 if metrics else 1)
    assert sum(INSTRUCTIONS["safety"].desired in question for question, _ in judge_asks) == len(metrics)
    assert not metrics or run.evaluator.style_judge.model is run.evaluator.judge.model


def test_a_calibrated_final_judge_is_still_asked_about_the_style(tmp_path, micro, monkeypatch):
    monkeypatch.setattr("common.notebook.students.check_judge", lambda judge, p: (CalibratedJudge(judge, [0.1, 0.2], [0, 1]), {}))
    given = {"student": str(micro), "pairs_file": held_out_pairs(tmp_path, "contrastive"), "final_judge": f"yes_no:{micro}", "train_pairs": 0}
    evaluator = open_experiment(parameters("train_rdpo", tmp_path, **given)).evaluator
    assert isinstance(evaluator.judge, CalibratedJudge) and INSTRUCTIONS["safety"].desired in evaluator.style_judge.question


def test_pairs_of_others_are_split_and_their_conversations_not_judged(tmp_path, micro, monkeypatch, capsys):
    turn = lambda role, content: {"role": role, "content": content}  # noqa: E731
    before = {n: [turn("user", f"Hello {n}!"), *([turn("assistant", "Hello."), turn("user", "And?")] if n % 3 == 0 else [])] for n in range(60)}
    lines = [{"chosen": [*asked, turn("assistant", "Yes.")], "rejected": [*asked, turn("assistant", "No.")], "score_chosen": 5, "score_rejected": n % 2} for n, asked in before.items()]
    (tmp_path / "hub.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*lines, lines[0]]))
    given = {"student": str(micro), "pairs_file": str(tmp_path / "hub.jsonl"), "final_judge": f"yes_no:{micro}", "score_range": [0, 5], "evaluate_on": "test", "train_pairs": 0}
    run = open_experiment(parameters("train_rdpo", tmp_path, **given))
    said = capsys.readouterr().out
    assert "read as message lists, prompt inside (implicit); 61 rows, 60 pairs, 60 with both scores" in said and "left out, repeated rows: 1 (first: line 61)" in said
    assert {pair.experiment for pair in run.pairs} == {"safety"} and 30 < len(run.pairs) < 60 and any(pair.history for pair in run.pairs)
    assert run.pairs[0].normalised() in ((0.0, 1.0), (0.2, 1.0)) and run.pairs[0].response_revised == "Yes."
    held_out = [record for split in ("validation", "test") for record in run.evaluator.sets(split)["held_out"]]
    several = int(said.split("left out of the evaluation: ")[1].split()[0])
    assert len(run.pairs) + len(held_out) + several == 60 and several and not any(record.history for record in held_out)
    with pytest.raises(ValueError, match="line 1: column score_chosen: 5 lies outside 0 to 1"):
        open_experiment(parameters("train_rdpo", tmp_path, **given | {"score_range": [0, 1]}))
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="cannot take someone-of-ours/nothing at revision abc from the Hub .no connection"):
        open_experiment(parameters("train_rdpo", tmp_path, **given | {"pairs_file": "someone-of-ours/nothing@abc"}))


def test_preference_data_of_others_is_scored_like_pairs_of_step_1_and_then_trained_on(tmp_path, micro, capsys):
    turn = lambda role, content: {"role": role, "content": content}  # noqa: E731
    before = {n: [turn("user", f"Hello {n}!"), *([turn("assistant", "Hi."), turn("user", "And?")] if n % 5 == 0 else [])] for n in range(40)}
    lines = [{"prompt": asked, "chosen": [turn("assistant", "yes yes")], "rejected": [turn("assistant", "no no")], "score_chosen": n % 9, "score_rejected": None} for n, asked in before.items()]
    (tmp_path / "hub.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*lines, lines[1]]))
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"text": "{word} {word}", "label": {label}}}\n' * 3 for word, label in (("yes", 1), ("no", 0))))
    p = parameters("reward_score", tmp_path, pairs_file=str(tmp_path / "hub.jsonl"), judge=f"learned:{tmp_path / 'rows.jsonl'}", score_range=[0, 8])
    pairs = pairs_to_score(p, tell=True)
    said = capsys.readouterr().out
    assert "read as message lists, prompt in its own column; 41 rows, 40 pairs, 0 with both scores" in said and "left out, repeated rows: 1 (first: line 41)" in said
    assert "left out of the scoring: 8 prompts of several turns" in said and len(pairs) == 32 and {type(pair) for pair in pairs} == {Pair}
    assert forecast("reward_score", p) == [] and capsys.readouterr().out == ""
    score_pairs(open_judge(p), pairs, tmp_path / "scored.jsonl")
    run = open_experiment(parameters("train_rdpo", tmp_path, student=str(micro), final_judge=f"yes_no:{micro}", train_pairs=0))
    held_out = sum(len(run.evaluator.sets(split)["held_out"]) for split in ("validation", "test"))
    assert len(run.pairs) + held_out == 32 and all(pair.score_response < 0.5 < pair.score_revised for pair in run.pairs)
    with pytest.raises(ValueError, match="line 3: column score_chosen: 2 lies outside 0 to 1"):
        pairs_to_score(p.model_copy(update={"score_range": [0, 1]}))
    with pytest.raises(ValueError, match="judge = 'miniature' knows its own world alone; name another judge for .*hub.jsonl"):
        pairs_to_score(p.model_copy(update={"judge": "miniature"}))
    with pytest.raises(FileNotFoundError, match="no pairs at .*none.jsonl; run generate_data first, or give pairs_file"):
        pairs_to_score(p.model_copy(update={"pairs_file": str(tmp_path / "none.jsonl")}))
    (tmp_path / "hub.jsonl").write_text("".join(json.dumps(lines[n]) + "\n" for n in (0, 5)))
    with pytest.raises(ValueError, match="hub.jsonl: every pair has several turns"):
        pairs_to_score(p)


def test_a_judge_learned_from_a_file_scores_pairs_too(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"text": "{word} {word} {word}", "label": {label}}}\n' * 3 for word, label in (("yes", 1), ("no", 0))))
    given = parameters("reward_score", tmp_path, judge=f"learned:{rows}")
    low, high = open_judge(given).judge(["", ""], ["no no no", "yes yes yes"])
    assert low.score < 0.5 < high.score
    with pytest.raises(ValueError, match="gives one number, and sycophancy needs sentiment and quality"):
        open_judge(given.model_copy(update={"experiment": "sycophancy"}))


def test_a_learned_judge_cannot_be_asked_about_a_style(tmp_path, micro):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"text": "{word} {word} {word}", "label": {label}}}\n' * 3 for word, label in (("yes", 1), ("no", 0))))
    given = {"student": str(micro), "pairs_file": held_out_pairs(tmp_path, "contrastive"), "train_pairs": 0}
    assert open_experiment(parameters("train_rdpo", tmp_path, **given, final_judge=f"learned:{rows}")).evaluator.style_judge is None
    assert open_experiment(parameters("train_rdpo", tmp_path, **given, final_judge=f"local:{micro}")).evaluator.style_judge.prompts.judge_template.count(INSTRUCTIONS["safety"].desired) == 1


def test_two_at_a_time_do_not_make_one_miniature_student(tmp_path, monkeypatch):
    inside, most = [], []

    def slowly(world, recipe, cache):
        inside.append(world)
        most.append(len(inside))
        time.sleep(0.05)
        inside.pop()
        return cache / "student"

    monkeypatch.setattr(lab, "pretrained_student", slowly)
    monkeypatch.setattr(lab, "resolve", lambda path: tmp_path / path)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: lab.miniature_student(safety, MICRO), range(2)))
    assert found == [tmp_path / "runs/models/student"] * 2 and most == [1, 1]


@pytest.mark.parametrize("noted, tau", [
    ({"disagreement": 0.0}, 0.4), ({"checks": {"score": {"judge": {"sensitivity": 1.0, "specificity": 1.0}}}, "disagreement": None}, 0.4),
    ({"checks": {"score": {"as it is": {}, "calibrated": {"sensitivity": 0.9, "specificity": 0.8}}}}, 0.427),
])  # fmt: skip
def test_tau_of_the_judge_is_what_step_2_noted_of_it(noted, tau, tmp_path, capsys):
    given = parameters("train_rdpo", tmp_path, methods=["rdpo_label"], knobs={"tau": "judge", "eta": 4.0})
    (tmp_path / "reward_score.manifest.json").write_text(json.dumps(noted))
    pair = ScoredPair.model_validate_json(Path(held_out_pairs(tmp_path, "")).read_text().splitlines()[0])
    pairs = [pair] * 5 + [pair.swapped()] + [pair.model_copy(update={"score_response": 1.0})]  # 5 of 6 untied, so labels right in 5 of 6
    assert settings_of(given, pairs).knobs == {"tau": tau, "eta": 4.0}
    assert f"tau = {tau}" in capsys.readouterr().out


@pytest.mark.parametrize("noted", [None, {}, {"checks": {"quality": {"judge": {"sensitivity": 1.0, "specificity": 1.0}}}}, {"checks": {"score": {"judge": {"sensitivity": 1.0, "specificity": None}}}}])
def test_tau_of_a_judge_that_nobody_checked_is_refused(noted, tmp_path):
    if noted is not None:
        (tmp_path / "reward_score.manifest.json").write_text(json.dumps(noted))
    with pytest.raises(ValueError, match="tau = judge needs a judge that was checked: .*reward_score.manifest.json"):
        settings_of(parameters("train_rdpo", tmp_path, knobs={"tau": "judge"}), [])
