"""Typed parameters, checked before any work starts (pytest tests/notebook/test_parameters.py)."""

import ast
import json
import math
import re

import nbformat
import pytest
import yaml
from fault_server import providers_file

from common.methods import TrainSettings
from common.notebook.execute import declared_parameters
from common.notebook.parameters import PARAMETERS, RENAMED, Checked, GenerateData, RewardScore, TrainRDPO, parameters
from common.notebook.profiles import profile_parameters
from common.notebook.providers import endpoint_named, read_providers
from common.runtime import ROOT
from common.specs import Spec, place_and_commit, spec_of


class Cell(Checked):
    seed: int = 0
    rate: float = 0.5
    name: str = "a"
    methods: list[str] = ["rdpo"]
    seeds: list[int] = [0]
    on: bool = False


def test_a_notebook_may_be_run_again_in_its_kernel_and_misspelt_parameters_are_still_found():
    kernel = {"experiment": "safety", "output": "runs/x", "methods": ["dpo"], "In": ["", "methods = ['dpo']", "parameters(...)"]}
    assert parameters("train_rdpo", kernel).methods == ["dpo"]
    kernel |= {"pairs": [1], "results": [], "without_signal": {}, "methods": ["sft"], "In": [*kernel["In"], "pairs = [1]", "methods: list[str] = ['sft']", "parameters(...)"]}
    assert parameters("train_rdpo", kernel).methods == ["sft"]
    kernel |= {"metods": ["rdpo"], "In": [*kernel["In"], "metods = ['rdpo']", "parameters(...)"]}
    with pytest.raises(ValueError, match="unknown parameter metods, did you mean methods"):
        parameters("train_rdpo", kernel)


@pytest.mark.parametrize("notebook, stage", [*((f"safety/{stage}.ipynb", stage) for stage in ("generate_data", "reward_score", "train_rdpo")), ("paper_tables.ipynb", "paper_tables")])
def test_no_cell_takes_the_name_of_a_parameter(notebook, stage):
    cells = [cell for cell in nbformat.read(ROOT / notebook, 4).cells if cell.cell_type == "code" and "parameters" not in cell.metadata.get("tags", [])]
    stored = {node.id for cell in cells for node in ast.walk(ast.parse(cell.source)) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    assert not stored & PARAMETERS[stage].model_fields.keys()


def test_defaults_pass_and_come_back():
    assert Cell.of({}).model_dump() == {"seed": 0, "rate": 0.5, "name": "a", "methods": ["rdpo"], "seeds": [0], "on": False}


def test_a_misspelt_name_is_an_error_with_a_suggestion():
    with pytest.raises(ValueError, match="unknown parameter sed, did you mean seed"):
        Cell.of(dict(sed=3))


@pytest.mark.parametrize("given", [{"seed": "3"}, {"seed": 1.5}, {"rate": "high"}, {"name": 3}, {"on": "yes"}, {"seeds": "a,b"}, {"seeds": [0.5]}], ids=str)
def test_a_mistyped_value_names_the_parameter(given):
    with pytest.raises(ValueError, match=f"parameter {next(iter(given))} = "):
        Cell.of(dict(**given))


def test_every_problem_is_named_at_once():
    with pytest.raises(ValueError, match="unknown parameter betaa.*parameter seed"):
        Cell.of(dict(betaa=1, seed="x"))


@pytest.mark.parametrize("given, expected", [("dpo,rdpo", ["dpo", "rdpo"]), ("dpo", ["dpo"]), (["sft"], ["sft"])])
def test_lists_come_as_lists_or_as_one_string(given, expected):
    assert Cell.of(dict(methods=given)).methods == expected


@pytest.mark.parametrize("given", ["0,1,2", [0, 1, 2], (0, 1, 2), "[0, 1, 2]", "(0,1,2)", " [ 0,1 , 2] ", "'0','1','2'"], ids=str)
def test_lists_of_numbers_too(given):
    assert Cell.of(dict(seeds=given)).seeds == [0, 1, 2]


@pytest.mark.parametrize("given", ["[dpo, rdpo]", '["dpo", "rdpo"]', "'dpo', 'rdpo'", "dpo,rdpo,", ("dpo", "rdpo")], ids=str)
def test_lists_in_brackets_and_quotes(given):
    assert Cell.of(dict(methods=given)).methods == ["dpo", "rdpo"]


@pytest.mark.parametrize("given, said", [
    ({"rate": math.nan}, "rate = nan: input should be a finite number"), ({"rate": math.inf}, "rate = inf: .*finite"), ({"rate": -math.inf}, "rate = -inf: .*finite"),
    ({"seed": -1}, "seed = -1: input should be greater than or equal to 0"), ({"seed": 2**32}, "seed = 4294967296: "), ({"seeds": [0, -1]}, r"seeds = \[0, -1\]: .*greater"),
    ({"seeds": []}, r"seeds = \[\]: .*at least 1 item"), ({"seeds": ""}, r"seeds = \[\]: "), ({"seeds": "0,0"}, r"seeds = \['0', '0'\]: a value stands twice"), ({"methods": "dpo,dpo"}, "methods = .*stands twice"),
    ({"name": "x" * 5000, "rate": "y" * 5000}, "rate = 'yyyy"),
], ids=str)  # fmt: skip
def test_a_number_that_cannot_be_is_named(given, said):
    with pytest.raises(ValueError, match=f"^parameter {said}") as refused:
        Cell.of(dict(**given))
    assert len(str(refused.value)) < 300


RUN = {"experiment": "safety", "output": "runs/here"}


@pytest.mark.parametrize("stage, most", [("generate_data", 16), ("reward_score", 14), ("train_rdpo", 22)])
def test_a_cell_declares_few_parameters_and_the_profile_miniature_says_the_same(stage, most):
    declared = declared_parameters(f"safety/{stage}.ipynb")
    assert len(declared["__annotations__"]) <= most
    given = profile_parameters("miniature", "safety", stage)
    rows_and_sizes = {"methods", "seeds", "evaluation_prompts", "max_new_tokens"}  # a table has more of them than a first look
    assert {name: declared[name] for name in given if name in declared and name not in rows_and_sizes} == {name: value for name, value in given.items() if name in declared and name not in rows_and_sizes}


def test_defaults_of_training_are_those_of_the_settings():
    assert TrainRDPO(**RUN).training == TrainSettings()


@pytest.mark.parametrize("name", RENAMED)
def test_a_former_name_is_told_the_new_one(name):
    with pytest.raises(ValueError, match=f"parameter {name} is (a field of a provider|a knob|written behind|now labels|gone)"):
        TrainRDPO.of({**RUN, name: "x"})


@pytest.mark.parametrize("given", [{"alpha": 2.0}, "alpha=2", "{alpha: 2.0}", '{"alpha": 2}', "alpha = 2.0,"], ids=str)
def test_knobs_come_as_a_mapping_or_as_text(given):
    p = TrainRDPO.of({**RUN, "knobs": given})
    assert p.knobs == {"alpha": 2.0} and p.training.knobs_of("rdpo") == {"alpha": 2.0}


def test_tau_may_be_left_to_the_judge():
    p = TrainRDPO.of({**RUN, "knobs": "tau=judge,eta=4"})
    assert p.knobs == {"tau": "judge", "eta": 4.0} and p.training.knobs_of("rdpo_label") == {"tau": 0.5, "eta": 4.0}


@pytest.mark.parametrize("model, given, said", [
    (TrainRDPO, {"knobs": {"eta": "judge"}}, "only tau is estimated"), (TrainRDPO, {"knobs": "tau=jugde"}, "knobs"), (TrainRDPO, {"knobs": {"clear": 1.5}}, "clear = 1.5"),
    (TrainRDPO, {"knobs": {"alfa": 2.0}}, "unknown setting 'alfa'"), (TrainRDPO, {"knobs": {"alpha": -1.0}}, "alpha = -1.0"),
    (TrainRDPO, {"micro_batch": 3, "batch_size": 16}, "micro_batch = 3 does not divide"), (TrainRDPO, {"methods": ["dpoo"]}, "unknown method dpoo"),
    (TrainRDPO, {"final_judge": "yesno:m"}, "unknown final_judge 'yesno:m', did you mean yes_no:...?"),
    (GenerateData, {"pairs": "counterfactul"}, "unknown pairs"), (GenerateData, {"teacher": "local"}, "unknown teacher 'local', did you mean local:...?"),
    (GenerateData, {"teacher": "gpt-4"}, "unknown teacher 'gpt-4'; there are miniature, recorded, endpoint:..., local:..."),
    (GenerateData, {"respond_with": "modell"}, "unknown respond_with"), (RewardScore, {"scale": "TEN"}, "unknown scale 'TEN'"),
    (RewardScore, {"labels": ["a", "b", "c"]}, "one file of labels"), (RewardScore, {"providers": "nowhere.yaml"}, "providers: no file .*nowhere.yaml"),
    (RewardScore, {"least_kappa": 2.0}, "parameter least_kappa = 2.0"), (RewardScore, {"judge": "miniature", "settings": "nowhere.yaml"}, "settings: no file"),
])  # fmt: skip
def test_what_makes_no_sense_together_is_refused_before_any_work(model, given, said):
    with pytest.raises(ValueError, match=said.replace("?", r"\?").replace("(", r"\(")):
        model.of({**RUN, **given})


def test_a_parameter_that_is_missing_is_named():
    with pytest.raises(ValueError, match="parameter output is missing"):
        GenerateData.of({"experiment": "safety"})


def test_rarer_parameters_come_from_a_file_which_errors_name(tmp_path):
    file = tmp_path / "rare.yaml"
    file.write_text("lora_rank: 4\nmicro_batch: 2\n")
    assert TrainRDPO.of({**RUN, "settings": str(file)}).lora_rank == 4
    for text, said in (("lora_rnk: 4", "rare.yaml: unknown parameter lora_rnk, did you mean lora_rank"), ("lora_rank: many", "rare.yaml: parameter lora_rank = 'many'"),
                       ("beta: 0.9", "gives beta, which is given already"), ("[", "not valid YAML"), ("beta: 1\nbeta: 2", "not valid YAML (beta is given twice"), ("- a", "expected parameters as NAME: VALUE")):  # fmt: skip
        file.write_text(text)
        with pytest.raises(ValueError, match=re.escape(said)):
            TrainRDPO.of({**RUN, "beta": 0.3, "settings": str(file)})


def test_names_in_a_notebook_that_are_no_plain_values_are_left_alone():
    assert parameters("generate_data", {**RUN, "json": json, "_hidden": 3, "In": [], "prompts": 8}).prompts == 8


@pytest.mark.parametrize("text, expected", [
    ("owner/name@0123456", ("owner/name", "0123456")), ("owner/name", ("owner/name", "")), ("name@v1.0", ("name", "v1.0")), ("./folder@v2", ("./folder@v2", "")),
    ("a/b/c@v2", ("a/b/c@v2", "")), ("/tmp@abc", ("/tmp@abc", "")), ("", ("", "")),
])  # fmt: skip
def test_a_commit_stands_behind_a_hub_name_alone(text, expected):
    assert place_and_commit(text) == expected


def test_specs_are_taken_apart_once():
    judges = {"alone": ["recorded"], "named": ["endpoint", "yes_no", "learned"]}
    assert spec_of("judge", "yes_no:owner/name@abc", **judges) == Spec("yes_no", "owner/name", "abc")
    assert spec_of("judge", "learned:rows@1.jsonl", **judges) == Spec("learned", "rows@1.jsonl")  # a file has no commit
    assert spec_of("judge", "endpoint:a/b@c:free", **judges) == Spec("endpoint", "a/b@c:free")
    assert spec_of("judge", "recorded", **judges) == Spec("recorded") and Spec("a").revision is None


def test_models_of_one_run_may_be_at_different_providers(tmp_path, monkeypatch):
    monkeypatch.setenv("KEY_OF_TWO", "secret")
    file = providers_file(tmp_path, here={"base_url": "http://one.example/v1", "api_key_env": ""}, away={"base_url": "http://two.example/v1", "api_key_env": "KEY_OF_TWO", "prices": [1.0, 2.0], "max_cost": 3.0})
    names = {name: endpoint_named(name, file) for name in ("here/owner/model", "away/model", "owner/model", "model")}
    assert {name: chat.name for name, chat in names.items()} == {
        "here/owner/model": "owner/model at http://one.example/v1", "away/model": "model at http://two.example/v1",
        "owner/model": "owner/model at http://one.example/v1", "model": "model at http://one.example/v1",
    }  # fmt: skip
    assert names["away/model"].budget.limit == 3.0 and names["model"].budget.limit is None
    judge = endpoint_named("away/model", file)
    assert judge.budget is names["away/model"].budget is not names["model"].budget and judge.cost == 0  # one cap for both roles
    assert list(read_providers("")) == ["openai"] and "api.openai.com" in endpoint_named("gpt", "").name
    with pytest.raises(ValueError, match="has no provider awya, did you mean away"):
        endpoint_named("awya/model", file)


@pytest.mark.parametrize("fields, said", [
    ({"base_ulr": "x"}, "one: no field base_ulr, did you mean base_url"), ({"api_key": "sk-1"}, "keys are not written into files"), ({"concurrency": 0}, "concurrency = 0"),
    ({"prices": [1.0]}, "prices"), ({"base_url": "http://a.example/v1"}, "needs api_key_env beside it"), ("text", "expected fields such as base_url"),
])  # fmt: skip
def test_a_wrong_provider_is_named_with_file_and_field(fields, said, tmp_path):
    file = tmp_path / "providers.yaml"
    file.write_text(yaml.safe_dump({"one": fields}))
    with pytest.raises(ValueError, match=f"providers: .*providers.yaml.*{said}"):
        RewardScore.of({**RUN, "providers": str(file)})


@pytest.mark.parametrize("given, message", [
    ({"edits": "few"}, "edits = 'few': a revision's edits are free or minimal"),
    ({"edits": "minimal", "teacher": "endpoint:model"}, "prompts_file = safety-minimal"),
    ({"edits": "minimal", "pairs": "counterfactual_negation"}, "edits = 'minimal' is of the miniature's teacher"),
])  # fmt: skip
def test_minimal_edits_are_asked_of_whoever_can_make_them(given, message):
    assert parameters("generate_data", {**RUN, "edits": "minimal"}).edits == "minimal"
    with pytest.raises(ValueError, match=re.escape(message)):
        parameters("generate_data", {**RUN, **given})
