"""Label at most 32 answers of a finished run blind, and see how far the judge's rates can be believed.

rdpo audit runs/mine --answers 16
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from common.audit.labels import READINGS, Labels
from common.audit.sample import MOST, Audit, open_audit
from common.audit.sheet import KEYS, figures
from common.command import CommandParser
from common.runtime import errors_in_a_line

LINE = "-" * 60


def read_blind(audit: Audit, labels: Labels, ask: Callable[[str], str]) -> None:
    """Shows each answer that the next reading lacks and keeps its label at once; returns after the last one, at q, or
    where the input ends. The second reading has an order of its own."""
    reading = labels.reading(audit.items)
    todo = [item for item in audit.items if labels.readings_of(item) < reading]
    if reading == READINGS:
        todo = random.Random(READINGS).sample(todo, len(todo))
    print(f"{audit.question}\ny or n; s skips until the next run; q stops. Labels are kept in {labels.path}.")
    for number, item in enumerate(todo, start=1):
        print(
            f"{LINE}\n{number} of {len(todo)}, reading {reading}\n\nPROMPT\n{item.prompt}\n\nANSWER\n{item.answer or '(nothing)'}\n"
        )
        if (key := _key(ask)) == "q":
            return
        if KEYS[key] is not None:
            labels.add(item, KEYS[key])


def _key(ask: Callable[[str], str]) -> str:
    while True:
        try:
            key = ask("y / n / s / q: ").strip().lower()
        except EOFError:
            return "q"
        if key in (*KEYS, "q"):
            return key


def parser() -> CommandParser:
    """The arguments of `rdpo audit`."""
    command = CommandParser("audit", __doc__)
    command.add_argument("run", help="folder of a run of train_rdpo, or one metrics.json in it")
    command.add_argument(
        "--answers", type=int, default=MOST, metavar="N", help=f"how many, at most {MOST}, the default"
    )
    command.add_argument(
        "--output", metavar="FILE", help="JSONL file of the labels; default audit_labels.jsonl in the run"
    )
    return command


def main(arguments: list[str] | None = None) -> None:
    asked = parser().parse_args(arguments)
    with errors_in_a_line("audit"):
        audit = open_audit(asked.run, asked.answers)
        labels = Labels(Path(asked.output).expanduser() if asked.output else audit.folder / "audit_labels.jsonl")
    if labels.reading(audit.items):
        read_blind(audit, labels, input)
    print(f"{LINE}\n{figures(audit, labels.first()).text}")
    if (reading := labels.reading(audit.items)) == READINGS:
        print(
            f"All answers are read once. The same command asks for the second reading, without which `labels` cannot read {labels.path}."
        )
    elif reading:
        print("Some answers have no label yet; the same command goes on there.")


if __name__ == "__main__":
    main()
