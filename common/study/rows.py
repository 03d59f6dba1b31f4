"""The rows of the study (`results/evidence/table.csv`), by experiment, cell, method and metric."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.methods import is_trained, sees_scores
from common.report.measurements import interval_of, read_measurements
from common.report.tables import OBJECTIVES
from common.study.design import FEW, Cell

CENTRE = Cell()


class Study:
    """The rows of a `table.csv`. Raises FileNotFoundError for a path without one."""

    def __init__(self, path: str | Path):
        if not Path(path).exists():
            raise FileNotFoundError(f"no rows at {path}; python -m common.study makes them")
        self.lines: dict[tuple, dict[int, dict[str, Any]]] = {}
        for line in read_measurements(path):
            self.lines.setdefault((line["experiment"], _key(line["cell"]), line["method"], line["metric"]), {})[
                line["seed"]
            ] = line

    def of(self, experiment: str, metric: str, method: str, **cell: Any) -> dict[int, float]:
        """Seed -> value of a method in the cell that differs from the centre so; {} where nothing was measured."""
        shared = (
            ("judge_error", "blind_to", "binary")
            if is_trained(method) and not sees_scores(method) and not metric.startswith("reward")
            else ()
        )  # one training for all judges
        unlike = {
            name: value for name, value in cell.items() if value != getattr(CENTRE, name, None) and name not in shared
        }
        return {
            seed: line["value"] for seed, line in self.lines.get((experiment, _key(unlike), method, metric), {}).items()
        }

    def few(self, experiment: str, metric: str, method: str, **cell: Any) -> dict[int, float]:
        """`of` on the seeds that all cells have, so that points of different cells have the same students behind them."""
        return {seed: value for seed, value in self.of(experiment, metric, method, **cell).items() if seed in FEW}

    def interval(self, experiment: str, metric: str, method: str, seed: int) -> tuple[float, float]:
        """Over prompts, of one seed at the centre."""
        return interval_of(self.lines[experiment, _key({}), method, metric][seed])

    def experiments(self) -> list[str]:
        return [name for name in OBJECTIVES if any(key[0] == name for key in self.lines)]


def _key(cell: Mapping[str, Any]) -> str:
    return json.dumps(cell, sort_keys=True)


def behaviour(experiment: str) -> str:
    """The metric of the headline: wanted behaviour at matched utility, by the oracle."""
    return f"{OBJECTIVES[experiment][0]}_matched"


def paired(first: Mapping[int, float], second: Mapping[int, float]) -> list[float]:
    """first - second for every seed that both have."""
    return [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]
