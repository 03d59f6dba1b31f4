"""The doctor's report: a table for notebooks and terminals, a page in Markdown, and the suspects as JSON lines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING

from common.doctor.checks import Finding
from common.doctor.diagnosis import Diagnosis, examine
from common.doctor.sentences import count, p_value, sections
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


def _counted(finding: Finding) -> tuple[str, int, int, str]:
    return finding.name, len(finding.rows), finding.of, share(finding)


def share(finding: Finding) -> str:
    """The share with its interval; a dash where no row was looked at."""
    if not finding.of:
        return "-"
    low, high = finding.interval
    return f"{len(finding.rows) / finding.of:.2f} [{low:.2f}, {high:.2f}]"


def terminal(found: Diagnosis) -> str:
    """The report as plain text, without examples."""
    width = max(len(one.name) for one in found.findings)
    seen = [one for one in found.findings if one.rows]
    clean = [one.name for one in found.findings if not one.rows and one.of]
    lines = [found.account or f"{found.name or 'pairs'}: {count(len(found.rows), 'row')}", ""]
    lines += [
        f"  {one.name:<{width}}  {len(one.rows):>6} of {one.of:<6}  {share(one):<18}  {one.meaning}" for one in seen
    ]
    lines += ["", f"  nothing found: {', '.join(clean)}"] if clean else []
    for title, sentences in sections(found).items():
        lines += ["", title, *(f"  {sentence}" for sentence in sentences)]
    return "\n".join(lines).replace("`", "")


def page(found: Diagnosis, picture: str = "") -> str:
    """The report in Markdown with three examples a check; picture: a path from the page, "" for none."""
    lines = [
        f"# Pair doctor: {found.name or 'pairs'}",
        "",
        f"{count(len(found.rows), 'row')}, read before any model was loaded. Brackets are 95 % intervals.",
    ]
    lines += ["", *(f"- {line.strip()}" for line in found.account.splitlines())] if found.account else []
    lines += ["", f"![Shares of rows that a check found, and score gaps]({picture})"] if picture else []
    for title, sentences in sections(found).items():
        lines += ["", f"## {title}", "", *(f"- {sentence}" for sentence in sentences)]
        if title == "Recommendation" and found.advice.table:
            lines += ["", *evidence_table(found)]
    lines += ["", "## Checks", "", "| check | rows | of | share | what it means |", "|:--|--:|--:|:--|:--|"]
    lines += [f"| {' | '.join(map(str, _counted(one)))} | {one.meaning} |" for one in found.findings]
    lines += [
        "",
        "## Style and length",
        "",
        "| only one answer has it | chosen | rejected | rows | p |",
        "|:--|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {one.name} | {len(one.chosen)} | {len(one.rejected)} | {one.n} | {p_value(one.p)} |"
        for one in found.markers
    ]
    lines += ["", "p: exact McNemar test, corrected by Holm for the number of markers."]
    for one in found.findings:
        if one.rows:
            lines += [
                "",
                f"## Examples: {one.name}",
                "",
                *(line for row in one.rows[:EXAMPLES] for line in _example(found, one, row)),
            ]
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


def evidence_table(found: Diagnosis) -> list[str]:
    """The cell's methods as a Markdown table."""
    from common.methods import label_of

    place = found.advice.cell
    return [
        f"Wanted behaviour at matched utility, mean over the study's experiments, {place['noise']:.0%} noise, {place['pairs']:g} pairs, 95 % t-intervals over seeds:", "",
        "| method | behaviour | seeds | students | table |", "|:--|:--|--:|--:|:--|",
        *(f"| {label_of(one.method)} | {one.mean:.2f} [{one.low:.2f}, {one.high:.2f}] | {one.seeds} | {one.students} | results/{one.source}/table.csv |" for one in found.advice.table),
    ]  # fmt: skip


def _example(found: Diagnosis, finding: Finding, row: int) -> list[str]:
    of = found.rows[row]
    scores = "" if of.gap is None else f", scores {of.score_chosen:.2f} and {of.score_rejected:.2f}"
    note = f" ({finding.notes[row]})" if finding.notes and row in finding.notes else ""
    return [
        f"- {_md(of.where + note)}{scores}",
        *(
            f"  - {name}: {_md(shorten(getattr(of, name), LONGEST)) or '(nothing)'}"
            for name in ("prompt", "chosen", "rejected")
        ),
    ]


def _md(text: str) -> str:
    return " ".join(text.split()).replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")


def write(found: Diagnosis, folder: str | Path) -> Path:
    """Writes `doctor.md`, `doctor.png` and `suspects.jsonl`; returns the page."""
    from common.doctor.picture import diagnosis_figure
    from common.report.figures import save_figure

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_figure(diagnosis_figure(found), folder / "doctor.png")
    write_jsonl(folder / "suspects.jsonl", suspect_lines(found))
    return write_whole(folder / "doctor.md", page(found, "doctor.png"))


def suspect_lines(found: Diagnosis) -> list[dict[str, object]]:
    """The suspects, the most suspicious first, with their texts."""
    return [
        {
            "where": one.where, "reasons": one.reasons, "score_gap": one.gap,
            **{name: getattr(found.rows[one.row], name) for name in ("prompt", "chosen", "rejected", "score_chosen", "score_rejected")},
        }
        for one in found.suspects
    ]  # fmt: skip
