"""The floors of the package: imports point downwards, and `import common` stays light (pytest tests/test_layers.py)."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import common

ROOT = Path(common.__file__).parent
FLOORS = [
    {"schema", "statistics", "loss", "command"},
    {"storage"},
    {"prompts"},
    {"runtime"},
    {"specs", "status", "engines"},
    {"student"},
    {"chat", "logprobs", "methods"},
    {"data"},
    {"judge", "trainer"},
    {"evaluation"},
    {"training"},
    {"report"},
    {"show"},
    {"doctor"},
    {"own_data", "miniature", "audit"},
    {"notebook"},
    {"commands", "paraphrase", "reversegen"},
    {"profiles", "study", "gate"},
    {"batch"},
    {"local"},
]
"""Packages and modules from the ground up, as `docs/design.md` shows them."""
LABORATORY = {"miniature", "study"}
FRONT_DESK = {"notebook.chats", "notebook.judges", "notebook.prompts", "notebook.students"}
"""Modules that open the miniature where a parameter asks for it, and import it only then."""


@cache
def modules():
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py"}


@cache
def imports_of(path):
    """(module, whether it is imported when the file is), of every import of a file."""
    found = []
    tree = ast.parse(path.read_text(encoding="utf-8"))
    later = {node for function in ast.walk(tree) if isinstance(function, ast.FunctionDef) for node in ast.walk(function)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "common":
            for alias in node.names:
                whole = f"{node.module}.{alias.name}".removeprefix("common.")
                if node.module == "common" and whole not in modules():
                    continue  # a name of the package itself, which every floor stands on
                found.append((whole if whole in modules() else node.module.removeprefix("common."), node not in later))
    return found


def test_imports_point_downwards():
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    parts = {name: name.split(".")[0] for name in modules()}
    assert set(parts.values()) - {"__main__"} == set(floor)
    edges = [(name, used.split(".")[0], used) for name, path in modules().items() if name != "__main__" for used, _ in imports_of(path)]
    assert [(name, used) for name, package, used in edges if package != parts[name] and floor[package] >= floor[parts[name]]] == []


def test_no_module_imports_itself_by_a_detour():
    graph = {name: {used for used, at_once in imports_of(path) if used != name} for name, path in modules().items()}
    while free := [name for name, used in graph.items() if not used & graph.keys()]:
        for name in free:
            del graph[name]
    assert not graph


def test_a_folder_has_at_most_twelve_files():
    folders = {folder: sum(1 for file in folder.iterdir() if file.is_file()) for folder in [ROOT, *ROOT.rglob("*")] if folder.is_dir() and folder.name != "__pycache__"}
    assert {str(folder): files for folder, files in folders.items() if files > 12} == {}


TOP_LEVEL = {
    ".ci", ".gitignore", "CITATION.cff", "LICENSE", "LOG.md", "Makefile", "README.md", "pyproject.toml", "requirements.txt", "paper_tables.ipynb",
    "common", "docs", "results", "tests", "safety", "roleplay-robustness", "sycophancy",
}  # fmt: skip


@pytest.mark.skipif(not (ROOT.parent / ".git").exists(), reason="no clone")
def test_nothing_strays_to_the_top_level():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT.parent, capture_output=True, text=True, check=True).stdout
    assert {name.split("/")[0] for name in tracked.splitlines()} == TOP_LEVEL


def test_only_the_front_desk_knows_the_laboratory_and_only_when_asked():
    users = {(name, at_once) for name, path in modules().items() if name.split(".")[0] not in LABORATORY for used, at_once in imports_of(path) if used.split(".")[0] in LABORATORY}
    assert {name for name, _ in users} == FRONT_DESK and not any(at_once for _, at_once in users)


def test_only_notebooks_and_commands_read_notebooks():
    users = {name for name, path in modules().items() for used, _ in imports_of(path) if used.startswith(("notebook.execute", "notebook.parameters")) and not name.startswith("notebook.")}
    assert users == {"batch", "commands.judge", "commands.evaluate"}


def test_only_the_trainer_and_training_import_trl():
    users = {name.split(".")[0] for name, path in modules().items() if "from trl" in path.read_text(encoding="utf-8") or "import trl" in path.read_text(encoding="utf-8")}
    assert users == {"trainer", "training"}


def test_importing_common_loads_no_heavy_library():
    code = "import sys, common, common.schema, common.prompts, common.storage, common.judge, common.student, common.trainer; print(sorted({'torch', 'transformers', 'trl', 'datasets', 'sklearn'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
