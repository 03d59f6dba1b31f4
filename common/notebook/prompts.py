"""Prompts and texts of an experiment, from a notebook's parameters."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import ModuleType

from common.data.recorded import load_pairs
from common.data.sources import WholePrompt, check_experiment, load_prompts
from common.notebook.parameters import MINIATURES, GenerateData, RewardScore, check_scale
from common.prompts import PROMPTS, VERSIONS, ExperimentPrompts
from common.runtime import resolve
from common.schema import PromptRecord, ScoreScale
from common.specs import place_and_commit
from common.storage import read_records
from common.storage.shards import taken


def world_asked(p: GenerateData | RewardScore) -> ModuleType | None:
    """The miniature world that a notebook's teacher or judge lives in; None for real ones."""
    if not p.in_world:
        return None
    from common.miniature.world import world_of

    return world_of(p.experiment)


def texts_of(p: GenerateData | RewardScore) -> ExperimentPrompts:
    """The texts of the experiment: those that `prompts_file` names, a version of `common.prompts.VERSIONS` or a YAML
    file, else the miniature's own where a miniature teacher or judge is asked, and the newest of `common.prompts` where
    a real one is; with the judge's `scale` where one is given."""
    if p.prompts_file in VERSIONS:
        prompts = VERSIONS[p.prompts_file]
    elif p.prompts_file:
        prompts = ExperimentPrompts.from_yaml(resolve(p.prompts_file))
    else:
        prompts = world.PROMPTS if (world := world_asked(p)) else PROMPTS[p.experiment]
    if isinstance(p, GenerateData) or not p.scale:
        return prompts
    check_scale(p.scale)
    return prompts.model_copy(update={"scale": ScoreScale[p.scale]})


def open_prompts(p: GenerateData) -> list[PromptRecord]:
    """The prompts of `generate_data`, or of a shard of it: the miniature's train split, or every split of a file or Hub
    data set `source`; with their answers where the pairs are recorded."""
    return taken(_all_prompts(p), p.shard)


def _all_prompts(p: GenerateData) -> list[PromptRecord]:
    source, commit = place_and_commit(p.source)
    if p.pairs == "recorded":
        if not source:
            raise ValueError(
                "pairs = recorded needs source: the file or Hub data set that holds them, see common/data/recorded.py"
            )
        return load_pairs(p.experiment, source, commit, limit=p.prompts)
    if not source and not p.in_world:
        raise ValueError(
            f"teacher = {p.teacher} needs source: a file or Hub data set of prompts for it, see common/data/sources.py; the miniature's own prompts mean nothing to a real model"
        )
    if not source:
        return world_asked(p).prompts_for("train", p.prompts, p.benign_share, p.seed)
    return load_prompts(p.experiment, source, commit, texts_of(p).system, limit=p.prompts)


def prompts_named(source: str, student: str) -> list[PromptRecord]:
    """The prompts of a JSONL file, all of one experiment, answers left aside; for a miniature student also those of the
    world that `source` names. Raises FileNotFoundError or ValueError for anything else."""
    if student in MINIATURES and source in PROMPTS:
        from common.miniature import lab

        return lab.prompts(source)
    if not (path := resolve(source)).is_file():
        raise FileNotFoundError(f"no file {path}; give a JSONL file of prompts, such as a pairs.jsonl")
    records = list(read_records(path, WholePrompt))
    return check_experiment(records, records[0].experiment, source)


def reads_as_in(experiment: str, student: str) -> Callable[[str], PromptRecord | None] | None:
    """Of a miniature student, what its world reads in a proposed text, see `lab.proposal`; None for a real one."""
    if student not in MINIATURES:
        return None
    from common.miniature import lab

    return partial(lab.proposal, experiment)
