"""A run watched from a second terminal (pytest tests/test_status.py)."""

import json
import os
import platform
import subprocess
import sys

import pytest

from common.runtime import ROOT, Progress
from common.status import duration, main, note_state, report


def logged(notebook, *lines):
    notebook.with_suffix(".log").write_text("\n".join(lines) + "\n")


@pytest.fixture
def run(tmp_path):
    """A run with a finished step that was paid for, one that runs, a failed one, one of a dead process and a waiting one."""
    folder = tmp_path / "runs" / "small"
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    for name, state, reason in (
        ("safety/generate_data", "done", ""), ("safety/train_rdpo", "running", ""), ("roleplay/generate_data", "failed", "roleplay/generate_data.ipynb, cell 3: ValueError: no"),
        ("roleplay/train_rdpo", "waiting", ""), ("sycophancy/train_rdpo", "running", ""),
    ):  # fmt: skip
        note_state(folder / f"{name}.ipynb", state, reason)
    dead = folder / "sycophancy/train_rdpo.status.json"
    dead.write_text(json.dumps(json.loads(dead.read_text()) | {"process": ended.pid}))
    logged(folder / "safety/train_rdpo.ipynb", "training dpo, seed 0: 60/60, 30 s, about 0 s left", "rows: 2/8, 90 s, about 270 s left", "something else", "training rdpo, seed 0: 10/60, 5 s, about 25 s left, chosen -0.10 nats a token")
    for row, files in (("base", ["metrics.json"]), ("dpo", ["metrics.json", "training.json"]), ("rdpo", ["training.json"])):
        (folder / "safety/seed-0" / row).mkdir(parents=True)
        for file in files:
            (folder / "safety/seed-0" / row / file).write_text("{}")
    (folder / "safety/seed-0/rdpo/round-0-abc").mkdir()
    (folder / "safety/seed-0/rdpo/round-0-abc/training.json").write_text("{}")  # a part of that row
    (folder / "safety/seed-0/rdpo/step-0/type-1").mkdir(parents=True)
    (folder / "safety/seed-0/rdpo/step-0/type-1/training.json").write_text("{}")
    (folder / "safety/generate_data.manifest.json").write_text(json.dumps({"paid": {"requests": 4, "dollars": 0.125}, "paid_for_first_answers": {"dollars": 0.125}}))
    (folder / "safety/train_rdpo.manifest.json").write_text(json.dumps({"paid": {"final_judge": {"dollars": 0.5}, "mine": {"dollars": 1}}}))
    return folder


def test_it_says_rows_states_remaining_time_and_money(run):
    *lines, sums = report(run).splitlines()
    assert lines == [
        "roleplay/generate_data: failed (roleplay/generate_data.ipynb, cell 3: ValueError: no)", "roleplay/train_rdpo: waiting",
        "safety/generate_data: done",
        "safety/train_rdpo: running for 0 s, rows 2 of 8, about 4 min left (training rdpo, seed 0: 10/60, 5 s, about 25 s left, chosen -0.10 nats a token)",
        "sycophancy/train_rdpo: killed",
    ]  # fmt: skip
    assert sums == "rows: 2 done, 1 trained and not measured; notebooks: 1 done, 1 running, 1 killed, 1 failed, 1 waiting; about 4 min until what runs is done; 1.75 dollars paid by the last runs of finished steps"


def test_one_experiment_and_a_folder_without_notebooks(run):
    assert report(run / "safety").splitlines()[0] == "generate_data: done"
    assert report(run / "safety" / "seed-0") == "rows: 2 done, 1 trained and not measured; 0.00 dollars paid by the last runs of finished steps"


def test_the_lines_of_progress_are_understood(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("common.runtime.is_interactive", lambda: False)
    Progress("rows", 4, every=0.0)(1)
    notebook = tmp_path / "train_rdpo.ipynb"
    note_state(notebook, "running")
    logged(notebook, capsys.readouterr().out.strip())
    assert "rows 1 of 4, about 0 s left" in report(tmp_path)


def test_another_machine_s_process_is_not_looked_for(run):
    path = run / "sycophancy/train_rdpo.status.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"host": "another"}))
    assert platform.node() != "another" and "sycophancy/train_rdpo: running" in report(run)


def test_a_state_that_cannot_be_written_ends_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    note_state(tmp_path / "file" / "below" / "x.ipynb", "running")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_is_not_there_is_named_with_the_nearest(run, capsys):
    with pytest.raises(SystemExit, match="status: no folder .*smal, did you mean small.; give the folder of a run"):
        main([str(run.parent / "smal")])
    main([str(run)])
    assert capsys.readouterr().out.startswith("roleplay/generate_data: failed")


@pytest.mark.parametrize("seconds, said", [(5, "5 s"), (119, "119 s"), (300, "5 min"), (7199, "120 min"), (9000, "2.5 h")])
def test_durations(seconds, said):
    assert duration(seconds) == said


def test_it_loads_no_heavy_library():
    code = "import sys, common.status; print(sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.stdout.strip() == "[]"
