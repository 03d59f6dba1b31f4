"""Equal tuning: every trained method tries the same settings on the validation split and keeps the best by one
criterion.

    python -m common.notebook.tune PROFILE [--experiment NAME] [--method NAME]

tries what `common/profiles/<profile>/tuning.yaml` lists on the pairs that `reward_score` has left in `runs/<profile>/`,
and writes `results/<profile>/<experiment>/trials.json`, with a line for every trial in `trials.csv` beside it;
`train_rdpo` takes each method's choice from there (`tuned`).
Trials are kept like any other training, so a stopped search goes on where it was. Search space and criterion are ours.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

from filelock import FileLock

from common.evaluation.metrics import to_choose_by
from common.evaluation.result import Result
from common.methods import is_trained
from common.methods.settings import setting_names
from common.runtime import Progress
from common.storage import write_json, write_whole
from common.training.comparison import Experiment
from common.training.kept import Setting

CRITERION = "mean of reward (the share of answers that the judge of the pairs finds good; of a real student only where they are also to the point, do not loop and are language to the untrained student) and utility (in the miniature as that judge sees it), on the validation split, over seeds; the first setting on a tie"

OF_TRIAL = ("method", "swapped", "seed", "criterion")
Trial = tuple[str, Setting, Result]
LEFT_OUT = ("answer_words", "gibberish", "judged", "style")
"""Metrics that no choice is made or compared by."""


def settings_of(space: Mapping[str, Sequence[Any]]) -> list[Setting]:
    """Every combination of the space's values, in its order. `learning_rate` is the rate of every method, SFT and dSC
    included. Raises ValueError for values that are no list of numbers."""
    for name, values in space.items():
        if (
            isinstance(values, str)
            or not isinstance(values, Sequence)
            or not values
            or not all(isinstance(one, int | float) for one in values)
        ):
            raise ValueError(
                f"tuning: {name} = {values!r}: give a list of numbers, such as [2.0e-4, 5.0e-4]; YAML reads 2e-4 as a text"
            )
    settings = [dict(zip(space, values)) for values in product(*space.values())]
    return [
        {**setting, "sft_learning_rate": setting["learning_rate"]} if "learning_rate" in setting else setting
        for setting in settings
    ]


def criterion(result: Result) -> float:
    """See `CRITERION`: what a practitioner has who owns the reward judge and no truth."""
    return to_choose_by(result.metrics, "reward")


def tune(run: Experiment, methods: Sequence[str], settings: Sequence[Setting], swapped: float) -> Iterator[list[Trial]]:
    """Of one trained method after the other its result under every setting, seed 0, kept in a folder of the setting's
    own below the run's. Raises ValueError where the criterion could not be measured, before anything is trained."""
    if not getattr(run.evaluator, "reward_judge", None) or "benign" not in run.evaluator.sets("validation"):
        raise ValueError("trials need reward_judge, of a real student, and benign prompts of split validation")
    trained = [method for method in methods if is_trained(method)]
    progress = Progress("trials", len(trained) * len(settings))
    return (_trials_of(method, run, settings, swapped, progress) for method in trained)


def _trials_of(
    method: str, run: Experiment, settings: Sequence[Setting], swapped: float, progress: Progress
) -> list[Trial]:
    trials = []
    for setting in settings:
        folder = run.output / "tuning" / ",".join(f"{name}-{value:g}" for name, value in setting.items())
        trial = run.with_settings(run.settings.changed(**setting), folder)
        trials.append((method, setting, trial.result(method, 0, swapped)))
        progress(1)
    return trials


def write_trials(trials: Sequence[Trial], path: Path) -> dict[str, Setting]:
    """Writes each method's choice, which is returned, and beside it every trial (`read_trials`). Trials of other methods
    that are there stay."""
    rows = [
        {"method": method, "swapped": result.swapped, "seed": result.seed, "setting": setting, "criterion": round(criterion(result), 4),
         "metrics": {m.metric: round(m.value, 4) for m in result.metrics if m.metric not in LEFT_OUT}}
        for method, setting, result in trials
    ]  # fmt: skip
    tried = {row["method"] for row in rows}
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):  # other methods may be tried beside
        rows = [row for row in read_trials(path) if row["method"] not in tried] + rows
        chosen = chosen_by(rows, lambda row: row["criterion"])
        lines = [{name: row[name] for name in OF_TRIAL} | row["setting"] | row["metrics"] for row in rows]
        text, names = io.StringIO(), list(dict.fromkeys(name for line in lines for name in line))
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
        write_whole(path.with_suffix(".csv"), text.getvalue())
        write_json(path, {"criterion": CRITERION, "split": "validation", "chosen": chosen})
    return chosen


def read_trials(path: Path) -> list[dict[str, Any]]:
    """The trials beside the choices in `path`, in the order made: method, swapped, seed, criterion, setting by name, and
    the values of metrics by name. None where no file is; a file of earlier days holds them itself."""
    if not path.with_suffix(".csv").exists():
        before = json.loads(path.read_text(encoding="utf-8")).get("trials", []) if path.exists() else []
        return [row | {"metrics": {name: value for name, (value, _) in row["metrics"].items()}} for row in before]
    with path.with_suffix(".csv").open(encoding="utf-8", newline="") as file:
        lines = [{name: cell for name, cell in line.items() if cell} for line in csv.DictReader(file)]
    trials, of_settings = [], setting_names()
    for line in lines:
        values = {name: cell if name == "method" else json.loads(cell) for name, cell in line.items()}
        rest = {name: value for name, value in values.items() if name not in OF_TRIAL and not name.endswith("_n")}
        setting = {name: value for name, value in rest.items() if name in of_settings}
        metrics = {name: value for name, value in rest.items() if name not in setting}
        trials.append({**{name: values[name] for name in OF_TRIAL}, "setting": setting, "metrics": metrics})
    return trials


def chosen_by(trials: Sequence[Mapping[str, Any]], value: Callable[[Mapping[str, Any]], float]) -> dict[str, Setting]:
    """Method -> the setting whose trials, one a seed, have the highest mean value; the first on a tie."""
    values: dict[str, dict[str, list[float]]] = {}
    for row in trials:
        values.setdefault(row["method"], {}).setdefault(json.dumps(row["setting"]), []).append(value(row))
    return {
        method: json.loads(max(tried, key=lambda setting: mean(tried[setting]))) for method, tried in values.items()
    }
