"""Students: loading in 4 bits, LoRA adapters, identity."""

from __future__ import annotations

import importlib

_HOMES = {"load_student": "load", "lora_settings": "adapters", "load_adapter": "adapters", "export_merged": "adapters"}
__all__ = list(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
