"""Which method fits a file of pairs, by what the study measured where the scores accepted a like share of the pairs.

The rule: of the study's cells that all experiments have, take the one whose share of accepted pairs is nearest, then
the number of pairs; of the methods that the file's scores allow, recommend the one with the highest mean over the
experiments there. Counted are the rows that are trained on: those of split `train`, and of these, where there are
scores, the rows with both. With fewer than `FEW_ACCEPTED` accepted pairs, methods that train on accepted pairs alone
are left out; with fewer than `LEAST_ROWS` usable rows none is recommended.

Cells are found by accepted pairs and not by estimated noise: that share was counted in the study in the same way, by a
judge with errors and ties of its own, while the noise set there counts revisions that are no better, which no score
shows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import NamedTuple

from common.doctor.rows import DoctorRow
from common.report.measurements import read_measurements
from common.runtime import ROOT
from common.statistics import seed_interval

RESULTS = ROOT / "results"
STUDIES = ("readings", "evidence")
"""Folders of `RESULTS` with a table.csv; where two have a method's rows in a cell, the first one's are taken."""
CENTRE = {"noise": 0.3, "pairs": 400}
"""Of the study: what a cell has where its key does not say otherwise."""
LEAST_ROWS = 20
"""Ours: of rows with both scores, or of all where none has, fewer say nothing about noise or method."""
FEW_ACCEPTED = 100
"""Ours, not measured: the study has no cell with so few accepted pairs."""
NEAR_SHARE, NEAR_PAIRS = 0.05, 1.5
"""How far the accepted share, and by which factor the number of pairs, may be from a cell that is called near."""
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
    """method and its knobs; "" where the rows are too few. accepted: pairs to train on whose chosen answer scored higher.
    cell: noise and pairs of the cell that `table` is from, the best method first; None and [] without results. reasons:
    sentences."""

    method: str
    knobs: dict[str, float]
    accepted: int
    cell: dict[str, float] | None
    table: list[Measured]
    reasons: list[str]


Values = dict[tuple[str, str, str], tuple[str, dict[int, float]]]
"""(experiment, cell, method) -> (study, seed -> behaviour at matched utility)."""


def read_values(results: Path) -> tuple[Values, dict[str, float]]:
    """The behaviour at matched utility of every student of the studies there, and of every cell the share of scored
    pairs that was accepted, mean over experiments; both empty where there is no table."""
    from common.methods import METHODS

    values: Values = {}
    used: dict[tuple[str, str], dict[bool, list[float]]] = {}
    for study in STUDIES:
        path, found = results / study / "table.csv", {}
        for line in read_measurements(path) if path.is_file() else ():
            cell, method = json.dumps(line.get("cell") or {}, sort_keys=True), line["method"]
            if line["metric"].endswith("_matched") and line["metric"] != "utility_matched":
                found.setdefault((line["experiment"], cell, method), (study, {}))[1][line["seed"]] = line["value"]
            elif line["metric"] == "pairs_used" and method in METHODS:
                by_kind = used.setdefault((cell, line["experiment"]), {True: [], False: []})
                by_kind[METHODS[method].sft_on == "accepted"].append(line["value"])
        values = found | values
    shares: dict[str, list[float]] = {}
    for (cell, _), by_kind in used.items():
        if all(by_kind.values()):
            shares.setdefault(cell, []).append(mean(by_kind[True]) / mean(by_kind[False]))
    return values, {cell: mean(of) for cell, of in shares.items()}


def cells_of(values: Values) -> list[str]:
    """Cells that differ from the centre in noise or number of pairs alone, or not, and that every experiment has."""
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

    loss, chosen = METHODS[method].loss, trials_of(method, results)
    defaults = knobs_of(loss) if loss else {}
    return {name: float(median(chosen[name])) if name in chosen else default for name, default in defaults.items()}


def trials_of(method: str, results: Path | None = None) -> dict[str, list[float]]:
    """Setting -> what the trials chose for the method in each experiment of the first study that has some."""
    from common.methods import METHODS

    for study in STUDIES:
        paths = sorted((results or RESULTS).glob(f"{study}/*/trials.json"))
        settings = [
            json.loads(path.read_text(encoding="utf-8"))["chosen"].get(METHODS[method].tuned_as, {}) for path in paths
        ]
        if any(settings):
            return {name: [one[name] for one in settings if name in one] for one in settings for name in one}
    return {}


def recommend(rows: Sequence[DoctorRow], results: Path | None = None) -> Advice:
    """The method for these rows, with the evidence. A row without a split is trained on. results: a project's folder of
    results, by default the one beside the package."""
    from common.methods import METHODS, is_trained

    results = results or RESULTS
    gaps = [row.gap for row in rows if row.split in ("", "train")]
    scored = [gap for gap in gaps if gap is not None]
    accepted, pairs = sum(gap > 0 for gap in scored), len(scored or gaps)
    has_scores, few = any(scored), accepted < FEW_ACCEPTED
    usable = sum(row.gap is not None for row in rows) or len(rows)
    if usable < LEAST_ROWS:
        return Advice("", {}, accepted, None, [], [_too_few(usable, len(rows))])
    allowed = [
        name for name, row in METHODS.items()
        if row.needs_pairs_alone and (has_scores or not row.sees_scores) and not (few and (row.sft_on == "accepted" or row.loss == "rdpo_filter" or row.accepted_only))
    ]  # fmt: skip
    reasons = [_about_scores(pairs, scored, accepted, few)]
    values, shares = read_values(results)
    cells = [cell for cell in cells_of(values) if cell in shares and measured(values, cell, allowed)]
    if not cells:
        method = WITHOUT_RESULTS["no scores" if not has_scores else "few accepted" if few else "scores"]
        reasons.append(
            f"There are no tables of the study in {results}, so this is a recommendation without numbers; see results/README.md of the repository."
        )
        return Advice(method, knobs_for(method, results), accepted, None, [], reasons)
    share = accepted / pairs if has_scores else None
    distances = {one: _distance(CENTRE | json.loads(one), shares[one], share, pairs) for one in cells}
    cell = min(cells, key=distances.__getitem__)
    place = CENTRE | json.loads(cell)
    table = measured(values, cell, (name for name in METHODS if is_trained(name)))
    best = next(one for one in table if one.method in allowed)
    reasons.append(_about_cell(share, pairs, shares[cell], place))
    reasons += _about_best(best, [one for one in table if one.method in allowed], values, cell)
    return Advice(best.method, knobs_for(best.method, results), accepted, place, table, reasons)


def _distance(place: Mapping[str, float], accepted: float, share: float | None, pairs: int) -> tuple[float, float]:
    """Of accepted share, then number of pairs; without a share, of the noise from the centre's."""
    first = abs(place["noise"] - CENTRE["noise"]) if share is None else abs(accepted - share)
    return round(first, 9), abs(math.log(place["pairs"] / max(pairs, 1)))


def _too_few(usable: int, rows: int) -> str:
    return f"With {usable} usable row{'s' * (usable != 1)} of {rows} we do not know the label noise or which method fits: fewer than {LEAST_ROWS} say nothing about either."


def _about_scores(pairs: int, scored: Sequence[float], accepted: int, few: bool) -> str:
    alone, one = "so only methods without scores are compared.", pairs == 1
    if not scored:
        none = (
            "The one row to train on lacks a score" if one else f"None of the {pairs} rows to train on has both scores"
        )
        return f"{none}, {alone}"
    if not any(scored):
        ties = "The one scored row to train on is a tie" if one else f"All {pairs} scored rows to train on are ties"
        return f"{ties}, {alone}"
    said = f"{accepted} of {pairs} scored rows to train on remain when only accepted pairs (chosen scored higher) are kept."
    if few:
        said += f" Fewer than {FEW_ACCEPTED} accepted pairs were never measured, so methods that train on these alone are left out; that limit is a guess."
    return said


def _about_cell(share: float | None, pairs: int, accepted: float, place: Mapping[str, float]) -> str:
    cell = f"{place['noise']:.0%} teacher noise and {place['pairs']:g} pairs"
    if share is None:
        return f"Noise is unknown here; the numbers are those of the study's cell with {cell}."
    own = f"The accepted share is {share:.2f} here, of {pairs} scored row{'s' * (pairs != 1)}"
    there = f"{accepted:.2f} in the study's cell with {cell}"
    if round(abs(share - accepted), 9) <= NEAR_SHARE and 1 / NEAR_PAIRS <= pairs / place["pairs"] <= NEAR_PAIRS:
        return f"{own}, and {there}, which is near."
    return f"{own}. The study has no such cell, so we do not know; the nearest that all experiments share is {there}."


def _about_best(best: Measured, allowed: Sequence[Measured], values: Values, cell: str) -> list[str]:
    from common.methods import label_of

    said = f"There {label_of(best.method)} has the highest mean, {best.mean:.2f} [{best.low:.2f}, {best.high:.2f}] over {best.seeds} seeds ({best.students} students)."
    rival = next((one for one in allowed if one.method != best.method), None)
    return [said, *(_difference(best, rival, values, cell) if rival else [])]


def _difference(best: Measured, rival: Measured, values: Values, cell: str) -> list[str]:
    """Paired by experiment and seed, which name the same base student within one study alone."""
    from common.methods import label_of

    if rival.source != best.source:
        return [
            f"No paired difference to the next, {label_of(rival.method)}, is known: the two were measured in two studies, on other students."
        ]
    experiments = sorted({experiment for experiment, _, _ in values})
    first, second = ([values[of, cell, one.method][1] for of in experiments] for one in (best, rival))
    seeds = sorted(set.intersection(*map(set, (*first, *second))))
    difference = [mean(a[seed] - b[seed] for a, b in zip(first, second)) for seed in seeds]
    if len(difference) < 2:
        return []
    gain, low, high = seed_interval(difference)
    said = f"Its difference to the next, {label_of(rival.method)}, is {gain:+.2f} [{low:+.2f}, {high:+.2f}] on the same {len(seeds)} seeds"
    return [said + (", so the two are not separated." if low <= 0 <= high else ".")]
