"""Results at an fsspec URL, and what the commands say without a cluster: `pytest tests/engines/test_store.py`."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor
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


def two_nodes(url, on):
    """A store with a copy that nodes a and b both have; the folders of a and of b, which is where this process is."""
    results, a = Store(url), on("a")
    write(a, replies="paid", adapter="weights")
    results.copy_out(place(a))
    b = on("b")
    results.copy_in(place(b))
    return results, a, b


def test_a_task_on_a_node_wrongly_taken_for_lost_does_not_replace_what_its_retry_made(url, on):
    results, a, b = two_nodes(url, on)
    write(b, replies="paid", mark="done")
    results.copy_out(place(b))
    on("a")
    write(a, replies="paid twice")
    with pytest.raises(store.OtherArchive, match=r"^--store \S+: holds results of runs/row from elsewhere, and lacks what is here, such as runs/row/replies; move .*/a/runs/row away, or give another --store$"):
        results.copy_out(place(a))
    (a / "replies").unlink()
    with pytest.raises(store.OtherArchive, match="from elsewhere; move"):
        results.copy_out(place(a))
    on("b")
    (b / "mark").unlink()
    results.copy_in(place(b))
    assert (b / "replies").read_text() == "paid" and (b / "mark").read_text() == "done"


def test_a_task_whose_results_the_store_refuses_says_where_they_are(url, on):
    results, _, b = two_nodes(url, on)
    with pytest.raises(OSError, match=r"^--store \S+: holds results of runs/row from elsewhere, .*, or give another --store; the results are in runs/row on "), results.kept([place(b)]):
        write(b, mark="done")
        results.system.pipe_file(f"{results.folder}/runs/row.tar", b"of a third node")


def test_an_archive_that_comes_while_another_is_written_is_not_replaced(url, on, monkeypatch):
    results, a, b = two_nodes(url, on)
    write(b, replies="paid", mark="done")
    put = results.system.put_file

    def slowly(*given):
        put(*given)
        results.system.pipe_file(f"{results.folder}/runs/row.tar", b"of another node")

    monkeypatch.setattr(results.system, "put_file", slowly)
    with pytest.raises(store.OtherArchive):
        results.copy_out(place(b))
    assert results.system.cat_file(f"{results.folder}/runs/row.tar") == b"of another node"


@pytest.mark.parametrize("moved", [False, True])
def test_a_move_that_fails_leaves_no_part_and_is_made_again_even_where_it_was_made(moved, url, on, monkeypatch):
    results, a, b = two_nodes(url, on)
    move = results.system.mv

    def fails(*given):
        if moved:
            move(*given)  # an object store copies, and removes what it copied
        raise OSError("no network")

    write(b, replies="paid", mark="done")
    with monkeypatch.context() as cut:
        cut.setattr(results.system, "mv", fails)
        with pytest.raises(OSError, match="no network"):
            results.copy_out(place(b))
    assert [name.rpartition("/")[2] for name in results.system.ls(f"{results.folder}/runs", detail=False)] == ["row.tar"]
    results.copy_out(place(b))
    on("a")
    results.copy_in(place(a))
    assert (a / "mark").read_text() == "done"


@pytest.mark.parametrize("again", ["copy_in", "share"])
def test_a_copy_that_was_cut_short_is_made_again(again, url, on, monkeypatch):
    results, a = Store(url), on("a")
    write(a, adapter="weights", mark="done")
    results.copy_out(place(a))
    b = on("b")
    with monkeypatch.context() as cut:
        cut.setattr(store.tarfile.TarFile, "extractall", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            results.copy_in(place(b))
    write(b, adapter="wei")
    getattr(results, again)(place(b))
    assert (b / "adapter").read_text() == "weights" and (b / "mark").read_text() == "done"


def test_before_tasks_run_the_store_gets_what_is_here_and_nothing_here_is_lost(url, on):
    results, a = Store(url), on("a")
    write(a, paid="a reply")
    results.share(place(a))
    b = on("b")
    results.share(place(b))
    assert (b / "paid").read_text() == "a reply"
    write(b, paid="a reply", mark="done")
    results.share(place(b))  # from the archive on that was last copied here
    a = on("a")
    results.share(place(a))
    assert (a / "mark").read_text() == "done"
    on("b")
    (b / "mark").unlink()
    write(b, paid="two replies")
    results.copy_out(place(b))
    a = on("a")
    write(a, more="replies")
    with pytest.raises(ValueError, match="holds results of runs/row from elsewhere, and lacks what is here, such as runs/row/more; move .*/a/runs/row away, or give another --store"):
        results.share(place(a))
    assert (a / "more").exists() and (a / "mark").exists()
    on("b")
    results.system.rm(f"{results.folder}/runs/row.tar")
    results.share(place(b))
    assert results.system.exists(f"{results.folder}/runs/row.tar"), "an emptied store is filled again"


def test_a_copy_that_fails_is_made_at_the_next_turn_and_the_last_one_says_where_the_results_are(url, on, monkeypatch, capsys):
    import time

    monkeypatch.setattr(store, "SAVE_EVERY", 0.02)
    results, a, failed = Store(url), on("a"), []

    def put(*given, to=results.system.put_file):
        if len(failed) < 2:
            failed.append(given)
            raise OSError("no\nnetwork")
        return to(*given)

    monkeypatch.setattr(results.system, "put_file", put)
    with results.kept([place(a)]):
        write(a, replies="paid")
        deadline = time.monotonic() + 20
        while not results.system.exists(f"{results.folder}/runs/row.tar") and time.monotonic() < deadline:
            time.sleep(0.02)
        assert results.system.exists(f"{results.folder}/runs/row.tar") and len(failed) == 2
    assert capsys.readouterr().out == f"--store {results.url}: cannot be written to (no network); tried again every 0.02 s\n"
    with pytest.raises(OSError, match=r"cannot be written to \(no network\); the results are in runs/row on "), results.kept([place(a)]):
        write(a, replies="paid again")
        failed.clear()
        monkeypatch.setattr(store, "SAVE_EVERY", 60)


def test_batch_copies_nothing_for_a_dry_run_and_stops_where_results_would_be_lost(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(store, "ROOT", tmp_path)
    monkeypatch.setattr(grid, "ROOT", tmp_path)
    monkeypatch.setattr(batch, "RayPool", lambda *_: (_ for _ in ()).throw(ValueError("nothing runs")))
    (folder := tmp_path / "runs" / "safety").mkdir(parents=True)
    write(folder, teacher_replies="paid")
    arguments = ["miniature", "--experiment", "safety", "-p", "output", str(folder), "--engine", "ray", "--store", f"file://{tmp_path}/store"]
    there = tmp_path / "store" / "runs" / "safety.tar"
    assert batch.main([*arguments, "--dry-run"]) == 0 and not there.exists()
    assert batch.main(arguments) == 2 and there.exists() and capsys.readouterr().err == "error: nothing runs\n"
    there.write_bytes(b"of another machine")
    write(folder, teacher_replies="paid again")
    assert batch.main(arguments) == 2 and "holds results of runs/safety from elsewhere" in capsys.readouterr().err
    assert (folder / "teacher_replies").read_text() == "paid again"


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


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project of which a driver knows the version; and the file of results that a node must see."""
    for name in ("common/batch.py", "common/profiles/paper/train_rdpo.yaml", "safety/generate_data.ipynb", "safety/train_rdpo.ipynb", "notes/own.ipynb", "safety/notes.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("before")
    monkeypatch.setattr(cluster, "ROOT", tmp_path)
    return tmp_path, cluster._source()


@pytest.mark.parametrize("name", ["common/batch.py", "common/profiles/paper/train_rdpo.yaml", "safety/train_rdpo.ipynb", "common/new.py", "torch", "trl", "transformers"])
def test_a_node_whose_code_notebook_profile_or_package_is_another_is_told_which(name, project, monkeypatch):
    root, source = project
    if "/" in name:
        (root / name).write_text("after")
    else:
        monkeypatch.setattr(cluster, "version", lambda package, real=cluster.version: "0.0.1" if package == name else real(package))
    assert cluster._problem_here(None, root, source) == f"has another version of {name}; copy the project to {root} there and install its requirements.txt"


def test_a_node_may_have_other_notes_and_packages_built_for_another_device(project, monkeypatch):
    root, source = project
    for name in ("notes/own.ipynb", "safety/notes.md"):
        (root / name).write_text("after")
    monkeypatch.setattr(cluster, "version", lambda package, real=cluster.version: real(package).partition("+")[0] + "+cu128")
    assert cluster._problem_here(None, root, source) == ""
    for number in range(4):
        (root / f"common/{number}.py").write_text("")
    assert "has another version of common/0.py, common/1.py, common/2.py, ...; copy" in cluster._problem_here(None, root, source)


def test_every_row_has_a_place_of_its_own_beside_its_student():
    row = Row(Cell(), "dpo", 1, {"beta": 0.1})
    others = [replace(row, method="rdpo"), replace(row, seed=2), replace(row, setting={"beta": 0.3}), replace(row, cell=Cell(noise=0.0)), replace(row, split="validation")]
    names = [[place.name for place in run.needs_of(partial(run_row, folder=run.FOLDER), one).places] for one in (row, *others)]
    assert len({own for _, own in names}) == len(names) and names[0][0] == "runs/evidence/safety/student-1" == run.needs_of(partial(run_row), "safety", 1).places[0].name
    assert names[0][1].startswith("runs/evidence/safety/") and names[0][1].endswith("/seed-1/dpo")
    assert run.needs_of(partial(run.probe, folder=run.FOLDER), row).places[1].name.startswith("runs/evidence/safety/mechanism/")


def test_the_place_of_notebooks_leaves_out_other_kinds_and_shards_and_is_in_the_project(tmp_path):
    for name in ("pairs.jsonl", "train_rdpo.status.json", "counterfactual_neutral/pairs.jsonl", "shard-1-of-2/pairs.jsonl", "seed-0/dpo/metrics.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    step = Step("safety", "train_rdpo", {"output": str(tmp_path)})
    assert {path.name for path in grid._content(tmp_path)} == {"pairs.jsonl", "seed-0"}
    with pytest.raises(ValueError, match=f"output = {tmp_path}: with --store, results lie below "):
        place_of(step)
    cpus, gpus, places = needs_of_step(run_step, step._replace(given={"output": "runs/p/safety"}), 4, None)
    assert (cpus, gpus, [place.name for place in places]) == (4, 1, ["runs/p/safety"])


class Cluster(ThreadPoolExecutor):
    """In place of a `RayPool`: the store takes nothing of the notebooks of safety."""

    def cpus_each(self, jobs):
        return 1

    def submit(self, run, step, *given):
        return super().submit(self.task, step)

    def task(self, step):
        if step.experiment == "safety":
            raise OSError("--store s3://x: cannot be written to (no network)")
        return grid.Outcome("done")


def test_results_that_cannot_be_stored_are_a_failure_of_their_notebook_alone(tmp_path):
    steps = {name: [Step(name, stage, {"output": str(tmp_path / name)}) for stage in ("generate_data", "reward_score")] for name in ("safety", "sycophancy")}
    (failure,) = grid.run_grid(steps, 1, Cluster(1))
    assert failure.startswith("safety/generate_data.ipynb, ") and ": OSError: --store s3://x: cannot be written to (no network) (see " in failure


@pytest.mark.parametrize(("given", "uses"), [
    ({"teacher": "local:a"}, True), ({"teacher": "endpoint:m", "respond_with": "local:a"}, True), ({"judge": "yes_no:a"}, True), ({"judge": "reward:a"}, True),
    ({"judge": "learned:rows.jsonl"}, False), ({"teacher": "endpoint:m", "respond_with": "teacher"}, False),
])  # fmt: skip
def test_a_notebook_that_loads_a_model_uses_a_gpu(given, uses):
    assert Step("safety", "generate_data", given).uses_gpu == uses


def test_a_store_that_is_lost_at_the_end_is_one_failure_among_the_others(tmp_path, monkeypatch, capsys):
    def ran(*_):
        monkeypatch.setattr(Store, "copy_in", lambda *_: (_ for _ in ()).throw(RuntimeError("no\nnetwork")))
        return ["safety/generate_data.ipynb"]

    monkeypatch.setattr(grid, "ROOT", tmp_path)
    monkeypatch.setattr(batch, "RayPool", lambda *_: None)
    monkeypatch.setattr(batch, "run_grid", ran)
    assert batch.main(["miniature", "--experiment", "safety", "-p", "output", str(tmp_path / "runs"), "--engine", "ray", "--store", f"file://{tmp_path}/store"]) == 1
    assert capsys.readouterr().err == f"FAILED safety/generate_data.ipynb\nFAILED --store file://{tmp_path}/store: cannot be read (no network); run the command again when it can\n"
