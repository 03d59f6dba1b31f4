"""Refined DPO: what scripts need most, imported when it is asked for, so that `import common` stays light."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping


def hand_on(package: str, homes: Mapping[str, str]) -> tuple[list[str], Callable[[str], object]]:
    """`__all__` and `__getattr__` of a package that hands names on from its modules, each imported when it is asked for.

    homes: name -> module below the package. The function raises AttributeError for any other name."""

    def get(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{homes[name]}"), name)

    return list(homes), get


__all__, __getattr__ = hand_on(
    __name__,
    {
        "RDPOTrainer": "trainer",
        "RDPOConfig": "trainer",
        "load_student": "student",
        "load_adapter": "student",
        "export_merged": "student",
    },
)
