"""The doctor's findings in sentences, each number with its n."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median

from common.doctor.advice import knobs_for, trials_of
from common.doctor.bias import Effect
from common.doctor.diagnosis import Diagnosis
from common.doctor.noise import LEAST_GAIN
from common.statistics import wilson_interval

EVIDENCE = "results/README.md"
SCORE_WEIGHED = ("rdpo", "rdpo_label")
"""Both readings of refined DPO: their knobs are given whatever is recommended."""
SCORES = (
    "Ways to scores: a judge in step 2 (`reward_score`), or one learned from the pairs themselves "
    "(`common.judge.learned.cross_fitted_scores`, see docs/own-data.md)."
)


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
    if not found.judge_accuracy:
        said.append(
            f"Ties say nothing of labels and are left out. With the judge's sensitivity and specificity, which must sum to more than {1 + LEAST_GAIN:g}, `--judge-accuracy` corrects for its errors."
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
    said = [f"Method: `{advice.method}`{_knobs(advice.method, advice.knobs)}.", *advice.reasons]
    said += [
        f"If you train `{method}`:{_knobs(method, knobs_for(method))[1:]}."
        for method in SCORE_WEIGHED
        if method != advice.method and found.noise.untied
    ]
    gaps = sorted(abs(row.gap) for row in found.rows if row.gap)
    if gaps:
        said.append(_scale(found, median(gaps), len(gaps)))
    if advice.table:
        said.append(
            f"All numbers are of generated worlds and small students ({EVIDENCE}); on a real model the order was another (results/small/README.md), and what holds for your student is unknown."
        )
    return said


def _knobs(method: str, knobs: Mapping[str, float]) -> str:
    tuned = trials_of(method)
    return "".join(
        f", {name} {value:g}{'' if name in tuned else ' (default, never tuned)'}" for name, value in knobs.items()
    )


def _scale(found: Diagnosis, gap: float, n: int) -> str:
    """What alpha comes to on this file's scale."""
    alpha, scales = knobs_for("rdpo")["alpha"], {row.scale for row in found.rows if row.gap is not None}
    low, high = scales.pop() if len(scales) == 1 else (0.0, 1.0)
    said = f"alpha and eta weigh scores in [0, 1]: at the median gap of {gap:.2f} (n = {n} untied rows), alpha {alpha:g} is an offset of {alpha * gap:.2f} nats."
    return said + (
        f" On a scale from {low:g} to {high:g}, alpha is {alpha / (high - low):.3g} per point."
        if high - low != 1
        else ""
    )


def p_value(p: float) -> str:
    """Two digits after the point behind a sign, or that it is below .01."""
    return "< .01" if p < 0.01 else f"= {p:.2f}"


def count(number: int, noun: str) -> str:
    """The number with its noun in singular or plural."""
    return f"{number} {noun}{'s' * (number != 1)}"
