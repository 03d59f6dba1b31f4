"""The grid of notebooks, unattended: strict parameters, nothing run twice, a report of what failed.

    python -m common.batch PROFILE [--experiment NAME] [--stage NAME] [--seed N] [--method NAME] [-p NAME VALUE] [--jobs N]

A profile is a folder `common/profiles/<profile>/` with one flat YAML file per kind of notebook, valid for
`papermill -f` as it stands. Executed notebooks go to `runs/<profile>/<experiment>/<stage>.ipynb`.
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from common.run import ROOT, check_parameters, resolve
from common.schema import fingerprint

STAGES = ("generate_data", "reward_score", "train_rdpo")
PROFILES = Path(__file__).parent / "profiles"


def experiments() -> list[str]:
    """Folders at the top level that hold all three notebooks."""
    return sorted(path.parent.name for path in ROOT.glob("*/generate_data.ipynb") if all((path.parent / f"{s}.ipynb").exists() for s in STAGES))


def profile_parameters(profile: str, stage: str) -> dict[str, Any]:
    """The parameters of a kind of notebook in a profile. Raises ValueError naming the profiles there are."""
    path = PROFILES / profile / f"{stage}.yaml"
    if not path.exists():
        there = ", ".join(sorted(folder.name for folder in PROFILES.iterdir()))
        raise ValueError(f"unknown profile {profile!r} for {stage}; there are {there}")
    return yaml.safe_load(path.read_text(encoding="utf-8")) or {}


def stage_parameters(experiment: str, stage: str, profile: str) -> dict[str, Any]:
    """The profile's parameters of a stage, with the folder and the input file of this experiment."""
    output = f"runs/{profile}/{experiment}"
    inputs = {"reward_score": {"pairs_file": f"{output}/pairs.jsonl"}, "train_rdpo": {"pairs_file": f"{output}/scored.jsonl"}}
    return {**profile_parameters(profile, stage), "experiment": experiment, "profile": profile, "output": output, **inputs.get(stage, {})}


def declared_parameters(notebook: str | Path) -> dict[str, Any]:
    """Names, types and defaults of a notebook's `parameters` cell, as the namespace that running the cell leaves."""
    cells = json.loads(resolve(notebook).read_text(encoding="utf-8"))["cells"]
    source = ["".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    if len(source) != 1:
        raise ValueError(f"{notebook} has {len(source)} cells tagged `parameters`, one is wanted")
    namespace: dict[str, Any] = {}
    exec(compile(source[0], str(notebook), "exec", dont_inherit=True), namespace)
    return {name: value for name, value in namespace.items() if name != "__builtins__"}


def checked_parameters(notebook: str | Path, given: dict[str, Any]) -> dict[str, Any]:
    """Defaults with the given values on top. Raises ValueError for an unknown or mistyped one, before any kernel starts."""
    try:
        return check_parameters({**declared_parameters(notebook), **given})
    except ValueError as error:
        raise ValueError(f"{notebook}: {error}") from None


def execute(notebook: str | Path, executed: str | Path, given: dict[str, Any], again: bool = False) -> bool:
    """Runs a notebook through papermill unless its last run had the same code, parameters and input files (or `again`).

    Returns whether it ran. Raises papermill's error when a cell fails; the executed copy then shows it.
    """
    import papermill
    from traitlets.config import Config

    executed = Path(executed)
    parameters = checked_parameters(notebook, given)
    made_of, mark = _made_of(notebook, parameters), executed.with_suffix(".done.json")
    if not again and mark.exists() and executed.exists() and json.loads(mark.read_text())["made_of"] == made_of:
        print(f"{executed.relative_to(ROOT) if executed.is_relative_to(ROOT) else executed}: finished before with the same code, data and parameters, reused", flush=True)
        return False
    executed.parent.mkdir(parents=True, exist_ok=True)
    mark.unlink(missing_ok=True)
    start = time.perf_counter()
    print(f"{notebook}: running", flush=True)
    papermill.execute_notebook(
        str(resolve(notebook)), str(executed), parameters=given, cwd=str(ROOT), kernel_name="python3",
        progress_bar=False, stdout_file=sys.stdout,
        config=Config(KernelManager={"transport": "ipc"}),  # Unix sockets: kernels side by side never fight for ports
    )  # fmt: skip
    mark.write_text(json.dumps({"made_of": _made_of(notebook, parameters), "seconds": round(time.perf_counter() - start, 1)}) + "\n")
    print(f"{notebook}: done in {time.perf_counter() - start:.0f} s", flush=True)
    return True


def _made_of(notebook: str | Path, parameters: dict[str, Any]) -> str:
    """Hash of everything that decides a run's result: notebook, package source, parameters, and the files they name."""
    sources = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "common").rglob("*.py"))]
    files = [resolve(value) for value in parameters.values() if isinstance(value, str) and value and resolve(value).is_file()]
    inputs = [path.read_bytes().hex() for path in files]
    return fingerprint(resolve(notebook).read_text(encoding="utf-8"), sources, parameters, inputs)


def run_experiment(experiment: str, stages: list[str], profile: str, overrides: dict[str, Any]) -> str | None:
    """The stages of one experiment in order; returns None, or the report of the failure that ended them."""
    for stage in stages:
        notebook = f"{experiment}/{stage}.ipynb"
        given = stage_parameters(experiment, stage, profile)
        given |= {name: value for name, value in overrides.items() if name in declared_parameters(notebook)}
        executed = resolve(f"{given['output']}/{stage}.ipynb")
        try:
            execute(notebook, executed, given)
        except Exception as error:
            cell = getattr(error, "exec_count", None)
            reason = f"{getattr(error, 'ename', type(error).__name__)}: {getattr(error, 'evalue', error)}"
            return f"{notebook}, cell {cell}, parameters {given}: {reason} (see {executed})"
    return None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m common.batch", description="Run the notebooks of a profile through papermill.")
    parser.add_argument("profile")
    parser.add_argument("--experiment", action="append", help="default: all")
    parser.add_argument("--stage", action="append", choices=STAGES, help="default: all three")
    parser.add_argument("--seed", action="append", type=int)
    parser.add_argument("--method", action="append")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="any parameter of the notebooks")
    parser.add_argument("--jobs", type=int, default=1, help="experiments side by side")
    asked = parser.parse_args(arguments)
    try:
        overrides = _overrides(asked)
        stages = [stage for stage in STAGES if stage in (asked.stage or STAGES)]
        names = asked.experiment or experiments()
        _check(names, stages, asked.profile, overrides)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    with ProcessPoolExecutor(max_workers=asked.jobs) as pool:
        failures = [f for f in pool.map(run_experiment, names, *([x] * len(names) for x in (stages, asked.profile, overrides))) if f]
    if not failures and "train_rdpo" in stages:
        tables = f"runs/{asked.profile}/tables"
        execute("paper_tables.ipynb", resolve(f"{tables}/paper_tables.ipynb"), {"profile": asked.profile, "runs": f"runs/{asked.profile}", "output": tables}, again=True)
    for failure in failures:
        print(f"FAILED {failure}", file=sys.stderr)
    return 1 if failures else 0


def _overrides(asked: argparse.Namespace) -> dict[str, Any]:
    overrides = {name: _literal(value) for name, value in asked.p}
    if asked.seed:
        overrides["seeds"] = asked.seed
    if asked.method:
        overrides["methods"] = asked.method
    return overrides


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _check(names: list[str], stages: list[str], profile: str, overrides: dict[str, Any]) -> None:
    """Every parameter of every notebook that will run, before the first kernel starts."""
    unknown = [name for name in names if name not in experiments()]
    if unknown:
        raise ValueError(f"unknown experiment {', '.join(unknown)}; there are {', '.join(experiments())}")
    used = set()
    for name in names:
        for stage in stages:
            notebook = f"{name}/{stage}.ipynb"
            declared = declared_parameters(notebook)
            mine = {key: value for key, value in overrides.items() if key in declared}
            used |= set(mine)
            checked_parameters(notebook, {**stage_parameters(name, stage, profile), **mine})
    stray = {key: value for key, value in overrides.items() if key not in used}
    if stray:
        checked_parameters(f"{names[0]}/{stages[-1]}.ipynb", stray)


if __name__ == "__main__":
    sys.exit(main())
