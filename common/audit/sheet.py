"""The audit in a notebook: one function shows the answers blind, another takes the labels."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from common.audit.account import HEAD, account, cells, remarks
from common.audit.sample import MOST, Audit, open_audit
from common.schema import fingerprint
from common.show.tables import NOTHING, Shown, table

KEYS = {"y": 1, "n": 0, "s": None}


def blind_sheet(place: str | Path, answers: int = MOST) -> Shown:
    """The numbered answers of a run with the question to label them by and the sheet's mark, and no word on the row.
    Raises what `open_audit` does."""
    audit = open_audit(place, answers)
    head = f"Sheet {_mark(audit)}: {audit.question} y or n, s to skip, in the order of the numbers."
    rows, lines = [[f"<b>{escape(head)}</b>"]], [head]
    for number, item in enumerate(audit.items, start=1):
        rows.append([str(number), f"<b>prompt</b>\n{escape(item.prompt)}", f"<b>answer</b>\n{escape(item.answer) or NOTHING}"])  # fmt: skip
        lines += ["", f"{number}. prompt: {item.prompt}", f"   answer: {item.answer or '(nothing)'}"]
    return Shown(table(rows), "\n".join(lines))


def labelled_sheet(place: str | Path, sheet: str, labels: str | Sequence[str], answers: int = MOST) -> Shown:
    """The audit's figures from the labels of `blind_sheet` with the same arguments: "y n s ..." or a list of those.

    sheet: the mark that it shows. Raises ValueError for the mark of other answers, as after one more training, for
    anything but y, n and s, and for more or fewer labels than answers.
    """
    audit = open_audit(place, answers)
    if sheet != _mark(audit):
        raise ValueError(
            f"sheet {sheet!r} shows other answers than are drawn from {place} now; show blind_sheet again with the "
            "same arguments, and label what it shows"
        )
    given = labels.split() if isinstance(labels, str) else list(labels)
    if wrong := next((one for one in given if one not in KEYS), None):
        raise ValueError(f"the label {wrong!r} is none; write y, n, or s to skip")
    if len(given) != len(audit.items):
        raise ValueError(f"{len(given)} labels for {len(audit.items)} answers; give one for each, s to skip")
    return figures(audit, {item.id: KEYS[key] for item, key in zip(audit.items, given) if KEYS[key] is not None})


def _mark(audit: Audit) -> str:
    return fingerprint([item.id for item in audit.items], digits=6)


def figures(audit: Audit, labels: dict[str, int]) -> Shown:
    """A line a row: the judge's rate, the corrected rate, the judge's inflation."""
    accounts = account(audit, labels)
    rows, notes = [HEAD, *map(cells, accounts)], remarks(accounts)
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines.insert(1, f"|{':--|' * len(HEAD)}")
    html = table([[escape(cell) for cell in row] for row in rows])
    return Shown(html + "".join(f"<p>{escape(note)}</p>" for note in notes), "\n".join([*lines, "", *notes]))
