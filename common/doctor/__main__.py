"""Pair doctor: faults, label noise and a recommended method for a file of pairs, before a model is loaded.

    rdpo doctor rows.csv --output runs/doctor --score-range 0 5

Reads every format of docs/own-data.md (scores may be missing), from a file, a folder of `datasets.save_to_disk`, or a
Hub dataset as NAME@COMMIT. Prints the report; `--output` keeps it with examples, picture and suspicious rows.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from common.command import CommandParser
from common.data.formats.read import read_preferences
from common.doctor.checks import cannot_load
from common.doctor.diagnosis import MAX_LENGTH, examine
from common.doctor.noise import noted_check, order_right
from common.doctor.report import terminal, write
from common.doctor.rows import add_score_options, rows_in, weights_of
from common.runtime import checked, escape_what_the_terminal_lacks
from common.specs import place_and_commit

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def parser() -> CommandParser:
    """The arguments of `rdpo doctor`."""
    command = CommandParser("doctor", __doc__)
    command.add_argument(
        "rows",
        help="CSV, JSON, JSONL or Parquet file, folder of save_to_disk, or Hub dataset NAME[/SPLIT]@COMMIT, in a format of docs/own-data.md",
    )
    command.add_argument("--output", help="folder for doctor.md, doctor.png and suspects.jsonl")
    command.add_argument("--tokenizer", help="folder or Hub name[@commit]: also count the rows that are cut")
    command.add_argument(
        "--max-length", type=int, help=f"with --tokenizer: tokens of prompt and answer together; default {MAX_LENGTH}"
    )
    add_score_options(command)
    command.add_argument(
        "--judge-accuracy",
        nargs=2,
        type=float,
        metavar=("SENS", "SPEC"),
        help="the judge's sensitivity and specificity, to correct the noise; default: those noted beside a scored.jsonl",
    )
    return command


def main(arguments: list[str] | None = None) -> None:
    asked = parser().parse_args(arguments)
    if asked.max_length is not None and not asked.tokenizer:
        parser().error("--max-length counts tokens, so it needs --tokenizer")
    escape_what_the_terminal_lacks()
    accuracy = tuple(asked.judge_accuracy) if asked.judge_accuracy else None
    try:
        if accuracy:
            order_right(*accuracy)
        max_length = checked("max_length", MAX_LENGTH if asked.max_length is None else asked.max_length, int)
        read = read_preferences(asked.rows, tuple(asked.score_range), weights_of(asked.weights))
        tokenizer = _tokenizer(asked.tokenizer) if asked.tokenizer else None
        how = {"account": read.account(), "noted": noted_check(read)}
        found = examine(rows_in(read), Path(asked.rows).name, accuracy, tokenizer, max_length, **how)
        print(terminal(found))
        if asked.output:
            page = write(found, Path(asked.output).expanduser())
            print(
                f"\nexamples: {page}; suspicious rows: {page.with_name('suspects.jsonl')}; picture: {page.with_name('doctor.png')}"
            )
    except (OSError, ValueError) as error:
        sys.exit(f"doctor: {error}")


def _tokenizer(name: str) -> PreTrainedTokenizerBase:
    """With a system role in its chat template, as a student's has it; pad token and template may be missing."""
    from transformers import AutoTokenizer

    from common.student.load import fold_system

    place, commit = place_and_commit(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, revision=commit or None)
    except (OSError, ValueError) as error:
        raise cannot_load(f"--tokenizer {name}", error, "a folder with a tokenizer") from None
    if tokenizer.chat_template:
        fold_system(tokenizer)
    return tokenizer


if __name__ == "__main__":
    main()
