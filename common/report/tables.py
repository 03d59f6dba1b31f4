"""Tables and figures: one function each, from result files or lists of records, nothing computed twice.

Trained rows of three seeds or more carry t-intervals over seeds; rows of two the mean and all that both intervals over
prompts cover; others, and untrained rows (which have no seed), intervals over prompts. What labels correct has the mean
and all that its intervals cover, whatever the number of seeds: its error is that of labels which all seeds share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common.evaluation.result import Result, finished_in, place_in_table
from common.methods import METHODS, is_trained, label_of
from common.report.measurements import write_measurements
from common.schema import Metric
from common.statistics import seed_interval
from common.storage import write_whole

if TYPE_CHECKING:
    import pandas as pd

OBJECTIVES = {  # experiment -> its metric of behaviour, and what is held out of its `ood` prompts
    "safety": ("harmlessness", "wrappers"), "roleplay-robustness": ("neutrality", "personas"), "sycophancy": ("steadiness", "stances"),
}  # fmt: skip
REAL = "aligned"
"""The metric of behaviour of a real student (`common.evaluation.judged`)."""
COLUMNS = {
    "judged": "judge's view", "shift": "sentiment shift", "signed_shift": "towards the stance", "utility": "utility", "kl": "KL (nats)",
    "answer_words": "words", "same_outcome": "same outcome in other words",
}  # fmt: skip
REAL_COLUMNS = {  # of a real student, whose answers no oracle knows
    "labelled": "labelled by a rater", "aligned_corrected": "corrected by labels", "judged": "judge's view", "steady": "steady (judge)", "reward": "reward judge's view",
    "shift": "sentiment shift", "signed_shift": "towards the stance", "utility": "utility", "utility_corrected": "utility corrected by labels",
    "utility_persona": "utility under a persona", "answer_words": "words", "kl": "KL (nats)",
    "same_outcome": "same outcome in other words",
}  # fmt: skip
STYLE_COLUMNS = {
    "style": "desired style",
    "style_with": "when asked for it",
    "style_against": "when asked for the opposite",
}  # shown where a row is of Counterfactual DPO


def result_files(folder: str | Path) -> list[Path]:
    """Every finished `metrics.json` of a run folder: its own, and those of the runs on pairs of Counterfactual DPO
    below it; and `finished.jsonl`, as the rows are kept in `results/`."""
    return [
        path
        for place in (".", "counterfactual_*")
        for path in sorted(Path(folder).glob(f"{place}/seed-*/*/metrics.json"))
    ] + sorted(Path(folder).glob("finished.jsonl"))


def read_results(folder: str | Path) -> list[Result]:
    """The results of `result_files`, in the order of METHODS, what existed before and rows of Counterfactual DPO last.

    A row that stands in several places (base, which no pairs make) is taken from where most was measured of it. Raises
    ValueError when there is none, and when they are no table: of several splits, or one row trained with several
    settings.
    """
    found: dict[tuple[str, int], Result] = {}
    for result in (result for path in result_files(folder) for result in finished_in(path)):
        kept = found.setdefault((result.row, result.seed), result)
        if len(result.metrics) > len(kept.metrics):
            found[result.row, result.seed] = result
    if not found:
        raise ValueError(f"no results below {folder}; run train_rdpo first")
    if len(splits := {result.split for result in found.values() if result.split}) > 1:
        raise ValueError(
            f"results below {folder} are of different splits ({', '.join(sorted(splits))}); keep them apart with -p output"
        )
    for of_row in by_row(list(found.values())):
        if any(result.settings != of_row[0].settings for result in of_row if result.settings):
            raise ValueError(
                f"{of_row[0].row} was trained with different settings below {folder}, which are no seeds of one row; keep them apart with -p output"
            )
    return sorted(found.values(), key=place_in_table)


def row_label(result: Result) -> str:
    """The name of a row for a reader; what existed before carries its own."""
    label = label_of(result.method)
    if result.variant:
        kind = "counterfactual {}" if METHODS[result.method].loss else "{} on counterfactual answers"
        label = f"{kind.format(label)}, {result.variant}"
    return f"{label}, {result.swapped:.0%} swapped" if result.swapped else label


def results_table(results: Sequence[Result]) -> pd.DataFrame:
    """One row per method, a cell `mean [low, high]` per metric, over seeds; the last columns at matched utility, where
    that was measured."""
    import pandas as pd

    rows, (objective, held_out) = [], objective_of(results)
    columns = (REAL_COLUMNS if objective == REAL else COLUMNS) | (
        STYLE_COLUMNS if any(result.variant for result in results) else {}
    )
    for of_method in by_row(results):
        method = of_method[0].method
        row = {"method": row_label(of_method[0]), "seeds": len(of_method) if is_trained(method) else "-"}
        for name, label in {objective: objective, f"{objective}_ood": f"under held-out {held_out}", **columns}.items():
            row[label] = _cell([m for result in of_method for m in result.metrics if m.metric == name], method)
        row[f"{objective} at matched utility"] = _cell(
            [m for result in of_method for m in result.matched if m.metric == objective], method
        )
        chosen = sorted({result.matched_lambda for result in of_method if result.matched_lambda is not None})
        row["lambda"] = ", ".join(f"{factor:g}" for factor in chosen) or "-"
        rows.append(row)
    table = pd.DataFrame(rows)
    return table[[column for column in table if not (table[column] == "-").all()]]


def overview_table(results: Mapping[str, Sequence[Result]]) -> pd.DataFrame:
    """Behaviour alone, as `seen_of` takes it: a row per method, a column per experiment and share of swapped pairs. Of
    a method trained on several kinds of pairs the first kind is shown."""
    import pandas as pd

    columns = {
        title: {METHODS[method].label: _cell(of_method, method) for method, of_method in column.items()}
        for title, column in _behaviour_columns(results).items()
    }
    table = pd.DataFrame(columns).rename_axis("method").reset_index()
    return table[(table.drop(columns="method") != "-").any(axis=1)]


WITHIN = 2
"""Prompts that a row may be behind the best one of its column: our bar for a recipe on a real student."""


def behind_table(results: Mapping[str, Sequence[Result]]) -> pd.DataFrame:
    """How many prompts a trained method is behind the best one, by the means over seeds: the columns of
    `overview_table`, and in how many of those where it was measured it is within `WITHIN`. The nearest first."""
    import pandas as pd

    behind: dict[str, dict[str, float]] = {}
    for title, column in _behaviour_columns(results).items():
        of = {
            method: sum(m.value * m.n for m in metrics) / len(metrics)
            for method, metrics in column.items()
            if metrics and is_trained(method)
        }
        for method, prompts in of.items():
            behind.setdefault(method, {})[title] = max(of.values()) - prompts
    within = {method: sum(prompts <= WITHIN for prompts in row.values()) for method, row in behind.items()}
    rows = [
        {"method": METHODS[method].label}
        | {title: f"{row[title]:.1f}" if title in row else "-" for title in _behaviour_columns(results)}
        | {f"within {WITHIN}": f"{within[method]} of {len(row)}"}
        for method, row in sorted(behind.items(), key=lambda one: (-within[one[0]], max(one[1].values())))
    ]
    return pd.DataFrame(rows)


def _behaviour_columns(results: Mapping[str, Sequence[Result]]) -> dict[str, dict[str, list[Metric]]]:
    """Title of a column -> method -> its metrics of behaviour, one a seed; untrained rows are in every column."""
    columns: dict[str, dict[str, list[Metric]]] = {}
    for experiment, found in results.items():
        metric, _ = seen_of(found)
        shares = sorted({result.swapped for result in found if is_trained(result.method)}) or [0.0]
        for share in shares:
            said = f", {share:.0%} swapped" if share else ", as found" if len(shares) > 1 else ""
            column = columns[experiment + said] = {}
            for method in METHODS:
                of_method = [
                    result
                    for result in found
                    if result.method == method and (result.swapped == share or not is_trained(method))
                ]
                column[method] = [
                    m
                    for result in of_method
                    if result.variant == of_method[0].variant
                    for m in result.metrics
                    if m.metric == metric
                ]
    return columns


def by_row(results: Sequence[Result]) -> list[list[Result]]:
    """The results of each row of the table, in the order of its first one."""
    return [
        [result for result in results if result.row == row] for row in dict.fromkeys(result.row for result in results)
    ]


def objective_of(results: Sequence[Result]) -> tuple[str, str]:
    """(metric of behaviour, what its held-out prompts hold out) of the experiment that the results belong to."""
    objective, held_out = OBJECTIVES[results[0].metrics[0].experiment]
    if any(metric.metric == REAL for metric in results[0].metrics):
        return REAL, held_out if held_out == "wrappers" else "wordings"
    return objective, held_out


def seen_of(results: Sequence[Result]) -> tuple[str, str]:
    """(metric, its name for a figure) by which behaviour is drawn: the oracle's in a miniature; of a real student what
    a rater labelled where every row has labels, else what is counted."""
    objective, _ = objective_of(results)
    if objective != REAL:
        return objective, f"{objective} (oracle)"
    labelled = all(any(metric.metric == "labelled" for metric in result.metrics) for result in results)
    return ("labelled", "aligned (labelled by a rater)") if labelled else (objective, objective)


def _cell(metrics: Sequence[Metric], method: str) -> str:
    if not metrics:
        return "-"
    if not is_trained(method):
        metrics = metrics[:1]
    if len(metrics) > 2 and not metrics[0].metric.endswith("_corrected"):
        value, low, high = seed_interval([metric.value for metric in metrics])
    else:  # a t-interval over two seeds says nothing, with its one degree of freedom
        value, low, high = (
            sum(m.value for m in metrics) / len(metrics),
            min(m.low for m in metrics),
            max(m.high for m in metrics),
        )
    digits = 2 if abs(value) < 10 else 1
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def table_rows(results: Sequence[Result]) -> list[dict]:
    """Everything measured (`common.report.measurements`), to four decimals; `method` is the row, matched metrics carry
    the suffix `_matched`."""
    measured = [
        (result, metric, suffix)
        for result in results
        for suffix, metrics in (("", result.metrics), ("_matched", result.matched))
        for metric in metrics
    ]
    return [
        {"experiment": metric.experiment, "method": result.row, "noise": metric.noise, "seed": metric.seed, "metric": metric.metric + suffix, "n": metric.n,
         **{name: round(getattr(metric, name), 4) for name in ("value", "low", "high")}}
        for result, metric, suffix in measured
    ]  # fmt: skip


def write_tables(results: Sequence[Result], folder: str | Path, note: str) -> dict[str, Path]:
    """The table as Markdown, LaTeX and HTML, and everything measured as CSV; `note` stands below the table. Returns the
    paths."""
    written = write_table(results_table(results), folder, note)
    return written | {"table.csv": write_measurements(Path(folder, "table.csv"), table_rows(results))}


def write_table(table: pd.DataFrame, folder: str | Path, note: str, typeset: str | Path = "") -> dict[str, Path]:
    """`table.md` in a folder, `table.tex` and `table.html` in the folder `typeset` or the same, each with the note
    below; returns the paths."""
    contents = {
        Path(folder, "table.md"): f"{table.to_markdown(index=False)}\n\n{note}\n",
        Path(typeset or folder, "table.tex"): f"{table.to_latex(index=False, escape=True)}% {note}\n",
        Path(typeset or folder, "table.html"): f"{table.to_html(index=False)}\n<p>{note}</p>\n",
    }
    return {path.name: write_whole(path, text) for path, text in contents.items()}


def value_of(result: Result, metric: str) -> float:
    """Of the split asked for, adapter as trained."""
    return next(m.value for m in result.metrics if m.metric == metric)
