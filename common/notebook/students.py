"""From a notebook's parameters to the objects it works with, so that the notebooks do not know which ones they use."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.data.counterfactual import INSTRUCTIONS, StyleInstructions
from common.data.formats.pairs import learnable, scored_pairs
from common.data.formats.read import is_on_hub, read_preferences
from common.data.sources import WholePrompt, check_experiment
from common.data.splits import SHARES, RecordType, words
from common.doctor.noise import noted_errors, tau_of_judge
from common.evaluation.feedback import FeedbackEvaluator
from common.evaluation.judged import HeldOut, JudgedEvaluator
from common.evaluation.metrics import Evaluator
from common.evaluation.reader import Reader
from common.judge.base import FeedbackJudge, Judge
from common.methods import TrainSettings, existing, is_trained
from common.notebook.chats import kept_chat
from common.notebook.judges import check_judge, named_judge, open_final_judge, open_judge, style_judge_of
from common.notebook.parameters import MINIATURES, FromPairs, RewardScore, TrainRDPO, input_of
from common.prompts import PROMPTS
from common.runtime import resolve
from common.schema import Pair, PromptRecord, ScoredPair, source_id
from common.specs import place_and_commit, spec_of
from common.storage import read_lines, read_records
from common.student.identity import located
from common.training.comparison import Experiment, check_split
from common.training.kept import read_tuned

PAIR_SHARES = {**{split: SHARES[split] for split in ("train", "validation")}, "test": SHARES["test"] + SHARES["ood"]}
"""Of data in a format of others: no prompt of theirs is `ood`, so that this share joins `test`."""


def open_experiment(p: TrainRDPO) -> Experiment:
    """Student, pairs, evaluator and settings of `train_rdpo`. Rows that train nothing need no scored pairs: a real
    student's prompts then come from any file with the fields of `PromptRecord`, and a miniature student's from its
    world.

    Raises ValueError or FileNotFoundError for anything missing or contradictory, before any work starts.
    """
    check_split(p.evaluate_on)
    trains = any(map(is_trained, p.methods))
    found = given_pairs("train_rdpo", p, ScoredPair, tell=True) if trains else []
    train = [pair for pair in found if pair.split == "train"]
    if trains and not train:
        raise ValueError(f"{input_of('train_rdpo', p)} has no pair of split 'train'")
    settings = settings_of(p, train)
    student, commit = place_and_commit(p.student)
    how = {"pad_token": p.pad_token or None, "revision": commit or None}
    rows = {
        "evaluate_on": p.evaluate_on, "train_pairs": trains * p.train_pairs, "tuned": read_tuned(resolve(p.tuned)) if p.tuned else {},
        "chats": {row: kept_chat("student", spec_of("student", row, named=["endpoint"]), p) for row in p.methods if existing(row) == "endpoint"},
        "finished": resolve(p.finished) / p.experiment / "finished.jsonl" if p.finished else None,
    }  # fmt: skip
    instructions = INSTRUCTIONS[p.experiment] if train and train[0].variant not in ("", "neutral") else None
    if p.in_world:
        from common.miniature import lab

        evaluator = lab.evaluator(
            p.experiment, prompts=p.evaluation_prompts, max_new_tokens=p.max_new_tokens, instructions=instructions,
            reward_judge=_judge_of_pairs(p), wordings=read_wordings(p),
        )  # fmt: skip
        check_wordings(p, evaluator)
        student, load = lab.student(p.experiment, p.student)
        return Experiment(student, train, evaluator, resolve(p.output), settings, **rows, **load, **how)
    if "always_refuse" in p.methods:
        raise ValueError(
            "always_refuse: no such row for a real student; only the miniature's worlds know a well-formed refusal"
        )
    evaluator = _judged_evaluator(
        p,
        held_out_of(p, train, tell=not trains),
        Reader(student, **how),
        instructions,
    )
    check_wordings(p, evaluator)
    return Experiment(student, train, evaluator, resolve(p.output), settings, **rows, **how)


def held_out_of(p: TrainRDPO, trained_on: Sequence[ScoredPair], tell: bool = False) -> list[HeldOut]:
    """What is evaluated on: the prompts of `held_out`, or of the pairs file, that are not of split `train`.

    tell: prints what is left out. Raises FileNotFoundError or ValueError for no such file, one of another experiment,
    and a prompt that is trained on too."""
    if not p.held_out:
        records = [record for record in given_pairs("train_rdpo", p, HeldOut, tell) if record.split != "train"]
    else:
        path = resolve(p.held_out)
        if not path.is_file():
            raise FileNotFoundError(
                f"held_out: no file {path}; give a JSONL file with id, experiment, split and prompt"
            )
        records = [record for record in read_records(path, HeldOut) if record.split != "train"]
        check_experiment(records, p.experiment, path)
        seen = {words(pair.prompt) for pair in trained_on}
        if both := [record for record in records if words(record.prompt) in seen]:
            raise ValueError(
                f"held_out: {len(both)} of {len(records)} prompts in {path} are trained on too, such as {both[0].id}; leave them out of one of the files"
            )
    return list(of_one_turn(records, "the evaluation"))


def pairs_to_score(p: RewardScore, tell: bool = False) -> Sequence[Pair]:
    """The pairs of `reward_score`, of one turn each.

    tell: prints what is left out. Raises what `given_pairs` does, and ValueError for others' data without a judge that
    can read it, or with pairs of several turns alone."""
    pairs = of_one_turn(given_pairs("reward_score", p, Pair, tell), "the scoring", tell)
    if p.in_world and not _is_ours(input_of("reward_score", p)):
        raise ValueError(f"judge = 'miniature' knows its own world alone; name another judge for {p.pairs_file}")
    if not pairs:
        raise ValueError(
            f"{p.pairs_file}: every pair has several turns, of which judges see the last alone; give others"
        )
    return pairs


def of_one_turn(records: Sequence[RecordType], what: str, tell: bool = True) -> Sequence[RecordType]:
    """The records without a history, which no judge sees; the others are counted where `tell` is."""
    if not (turns := sum(bool(record.history) for record in records)):
        return records
    if tell:
        print(f"left out of {what}: {turns} prompts of several turns, of which judges see the last alone", flush=True)
    return [record for record in records if not record.history]


class AnyPair(Pair, extra="ignore"):
    """A pair to be scored, from a line that may have scores already."""


def given_pairs(stage: str, p: FromPairs, record_type: type[RecordType], tell: bool = False) -> Sequence[RecordType]:
    """What a stage begins with: our own JSON lines, or a `pairs_file` in a format of others, split by `PAIR_SHARES`.

    tell: prints the format of the others' data and what gave no pair. Raises FileNotFoundError where there is nothing.
    """
    path = input_of(stage, p)
    if not path.exists() and not is_on_hub(p.pairs_file):
        missing = {
            "reward_score": "no pairs at {}; run generate_data",
            "train_rdpo": "no scored pairs at {}; run reward_score",
        }
        raise FileNotFoundError(f"{missing[stage].format(path)} first, or give pairs_file")
    if _is_ours(path):
        return read_records(path, AnyPair if record_type is Pair else record_type)
    source = path if path.exists() else p.pairs_file
    found = learnable(read_preferences(source, tuple(p.score_range), p.weights))
    if tell:
        print(found.account(), flush=True)
    pairs, fields = scored_pairs(found, p.experiment, PAIR_SHARES), set(record_type.model_fields)
    return [record_type(**pair.model_dump(include=fields)) for pair in pairs]


def _is_ours(path: Path) -> bool:
    """Whether the first line has what `PromptRecord` needs, or there is none."""
    if path.suffix != ".jsonl" or not path.is_file():
        return False
    fields = next((fields for _, fields in read_lines(path)), None)
    return fields is None or {"id", "split", "prompt"} <= fields.keys()


def student_named(name: str, experiment: str) -> tuple[str | Path, dict[str, Any]]:
    """(folder or Hub name of a student, how `load_student` is to load it); a miniature is made where it is missing."""
    if name in MINIATURES:
        from common.miniature import lab

        return lab.student(experiment, name)
    place, commit = place_and_commit(name)
    return located(place), {"revision": commit or None}


def _judge_of_pairs(p: TrainRDPO) -> Judge | FeedbackJudge | None:
    """The miniature's judge with the errors that step 2 gave it, None where nobody asks for it. Raises FileNotFoundError
    where step 2 noted none, ValueError for another judge."""
    if not p.reward_judge:
        return None
    path = input_of("train_rdpo", p).with_name("reward_score.manifest.json")
    if p.reward_judge != "miniature":
        raise ValueError(
            f"reward_judge = {p.reward_judge!r}: the pairs of a world are scored by its own judge; write reward_judge = miniature"
        )
    if not path.exists():
        raise FileNotFoundError(f"reward_judge: no {path}, where step 2 notes how it judged; run reward_score first")
    noted = json.loads(path.read_text(encoding="utf-8"))["parameters"]
    return open_judge(RewardScore.of(noted))


def settings_of(p: TrainRDPO, pairs: Sequence[ScoredPair]) -> TrainSettings:
    """The settings that all methods share. A tau of "judge" is `statistics.judged_tau` of these pairs with what step 2
    noted of their judge: its errors on the labels it was checked on, or in the miniature on all answers.

    Raises ValueError where step 2 noted no such errors, and where no pair has two different scores."""
    if "judge" not in p.knobs.values():
        return p.training
    path = input_of("train_rdpo", p).with_name("reward_score.manifest.json")
    noted = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if (errors := noted_errors(noted)) is None:
        raise ValueError(
            f"knobs: tau = judge needs a judge that was checked: {path} has no labels of both kinds under one criterion; give step 2 labels, or tau a number"
        )
    gaps = [revised - original for original, revised in (pair.normalised() for pair in pairs if pair.is_scored)]
    if not (untied := [gap > 0 for gap in gaps if gap]):
        raise ValueError(f"knobs: tau = judge: none of {len(pairs)} pairs has two different scores; give tau a number")
    return p.training.changed(tau=tau_of_judge(sum(untied) / len(untied), errors))


def _judged_evaluator(
    p: TrainRDPO, prompts: Sequence[HeldOut], reader: Reader, instructions: StyleInstructions | None
) -> JudgedEvaluator:
    asked = open_final_judge(p)
    judge, found = check_judge(asked, p)
    for criterion, checks in found.items():
        print(
            f"final judge, {criterion}:",
            {name: {key: value for key, value in check.items() if key != "errors"} for name, check in checks.items()},
        )
    kind = FeedbackEvaluator if isinstance(judge, FeedbackJudge) else JudgedEvaluator
    return kind(
        prompts, p.experiment, judge, reader, max_new_tokens=p.max_new_tokens, repetition_penalty=p.repetition_penalty, instructions=instructions,
        style_judge=style_judge_of(asked, p.experiment) if instructions else None,  # a calibrated judge knows one question only
        prompts=p.evaluation_prompts, reward_judge=named_judge("reward_judge", p.reward_judge, p, PROMPTS[p.experiment]) if p.reward_judge else None, match_utility=p.match_utility,
        wordings=read_wordings(p),
    )  # fmt: skip


def read_wordings(p: TrainRDPO) -> list[PromptRecord]:
    """The wordings in the file `paraphrases`, without the prompts that they are of; [] for no file. Raises
    FileNotFoundError or ValueError for one that is not there or not of this experiment."""
    if not p.paraphrases:
        return []
    if not (path := resolve(p.paraphrases)).is_file():
        raise FileNotFoundError(f"paraphrases: no file {path}; python -m common.paraphrase makes it")
    records = check_experiment(list(read_records(path, WholePrompt)), p.experiment, path)
    ids = {record.id for record in records}
    return [PromptRecord(**record.model_dump()) for record in records if source_id(record.id) in ids]


def check_wordings(p: TrainRDPO, evaluator: Evaluator) -> None:
    """Raises ValueError where the file `paraphrases` has no wording of the prompts that will be evaluated on."""
    if not p.paraphrases:
        return
    records = next(iter(evaluator.sets(p.evaluate_on).values()))
    ids = {record.id for record in records}
    if not any(source_id(wording.id) in ids for wording in evaluator.wordings):
        raise ValueError(
            f"paraphrases: {p.paraphrases} has no wording of the {len(records)} prompts of split {p.evaluate_on!r}; make it of these, with python -m common.paraphrase"
        )
