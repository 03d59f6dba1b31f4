"""Which worlds there are."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType


def world_of(experiment: str) -> ModuleType:
    """The miniature world of an experiment; its module is named by the experiment's first word."""
    return import_module(f"common.miniature.worlds.{experiment.split('-')[0]}")
