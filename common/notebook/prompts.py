"""Prompts and texts of an experiment, from a notebook's parameters."""

from __future__ import annotations

from types import ModuleType

from common.data.recorded import load_pairs
from common.data.sources import load_prompts
from common.notebook.parameters import Parameters
from common.prompts import PROMPTS, VERSIONS, ExperimentPrompts
from common.runtime import resolve
from common.schema import PromptRecord, ScoreScale


def world_asked(p: Parameters) -> ModuleType | None:
    """The miniature world that a notebook's teacher or judge lives in; None for real ones."""
    if p.get("teacher", p.get("judge")) != "miniature" or p.get("pairs") == "recorded":
        return None
    from common.miniature.world import world_of

    return world_of(p["experiment"])


def prompts_of(p: Parameters) -> ExperimentPrompts:
    """The texts of the experiment: those that `prompts_file` names, a version of `common.prompts.VERSIONS` or a YAML file, else the
    miniature's own where a miniature teacher or judge is asked, and the newest of `common.prompts` where a real one is; with the
    judge's `scale` where one is given."""
    if p["prompts_file"] in VERSIONS:
        prompts = VERSIONS[p["prompts_file"]]
    elif p["prompts_file"]:
        prompts = ExperimentPrompts.from_yaml(resolve(p["prompts_file"]))
    else:
        prompts = world_asked(p).PROMPTS if world_asked(p) else PROMPTS[p["experiment"]]
    if not p.get("scale"):
        return prompts
    if p["scale"] not in ScoreScale.__members__:
        raise ValueError(f"unknown scale {p['scale']!r}; there are {', '.join(ScoreScale.__members__)}")
    return prompts.model_copy(update={"scale": ScoreScale[p["scale"]]})


def open_prompts(p: Parameters) -> list[PromptRecord]:
    """The prompts of `generate_data`: the miniature's train split, or every split of a file or Hub dataset `source`; with their
    answers where the pairs are recorded."""
    if p["pairs"] == "recorded":
        if not p["source"]:
            raise ValueError("pairs = recorded needs source: the file or Hub dataset that holds them, see common/data/recorded.py")
        return load_pairs(p["experiment"], p["source"], p["source_revision"], limit=p["prompts"])
    if not p["source"] and p["teacher"] != "miniature":
        raise ValueError(f"teacher = {p['teacher']} needs source: a file or Hub dataset of prompts for it, see common/data/sources.py; the miniature's own prompts mean nothing to a real model")
    if not p["source"]:
        return world_asked(p).prompts_for("train", p["prompts"], p["benign_share"], p["seed"])
    return load_prompts(p["experiment"], p["source"], p["source_revision"], prompts_of(p).system, limit=p["prompts"])
