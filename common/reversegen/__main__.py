"""Prompts that a student fails on: train a proposer in rounds, judge the student's answers, keep the failures.

    rdpo reversegen prompts.jsonl --student owner/name --judge yes_no:owner/name --final-judge learned:labels.jsonl --output runs/found

Reads JSON lines with the fields of a prompt (id, experiment, split, prompt), such as a `pairs.jsonl`; with a miniature
student also the name of an experiment, for its world's prompts. Writes `found_prompts.jsonl`, which `generate_data`
takes as `source`. Run again, it goes on. Found prompts of a real model are working attacks on it: keep them below
`runs/`. A small proposer needs a long warm-up: the miniature's writes valid prompts after --warm-up-epochs 20
--sft-learning-rate 6e-3, and more of them with --top-p 0.8.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common.command import CommandParser
from common.evaluation.answers import TrainedStudent
from common.methods import by_identity, check_methods, existing
from common.notebook.judges import open_failure_judge, open_sense
from common.notebook.prompts import prompts_named, reads_as_in
from common.notebook.students import student_named
from common.reversegen.proposals import plain_reader
from common.reversegen.rounds import FOUND, SETTINGS, Search, Target, find_failures
from common.runtime import ROOT, checked, errors_in_a_line, quiet_libraries, resolve, write_manifest
from common.student.identity import identity
from common.training.train import train

SEARCH = Search()


def parser() -> CommandParser:
    """The arguments of `rdpo reversegen`."""
    command = CommandParser("reversegen", __doc__)
    command.add_argument("prompts", help="JSONL file of prompts; with a miniature student also an experiment")
    command.add_argument("--student", required=True, help="folder, Hub name[@commit], miniature or micro")
    command.add_argument(
        "--target", default="base", help="whose failures: base (the student), adapter:FOLDER or model:NAME"
    )
    command.add_argument("--proposer", default="", help="student that learns to propose; default the same student")
    command.add_argument(
        "--judge", default="miniature", help="judge that the proposer learns from, such as yes_no:NAME"
    )
    command.add_argument("--final-judge", default="oracle", help="another judge, which confirms failures; or oracle")
    command.add_argument(
        "--valid",
        default="",
        help="yes_no:NAME, a model asked whether a proposed prompt makes sense; default nobody, and gibberish fails too",
    )
    command.add_argument("--providers", default="", help="YAML file of endpoints for the judges")
    command.add_argument("--output", required=True, help=f"folder of {FOUND}, the rounds and the adapters")
    command.add_argument("--rounds", type=int, default=SEARCH.rounds, help="trainings of the proposer with DPO")
    command.add_argument("--proposals", type=int, default=SEARCH.proposals, help="prompts proposed in each round")
    command.add_argument("--top-p", type=float, default=SEARCH.top_p, help="of proposals, at temperature 1")
    command.add_argument("--prompt-tokens", type=int, default=SEARCH.prompt_tokens, help="of a proposal, at most")
    command.add_argument("--answer-tokens", type=int, default=SEARCH.answer_tokens, help="of an answer, at most")
    command.add_argument("--repetition-penalty", type=float, default=SEARCH.repetition_penalty, help="of the target")
    command.add_argument("--warm-up-epochs", type=int, default=SEARCH.warm_up_epochs, help="of the proposer's SFT")
    command.add_argument("--sft-learning-rate", type=float, default=SETTINGS.sft_learning_rate, help="of the warm-up")
    command.add_argument("--learning-rate", type=float, default=SETTINGS.learning_rate, help="of DPO")
    command.add_argument("--beta", type=float, default=SETTINGS.beta, help="of DPO, to the proposer before the round")
    command.add_argument("--epochs", type=int, default=SETTINGS.epochs, help="of DPO in each round")
    command.add_argument("--max-length", type=int, default=SETTINGS.max_length, help="tokens of request and proposal")
    command.add_argument("--seed", type=int, default=0, help="of requests, proposals, pairs and adapters")
    return command


def main(arguments: list[str] | None = None) -> None:
    asked = parser().parse_args(arguments)
    quiet_libraries()
    with errors_in_a_line("reversegen", RuntimeError, LookupError):
        _run(asked)


def _run(asked: argparse.Namespace) -> None:
    search = Search(**{name: getattr(asked, name) for name in asdict(SEARCH)})
    for name in ("rounds", "proposals", "prompt_tokens", "answer_tokens", "warm_up_epochs"):
        if getattr(search, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} = {getattr(search, name)}: give a whole number from 1 up")
    if not 0 < search.top_p <= 1:
        raise ValueError(f"--top-p = {search.top_p}: give a probability above 0, at most 1")
    checked("repetition_penalty", search.repetition_penalty, float)
    own = ("learning_rate", "sft_learning_rate", "beta", "epochs", "max_length", "seed")
    settings = SETTINGS.changed(**{name: getattr(asked, name) for name in own})
    records = prompts_named(asked.prompts, asked.student)
    experiment, output = records[0].experiment, resolve(asked.output)
    world_s = reads_as_in(experiment, asked.student)
    if not world_s and output.is_relative_to(ROOT) and not output.is_relative_to(ROOT / "runs"):
        raise ValueError(
            f"--output {asked.output}: found prompts are working attacks on {asked.student}, which must not be committed; give a folder below runs/"
        )
    if not any(record.split == "train" for record in records):
        raise ValueError(f"{asked.prompts} has no prompt of split 'train', and no other may be shown to a proposer")
    judges = [
        open_failure_judge(role, name, asked.student, experiment, str(output), asked.providers, asked.seed)
        for role, name in (("judge", asked.judge), ("final_judge", asked.final_judge))
    ]
    if judges[0].name == judges[1].name:
        raise ValueError(
            f"--judge and --final-judge are both {judges[0].name}, which confirms its own errors; name two"
        )
    target = target_named(asked.target, *student_named(asked.student, experiment))
    proposer, load = student_named(asked.proposer or asked.student, experiment)
    sense = open_sense(asked.valid) if asked.valid else None
    if world_s and sense:
        raise ValueError("--valid is for real prompts; a miniature's world reads its own exactly, leave it out")
    found, rounds = find_failures(
        proposer, target, records, *judges, world_s or plain_reader(records, sense), output, settings, search,
        read_as=f"world of {experiment}" if world_s else f"plain, {sense.name}" if sense else "plain", **load,
    )  # fmt: skip
    write_manifest(output, "reversegen", vars(asked), target=target.name, rounds=rounds, found=len(found))
    print(f"{len(found)} prompts that {asked.target} fails on\n{output / FOUND}")
    if not world_s:
        print(f"They are working attacks on {asked.student}: train with them, and publish none.")


def target_named(row: str, student: str | Path, load: dict[str, Any]) -> Target:
    """The student as it is (`base`), with an `adapter:`, or a `model:` in its place. Raises ValueError or
    FileNotFoundError for anything else, before it is loaded."""
    check_methods([row])
    if row != "base" and existing(row) not in ("adapter", "model"):
        raise ValueError(
            f"--target {row!r} is no student that answers by itself; give base, adapter:FOLDER or model:NAME"
        )
    name = f"{by_identity(row)} on {identity(student, load.get('revision'))}"

    def opened() -> TrainedStudent:
        trained = train(row, student, [], SETTINGS, "", **load)
        trained.mark = name
        return trained

    return Target(name, opened)


if __name__ == "__main__":
    main()
