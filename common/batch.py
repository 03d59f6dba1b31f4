"""The grid of notebooks, unattended: strict parameters, nothing run twice, a report of what failed.

    rdpo batch miniature --experiment safety --stage train_rdpo --method rdpo --seed 0 -p epochs 2 --dry-run

A profile is a folder `common/profiles/<profile>/` with one flat YAML file per kind of notebook, valid for
`papermill -f` as it stands, and where experiments differ a second one, `<experiment>/<stage>.yaml`. Executed notebooks
go to `runs/<profile>/<experiment>/<stage>.ipynb` (`--to` names another folder below runs/), what they print to
`<stage>.log` beside them; with other pairs than those of self-critique to a folder of that name below, from which the
tables take its rows too. Each job gets its share of the CPU's threads; notebooks that use a GPU take turns on it. With
`--engine ray` the notebooks run on the nodes of a Ray cluster (docs/scale.md).
"""

from __future__ import annotations

import argparse
import ast
import os
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from common.command import CommandParser
from common.data.counterfactual import PAIRS
from common.engines import RayPool, add_engine, opened_store
from common.notebook.execute import checked_parameters, execute, is_finished
from common.notebook.grid import Step, needs_of_step, place_of, run_grid, threads_each
from common.notebook.parameters import INPUTS, PARAMETERS
from common.notebook.profiles import (
    STAGES,
    experiments,
    more_parameters,
    own_pairs,
    preparation,
    stage_parameters,
)
from common.runtime import escape_what_the_terminal_lacks, nearest, resolve, yaml_mapping
from common.storage.shards import folder_of


def steps_of(
    experiment: str,
    stages: Sequence[str],
    profile: str,
    overrides: dict[str, Any],
    kinds: Sequence[str] = (),
    to: str = "",
    shard: str = "",
) -> list[Step]:
    """The notebooks of one experiment in order, or of one shard of it, for one kind of pairs after the other, by default
    the profile's own; each is given those overrides that it declares."""
    steps = []
    for pairs, stage in ((pairs, stage) for pairs in kinds or [own_pairs(profile, experiment)] for stage in stages):
        mine = {name: value for name, value in overrides.items() if name in PARAMETERS[stage].model_fields}
        if stage == "train_rdpo" and "reward_score" in stages:
            mine.pop("pairs_file", None)  # it is what step 2 scores; step 3 takes the scores
        given = {**stage_parameters(experiment, stage, profile, pairs, to), **mine}
        if shard:
            given["output"] = f"{given['output']}/{folder_of(shard)}"
            given |= {"shard": shard} if stage == STAGES[0] else {}
        if stage in INPUTS and not given.get(
            "pairs_file"
        ):  # named, so that a change of the file runs the notebook again
            given["pairs_file"] = f"{given['output']}/{INPUTS[stage]}"
        steps.append(Step(experiment, stage, given, pairs, shard))
    return steps


def parser() -> CommandParser:
    """The arguments of `rdpo batch`."""
    command = CommandParser("batch", __doc__)
    command.add_argument("profile")
    command.add_argument("--experiment", action="append", help="default: all")
    command.add_argument("--stage", action="append", choices=STAGES, help="default: all three")
    command.add_argument("--seed", action="append", type=int)
    command.add_argument("--method", action="append")
    command.add_argument(
        "--pairs", action="append", help=f"{', '.join(PAIRS)}; default: the profile's, else {PAIRS[0]}"
    )
    command.add_argument(
        "-f",
        action="append",
        default=[],
        metavar="NAME",
        help="more parameters, from NAME.yaml beside the profile's files",
    )
    command.add_argument(
        "--to", default="", metavar="NAME", help="folder below runs/ for what is made; default: the profile's name"
    )
    command.add_argument(
        "-p",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "VALUE"),
        help="any parameter of the notebooks; a list as 0,1 or [0, 1]",
    )
    command.add_argument(
        "-y", action="append", default=[], metavar="YAML", help="the same as YAML, such as 'seeds: [0, 1]'"
    )
    command.add_argument(
        "--shard",
        action="append",
        default=[],
        metavar="I/N",
        help="only a part of the prompts, in steps 1 and 2; rdpo merge merges the N parts",
    )
    command.add_argument("--jobs", type=int, help="experiments side by side; default: 1, on a cluster all")
    add_engine(command)
    command.add_argument(
        "--dry-run",
        action="store_true",
        help="say what would run, with which parameters, at what cost, and run nothing",
    )
    command.add_argument(
        "--only-failed", action="store_true", help="only experiments that failed, from the failed notebook on"
    )
    return command


def main(arguments: list[str] | None = None) -> int:
    asked = parser().parse_args(arguments)
    escape_what_the_terminal_lacks()
    try:
        threads_each(1 if asked.jobs is None else asked.jobs)
        store = opened_store(asked)
        names = _known(asked.experiment or experiments())
        from_files = more_parameters(asked.profile, asked.f)
        overrides = from_files | _overrides(asked)
        stages = [stage for stage in STAGES if stage in (asked.stage or (STAGES[:2] if asked.shard else STAGES))]
        if asked.shard and STAGES[2] in stages:
            raise ValueError(
                f"--shard {asked.shard[0]}: is for {' and '.join(STAGES[:2])}; merge the shards, then train"
            )
        grid = {
            f"{name} {shard}".strip(): steps_of(
                name, stages, asked.profile, overrides, asked.pairs or (), asked.to, shard
            )
            for shard in asked.shard or [""]
            for name in names
        }
        _check(grid, overrides, from_files)
        places = [place_of(step) for steps in grid.values() for step in steps] if store else []
        for place in [] if asked.dry_run else places:
            store.share(place)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if asked.only_failed:
        grid = {
            name: steps[next(i for i, step in enumerate(steps) if step.failed_before()) :]
            for name, steps in grid.items()
            if any(step.failed_before() for step in steps)
        }
    if asked.dry_run:
        if (profile := preparation(asked.profile)) and not profile.is_prepared():
            print(f"python -m {profile.__name__} would run first: it downloads the data and makes the students")
        return 0 if all([_rehearse(steps) for steps in grid.values()]) else 1
    cluster, jobs = None, asked.jobs or 1
    if asked.engine == "ray" and grid:
        folders = [step.executed.parent for steps in grid.values() for step in steps]
        try:
            cluster = RayPool(asked.address, Path(os.path.commonpath(folders)), needs_of_step, store)
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        jobs = asked.jobs or len(grid)
    if "generate_data" in stages and (profile := preparation(asked.profile)):
        profile.prepare(experiments=names)
    failures = run_grid(grid, jobs, cluster)
    try:
        for place in places:
            store.copy_in(place)
    except Exception as error:  # every file system has its own
        reason = " ".join(str(error).split())
        failures.append(f"--store {store.url}: cannot be read ({reason}); run the command again when it can")
    if grid and not failures and "train_rdpo" in stages:
        name = asked.to or asked.profile
        runs = f"runs/{name}"
        parameters = {"profile": asked.profile, "runs": runs, "output": f"{runs}/tables", "labels": f"results/{name}"}
        execute("paper_tables.ipynb", resolve(f"{runs}/tables/paper_tables.ipynb"), parameters, again=True)
        print(f"executed notebooks and their logs are below {resolve(runs)}")
    for failure in failures:
        print(f"FAILED {failure}", file=sys.stderr)
    return 1 if failures else 0


def _rehearse(steps: list[Step]) -> bool:
    """Says what the steps of an experiment would do and take; False where one could not."""
    from common.notebook.preflight import forecast
    from common.notebook.prompts import open_prompts  # heavy: brings torch

    prompts, possible = [], True
    for step in steps:
        parameters = checked_parameters(step.notebook, step.given)
        finished = is_finished(step.notebook, step.executed, parameters.model_dump())
        print(
            f"{step.name}: {'finished, would be reused' if finished else 'would run'} with {', '.join(f'{k}={v}' for k, v in step.given.items())}"
        )
        try:
            prompts = open_prompts(parameters) if step.stage == "generate_data" else prompts
            for line in [] if finished else forecast(step.stage, parameters, prompts, ask=True):
                print(f"  {line}")
        except (ValueError, OSError, RuntimeError) as problem:
            print(f"  CANNOT RUN: {problem}")
            possible = False
    return possible


def _overrides(asked: argparse.Namespace) -> dict[str, Any]:
    """What the command line gives, as Python would take it; a parameter that is a text stays one, though it looks like
    a number."""
    kinds = {name: field.annotation for stage in STAGES for name, field in PARAMETERS[stage].model_fields.items()}
    overrides = {name: value for text in asked.y for name, value in yaml_mapping("-y", text).items()}
    overrides |= {name: _literal(text, kinds.get(name)) for name, text in asked.p}
    if asked.seed:
        overrides["seeds"] = asked.seed
    if asked.method:
        overrides["methods"] = asked.method
    return overrides


def _literal(text: str, kind: Any) -> Any:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    if kind is str and not isinstance(value, str):  # quotes go, as in ''
        return text
    return list(value) if isinstance(value, tuple) else value


def _known(names: list[str]) -> list[str]:
    unknown = [name for name in names if name not in experiments()]
    if unknown:
        raise ValueError(
            f"unknown experiment {', '.join(unknown)}{nearest(unknown[0], experiments())}; there are {', '.join(experiments())}"
        )
    return names


def _check(grid: dict[str, list[Step]], overrides: dict[str, Any], from_files: Collection[str]) -> None:
    """Every parameter of every notebook that will run, before the first kernel starts."""
    if "pairs" in overrides:
        raise ValueError(
            f"give --pairs {overrides['pairs']} in place of -p pairs: each kind of pairs has a folder of its own"
        )
    steps = [step for of_experiment in grid.values() for step in of_experiment]
    for step in steps:
        checked_parameters(step.notebook, step.given)
    if len({step.executed for step in steps}) < len(steps):
        raise ValueError(
            "two runs would share a folder: -p output is for one --experiment and one kind of --pairs, and recorded pairs take the place of self_critique"
        )
    for name in [name for name in overrides if not any(name in step.given for step in steps)]:
        elsewhere = name in from_files and any(name in PARAMETERS[stage].model_fields for stage in STAGES)
        if not elsewhere:  # a file is for every notebook of the profile, whichever of them run
            checked_parameters(steps[-1].notebook, {name: overrides[name]})


if __name__ == "__main__":
    sys.exit(main())
