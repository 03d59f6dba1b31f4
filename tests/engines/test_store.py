"""Results at an fsspec URL, and what the commands say without a cluster: `pytest tests/engines/test_store.py`."""

import os
import sys
from dataclasses import replace
from functools import partial

import pytest

from common import batch
from common.engines import Place, Store, cluster, store
from common.notebook import grid
from common.notebook.grid import Step, needs_of_step, place_of, run_step
from common.study import run
from common.study.cells import run_row
from common.study.design import Cell, Row


@pytest.fixture(params=["file", "memory"])
def url(request, tmp_path):
    return f"file://{tmp_path}/store" if request.param == "file" else f"memory://{tmp_path.name}"


@pytest.fixture
def on(tmp_path, monkeypatch):
    """on("a") makes this process one of node a: its project root is there, and the row's folder is returned."""
    def node(name):
        monkeypatch.setattr(store, "ROOT", tmp_path / name)
        (folder := tmp_path / name / "runs" / "row").mkdir(parents=True, exist_ok=True)
        return folder

    return node


def place(folder):
    return Place("runs/row", partial(list, (folder,)))


def write(folder, **texts):
    """Files, one after the other."""
    for number, (name, text) in enumerate(texts.items()):
        (path := folder / name).parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        os.utime(path, (number, number))


def test_a_folder_arrives_whole_and_what_is_gone_there_goes_here(url, on):
    results, a = Store(url), on("a")
    write(a, adapter="weights", mark="done", old="old")
    (a / "pairs.jsonl").symlink_to("adapter")
    results.copy_out(place(a))
    b = on("b")
    results.copy_in(place(b))
    assert {path.name for path in b.iterdir()} == {"adapter", "mark", "old", "pairs.jsonl"} and (b / "pairs.jsonl").readlink().name == "adapter"
    write(b, adapter="other weights")
    (b / "old").unlink()
    results.copy_out(place(b))
    a = on("a")
    results.copy_in(place(a))
    assert (a / "pairs.jsonl").read_text() == "other weights" and not (a / "old").exists()


def test_what_is_known_is_not_copied_again_and_what_is_new_here_stays(url, on, monkeypatch):
    results, a = Store(url), on("a")
    write(a, mark="done")
    results.copy_out(place(a))
    write(a, mark="done", paid="a reply")
    results.copy_in(place(a))
    assert (a / "paid").exists()
    results.copy_out(place(a))
    monkeypatch.setattr(results.system, "put_file", None)
    results.copy_out(place(a))  # nothing new
    (a / "mark").unlink()
    results.copy_in(place(a))
    assert (a / "mark").exists(), "what is lost here is there"


def test_an_archive_has_the_marks_last_and_is_replaced_in_one_move(on, tmp_path, monkeypatch):
    import tarfile

    results, a = Store(f"file://{tmp_path}/store"), on("a")
    write(a, z="first", a="second", m="mark")
    results.copy_out(place(a))
    assert [path.name for path in (tmp_path / "store/runs").iterdir()] == ["row.tar"]
    with tarfile.open(tmp_path / "store/runs/row.tar") as packed:
        assert packed.getnames() == ["runs/row/z", "runs/row/a", "runs/row/m"]
    write(a, m="another mark")
    monkeypatch.setattr(results.system, "mv", lambda *_: (_ for _ in ()).throw(OSError("lost")))
    with pytest.raises(OSError, match="lost"):
        results.copy_out(place(a))
    b = on("b")
    Store(results.url).copy_in(place(b))
    assert (b / "m").read_text() == "mark"


def test_a_copy_that_was_cut_short_is_made_again(url, on, monkeypatch):
    results, a = Store(url), on("a")
    write(a, adapter="weights", mark="done")
    results.copy_out(place(a))
    b = on("b")
    with monkeypatch.context() as cut:
        cut.setattr(store.tarfile.TarFile, "extractall", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            results.copy_in(place(b))
    results.copy_in(place(b))
    assert (b / "mark").read_text() == "done"


def test_what_a_task_makes_is_in_the_store_while_it_runs_and_when_it_fails(url, on, monkeypatch):
    import time

    monkeypatch.setattr(store, "SAVE_EVERY", 0.02)
    results, a = Store(url), on("a")
    with pytest.raises(ValueError, match="failed"), results.kept([place(a)]):
        write(a, replies="paid")
        deadline = time.monotonic() + 20
        while not results.system.exists(f"{results.folder}/runs/row.tar") and time.monotonic() < deadline:
            time.sleep(0.02)
        assert results.system.exists(f"{results.folder}/runs/row.tar")
        write(a, replies="paid", failure="why")
        raise ValueError("failed")
    b = on("b")
    results.copy_in(place(b))
    assert (b / "failure").exists()


@pytest.mark.parametrize("url", ["nothing://here", "file:///proc/nowhere"])
def test_a_store_that_cannot_be_written_to_is_named(url):
    with pytest.raises(ValueError, match=f"--store {url}: cannot be written to"):
        Store(url)


@pytest.mark.parametrize(("arguments", "message"), [
    (["--engine", "ray"], "error: --engine ray: Ray is not installed; pip install -e .[scale] installs it\n"),
    (["--store", "memory://x"], "error: --store memory://x: is for --engine ray\n"),
    (["--address", "h:1"], "error: --address h:1: is for --engine ray\n"),
])  # fmt: skip
def test_commands_say_what_is_missing(arguments, message, monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr(run, "FOLDER", tmp_path)
    assert batch.main(["miniature", *arguments]) == 2 and capsys.readouterr().err == message
    monkeypatch.setattr("sys.argv", ["study", *arguments])
    with pytest.raises(SystemExit, match=message.strip().replace("[", r"\[")):
        run.main()


@pytest.mark.parametrize("address", ["nowhere", "host:port", ":6379"])
def test_an_address_is_a_host_and_a_port(address, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", type(sys)("ray"))
    with pytest.raises(ValueError, match=f"--address {address}: expected HOST:PORT"):
        cluster._connected(address)


def test_an_address_where_nothing_answers_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", type(sys)("ray"))
    with pytest.raises(ValueError, match="--address 127.0.0.1:9: nothing answers there .*; is the head node up"):
        cluster._connected("127.0.0.1:9")


def test_every_row_has_a_place_of_its_own_beside_its_student():
    row = Row(Cell(), "dpo", 1, {"beta": 0.1})
    others = [replace(row, method="rdpo"), replace(row, seed=2), replace(row, setting={"beta": 0.3}), replace(row, cell=Cell(noise=0.0)), replace(row, split="validation")]
    names = [[place.name for place in run.needs_of(partial(run_row, folder=run.FOLDER), one).places] for one in (row, *others)]
    assert len({own for _, own in names}) == len(names) and names[0][0] == "runs/evidence/safety/student-1" == run.needs_of(partial(run_row), "safety", 1).places[0].name
    assert names[0][1].startswith("runs/evidence/safety/") and names[0][1].endswith("/seed-1/dpo")
    assert run.needs_of(partial(run.probe, folder=run.FOLDER), row).places[1].name.startswith("runs/evidence/safety/mechanism/")


def test_the_place_of_notebooks_leaves_out_other_kinds_and_shards_and_is_in_the_project(tmp_path):
    for name in ("pairs.jsonl", "counterfactual_neutral/pairs.jsonl", "shard-1-of-2/pairs.jsonl", "seed-0/dpo/metrics.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    step = Step("safety", "train_rdpo", {"output": str(tmp_path)})
    assert {path.name for path in grid._content(tmp_path)} == {"pairs.jsonl", "seed-0"}
    with pytest.raises(ValueError, match=f"output = {tmp_path}: with --store, results lie below "):
        place_of(step)
    cpus, gpus, places = needs_of_step(run_step, step._replace(given={"output": "runs/p/safety"}), 4, None)
    assert (cpus, gpus, [place.name for place in places]) == (4, 1, ["runs/p/safety"])
