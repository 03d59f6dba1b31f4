"""The package's layers: a module imports only from lower ones, and importing `common` stays light (pytest tests/test_layers.py)."""

import ast
import subprocess
import sys
from pathlib import Path

import common

ROOT = Path(common.__file__).parent
LAYERS = [
    {"schema", "loss", "feedback", "verdict_text"},
    {"replies", "verdict_words"},
    {"prompts", "storage", "verdict", "statistics", "packing", "shared_attention", "lm_head", "pacing", "wording"},
    {"run", "dialects", "yields"},
    {"identity"},
    {"student", "preference", "reference", "trainer_config"},
    {"chat", "logprobs"},
    {"endpoint", "rows", "self_critique", "judge", "trainer", "attacks", "smollm2", "miniature.grammar",
     "miniature.safety_text", "miniature.roleplay_text", "miniature.sycophancy_text", "miniature.muon"},
    {"miniature", "miniature.safety", "miniature.roleplay", "miniature.sycophancy", "miniature.language_model", "miniature.actors",
     "methods", "local_judges", "counterfactual", "lexicon"},
    {"miniature.instructed"},
    {"evaluate", "sources", "trainings"},
    {"frontier", "recorded", "judged", "organism"},
    {"experiment", "labels"},
    {"rating"},
    {"report", "backends", "notebook", "before_after"},
    {"preflight", "grid", "small", "own_data", "study"},
    {"batch", "evidence_rows"},
    {"tuning", "laboratory"},
    {"mechanism"},
    {"evidence_figures"},
    {"evidence_report"},
    {"evidence"},
]


def modules():
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py"}


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "common":
            if node.module in ("common", "common.miniature"):
                prefix = node.module.removeprefix("common").lstrip(".")
                yield from (f"{prefix}.{alias.name}".lstrip(".") for alias in node.names)
            else:
                yield node.module.removeprefix("common.")


def test_every_module_has_a_layer():
    assert set(modules()) == set().union(*LAYERS)


def test_imports_point_downwards():
    level = {name: number for number, layer in enumerate(LAYERS) for name in layer}
    wrong = [(name, used) for name, path in modules().items() for used in imports_of(path) if level[used] >= level[name]]
    assert wrong == []


def test_only_the_trainer_its_settings_and_methods_import_trl():
    users = {name for name, path in modules().items() if "from trl" in path.read_text() or "import trl" in path.read_text()}
    assert users == {"trainer", "trainer_config", "methods"}


def test_importing_common_loads_no_heavy_library():
    code = "import sys, common, common.schema, common.prompts, common.storage; print(sorted({'torch', 'transformers', 'trl', 'datasets'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
