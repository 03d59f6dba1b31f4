"""Log-probabilities of pairs, with every prompt computed once."""

from __future__ import annotations

import importlib

_HOMES = {"pair_logprobs": "compute"}
__all__ = list(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
