"""Which method fits a file of pairs, by what the study measured at the nearest noise and number of pairs.

The rule: of the study's cells that all experiments have, take the one nearest in noise, then in number of pairs; of the
methods that the file's scores allow, recommend the one with the highest mean over the experiments there. With fewer than
`FEW_ACCEPTED` accepted pairs, methods that train on accepted pairs alone are left out.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import NamedTuple

from common.doctor.noise import Noise
from common.doctor.rows import DoctorRow
from common.report.measurements import read_measurements
from common.runtime import ROOT
from common.statistics import seed_interval

RESULTS = ROOT / "results"
STUDIES = ("readings", "evidence")
"""Folders of `RESULTS` with a table.csv; where two have a method's rows in a cell, the first one's are taken."""
CENTRE = {"noise": 0.3, "pairs": 400}
"""Of the study: what a cell has where its key does not say otherwise."""
FEW_ACCEPTED = 100
"""Ours, not measured: the study has no cell with so few accepted pairs."""
NEAR_NOISE, NEAR_PAIRS = 0.05, 1.5
"""How far noise, and by which factor the number of pairs, may be from a cell that is called the file's own."""
WITHOUT_RESULTS = {"scores": "rdpo_filter", "few accepted": "rdpo", "no scores": "dpo"}
"""What is recommended where no results are beside the package: the rule's choices at the study's centre."""


class Measured(NamedTuple):
    """A method in a cell: mean of behaviour at matched utility over the experiments, of each seed, with the 95 %
    t-interval over seeds. source: the study's folder."""

    method: str
    mean: float
    low: float
    high: float
    seeds: int
    students: int
    source: str


@dataclass(frozen=True)
class Advice:
    """method and its knobs. accepted: pairs whose chosen answer scored higher. cell: noise and pairs of the cell that
    `table` is from, the best method first; None and [] without results. reasons: sentences."""

    method: str
    knobs: dict[str, float]
    accepted: int
    cell: dict[str, float] | None
    table: list[Measured]
    reasons: list[str]


Values = dict[tuple[str, str, str], tuple[str, dict[int, float]]]
"""(experiment, cell, method) -> (study, seed -> behaviour at matched utility)."""


def read_values(results: Path) -> Values:
    """The behaviour at matched utility of every student of the studies there; {} where there is no table."""
    values: Values = {}
    for study in STUDIES:
        path, found = results / study / "table.csv", {}
        for line in read_measurements(path) if path.is_file() else ():
            if line["metric"].endswith("_matched") and line["metric"] != "utility_matched":
                key = line["experiment"], json.dumps(line.get("cell") or {}, sort_keys=True), line["method"]
                found.setdefault(key, (study, {}))[1][line["seed"]] = line["value"]
        values = found | values
    return values


def cells_of(values: Values) -> list[str]:
    """Cells unlike the centre in noise or number of pairs alone that every experiment has."""
    experiments = {experiment for experiment, _, _ in values}
    cells = sorted({cell for _, cell, _ in values if not json.loads(cell).keys() - CENTRE.keys()})
    return [cell for cell in cells if experiments == {of for of, where, _ in values if where == cell}]


def measured(values: Values, cell: str, methods: Iterable[str]) -> list[Measured]:
    """The methods that every experiment has in the cell from one study, the highest mean first."""
    experiments = sorted({experiment for experiment, _, _ in values})
    found = []
    for method in methods:
        of = [values.get((experiment, cell, method)) for experiment in experiments]
        if None in of or len({study for study, _ in of}) > 1:
            continue
        seeds = set.intersection(*(set(by_seed) for _, by_seed in of))
        if seeds:
            means = [mean(by_seed[seed] for _, by_seed in of) for seed in sorted(seeds)]
            found.append(Measured(method, *seed_interval(means), len(seeds), len(seeds) * len(of), of[0][0]))
    return sorted(found, key=lambda one: -one.mean)


def knobs_for(method: str, results: Path | None = None) -> dict[str, float]:
    """The knobs of a method's loss: for each the median of what the study's trials chose in its experiments, else the
    loss's default. They weigh scores in [0, 1]."""
    from common.loss import knobs_of
    from common.methods import METHODS

    loss = METHODS[method].loss
    knobs = {}
    for name, default in (knobs_of(loss) if loss else {}).items():
        chosen = []
        for study in STUDIES:
            for path in sorted((results or RESULTS).glob(f"{study}/*/trials.json")) if not chosen else ():
                setting = json.loads(path.read_text(encoding="utf-8"))["chosen"].get(METHODS[method].tuned_as, {})
                chosen += [setting[name]] if name in setting else []
        knobs[name] = float(median(chosen)) if chosen else default
    return knobs


def recommend(rows: Sequence[DoctorRow], noise: Noise, results: Path | None = None) -> Advice:
    """The method for these rows, with the evidence; results: a project's folder of results, by default the one beside
    the package."""
    from common.methods import METHODS, is_trained

    results = results or RESULTS
    accepted = sum((row.gap or 0) > 0 for row in rows)
    has_scores, few = noise.untied > 0, accepted < FEW_ACCEPTED
    allowed = [
        name for name, row in METHODS.items()
        if is_trained(name) and (has_scores or not row.sees_scores) and not (few and (row.sft_on == "accepted" or row.loss == "rdpo_filter"))
    ]  # fmt: skip
    reasons = [_about_scores(rows, noise, accepted, few)]
    values = read_values(results)
    cells = [cell for cell in cells_of(values) if measured(values, cell, allowed)]
    if not cells:
        method = WITHOUT_RESULTS["no scores" if not has_scores else "few accepted" if few else "scores"]
        reasons.append(
            f"There are no tables of the study in {results}, so this is a recommendation without numbers; see results/README.md of the repository."
        )
        return Advice(method, knobs_for(method, results), accepted, None, [], reasons)
    estimated = noise.in_study if has_scores else None
    sought = {"noise": CENTRE["noise"] if estimated is None else estimated, "pairs": max(1, len(rows))}
    cell = min(cells, key=lambda one: _distance(CENTRE | json.loads(one), sought))
    place = CENTRE | json.loads(cell)
    table = measured(values, cell, (name for name in METHODS if is_trained(name)))
    best = next(one for one in table if one.method in allowed)
    reasons.append(_about_cell(estimated, len(rows), place))
    reasons += _about_best(best, [one for one in table if one.method in allowed], values, cell)
    return Advice(best.method, knobs_for(best.method, results), accepted, place, table, reasons)


def _distance(place: Mapping[str, float], sought: Mapping[str, float]) -> tuple[float, float]:
    return round(abs(place["noise"] - sought["noise"]), 9), abs(math.log(place["pairs"] / sought["pairs"]))


def _about_scores(rows: Sequence[DoctorRow], noise: Noise, accepted: int, few: bool) -> str:
    if not noise.scored:
        return f"None of the {len(rows)} rows has both scores, so only methods without scores are compared."
    if not noise.untied:
        return f"All {noise.scored} scored rows are ties, so only methods without scores are compared."
    said = f"{accepted} of {noise.scored} scored rows remain when only accepted pairs (chosen scored higher) are kept."
    if few:
        said += f" Fewer than {FEW_ACCEPTED} accepted pairs were never measured, so methods that train on these alone are left out; that limit is a guess."
    return said


def _about_cell(noise: float | None, pairs: int, place: Mapping[str, float]) -> str:
    cell = f"{place['noise']:.0%} noise and {place['pairs']:g} pairs"
    if noise is None:
        return f"Noise is unknown here; the numbers are those of the study's cell with {cell}."
    own = f"about {noise:.0%} noise and {pairs} row{'s' * (pairs != 1)}"
    near = (
        round(abs(noise - place["noise"]), 9) <= NEAR_NOISE and 1 / NEAR_PAIRS <= pairs / place["pairs"] <= NEAR_PAIRS
    )
    if near:
        return f"This file has {own}; the study's cell with {cell} is near."
    return f"This file has {own}. The study has no such cell, so we do not know; the nearest that all experiments share has {cell}."


def _about_best(best: Measured, allowed: Sequence[Measured], values: Values, cell: str) -> list[str]:
    from common.methods import label_of

    said = [
        f"There {label_of(best.method)} has the highest mean, {best.mean:.2f} [{best.low:.2f}, {best.high:.2f}] over {best.seeds} seeds ({best.students} students)."
    ]
    if rival := next((one for one in allowed if one.method != best.method), None):
        experiments = sorted({experiment for experiment, _, _ in values})
        first, second = ([values[of, cell, one.method][1] for of in experiments] for one in (best, rival))
        seeds = sorted(set.intersection(*map(set, (*first, *second))))
        difference = [mean(a[seed] - b[seed] for a, b in zip(first, second)) for seed in seeds]
        if len(difference) > 1:
            gain, low, high = seed_interval(difference)
            said.append(
                f"Its difference to the next, {label_of(rival.method)}, is {gain:+.2f} [{low:+.2f}, {high:+.2f}] on the same {len(seeds)} seeds"
                + (", so the two are not separated." if low <= 0 <= high else ".")
            )
    return said
