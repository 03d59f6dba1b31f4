"""Evaluate what exists on a file of prompts: the student, adapters on it, other models, models behind endpoints.

    rdpo evaluate prompts.jsonl --student owner/it --methods base adapter:runs/a --final-judge yes_no:owner/other --output runs/eval

Reads JSON lines with the fields of a prompt (id, experiment, split, prompt), such as a `scored.jsonl`, without those of
split `train`; for a miniature student the name of an experiment, for its world's prompts. Options are named as the
parameters of `train_rdpo`, whose metrics and tables these are. Run again, it takes what is there.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from common.command import CommandParser
from common.methods import existing, existing_place, is_trained
from common.notebook.parameters import MINIATURES, TrainRDPO
from common.notebook.prompts import prompts_named
from common.notebook.students import open_experiment
from common.prompts import PROMPTS
from common.report.tables import results_table, write_tables
from common.runtime import errors_in_a_line, quiet_libraries, write_manifest
from common.specs import place_and_commit
from common.student.load import pad_token_beside

DEFAULTS = {name: field.get_default(call_default_factory=True) for name, field in TrainRDPO.model_fields.items()}
OPTIONS = {
    "final_judge": "who judges a real student's answers, such as yes_no:NAME or endpoint:MODEL",
    "providers": "YAML file of endpoints",
    "pad_token": "an existing token to pad with; default: the student's own, or that beside an adapter",
    "paraphrases": "other wordings of the prompts, of `rdpo paraphrase`",
    "evaluation_prompts": "at most, a set; 0 takes all",
    "max_new_tokens": "of an answer",
    "repetition_penalty": "of all rows",
}


def parser() -> CommandParser:
    """The arguments of `rdpo evaluate`."""
    command = CommandParser("evaluate", __doc__)
    command.add_argument("prompts", help="JSONL file of prompts; for a miniature student an experiment")
    command.add_argument("--student", required=True, help="folder, Hub name[@commit], miniature or micro")
    command.add_argument(
        "--methods", nargs="+", default=["base"], metavar="ROW",
        help="base, prompted, sr, adapter:FOLDER[@STRENGTH], model:NAME[@COMMIT], endpoint:MODEL; default base",
    )  # fmt: skip
    command.add_argument("--output", required=True, help="folder of answers, metrics and table")
    command.add_argument("--evaluate-on", default="test", help="split of the prompts: test, the default, or validation")
    for name, meaning in OPTIONS.items():
        value = DEFAULTS[name]
        told = f"{meaning}; default {value}" if value != "" else meaning
        command.add_argument("--" + name.replace("_", "-"), type=type(value), default=value, help=told)
    return command


def main(arguments: list[str] | None = None) -> None:
    asked = parser().parse_args(arguments)
    quiet_libraries()
    with errors_in_a_line("evaluate", RuntimeError):
        _run(asked)


def _run(asked: argparse.Namespace) -> None:
    if trained := [method for method in asked.methods if is_trained(method)]:
        raise ValueError(
            f"--methods {trained[0]} is trained first: rdpo train or rdpo batch does; then give adapter:FOLDER"
        )
    in_world = asked.student in MINIATURES
    if in_world and asked.prompts not in PROMPTS:
        raise ValueError(
            f"a miniature student knows its world's prompts alone; in place of {asked.prompts} give {', '.join(PROMPTS)}"
        )
    experiment = prompts_named(asked.prompts, asked.student)[0].experiment
    if experiment not in PROMPTS:
        raise ValueError(
            f"{asked.prompts}: experiment = {experiment!r} is none; write {', '.join(PROMPTS)}, whose question the judge is asked"
        )
    given = {name: value for name, value in vars(asked).items() if name != "prompts"}
    if not in_world and not asked.pad_token:
        given["pad_token"] = _pad_token(asked.student, asked.methods)
    files = {} if in_world else dict.fromkeys(("pairs_file", "held_out"), asked.prompts)
    run = open_experiment(p := TrainRDPO.of({"experiment": experiment, **given, **files}))
    results = run.run(asked.methods, [0])
    write_manifest(run.output, "train_rdpo", p)  # an audit of the folder finds the prompts by it
    print(results_table(results).to_string(index=False))
    written = write_tables(results, run.output, f"Prompts of split {asked.evaluate_on} in {asked.prompts}.")
    print(*written.values(), sep="\n")


def _pad_token(student: str, methods: Sequence[str]) -> str:
    """The one beside an adapter among the rows, where the student has none of its own; else ""."""
    place, commit = place_and_commit(student)
    adapters = [existing_place(method) for method in methods if existing(method) == "adapter"]
    return next(filter(None, (pad_token_beside(adapter, place, commit or None) for adapter in adapters)), "")


if __name__ == "__main__":
    main()
