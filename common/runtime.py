"""The frame of a notebook run: strict parameters, paths from the project root, progress, a manifest."""

from __future__ import annotations

import difflib
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from common.storage import read_yaml, write_json

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "datasets")


def resolve(path: str | Path) -> Path:
    """A path of a parameter: relative ones start at the project root, wherever the kernel was started."""
    return ROOT / os.path.expanduser(path)


SHARE, POSITIVE, WEIGHT, COUNT, SEED = Field(ge=0, le=1), Field(gt=0), Field(ge=0), Field(ge=1), Field(ge=0, lt=2**32)
LIMITS = {
    **dict.fromkeys(("swapped", "benign_share", "noise_no_better", "noise_worse", "tau", "clear", "ca_score", "mrpo_weight", "unchanged_weight", "ema", "judge_error", "judge_unclear", "failed_limit", "unscored_limit", "least_yield"), SHARE),
    **dict.fromkeys(("learning_rate", "sft_learning_rate", "beta", "variance", "rwr_temperature", "candidate_temperature", "repetition_penalty"), POSITIVE),
    **dict.fromkeys(("alpha", "eta", "nll_weight", "kl_budget", "optimism", "mrpo_eta", "strength", "temperature", "micro_batch", "pilot", "train_pairs", "prompts"), WEIGHT),
    **dict.fromkeys(("epochs", "batch_size", "lora_rank", "max_length", "max_new_tokens", "evaluation_prompts", "local_batch", "count", "schedule", "over_generate", "entropy_samples", "annotator_types", "em_steps", "segment", "buffer", "wordings"), COUNT),
    **dict.fromkeys(("seed", "seeds"), SEED), "label_smoothing": Field(ge=0, lt=0.5), "steps_share": Field(gt=0, le=1), "least_kappa": Field(ge=-1, le=1),
}  # fmt: skip
"""Setting, by its name wherever it is one -> the range of its value, or of every value in its list."""
WITHOUT_REPEATS = ("methods", "seeds", "swapped")
"""Lists whose values are rows of a table: one that stands twice would count twice."""
MAY_BE_EMPTY = ("labels",)


def checked(name: str, value: Any, kind: Any, strict: bool = True) -> Any:
    """The value of a setting, of its type, finite and within `LIMITS`. Raises ValueError naming setting, value and what
    is wanted."""
    if name in WITHOUT_REPEATS and isinstance(value, list) and len(set(map(str, value))) < len(value):
        raise ValueError(f"{name} = {shortened(value)}: a value stands twice")
    item = Annotated[kind.__args__[0] if is_list(kind) else kind, LIMITS.get(name)]
    kind = Annotated[list[item], Field(min_length=0 if name in MAY_BE_EMPTY else 1)] if is_list(kind) else item
    try:
        return TypeAdapter(kind, config=ConfigDict(allow_inf_nan=False)).validate_python(value, strict=strict)
    except ValidationError as error:
        raise ValueError(f"{name} = {shortened(value)}: {error.errors()[0]['msg'].lower()}") from None


def is_list(kind: Any) -> bool:
    return getattr(kind, "__origin__", kind) is list


def nearest(name: str, there: Iterable[str], cutoff: float = 0.6) -> str:
    """The hint ", did you mean X?" with the name that is most like it, for messages; "" where none is."""
    close = difflib.get_close_matches(name, list(there), 1, cutoff)
    return f", did you mean {close[0]}?" if close else ""


def yaml_mapping(where: str | Path, text: str) -> dict[str, Any]:
    """The names and values of a YAML text. Raises ValueError beginning with `where` for anything else."""
    try:
        found = read_yaml(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{where}: not valid YAML ({' '.join(str(error).split())})") from None
    if not isinstance(found, dict):
        raise ValueError(f"{where}: expected parameters as NAME: VALUE, got {shortened(found)}")
    return found


def yaml_file(role: str, path: str | Path) -> dict[str, Any]:
    """`yaml_mapping` of the file that a parameter names. Raises ValueError naming the parameter where there is none."""
    if not (file := resolve(path)).is_file():
        raise ValueError(f"{role}: no file {file}; name a YAML file that is there, or leave {role} empty")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{role}: {path} is no UTF-8 (byte {error.start}); save it as UTF-8") from None
    return yaml_mapping(f"{role}: {path}", text)


def shortened(value: object, most: int = 60) -> str:
    """A value as Python writes it, cut where it is long, for messages."""
    text = repr(value)
    return text if len(text) <= most else text[:most] + "..."


def is_interactive() -> bool:
    """True in a terminal and in notebook front ends (Jupyter, VS Code, Colab); False under papermill and in pipes, which
    get plain lines instead of bars. A front end tells the kernel that somebody can type; papermill tells it that nobody can."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    request = shell.kernel.get_parent() if hasattr(shell, "kernel") else {}
    return request.get("content", {}).get("allow_stdin", False) or sys.stdout.isatty()


class Progress:
    """A bar in notebook front ends and terminals; elsewhere a plain line every few seconds. Both tell the remaining time.

    Call it with the number of items just finished. note: what else a line says of them.
    """

    note = ""

    def __init__(self, label: str, total: int, every: float = 10.0):
        self.label, self.total, self.done, self.every = label, total, 0, every
        self.start = self.said = time.perf_counter()
        self.bar = None
        if is_interactive():
            from tqdm.auto import tqdm

            self.bar = tqdm(total=total, desc=label)

    def __call__(self, finished: int) -> None:
        self.done += finished
        if self.bar is not None:
            self.bar.set_postfix_str(self.note, refresh=False)
            self.bar.update(finished)
            return
        now = time.perf_counter()
        if self.done >= self.total or now - self.said > self.every:
            self.said, spent = now, now - self.start
            left = spent / self.done * (self.total - self.done) if self.done else float("nan")
            note = f", {self.note}" if self.note else ""
            print(f"{self.label}: {self.done}/{self.total}, {spent:.0f} s, about {left:.0f} s left{note}", flush=True)


def escape_what_the_terminal_lacks() -> None:
    """A command's first act: characters that the terminal's or the pipe's encoding lacks are printed as escapes,
    instead of ending it."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")


def quiet_libraries() -> None:
    """Silences progress bars and advice of transformers and datasets that say nothing about the run."""
    import logging
    import warnings

    warnings.filterwarnings("ignore", message=".*gradient_checkpointing.* is deprecated", category=FutureWarning)
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(
        logging.ERROR
    )  # an optional kernel that is not installed
    os.environ |= {
        "TQDM_DISABLE": "1",  # TRL's pass over the reference; our own bars are `Progress`
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }  # read when a library is imported, which takes seconds and is left to those that need it
    if datasets := sys.modules.get("datasets"):
        datasets.disable_progress_bars()
    if transformers := sys.modules.get("transformers"):
        transformers.utils.logging.disable_progress_bar()
        transformers.utils.logging.set_verbosity_error()


@contextmanager
def errors_in_a_line(command: str, *more: type[Exception]) -> Iterator[None]:
    """What a command does when it has read its arguments: OSError, ValueError and `more` end it with exit code 1 and one
    line on stderr, whatever the terminal can show."""
    escape_what_the_terminal_lacks()
    try:
        yield
    except (OSError, ValueError, *more) as error:
        sys.exit(f"{command}: {error}")


def write_manifest(folder: str | Path, stage: str, parameters: Mapping[str, Any], **more: Any) -> Path:
    """Records what made a result: parameters, package versions, and whatever the stage adds (prompt hash, tokens, ...)."""
    made = {
        "stage": stage,
        "parameters": dict(parameters),
        "python": sys.version.split()[0],
        "versions": {package: version(package) for package in PACKAGES},
        **more,
    }
    return write_json(Path(folder) / f"{stage}.manifest.json", made)
