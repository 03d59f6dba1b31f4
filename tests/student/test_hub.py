"""Uploads to a recorder in the Hub's place (pytest tests/student/test_hub.py)."""

import argparse
import json
from types import SimpleNamespace

import httpx2
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, ModelCard
from huggingface_hub.errors import HfHubHTTPError

from common.student import hub
from common.student.hub import merged_card, push, repository


@pytest.fixture
def folder(tmp_path):
    """Of an adapter on a local base, with files that stay."""
    base, folder = tmp_path / "secret" / "base", tmp_path / "adapter"
    base.mkdir(parents=True)
    (folder / "type-0").mkdir(parents=True)
    for name in ("adapter_model.safetensors", "training_args.bin", "tokenizer.json", "chat_template.jinja", "merges.txt", ".env", "rows.csv", "type-0/adapter_model.safetensors"):
        (folder / name).write_bytes(b"x" * 2000)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base), "r": 4}))
    (folder / "trained_on.json").write_text(json.dumps({"base": str(base), "weights": "abc"}))
    (folder / "README.md").write_text("# card\n")
    return folder


@pytest.fixture
def recorded(monkeypatch):
    """Calls of the Hub's API, in order; `fails` is raised by the commit, `private` what the repository is."""
    calls = SimpleNamespace(made=[], fails=None, private=True, there=[], removed=[])

    class Recorder:
        def __init__(self, token):
            calls.made.append(("token", token))

        def create_repo(self, name, **how):
            calls.made.append(("create_repo", name, how))

        def repo_info(self, name):
            return SimpleNamespace(private=calls.private, siblings=[SimpleNamespace(rfilename=name) for name in calls.there])

        def create_commit(self, name, operations, **how):
            if calls.fails:
                raise calls.fails
            calls.removed += [one.path_in_repo for one in operations if isinstance(one, CommitOperationDelete)]
            calls.made.append(("create_commit", name, {one.path_in_repo: one.path_or_fileobj for one in operations if isinstance(one, CommitOperationAdd)}))

    monkeypatch.setattr("huggingface_hub.HfApi", Recorder)
    monkeypatch.setattr("huggingface_hub.get_token", lambda: "a token")
    return calls


def test_it_is_private_and_only_weights_json_markdown_and_tokenizer_go(folder, recorded, capsys):
    push(folder, "me/mine")
    token, created, (_, name, sent) = recorded.made
    assert token == ("token", "a token") and created == ("create_repo", "me/mine", {"private": True, "exist_ok": True}) and name == "me/mine"
    assert set(sent) == {"adapter_model.safetensors", "tokenizer.json", "chat_template.jinja", "merges.txt", "type-0/adapter_model.safetensors", "adapter_config.json", "trained_on.json", "README.md"}
    printed = capsys.readouterr().out
    assert "training_args.bin, 0.002 MB, stays here" in printed and "adapter_model.safetensors, 0.002 MB\n" in printed and "https://huggingface.co/me/mine: uploaded, private" in printed


def test_no_local_path_is_told(folder, recorded):
    push(folder, "me/mine")
    sent = recorded.made[-1][2]
    assert json.loads(sent["adapter_config.json"]) == {"base_model_name_or_path": "base", "r": 4} and json.loads(sent["trained_on.json"]) == {"base": "base", "weights": "abc"}
    assert "secret" in (folder / "adapter_config.json").read_text()  # what is here stays as it is


def test_no_annotator_is_told_nor_a_folder_that_is_no_more(folder, recorded):
    (folder / "types.json").write_text(json.dumps({"mixture": {"type-0": 1.0}, "annotators": {"Anna": [0.9, 0.1]}}))
    (folder / "trained_on.json").write_text(json.dumps({"base": "/home/anna/models/base", "weights": "abc"}))
    push(folder, "me/mine")
    sent = recorded.made[-1][2]
    assert json.loads(sent["types.json"]) == {"mixture": {"type-0": 1.0}} and json.loads(sent["trained_on.json"])["base"] == "base"


def test_what_an_earlier_model_left_in_the_repository_is_removed(folder, recorded, capsys):
    recorded.there = ["README.md", "adapter_config.json", "config.json", "model.safetensors", ".gitattributes", "notes.txt"]
    push(folder, "me/mine")
    assert recorded.removed == ["config.json", "model.safetensors"] and "2 older files removed" in capsys.readouterr().out


def test_without_a_token_it_says_what_would_go(folder, recorded, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    push(folder, "me/mine")
    printed = capsys.readouterr().out
    assert recorded.made == [] and "  adapter_model.safetensors, 0.002 MB\n" in printed and "no token, so nothing was uploaded; after `hf auth login`: python -m common.student.hub" in printed


def test_a_repository_that_is_public_already_is_said_to_be(folder, recorded, capsys):
    recorded.private = False
    push(folder, "me/mine")
    assert "uploaded, PUBLIC, as the repository was before" in capsys.readouterr().out


@pytest.mark.parametrize("error, said", [
    (HfHubHTTPError("403 Forbidden:\n you may not write here", response=httpx2.Response(403, request=httpx2.Request("POST", "https://huggingface.co"))), "403 Forbidden: you may not write here"),
    (httpx2.ConnectError("no route to the Hub"), "no route to the Hub"),
])  # fmt: skip
def test_a_failure_is_one_sentence(error, said, folder, recorded):
    recorded.fails = error
    with pytest.raises(SystemExit, match=f"hub: me/mine: the upload failed: {said}$"):
        hub.main([str(folder), "me/mine"])


def test_a_folder_that_is_no_model_is_refused_whatever_lies_below(folder, recorded):
    with pytest.raises(FileNotFoundError, match="holds none of adapter_config.json, config.json, types.json; give the folder of an adapter or of a model"):
        push(folder.parent, "me/mine")
    assert recorded.made == []


@pytest.mark.parametrize("text", ["mine", "me/", "/mine", "me/mine/more", "me/my model", "https://huggingface.co/me/mine", ""])
def test_a_name_that_is_none_is_refused_before_anything_is_made(text):
    with pytest.raises(argparse.ArgumentTypeError, match="is no Hub repository; write OWNER/NAME"):
        repository(text)
    assert repository("me/mine-0.5_b") == "me/mine-0.5_b"


CARD = """---
base_model: owner/base
library_name: peft
tags: [lora, dpo]
model-index:
- name: rdpo
  results:
  - task: {type: text-generation}
    dataset: {name: rows, type: own_data}
    metrics: [{type: kl, value: 0.5}]
---
# rdpo
"""


@pytest.mark.parametrize("strength, figures", [(1.0, 1), (0.5, 0)])
def test_the_card_of_a_merged_model_keeps_figures_of_its_strength_alone(strength, figures, tmp_path):
    (tmp_path / "README.md").write_text(CARD)
    data = ModelCard(str(merged_card(tmp_path, strength))).data
    assert (data.base_model, data.library_name, data.tags, data.base_model_relation) == ("owner/base", "transformers", ["dpo"], "finetune")
    assert len(data.eval_results or []) == figures and f"at strength {strength:g}, merged" in merged_card(tmp_path, strength).text
