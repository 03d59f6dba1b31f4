"""Judges: verdicts in text or numbers, and how far they can be trusted."""

from __future__ import annotations

import importlib

_HOMES = {"parse_score": "verdict"}
__all__ = list(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
