"""Profiles: the parameters of every notebook of a run, in YAML files."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import Any

from common.data.counterfactual import PAIRS, variant_named
from common.runtime import ROOT, nearest, yaml_mapping

STAGES = ("generate_data", "reward_score", "train_rdpo")
PROFILES = ROOT / "common" / "profiles"


def experiments() -> list[str]:
    """Folders at the top level that hold all three notebooks."""
    return sorted(
        path.parent.name
        for path in ROOT.glob("*/generate_data.ipynb")
        if all((path.parent / f"{s}.ipynb").exists() for s in STAGES)
    )


def profile_parameters(profile: str, experiment: str, stage: str) -> dict[str, Any]:
    """The parameters of a notebook in a profile. Raises ValueError naming the profiles there are."""
    path, own = PROFILES / profile / f"{stage}.yaml", PROFILES / profile / experiment / f"{stage}.yaml"
    if not path.exists():
        there = sorted(folder.name for folder in PROFILES.iterdir() if (folder / "train_rdpo.yaml").exists())
        raise ValueError(
            f"unknown profile {profile!r} for {stage}{nearest(profile, there)}; there are {', '.join(there)}"
        )
    return {
        name: value
        for file in (path, own)
        if file.exists()
        for name, value in yaml_mapping(file, file.read_text(encoding="utf-8")).items()
    }


def preparation(profile: str) -> ModuleType | None:
    """The module of a profile that makes data and models before its first notebook: its `prepare.py`, with
    `prepare(experiments=...)` and `is_prepared()`. None for a profile without."""
    return import_module(f"common.profiles.{profile}.prepare") if (PROFILES / profile / "prepare.py").exists() else None


def own_pairs(profile: str, experiment: str) -> str:
    """The kind of pairs that a profile makes for an experiment where no other is asked for."""
    return profile_parameters(profile, experiment, "generate_data").get("pairs", PAIRS[0])


def stage_parameters(experiment: str, stage: str, profile: str, pairs: str, to: str = "") -> dict[str, Any]:
    """The profile's parameters of a stage, with the folder and the input of this experiment and kind of pairs."""
    output = f"runs/{to or profile}/{experiment}" + (f"/{pairs}" if variant_named(pairs) else "")
    kind = {"pairs": pairs} if stage == "generate_data" else {}
    return {**profile_parameters(profile, experiment, stage), "experiment": experiment, "output": output, **kind}


def more_parameters(profile: str, names: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in names:
        if not (path := PROFILES / profile / f"{name}.yaml").exists():
            raise ValueError(f"-f {name}: no file {path}")
        found |= yaml_mapping(path, path.read_text(encoding="utf-8"))
    return found
