"""Tune every method of a profile with the same budget: the trials of its `tuning.yaml`, on the validation split.

rdpo tune small --experiment safety --method dpo
"""

from __future__ import annotations

from collections.abc import Sequence

from common.command import CommandParser
from common.notebook.execute import checked_parameters
from common.notebook.profiles import PROFILES, experiments, own_pairs, stage_parameters
from common.notebook.students import open_experiment
from common.runtime import errors_in_a_line, quiet_libraries, resolve
from common.storage import read_yaml
from common.training.tuning import settings_of, tune, write_trials


def parser() -> CommandParser:
    """The arguments of `rdpo tune`."""
    command = CommandParser("tune", __doc__)
    command.add_argument("profile")
    command.add_argument("--experiment", action="append", help="default: all")
    command.add_argument("--method", action="append", help="default: those of the profile")
    return command


def main(arguments: list[str] | None = None) -> None:
    asked = parser().parse_args(arguments)
    quiet_libraries()
    with errors_in_a_line("tuning"):
        for experiment in asked.experiment or experiments():
            _tune_experiment(asked.profile, experiment, asked.method)


def _tune_experiment(profile: str, experiment: str, methods: Sequence[str] | None) -> None:
    own = stage_parameters(experiment, "train_rdpo", profile, own_pairs(profile, experiment)) | {
        "evaluate_on": "validation",
        "tuned": "",
    }
    parameters = checked_parameters(f"{experiment}/train_rdpo.ipynb", own | ({"methods": methods} if methods else {}))
    space = read_yaml((PROFILES / profile / "tuning.yaml").read_text(encoding="utf-8"))
    path = resolve(f"results/{profile}/{experiment}/trials.json")
    for trials in tune(open_experiment(parameters), parameters.methods, settings_of(space), parameters.swapped[0]):
        print(f"{path}: {write_trials(trials, path)}", flush=True)


if __name__ == "__main__":
    main()
