"""Upload of a model folder to the Hub: private, and nothing but safetensors, JSON, Markdown and the tokenizer's files.

rdpo push runs/mine/adapter me/mine
"""

from __future__ import annotations

import argparse
import json
import re
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from common.command import CommandParser
from common.runtime import errors_in_a_line, quiet_libraries
from common.student.identity import commit_of, located

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

UPLOADED = ("*.safetensors", "*.json", "*.md", "*.jinja", "merges.txt", "vocab.txt", "tokenizer.model", "*.tiktoken")
MODEL = ("adapter_config.json", "config.json", "types.json")
"""One of these is in the folder of an adapter, a model, a mixture of adapters."""
LICENSE = ("license", "license_name", "license_link")


def of_the_base(student: str | Path) -> dict[str, str]:
    """What a card holds of the base: its Hub name, which a local folder is none of, and its license where its own card
    is at hand, beside its weights or on the Hub."""
    import yaml
    from huggingface_hub import ModelCard, hf_hub_download

    place = located(student)
    local = isinstance(place, Path)
    try:
        card = place / "README.md" if local else hf_hub_download(place, "README.md", revision=commit_of(place))
        known = ModelCard.load(card, ignore_metadata_errors=True).data.to_dict() if Path(card).is_file() else {}
    except (OSError, ValueError, yaml.YAMLError):  # not on this machine and no network, or a broken card
        known = {}
    return ({} if local else {"base_model": place}) | {name: known[name] for name in LICENSE if name in known}


def merged_card(adapter: str | Path, strength: float = 1.0) -> ModelCard:
    """The card of a merged model: the adapter's, whose figures are of strength 1 and go where it was merged at another."""
    from huggingface_hub import ModelCard

    readme = Path(adapter, "README.md")
    card = ModelCard(readme.read_text(encoding="utf-8") if readme.is_file() else "# Merged model\n")
    card.data.library_name = "transformers"
    card.data.tags = [tag for tag in card.data.tags or [] if tag != "lora"] or None
    if card.data.base_model:
        card.data.base_model_relation = "finetune"
    note = f"An ordinary model: the adapter that is described below, at strength {strength:g}, merged into its base."
    if strength != 1.0:
        card.data.eval_results = None
        note += " What was measured below is of strength 1."
    card.text = f"{note}\n\n{card.text.strip()}\n"
    return card


def repository(text: str) -> str:
    """The name of a Hub repository, as argparse reads it. Raises ArgumentTypeError for another form."""
    if not re.fullmatch(r"[A-Za-z0-9][\w-]*/[A-Za-z0-9][\w.-]{0,95}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no Hub repository; write OWNER/NAME")
    return text


def push(folder: str | Path, name: str) -> None:
    """Uploads a folder in one commit, into a repository that is made private. Without a token it prints what would be
    uploaded. Local paths of the base in JSON files are cut to the folder's name.

    Raises FileNotFoundError for a folder without a model or an adapter, and ValueError with the Hub's words where the
    upload fails.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token

    folder = Path(folder)
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    sent = [file for file in files if any(fnmatch(file.name, pattern) for pattern in UPLOADED)]
    if not any((folder / name).is_file() for name in MODEL):
        raise FileNotFoundError(
            f"{folder} holds none of {', '.join(MODEL)}; give the folder of an adapter or of a model"
        )
    for file in files:
        size = f"{file.stat().st_size / 1e6:.3f} MB"
        print(f"  {file.relative_to(folder)}, {size}" + ("" if file in sent else ", stays here"))
    if not (token := get_token()):
        print(f"no token, so nothing was uploaded; after `hf auth login`: python -m common.student.hub {folder} {name}")
        return
    operations = [CommitOperationAdd(file.relative_to(folder).as_posix(), _content(file)) for file in sent]
    api = HfApi(token=token)
    try:
        api.create_repo(name, private=True, exist_ok=True)
        repo, own = api.repo_info(name), {operation.path_in_repo for operation in operations}
        before = [one.rfilename for one in repo.siblings or [] if any(fnmatch(one.rfilename, p) for p in UPLOADED)]
        # a loader would prefer an adapter's or a larger model's files of before
        stale = [CommitOperationDelete(file) for file in before if file not in own]
        api.create_commit(name, [*operations, *stale], commit_message="Upload with refined-dpo")
    except Exception as error:  # the Hub's own, or its HTTP client's
        raise ValueError(f"{name}: the upload failed: {' '.join(str(error).split())[:200]}") from None
    said = "private" if repo.private else "PUBLIC, as the repository was before"
    print(f"https://huggingface.co/{name}: uploaded, {said}{f', {len(stale)} older files removed' if stale else ''}")


def _content(file: Path) -> str | bytes:
    """A file by its path, or a JSON file of settings as it is uploaded: without folders of this machine, and without the
    annotators of a mixture, which nobody needs to load it."""
    if file.name == "types.json":
        fields = json.loads(file.read_text(encoding="utf-8"))
        return json.dumps({name: value for name, value in fields.items() if name != "annotators"}, indent=1).encode()
    if file.suffix != ".json" or file.stat().st_size > 1e6:
        return str(file)
    text = file.read_text(encoding="utf-8")
    named = re.findall(r'"(?:base_model_name_or_path|base|name_or_path|_name_or_path)": "([^"]+)"', text)
    for path in {
        json.loads(f'"{path}"') for path in named if "/" in path and (Path(path).is_absolute() or Path(path).is_dir())
    }:
        text = text.replace(json.dumps(path), json.dumps(Path(path).name))
    return text.encode()


def parser() -> CommandParser:
    """The arguments of `rdpo push`."""
    command = CommandParser("push", __doc__)
    command.add_argument("folder", help="of an adapter or a merged model")
    command.add_argument("name", type=repository, metavar="OWNER/NAME", help="repository; made private where it is new")
    return command


def main(arguments: list[str] | None = None) -> None:
    asked = parser().parse_args(arguments)
    quiet_libraries()
    with errors_in_a_line("hub"):
        push(Path(asked.folder).expanduser(), asked.name)


if __name__ == "__main__":
    main()
