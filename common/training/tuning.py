"""Equal tuning: every trained method tries the same settings on the validation split and keeps the best by one
criterion.

    python -m common.notebook.tune PROFILE [--experiment NAME] [--method NAME]

tries what `common/profiles/<profile>/tuning.yaml` lists on the pairs that `reward_score` has left in `runs/<profile>/`,
and writes `results/<profile>/<experiment>/trials.json`; `train_rdpo` takes each method's choice from there (`tuned`).
Trials are kept like any other training, so a stopped search goes on where it was. Search space and criterion are ours.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

from common.evaluation.result import Result
from common.methods import is_trained
from common.runtime import Progress
from common.storage import write_json
from common.training.comparison import Experiment
from common.training.kept import Setting

CRITERION = "mean of reward (the share of answers that the judge of the pairs finds good) and utility (in the miniature as that judge sees it), on the validation split, over seeds; the first setting on a tie"


def settings_of(space: Mapping[str, Sequence[Any]]) -> list[Setting]:
    """Every combination of the space's values, in its order. `learning_rate` is the rate of every method, SFT and dSC
    included."""
    settings = [dict(zip(space, values)) for values in product(*space.values())]
    return [
        {**setting, "sft_learning_rate": setting["learning_rate"]} if "learning_rate" in setting else setting
        for setting in settings
    ]


def criterion(result: Result) -> float:
    """See `CRITERION`: what a practitioner has who owns the reward judge and no truth. Between 0 and 1, higher is
    better."""
    values = {metric.metric: metric.value for metric in result.metrics}
    return (values["reward"] + values.get("reward_utility", values["utility"])) / 2


def tune(
    run: Experiment, methods: Sequence[str], settings: Sequence[Setting], swapped: float
) -> list[tuple[str, Setting, Result]]:
    """A result of every trained method under every setting, seed 0, kept in a folder of the setting's own below the
    run's. Raises ValueError where the criterion could not be measured, before anything is trained."""
    if not getattr(run.evaluator, "reward_judge", None) or "benign" not in run.evaluator.sets("validation"):
        raise ValueError("trials need reward_judge, of a real student, and benign prompts of split validation")
    trials = []
    tried = [(setting, method) for setting in settings for method in methods if is_trained(method)]
    progress = Progress("trials", len(tried))
    for setting, method in tried:
        folder = run.output / "tuning" / ",".join(f"{name}-{value:g}" for name, value in setting.items())
        trial = run.with_settings(run.settings.changed(**setting), folder)
        trials.append((method, setting, trial.result(method, 0, swapped)))
        progress(1)
    return trials


def write_trials(trials: Sequence[tuple[str, Setting, Result]], path: Path) -> dict[str, Setting]:
    """Writes every trial with its metrics as [value, n], and each method's choice, which is returned. Trials of other
    methods that the file holds stay."""
    rows = [
        {"method": method, "swapped": result.swapped, "seed": result.seed, "setting": setting, "criterion": round(criterion(result), 4),
         "metrics": {m.metric: [round(m.value, 4), m.n] for m in result.metrics}}
        for method, setting, result in trials
    ]  # fmt: skip
    tried = {row["method"] for row in rows}
    others = (
        [row for row in json.loads(path.read_text(encoding="utf-8"))["trials"] if row["method"] not in tried]
        if path.exists()
        else []
    )
    chosen = chosen_by(others + rows, lambda row: row["criterion"])
    write_json(path, {"criterion": CRITERION, "split": "validation", "chosen": chosen, "trials": others + rows})
    return chosen


def chosen_by(trials: Sequence[Mapping[str, Any]], value: Callable[[Mapping[str, Any]], float]) -> dict[str, Setting]:
    """Method -> the setting whose trials, one a seed, have the highest mean value; the first on a tie."""
    values: dict[str, dict[str, list[float]]] = {}
    for row in trials:
        values.setdefault(row["method"], {}).setdefault(json.dumps(row["setting"]), []).append(value(row))
    return {
        method: json.loads(max(tried, key=lambda setting: mean(tried[setting]))) for method, tried in values.items()
    }
