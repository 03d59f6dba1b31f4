"""All checks of a file of pairs at once, and its rows that look wrong, the most suspicious first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from common.doctor.advice import Advice, recommend
from common.doctor.alike import check_alike
from common.doctor.bias import TRACES, Lengths, Marker, Source, lengths, markers, skew, sources
from common.doctor.checks import Finding, check_length, check_rows, language_of
from common.doctor.noise import JudgeCheck, Noise, noise_of
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
    judge_accuracy: what the noise was corrected for. noted: the judge's check, where a manifest notes one. account: format
    and counts of the file that they were read from."""

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
    noted: JudgeCheck | None = None
    account: str = ""

    def finding(self, name: str) -> Finding:
        """The finding of that name. Raises StopIteration for none."""
        return next(one for one in self.findings if one.name == name)

    def with_cut(self, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Diagnosis:
        """With the rows that are cut at `max_length` tokens, too. Raises what `check_length` does."""
        return replace(self, findings=[*self.findings, check_length(self.rows, tokenizer, max_length)])

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
    noted: JudgeCheck | None = None,
) -> Diagnosis:
    """Runs every check; no model is loaded.

    Args:
        name: of the file, for the report.
        judge_accuracy: sensitivity and specificity of the judge, to correct the noise; None takes those of `noted`, and a
            judge without either as perfect.
        tokenizer, max_length: to count the rows that are cut; None leaves that check out.
        results: folder of the study's results, by default the one beside the package.
        account: of the file, `Preferences.account()`, for the report.
        noted: of the file, `noise.noted_check`.

    Raises ValueError for a judge that corrects nothing (`noise.order_right`).
    """
    rows = [row if isinstance(row, DoctorRow) else rows_of([row])[0] for row in pairs]
    noted = None if judge_accuracy else noted
    accuracy = noted.accuracy if noted else judge_accuracy
    found = Diagnosis(
        name, rows, check_rows(rows) + check_alike(rows), noise_of(rows, accuracy), lengths(rows), markers(rows), skew(rows), sources(rows),
        Counter(language_of(row.prompt) for row in rows), recommend(rows, results), accuracy, noted, account,
    )  # fmt: skip
    return found.with_cut(tokenizer, max_length) if tokenizer else found
