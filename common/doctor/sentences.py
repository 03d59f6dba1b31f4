"""The doctor's findings in sentences, each number with its n."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from statistics import median

from common.doctor.advice import LEAST_ROWS, knobs_for, trials_of
from common.doctor.bias import Effect
from common.doctor.diagnosis import Diagnosis
from common.doctor.noise import LEAST_GAIN, Noise
from common.statistics import wilson_interval

EVIDENCE, ON_A_REAL_MODEL = "results/README.md", "results/small/README.md"
SCORE_WEIGHED = ("rdpo", "rdpo_label")
"""Both readings of refined DPO: their knobs are given whatever is recommended."""
SCORES = (
    "Ways to scores: a judge in step 2 (`reward_score`), or one learned from the pairs themselves "
    "(`common.judge.learned.cross_fitted_scores`, see docs/own-data.md)."
)


def sections(found: Diagnosis, link: Callable[[str], str] = str) -> dict[str, list[str]]:
    """Title -> sentences, of all that is no plain count; sections with nothing to say are left out. link: how a path of
    the repository is written."""
    said = {
        "Label noise": _noise(found) if found.advice.method else [], "Length": _length(found), "Style": _style(found), "Scores": found.skewed,
        "Sources": _sources(found), "Languages": _languages(found), "Recommendation": _advice(found, link),
    }  # fmt: skip
    return {title: sentences for title, sentences in said.items() if sentences}


def _noise(found: Diagnosis) -> list[str]:
    noise = found.noise
    if not noise.scored:
        return [f"None of the {len(found.rows)} rows has both scores, so the label noise is unknown. {SCORES}"]
    if not noise.untied:
        return [
            f"All {noise.scored} scored rows have equal scores, so the label noise is unknown: take a judge with a finer scale."
        ]
    value, low, high = noise.wrong
    estimate = f"Estimated share of wrong labels: {value:.2f} [{low:.2f}, {high:.2f}], n = {noise.untied} untied rows"
    return [f"{estimate}, {_corrected(found)}.", *_of_one_class(noise), *_of_the_judge(found)]


def _corrected(found: Diagnosis) -> str:
    if not found.judge_accuracy:
        return "taking the judge as perfect, so this mixes its errors with the labels'"
    s, c = found.judge_accuracy
    noted = f"`{found.noted.manifest}` notes and which " if found.noted else ""
    return f"corrected for a judge with sensitivity {s:.3g} and specificity {c:.3g}, which {noted}are taken as known"


def _of_one_class(noise: Noise) -> list[str]:
    """Scores that all say the same of the labels may say nothing of them."""
    if noise.untied < LEAST_ROWS or 0 < noise.contradicted < noise.untied:
        return []
    if noise.contradicted:
        return [
            f"The rejected answer scored higher in all {noise.untied} untied rows: the columns chosen and rejected may be exchanged, or a low score may be the better one."
        ]
    return [
        f"No wrong label is visible: the chosen answer scored higher in all {noise.untied} untied rows, so noise cannot be distinguished from a judge that agrees with every label."
    ]


def _of_the_judge(found: Diagnosis) -> list[str]:
    if found.judge_accuracy:
        return []
    if found.noted:
        s, c, manifest = found.noted
        return [
            f"`{manifest}` notes a judge with sensitivity {s:.3g} and specificity {c:.3g}, little better than chance, which corrects nothing."
        ]
    return [
        f"Ties say nothing of labels and are left out. With the judge's sensitivity and specificity, which must sum to more than {1 + LEAST_GAIN:g}, `--judge-accuracy` corrects for its errors."
    ]


def _length(found: Diagnosis) -> list[str]:
    of = found.lengths
    said = [_effect("Chosen", of.labels, "rejected")] if of.labels.n else []
    said += [_effect("Higher scored", of.scores, "lower scored")] if of.scores.n else []
    longer, n = of.longer
    if n:
        said.append(f"The longer answer scored higher in {longer} of {n} untied rows ({share(longer, n)}).")
    if of.correlation is not None:
        said.append(f"Correlation of score gap and length gap: {of.correlation:+.2f}, n = {found.noise.scored}.")
    return said


def _effect(first: str, effect: Effect, second: str) -> str:
    d = "no d" if effect.d is None else f"Cohen's d = {effect.d:+.2f} [{effect.low:+.2f}, {effect.high:+.2f}]"
    longer = "longer" if effect.mean >= 0 else "shorter"
    return f"{first} answers are {abs(effect.mean):.1f} words {longer} than {second} ones ({d}, n = {effect.n})."


def _style(found: Diagnosis) -> list[str]:
    return [
        f"One-sided: {len(one.chosen)} chosen ({share(len(one.chosen), one.n)}) and {len(one.rejected)} rejected answers ({share(len(one.rejected), one.n)}) alone {_verb(one.name)}, n = {one.n}, p {p_value(one.p)}."
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


def _advice(found: Diagnosis, link: Callable[[str], str]) -> list[str]:
    advice = found.advice
    if not advice.method:
        return advice.reasons
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
            f"All numbers are of generated worlds and small students ({link(EVIDENCE)}); on a real model the order was another ({link(ON_A_REAL_MODEL)}), and what holds for your student is unknown."
        )
    return said


def _knobs(method: str, knobs: Mapping[str, float]) -> str:
    tuned = trials_of(method)
    return "".join(
        f", {name} {value:g}{'' if name in tuned else ' (default, never tuned)'}" for name, value in knobs.items()
    )


def _scale(found: Diagnosis, gap: float, n: int) -> str:
    """What alpha and eta come to on this file's scale."""
    from common.loss import LOSSES, knobs_of

    alpha, tau = knobs_for("rdpo")["alpha"], knobs_for("rdpo_label")["tau"]
    etas = {name: knobs_for(name)["eta"] for name in LOSSES if "eta" in knobs_of(name)}
    label = tau + (1 - tau) / (1 + math.exp(-etas["rdpo_label"] * gap))
    said = f"alpha and eta weigh scores in [0, 1]: at the median gap of {gap:.2f} (n = {n} untied rows), alpha {alpha:g} is an offset of {alpha * gap:.2f} nats, and tau {tau:g} with eta {etas['rdpo_label']:g} a soft label of {label:.2f}."
    scales = {row.scale for row in found.rows if row.gap is not None}
    low, high = scales.pop() if len(scales) == 1 else (0.0, 1.0)
    if (width := high - low) == 1:
        return said
    per_point = ", ".join(f"{eta / width:.3g} (`{name}`)" for name, eta in etas.items())
    return f"{said} On a scale from {low:g} to {high:g}, alpha is {alpha / width:.3g} per point, and eta {per_point}."


def p_value(p: float) -> str:
    """Two digits after the point behind a sign, or that it is below .01."""
    return "< .01" if p < 0.01 else f"= {p:.2f}"


def share(number: int, of: int) -> str:
    """The share with Wilson's 95 % interval; a dash where there is nothing to share."""
    if not of:
        return "-"
    low, high = wilson_interval(number, of)
    return f"{number / of:.2f} [{low:.2f}, {high:.2f}]"


def count(number: int, noun: str) -> str:
    """The number with its noun in singular or plural."""
    return f"{number} {noun}{'s' * (number != 1)}"
