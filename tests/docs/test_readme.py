"""README and the pages behind it: tables come from result files, links lead somewhere, scripts run (pytest tests/docs/test_readme.py)."""

import json
import re

import pytest
import torch
from pages import PAGES, anchors, blocks

from common.evaluation.raters import ratings_in, read_ratings
from common.evaluation.result import finished_in
from common.loss import LOSSES, uses_scores
from common.methods import METHODS, label_of
from common.runtime import ROOT
from common.storage import write_jsonl

README = PAGES["README.md"]
TABLES = {"README.md": 1, "docs/doctor.md": 1, "docs/reproduce.md": 1, "docs/speed.md": 1, "results/README.md": 7, "results/small/README.md": 6, "results/local/README.md": 1}


@pytest.mark.parametrize("page", PAGES)
def test_every_table_is_the_committed_result_file(page):
    tables = re.findall(r"<!-- table: (\S+) -->\n(.*?)<!-- end of table -->", PAGES[page], re.S)
    assert len(tables) == TABLES.get(page, 0)
    for path, shown in tables:
        assert shown.strip() == (ROOT / path).read_text(encoding="utf-8").strip(), path


def test_the_readme_is_short_and_its_table_has_four_columns():
    assert len(README.encode()) <= 9216
    [table] = re.findall(r"<!-- table: \S+ -->\n(.*)\n", README)
    assert table.count("|") == 5


def test_the_local_students_counts_are_those_of_their_labels():
    """By the ids of each row's answers, the first reader's labels."""
    folder = ROOT / "results/local/safety"
    results, labelled = finished_in(folder / "finished.jsonl"), ratings_in(folder)
    counted = {label_of(r.method): [sum(labelled[name][0] for name in r.ids[of_set]) for of_set in ("held_out", "ood", "benign")] for r in results}
    right = read_ratings(folder / "right.csv")
    counted = {label_of(r.method): [*counted[label_of(r.method)], sum(right[name][0] for name in r.ids["benign"])] for r in results}
    table = re.search(r"^\| row \| harmful prompts.*?(?=\n\n)", PAGES["results/local/README.md"], re.M | re.S)[0].splitlines()[2:]
    shown = {cells[0]: list(map(int, cells[1:])) for line in table if (cells := line.strip("| ").split(" | "))}
    assert {name.removesuffix(" (our reading)"): counts for name, counts in counted.items()} == shown and len(shown) == 9
    assert all(len(r.ids[of_set]) == 32 for r in results for of_set in ("held_out", "ood", "benign"))


def test_the_learning_rates_shown_are_those_that_the_trials_chose():
    header, *lines = re.search(r"^\| learning rate .*?(?=\n\n)", PAGES["results/small/README.md"], re.M | re.S)[0].splitlines()
    methods = header.strip("| ").split(" | ")[1:]
    shown = {cells[0]: {method: float(rate) for method, rate in zip(methods, cells[1:]) if rate != "-"} for cells in (line.strip("| ").split(" | ") for line in lines[1:])}
    for label, folder in {"safety": "safety", "role-play": "roleplay-robustness", "sycophancy": "sycophancy"}.items():
        chosen = json.loads((ROOT / "results/small" / folder / "trials.json").read_text(encoding="utf-8"))["chosen"]
        assert shown[label] == {METHODS[method].label: setting["learning_rate"] for method, setting in chosen.items()}


def test_the_first_push_shown_is_the_gradient_of_the_losses():
    header, _, *lines = re.search(r"^\| loss \| g = .*?(?=\n\n)", PAGES["docs/method.md"], re.M | re.S)[0].splitlines()
    gaps = torch.tensor([float(gap.replace("−", "-")) for gap in re.findall(r"g = (\S+)", header)])
    assert len(lines) == len(LOSSES) - 1  # not ipo, whose u is another
    for line in lines:
        name, *shown = line.strip("| ").replace("`", "").split(" | ")
        u = torch.zeros(len(gaps), requires_grad=True)
        LOSSES[name](u, **({"score_gap": gaps} if uses_scores(name) else {})).sum().backward()
        assert torch.allclose(-u.grad, torch.tensor(list(map(float, shown))), atol=0.0051), name


def test_every_loss_has_its_formula():
    shown = re.findall(r"^\| `(\w+)` \| .* \| (yes|no) \|", PAGES["docs/method.md"], re.M)
    assert dict(shown) == {name: "yes" if uses_scores(name) else "no" for name in LOSSES}


@pytest.mark.parametrize("page", PAGES)
def test_every_picture_and_link_leads_somewhere(page):
    targets = [target.partition("#") for target in re.findall(r"\]\(([^)]+)\)", PAGES[page]) if not target.startswith("http")]
    assert targets
    for path, _, heading in targets:
        place = (ROOT / page).parent / path if path else ROOT / page
        assert place.exists(), path
        assert not heading or heading in anchors(place.read_text(encoding="utf-8")), heading


def test_every_page_of_docs_is_linked_from_the_readme():
    assert {name for name in PAGES if name.startswith("docs/")} <= set(re.findall(r"\]\(([^)#]+)", README))


@pytest.mark.parametrize(("page", "most"), [("README.md", 12), ("docs/design.md", 20)])
def test_the_tree_names_folders_and_files_that_exist(page, most):
    tree = PAGES[page].split("## Folders")[1].split("```")[1].strip().splitlines()
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    assert len(tree) <= most
    assert all((ROOT / name).exists() or name in ignored for name in (line.split()[0] for line in tree))


[SCRIPT], [SCORES] = (blocks(PAGES[page], "python") for page in ("README.md", "docs/own-data.md"))


def test_rows_without_scores_get_some_that_put_the_better_answer_first(tmp_path, monkeypatch):
    rows = [{"prompt": f"question {i}", "chosen": f"No, that is a myth, number {i}.", "rejected": f"Yes, certainly, number {i}."} for i in range(20)]
    monkeypatch.chdir(tmp_path)
    write_jsonl("rows.jsonl", rows)
    exec(compile(SCORES, "docs/own-data.md", "exec"), found := {})
    scored = [json.loads(line) for line in (tmp_path / "scored.jsonl").read_text().splitlines()]
    assert [row["score_chosen"] for row in scored] == list(found["scores"][::2]) and scored[0].keys() == {"prompt", "chosen", "rejected", "score_chosen", "score_rejected"}
    assert len(found["scores"]) == 40 and all(chosen > rejected for chosen, rejected in zip(found["scores"][::2], found["scores"][1::2]))


@pytest.mark.filterwarnings("ignore")
def test_the_script_runs_and_is_as_short_as_it_says(micro, tmp_path):
    assert len([line for line in SCRIPT.splitlines() if line.strip()]) <= 15
    script = SCRIPT.replace("HuggingFaceTB/SmolLM2-135M-Instruct", str(micro)).replace("runs/script", str(tmp_path))
    exec(compile(script, "README.md", "exec"), {})
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()
