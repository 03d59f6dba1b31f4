"""One notebook, run unattended: its declared parameters, strict, and nothing run twice."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import create_model

from common.notebook.parameters import PARAMETERS, Checked, parameters
from common.runtime import ROOT, resolve
from common.schema import fingerprint
from common.storage import write_json
from common.student.identity import identity, sha256_of


def declared_parameters(notebook: str | Path) -> dict[str, Any]:
    """Names, types and defaults of a notebook's `parameters` cell, as the namespace that running the cell leaves."""
    cells = json.loads(resolve(notebook).read_text(encoding="utf-8"))["cells"]
    source = ["".join(cell["source"]) for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    if len(source) != 1:
        raise ValueError(f"{notebook} has {len(source)} cells tagged `parameters`, one is wanted")
    namespace: dict[str, Any] = {}
    exec(compile(source[0], str(notebook), "exec", dont_inherit=True), namespace)
    return {name: value for name, value in namespace.items() if name != "__builtins__"}


def checked_parameters(notebook: str | Path, given: Mapping[str, Any]) -> Any:
    """The notebook's parameters: those of its cell with the given ones on top; of a notebook elsewhere those that it
    declares. Raises ValueError for an unknown or mistyped one, before any kernel starts."""
    declared = declared_parameters(notebook)
    try:
        if Path(notebook).stem in PARAMETERS and resolve(notebook).is_relative_to(ROOT):
            return parameters(Path(notebook).stem, {**declared, **given})
        kinds = {name: (kind, declared[name]) for name, kind in declared["__annotations__"].items()}
        return create_model("Parameters", __base__=Checked, **kinds).of(given)
    except ValueError as error:
        raise ValueError(f"{notebook}: {error}") from None


def execute(
    notebook: str | Path, executed: str | Path, given: dict[str, Any], again: bool = False, log: Path | None = None
) -> bool:
    """Runs a notebook through papermill unless its last run had the same code, parameters and input files (or `again`).

    What it prints goes to the file `log`, else to stdout. Returns whether it ran. Raises papermill's error when a cell
    fails; the executed copy then shows it.
    """
    import papermill
    from traitlets.config import Config

    executed = Path(executed)
    own = checked_parameters(notebook, given).model_dump()
    mark = executed.with_suffix(".done.json")
    if not again and is_finished(notebook, executed, own):
        return False
    logging.getLogger("papermill").setLevel(logging.ERROR)  # warns of parameters that are checked but not in the cell
    executed.parent.mkdir(parents=True, exist_ok=True)
    mark.unlink(missing_ok=True)
    start = time.perf_counter()
    with (
        TemporaryDirectory(prefix="rdpo-") as sockets,
        open(log, "w", buffering=1, encoding="utf-8") if log else nullcontext(sys.stdout) as printed,
    ):
        papermill.execute_notebook(
            str(resolve(notebook)), str(executed), parameters=given, cwd=str(ROOT), kernel_name="python3",
            progress_bar=False, stdout_file=printed,
            extra_arguments=["--log-level=CRITICAL"],  # a kernel reports the interrupt that every shutdown begins with as an error
            # Unix sockets in a folder of the kernel's own: kernels side by side fight neither for ports nor for names
            config=Config(KernelManager={"transport": "ipc", "ip": f"{sockets}/kernel"}),
        )  # fmt: skip
    write_json(mark, {"made_of": _made_of(notebook, own), "seconds": round(time.perf_counter() - start, 1)})
    return True


def is_finished(notebook: str | Path, executed: Path, own: dict[str, Any]) -> bool:
    """Whether the executed copy was made by this very code, with these parameters and input files. A torn mark says
    nothing."""
    try:
        made_of = json.loads(executed.with_suffix(".done.json").read_text(encoding="utf-8"))["made_of"]
    except (OSError, ValueError, TypeError, LookupError):
        return False
    return executed.exists() and made_of == _made_of(notebook, own)


def _made_of(notebook: str | Path, own: dict[str, Any]) -> str:
    """Hash of everything that decides a run's result: notebook, package source, parameters, and the files and models
    that they name."""
    sources = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "common").rglob("*.py"))]
    named = [
        text
        for value in own.values()
        for text in (value if isinstance(value, list) else [value])
        if isinstance(text, str) and text
    ]
    inputs = [content for text in named for content in _content(text)]
    if "judge" in (own.get("knobs") or {}).values():  # tau is estimated from the check of step 2
        inputs += _content(str(Path(own["pairs_file"]).with_name("reward_score.manifest.json")))
    return fingerprint(resolve(notebook).read_text(encoding="utf-8"), sources, own, inputs)


def _content(text: str) -> list[str]:
    """What lies where a parameter points, also behind a kind such as `local:` or `learned:`, and before the strength of
    an adapter: a file's hash, those of a data set in a folder, a model's identity, or nothing."""
    place = resolve(re.sub(r"(?<=.)@[\d.]+\Z", "", text.partition(":")[2] or text))
    if place.is_file():
        return [sha256_of(place)]
    if any((place / name).exists() for name in ("dataset_info.json", "dataset_dict.json")):
        return [sha256_of(path) for path in sorted(place.rglob("*")) if path.is_file()]
    is_model = any((place / name).exists() for name in ("config.json", "adapter_config.json"))
    return [identity(place)] if is_model else []
