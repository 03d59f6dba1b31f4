"""The doctor's report: a table for notebooks and terminals, a page in Markdown, and the suspects as JSON lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING

from common.doctor.advice import knobs_for
from common.doctor.bias import Effect
from common.doctor.checks import Finding
from common.doctor.diagnosis import Diagnosis, examine
from common.doctor.noise import LEAST_GAIN
from common.schema import Pair
from common.statistics import wilson_interval
from common.storage import write_jsonl, write_whole

if TYPE_CHECKING:
    import pandas as pd

EXAMPLES, LONGEST, LISTED = 3, 110, 30
EVIDENCE = "results/README.md"
SCORE_WEIGHED = ("rdpo", "rdpo_label")
"""Both readings of refined DPO: their knobs are given whatever is recommended."""
SCORES = (
    "Ways to scores: a judge in step 2 (`reward_score`), or one learned from the pairs themselves "
    "(`common.judge.learned.cross_fitted_scores`, see docs/own-data.md)."
)


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
    lines = [f"{found.name or 'pairs'}: {count(len(found.rows), 'row')}", ""]
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


def sections(found: Diagnosis) -> dict[str, list[str]]:
    """Title -> sentences, of all that is no plain count; sections with nothing to say are left out."""
    said = {
        "Label noise": _noise(found), "Length": _length(found), "Style": _style(found), "Scores": found.skewed, "Sources": _sources(found),
        "Languages": _languages(found), "Recommendation": _advice(found),
    }  # fmt: skip
    return {title: sentences for title, sentences in said.items() if sentences}


def _noise(found: Diagnosis) -> list[str]:
    noise = found.noise
    if not noise.scored:
        return [f"None of the {count(len(found.rows), 'row')} has both scores, so the label noise is unknown. {SCORES}"]
    if not noise.untied:
        return [
            f"All {noise.scored} scored rows have equal scores, so the label noise is unknown: take a judge with a finer scale."
        ]
    value, low, high = noise.wrong
    how = "taking the judge as perfect, so this mixes its errors with the labels'"
    if found.judge_accuracy:
        s, c = found.judge_accuracy
        how = f"corrected for a judge with sensitivity {s:g} and specificity {c:g}, which are taken as known"
    said = [
        f"Estimated share of wrong labels: {value:.2f} [{low:.2f}, {high:.2f}], n = {noise.untied} untied rows, {how}."
    ]
    said += (
        [
            f"Counted as the study counts noise, with the {noise.tied} ties as no better: {noise.in_study:.2f} of {noise.scored} scored rows."
        ]
        if noise.tied
        else []
    )
    if not found.judge_accuracy:
        said.append(
            f"With the judge's sensitivity and specificity, which must sum to more than {1 + LEAST_GAIN:g}, `--judge-accuracy` corrects for its errors."
        )
    return said


def _length(found: Diagnosis) -> list[str]:
    of = found.lengths
    said = [_effect("Chosen", of.labels, "rejected")] if of.labels.n else []
    said += [_effect("Higher scored", of.scores, "lower scored")] if of.scores.n else []
    longer, n = of.longer
    if n:
        low, high = wilson_interval(longer, n)
        said.append(
            f"The longer answer scored higher in {longer} of {n} untied rows ({longer / n:.2f} [{low:.2f}, {high:.2f}])."
        )
    if of.correlation is not None:
        said.append(f"Correlation of score gap and length gap: {of.correlation:+.2f}, n = {found.noise.scored}.")
    return said


def _effect(first: str, effect: Effect, second: str) -> str:
    d = "no d" if effect.d is None else f"Cohen's d = {effect.d:+.2f} [{effect.low:+.2f}, {effect.high:+.2f}]"
    longer = "longer" if effect.mean >= 0 else "shorter"
    return f"{first} answers are {abs(effect.mean):.1f} words {longer} than {second} ones ({d}, n = {effect.n})."


def _style(found: Diagnosis) -> list[str]:
    return [
        f"One-sided: {len(one.chosen)} chosen and {len(one.rejected)} rejected answers alone {_verb(one.name)}, n = {one.n}, p {p_value(one.p)}."
        for one in found.markers
        if one.is_one_sided
    ]


def _verb(marker: str) -> str:
    forms = {"declines": "decline", "speaks": "speak", "says": "say", "is": "are", "opens": "open", "has": "have"}
    first, _, rest = marker.partition(" ")
    return f"{forms[first]} {rest}".strip() if first in forms else f"say {marker!r}"


def _sources(found: Diagnosis) -> list[str]:
    def score(value: float | None) -> str:
        return "-" if value is None else f"{value:.2f}"

    return [
        f"{one.column} {one.value or '(none)'}: {count(one.n, 'row')}, mean scores chosen {score(one.chosen)}, rejected {score(one.rejected)}, n = {one.scored}."
        for one in found.sources
    ]


def _languages(found: Diagnosis) -> list[str]:
    known = {language: n for language, n in found.languages.most_common() if language}
    guess = ", ".join(f"{language} {n}" for language, n in known.items())
    return (
        [f"Prompts by guess (script and common words): {guess}; no guess for {found.languages['']}."]
        if len(known) > 1
        else []
    )


def _advice(found: Diagnosis) -> list[str]:
    advice = found.advice
    said = [f"Method: `{advice.method}`{_knobs(advice.knobs)}.", *advice.reasons]
    said += [
        f"If you train `{method}`:{_knobs(knobs_for(method))[1:]}."
        for method in SCORE_WEIGHED
        if method != advice.method and found.noise.untied
    ]
    gaps = sorted(abs(row.gap) for row in found.rows if row.gap)
    if gaps:
        said.append(_scale(found, gaps[len(gaps) // 2], len(gaps)))
    if advice.table:
        said.append(
            f"All numbers are of generated worlds and small students ({EVIDENCE}); on a real model the order was another (results/small/README.md), and what holds for your student is unknown."
        )
    return said


def _knobs(knobs: Mapping[str, float]) -> str:
    return "".join(f", {name} {value:g}" for name, value in knobs.items())


def _scale(found: Diagnosis, gap: float, n: int) -> str:
    """What alpha comes to on this file's scale."""
    alpha, (low, high) = knobs_for("rdpo")["alpha"], found.score_range
    said = f"alpha and eta weigh scores in [0, 1]: at the median gap of {gap:.2f} (n = {n} untied rows), alpha {alpha:g} is an offset of {alpha * gap:.2f} nats."
    return said + (
        f" On a scale from {low:g} to {high:g}, alpha is {alpha / (high - low):.3g} per point."
        if high - low != 1
        else ""
    )


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


def p_value(p: float) -> str:
    """Two digits after the point behind a sign, or that it is below .01."""
    return "< .01" if p < 0.01 else f"= {p:.2f}"


def count(number: int, noun: str) -> str:
    """The number with its noun in singular or plural."""
    return f"{number} {noun}{'s' * (number != 1)}"


def write(found: Diagnosis, folder: str | Path) -> Path:
    """Writes `doctor.md`, `doctor.png` and `suspects.jsonl`; returns the page."""
    from common.doctor.picture import diagnosis_figure

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    diagnosis_figure(found).savefig(folder / "doctor.png", dpi=150)
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
