"""The trainer of refined DPO, in the place of TRL's DPOTrainer."""

from __future__ import annotations

import importlib

_HOMES = {"RDPOConfig": "config", "RDPOTrainer": "rdpo"}
__all__ = list(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
