"""Where a notebook's kernel may start (pytest tests/notebook/test_kernels.py)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pydantic
import pytest

from common.notebook.execute import execute
from common.runtime import ROOT

PACKAGES = str(Path(pydantic.__file__).parent.parent)
"""Where the libraries are; named in PYTHONPATH, its .pth files are not read, so that an editable install is not seen."""


def first_cells(notebook, folder, path):
    """What the first two code cells print in an interpreter that starts in `folder` and has `path` alone."""
    cells = [cell for cell in json.loads((ROOT / notebook).read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"][:2]
    source = "\n".join("".join(cell["source"]) for cell in cells) + "\nprint(resolve(p.output))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}
    return subprocess.run([sys.executable, "-S", "-c", source], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("notebook, folder", [("safety/generate_data.ipynb", "safety"), ("paper_tables.ipynb", ".")])
def test_a_clone_that_is_not_installed_runs_from_the_notebooks_folder_and_from_the_root(notebook, folder):
    done = first_cells(notebook, ROOT / folder, [PACKAGES])
    assert done.returncode == 0 and done.stdout.startswith(f"{ROOT}/runs/miniature"), done.stderr


@pytest.mark.slow
def test_an_installed_one_runs_from_anywhere_and_writes_below_the_project(tmp_path):
    done = first_cells("safety/train_rdpo.ipynb", tmp_path, [PACKAGES, str(ROOT)])
    assert done.returncode == 0 and done.stdout.startswith(f"{ROOT}/runs/miniature"), done.stderr


@pytest.mark.parametrize("notebook, folder, path, missing", [
    ("safety/train_rdpo.ipynb", "elsewhere", [PACKAGES], "common"), ("paper_tables.ipynb", "elsewhere", [PACKAGES], "common"), ("safety/generate_data.ipynb", "safety", [], "pydantic"),
])  # fmt: skip
def test_a_kernel_without_project_or_libraries_says_in_one_sentence_what_to_do(notebook, folder, path, missing, tmp_path):
    done = first_cells(notebook, tmp_path if folder == "elsewhere" else ROOT / folder, path)
    said = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and said.startswith(f"ImportError: No module named '{missing}' for {sys.executable}: run `make .venv/.installed` in the project's folder")
    assert said.endswith("or `pip install -r requirements.txt` there and restart the kernel") and "During handling" not in done.stderr


@pytest.mark.slow
def test_a_real_kernel_may_start_beside_the_notebook(tmp_path, monkeypatch):
    monkeypatch.setattr("common.notebook.execute.ROOT", ROOT / "safety")
    assert execute("safety/generate_data.ipynb", tmp_path / "1.ipynb", {"output": str(tmp_path), "prompts": 8, "source": ""})
    assert len((tmp_path / "pairs.jsonl").read_text().splitlines()) == 8
