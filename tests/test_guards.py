"""Marks are contracts: committed results, adapters and pairs are found by them, so they survive every move of the code (pytest tests/test_guards.py).

A mark that changes here loses somebody's results: keep the old one, or migrate what was committed.
"""

import importlib
import json
from types import SimpleNamespace

import pytest

from common.data.counterfactual import INSTRUCTIONS
from common.evaluation.feedback import FeedbackEvaluator
from common.evaluation.judged import HeldOut, JudgedEvaluator
from common.judge.base import FeedbackJudge
from common.judge.llm import LLMJudge
from common.methods import METHODS, TrainSettings, is_trained
from common.miniature.actors import MiniatureJudge
from common.miniature.evaluator import WorldEvaluator
from common.miniature.language_model import says
from common.miniature.worlds import roleplay, safety, sycophancy
from common.prompts import PROMPTS, VERSIONS
from common.runtime import ROOT
from common.schema import ScoredPair, fingerprint
from common.storage import claim
from common.student.identity import identity
from common.study.cells import folder_of
from common.study.design import OF_READINGS, OF_RELATED, parts, trial_rows
from common.training.comparison import Experiment
from common.training.kept import training_of

MARKS = json.loads((ROOT / "tests" / "marks.json").read_text(encoding="utf-8"))
SETTINGS = TrainSettings(
    learning_rate=1e-4, sft_learning_rate=2e-4, epochs=2, batch_size=16, micro_batch=0, beta=0.1, knobs={"alpha": 1.0, "eta": 1.0, "label_smoothing": 0.1}, nll_weight=1.0,
    lora_rank=16, max_length=1024, seed=0, reference="adapters off",
)  # fmt: skip
PAIRS = [
    ScoredPair(id=f"safety-{i}", experiment="safety", split="train", prompt=f"Question {i}?", response=f"Answer {i}.", response_revised=f"Better answer {i}.",
               teacher="a teacher", judge="a judge", scale=(0, 1), score_response=0.0, score_revised=float(i != 2))
    for i in range(4)
]  # fmt: skip


@pytest.fixture
def student(tmp_path):
    """A folder with the files of a model, whose bytes are fixed; nothing loads it."""
    folder = tmp_path / "student"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "tokenizer.json").write_text("{}")
    return folder


def test_the_mark_of_a_model_folder(student):
    assert identity(student) == MARKS["model"]


def test_the_marks_of_trainings(student):
    marks = {method: training_of(method, student, PAIRS, SETTINGS) for method in METHODS if is_trained(method)}
    assert len(set(marks.values())) == len(marks)
    assert {method: marks[method] for method in MARKS["trainings"]} == MARKS["trainings"]


def rows_of(student, folder, evaluator, pairs=PAIRS):
    run = Experiment(student, pairs, evaluator, folder, SETTINGS, evaluate_on="test", tuned={"dpo": {"beta": 0.5}}, revision=None, pad_token=None)
    return {f"{method} {seed} {swapped}": run.made_of(method, seed, swapped) for method, seed, swapped in (("base", 0, 0.0), ("sr", 0, 0.0), ("dpo", 1, 0.0), ("rdpo", 0, 0.5))}


def held_out(kind):
    return [HeldOut(id=split, experiment="safety", split=split, kind=kind, prompt=f"I like it. {split}?", plain_prompt=f"{split}?") for split in ("test", "ood")]


def test_the_marks_of_rows(student, tmp_path):
    stub, prompts, quality = SimpleNamespace(name="stub", scale=(0, 1)), PROMPTS["safety"], PROMPTS["sycophancy"].quality
    asked = LLMJudge(SimpleNamespace(name="a judge"), prompts)
    both = FeedbackJudge(LLMJudge(SimpleNamespace(name="a judge"), PROMPTS["sycophancy"]), LLMJudge(SimpleNamespace(name="a judge"), quality))
    world = LLMJudge(MiniatureJudge(safety, safety.PROMPTS, 0.1, seed=1000), safety.PROMPTS)
    found = {
        "judged": rows_of(student, tmp_path, JudgedEvaluator(held_out("plain"), "safety", asked, None, instructions=INSTRUCTIONS["safety"], style_judge=stub, reward_judge=asked)),
        "feedback": rows_of(student, tmp_path, FeedbackEvaluator(held_out("love"), "sycophancy", both, None)),
        "world": rows_of(student, tmp_path, WorldEvaluator(safety, "safety", world, 6, reward_judge=world)),
    }
    assert found == MARKS["rows"]


def test_the_places_of_the_study_s_rows(tmp_path):
    places = {experiment: [str(folder_of(row, tmp_path).relative_to(tmp_path)) for part, rows in parts(experiment).items() if part not in (*OF_READINGS, *OF_RELATED) for row in rows] for experiment in PROMPTS}
    assert {experiment: [len(of), fingerprint(of)] for experiment, of in places.items()} == MARKS["places"]
    assert fingerprint([[str(row), row.setting] for row in trial_rows("safety", ("dpo", "rdpo", "sft"))]) == MARKS["trials"]


def test_the_name_of_a_claimed_file(tmp_path):
    path = claim(tmp_path / "pairs.jsonl", {"teacher": "a teacher", "temperature": 0.7, "prompts": PROMPTS["safety"].hash})
    assert path.readlink().name == MARKS["claim"]


def test_the_texts_of_every_version():
    assert {name: prompts.hash for name, prompts in VERSIONS.items()} == MARKS["texts"]


@pytest.mark.parametrize("world", [safety, roleplay, sycophancy])
def test_what_a_world_says(world):
    """Students are pre-trained on it, so a change makes new ones and moves every number of the miniature."""
    records, sets = world.prompts_for("train", 20, 0.25, 0), world.evaluation_sets("test", 4)
    drawn = fingerprint([r.model_dump() for r in records], {name: [r.model_dump() for r in of] for name, of in sets.items()}, [world.always_refuse(r.prompt) for r in records])
    assert [says(world), drawn] == MARKS["worlds"][world.__name__.rsplit(".", 1)[-1]]


def test_the_streams_of_random_draws(student, tmp_path):
    """Who draws subsets and swaps from other streams trains other students under the same marks."""
    pairs = [pair.model_copy(update={"id": f"safety-{i}"}) for i, pair in enumerate(PAIRS * 5)]
    run = Experiment(student, pairs, JudgedEvaluator(held_out("plain"), "safety", None, None), tmp_path, SETTINGS, train_pairs=6)
    drawn = {seed: [(pair.id, pair.response.startswith("Better")) for pair in run.pairs_of(seed, 0.5)] for seed in (0, 1)}
    assert fingerprint(drawn) == MARKS["streams"]


PROMISED = {
    "common": ["RDPOTrainer", "RDPOConfig", "load_student", "load_adapter", "export_merged"],
    "common.loss": ["preference_loss", "LOSSES"],
    "common.judge": ["parse_score"],
    "common.schema": ["ScoreScale"],
    "common.logprobs": ["pair_logprobs"],
    "common.student": ["load_student", "lora_settings"],
    "common.trainer": ["RDPOConfig", "RDPOTrainer"],
    "common.storage": ["JsonlStore"],
    "common.statistics": ["wilson_interval", "paired_bootstrap", "mcnemar_exact", "seed_interval"],
    "common.batch": ["main"],
}


@pytest.mark.parametrize("module", PROMISED)
def test_promised_names_are_where_they_were_promised(module):
    assert all(hasattr(importlib.import_module(module), name) for name in PROMISED[module])


EXPERIMENTS = ("safety", "roleplay-robustness", "sycophancy")
OWN = {"generate_data": 5, "reward_score": 0, "train_rdpo": 0}


def cells(experiment, stage):
    return json.loads((ROOT / experiment / f"{stage}.ipynb").read_text(encoding="utf-8"))["cells"]


@pytest.mark.parametrize("stage", OWN)
@pytest.mark.parametrize("experiment", EXPERIMENTS[1:])
def test_notebooks_of_a_step_are_alike(experiment, stage):
    """But for the title, the values of the parameters, and what generate_data says of its experiment's prompts."""
    ours, first = cells(experiment, stage), cells(EXPERIMENTS[0], stage)
    differ = {i for i, (one, other) in enumerate(zip(ours, first, strict=True)) if one["source"] != other["source"]}
    assert differ <= {0, 1, OWN[stage]} and [cell["cell_type"] for cell in ours] == [cell["cell_type"] for cell in first]
    values = [{line.partition(":")[0]: line.partition("#")[0] for line in "".join(of[1]["source"]).splitlines()} for of in (ours, first)]
    unlike = {name for name in values[0].keys() | values[1].keys() if values[0].get(name) != values[1].get(name)}
    own = {"experiment", "output", "labels", "scale"} | ({"unscored_limit"} if experiment == "sycophancy" else set())  # three verdicts make its score
    assert unlike <= own
