"""Datasets of the Hugging Face Hub and folders of `save_to_disk`, through `datasets`; errors in one sentence."""

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
    """The rows of a dataset's split.

    Raises FileNotFoundError, in one sentence, for whatever keeps them away, and for a cached copy of another commit.
    """
    import datasets

    with _in_one_sentence(name, revision):
        found = datasets.load_dataset(name, split=split, revision=revision)
    kept = {Path(file["filename"]).parent.name for file in found.cache_files}
    if COMMIT.fullmatch(revision) and any(COMMIT.fullmatch(other) for other in kept - {revision}):
        raise FileNotFoundError(
            f"cannot take {name} at revision {revision} from the Hub (no connection, and the local cache holds commit "
            f"{', '.join(kept)}); connect, or give that commit"
        )
    return list(found)


def download(name: str, file: str, revision: str) -> Path:
    """The local copy of one file of a dataset. Raises FileNotFoundError for whatever keeps it away."""
    import huggingface_hub

    with _in_one_sentence(name, revision):
        return Path(huggingface_hub.hf_hub_download(name, file, repo_type="dataset", revision=revision))


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote the folder."""
    return any((folder / file).is_file() for file in SAVED)


def load_saved(folder: Path) -> list[dict[str, Any]]:
    """The rows of a folder of `save_to_disk`, of several splits `train`.

    Raises ValueError naming the splits, or what is broken.
    """
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
        reason, remedy = _reason(name, revision, error)
        raise FileNotFoundError(
            f"cannot take {name} at revision {revision} from the Hub ({reason}); {remedy}, or give a local file"
        ) from error


def _reason(name: str, revision: str, error: Exception) -> tuple[str, str]:
    """(what is wrong, what to do)."""
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub import errors

    text = str(error)
    if "gated dataset" in text or isinstance(error, errors.GatedRepoError):
        page = f"https://huggingface.co/datasets/{name}"
        return "it is gated", f"accept its conditions on {page} and log in with `hf auth login`"
    if (
        "Revision" in text
        and isinstance(error, DatasetNotFoundError)
        or isinstance(error, errors.RevisionNotFoundError)
    ):
        return "it has no such revision", "copy the commit from its page, under Files and versions"
    if isinstance(error, DatasetNotFoundError | errors.RepositoryNotFoundError):
        return "no such dataset, or a private one", "check the name, log in with `hf auth login` for a private one"
    if isinstance(error, ConnectionError | errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        return "no connection, and no copy in the local cache", "connect (unset HF_HUB_OFFLINE)"
    if isinstance(error, errors.EntryNotFoundError):
        return "it has no such file", "copy the name from its page, under Files and versions"
    if splits := re.search(r'Unknown split "(.*?)". Should be one of \[(.*?)\]', text):
        there = splits[2].replace("'", "")
        return f"it has no split {splits[1]}, but {there}", f"give one as {name}/SPLIT@{revision}"
    if configs := re.search(r"available configs: \[(.*?)\]", text):
        there = configs[1].replace("'", "")
        return f"it has several configurations, {there}", f"give a file of one as {name}/FILE@{revision}"
    return _first_line(error), "check name, revision and network"


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
