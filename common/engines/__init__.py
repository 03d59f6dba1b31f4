"""Where the tasks of a command run: in processes of this machine, or past one machine on a Ray cluster."""

from __future__ import annotations

import argparse

from common.engines.cluster import Needs, RayPool
from common.engines.store import Place, Store

__all__ = ["Needs", "Place", "RayPool", "Store", "add_engine", "opened_store"]


def add_engine(parser: argparse.ArgumentParser) -> None:
    """Adds the options that decide where a command's tasks run."""
    parser.add_argument(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="processes of this machine, or tasks on a Ray cluster",
    )
    parser.add_argument(
        "--address", default="", metavar="HOST:PORT", help="of the Ray cluster; default: this machine's, else a new one"
    )
    parser.add_argument(
        "--store", default="", metavar="URL", help="fsspec URL of the results, where the nodes share no folder"
    )


def opened_store(asked: argparse.Namespace) -> Store | None:
    """The store of `--store`, or None. Raises ValueError where an option of `--engine ray` is given without it, or the
    store cannot be written to."""
    for name in ("address", "store"):
        if asked.engine == "local" and getattr(asked, name):
            raise ValueError(f"--{name} {getattr(asked, name)}: is for --engine ray")
    return Store(asked.store) if asked.store else None
