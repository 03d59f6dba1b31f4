"""The doctor's report: a table for notebooks and terminals, a page in Markdown, and the suspects as JSON lines."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from heapq import nlargest
from itertools import groupby
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING

from common.doctor.bias import Marker, word_gap
from common.doctor.checks import Finding
from common.doctor.diagnosis import Diagnosis, examine
from common.doctor.rows import DoctorRow
from common.doctor.sentences import count, p_value, sections, share
from common.runtime import ROOT
from common.schema import Pair
from common.storage import write_jsonl, write_whole

if TYPE_CHECKING:
    import pandas as pd

EXAMPLES, LONGEST, LISTED = 3, 110, 30


def short_table(pairs: Sequence[Pair] | Diagnosis) -> pd.DataFrame:
    """A line a check that found a row: rows found, rows looked at, share with Wilson's 95 % interval."""
    import pandas as pd

    found = pairs if isinstance(pairs, Diagnosis) else examine(list(pairs))
    columns = ["check", "rows", "of", "share", "what it means"]
    lines = [[*_counted(one), one.meaning] for one in found.findings if one.rows]
    return pd.DataFrame(lines, columns=columns).set_index("check")


def verdict(found: Diagnosis) -> str:
    """Label noise and recommendation in Markdown, for a notebook in a folder below the root."""
    said = sections(found, lambda path: f"[{path}](../{path})")
    parts = [(title, said[title]) for title in ("Label noise", "Recommendation") if title in said]
    return "\n".join(
        line for title, lines in parts for line in (f"**{title}**", "", *(f"- {one}" for one in lines), "")
    )


def _counted(finding: Finding) -> tuple[str, int, int, str]:
    return finding.name, len(finding.rows), finding.of, share(len(finding.rows), finding.of)


def terminal(found: Diagnosis) -> str:
    """The report as plain text, without examples."""
    width = max(len(one.name) for one in found.findings)
    seen = [one for one in found.findings if one.rows]
    clean = [one.name for one in found.findings if not one.rows and one.of]
    lines = [found.account or f"{found.name or 'pairs'}: {count(len(found.rows), 'row')}", ""]
    lines += [
        f"  {one.name:<{width}}  {len(one.rows):>6} of {one.of:<6}  {share(len(one.rows), one.of):<18}  {one.meaning}"
        for one in seen
    ]
    lines += ["", f"  nothing found: {', '.join(clean)}"] if clean else []
    for title, sentences in sections(found).items():
        lines += ["", title, *(f"  {sentence}" for sentence in sentences)]
    return "\n".join(lines).replace("`", "")


def page(found: Diagnosis, picture: str = "", repository: str = "") -> str:
    """The report in Markdown with three examples a check. picture: a path from the page, "" for none. repository: the
    path to its root from the page, with a slash at the end; "" for a page there."""
    link = lambda path: f"[{path}]({repository}{path})"  # noqa: E731
    lines = [
        f"# Pair doctor: {found.name or 'pairs'}",
        "",
        f"{count(len(found.rows), 'row')}, read before any model was loaded. Brackets are 95 % intervals.",
    ]
    lines += ["", *(f"- {line.strip()}" for line in found.account.splitlines())] if found.account else []
    lines += ["", f"![Shares of rows that a check found, and score gaps]({picture})"] if picture else []
    for title, sentences in sections(found, link).items():
        lines += ["", f"## {title}", "", *(f"- {sentence}" for sentence in sentences)]
        if title == "Recommendation" and found.advice.table:
            lines += ["", *evidence_table(found, link)]
    lines += ["", "## Checks", "", "| check | rows | of | share | what it means |", "|:--|--:|--:|:--|:--|"]
    lines += [f"| {' | '.join(map(str, _counted(one)))} | {one.meaning} |" for one in found.findings]
    lines += [
        "",
        "## Style and length",
        "",
        "| only one answer has it | chosen | share | rejected | share | rows | p |",
        "|:--|--:|--:|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {one.name} | {len(one.chosen)} | {share(len(one.chosen), one.n)} | {len(one.rejected)} | {share(len(one.rejected), one.n)} | {one.n} | {p_value(one.p)} |"
        for one in found.markers
    ]
    lines += ["", "p: exact McNemar test, corrected by Holm for the number of markers."]
    for name, notes in examples(found).items():
        shown = (line for row, note in notes.items() for line in _example(found.rows[row], note))
        lines += ["", f"## Examples: {name}", "", *shown] if notes else []
    lines += [
        "",
        "## Most suspicious rows",
        "",
        f"The first {min(LISTED, len(found.suspects))} of {count(len(found.suspects), 'row')}{'; all are in `suspects.jsonl`' if picture else ''}.",
        "",
    ]
    lines += [
        f"{number}. {_md(one.where)}: {_md('; '.join(one.reasons))}"
        for number, one in enumerate(found.suspects[:LISTED], start=1)
    ]
    return "\n".join(lines) + "\n"


def examples(found: Diagnosis) -> dict[str, dict[int, str]]:
    """What was found -> up to three of its rows, each with a note; {} where it has none."""
    of_checks = {
        one.name: {row: (one.notes or {}).get(row, "") for row in one.rows[:EXAMPLES]} for one in found.findings
    }
    of_style = {one.name: dict(list(_one_sided(one).items())[:EXAMPLES]) for one in found.markers}
    return {
        **of_checks,
        **of_style,
        "length": _longest(found.rows),
        "scores": _usual_scores(found),
        **_of_sources(found),
    }


def _one_sided(marker: Marker) -> dict[int, str]:
    """Rows of the side that has the marker more often, then those of the other."""
    sides = {"chosen": marker.chosen, "rejected": marker.rejected}
    ordered = sorted(sides, key=lambda name: -len(sides[name]))
    return {row: f"only the {name} answer" for name in ordered for row in sides[name]}


def _longest(rows: Sequence[DoctorRow]) -> dict[int, str]:
    """The largest differences in length."""
    gaps = {row: gap for row, of in enumerate(rows) if (gap := word_gap(of))}
    most = nlargest(EXAMPLES, gaps, key=lambda row: abs(gaps[row]))
    return {
        row: f"chosen is {count(abs(gaps[row]), 'word')} {'longer' if gaps[row] > 0 else 'shorter'}" for row in most
    }


def _usual_scores(found: Diagnosis) -> dict[int, str]:
    """Where scores are skewed: a row of each of the most frequent pairs of scores."""
    pairs = [(of.score_chosen, of.score_rejected) for of in found.rows]
    counted = Counter(pair for pair in pairs if None not in pair) if found.skewed else Counter()
    return {pairs.index(pair): f"{count(n, 'row')} with these scores" for pair, n in counted.most_common(EXAMPLES)}


def _of_sources(found: Diagnosis) -> dict[str, dict[int, str]]:
    """Column of several values -> a row of each of the most frequent ones."""
    shown = {}
    for column, those in groupby(found.sources, key=lambda one: one.column):
        values = [of.groups.get(column, "") for of in found.rows]
        shown[column] = {values.index(one.value): f"{column} {one.value or '(none)'}" for one in [*those][:EXAMPLES]}
    return shown


def evidence_table(found: Diagnosis, link: Callable[[str], str]) -> list[str]:
    """The cell's methods as a Markdown table. link: how a path of the repository is written."""
    from common.methods import label_of

    place = found.advice.cell
    return [
        f"Wanted behaviour at matched utility, mean over the study's experiments, {place['noise']:.0%} noise, {place['pairs']:g} pairs, 95 % t-intervals over seeds:", "",
        "| method | behaviour | seeds | students | table |", "|:--|:--|--:|--:|:--|",
        *(f"| {label_of(one.method)} | {one.mean:.2f} [{one.low:.2f}, {one.high:.2f}] | {one.seeds} | {one.students} | {link(f'results/{one.source}/table.csv')} |" for one in found.advice.table),
    ]  # fmt: skip


def _example(of: DoctorRow, note: str) -> list[str]:
    scores = "" if of.gap is None else f", scores {of.score_chosen:.2f} and {of.score_rejected:.2f}"
    return [
        f"- {_md(of.where + (f' ({note})' if note else ''))}{scores}",
        *(
            f"  - {name}: {_md(shorten(getattr(of, name), LONGEST)) or '(nothing)'}"
            for name in ("prompt", "chosen", "rejected")
        ),
    ]


def _md(text: str) -> str:
    return " ".join(text.split()).replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")


def write(found: Diagnosis, folder: str | Path) -> Path:
    """Writes `doctor.md`, `doctor.png` and `suspects.jsonl` into a folder, which is made; returns the page."""
    from common.doctor.picture import diagnosis_figure
    from common.report.figures import save_figure

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_figure(diagnosis_figure(found), folder / "doctor.png")
    write_jsonl(folder / "suspects.jsonl", suspect_lines(found))
    repository = Path(os.path.relpath(ROOT, folder.resolve())).as_posix() + "/"
    return write_whole(folder / "doctor.md", page(found, "doctor.png", repository))


def suspect_lines(found: Diagnosis) -> list[dict[str, object]]:
    """The suspects, the most suspicious first, with their texts."""
    return [
        {
            "where": one.where, "reasons": one.reasons, "score_gap": one.gap,
            **{name: getattr(found.rows[one.row], name) for name in ("prompt", "chosen", "rejected", "score_chosen", "score_rejected")},
        }
        for one in found.suspects
    ]  # fmt: skip
