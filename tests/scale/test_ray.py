"""Past one machine, on a real Ray cluster of two raylets: `make test-scale`, or `pytest tests/scale`."""

import os
import shutil
import socket
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import pytest

ray = pytest.importorskip("ray", reason="Ray is not installed; make test-scale installs it and runs these tests")
os.environ["RAY_raylet_start_wait_time_s"] = "300"  # a busy machine starts a raylet slowly

from ray import cloudpickle  # noqa: E402
from ray.cluster_utils import Cluster  # noqa: E402

from common import batch  # noqa: E402
from common.engines import Needs, RayPool, Store, cluster  # noqa: E402
from common.evaluation.result import Result  # noqa: E402
from common.report.measurements import read_measurements  # noqa: E402
from common.runtime import resolve  # noqa: E402
from common.schema import Metric  # noqa: E402
from common.study import run as evidence  # noqa: E402
from common.study.cells import own_folder  # noqa: E402
from common.study.design import Cell, Row  # noqa: E402

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # nodes know the project, not its tests
ROWS = [Row(Cell(noise=noise), method, seed, {"beta": 0.1}) for noise in (0.0, 0.5) for method in ("sft", "dpo", "rdpo", "ipo") for seed in range(5)]


def ports():
    """Ports that are free now: a raylet waits 15 s for the agents to choose their own, too short for a busy machine."""
    with socket.socket() as one, socket.socket() as two, socket.socket() as three:
        for each in (one, two, three):
            each.bind(("", 0))
        return dict(zip(("metrics_agent_port", "dashboard_agent_listen_port", "runtime_env_agent_port"), (each.getsockname()[1] for each in (one, two, three))))


@pytest.fixture(scope="module")
def nodes():
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False, **ports()})
    yield made
    made.shutdown()


@pytest.fixture
def folder(monkeypatch):
    """A folder for results below the project, and no trace of it afterwards."""
    place = resolve(f"runs/scale-{os.getpid()}")
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    monkeypatch.setattr(evidence, "FOLDER", place)
    yield place
    shutil.rmtree(place)


def quick_row(row, folder):
    """A row that takes a second, with a mark, and a line in a log when it begins and when it is done."""
    path = own_folder(row, folder) / "metrics.json"
    if path.exists():
        return Result.read(path)
    with open(folder / "log", "a") as log:
        log.write(f"begins {row}\n" + (f"on {ray.get_runtime_context().get_node_id()}\n" if ray.is_initialized() else ""))
    time.sleep(1)
    value = (len(row.method) + row.seed) / (10 + row.cell.noise)
    metrics = [Metric(experiment="safety", method=row.method, seed=row.seed, metric=name, value=value, n=10, low=0.0, high=1.0) for name in ("harmlessness", "utility")]
    result = Result(row.method, row.seed, "mark", metrics)
    result.write(path)
    with open(folder / "log", "a") as log:
        log.write(f"done {row}\n")
    return result


def counts(folder):
    return Counter((folder / "log").read_text().splitlines())


def test_forty_rows_with_a_node_lost_make_the_table_of_one_machine(nodes, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(evidence, "run_row", quick_row)
    (alone := folder / "alone").mkdir()
    monkeypatch.setattr(evidence, "FOLDER", alone)
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        assert evidence._measure("map", pool, ROWS, tmp_path / "alone") == []
    monkeypatch.setattr(evidence, "FOLDER", folder)
    lost = nodes.add_node(num_cpus=2, **ports())
    before = Counter()

    def lose_a_node(label, total):
        """In place of the bar: after twelve rows, some of them on the second node, its raylet is killed."""
        finished = []

        def one_more(number):
            finished.append(number)
            [second] = [node["NodeID"] for node in ray.nodes() if "node:__internal_head__" not in node["Resources"]]
            if len(finished) >= 12 and not before and counts(folder)[f"on {second}"] > 1:
                before.update(counts(folder))
                nodes.remove_node(lost, allow_graceful=False)

        return one_more

    monkeypatch.setattr(evidence, "Progress", lose_a_node)
    with RayPool(nodes.address, folder, evidence.needs_of) as pool:
        assert len(pool._nodes()) == 2
        assert evidence._measure("map", pool, ROWS, tmp_path / "ray") == []
    assert (tmp_path / "ray/table.csv").read_bytes() == (tmp_path / "alone/table.csv").read_bytes()
    assert len({(line["method"], line["seed"], str(line["cell"])) for line in read_measurements(tmp_path / "ray/table.csv")}) == 40
    ran = counts(folder)
    assert before and all(ran[f"done {row}"] >= 1 for row in ROWS)
    assert all(ran[f"begins {row}"] == 1 for row in ROWS if before[f"done {row}"]), "what was finished is not run again"
    twice = [row for row in ROWS if ran[f"begins {row}"] > 1]
    assert len(twice) <= 4, "only what the two CPUs of the lost node had begun is run again, with what they began before the driver knew"
    monkeypatch.setattr(evidence, "Progress", lambda *_: lambda number: None)
    with RayPool(nodes.address, folder, evidence.needs_of) as pool:
        assert evidence._measure("map", pool, ROWS, tmp_path / "again") == []
    assert counts(folder) == ran and (tmp_path / "again/table.csv").read_bytes() == (tmp_path / "ray/table.csv").read_bytes()


def tiny_row(row, folder):
    """A real row with a student that is made in seconds."""
    from dataclasses import replace

    from common.miniature.language_model import MICRO
    from common.study import cells

    cells.Recipe, cells.LEAST_UTILITY, cells.MOST_BEHAVIOUR = lambda seed: replace(MICRO, documents=600, seed=seed), 0.0, 1.0
    cells.PROMPTS, cells.MAX_NEW_TOKENS = 6, 16
    return cells.run_row(row, folder)


def test_a_real_row_is_copied_out_and_found_in_the_store_by_its_mark(nodes, folder, tmp_path):
    row, results, found = Row(Cell(pairs=24), "dpo", 1, {"learning_rate": 1e-3, "epochs": 1, "beta": 0.5}), Store(f"file://{tmp_path}/store"), []
    for _ in range(2):
        with RayPool(nodes.address, folder, evidence.needs_of, results) as pool:
            result = pool.submit(partial(tiny_row, folder=folder), row).result()
        [training] = folder.rglob("training.json")
        found.append((result, round(training.stat().st_mtime, 3)))
        shutil.rmtree(folder)
        folder.mkdir()
    assert found[0] == found[1] and {"harmlessness", "utility", "kl"} <= {metric.metric for metric in result.metrics}
    assert {path.name for path in (tmp_path / "store").rglob("*.tar")} == {"dpo.tar", "student-1.tar"}


def test_notebooks_are_tasks_and_finished_ones_are_found_from_any_node(nodes, folder, tmp_path, capsys):
    name = folder.name
    asked = ["miniature", "--experiment", "safety", "--stage", "generate_data", "-p", "prompts", "24", "--to", name, "--engine", "ray", "--address", nodes.address, "--store", f"file://{tmp_path}/store"]
    for said in ("done in", "finished before with the same code, data and parameters"):
        assert batch.main(asked) == 0
        assert f"safety/generate_data.ipynb: {said}" in capsys.readouterr().out
        assert (folder / "safety/pairs.jsonl").is_symlink() and len((folder / "safety/pairs.jsonl").read_text().splitlines()) == 24
        shutil.rmtree(folder)
    folder.mkdir()


def where(step):
    return os.environ["OMP_NUM_THREADS"], ray.get_runtime_context().get_assigned_resources()


def test_a_task_has_the_cpus_that_it_needs(nodes, folder):
    with RayPool(nodes.address, folder, lambda run, step: Needs(step, 1)) as pool:
        assert [pool.submit(where, cpus).result() for cpus in (1, 2)] == [("1", {"CPU": 1.0}), ("2", {"CPU": 2.0})]
        assert (pool.cpus_each(1), pool.cpus_each(2), pool.cpus_each(9)) == (2, 1, 1)


def fails(step):
    raise ValueError(f"{step} is no step")


def test_an_error_is_that_of_the_task_and_is_not_tried_again(nodes, folder):
    with RayPool(nodes.address, folder, lambda run, step: Needs()) as pool, pytest.raises(ValueError, match="x is no step"):
        pool.submit(fails, "x").result()


def test_a_node_that_does_not_see_the_folder_is_named(nodes, folder, monkeypatch):
    monkeypatch.setattr(cluster, "_problem_here", elsewhere)
    with pytest.raises(ValueError, match=rf"^node \S+ \([\d.]+\) does not see the folder of results {folder}; mount it there, or give --store$"):
        RayPool(nodes.address, folder, lambda run, step: Needs())
    assert list(folder.iterdir()) == [] and not ray.is_initialized()


def elsewhere(store, seal, source, look=cluster._problem_here):
    return look(store, seal.with_name("not there"), source)


def test_what_is_no_cluster_is_named_in_time(folder, monkeypatch):
    monkeypatch.setattr(cluster, "PATIENCE", 3.0)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address, start = f"127.0.0.1:{silent.getsockname()[1]}", time.monotonic()
        with pytest.raises(ValueError, match=f"--address {address}: no Ray cluster answers there .no answer in 3 s"):
            RayPool(address, folder, lambda run, step: Needs())
        assert time.monotonic() - start < 15
