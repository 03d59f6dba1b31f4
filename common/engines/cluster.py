"""Tasks on a Ray cluster, in place of a pool of processes of this machine."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from uuid import uuid4

from common.engines.store import Place, Store
from common.runtime import PACKAGES, ROOT, quiet_libraries
from common.schema import fingerprint

RETRIES = 10
"""How often a task is run again whose node or process was lost; one that raises an error is not."""
PATIENCE = 9.0
"""Seconds for a cluster to answer."""


class Needs(NamedTuple):
    """What a task takes: CPUs, GPUs where the cluster has any, and the places that it reads and writes, which are looked
    at only where there is a store."""

    cpus: int = 1
    gpus: int = 0
    places: Iterable[Place] = ()


class RayPool(Executor):
    """An executor whose calls are Ray tasks, each run again on another node where its own is lost.

    Every node needs the project at the same path and in the same version, and the same versions of `PACKAGES`.

    Args:
        address: of the cluster, HOST:PORT; "" for the one that this machine belongs to, else for this machine alone.
        folder: of all results, which every node sees or, with a store, makes.
        needs: called with what `submit` is called with.
        store: where results are copied from and to; None where all nodes see `folder`.

    Raises:
        ValueError: in one sentence: Ray is not installed, no cluster answers, or a node does not see what it needs.
    """

    def __init__(self, address: str, folder: Path, needs: Callable[..., Needs], store: Store | None = None):
        self.needs, self.store = needs, store
        self.ray = _connected(address)
        self.task = self.ray.remote(max_retries=RETRIES)(_run)
        self._has_gpus = any(node["Resources"].get("GPU") for node in self._nodes())
        try:
            self._check_nodes(folder)
        except BaseException:
            self.shutdown()
            raise

    def submit(self, run: Callable, /, *given: Any) -> Future:
        """The future of `run(*given)`."""
        cpus, gpus, places = self.needs(run, *given)
        task = self.task.options(num_cpus=cpus, num_gpus=gpus * self._has_gpus, runtime_env=_environment(cpus))
        return task.remote(self.store, list(places) if self.store else [], run, *given).future()

    def cpus_each(self, jobs: int) -> int:
        """The CPUs of each of `jobs` tasks side by side: its share of the cluster, at most those of its largest node."""
        cpus = [int(node["Resources"].get("CPU", 0)) for node in self._nodes()]
        return max(1, min(max(cpus), sum(cpus) // jobs))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Leaves the cluster, which ends what still runs there."""
        self.ray.shutdown()

    def _nodes(self) -> list[dict[str, Any]]:
        return [node for node in self.ray.nodes() if node["Alive"]]

    def _check_nodes(self, folder: Path) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        folder.mkdir(parents=True, exist_ok=True)
        (seal := folder / f".{uuid4().hex}.part").touch()
        look = self.ray.remote(_problem_here)
        try:
            asked = []
            for node in self._nodes():
                here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                about = {"num_cpus": 0, "scheduling_strategy": here, "runtime_env": _environment(1)}
                name = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
                asked.append((name, look.options(**about).remote(self.store, seal, _source())))
            for name, answer in asked:
                try:
                    problem = self.ray.get(answer)
                except (self.ray.exceptions.TaskUnschedulableError, self.ray.exceptions.NodeDiedError):
                    continue  # lost meanwhile
                except self.ray.exceptions.RayError as error:
                    last = str(error).strip().splitlines()[-1]
                    problem = f"cannot run the project, which must be at {ROOT} with all it needs ({last})"
                if problem:
                    raise ValueError(f"node {name} {problem}")
        finally:
            seal.unlink()


def _run(store: Store | None, places: Sequence[Place], run: Callable, *given: Any) -> Any:
    quiet_libraries()
    with store.kept(places) if store else nullcontext():
        return run(*given)


def _environment(threads: int) -> dict[str, Any]:
    """The environment of a task: the driver's project, and its threads set before any library is imported."""
    names = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
    return {"env_vars": names}


def _problem_here(store: Store | None, seal: Path, source: Mapping[str, str]) -> str:
    """What this node lacks, as the rest of a sentence; "" for nothing. A store was opened when it came here."""
    here = _source()
    if differ := [name for name in source | here if source.get(name) != here.get(name)]:
        named = f"{', '.join(differ[:3])}{', ...' if len(differ) > 3 else ''}"
        return f"has another version of {named}; copy the project to {ROOT} there and install its requirements.txt"
    if not store and not seal.exists():
        return f"does not see the folder of results {seal.parent}; mount it there, or give --store"
    return ""


def _source() -> dict[str, str]:
    """The version of each of `PACKAGES`, whatever device it was built for, and the hash of each file that decides a
    result: code, profiles, notebooks."""
    files = [path for kind in ("*.py", "*.yaml") for path in (ROOT / "common").rglob(kind)]
    files += [path for first in ROOT.glob("*/generate_data.ipynb") for path in first.parent.glob("*.ipynb")]
    hashes = {path.relative_to(ROOT).as_posix(): fingerprint(path.read_text(encoding="utf-8")) for path in files}
    return {package: version(package).partition("+")[0] for package in PACKAGES} | dict(sorted(hashes.items()))


def _connected(address: str) -> ModuleType:
    """Ray, connected to the cluster."""
    try:
        import ray
    except ImportError:
        raise ValueError("--engine ray: Ray is not installed; pip install -e .[scale] installs it") from None
    if not address:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        return ray
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise ValueError(f"--address {address}: expected HOST:PORT, which `ray status` shows on the head node")
    try:
        socket.create_connection((host, int(port)), timeout=PATIENCE / 3).close()
    except OSError as error:
        raise ValueError(f"--address {address}: nothing answers there ({error}); is the head node up?") from None
    outcome: list[Exception | None] = []

    def connect() -> None:  # waits for minutes where something else than Ray listens
        try:
            ray.init(address, log_to_driver=False, logging_level="ERROR")
            outcome.append(None)
        except Exception as error:
            outcome.append(error)

    (asking := threading.Thread(target=connect, daemon=True)).start()
    asking.join(PATIENCE)
    if not outcome or outcome[0]:
        reason = " ".join(str(outcome[0]).split()) if outcome else f"no answer in {PATIENCE:.0f} s"
        raise ValueError(f"--address {address}: no Ray cluster answers there ({reason})")
    return ray
