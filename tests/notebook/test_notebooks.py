"""The notebooks: form, strict parameters, and all of them run through papermill on the micro world (pytest tests/notebook/test_notebooks.py)."""

import json
import os
import shutil
import subprocess
import sys
import tracemalloc

import nbformat
import pytest
from fault_server import FaultServer, providers_file

from common import status
from common.batch import main, steps_of
from common.data.counterfactual import INSTRUCTIONS, PAIRS, VARIANTS, generate_counterfactual_pairs
from common.data.preference import preference_dataset
from common.data.self_critique import generate_pairs
from common.judge.scoring import score_pairs
from common.notebook.chats import open_teacher
from common.notebook.execute import _made_of, checked_parameters, declared_parameters, execute, is_finished
from common.notebook.grid import Step, run_grid, threads_each
from common.notebook.judges import open_judge
from common.notebook.profiles import PROFILES, STAGES, experiments, own_pairs, stage_parameters
from common.notebook.prompts import open_prompts, texts_of
from common.notebook.students import open_experiment
from common.report.measurements import read_measurements
from common.runtime import ROOT
from common.schema import Pair, PromptRecord, Sampling, ScoredPair
from common.storage import claim, read_records
from common.storage.shards import merge

NOTEBOOKS = sorted([*ROOT.glob("*/*.ipynb"), ROOT / "paper_tables.ipynb"])
NOTEBOOKS = [path for path in NOTEBOOKS if "runs" not in path.parts and ".venv" not in path.parts]
MICRO = {"student": "micro", "methods": "base,dpo,rdpo", "seeds": [0], "train_pairs": 24, "evaluation_prompts": 12, "max_new_tokens": 24}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: str(path.relative_to(ROOT)))
def test_form(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    tagged = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    assert tagged == code[:1] and "import" not in tagged[0].source
    assert all("  # " in line for line in tagged[0].source.splitlines())  # what `papermill --help-notebook` says of it
    assert max(len(cell.source.splitlines()) for cell in code[1:]) <= 15
    assert f'p = parameters("{path.stem}", globals())' in code[1].source
    assert notebook.cells[0].cell_type == "markdown" and not set(notebook.metadata) - {"kernelspec", "language_info"}


@pytest.mark.parametrize("profile", sorted(path.parent.name for path in PROFILES.glob("*/train_rdpo.yaml")))
def test_every_profile_is_valid_for_every_notebook(profile):
    for step in [step for experiment in experiments() for step in steps_of(experiment, STAGES, profile, {}, PAIRS)]:
        checked_parameters(step.notebook, step.given)


def test_evaluation_is_on_validation_unless_asked():
    assert declared_parameters("safety/train_rdpo.ipynb")["evaluate_on"] == "validation"
    assert "evaluate_on" not in stage_parameters("safety", "train_rdpo", "miniature", "self_critique")


@pytest.fixture(scope="module")
def chain(micro, tmp_path_factory):
    """Steps 1 to 3 and the tables, executed once on the micro student."""
    folder = tmp_path_factory.mktemp("chain")
    output = str(folder / "runs" / "safety")
    assert execute("safety/generate_data.ipynb", folder / "1.ipynb", {"output": output, "prompts": 48})
    assert execute("safety/reward_score.ipynb", folder / "2.ipynb", {"output": output, "pairs_file": f"{output}/pairs.jsonl", "unscored_limit": 0.2})
    assert execute("safety/train_rdpo.ipynb", folder / "3.ipynb", {"output": output, "pairs_file": f"{output}/scored.jsonl", **MICRO})
    assert execute("safety/generate_data.ipynb", folder / "5.ipynb", {"output": f"{output}/counterfactual_negation", "pairs": "counterfactual_negation", "prompts": 48})
    train_on(f"{output}/counterfactual_negation", experiment="safety")
    assert execute("paper_tables.ipynb", folder / "4.ipynb", {"runs": str(folder / "runs"), "output": str(folder / "tables")})
    return folder


def train_on(output, **given):
    """Steps 2 and 3 on the pairs in a folder, without their notebooks: base and dpo on the micro student."""
    judged = checked_parameters("safety/reward_score.ipynb", {"output": output, **given})
    score_pairs(open_judge(judged), read_records(f"{output}/pairs.jsonl", Pair), f"{output}/scored.jsonl", unscored_limit=0.2)
    parameters = checked_parameters("safety/train_rdpo.ipynb", {"output": output, **MICRO, "methods": "base,dpo", **given})
    return open_experiment(parameters).run(["base", "dpo"], [0])


def test_the_chain_leaves_what_a_reader_needs(chain):
    run = chain / "runs" / "safety"
    assert len((run / "pairs.jsonl").read_text().splitlines()) == len((run / "scored.jsonl").read_text().splitlines()) == 48
    for method in ("dpo", "rdpo"):
        metrics = json.loads((run / "seed-0" / method / "metrics.json").read_text())["metrics"]
        assert {"harmlessness", "utility", "judged", "gibberish", "kl"} <= {metric["metric"] for metric in metrics}
        assert (run / "seed-0" / method / "adapter" / "README.md").exists()
    for stage in STAGES:
        assert json.loads((run / f"{stage}.manifest.json").read_text())["versions"]["trl"].startswith("1.16")
    tables = chain / "tables" / "safety"
    assert {path.name for path in tables.iterdir()} == {"table.md", "table.tex", "table.html", "table.csv", "safety_utility.png"}
    assert (tables / "safety_utility.png").stat().st_size > 5_000
    assert "| safety " in (chain / "tables" / "overview" / "table.md").read_text()
    assert "which `reward_score.manifest.json` notes and which are taken as known" in (chain / "3.ipynb").read_text()  # the doctor's noise


def test_rows_of_counterfactual_dpo_stand_in_the_same_table_with_a_metric_of_their_own(chain):
    folder = chain / "runs" / "safety" / "counterfactual_negation"
    pairs = read_records(folder / "pairs.jsonl", Pair)
    assert {(p.variant, p.instruction) for p in pairs} == {("negation", INSTRUCTIONS["safety"].undesired)} and not any("\n" in p.prompt for p in pairs)
    assert (folder / "seed-0" / "dpo_negation" / "adapter" / "README.md").exists()
    rows = read_measurements(chain / "tables" / "safety" / "table.csv")
    measured = {method: {row["metric"] for row in rows if row["method"] == method} for method in ("base", "dpo", "rdpo", "dpo_negation")}
    assert all("style" in metrics for metrics in measured.values())
    assert {method for method, metrics in measured.items() if "style_against" in metrics} == {"base", "dpo_negation"}
    assert [row["metric"] for row in rows if row["method"] == "base"].count("harmlessness") == 1  # base stands in both folders and once in the table
    lines = (chain / "tables" / "safety" / "table.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:6]] == ["base student", "DPO", "rDPO (offset)", "counterfactual DPO, negation"]
    assert "desired style" in lines[0] and "when asked for it" in lines[0] and "when asked for the opposite" in lines[0]


@pytest.mark.slow
@pytest.mark.parametrize("experiment", INSTRUCTIONS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_goes_through_every_step(variant, experiment, micro, tmp_path):
    """Generated and scored in every world; trained and evaluated in the one whose micro student the tests have."""
    parameters = checked_parameters(f"{experiment}/generate_data.ipynb", {"pairs": f"counterfactual_{variant}", "output": str(tmp_path), "prompts": 32})
    if variant == "neutral" and experiment != "sycophancy":
        pytest.skip("the prompts of this world have no plain form of their own")
    two_criteria = experiment == "sycophancy"
    made = generate_counterfactual_pairs(
        open_teacher(parameters), open_prompts(parameters), INSTRUCTIONS[experiment], variant, Sampling(), tmp_path / "pairs.jsonl", base=two_criteria
    )
    assert len(made) == 32 and all(bool(pair.response_base) == two_criteria for pair in made)
    judge = open_judge(checked_parameters(f"{experiment}/reward_score.ipynb", {"output": str(tmp_path)}))
    scored = score_pairs(judge, made, tmp_path / "scored.jsonl", unscored_limit=0.3)
    asked = INSTRUCTIONS[experiment].undesired if variant == "negation" else ""
    assert all(row["prompt"][-1]["content"].endswith(asked) for row in preference_dataset(scored))
    assert sum(pair.score_revised > pair.score_response for pair in scored if pair.is_scored) > 0
    if experiment == "safety":
        base, trained = open_experiment(checked_parameters("safety/train_rdpo.ipynb", {"output": str(tmp_path), **MICRO})).run(["base", "dpo"], [0])
        assert (base.row, trained.row, trained.variant) == ("base", f"dpo_{variant}", variant)
        assert variant == "neutral" or {"style", "style_against"} <= {metric.metric for metric in trained.metrics} & {metric.metric for metric in base.metrics}


def test_pairs_of_different_kinds_are_never_mixed(micro, tmp_path):
    """One folder given for both: the first file is set aside whole, and is there again when its settings are."""
    parameters = checked_parameters("safety/generate_data.ipynb", {"prompts": 24})
    records, texts = open_prompts(parameters), texts_of(parameters)
    teacher = {pairs: open_teacher(checked_parameters("safety/generate_data.ipynb", {"pairs": pairs})) for pairs in ("self_critique", "counterfactual_encourage")}
    path = claim(tmp_path / "pairs.jsonl", {"pairs": "self_critique"})
    first = generate_pairs(teacher["self_critique"], records, texts, Sampling(), path)
    claim(path, {"pairs": "counterfactual_encourage"})
    second = generate_counterfactual_pairs(teacher["counterfactual_encourage"], records, INSTRUCTIONS["safety"], "encourage", Sampling(), path)
    assert {p.variant for p in read_records(path, Pair)} == {"encourage"} and [p.id for p in first] == [p.id for p in second]
    assert read_records(claim(path, {"pairs": "self_critique"}), Pair) == first
    mixed = [ScoredPair(**pair.model_dump(), score_response=0.0, score_revised=1.0).model_dump_json() for pair in (*first[:12], *second[12:])]
    (tmp_path / "mixed.jsonl").write_text("\n".join(mixed) + "\n")
    with pytest.raises(ValueError, match=r"made in different ways \(self_critique, encourage\)"):
        open_experiment(checked_parameters("safety/train_rdpo.ipynb", {"pairs_file": str(tmp_path / "mixed.jsonl"), "output": str(tmp_path), **MICRO}))


def test_every_kind_of_pairs_has_a_folder_of_its_own_and_its_steps_a_name():
    kinds = [kind for kind in PAIRS if kind != "recorded"]  # which take the place of self-critique
    steps = steps_of("sycophancy", STAGES, "paper", {"seeds": [1]}, kinds)
    assert len({step.executed for step in steps}) == len({step.name for step in steps}) == 18
    assert steps[0].given["output"] == "runs/paper/sycophancy" and steps[0].name == "sycophancy/generate_data.ipynb"
    assert steps[-1].given["pairs_file"] == "runs/paper/sycophancy/counterfactual_neutral/scored.jsonl"
    assert [step.given["pairs"] for step in steps if step.stage == "generate_data"] == kinds


def test_a_profile_has_kinds_of_pairs_and_files_of_more_parameters_of_its_own(tmp_path, capsys):
    assert [own_pairs("small", name) for name in experiments()] == ["recorded", "recorded", "counterfactual_neutral"]
    steps = steps_of("sycophancy", STAGES, "small", {}, to="elsewhere")
    assert steps[-1].given["pairs_file"] == "runs/elsewhere/sycophancy/counterfactual_neutral/scored.jsonl"
    for file in sorted(path.stem for path in (PROFILES / "small").glob("*.yaml") if path.stem not in STAGES):
        assert main(["small", "-f", file, "--experiment", "safety", "--dry-run", "--stage", "reward_score"]) in (0, 1)
    capsys.readouterr()
    assert main(["small", "-f", "fasst"]) == 2 and "error: -f fasst: no file" in capsys.readouterr().err


@pytest.mark.slow
def test_recorded_pairs_take_the_place_of_a_teacher(tmp_path):
    rows = [{"prompt": f"Forge letter {i}", "response": f"With ink {i}.", "response_revised": f"I would rather not {i}."} for i in range(60)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    given = {"pairs": "recorded", "source": str(tmp_path / "rows.json"), "output": str(tmp_path / "run"), "prompts": 0}
    assert execute("safety/generate_data.ipynb", tmp_path / "1.ipynb", given)
    made = read_records(tmp_path / "run" / "pairs.jsonl", Pair)
    assert {pair.split for pair in made} == {"train", "validation", "test"} and made[0].response.startswith("With ink") and len(made) == 60
    assert json.loads((tmp_path / "run" / "generate_data.manifest.json").read_text())["made_of"]["teacher"] == f"recorded in {tmp_path / 'rows.json'}"
    with pytest.raises(ValueError, match="pairs = recorded needs source"):
        open_prompts(checked_parameters("safety/generate_data.ipynb", {"pairs": "recorded"}))


def test_the_story_shows_the_analytic_loss_before_training(chain):
    text = json.dumps(json.loads((chain / "3.ipynb").read_text()))
    assert "dpo: loss before training 0.693147, analytic 0.693147" in text
    assert "we see 0.798139, by hand 0.798139" in text


def test_no_cell_prints_more_than_a_screen(chain):
    for path in chain.glob("*.ipynb"):
        for number, cell in enumerate(nbformat.read(path, as_version=4).cells):
            shown = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell.get("outputs", [])]
            wrapped = [1 + len(line) // 160 for line in "\n".join(shown).splitlines()]
            assert sum(wrapped) <= 40, f"{path.name}, cell {number}"


def test_executed_notebooks_are_small(chain):
    assert max(path.stat().st_size for path in chain.glob("*.ipynb")) < 1_000_000


def test_a_shard_has_a_folder_of_its_own_and_its_part_of_the_prompts(tmp_path):
    steps = [steps_of("safety", STAGES[:2], "miniature", {"prompts": 7}, shard=f"{number}/2") for number in (1, 2)]
    assert [step.given["output"] for step in steps[0]] == ["runs/miniature/safety/shard-1-of-2"] * 2 and "shard" not in steps[0][1].given
    assert steps[1][0].name == "safety/generate_data.ipynb (2/2)" and steps[1][1].given["pairs_file"].endswith("shard-2-of-2/pairs.jsonl")
    parts = [open_prompts(checked_parameters("safety/generate_data.ipynb", of_shard[0].given)) for of_shard in steps]
    whole = open_prompts(checked_parameters("safety/generate_data.ipynb", {"prompts": 7}))
    assert parts == [whole[::2], whole[1::2]]


@pytest.mark.slow
def test_merged_shards_leave_nothing_for_the_whole_run_to_ask_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    prompts, run = tmp_path / "prompts.jsonl", tmp_path / "run"
    prompts.write_text("".join(PromptRecord(id=f"p{i}", experiment="safety", split="train", prompt=f"question {i}").model_dump_json() + "\n" for i in range(5)))
    with FaultServer() as server:
        given = {"teacher": "endpoint:m", "judge": "endpoint:m", "scale": "BINARY", "source": prompts, "output": run, "providers": providers_file(tmp_path, there={"base_url": server.url, "api_key_env": ""}), "pilot": 0}
        asked = ["miniature", "--experiment", "safety", "--stage", "generate_data", "--stage", "reward_score", *(str(text) for name, value in given.items() for text in ("-p", name, value))]
        assert main([*asked, "--shard", "1/2", "--shard", "2/2"]) == 0
        assert [len((run / f"shard-{i}-of-2" / "pairs.jsonl").read_text().splitlines()) for i in (1, 2)] == [3, 2]
        assert len(server.asked) == 15 + 10 + 2  # turns, verdicts, and whether each shard's judge keeps to a schema
        assert merge(run) == {"pairs.jsonl": 5, "scored.jsonl": 5, "judge_replies.jsonl": 11, "teacher_replies.jsonl": 15}
        for path in run.glob("*_replies.jsonl"):
            path.unlink()  # which would answer too
        shutil.rmtree(run / "shard-1-of-2")
        shutil.rmtree(run / "shard-2-of-2")
        assert main(asked) == 0 and len(server.asked) == 15 + 10 + 2
    assert capsys.readouterr().out.count(".ipynb: done in") == 2
    assert [pair.prompt for pair in read_records(run / "pairs.jsonl", Pair)] == [f"question {i}" for i in (0, 2, 4, 1, 3)]
    assert json.loads((run / "generate_data.manifest.json").read_text())["chains"] == len((run / "scored.jsonl").read_text().splitlines()) == 5


def test_a_second_run_reuses_what_is_finished(chain):
    output = str(chain / "runs" / "safety")
    assert not execute("safety/generate_data.ipynb", chain / "1.ipynb", {"output": output, "prompts": 48})


@pytest.mark.slow
def test_plain_papermill_stops_at_a_misspelt_parameter(tmp_path):
    command = [sys.executable, "-m", "papermill", "safety/generate_data.ipynb", str(tmp_path / "x.ipynb"), "-p", "promts", "3", "--cwd", "."]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    assert done.returncode != 0 and "unknown parameter promts, did you mean prompts?" in done.stderr


@pytest.mark.parametrize("arguments, message", [
    (["miniatur"], "unknown profile 'miniatur'"),
    (["miniature", "--experiment", "safty"], "unknown experiment safty"),
    (["miniature", "-p", "output", "runs/mine"], "two runs would share a folder"),
    (["miniature", "-p", "sed", "3"], "unknown parameter sed, did you mean seed"),
    (["miniature", "-p", "beta", "high"], "parameter beta = 'high': input should be a valid number"),
    (["miniature", "-p", "beta", "nan"], "parameter beta = 'nan': input should be a valid number"),
    (["miniature", "-y", "beta: .nan"], "parameter beta = nan: input should be a finite number"),
    (["miniature", "-y", "beta"], "-y: expected parameters as NAME: VALUE, got 'beta'"),
    (["miniature", "-y", "seeds: [0"], "-y: not valid YAML"),
    (["miniature", "-y", "{output: 2024}", "--experiment", "safety"], "parameter output = 2024: input should be a valid string"),
    (["miniature", "--seed", "-1"], "parameter seeds = [-1]: input should be greater than or equal to 0"),
    (["miniature", "--seed", "1", "--seed", "1"], "parameter seeds = [1, 1]: a value stands twice"),
    (["miniature", "--shard", "9/8"], "shard = '9/8': expected i/n such as 3/8, with i from 1 to n"),
    (["miniature", "--shard", "1/8", "--stage", "train_rdpo"], "--shard 1/8: is for generate_data and reward_score; merge the shards, then train"),
    (["miniature", "--jobs", "0"], "--jobs 0: at least one notebook must run at a time"),
    (["miniature", "--pairs", "counterfactual_contrast"], "unknown pairs 'counterfactual_contrast'; there are self_critique, recorded, counterfactual_encourage"),
    (["miniature", "-p", "pairs", "counterfactual_negation"], "give --pairs counterfactual_negation in place of -p pairs"),
])  # fmt: skip
def test_the_batch_refuses_bad_input_before_any_kernel_starts(arguments, message, capsys):
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err and "running" not in printed.out


@pytest.mark.parametrize("given, message", [
    ({"methods": "dpoo"}, "unknown method dpoo"),
    ({"student": "./nowhere"}, "needs a final judge"),
    ({"student": "./nowhere", "methods": "always_refuse,dpo"}, "always_refuse: no such row"),
    ({"evaluate_on": "tests"}, "'validation' or 'test'"),
    ({"pairs_file": "runs/none.jsonl"}, "no scored pairs at"),
])  # fmt: skip
def test_train_rdpo_refuses_bad_input_before_any_work(given, message, chain):
    from common.notebook.students import open_experiment

    scored = str(chain / "runs" / "safety" / "scored.jsonl")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        open_experiment(checked_parameters("safety/train_rdpo.ipynb", {"pairs_file": scored, **MICRO, **given}))


def test_rows_that_train_nothing_need_prompts_and_no_pairs(tmp_path, micro):
    from common.notebook.students import open_experiment

    prompts = tmp_path / "prompts.jsonl"
    lines = [{"id": name, "experiment": "safety", "split": name, "prompt": "Hello.", "response": "a pair's answer is not read"} for name in ("test", "train")]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = {"pairs_file": str(prompts), "student": str(micro), "methods": f"model:{micro}", "final_judge": f"learned:{tmp_path / 'rows.jsonl'}", "output": str(tmp_path)}
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in [("yes it is", 1), ("no never", 0)] * 3))
    run = open_experiment(checked_parameters("safety/train_rdpo.ipynb", given))
    assert run.pairs == [] and [record.id for record in run.evaluator.sets("test")["held_out"]] == ["test"]
    bare = {**MICRO, "student": "micro", "methods": f"model:{micro}", "pairs_file": str(tmp_path / "none.jsonl"), "output": str(tmp_path)}
    assert open_experiment(checked_parameters("safety/train_rdpo.ipynb", bare)).pairs == []  # the miniature has its world


@pytest.mark.parametrize("given, wanted", [
    (["-p", "seeds", "0,1"], {"seeds": [0, 1]}), (["-p", "seeds", "[0, 1]"], {"seeds": [0, 1]}), (["-p", "seeds", "3"], {"seeds": 3}), (["-y", "{seeds: [0, 1], methods: [dpo, rdpo]}"], {"seeds": [0, 1], "methods": ["dpo", "rdpo"]}),
    (["-p", "methods", "dpo,rdpo"], {"methods": "dpo,rdpo"}), (["-p", "methods", "'dpo', 'rdpo'"], {"methods": ["dpo", "rdpo"]}), (["-p", "methods", "[dpo, rdpo]"], {"methods": "[dpo, rdpo]"}),
    (["-p", "output", "2024"], {"output": "2024"}), (["-p", "pad_token", "0123456"], {"pad_token": "0123456"}), (["-p", "beta", "1e-1"], {"beta": 0.1}), (["-p", "knobs", "alpha=2,eta=4"], {"knobs": "alpha=2,eta=4"}), (["-y", "knobs: {alpha: 2.0}"], {"knobs": {"alpha": 2.0}}), (["-p", "output", "None"], {"output": "None"}), (["-p", "pad_token", "''"], {"pad_token": ""}),
], ids=str)  # fmt: skip
def test_the_command_line_gives_lists_numbers_and_texts_as_they_are_meant(given, wanted, capsys):
    assert main(["miniature", "--experiment", "safety", "--stage", "train_rdpo", "--dry-run", *given]) == 0
    assert all(f"{name}={value}, " in capsys.readouterr().out + ", " for name, value in list(wanted.items())[:1])


@pytest.mark.parametrize("variable, value, said", [
    ("OMP_NUM_THREADS", "many", "OMP_NUM_THREADS = 'many' is no number of threads; set one, or unset it"), ("OMP_NUM_THREADS", "-1", "no number of threads"),
    ("TMPDIR", "long", "has too long a name for the sockets of notebooks; set TMPDIR to one of at most 70 bytes, such as /tmp"),
])  # fmt: skip
def test_an_environment_in_which_no_notebook_runs_is_one_sentence(variable, value, said, tmp_path, monkeypatch, capsys):
    folder = tmp_path / ("a_long_project_scratch" * 5)
    folder.mkdir()
    monkeypatch.setenv(variable, str(folder) if variable == "TMPDIR" else value)
    monkeypatch.setattr("tempfile.tempdir", None)
    assert main(["miniature", "--experiment", "safety"]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("allowed, threads", [("", 8), (" ", 8), ("3", 3), ("4,2", 4), ("0", 1), ("64", 8)])
def test_threads_are_what_the_user_allows_and_the_machine_has(allowed, threads, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", allowed)
    assert threads_each(1) == threads and threads_each(100) == 1


def test_a_notebook_is_not_finished_where_what_its_parameters_name_has_changed(tmp_path):
    adapter, saved, manifest = tmp_path / "own" / "adapter", tmp_path / "saved", tmp_path / "reward_score.manifest.json"
    for folder in (adapter, saved):
        folder.mkdir(parents=True)
    (adapter / "adapter_config.json").write_text("{}")
    weights, rows = adapter / "adapter_model.safetensors", saved / "data-00000.arrow"
    (saved / "dataset_info.json").write_text("{}")
    given = {"methods": [f"adapter:{adapter}@0.5"], "pairs_file": str(saved), "knobs": {"tau": "judge"}}
    marks = []
    for changed in (weights, rows, manifest, None):
        marks.append(_made_of("safety/train_rdpo.ipynb", given))
        if changed:
            changed.write_bytes(b"other")
    assert len(set(marks)) == 4


def test_a_large_file_that_a_parameter_names_is_not_read_into_memory(tmp_path):
    large, saved = tmp_path / "pairs.jsonl", tmp_path / "saved"
    saved.mkdir()
    (saved / "dataset_info.json").write_text("{}")
    for path in (large, saved / "data-00000.arrow"):
        with open(path, "wb") as file:
            file.truncate(2**26)
    tracemalloc.start()
    before = _made_of("safety/train_rdpo.ipynb", {"pairs_file": str(large), "source": str(saved)})
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24
    with open(large, "r+b") as file:
        file.write(b"x")  # of the same length
    assert _made_of("safety/train_rdpo.ipynb", {"pairs_file": str(large), "source": str(saved)}) != before


def test_pairs_that_step_2_scores_reach_step_3_with_their_new_scores():
    two, three = steps_of("safety", STAGES[1:], "paper", {"pairs_file": "runs/old/scored.jsonl"})
    assert two.given["pairs_file"] == "runs/old/scored.jsonl" and three.given["pairs_file"] == "runs/paper/safety/scored.jsonl"
    (alone,) = steps_of("safety", STAGES[2:], "paper", {"pairs_file": "runs/old/scored.jsonl"})
    assert alone.given["pairs_file"] == "runs/old/scored.jsonl"


@pytest.mark.parametrize("mark", [b"", b'{"made_of": "4', b"[1]", b"{}", b"\xff\xfe"], ids=str)
def test_a_torn_mark_of_a_finished_notebook_runs_it_again(mark, tmp_path):
    (tmp_path / "x.ipynb").write_text("{}")
    (tmp_path / "x.done.json").write_bytes(mark)
    assert not is_finished("safety/train_rdpo.ipynb", tmp_path / "x.ipynb", {})


def test_a_folder_that_cannot_be_made_is_a_failure_like_any_other(tmp_path):
    (tmp_path / "file").write_text("")
    step = tiny_step(tmp_path, "good", "1")
    [failure] = run_grid({"one": [step._replace(given={"output": str(tmp_path / "file" / "below")})]}, jobs=1)
    assert "NotADirectoryError" in failure


@pytest.mark.slow
def test_a_failing_notebook_is_reported_and_the_exit_code_says_so(tmp_path, capsys):
    arguments = ["miniature", "--experiment", "safety", "--stage", "reward_score", "-p", "pairs_file", str(tmp_path / "missing.jsonl"), "-p", "output", str(tmp_path)]
    assert main(arguments) == 1
    assert "FAILED safety/reward_score.ipynb, cell" in capsys.readouterr().err


def tiny_step(folder, name, source):
    """A step whose notebook declares one parameter besides its folder and runs one line."""
    cells = [nbformat.v4.new_code_cell('output: str = ""\nlines: int = 1', metadata={"tags": ["parameters"]}), nbformat.v4.new_code_cell(source)]
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}})
    (folder / name).mkdir(exist_ok=True)
    nbformat.write(notebook, folder / name / "generate_data.ipynb")
    return Step(str(folder / name), "generate_data", {"output": str(folder / "runs" / name)})


@pytest.mark.slow
def test_one_failure_leaves_the_others_alone_and_a_rerun_executes_only_what_failed(tmp_path, capfd):
    grid = {name: [tiny_step(tmp_path, name, "print('threads', __import__('os').environ['OMP_NUM_THREADS'])" if name != "bad" else "1 / 0")] for name in ("good", "bad", "fine")}
    failures = run_grid(grid, jobs=3)
    printed = capfd.readouterr().out
    assert len(failures) == 1 and "bad/generate_data.ipynb, cell 3" in failures[0] and "ZeroDivisionError" in failures[0]
    assert grid["bad"][0].failed_before() and not grid["good"][0].failed_before()
    noted = {line.partition(":")[0]: line for line in status.report(tmp_path / "runs").splitlines()}
    assert noted["good/generate_data"] == "good/generate_data: done" and "failed" in noted["bad/generate_data"] and "ZeroDivisionError" in noted["bad/generate_data"]
    assert "FAILED" in printed and printed.count("done in") == 2
    assert "threads " in grid["good"][0].log.read_text()
    marks = [grid[name][0].executed.stat().st_mtime_ns for name in ("good", "fine")]
    mended = {**grid, "bad": [tiny_step(tmp_path, "bad", "print('mended')")]}
    assert run_grid(mended, jobs=3) == []
    assert marks == [grid[name][0].executed.stat().st_mtime_ns for name in ("good", "fine")]
    assert not mended["bad"][0].failed_before()


@pytest.mark.slow
def test_notebooks_take_no_more_threads_than_the_user_allows(tmp_path, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    for allowed, share in (("1", "1"), ("64", "8")):
        monkeypatch.setenv("OMP_NUM_THREADS", allowed)
        step = tiny_step(tmp_path, f"allowed-{allowed}", "print('threads', __import__('os').environ['OMP_NUM_THREADS'])")
        assert run_grid({"one": [step]}, jobs=1) == [] and f"threads {share}\n" in step.log.read_text()


@pytest.mark.slow
def test_a_gpu_is_used_by_one_notebook_at_a_time(tmp_path, monkeypatch):
    """Two training notebooks and one pretended GPU: their intervals on it do not overlap."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    source = "import os, time; begin = time.time(); time.sleep(0.5); print(os.environ['CUDA_VISIBLE_DEVICES'], begin, time.time())"
    steps = [tiny_step(tmp_path, name, source) for name in ("a", "b")]
    for step in steps:
        (tmp_path / step.experiment / "generate_data.ipynb").rename(tmp_path / step.experiment / "train_rdpo.ipynb")
    steps = [step._replace(stage="train_rdpo") for step in steps]
    assert run_grid({step.experiment: [step] for step in steps}, jobs=2) == []
    (gpu_a, *a), (gpu_b, *b) = (step.log.read_text().split() for step in steps)
    assert gpu_a == gpu_b == "7" and (float(a[1]) <= float(b[0]) or float(b[1]) <= float(a[0]))


def test_a_dry_run_says_what_would_run_and_runs_nothing(capsys, tmp_path):
    assert main(["miniature", "--experiment", "safety", "--dry-run", "-p", "output", str(tmp_path / "new"), "-p", "beta", "2.0"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("would run") == 3 and "beta=2.0" in printed and not (tmp_path / "new").exists()
