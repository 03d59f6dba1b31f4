"""What a model is, whatever it is called, and what marks are made of (pytest tests/student/test_identity.py)."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

from common.methods import TrainSettings
from common.notebook.execute import _made_of
from common.runtime import ROOT
from common.student import identity as module
from common.student.identity import commit_of, identity, located, shown, weights_of
from common.training.kept import training_of

COMMIT = "0123456789" * 4
FILES = {
    "config.json": '{"hidden_size": 8}', "model.safetensors": "weights", "tokenizer.json": "{}", "tokenizer_config.json": '{"eos_token": "<|end|>", "is_local": true}',
    "generation_config.json": '{"eos_token_id": 1, "transformers_version": "5.0"}', "chat_template.jinja": "{{ messages }}", "README.md": "a card",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """A model's folder as far as its identity reads it."""
    place = tmp_path / "student"
    place.mkdir()
    for name, content in FILES.items():
        (place / name).write_text(content)
    return place


@pytest.mark.parametrize("file", [
    *(name for name in FILES if name != "README.md"), "pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.gguf", "model.safetensors.index.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "spiece.model", "qwen.tiktoken", "chat_template.json", "additional_chat_templates/tool_use.jinja", "adapter_config.json",
    "adapter_model.safetensors", "adapter_model.bin", "modeling_own.py",
])  # fmt: skip
def test_whatever_decides_what_a_model_says_is_in_its_identity(file, folder):
    before, path = identity(folder), folder / file
    path.parent.mkdir(exist_ok=True)
    path.write_text('{"new": 1}')
    assert identity(folder) != before
    changed = identity(folder)
    path.write_text('{"new": 2}')  # of the same length
    assert identity(folder) not in (before, changed)


@pytest.mark.parametrize("file, content", [
    ("README.md", "another card"), ("training_args.bin", "pickled"), ("trainer_state.json", "{}"), ("recipe.json", '{"seconds": 3}'), ("checkpoint-3/chat_template.jinja", "kept"),
    ("tokenizer_config.json", '{"is_local": false, "eos_token": "<|end|>", "name_or_path": "/elsewhere"}'), ("generation_config.json", '{"eos_token_id": 1, "transformers_version": "5.1"}'),
])  # fmt: skip
def test_what_tells_of_the_making_alone_is_not(file, content, folder):
    before, path = identity(folder), folder / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    assert identity(folder) == before


def test_an_adapter_is_the_same_wherever_its_base_lay(tmp_path):
    for place, base in (("a", "/home/a/base"), ("b", "/home/b/base"), ("c", "/home/b/base")):
        (tmp_path / place).mkdir()
        (tmp_path / place / "adapter_model.safetensors").write_text("weights")
        (tmp_path / place / "adapter_config.json").write_text(json.dumps({"r": 8 if place == "c" else 4, "base_model_name_or_path": base}))
    a, b, c = (identity(tmp_path / place) for place in "abc")
    assert a == b != c


def test_every_spelling_of_a_place_and_every_copy_has_one_identity(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "link").symlink_to(folder)
    spellings = [folder, str(folder), f"{folder}/", "student", "./student", "student/", "~/student", "copy", "link", os.path.relpath(folder, ROOT), f"{tmp_path}/copy/../student"]
    assert len({identity(name) for name in spellings}) == 1
    assert len({training_of("dpo", name, [], TrainSettings()) for name in spellings}) == 1
    assert {located(name) for name in spellings} == {folder, tmp_path / "copy"}
    assert shown("./student") == shown(folder) == f"student {identity(folder)}"


def test_a_path_from_the_project_root_means_the_same_folder_from_everywhere(tmp_path, monkeypatch):
    from_root = located("common/profiles")
    monkeypatch.chdir(tmp_path)
    assert located("common/profiles") == from_root == ROOT / "common/profiles"
    (tmp_path / "common" / "profiles").mkdir(parents=True)
    with pytest.raises(ValueError, match="common/profiles is a folder in two places, .* and .*; give the absolute path"):
        located("common/profiles")


@pytest.mark.parametrize("name", ["./nothing", "/nowhere/at/all", "~/nothing", "../nothing", "runs/models/nothing", "nothing/"])
def test_a_path_to_nothing_is_no_hub_name(name):
    with pytest.raises(FileNotFoundError, match=f"no student folder at {name}, from .*; give a folder that is there, or a Hub name"):
        located(name)


def test_an_empty_name_is_no_model():
    with pytest.raises(ValueError, match="this name is empty"):
        located(" ")


def test_a_hub_name_is_the_commit_that_the_cache_holds(monkeypatch):
    commit_of.cache_clear()
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda name, file, revision=None: f"/cache/snapshots/{COMMIT}/{file}" if name == "some/name" else None)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda name, *_, **__: pytest.fail("the Hub was asked") if name == "some/name" else (_ for _ in ()).throw(OSError("offline")))
    assert identity("some/name") == identity("some/name", "main") == f"some/name@{COMMIT}"
    assert identity("some/name", COMMIT) == "some/name"  # marks hold the revision beside it
    assert shown("some/name", COMMIT) == shown("some/name") == f"some/name@{COMMIT}"
    assert identity("not/here") == shown("not/here") == "not/here"
    commit_of.cache_clear()


def test_a_file_is_read_once_while_it_stays(folder, monkeypatch):
    read = []
    digest = hashlib.file_digest
    monkeypatch.setattr(module.hashlib, "file_digest", lambda content, kind: read.append(Path(content.name).name) or digest(content, kind))
    first = identity(folder)
    assert sorted(read) == ["chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json"]
    assert identity(folder) == first and len(read) == 4


def test_a_student_that_results_were_committed_of_keeps_its_mark_until_its_files_change(folder, monkeypatch):
    before = identity(folder)
    assert before != weights_of(folder)
    monkeypatch.setattr(module, "BEFORE", (module.fingerprint([(f.name, module._hash_beside(f)) for f in module._files(folder, module.BESIDE)]),))
    assert identity(folder) == weights_of(folder)
    (folder / "chat_template.jinja").write_text("{{ other }}")
    assert identity(folder) not in (before, weights_of(folder))


def test_a_mark_knows_a_local_teacher_by_its_texts(pairs):
    of = lambda teacher: training_of("dpo", "some/name", [pair.model_copy(update={"teacher": teacher}) for pair in pairs[:2]], TrainSettings())  # noqa: E731
    assert of("runs/models/student in NF4") == of("student 0123456789ab in NF4") == of("student ba9876543210 in NF4") != of("other 0123456789ab in NF4")


@pytest.mark.parametrize("parameters, file", [
    ({"student": "{folder}"}, "chat_template.jinja"), ({"teacher": "local:{folder}"}, "tokenizer_config.json"), ({"judge": "yes_no:{folder}"}, "generation_config.json"),
    ({"methods": ["base", "model:{folder}"]}, "model.safetensors"), ({"methods": ["adapter:{folder}"]}, "adapter_model.safetensors"), ({"final_judge": "learned:{folder}/rows.jsonl"}, "rows.jsonl"),
])  # fmt: skip
def test_a_notebook_is_run_again_where_a_model_or_file_that_it_names_has_changed(parameters, file, folder):
    filled = {name: [text.format(folder=folder) for text in value] if isinstance(value, list) else value.format(folder=folder) for name, value in parameters.items()}
    (folder / file).write_text('{"new": 1}')
    before = _made_of("safety/train_rdpo.ipynb", filled)
    assert before == _made_of("safety/train_rdpo.ipynb", filled)
    (folder / file).write_text('{"new": 2}')
    assert _made_of("safety/train_rdpo.ipynb", filled) != before
