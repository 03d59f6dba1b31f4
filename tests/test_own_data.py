"""Own data: rows in, adapter and report out, nothing made twice (pytest tests/test_own_data.py)."""

import csv
import json
import math
import sys
from contextlib import nullcontext

import pytest
import torch
from tiny_models import TEXT, tiny_causal_model

from common import own_data
from common.doctor.__main__ import main as look
from common.doctor.advice import knobs_for, recommend
from common.doctor.report import page
from common.evaluation.answers import TrainedStudent
from common.doctor.rows import rows_of
from common.loss import LOSSES, knobs_of
from common.methods import SelfAugmentedSettings, TrainSettings
from common.own_data import main, read_pairs, side, train_and_report
from common.report import before_after
from common.report.before_after import account, measure
from common.schema import ScoredPair
from common.statistics import judged_tau
from common.student.adapters import load_adapter
from common.student.load import load_student
from common.training import kept as trainings

COLUMNS = ("prompt", "chosen", "rejected", "score_chosen", "score_rejected")
SETTINGS = TrainSettings(batch_size=4, epochs=1, learning_rate=5e-3, max_length=128)
LOAD = {"compute_dtype": torch.float32}


def rows(count=30, **changed):
    """Plain rows; `changed` gives a column's value by row number."""
    made = [{"prompt": f"Is answer {n} harmless?", "chosen": f"Yes, I can help {n}.", "rejected": f"No, I cannot do it {n}.",
             "score_chosen": 0.9, "score_rejected": 0.1} for n in range(count)]  # fmt: skip
    for column, values in changed.items():
        for number, value in values.items():
            made[number][column] = value
    return made


def written(folder, made, name="rows.jsonl"):
    path = folder / name
    if path.suffix == ".csv":
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, dict.fromkeys(column for row in made for column in row))
            writer.writeheader()
            writer.writerows(made)
    else:
        path.write_text(json.dumps(made) if path.suffix == ".json" else "\n".join(map(json.dumps, made)) + "\n")
    return path


def pairs_of(folder, *args, **changed):
    return read_pairs(written(folder, rows(**changed)), *args)


def test_csv_jsonl_and_json_give_the_same_pairs(tmp_path):
    made = rows(system={n: "Be brief." for n in range(30)}, score_chosen={3: None}, prompt={4: 'Two lines,\n"quoted", with commas?'})
    first, *others = (read_pairs(written(tmp_path, made, name)) for name in ("rows.csv", "rows.jsonl", "rows.json"))
    assert all([pair.model_dump() for pair in other] == [pair.model_dump() for pair in first] for other in others)
    assert first[5].where.endswith("rows.csv, line 8") and "where" not in first[5].model_dump()  # row 4 has two lines
    pair = first[0]
    assert (pair.prompt, pair.system, pair.response_revised, pair.response) == ("Is answer 0 harmless?", "Be brief.", "Yes, I can help 0.", "No, I cannot do it 0.")
    assert pair.normalised() == (0.1, 0.9) and first[3].normalised() == (0.1, None)


def test_scores_are_normalised_by_the_range(tmp_path):
    pair = pairs_of(tmp_path, (-5, 5), score_chosen={0: 5}, score_rejected={0: -2.5})[0]
    assert pair.normalised() == (0.25, 1.0)


def test_sides_hang_on_the_prompt_alone(tmp_path):
    made = rows()
    sides = {pair.prompt: pair.split for pair in read_pairs(written(tmp_path, made))}
    assert {*sides.values()} == {"train", "test"}
    other = [{**row, "chosen": "Yes.", "system": "Be brief.", "prompt": row["prompt"].upper()} for row in reversed(made)]
    both = read_pairs(written(tmp_path, made + other))
    assert len(both) == 60 and all(pair.split == sides[pair.prompt.capitalize()] for pair in both)


@pytest.mark.parametrize("changed, message", [
    ({"prompt": {2: " "}}, r"line 3: column prompt: .*at least 1 character; every row needs prompt, chosen, rejected, score_chosen, score_rejected"),
    ({"chosen": {2: ""}}, r"line 3: column chosen"),
    ({"rejected": {2: None}}, r"line 3: column rejected"),
    ({"score_chosen": {2: "good"}}, r"line 3: column score_chosen: .*valid number"),
    ({"score_chosen": {2: math.nan}}, r"line 3: column score_chosen: .*finite"),
    ({"score_rejected": {2: 4}}, r"line 3: column score_rejected: 4 lies outside 0 to 1; .*--score-range"),
    ({"rejected": {2: "Yes, I can help 2."}}, r"line 3: column rejected: the same text as chosen"),
    ({"prompt": {2: "Is answer 0 harmless?"}, "chosen": {2: "Yes, I can help 0."}, "rejected": {2: "No, I cannot do it 0."}}, r"line 3: the same prompt and answers as in .*line 1"),
    ({"score_chosen": {n: "" for n in range(11)}}, r"19 of 30 rows have both scores; give at least 20"),
    ({"score_chosen": {n: 0.1 for n in range(30)}}, r"and 0 held out with unequal scores"),
])  # fmt: skip
def test_bad_rows_are_named(changed, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        pairs_of(tmp_path, **changed)


def test_bad_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file .*none.csv; give a CSV"):
        read_pairs(tmp_path / "none.csv")
    (tmp_path / "empty.csv").write_text(",".join(COLUMNS) + "\n")
    with pytest.raises(ValueError, match="holds no rows"):
        read_pairs(tmp_path / "empty.csv")
    for low, high in ((1, 0), (0, 0), (0, math.nan), (math.nan, 1), (-math.inf, math.inf), (0, math.inf)):
        with pytest.raises(ValueError, match=f"lowest and highest, not {low:g} and {high:g}"):
            pairs_of(tmp_path, (low, high))


def test_a_table_of_a_european_spreadsheet_gives_the_same_pairs(tmp_path):
    made = rows(score_chosen={3: None, 4: 0.5})
    cells = [[" Prompt", "Chosen", "Rejected", "Score_Chosen", "Score rejected"], *([str(value).replace("0.", "0,") if isinstance(value, float) else value or "" for value in row.values()] for row in made)]
    (tmp_path / "ROWS.CSV").write_bytes("\r\n".join(";".join(row) for row in [*cells, [""] * 5]).encode("utf-8-sig"))
    assert [pair.model_dump() for pair in read_pairs(tmp_path / "ROWS.CSV")] == [pair.model_dump() for pair in read_pairs(written(tmp_path, made))]


@pytest.mark.parametrize("arguments, message", [
    (["rows.csv"], "no file"), (["rows.jsonl", "--score-range", "0", "0.5"], "line 1: column score_chosen: 0.9 lies outside 0 to 0.5"),
    (["rows.jsonl", "--method", "base"], "invalid choice: 'base'"), (["rows.jsonl", "--epochs", "0"], "--epochs = 0: input should be greater than or equal to 1"),
    (["rows.jsonl", "--beta", "nan"], "--beta = nan: input should be a finite number"), (["rows.jsonl", "--alpha", "inf"], "--alpha = inf"), (["rows.jsonl", "--alpha", "-1"], "--alpha = -1.0"),
    (["rows.jsonl", "--learning-rate", "1e999"], "--learning-rate = inf"), (["rows.jsonl", "--batch-size", "-4"], "--batch-size = -4"), (["rows.jsonl", "--seed", "-1"], "--seed = -1"),
    (["rows.jsonl", "--max-length", "0"], "--max-length = 0"), (["rows.jsonl", "--score-range", "0", "nan"], "lowest and highest, not 0 and nan"), (["."], "is a folder"),
])  # fmt: skip
def test_the_command_refuses_before_any_model_is_loaded(arguments, message, tmp_path, monkeypatch, capsys):
    written(tmp_path, rows())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(own_data, "trained_once", lambda *args, **load: pytest.fail("a model was loaded"))
    with pytest.raises(SystemExit) as refused:
        main([*arguments, "--student", "nobody", "--output", "out"])
    assert message in f"{refused.value} {capsys.readouterr().err}"
    assert not (tmp_path / "out").exists()


MERGING = "{% for message in messages %}{{ message['role'] + ':' + message['content'] + '<|close|>' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"


@pytest.mark.parametrize("architecture, template, changed, message", [
    ("llama", MERGING, {"chosen": ") Yes, nice."}, "the prompt's tokens are no prefix of prompt and answer"),
    ("llama", "{{ raise_exception('no') if 'loud' in messages[-1]['content'] }}" + MERGING, {"rejected": "loud"}, r"the student's chat template refuses it \(no\)"),
    ("gpt2", "chatml", {"rejected": "yes or no? " * 20}, "tokens are more than the 64 that the student can read"),
])  # fmt: skip
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_row_that_the_student_cannot_take_is_named_before_any_training(split, architecture, template, changed, message, tmp_path, monkeypatch):
    made = rows()
    number = next(number for number, pair in enumerate(read_pairs(written(tmp_path, made))) if pair.split == split)
    made[number] |= changed
    student = tiny_causal_model(tmp_path / "student", architecture, template, text=TEXT + " assistant:) :) :)" * 20)
    (tmp_path / "student/config.json").write_text((tmp_path / "student/config.json").read_text().replace("512", "64"))  # what the student can read
    monkeypatch.setattr(own_data, "trained_once", lambda *args, **load: pytest.fail("a model was loaded"))
    with pytest.raises(ValueError, match=rf"rows\.jsonl, line {number + 1}: .*{message}"):
        train_and_report(read_pairs(written(tmp_path, made)), student, tmp_path / "out", settings=SETTINGS)


def test_an_answer_of_the_student_must_fit_behind_a_held_out_prompt(tmp_path):
    pair = side(pairs_of(tmp_path), "test")[0]  # its prompt has four words
    before_after.check_row(pair, "here", Words(), 512, 12, answered=True)
    with pytest.raises(ValueError, match="here: 12 tokens, an answer of 8 included, are more than the 11 that the student can read"):
        before_after.check_row(pair, "here", Words(), 512, 11, answered=True)
    before_after.check_row(pair, "here", Words(), 512, 11, answered=False)


def test_a_student_that_gives_no_numbers_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(before_after, "pair_logprobs", lambda *args: (torch.tensor([math.nan]), torch.tensor([-1.0])))
    monkeypatch.setattr(before_after, "scaled", lambda student, factor: nullcontext())
    with pytest.raises(ValueError, match="before training the student gives log-probabilities that are no finite numbers"):
        measure(TrainedStudent("rdpo", tokenizer=Words()), pairs_of(tmp_path))


def test_figures_by_hand(tmp_path, monkeypatch):
    """Better answers have two words, worse ones four, a token is a word; sums are given, so all figures can be worked out."""
    better, worse = {"chosen": "better answer"}, {"rejected": "this one is worse"}
    made = [{**row, **better, **worse} for row in rows(60)]
    pairs = side(read_pairs(written(tmp_path, made)), "test")[:6]
    exchanged = {"response": "better answer", "response_revised": "this one is worse", "score_response": 0.9, "score_revised": 0.1}
    for number, update in ((1, exchanged), (4, {"score_response": 0.9}), (5, {"score_response": None})):
        pairs[number] = pairs[number].model_copy(update=update)
    given = iter([(-4, -4), (-4, -12), (-4, -12), (-4, -8)] + [(-2, -8), (-4, -4), (-2, -12), (-6, -16)])  # before, after
    lengths = []

    def summed(model, prompt, first, second):
        lengths.append((len(first[0]), len(second[0])))
        return tuple(torch.tensor([float(logps)]) for logps in next(given))

    monkeypatch.setattr(before_after, "pair_logprobs", summed)
    monkeypatch.setattr(before_after, "answers_of", lambda chat, asked, tokens: [pair.prompt for pair in asked])
    monkeypatch.setattr(before_after, "scaled", lambda student, factor: nullcontext())
    student = TrainedStudent("rdpo", tokenizer=Words())
    metrics, answers = measure(student, pairs, experiment="own_data", method="rdpo", seed=0)
    # per token before: -2 and -1, -2 and -3, -2 and -3, -2 and -2; after: -1 and -2, -2 and -1, -1 and -3, -3 and -4
    assert {metric.metric: metric.value for metric in metrics} == {
        "better_likelier_before": 2 / 4, "better_likelier_after": 3 / 4, "turned_right": 2 / 4, "turned_wrong": 1 / 4,
        "reward_accuracy": 3 / 4,  # gained: 2 and -4, 0 and 8, 2 and 0, -2 and -8
        "logp_better_before": -8 / 4, "logp_better_after": -7 / 4, "logp_worse_before": -9 / 4, "logp_worse_after": -10 / 4,
    }  # fmt: skip
    assert {metric.n for metric in metrics} == {4} and {*lengths} == {(2, 4)}
    share = next(metric for metric in metrics if metric.metric == "better_likelier_after")
    assert share.k == 3 and (round(share.low, 2), round(share.high, 2)) == (0.30, 0.95)  # Wilson
    assert answers["before"] == answers["after"] == [pair.prompt for pair in pairs[:5]]
    assert account(pairs, student, 100) == {"pairs": 6, "identical": 0, "empty": 0, "cut": 0, "tied": 1, "unscored": 1, "contradicted": 1}
    with pytest.raises(ValueError, match="no held-out pair has two different scores"):
        measure(student, pairs[4:])


class Words:
    """A tokenizer whose tokens are words and whose template adds none."""

    def apply_chat_template(self, messages, **how):
        return {"input_ids": " ".join(message["content"] for message in messages).split()}


@pytest.fixture(scope="module", autouse=True)
def short_answers():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(before_after, "ANSWER_TOKENS", 8)
        yield


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return tiny_causal_model(tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="module")
def finished(student, tmp_path_factory):
    """(pairs, output folder, result) of one training."""
    folder = tmp_path_factory.mktemp("own")
    pairs = pairs_of(folder, score_chosen={0: None, 1: 0.1, 2: 0.0})
    return pairs, folder / "out", train_and_report(pairs, student, folder / "out", settings=SETTINGS, **LOAD)


def test_it_trains_on_one_side_and_measures_on_the_other(finished):
    pairs, output, result = finished
    train_pairs, held_out = side(pairs, "train"), side(pairs, "test")
    assert result.pairs_used + result.unscored == len(train_pairs)
    assert result.pairs_used == sum(pair.is_scored for pair in train_pairs)
    of = {metric.metric: metric for metric in result.metrics}
    assert {metric.n for metric in result.metrics} == {sum(p.is_scored and p.score_response != p.score_revised for p in held_out)}
    assert of["reward_accuracy"].value == 1.0 and of["logp_better_after"].value > of["logp_better_before"].value
    manifest = json.loads((output / "own_data.manifest.json").read_text())
    assert manifest["made_of"] == result.made_of and manifest["parameters"]["method"] == "rdpo"
    assert sum(counts["pairs"] for counts in manifest["pairs"].values()) == len(pairs)
    assert sorted(path.name for path in output.iterdir()) == ["adapter", "metrics.json", "own_data.manifest.json", "report.md", "trainer", "training.json"]


def test_the_report_says_what_was_measured_and_answered(finished):
    pairs, output, result = finished
    text = (output / "report.md").read_bytes().decode()
    for metric in result.metrics:
        assert f"n = {metric.n}" in text and (metric.metric.startswith("turned") or f"{metric.value:.2f} [{metric.low:.2f}, {metric.high:.2f}]" in text)
    for said in (*(pair.prompt for pair in side(pairs, "test")[:5]), *result.answers["before"], *result.answers["after"]):
        assert all(f"> {line}" in text for line in (said or "(nothing)").splitlines())
    card = (output / "adapter" / "README.md").read_text()
    assert f"reward_accuracy: {1:.3f}" in card and "self-critique" not in card


def test_the_saved_adapter_gives_the_figures_of_the_report(finished, student):
    pairs, output, result = finished
    base, tokenizer = load_student(student, **LOAD)
    first = side(pairs, "test")[0]
    assert first.normalised() == (0.1, 0.9)
    prompt, answer = [{"role": "user", "content": first.prompt}], first.response_revised
    ids = tokenizer.apply_chat_template([*prompt, {"role": "assistant", "content": answer}], return_dict=True, return_tensors="pt")["input_ids"]
    start = len(tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"])

    def plain(model):
        with torch.no_grad():
            logps = model(ids).logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])
        return float(logps[start - 1 :].mean())

    before, model = plain(base), load_adapter(base, output / "adapter")
    metrics, _ = measure(TrainedStudent("rdpo", model, tokenizer), [first], experiment="own_data", method="rdpo", seed=0)
    of = {metric.metric: metric.value for metric in metrics}
    assert (of["logp_better_before"], of["logp_better_after"]) == pytest.approx((before, plain(model)), abs=1e-4)
    again, answers = measure(TrainedStudent("rdpo", model, tokenizer), side(pairs, "test"), experiment="own_data", method="rdpo", seed=0)
    assert [metric.value for metric in again] == pytest.approx([metric.value for metric in result.metrics], abs=1e-5) and answers == result.answers


def test_nothing_is_made_twice(finished, student, monkeypatch, capsys):
    pairs, output, result = finished
    loaded = []
    monkeypatch.setattr(own_data, "trained_once", lambda method, *args, **load: loaded.append(method))
    again = train_and_report(pairs, student, output, settings=SETTINGS, **LOAD)
    assert again.metrics == result.metrics and loaded == [] and "measured before" in capsys.readouterr().out
    for other in ({"settings": TrainSettings()}, {"settings": SETTINGS, "method": "dpo"}):
        with pytest.raises(FileExistsError, match="other data or settings; give another --output"):
            train_and_report(pairs, student, output, **other, **LOAD)
    with pytest.raises(FileExistsError):
        train_and_report(pairs[1:], student, output, settings=SETTINGS, **LOAD)
    with pytest.raises(ValueError, match="'base' trains nothing; there are sft, dsc, fa, rwr, ca, figa, dpo"):
        train_and_report(pairs, student, output, "base")


def test_an_adapter_without_figures_is_measured_and_not_trained(finished, student, monkeypatch, capsys):
    pairs, output, result = finished
    (output / "metrics.json").unlink()  # killed while it measured
    monkeypatch.setattr(trainings, "train", None)
    again = train_and_report(pairs, student, output, settings=SETTINGS, **LOAD)
    assert "trained before, its adapter reused" in capsys.readouterr().out
    assert again.answers == result.answers and again.history == result.history
    assert [m.value for m in again.metrics] == pytest.approx([m.value for m in result.metrics], abs=1e-5)


@pytest.mark.slow
def test_the_command_does_it_all(student, tmp_path, monkeypatch, capsys):
    written(tmp_path, [{**row, "score_chosen": 5} for row in rows(24)], "rows.csv")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(student.parent))  # a shell leaves ~ alone behind a `=`
    arguments = ["rows.csv", f"--student=~/{student.name}", "--output", "out", "--score-range", "0", "5", "--method", "sft", "--epochs", "1", "--learning-rate", "1e-3"]
    main(arguments)
    assert (tmp_path / "out" / "doctor.md").read_text().startswith("# Pair doctor: rows.csv")
    settings = json.loads((tmp_path / "out" / "own_data.manifest.json").read_text())["parameters"]
    assert (settings["method"], settings["epochs"], settings["learning_rate"], settings["sft_learning_rate"]) == ("sft", 1, 1e-3, 1e-3)
    assert "better answer has the higher" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="other data or settings"):
        main([*arguments, "--seed", "1"])


def commanded(arguments, folder, monkeypatch, capsys, made=None, name="rows.jsonl"):
    """What the command would train with: method, settings, what the doctor found, printed text."""
    written(folder, made or rows(24), name)
    monkeypatch.chdir(folder)
    kept = []

    def train(pairs, student, output, method, settings, found, strength, **load):
        output.mkdir(exist_ok=True)
        (output / "report.md").write_text("# done\n")
        kept.extend([method, settings, found])

    monkeypatch.setattr(own_data, "train_and_report", train)
    main([name, "--student", "nobody", "--output", "out", *arguments])
    return *kept, capsys.readouterr().out


def test_the_doctor_s_method_and_knobs_are_the_default(tmp_path, monkeypatch, capsys):
    method, settings, found, said = commanded([], tmp_path, monkeypatch, capsys)
    pairs = read_pairs(tmp_path / "rows.jsonl")
    advice, trained = recommend(rows_of(pairs)), len(side(pairs, "train"))
    assert method == advice.method and settings.knobs_of(method) == advice.knobs
    assert f"method {method}" in said and f"recommended by the doctor: {trained} of {trained} scored rows to train on remain" in said and trained < 24 and "\n## Recommendation" in page(found)


def test_as_few_rows_as_are_taken_get_a_method(tmp_path, monkeypatch, capsys):
    method, _, _, said = commanded([], tmp_path, monkeypatch, capsys, rows(20))
    assert method in own_data.TRAINED and f"method {method}" in said and "we do not know the label noise" not in said


def test_the_noted_error_of_the_judge_corrects_the_noise_of_a_scored_jsonl(tmp_path, monkeypatch, capsys):
    made = [ScoredPair(id=f"p{n}", experiment="safety", split="test" if n % 4 == 0 else "train", prompt=f"Is {n} odd?", response="No.", response_revised=f"Yes, {n}.", score_response=n < 10, score_revised=n >= 10, judge="a judge").model_dump(mode="json") for n in range(40)]
    (tmp_path / "reward_score.manifest.json").write_text(json.dumps({"judge": "a judge", "checks": {"score": {"judge": {"sensitivity": 0.9, "specificity": 0.9}}}}))
    _, _, found, _ = commanded([], tmp_path, monkeypatch, capsys, made, "scored.jsonl")
    assert found.judge_accuracy == (0.9, 0.9) and "- Estimated share of wrong labels: 0.24 [0.13, 0.40], n = 40 untied rows, corrected for a judge with sensitivity 0.9 and specificity 0.9, which `reward_score.manifest.json` notes" in page(found)
    assert commanded([], tmp_path, monkeypatch, capsys, made)[2].judge_accuracy is None  # rows.jsonl


@pytest.mark.slow
def test_the_doctor_s_files_are_those_of_its_own_command_with_the_rows_that_are_cut(student, tmp_path, monkeypatch, capsys):
    path = str(written(tmp_path, rows(rejected={3: "No. " * 90}, score_chosen={5: 0.0}, score_rejected={5: 0.3})))
    monkeypatch.setattr(own_data, "trained_once", lambda *args, **load: sys.exit("trained"))
    with pytest.raises(SystemExit, match="trained"):
        main([path, "--student", str(student), "--output", str(tmp_path / "out"), "--max-length", "64"])
    assert "cut: 1 of 30 rows, more than 64 tokens of prompt and answer: the rest is cut off" in capsys.readouterr().out
    look([path, "--tokenizer", str(student), "--max-length", "64", "--output", str(tmp_path / "doctor")])
    ours, theirs = ({file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("out", "doctor"))
    assert ours == theirs and ours.keys() == {"doctor.md", "doctor.png", "suspects.jsonl"}
    assert "| cut | 1 | 30 | 0.03 [0.01, 0.17] |" in ours["doctor.md"].decode() and json.loads(ours["suspects.jsonl"].splitlines()[0])["where"].endswith("line 6")


@pytest.mark.parametrize("files, reason", [(None, "We couldn't connect to"), ({}, "Couldn't instantiate the backend tokenizer from one of)"), ({"config.json": "{}"}, "Couldn't instantiate the backend tokenizer from one of)")])
def test_a_student_that_cannot_be_loaded_is_named_in_a_sentence_before_any_weights(files, reason, tmp_path, monkeypatch):
    monkeypatch.setattr(own_data, "trained_once", lambda *args, **load: pytest.fail("weights were loaded"))
    for name, text in (files or {}).items():
        (tmp_path / name).write_text(text)
    student = "nobody" if files is None else str(tmp_path)
    with pytest.raises(SystemExit) as refused:
        main([str(written(tmp_path, rows())), "--student", student, "--output", str(tmp_path / "out"), "--method", "dpo"])
    said = str(refused.value)
    assert said.startswith(f"own_data: student {student}: cannot be loaded ({reason}") and said.endswith("); give a folder with a chat model and its tokenizer, or a Hub name") and "\n" not in said
    assert not (tmp_path / "out").exists()


def test_a_student_without_a_chat_template_is_refused_in_the_loader_s_words(tmp_path, monkeypatch):
    monkeypatch.setattr(own_data, "trained_once", lambda *args, **load: pytest.fail("weights were loaded"))
    student = tiny_causal_model(tmp_path / "student", template=None)
    with pytest.raises(SystemExit, match=r"^own_data: the tokenizer of .* has no chat template; use an instruction-tuned model"):
        main([str(written(tmp_path, rows())), "--student", str(student), "--output", str(tmp_path / "out"), "--method", "dpo"])


def test_what_is_given_wins_over_the_doctor(tmp_path, monkeypatch, capsys):
    method, settings, _, said = commanded(["--method", "label_nll", "--eta", "3.5", "--nll-weight", "0.5"], tmp_path, monkeypatch, capsys)
    assert (method, settings.knobs["eta"], settings.nll_weight) == ("label_nll", 3.5, 0.5) and settings.knobs["tau"] == knobs_for("label_nll")["tau"]
    assert "eta 3.5 as given" in said and "recommended" not in said
    assert commanded(["--method", "rdpo"], tmp_path, monkeypatch, capsys)[1].knobs["alpha"] == knobs_for("rdpo")["alpha"]


@pytest.mark.parametrize("arguments, message", [
    (["--method", "rdpo_filter", "--alpha", "2"], "rdpo_filter does not read --alpha; leave it out, or give a --method that reads it: rdpo, rdpo_nll, rdpo_nll_accepted"),
    (["--method", "sft", "--kl-budget", "0.5"], "sft does not read --kl-budget; "), (["--method", "dsc", "--beta", "0.1"], "dsc does not read --beta; "),
    (["--method", "rdpo_label", "--nll-weight", "1"], "rdpo_label does not read --nll-weight; "), (["--rwr-temperature", "0.5"], "which the doctor recommends, does not read --rwr-temperature; leave it out, or give a --method that reads it: rwr"),
    (["--method", "self_play", "--segment", "8"], "self_play does not read --segment; leave it out, or give a --method that reads it: sapo, sapo_nll, sapo_accepted$"),
])  # fmt: skip
def test_an_option_that_the_method_does_not_read_is_refused(arguments, message, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit, match=f"own_data: .*{message}"):
        commanded(arguments, tmp_path, monkeypatch, capsys)


def test_what_every_method_reads_may_be_given_to_all(tmp_path, monkeypatch, capsys):
    for method, more in (("sft", []), ("rdpo_filter", ["--kl-budget", "0", "--beta", "0.2"])):
        _, settings, _, _ = commanded(["--method", method, "--learning-rate", "1e-3", "--epochs", "2", "--report-to", "none", *more], tmp_path, monkeypatch, capsys)
        assert settings.learning_rate == settings.sft_learning_rate == 1e-3 and settings.batch_size == own_data.SETTINGS.batch_size


def test_tau_of_the_judge_is_that_of_its_noted_errors(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit, match="own_data: --tau judge needs a judge that was checked: a scored.jsonl beside the manifest"):
        commanded(["--method", "rdpo_label", "--tau", "judge"], tmp_path, monkeypatch, capsys)
    pairs = [ScoredPair(id=f"p{n}", experiment="safety", split="train" if n % 4 else "test", prompt=f"Question {n}?", response="No.", response_revised=f"Yes, {n}.", score_response=float(n % 5 == 0), score_revised=float(n % 5 != 0), judge="grader") for n in range(40)]
    (tmp_path / "scored.jsonl").write_text("".join(pair.model_dump_json() + "\n" for pair in pairs))
    (tmp_path / "judge.manifest.json").write_text(json.dumps({"judge": "grader", "checks": {"score": {"judge": {"sensitivity": 0.9, "specificity": 0.8}}}}))
    kept = []
    monkeypatch.setattr(own_data, "train_and_report", lambda pairs, student, output, method, settings, *rest, **load: kept.append(settings) or (output.mkdir(), (output / "report.md").write_text("# done\n")))
    main([str(tmp_path / "scored.jsonl"), "--student", "nobody", "--output", str(tmp_path / "out"), "--method", "rdpo_label", "--tau", "judge"])
    assert kept[0].knobs["tau"] == round(judged_tau(0.8, 0.9, 0.8), 3) and f"tau = {kept[0].knobs['tau']:g}: the judge finds 90% of good answers good and 80% of bad ones bad" in capsys.readouterr().out


def test_sapo_s_own_settings_are_options(tmp_path, monkeypatch, capsys):
    _, settings, _, _ = commanded(["--method", "sapo_accepted", "--segment", "8", "--ema", "0.9"], tmp_path, monkeypatch, capsys)
    assert settings.self_augmented == SelfAugmentedSettings(segment=8, ema=0.9)
    with pytest.raises(SystemExit, match="2"):
        main(["rows.jsonl", "--student", "nobody", "--output", "out", "--method", "sapo", "--ema", "1.5"])
    assert "--ema = 1.5" in capsys.readouterr().err


@pytest.mark.parametrize("method", own_data.TRAINED)
def test_every_setting_that_a_method_reads_is_an_option(method):
    read = own_data.read_by(method) - {"self_augmented", "sft_learning_rate"}
    assert read <= vars(own_data.parser().parse_args(["rows", "--student", "s", "--output", "o"])).keys()


def test_every_knob_is_an_option():
    assert set(own_data.KNOBS) == {knob for loss in LOSSES for knob in knobs_of(loss)} and "nll_weight" in own_data.OPTIONS


def test_another_strength_is_measured_and_saved_beside_without_a_new_training(finished, student, monkeypatch, capsys):
    pairs, output, result = finished
    monkeypatch.setattr(trainings, "train", None)
    half = train_and_report(pairs, student, output, settings=SETTINGS, strength=0.5, **LOAD)
    assert "trained before, its adapter reused" in capsys.readouterr().out and half.settings["strength"] == 0.5
    whole_alpha, half_alpha = (json.loads((output / name / "adapter_config.json").read_text())["lora_alpha"] for name in ("adapter", "adapter-0.5"))
    assert half_alpha == 0.5 * whole_alpha
    of, before = ({metric.metric: metric.value for metric in one.metrics} for one in (half, result))
    assert of["logp_better_before"] == pytest.approx(before["logp_better_before"], abs=1e-4) and of["logp_better_after"] != pytest.approx(before["logp_better_after"], abs=1e-4)
    train_and_report(pairs, student, output, settings=SETTINGS, **LOAD)  # as it was trained, for the tests that follow


def test_the_command_pushes_the_adapter_whose_card_names_rows_and_student(student, tmp_path, monkeypatch, capsys):
    written(tmp_path, rows())
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    main([str(tmp_path / "rows.jsonl"), "--student", str(student), "--output", str(tmp_path / "out"), "--method", "dpo", "--epochs", "1", "--max-length", "128", "--push", "me/mine"])
    printed, card = capsys.readouterr().out, (tmp_path / "out/adapter/README.md").read_text()
    assert "  adapter_model.safetensors, " in printed and f"no token, so nothing was uploaded; after `hf auth login`: python -m common.student.hub {tmp_path}/out/adapter me/mine" in printed
    assert " pairs of rows.jsonl." in card and f"`{student.name}, a local folder`" in card and "base_model" not in card
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path / "rows.jsonl"), "--student", "nobody", "--output", str(tmp_path / "other"), "--push", "mine"])
    assert "'mine' is no Hub repository; write OWNER/NAME" in capsys.readouterr().err and not (tmp_path / "other").exists()


def transcripts(count=30):
    """HH-RLHF's form, of one and two turns, and three rows that give no pair."""
    told = [f"\n\nHuman: Hello.\n\nAssistant: Yes.\n\nHuman: Is answer {n} harmless?" if n % 2 else f"\n\nHuman: Is answer {n} harmless?" for n in range(count)]
    made = [{"chosen": f"{asked}\n\nAssistant: Yes, I can help {n}.", "rejected": f"{asked}\n\nAssistant: No, I cannot do it {n}."} for n, asked in enumerate(told)]
    return [*made, made[0], {**made[1], "rejected": made[1]["chosen"]}, {**made[2], "rejected": made[3]["rejected"]}]


@pytest.mark.slow
def test_transcripts_without_scores_train_dpo_on_their_labels(student, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    written(tmp_path, transcripts())
    arguments = ["rows.jsonl", "--student", str(student), "--output", "out", "--epochs", "1", "--learning-rate", "5e-3"]
    with pytest.raises(SystemExit, match="own_data: no pair has both scores, which rdpo reads; take a method that reads none, or give scores"):
        main([*arguments, "--method", "rdpo"])
    assert not (tmp_path / "out" / "adapter").exists()
    main([*arguments, "--method", "dpo"])
    said, report = capsys.readouterr().out, (tmp_path / "out" / "report.md").read_text()
    assert "rows.jsonl: read as HH-RLHF transcripts; 33 rows, 30 pairs, 0 with both scores" in said and "left out, rows whose answers follow different turns: 1 (first: line 33)" in said
    assert "*better* is the chosen answer, as no row has scores" in report and "the labels are taken for true" in report and "a score is missing" not in report
    assert "> Hello.\n> \n> Yes.\n> \n> Is answer" in report
    manifest = json.loads((tmp_path / "out" / "own_data.manifest.json").read_text())
    assert manifest["data"]["format"] == "HH-RLHF transcripts" and manifest["data"]["left_out"] == {"repeated rows": 1, "rows whose two answers are the same text": 1, "rows whose answers follow different turns": 1}
    pairs, trained = read_pairs(tmp_path / "rows.jsonl"), json.loads((tmp_path / "out" / "training.json").read_text())
    assert trained["pairs_used"] == len(side(pairs, "train")) and trained["unscored"] == 0 and f"n = {len(side(pairs, 'test'))}" in report
    assert "- rows.jsonl: read as HH-RLHF transcripts" in (tmp_path / "out" / "doctor.md").read_text()


def test_too_few_pairs_without_scores(tmp_path):
    with pytest.raises(ValueError, match="rows.jsonl: 10 of 13 rows give a pair; give at least 20, so that some can be held out"):
        read_pairs(written(tmp_path, transcripts(10)))


def test_attributes_are_weighed_as_the_command_is_told(tmp_path, monkeypatch, capsys):
    made = [{"prompt": f"Is answer {n} harmless?", "response": text, "helpfulness": helpful, "verbosity": verbose} for n in range(24) for text, helpful, verbose in ((f"Yes {n}.", 3, 4), (f"No {n}.", 2, 0))]
    *_, said = commanded(["--score-range", "0", "4", "--weights", "helpfulness=0.5", "verbosity=-0.5"], tmp_path, monkeypatch, capsys, made)
    assert "read as attribute scores, weighed by helpfulness, verbosity; 48 rows, 24 pairs, 24 with both scores" in said
    [first, *_] = read_pairs(tmp_path / "rows.jsonl", (0, 4), {"helpfulness": 0.5, "verbosity": -0.5})
    assert first.response_revised == "No 0." and first.normalised() == (0.375, 0.75)
    for given, message in (["helpfulness"], "--weights helpfulness: write ATTRIBUTE=WEIGHT"), (["helpfulness=0"], "the weight of helpfulness is a finite number other than 0"):
        with pytest.raises(SystemExit, match=message):
            main(["rows.jsonl", "--student", "nobody", "--output", "out", "--score-range", "0", "4", "--weights", *given])


def annotated(count=40):
    """Rows without scores of four annotators, every second of whom prefers the other answer."""
    made = rows(count)
    for number, row in enumerate(made):
        del row["score_chosen"], row["score_rejected"]
        row["annotator"] = f"rater {number % 4}"
        if number % 2:
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    return made


@pytest.mark.slow
def test_annotators_of_two_kinds_get_a_policy_each(student, tmp_path, monkeypatch, capsys):
    """Their policy takes their side of every held-out pair, and no mixture of two opposite ones can take both sides."""
    pairs, output = read_pairs(written(tmp_path, annotated())), tmp_path / "out"
    result = train_and_report(pairs, student, output, "cluster_dpo", SETTINGS.changed(epochs=4), **LOAD)
    of = {metric.metric: metric for metric in result.metrics}
    measured = [pair for pair in pairs if pair.split == "test"]
    assert {of[f"own_type-{k}"].value for k in (0, 1)} == {1.0} and sum(of[f"own_type-{k}"].n for k in (0, 1)) == len(measured)
    assert sum(of[f"mixed_type-{k}"].k for k in (0, 1)) < len(measured)
    types = json.loads((output / "adapter" / "types.json").read_text())
    assert {frozenset(before_after.annotators_of(types["annotators"], k)) for k in (0, 1)} == {frozenset({"rater 0", "rater 2"}), frozenset({"rater 1", "rater 3"})}
    assert result.settings["mixture"] == types["mixture"] and {"default", "type-0"} - set(types["mixture"]) == {"default"}
    report, card = ((output / name).read_text() for name in ("report.md", "adapter/README.md"))
    assert "| policy | annotators | answers |" in report and "2: rater 0, rater 2" in report and "It is a mixture" in card

    plain = train_and_report(pairs, student, tmp_path / "plain", "dpo", SETTINGS, **LOAD)
    values = {metric.metric: metric.value for metric in plain.metrics}
    assert plain.answers["before"] == result.answers["before"] and of["logp_better_before"].value == pytest.approx(values["logp_better_before"], abs=1e-5)

    monkeypatch.setattr("common.training.annotators.run.trained_once", None)
    (output / "metrics.json").unlink()
    again = train_and_report(pairs, student, output, "cluster_dpo", SETTINGS.changed(epochs=4), **LOAD)
    assert "its adapters reused" in capsys.readouterr().out and again.metrics == result.metrics


def test_a_mixture_without_annotators_or_at_another_strength_is_refused_before_the_student_is_loaded(tmp_path):
    with pytest.raises(ValueError, match="have no annotator; fill the field annotator of every pair, or train dpo"):
        train_and_report(pairs_of(tmp_path), "nobody", tmp_path / "out", "em_dpo", SETTINGS)
    with pytest.raises(ValueError, match="strength = 0.5: em_dpo trains several adapters"):
        train_and_report(read_pairs(written(tmp_path, annotated())), "nobody", tmp_path / "out", "em_dpo", SETTINGS, strength=0.5)


def test_what_em_begins_with_is_one_of_two(tmp_path, monkeypatch, capsys):
    _, settings, _, _ = commanded(["--method", "em_dpo", "--em-start", "dirichlet", "--annotator-types", "3"], tmp_path, monkeypatch, capsys, annotated())
    assert (settings.em_start, settings.annotator_types) == ("dirichlet", 3)
    with pytest.raises(SystemExit, match="em_start = 'middle': input should be 'clusters' or 'dirichlet'"):
        commanded(["--method", "em_dpo", "--em-start", "middle"], tmp_path, monkeypatch, capsys, annotated())
