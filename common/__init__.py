"""Refined DPO: what scripts need most, imported when it is asked for, so that `import common` stays light."""

from __future__ import annotations

import importlib

_HOMES = {
    "RDPOTrainer": "trainer",
    "RDPOConfig": "trainer",
    "load_student": "student",
    "load_adapter": "student",
    "export_merged": "student",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'common' has no attribute {name!r}")
    return getattr(importlib.import_module(f"common.{_HOMES[name]}"), name)
