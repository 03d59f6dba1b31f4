"""What the profile `local` needs before its first notebook: prompts for a teacher, and others to evaluate on.

    rdpo prepare-local

writes `runs/local/data/`. Prompts of safety and role-play are those of the profile `small`, whose data are made first
where they are missing, as by `rdpo prepare-small`; those of sycophancy are
`sycophancy/arguments.jsonl`. The teacher gets only what is trained on. All other prompts are in
`<experiment>_held_out.jsonl`, with the right and wrong answers by which utility is measured.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from pathlib import Path

from common.command import CommandParser
from common.data.sources import load_prompts
from common.profiles.small import prepare as small
from common.prompts import PROMPTS
from common.runtime import escape_what_the_terminal_lacks, resolve
from common.schema import Pair, PromptRecord
from common.storage import read_records, write_jsonl

FOLDER = "runs/local/data"
TRAINED_ON = 160
"""Prompts for the teacher in each experiment, where there are as many."""
HARMLESS = {"safety": 40}
"""Harmless questions among them: a student that sees refusals alone learns to refuse."""


def prompts_of(experiment: str) -> tuple[list[PromptRecord], list[PromptRecord]]:
    """(prompts for the teacher, prompts to evaluate on) of an experiment."""
    if experiment == "sycophancy":
        records: Sequence[PromptRecord] = load_prompts(experiment, "sycophancy/arguments.jsonl")
    else:
        records = list(read_records(resolve(small.FOLDER) / f"{experiment.partition('-')[0]}.jsonl", Pair))
    train = [
        PromptRecord(**{name: getattr(r, name) for name in PromptRecord.model_fields})
        for r in records
        if r.split == "train"
    ]
    rng, harmless = random.Random(f"local {experiment}"), HARMLESS.get(experiment, 0)
    questions, others = ([r for r in train if r.is_benign is wanted] for wanted in (True, False))
    chosen = rng.sample(questions, harmless) + rng.sample(others, min(len(others), TRAINED_ON - harmless))
    return rng.sample(chosen, len(chosen)), [record for record in records if record.split != "train"]


def is_prepared() -> bool:
    """Whether the prompts of all experiments are there."""
    return all((resolve(FOLDER) / f"{experiment}_held_out.jsonl").exists() for experiment in PROMPTS)


def prepare(folder: str | Path = "", experiments: Collection[str] = ()) -> None:
    """Writes the prompts of all experiments; what is there stays."""
    small.prepare(folder, experiments=())
    if folder or not is_prepared():
        for experiment in PROMPTS:
            for name, records in zip((experiment, f"{experiment}_held_out"), prompts_of(experiment)):
                write_jsonl(path := resolve(FOLDER) / f"{name}.jsonl", [record.model_dump() for record in records])
                print(f"{path}: {len(records)} prompts", flush=True)


def parser() -> CommandParser:
    """The arguments of `rdpo prepare-local`."""
    return small.parser("prepare-local", __doc__)


def main(arguments: list[str] | None = None) -> None:
    asked = parser().parse_args(arguments)
    escape_what_the_terminal_lacks()
    prepare(asked.folder)


if __name__ == "__main__":
    main()
