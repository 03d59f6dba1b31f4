"""What a model is, whatever it is called: one place for a name, one hash for all that decides what it says.

Marks of trainings and rows, names of local teachers and judges, and adapters that name their base are all made of
`identity`.
"""

from __future__ import annotations

import hashlib
import json
import re
from functools import cache, lru_cache
from pathlib import Path

from common.runtime import resolve
from common.schema import fingerprint

WEIGHTS = ("*.safetensors", "config.json")
BESIDE = (
    "*.bin", "*.gguf", "*.index.json", "adapter_config.json", "generation_config.json", "*token*.json", "vocab*", "merges.txt", "*.model", "*.tiktoken",
    "tekken.json", "chat_template*", "*.jinja", "*chat_templates/*.jinja", "*processor_config.json", "*.py",
)  # fmt: skip
"""What else loaders read of a folder: other weights, adapter, generation config, tokenizer, chat templates and special
tokens, code."""
BY_PRODUCTS = ("training_args.bin", "optimizer.bin", "scheduler.bin")
OF_THE_MAKING = (
    "_name_or_path", "name_or_path", "base_model_name_or_path", "revision", "is_local", "local_files_only", "_commit_hash", "_from_model_config", "transformers_version", "peft_version",
)  # fmt: skip
"""Entries of the JSON files in `BESIDE` that tell where and with what a folder was made, and change nothing of what the
model says."""
BEFORE = ("b124c73434a2",)
"""What lies beside the weights of SmolLM2-135M-Instruct, as `common.profiles.small.smollm2` makes it, and of the
organism made of it. Results of both were committed when marks counted weights and config.json alone; a folder with just
these files keeps the mark it had."""


def located(name: str | Path) -> Path | str:
    """The folder that a model's name means, absolute, or the Hub name as it is.

    A relative path is looked for from the project root and from the folder where the command was started, `~` from
    home.

    Raises:
        FileNotFoundError: it can only be a folder and is none.
        ValueError: it is empty, or there are two such folders.
    """
    if not str(name).strip():
        raise ValueError("a model is named by a folder or a Hub name, and this name is empty")
    found = {path.resolve() for path in (resolve(name), Path(name).expanduser().absolute()) if path.is_dir()}
    if len(found) > 1:
        raise ValueError(
            f"{name} is a folder in two places, {' and '.join(map(str, sorted(found)))}; give the absolute path"
        )
    if not found and not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", str(name)):
        raise FileNotFoundError(
            f"no student folder at {name}, from {resolve('')} or {Path.cwd()}; give a folder that is there, or a Hub name"
        )
    return found.pop() if found else str(name)


def identity(name: str | Path, revision: str | None = None) -> str:
    """Of a folder the hash of all files that decide what its model says, wherever it lies; of a Hub name `name@commit`.

    The commit of a Hub name is the one in the local cache (see `commit_of`). The name alone stands where `revision` is
    a commit, which marks hold beside it, and for a model that cannot be had. Raises what `located` does.
    """
    place = located(name)
    if isinstance(place, str):
        return f"{place}@{commit}" if (commit := commit_of(place, revision)) not in (None, revision) else place
    weights, beside = (
        weights_of(place),
        fingerprint([(file.relative_to(place).as_posix(), _hash_beside(file)) for file in _files(place, BESIDE)]),
    )
    return weights if beside in BEFORE else fingerprint(weights, beside)


def weights_of(folder: str | Path) -> str:
    """The hash of a folder's safetensors and config.json alone: what an adapter is trained on."""
    return fingerprint([(file.name, sha256_of(file)) for file in _files(Path(folder), WEIGHTS)])


def shown(name: str | Path, revision: str | None = None) -> str:
    """How a model is called where its replies are kept: a folder by its own name and its identity, a Hub model by name
    and commit."""
    place = located(name)
    if isinstance(place, Path):
        return f"{place.name} {identity(place)}"
    return f"{place}@{commit}" if (commit := commit_of(place, revision)) else place


@cache
def commit_of(name: str, revision: str | None = None) -> str | None:
    """The commit that a Hub name means on this machine: that of its config.json in the cache, which nobody asks the Hub
    about; where there is none, that file is fetched, as loading would. None where it cannot be had."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    if re.fullmatch("[0-9a-f]{40}", revision or ""):
        return revision
    try:
        cached = try_to_load_from_cache(name, "config.json", revision=revision)
        return Path(
            cached if isinstance(cached, str) else hf_hub_download(name, "config.json", revision=revision)
        ).parent.name
    except (OSError, ValueError):
        return None


def _files(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    return sorted(
        {
            file
            for pattern in patterns
            for file in folder.glob(pattern)
            if file.is_file() and file.name not in BY_PRODUCTS
        }
    )


def sha256_of(file: Path) -> str:
    """The SHA-256 of a file's bytes, read once while its size and times stay."""
    about = file.stat()
    return _content_hash(file, about.st_size, about.st_mtime_ns, about.st_ctime_ns)


@lru_cache(maxsize=4096)
def _content_hash(file: Path, *about: int) -> str:
    with open(file, "rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _hash_beside(file: Path) -> str:
    """Of a JSON object of settings its entries but `OF_THE_MAKING`; of any other file its bytes."""
    try:
        settings = json.loads(file.read_text(encoding="utf-8")) if file.name.endswith("_config.json") else None
    except ValueError:
        settings = None
    if not isinstance(settings, dict):
        return sha256_of(file)
    return fingerprint({name: value for name, value in settings.items() if name not in OF_THE_MAKING}, digits=64)
