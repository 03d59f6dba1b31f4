"""Datasets of the Hugging Face Hub, and folders of `datasets.save_to_disk`, through `datasets`; errors in one sentence."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SAVED = ("dataset_info.json", "dataset_dict.json")
"""Files of which `save_to_disk` writes one into its folder: of a dataset, and of several splits."""
COMMIT = re.compile(r"[0-9a-f]{40}")


def load_split(name: str, split: str, revision: str) -> list[dict[str, Any]]:
    """The rows of a dataset's split. Raises FileNotFoundError, in one sentence, for whatever keeps them away."""
    import datasets

    with _in_one_sentence(name, revision):
        found = datasets.load_dataset(name, split=split, revision=revision)
    kept = {Path(file["filename"]).parent.name for file in found.cache_files}
    if COMMIT.fullmatch(revision) and any(COMMIT.fullmatch(other) for other in kept - {revision}):
        raise FileNotFoundError(
            f"{name} at {revision} cannot be reached, and the local cache holds commit {', '.join(kept)}; connect, or give that commit"
        )
    return list(found)


def download(name: str, file: str, revision: str) -> Path:
    """The local copy of one file of a dataset. Raises FileNotFoundError, in one sentence, for whatever keeps it away."""
    import huggingface_hub

    with _in_one_sentence(name, revision):
        return Path(huggingface_hub.hf_hub_download(name, file, repo_type="dataset", revision=revision))


def is_saved(folder: Path) -> bool:
    return any((folder / file).is_file() for file in SAVED)


def load_saved(folder: Path) -> list[dict[str, Any]]:
    """The rows of a folder of `save_to_disk`, of several splits `train`. Raises ValueError naming the splits, or what is
    broken."""
    import datasets

    try:
        found = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, TypeError) as error:  # a file of it is missing, torn, or of another library
        raise ValueError(f"{folder}: not a whole folder of save_to_disk ({_first_line(error)}); save it anew") from None
    if isinstance(found, datasets.DatasetDict):
        if "train" not in found:
            raise ValueError(f"{folder} has no split train; give one of its folders: {', '.join(found)}")
        found = found["train"]
    return list(found)


@contextmanager
def _in_one_sentence(name: str, revision: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        raise FileNotFoundError(_sentence(name, revision, error)) from error


def _sentence(name: str, revision: str, error: Exception) -> str:
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub import errors

    kind, text = type(error).__name__, str(error)
    if "gated dataset" in text or isinstance(error, errors.GatedRepoError):
        return f"{name} is gated; accept its conditions on https://huggingface.co/datasets/{name} and log in with `hf auth login`"
    if (
        "Revision" in text
        and isinstance(error, DatasetNotFoundError)
        or isinstance(error, errors.RevisionNotFoundError)
    ):
        return f"{name} has no revision {revision}; copy the commit from its page, under Files and versions"
    if isinstance(error, DatasetNotFoundError | errors.RepositoryNotFoundError):
        return (
            f"{name} is not on the Hub, or private; check the name, and log in with `hf auth login` for a private one"
        )
    if isinstance(error, ConnectionError | errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        return f"the Hub cannot be reached and the local cache has no {name} at {revision}; connect (unset HF_HUB_OFFLINE), or give a local file"
    if isinstance(error, errors.EntryNotFoundError):
        return f"{name} at {revision} has no such file; its page lists them, under Files and versions"
    if splits := re.search(r'Unknown split "(.*?)". Should be one of \[(.*?)\]', text):
        return f"{name} has no split {splits[1]}; give one as {name}/SPLIT@{revision}: {splits[2].replace(chr(39), '')}"
    if configs := re.search(r"available configs: \[(.*?)\]", text):
        return f"{name} has several configurations ({configs[1].replace(chr(39), '')}); give a file of one as {name}/FILE@{revision}"
    reason = f"{kind}: {_first_line(error)}"
    return f"cannot take {name} at revision {revision} from the Hub ({reason}); check name, revision and network, or give a local file"


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
