"""How a row of the study becomes a result: an admitted base student, pairs made and scored in the cell's way, a
training, an evaluation.

Threads decide what pre-training and training
come to in the last digits, and small students carry that on: the study gives every process one (`common.study`).
"""

from __future__ import annotations

import json
import random
import tempfile
from functools import lru_cache, partial
from pathlib import Path

from transformers import AutoTokenizer

from common.chat.local import LocalChat
from common.data.counterfactual import INSTRUCTIONS, generate_counterfactual_pairs
from common.data.preference import accepted
from common.data.self_critique import generate_pairs
from common.engines import Place
from common.evaluation.answers import TrainedStudent
from common.evaluation.metrics import Evaluation
from common.evaluation.result import Result, row_of
from common.judge.base import FeedbackJudge, Judge
from common.judge.scoring import score_pairs
from common.methods import METHODS, TrainSettings, is_trained, sees_scores
from common.miniature import lab
from common.miniature.evaluator import WorldEvaluator
from common.miniature.language_model import Recipe, pretrained_student
from common.miniature.world import world_of
from common.runtime import ROOT
from common.schema import Sampling, ScoredPair, ScoreScale, fingerprint
from common.storage import write_json
from common.student.load import load_student
from common.study.design import Cell, Row
from common.training.comparison import Experiment

SETTINGS = TrainSettings(batch_size=8, max_length=512, second_reference="unquantised")
PROMPTS, MAX_NEW_TOKENS, UNCLEAR = 150, 52, 0.01
"""Prompts of an evaluation set, tokens of an answer, and the share of the judge's replies without a verdict: as in the
profile `miniature`."""
LEAST_UTILITY, MOST_BEHAVIOUR = 0.9, 0.6
"""A base student is admitted with at least that utility and at most that much of the behaviour wanted, on the
validation split: after a minute of pre-training some know too little, and some need no cure."""
CANDIDATES = 5


def run_row(row: Row, folder: Path) -> Result:
    """The result of a row, kept below `folder` and taken from there where it was made of the same before."""
    student, evaluator = admitted_student(row.cell.experiment, row.seed, folder), evaluator_of(row.cell, row.seed)
    second = {"second_reference": f"adapter:{own_folder(row.second, folder) / 'adapter'}"} if row.second else {}
    run = Experiment(
        student, scored_pairs(row.cell, row.seed, student), evaluator, folder_of(row, folder), SETTINGS, row.split, tuned={METHODS[row.method].extrapolates or row.method: {**row.setting, **second}},
        match_utility=row.split == "test", evaluations=_evaluations(row.cell.experiment, row.seed, evaluator.reward_judge.name), **lab.LOADED,
    )  # fmt: skip
    return run.result(row.method, row.seed)


def cost_of(row: Row, folder: Path) -> dict[str, int]:
    """What a row takes before it is measured: the teacher's replies, the reward judge's verdicts, and the tokens of
    prompts and answers that training reads over all epochs (a prompt once a pair; the reference pass not counted; an
    answer that the student itself makes as it trains is reckoned as long as the good one). Zeros for an untrained row."""
    if not is_trained(row.method):
        return {"teacher_replies": 0, "judge_verdicts": 0, "tokens_trained_on": 0}
    student = admitted_student(row.cell.experiment, row.seed, folder)
    pairs, tokenizer = scored_pairs(row.cell, row.seed, student), AutoTokenizer.from_pretrained(student)
    method = METHODS[row.method]
    accepted_only = method.sft_on == "accepted" or method.accepted_only
    used = accepted(pairs) if accepted_only else [pair for pair in pairs if pair.is_scored]
    both = bool(method.loss) or method.sft_on in ("weighted", "conditioned")
    second = lambda pair: pair.response_revised if method.remakes else pair.response  # noqa: E731
    texts = [text for pair in used for text in (pair.prompt, pair.response_revised, *([second(pair)] if both else []))]
    tokens = sum(len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"])
    replies, verdicts = (
        (4, 5) if world_of(row.cell.experiment).PROMPTS.quality else (3, 2)
    )  # a pair: with an answer to no stance, and two criteria
    return {
        "teacher_replies": replies * len(pairs),
        "judge_verdicts": verdicts * len(pairs) * sees_scores(row.method),
        "tokens_trained_on": tokens * row.setting["epochs"],
    }


def rounds_of(row: Row, folder: Path) -> dict[str, int]:
    """What a row that trains in rounds asked for: the student's answers and the judge's verdicts, over all rounds."""
    place = own_folder(row, folder)
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(place.glob("round-*/round.json"))]
    asked = {"student_answers": "answers", "judge_verdicts": "verdicts"}
    return {name: sum(one[key] for one in found) for name, key in asked.items()} if found else {}


def folder_of(row: Row, folder: Path) -> Path:
    """Where the results of rows in this cell with this setting lie."""
    return folder / row.cell.experiment / fingerprint(row.cell.unlike_centre, row.setting, row.split)


def own_folder(row: Row, folder: Path) -> Path:
    """Where the result of a row lies, and of no other row."""
    return folder_of(row, folder) / f"seed-{row.seed}" / row_of(row.method, row.cell.variant)


def row_place(row: Row, folder: Path) -> Place:
    own = own_folder(row, folder)
    return Place(own.relative_to(ROOT).as_posix(), partial(list, (own,)))


def student_place(experiment: str, seed: int, folder: Path) -> Place:
    """Base students of a seed, and what was measured of them."""
    note = folder / experiment / f"student-{seed}.json"
    return Place(note.with_suffix("").relative_to(ROOT).as_posix(), partial(_student_files, note, folder))


def _student_files(note: Path, folder: Path) -> list[Path]:
    tried = json.loads(note.read_text(encoding="utf-8")) if note.exists() else []
    return [note, *(folder / "students" / one["student"] for one in tried)]


def admitted_student(experiment: str, seed: int, folder: Path) -> Path:
    """The base student of a seed: the first admitted one of `CANDIDATES` pre-training seeds, which it shares with no
    other seed. What was measured of them is kept in `<folder>/<experiment>/student-<seed>.json`. Raises RuntimeError
    where none is admitted."""
    path, world = folder / experiment / f"student-{seed}.json", world_of(experiment)
    tried = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    for number in range(CANDIDATES):
        student = pretrained_student(world, Recipe(seed=seed + 1000 * number), cache=folder / "students")
        if len(tried) <= number or tried[number]["student"] != student.name:
            evaluation = evaluator_of(Cell(experiment), seed)(
                TrainedStudent("base", *load_student(student, **lab.LOADED)), "validation", seed
            )
            measured = {"utility": evaluation.value("utility"), "behaviour": evaluation.value(world.OBJECTIVE)}
            tried = [
                *tried[:number],
                {
                    "student": student.name,
                    **measured,
                    "admitted": measured["utility"] >= LEAST_UTILITY and measured["behaviour"] <= MOST_BEHAVIOUR,
                },
            ]
            write_json(path, tried)
        if tried[number]["admitted"]:
            return student
    raise RuntimeError(f"{experiment}, seed {seed}: none of {CANDIDATES} base students is admitted, see {path}")


@lru_cache(maxsize=4)
def scored_pairs(cell: Cell, seed: int, student: Path) -> list[ScoredPair]:
    """The pairs of a cell, with prompts, teacher and judge of this seed. `student` is the teacher where the cell wants
    that."""
    world = world_of(cell.experiment)
    records, texts = world.prompts_for("train", cell.pairs, cell.benign_share, seed), world.PROMPTS
    if cell.teacher == "program":
        noise = {"no_better": cell.noise / 2, "worse": cell.noise / 2, "noise_on": cell.noise_on}
        how = {"instructed": bool(cell.variant), "edits": cell.edits}
        teacher, sampling = lab.teacher(cell.experiment, **noise, seed=seed, **how), Sampling()
    else:
        teacher = LocalChat(*load_student(student, **lab.LOADED), "the student itself", batch_size=128)
        sampling = Sampling(max_new_tokens=2 * MAX_NEW_TOKENS)
    with tempfile.TemporaryDirectory(prefix="rdpo-") as scratch:
        path, limit = Path(scratch, "pairs.jsonl"), 0.0 if cell.teacher == "program" else 1.0
        if cell.variant:
            pairs = generate_counterfactual_pairs(
                teacher,
                records,
                INSTRUCTIONS[cell.experiment],
                cell.variant,
                sampling,
                path,
                failed_limit=limit,
                base=texts.quality is not None,
            )
        else:
            pairs = generate_pairs(teacher, records, texts, sampling, path, failed_limit=limit)
        scored = list(score_pairs(judge_of(cell, seed), list(pairs), Path(scratch, "scored.jsonl"), unscored_limit=0.1))
    rng = random.Random(seed)
    usable = [pair for pair in scored if pair.is_scored]
    if cell.control == "subset":
        return rng.sample(usable, len(accepted(scored)))
    if cell.control == "shuffled":
        others = rng.sample(usable, len(usable))
        return [
            pair.model_copy(update={name: getattr(other, name) for name in ("score_response", "score_revised")})
            for pair, other in zip(usable, others)
        ]
    return scored


def judge_of(cell: Cell, seed: int) -> Judge | FeedbackJudge:
    """The judge that scores the cell's pairs."""
    texts = world_of(cell.experiment).PROMPTS
    prompts = texts.model_copy(update={"scale": ScoreScale.BINARY}) if cell.binary else texts
    return lab.judge(
        cell.experiment, error=cell.judge_error, blind_to=cell.blind_to, unclear=UNCLEAR, seed=seed, prompts=prompts
    )


@lru_cache(maxsize=4)
def evaluator_of(cell: Cell, seed: int) -> WorldEvaluator:
    """With the judge that scored the cell's pairs as reward judge, and another one with other errors as final judge."""
    return lab.evaluator(
        cell.experiment, prompts=PROMPTS, max_new_tokens=MAX_NEW_TOKENS, reward_judge=judge_of(cell, seed)
    )


@lru_cache(maxsize=2)
def _evaluations(experiment: str, seed: int, reward_judge: str) -> dict[tuple[str, str], Evaluation]:
    """What experiments on the same student with the same judges share: evaluations of untrained rows."""
    return {}
