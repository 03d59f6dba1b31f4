"""All checks of a file of pairs at once, and its rows that look wrong, the most suspicious first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from common.doctor.advice import Advice, recommend
from common.doctor.alike import check_alike
from common.doctor.bias import TRACES, Lengths, Marker, Source, lengths, markers, skew, sources
from common.doctor.checks import Finding, check_length, check_rows, language_of
from common.doctor.noise import Noise, noise_of
from common.doctor.rows import DoctorRow, rows_of
from common.schema import Pair

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_LENGTH = 1024


@dataclass(frozen=True)
class Suspect:
    """A row that looks wrong. row: its number, from 0."""

    row: int
    where: str
    reasons: list[str]
    gap: float | None


@dataclass(frozen=True)
class Diagnosis:
    """What the doctor found in the rows. languages: guessed language -> prompts; "" for no guess. skewed: sentences.
    account: format and counts of the file that they were read from."""

    name: str
    rows: list[DoctorRow]
    findings: list[Finding]
    noise: Noise
    lengths: Lengths
    markers: list[Marker]
    skewed: list[str]
    sources: list[Source]
    languages: Counter[str]
    advice: Advice
    judge_accuracy: tuple[float, float] | None
    account: str = ""

    def finding(self, name: str) -> Finding:
        """The finding of that name. Raises StopIteration for none."""
        return next(one for one in self.findings if one.name == name)

    @property
    def suspects(self) -> list[Suspect]:
        """Rows that the scores contradict, by the size of the gap, then those with other reasons, by their number."""
        reasons: dict[int, list[str]] = {}
        for finding in self.findings:
            for row in finding.rows if finding.suspect else ():
                reasons.setdefault(row, []).append(finding.reason(row))
        for marker in self.markers:
            for row in marker.chosen if marker.name in TRACES else ():
                reasons.setdefault(row, []).append(f"only the chosen answer {marker.name}")
        ranked = sorted(reasons, key=lambda row: (min(self.rows[row].gap or 0, 0), -len(reasons[row]), row))
        return [Suspect(row, self.rows[row].where, reasons[row], self.rows[row].gap) for row in ranked]


def examine(
    pairs: Sequence[DoctorRow] | Sequence[Pair],
    name: str = "",
    judge_accuracy: tuple[float, float] | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    max_length: int = MAX_LENGTH,
    results: Path | None = None,
    account: str = "",
) -> Diagnosis:
    """Runs every check; no model is loaded.

    Args:
        name: of the file, for the report.
        judge_accuracy: sensitivity and specificity of the judge, to correct the noise; None takes it as perfect.
        tokenizer, max_length: to count the rows that are cut; None leaves that check out.
        results: folder of the study's results, by default the one beside the package.
        account: of the file, `Preferences.account()`, for the report.

    Raises ValueError for a judge that corrects nothing (`noise.order_right`).
    """
    rows = [row if isinstance(row, DoctorRow) else rows_of([row])[0] for row in pairs]
    noise = noise_of(rows, judge_accuracy)
    findings = check_rows(rows) + ([check_length(rows, tokenizer, max_length)] if tokenizer else []) + check_alike(rows)
    return Diagnosis(
        name, rows, findings, noise, lengths(rows), markers(rows), skew(rows), sources(rows),
        Counter(language_of(row.prompt) for row in rows), recommend(rows, results), judge_accuracy, account,
    )  # fmt: skip
