"""Single answers, scored or not: read, learnt and measured without a pair (pytest tests/test_own_answers.py)."""

import json

import pytest
import torch
from tiny_models import TEXT, tiny_causal_model

from common.data.conditioned import TAG
from common.data.formats.read import open_source, read_preferences
from common.data.preference import as_pair, prompt_messages
from common.doctor.rows import SHARES
from common.evaluation.result import Result
from common.logprobs.compute import grouped_logprobs
from common.methods import METHODS, TrainSettings
from common.own_data import OF_ANSWERS, TRAINED, main, train_and_report
from common.report.single_answers import measure, parts_of, report
from common.schema import Metric, ScoredAnswer, ScoredPair
from common.student.load import load_student
from common.training.kept import trained_once
from common.training.supervised import answers_to_learn

SETTINGS = TrainSettings(batch_size=4, epochs=1, learning_rate=5e-3, sft_learning_rate=5e-3, max_length=128)
LOAD = {"compute_dtype": torch.float32}


def single(count=60):
    """Rows with one scored answer, every other one good."""
    return [{"prompt": f"Is answer {n} harmless?", "response": f"Yes, I can help {n}." if n % 2 else f"No, I cannot do it {n}.", "score": 5 if n % 2 else 1} for n in range(count)]


def written(folder, made, name="rows.jsonl"):
    (folder / name).write_text("\n".join(map(json.dumps, made)) + "\n")
    return folder / name


def read(folder, made, *how):
    return open_source(written(folder, made), *how).answers("own_data", SHARES)


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("answering") / "student"
    tiny_causal_model(folder, "llama", "chatml", text=TEXT)
    return folder


@pytest.mark.parametrize(("row", "scale", "found"), [
    ({"prompt": " P? ", "response": " a ", "score": 3}, (1, 5), ("P?", "", [], "a", 3.0, 0.5)),
    ({"prompt": "P?", "completion": "a"}, (0, 1), ("P?", "", [], "a", None, None)),
    ({"question": "P?", "answer": "a", "rating": "0,25", "system": "S"}, (0, 1), ("P?", "S", [], "a", 0.25, 0.25)),
    ({"instruction": "Do", "input": "it", "output": "a", "reward": -1}, (-2, 2), ("Do\n\nit", "", [], "a", -1.0, 0.25)),
    ({"instruction": "Do", "context": "it", "response": "a"}, (0, 1), ("Do\n\nit", "", [], "a", None, None)),
    ({"prompt": [{"role": "user", "content": "P?"}], "completion": [{"role": "assistant", "content": "a"}]}, (0, 1), ("P?", "", [], "a", None, None)),
    ({"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "H"}, {"role": "assistant", "content": "h"}, {"role": "user", "content": "P?"}, {"role": "assistant", "content": "a"}], "score": 1}, (0, 1),
     ("P?", "S", [{"role": "user", "content": "H"}, {"role": "assistant", "content": "h"}], "a", 1.0, 1.0)),
    ({"prompt": "P?", "completion": "a", "label": True}, (0, 10), ("P?", "", [], "a", 1.0, 1.0)),  # a thumb is 0 or 1, whatever the range
    ({"prompt": "P?", "response": "a", "helpfulness": 3}, (0, 4), ("P?", "", [], "a", 3.0, 0.75)),
    ({"instruction": "P?", "generations": ["a"], "ratings": [4]}, (0, 5), ("P?", "", [], "a", 4.0, 0.8)),
])  # fmt: skip
def test_one_answer_a_row_is_read_from_every_usual_format(row, scale, found, tmp_path):
    [answer] = read(tmp_path, [row], scale).answers
    assert (answer.prompt, answer.system, answer.history, answer.answer, answer.score, answer.normalised()) == found
    with pytest.raises(ValueError, match="rdpo train` learns single answers with --method sft, rwr or ca, and with fa where a prompt has several"):
        read_preferences(tmp_path / "rows.jsonl", scale)


def test_every_answer_counts_where_a_prompt_has_several(tmp_path):
    rows = [{"instruction": "P?", "generations": ["a", "b", "c", "d"], "ratings": [1, 4, 4, None]}, {"instruction": "Q?", "generations": ["a", "a", ""], "ratings": [2, 2, 2]}]
    found = read(tmp_path, rows, (1, 5))
    assert [(one.prompt, one.answer, one.score) for one in found.answers] == [("P?", "a", 1), ("P?", "b", 4), ("P?", "c", 4), ("P?", "d", None), ("Q?", "a", 2)]
    assert found.left_out.counts == {"repeated rows": 1, "rows with an empty text": 1} and found.scored == 4
    assert found.account() == f"{tmp_path}/rows.jsonl: read as rated generations (Argilla, distilabel); 2 rows, 5 answers, 4 with a score\n  left out, repeated rows: 1 (first: line 2)\n  left out, rows with an empty text: 1 (first: line 2)"


def test_pairs_are_no_single_answers_and_a_prompt_is_on_one_side(tmp_path):
    assert read(tmp_path, [{"prompt": "P?", "chosen": "a", "rejected": "b"}]) is None
    rows = [{"prompt": f"P {n % 40}?", "response": f"a {n}"} for n in range(120)]
    sides = {}
    for one in read(tmp_path, rows).answers:
        sides.setdefault(one.prompt, set()).add(one.split)
    assert all(len(of) == 1 for of in sides.values()) and set().union(*sides.values()) == {"train", "test"}


@pytest.mark.parametrize(("rows", "said"), [
    ([{"prompt": "P?", "response": "a", "score": 7}], "line 1: column score: 7 lies outside 0 to 1; give the range of the scores with --score-range"),
    ([{"prompt": "P?", "response": "a", "score": "good"}], "line 1: column score: "),
    ([{"prompt": "P?", "response": " "}], "no answer in .*; give other rows"),
    ([{"prompt": "P?", "response": "a \ud83d"}], "line 1: holds half a character"),
    ([{"messages": [{"role": "user", "content": "P?"}]}], "no answer in .*rows without a request before the answer"),
])  # fmt: skip
def test_what_is_no_scored_answer_is_refused_by_line(rows, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        read(tmp_path, rows)


def pair(prompt, revised, original):
    """A pair of (answer, score)s, scores in [0, 1]."""
    return ScoredPair(
        id=f"{prompt}{revised}{original}", experiment="own", split="train", prompt=prompt, response=original[0], response_revised=revised[0],
        score_response=original[1], score_revised=revised[1],
    )  # fmt: skip


def answer(prompt, text, score):
    return ScoredAnswer(id=f"{prompt}{text}", experiment="own", split="train", prompt=prompt, answer=text, score=score)


PAIRS = [pair("P?", ("best", 1.0), ("bad", 0.0)), pair("P?", ("best", 1.0), ("middling", 0.4)), pair("Q?", ("good", 0.5), ("better", 0.6))]
SAME = [answer("P?", "best", 1.0), answer("P?", "bad", 0.0), answer("P?", "middling", 0.4), answer("Q?", "good", 0.5), answer("Q?", "better", 0.6)]


@pytest.mark.parametrize("method", ["fa", "rwr", "ca"])
def test_pairs_and_their_answers_one_by_one_teach_the_same(method):
    assert answers_to_learn(method, PAIRS, TrainSettings()) == answers_to_learn(method, SAME, TrainSettings())


def test_fa_learns_the_best_answer_of_a_prompt_and_not_of_a_pair():
    learnt = [text for _, text, _ in answers_to_learn("fa", PAIRS, TrainSettings())]
    assert learnt == ["best", "better"] and len(answers_to_learn("rwr", PAIRS, TrainSettings())) == 5
    with pytest.raises(ValueError, match="fa learns the best answer of each prompt, and no prompt has two; take sft, rwr or ca"):
        answers_to_learn("fa", [SAME[0], SAME[3]], TrainSettings())


def test_sft_learns_all_answers_and_a_good_one_stands_on_both_sides_of_a_pair_to_remake():
    assert [text for _, text, _ in answers_to_learn("sft", SAME, TrainSettings())] == [one.answer for one in SAME]
    made = as_pair(SAME[0])
    assert made.response == made.response_revised == "best" and not made.is_scored and prompt_messages(made) == prompt_messages(SAME[0])


def test_which_methods_take_single_answers():
    assert set(OF_ANSWERS) == {"sft", "fa", "rwr", "ca", "sapo", "sapo_nll", "self_play"} and set(OF_ANSWERS) < set(TRAINED)
    assert not any(METHODS[name].takes_answers for name in ("dpo", "rdpo", "dsc", "figa", "sapo_accepted", "base"))


def test_the_gain_of_better_answers_is_told_from_that_of_worse_ones(student, tmp_path):
    found = [answer("Is it so?", f"Yes {n}.", 0.9) for n in range(3)] + [answer("Is it so?", f"No {n}.", 0.1) for n in range(2)] + [answer("Is it so?", "Hello.", None)]
    assert parts_of(found) == {"better": [0, 1, 2], "worse": [3, 4]} and parts_of(found[:4]) == {} == parts_of(found[5:])
    trained = trained_once("sft", student, found[:3], SETTINGS.changed(epochs=3), tmp_path, **LOAD)
    metrics, answers = measure(trained, found, experiment="own_data", method="sft", seed=0)
    of = {metric.metric: metric for metric in metrics}
    assert {name: metric.n for name, metric in of.items()} == {"logp_before": 6, "logp_after": 6, "gained_better": 3, "gained_worse": 2}
    assert of["gained_better"].value > of["gained_worse"].value and of["gained_better"].value > 0 and len(answers["after"]) == 5
    model, tokenizer = load_student(student, **LOAD)
    by_hand = []
    for one in found:
        asked = [{"role": "user", "content": one.prompt}]
        encode = lambda turns, **how: tokenizer.apply_chat_template(turns, return_dict=True, **how)["input_ids"]  # noqa: E731
        start, ids = len(encode(asked, add_generation_prompt=True)), encode([*asked, {"role": "assistant", "content": one.answer}])
        by_hand.append(float(grouped_logprobs(model, [[(ids, start)]])[0]) / (len(ids) - start))
    assert of["logp_before"].value == pytest.approx(sum(by_hand) / 6, abs=1e-4)


@pytest.mark.parametrize("score, taken", [(1.0, "the scores are taken for true"), (None, "every answer is taken for a good one")])
def test_the_report_says_what_it_takes_for_true(score, taken):
    held_out = [answer("P?", "best", score), answer("Q?", "good", score)]
    result = Result("sft", 0, "", [Metric(experiment="own_data", method="sft", seed=0, metric=name, value=-1.0, n=2, low=-2.0, high=0.0) for name in ("logp_before", "logp_after")], answers={"before": ["No."], "after": ["Yes."]})
    counts = {split: {"answers": 2, "unscored": 0, "cut": 0} for split in ("train", "test")}
    assert f"It is one training with one seed, and {taken}." in report(result, held_out, counts, "student")


def commanded(student, folder, *arguments):
    return [str(folder / "rows.jsonl"), "--student", str(student), "--output", str(folder / "out"), "--epochs", "1", "--learning-rate", "5e-3", "--max-length", "128", *arguments]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["rwr", "ca", "sft", "sapo"])
def test_the_command_trains_on_single_answers_and_reports(method, student, tmp_path, capsys):
    written(tmp_path, single())
    main(arguments := commanded(student, tmp_path, "--method", method, "--score-range", "1", "5"))
    said, told = capsys.readouterr().out, (tmp_path / "out/report.md").read_text()
    assert "read as single answers; 60 rows, 60 answers, 60 with a score" in said and f"method {method}, as given" in said and not (tmp_path / "out/doctor.md").exists()
    used = int(told.partition("Trained on ")[2].partition(" answers")[0])
    assert 40 <= used < 60 and "| gained by answers scored above the mean of the held-out ones |" in told and "pairs" not in told
    card = (tmp_path / "out/adapter/README.md").read_text()
    assert f"on {used} answers of rows.jsonl" in card and (TAG in card) == (method == "ca")
    main(arguments)
    assert "made and measured before" in capsys.readouterr().out


def test_a_method_of_pairs_refuses_single_answers_in_one_sentence(student, tmp_path):
    written(tmp_path, single())
    for given in (["--method", "dpo"], []):
        with pytest.raises(SystemExit, match="rows.jsonl: read as single answers, of which no pair can be made; `rdpo train` learns single answers"):
            main(commanded(student, tmp_path, *given, "--score-range", "1", "5"))
    with pytest.raises(ValueError, match="dpo learns pairs, and these are single answers; take one of sft, fa, rwr, ca"):
        train_and_report(SAME, student, tmp_path / "out", "dpo", SETTINGS, **LOAD)
    with pytest.raises(SystemExit, match="own_data: no answer has a score, which rwr reads"):
        written(tmp_path, [{"prompt": f"Is {n}?", "response": "Yes."} for n in range(30)])
        main(commanded(student, tmp_path, "--method", "rwr"))
    with pytest.raises(SystemExit, match="own_data: fa learns the best answer of each prompt, and no prompt has two; take sft, rwr or ca"):
        written(tmp_path, single())
        main(["x" if one == str(student) else one for one in commanded(student, tmp_path, "--method", "fa", "--score-range", "1", "5")])  # no student is loaded
    with pytest.raises(SystemExit, match="9 answers, .* give at least 20, to several prompts"):
        written(tmp_path, single(9))
        main(commanded(student, tmp_path, "--method", "sft", "--score-range", "1", "5"))
    assert not (tmp_path / "out/adapter").exists()


@pytest.mark.slow
def test_ca_of_pairs_is_asked_for_its_score_before_and_after(student, tmp_path):
    rows = [{"prompt": f"Is answer {n} harmless?", "chosen": f"Yes, I can help {n}.", "rejected": f"No, I cannot do it {n}.", "score_chosen": 0.9, "score_rejected": 0.1} for n in range(30)]
    written(tmp_path, rows)
    main(commanded(student, tmp_path, "--method", "ca", "--ca-score", "0.9"))
    told = (tmp_path / "out/report.md").read_text()
    assert "answers of pairs, seed 0" in told and "ca_score 0.9" in told
    assert f"{TAG}: 0.90" in (tmp_path / "out/adapter/README.md").read_text()
