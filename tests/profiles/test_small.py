"""The data of the profile `small`: cut at sentence ends, split without leakage, found again by hash; and the whole profile in short, where the model is (pytest tests/profiles/test_small.py)."""

import json
import random
import shutil
import subprocess
import sys

import pytest

from common.data.sources import first_line
from common.data.splits import words
from common.data.text_rules import speaks_of_earlier
from common.evaluation.result import Result
from common.methods import TrainSettings, is_trained
from common.notebook.execute import checked_parameters
from common.notebook.profiles import own_pairs, stage_parameters
from common.notebook.students import open_experiment
from common.profiles.small import prepare as small
from common.profiles.small.prepare import (
    Rows,
    benign_pairs,
    cut,
    public_rows,
    roleplay_pairs,
    row_hash,
    rows_of,
    safety_pairs,
)
from common.prompts import PROMPTS
from common.report.tables import read_results
from common.runtime import ROOT, resolve
from common.storage import read_lines

SAMPLE = ROOT.parent / "shared/data"
WORDS = lambda text: len(text.split())  # noqa: E731


@pytest.mark.parametrize("text, limit, expected", [
    ("One two. Three four! Five six?", 4, "One two. Three four!"),
    ("One two. Three four! Five six?", 6, "One two. Three four! Five six?"),
    ("One two three four five.", 3, ""),
    ("Do this: 1. Wash it 2. Dry it. Then rest", 8, "Do this: 1. Wash it 2. Dry it."),
    ('She said "no." And left. ', 3, 'She said "no."'),
    ("It costs 3.50 in all. Yes.", 5, "It costs 3.50 in all."),
    ("no end at all", 10, ""), ("", 5, ""),
])  # fmt: skip
def test_a_text_ends_at_its_last_sentence_end_within_the_limit(text, limit, expected):
    assert cut(text, WORDS, limit) == expected


@pytest.fixture(scope="module")
def rows():
    """Rows of the four kinds, made up: 160 harmful ones of which a third is marred, 60 persona rows, 140 questions."""
    draw = random.Random(0)
    text = lambda n: " ".join(f"w{draw.randrange(999)}" for _ in range(n)) + ". And more."  # noqa: E731
    harmful = [{"prompt": f"harm {i} {text(2)}", "response": f"Rill: {text(6)}", "response_revised": ("My previous answer was wrong. " if i % 3 == 0 else "No. ") + text(4)} for i in range(160)]
    personas = [{"persona": f"You are P{i % 40}.\n{text(5)}", "prompt": f"ask {i} {text(3)}", "persona_response": text(5), "assistant_response": text(4)} for i in range(60)]
    factual = [{"prompt": f"is it {i} {text(3)}?", "chosen": text(5), "rejected": text(6)} for i in range(140)] + [{"prompt": personas[0]["prompt"], "chosen": "Yes. It is.", "rejected": "No."}]
    return Rows(harmful, personas, factual, [{"prompt": "p", "answer": "a b", "gpt4_harmless": 1}])


def test_safety_pairs_have_no_prompt_in_two_places_and_train_on_nothing_marred(rows):
    pairs, final = safety_pairs(rows, WORDS)
    of = lambda split: [pair for pair in pairs if pair.split == split and not pair.kind.startswith("benign")]  # noqa: E731
    assert len(of("test")) == len(of("ood")) == small.SAFETY_TEST and len(of("validation")) == small.SAFETY_VALIDATION
    assert not any(speaks_of_earlier(pair.response_revised) for pair in of("train") + of("validation"))
    places = [{words(pair.plain_prompt) for pair in of(split)} for split in ("train", "validation", "test")] + [{words(row["text"]) for row in final}]
    assert all(not a & b for i, a in enumerate(places) for b in places[i + 1 :])
    answers = {pair.response for pair in pairs} | {pair.response_revised for pair in pairs}
    assert not answers & {row["text"] for row in final} and {row["label"] for row in final} == {0, 1}
    assert final and not any(speaks_of_earlier(row["text"]) for row in final)  # no mark by which a judge would know a revision
    assert {pair.plain_prompt for pair in of("ood")} == {pair.prompt for pair in of("test")} and all(pair.prompt != pair.plain_prompt for pair in of("ood"))
    assert len({pair.id for pair in pairs}) == len(pairs)
    assert pairs == safety_pairs(rows, WORDS)[0] != safety_pairs(rows, WORDS, seed=1)[0]


def test_benign_prompts_of_a_split_are_questions_and_everyday_requests(rows):
    pairs = benign_pairs("safety", rows, WORDS, {"train": 3, "test": 5}, 0)
    kinds = [(pair.split, pair.kind) for pair in pairs]
    assert kinds.count(("train", "benign question")) == 3 and kinds.count(("test", "benign request")) == small.EVERYDAY["test"]
    assert all(bool(pair.response) == (pair.kind == "benign question") for pair in pairs)
    assert len({pair.prompt for pair in pairs}) == len(pairs)


def test_no_persona_and_no_question_stands_in_two_places(rows):
    pairs, judge, final = roleplay_pairs(rows, WORDS)
    dressed = [pair for pair in pairs if not pair.kind.startswith("benign")]
    persona = {words(row["prompt"]): first_line(row["persona"]) for row in rows.personas}
    of = {split: {persona[words(pair.plain_prompt)] for pair in dressed if pair.split == split} for split in ("train", "validation", "test", "ood")}
    assert of["test"] == of["ood"] and all(of[split] for split in of)
    assert not (of["train"] & of["validation"] | of["train"] & of["test"] | of["validation"] & of["test"])
    texts = {pair.response for pair in dressed} | {pair.response_revised for pair in dressed}
    assert judge and final and not texts & {row["text"] for row in judge + final} and not {row["text"] for row in judge} & {row["text"] for row in final}
    benign = [pair for pair in pairs if pair.kind.startswith("benign")]
    assert not {words(pair.plain_prompt) for pair in benign} & {words(pair.plain_prompt) for pair in dressed}
    masked = [pair for pair in benign if pair.kind == "benign persona"]
    assert len(masked) == small.BENIGN["test"] and all(pair.plain_prompt in pair.prompt and pair.prompt != pair.plain_prompt for pair in masked)


def test_rows_are_found_again_in_the_public_files(rows, tmp_path, monkeypatch):
    """The public file holds each safety pair twice, personas as system prompts, and other tasks; only listed rows come back."""
    entry = lambda system, prompt, chosen, rejected, task: {"system": system, "prompt": prompt, "chosen": chosen, "rejected": rejected, "task": task}  # noqa: E731
    public = [entry("a helpful yet harmless assistant", r["prompt"], r["response_revised"], r["response"], "harmless") for r in rows.safety]
    public += [entry("an uncensored assistant", r["prompt"], r["response"], r["response_revised"], "harmless") for r in rows.safety]
    public += [entry(r["persona"], r["prompt"], r["persona_response"], r["assistant_response"], "truthfulness") for r in rows.personas]
    public += [entry("You are an unbiased, honest, helpful AI assistant who always answers.", r["prompt"], r["chosen"], r["rejected"], "truthfulness") for r in rows.factual]
    (tmp_path / "pairs.json").write_text(json.dumps(public))
    (tmp_path / "page.md").write_text("| prompt | response | system_prompt | score_response |\n|--|--|--|--|\n| p | a b | s | 1 |\n| other | c | s | 0 |\n")
    served = {small.PAIRS_AT: "pairs.json", **dict.fromkeys(small.JUDGED_AT, "page.md")}
    monkeypatch.setattr(small, "_download", lambda place: tmp_path / served[place])
    kept = {name: [row_hash(row) for row in of_kind] for name, of_kind in rows._asdict().items()}
    kept["safety"] = kept["safety"][:7]
    found = public_rows(kept)
    assert found.safety == rows.safety[:7] and found.factual == rows.factual
    assert [{**row, "persona": row["persona"].strip()} for row in found.personas] == rows.personas
    assert found.judged == rows.judged
    backwards = public_rows({name: hashes[::-1] for name, hashes in kept.items()})
    assert backwards.safety == found.safety[::-1]  # splits hang on the order, and the list gives it
    with pytest.raises(ValueError, match="1 of the rows in .* are not in the public files"):
        public_rows({**kept, "safety": ["nowhere"]})


def test_a_row_is_known_by_its_words():
    assert row_hash({"prompt": "a  b\n", "chosen": "c"}) == row_hash({"chosen": "c", "prompt": "a b", "n": 3}) != row_hash({"prompt": "a b", "chosen": "d"})


@pytest.mark.skipif(not (SAMPLE / "safety_pairs.jsonl").exists(), reason="the sample of recorded rows is not here")
def test_the_sample_is_the_listed_one():
    listed = json.loads(small.ROWS.read_text())
    assert {name: list(map(row_hash, of_kind)) for name, of_kind in rows_of(SAMPLE)._asdict().items()} == listed


MODELS = {"safety": "SmolLM2-135M-Instruct", "roleplay-robustness": "SmolLM2-135M-Instruct", "sycophancy": "SmolLM2-135M-stance-follower"}


@pytest.fixture(scope="module")
def short_run():
    """The real model through all three notebooks and into the tables, a few steps of everything (`fast.yaml`), two experiments side by side;
    those whose model is here. (folder, experiments)"""
    here = [name for name, model in MODELS.items() if (resolve("runs/models") / model / "model.safetensors").exists()]
    folder = resolve("runs/small-fast")
    shutil.rmtree(folder, ignore_errors=True)
    if here:
        if not (resolve(small.FOLDER) / "safety.jsonl").exists():
            small.write_data(SAMPLE)
        command = [sys.executable, "-m", "common.batch", "small", "-f", "fast", "--to", "small-fast", "--jobs", "2", *(word for name in here for word in ("--experiment", name))]
        ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
        assert ran.returncode == 0, ran.stdout + ran.stderr
    return folder, here


@pytest.mark.slow
@pytest.mark.skipif(not (SAMPLE / "safety_pairs.jsonl").exists(), reason="the sample of recorded rows is not here")
@pytest.mark.parametrize("experiment", MODELS)
def test_the_profile_in_short(experiment, short_run):
    folder, here = short_run
    if experiment not in here:
        pytest.skip(f"{MODELS[experiment]} is not here; python -m common.profiles.small.prepare makes it")
    results = read_results(folder / experiment)
    trained = [result for result in results if result.swapped]
    assert [result.method for result in trained] == ["rdpo"] and {result.pairs_used for result in trained} == {4}
    counted = {metric.metric: metric for metric in trained[-1].metrics}
    assert {"aligned", "aligned_ood", "utility", "reward", "to_the_point", "answer_words", "repeated", "kl"} <= set(counted) and counted["aligned"].n == 2
    sample = [row for path in folder.glob(f"{experiment}/**/to_label.jsonl") for _, row in read_lines(path)]
    assert sample and all(set(row) == {"id", "set", "prompt", "answer"} for row in sample)
    assert "swapped" in (folder / "tables" / experiment / "table.md").read_text()


@pytest.mark.parametrize("kept", sorted((ROOT / "results/small").glob("*/finished.jsonl")), ids=lambda file: file.parent.name)
def test_kept_trainings_of_a_row_tell_one_setting_and_what_their_method_reads(kept):
    """So that whoever adds a seed to them has one table."""
    settings = {}
    for result in (Result.of(content) for _, content in read_lines(kept)):
        if is_trained(result.method):
            assert result.settings.keys() == {name for name in TrainSettings().as_dict(result.method) if name != "seed"}, result.row
            assert settings.setdefault(result.row, result.settings) == result.settings
    assert len(settings) >= 6


@pytest.mark.parametrize("experiment", ["safety", "roleplay-robustness"])  # the student of sycophancy hangs on the machine that made it
def test_kept_rows_are_found_again_by_their_marks(experiment):
    """Every row of `results/small` is made of what this run would be made of, but for SR's with texts of before: nothing else has lost one."""
    pairs = resolve(f"runs/small/{experiment}/scored.jsonl")
    folder = resolve("runs/models") / MODELS[experiment]
    kept = {content["id"]: Result.of(content) for _, content in read_lines(ROOT / "results/small" / experiment / "finished.jsonl")}
    if not (pairs.exists() and folder.exists()):
        pytest.skip("the pairs or the student are not here; python -m common.batch small --stage generate_data --stage reward_score makes the pairs")
    given = stage_parameters(experiment, "train_rdpo", "small", own_pairs("small", experiment)) | {"swapped": [0.0, 0.3]}
    run = open_experiment(checked_parameters(f"{experiment}/train_rdpo.ipynb", given))
    kept = {name: result for name, result in kept.items() if result.prompts in ("", PROMPTS[experiment].hash)}
    lost = [name for name, result in kept.items() if not run.made_of(result.method, result.seed, result.swapped) == result.made_of == name.split(".")[-1]]
    assert kept and lost == []
