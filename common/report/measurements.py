"""Tables of measurements as CSV: a line for each student, its metrics side by side, nothing lost and nothing written
twice.

A measurement is a dict: what names the student (`STUDENT`, or some of it), `metric`, `value`, `n`, `low` and `high`.
The bounds are None where the file has none: a share's follow from value and n (`interval_of`).
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from common.schema import Metric
from common.statistics import wilson_interval
from common.storage import write_whole

STUDENT = ("experiment", "method", "noise", "judge_error", "seed", "cell")
SUFFIXES = ("", "_n", "_low", "_high")
"""Of the columns of a metric: value, n, low, high."""


def measurement_of(metric: Metric) -> dict[str, Any]:
    """A metric's own part of a measurement, numbers to four decimals."""
    numbers = {name: round(getattr(metric, name), 4) for name in ("value", "low", "high")}
    return {"metric": metric.metric, "n": metric.n, **numbers}


def student_of(measurement: Mapping[str, Any]) -> str:
    """What tells the student of a measurement from all others of its table; tables are sorted by it."""
    return json.dumps([measurement.get(name) for name in ("experiment", "cell", "method", "seed")], sort_keys=True)


def write_measurements(path: str | Path, measurements: Iterable[Mapping[str, Any]]) -> Path:
    """Writes the CSV, from the first to the last byte at once. `_n` is left empty where it is the one above in its
    column, 1 at first; `_low` and `_high` for the usual interval: Wilson's to four decimals, or where n is 1 the value.
    """
    rows: dict[str, dict[str, Any]] = {}
    above: dict[str, int] = {}
    for found in sorted(measurements, key=student_of):
        row = rows.setdefault(
            student_of(found),
            {
                name: json.dumps(found[name], separators=(",", ":")) if name == "cell" else found[name]
                for name in STUDENT
                if name in found
            },
        )
        metric, value, n, low, high = (found[name] for name in ("metric", "value", "n", "low", "high"))
        row[metric] = value
        if n != above.get(metric, 1):
            row[f"{metric}_n"] = above[metric] = n
        if low is not None and (low, high) != _usual_interval(value, n):
            row[f"{metric}_low"], row[f"{metric}_high"] = low, high
    used = {column for row in rows.values() for column in row}
    columns = [*STUDENT, *(metric + suffix for metric in sorted(filter(_is_metric, used)) for suffix in SUFFIXES)]
    text = io.StringIO()
    writer = csv.DictWriter(text, [column for column in columns if column in used], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows.values())
    return write_whole(path, text.getvalue())


def read_measurements(path: str | Path) -> list[dict[str, Any]]:
    """What `write_measurements` wrote, sorted by student and metric. Raises FileNotFoundError."""
    above: dict[str, int] = {}
    with open(path, newline="", encoding="utf-8") as file:
        return [found for row in csv.DictReader(file) for found in _measurements(row, above)]


def interval_of(measurement: Mapping[str, Any]) -> tuple[float, float]:
    """(low, high), where the file leaves them out the usual interval of a share."""
    if measurement["low"] is not None:
        return measurement["low"], measurement["high"]
    return _usual_interval(measurement["value"], measurement["n"])


def _measurements(row: Mapping[str, str], above: dict[str, int]) -> Iterator[dict[str, Any]]:
    """Those of a row; above: the last n of every metric, brought up to date."""
    about = {
        name: row[name] if name in ("experiment", "method") else _number(row[name]) for name in STUDENT if name in row
    }
    for metric, text in row.items():
        if text and _is_metric(metric):
            value, n, low, high = (_number(row.get(metric + suffix)) for suffix in SUFFIXES)
            above[metric] = n or above.get(metric, 1)
            yield {**about, "metric": metric, "value": value, "n": above[metric], "low": low, "high": high}


def _number(text: str | None) -> Any:
    """What a cell holds, None where it is empty."""
    return json.loads(text) if text else None


def _is_metric(column: str) -> bool:
    return column not in STUDENT and not column.endswith(SUFFIXES[1:])


@lru_cache(maxsize=None, typed=True)
def _usual_interval(value: float, n: int) -> tuple[float, float]:
    """(value, value) where n is 1, and for what is no rate."""
    if n == 1 or not 0 <= value <= 1:
        return value, value
    low, high = wilson_interval(round(value * n), n)
    return round(low, 4), round(high, 4)
