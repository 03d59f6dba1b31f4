"""The README: its tables come from result files, its tree is the tree, its script runs (pytest tests/pages/test_readme.py)."""

import json
import re

import pytest

from common.methods import METHODS
from common.runtime import ROOT

PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "results/README.md", "results/small/README.md")}
README = PAGES["README.md"]


@pytest.mark.parametrize(("page", "number"), [("README.md", 3), ("results/README.md", 4), ("results/small/README.md", 4)])
def test_every_table_is_the_committed_result_file(page, number):
    tables = re.findall(r"<!-- table: (\S+) -->\n(.*?)<!-- end of table -->", PAGES[page], re.S)
    assert len(tables) == number
    for path, shown in tables:
        assert shown.strip() == (ROOT / path).read_text(encoding="utf-8").strip(), path


def test_the_learning_rates_shown_are_those_that_the_trials_chose():
    header, *lines = re.search(r"^\| learning rate .*?(?=\n\n)", PAGES["results/small/README.md"], re.M | re.S)[0].splitlines()
    methods = header.strip("| ").split(" | ")[1:]
    shown = {cells[0]: dict(zip(methods, map(float, cells[1:]))) for cells in (line.strip("| ").split(" | ") for line in lines[1:])}
    for label, folder in {"safety": "safety", "role-play": "roleplay-robustness", "sycophancy": "sycophancy"}.items():
        chosen = json.loads((ROOT / "results/small" / folder / "trials.json").read_text(encoding="utf-8"))["chosen"]
        assert shown[label] == {METHODS[method].label: setting["learning_rate"] for method, setting in chosen.items()}


def headings(page):
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in re.findall(r"^#+ (.+)$", page, re.M)}


@pytest.mark.parametrize("page", PAGES)
def test_every_picture_and_link_leads_somewhere(page):
    targets = [target.partition("#") for target in re.findall(r"\]\(([^)]+)\)", PAGES[page]) if not target.startswith("http")]
    assert len(targets) >= 5
    for path, _, heading in targets:
        place = (ROOT / page).parent / path if path else ROOT / page
        assert place.exists(), path
        assert not heading or heading in headings(place.read_text(encoding="utf-8")), heading


def test_the_tree_names_every_module_and_notebook():
    tree = README.split("## The tree")[1].split("```")[1]
    named = {line.split()[0] for line in tree.strip().splitlines()}
    files = {str(p.relative_to(ROOT)) for p in (ROOT / "common").rglob("*.py") if p.name != "__init__.py"}
    files |= {str(p.relative_to(ROOT)) for p in ROOT.glob("*/*.ipynb") if p.parts[-2] != "runs"} | {"paper_tables.ipynb"}
    assert {name for name in named if name.endswith((".py", ".ipynb"))} == files
    assert all((ROOT / name).exists() for name in named)


SCORES, SCRIPT = re.findall(r"```python\n(.*?)```", README, re.S)


def test_rows_without_scores_get_some_that_put_the_better_answer_first():
    rows = [{"prompt": f"question {i}", "chosen": f"No, that is a myth, number {i}.", "rejected": f"Yes, certainly, number {i}."} for i in range(20)]
    found = {"rows": rows}
    exec(compile(SCORES, "README.md", "exec"), found)
    assert len(found["scores"]) == 40 and all(chosen > rejected for chosen, rejected in zip(found["scores"][::2], found["scores"][1::2]))


@pytest.mark.filterwarnings("ignore")
def test_the_script_runs_and_is_as_short_as_it_says(micro, tmp_path):
    assert len([line for line in SCRIPT.splitlines() if line.strip()]) <= 15
    script = SCRIPT.replace("HuggingFaceTB/SmolLM2-135M-Instruct", str(micro)).replace("runs/script", str(tmp_path))
    exec(compile(script, "README.md", "exec"), {})
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()
