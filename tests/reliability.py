"""The long suites behind the bars on generation, scoring and notebooks. `make reliability`, about 40 minutes on 2 cores at rest.

    python tests/reliability.py [--only kills rounds trainings faults throughput growth million kernels local]

Every part is a function of its length: tests/test_reliability.py, of rounds tests/training/test_rounds.py, of trainings
tests/trainer/test_resume.py, runs each in a short cut and holds the bars against
results/reliability.json, where a part's figures go as soon as it ends. The server is local and on a real socket
(`fault_server.py`); that of `local` is a real model's, named by TEACHER_URL and with STUDENT beside it.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from statistics import median

from chains import SAMPLING, Instant, Questions
from fault_server import FAULTS, TIMEOUT, FaultServer

from common.chat.endpoint import EndpointChat
from common.chat.kept import KeptChat
from common.chat.pacing import EndpointError
from common.data.self_critique import generate_pairs
from common.judge.base import Judgement
from common.judge.llm import LLMJudge
from common.judge.scoring import score_pairs
from common.notebook.execute import execute
from common.prompts import SAFETY
from common.runtime import Progress, resolve
from common.schema import Sampling, fingerprint
from common.storage import write_json

RESULTS = Path(__file__).parent.parent / "results" / "reliability.json"
RATES = (0.01, 0.1, 0.3, 0.5)
CONCURRENCY = 8


def records(count):
    return list(Questions(count))


def chains(url, folder, count, concurrency=CONCURRENCY, judged=True, **settings):
    """Generation and scoring as the notebooks do them. `settings` go to the endpoint."""
    folder = Path(folder)
    endpoint = EndpointChat("m", url, "", concurrency, **settings)
    pairs = generate_pairs(KeptChat(endpoint, folder / "teacher_replies.jsonl"), records(count), SAFETY, SAMPLING, folder / "pairs.jsonl", failed_limit=1)
    if judged:
        score_pairs(LLMJudge(KeptChat(endpoint, folder / "judge_replies.jsonl"), SAFETY), pairs, folder / "scored.jsonl", failed_limit=1, unscored_limit=1)
    return endpoint


def lines_of(path):
    return path.read_bytes().split(b"\n")[:-1] if path.exists() else []


def ids_of(path):
    return {json.loads(line)["id"] for line in lines_of(path)}


def key_of(request):
    """The key under which the reply to a request is kept."""
    sampling = Sampling(temperature=request["temperature"], max_new_tokens=request["max_tokens"], seed=request.get("seed", 0))
    return fingerprint(request["name"], request["messages"], sampling.model_dump(), digits=32)


def kills(count, folder, per_life=6, seed=0):
    """kill -9 at `count` random points of one run of generation and scoring, each `per_life` answers apart on average.

    lost: finished pairs, scores or replies gone after a kill. unsaved: requests answered in full whose reply was not on
    disk at the kill; paid_twice: requests answered again later.
    """
    chance, total = random.Random(seed), count * per_life // 4 + 4
    folder, figures, progress = Path(folder), Counter(lost=0, unsaved=0), Progress("kills", count)
    reached = threading.Event()
    with FaultServer(delay=0.01) as server:
        name = EndpointChat("m", server.url, "").name
        chains(server.url, folder / "whole", total)
        requests = len(server.answered)
        server.forget()
        worst, killed, before = 0, 0, set()
        while killed < count:
            target = len(server.answered) + chance.randint(1, 2 * per_life - 1)
            reached.clear()
            server.on_answer = lambda answers: reached.set() if answers >= target else None
            child = subprocess.Popen([sys.executable, __file__, "child", server.url, folder / "killed", str(total)])
            while not reached.wait(0.05) and child.poll() is None:
                pass
            time.sleep(chance.uniform(0, 0.02))
            if child.poll() is not None:
                raise RuntimeError(f"the run ended by itself, with code {child.returncode}, after {killed} kills")
            child.kill()
            child.wait()
            killed += 1
            files = {file: ids_of(folder / "killed" / file) for file in ("pairs.jsonl", "scored.jsonl", "teacher_replies.jsonl", "judge_replies.jsonl")}
            now = {(file, name) for file, names in files.items() for name in names}
            figures["lost"] += len(before - now)
            before = now
            answered = {key_of({**request, "name": name}) for request in list(server.answered)}
            unsaved = len(answered - files["teacher_replies.jsonl"] - files["judge_replies.jsonl"])
            figures["unsaved"], worst = figures["unsaved"] + unsaved, max(worst, unsaved)
            progress(1)
        server.on_answer = lambda answers: None
        chains(server.url, folder / "killed", total)
        answered = len(server.answered)
        chains(server.url, folder / "killed", total)
        equal = all(sorted(lines_of(folder / "whole" / file)) == sorted(lines_of(folder / "killed" / file)) for file in ("pairs.jsonl", "scored.jsonl"))
        return {
            "kills": killed, "pairs": total, "requests": requests, "in_flight_at_most": CONCURRENCY, **figures, "unsaved_at_one_kill_at_most": worst,
            "paid_twice": answered - requests, "equal_to_uninterrupted": equal, "requests_of_a_second_run": len(server.answered) - answered,
        }  # fmt: skip


def rounds(methods, folder):
    """Rows that train in rounds, stopped at every boundary between their stages, and killed at every record of answers and
    verdicts in a first round; equal: whether they wrote the bytes of an uninterrupted run. Of the micro student."""
    from training.loops import contents, killed, looped, stopped

    from common.miniature.lab import miniature_student
    from common.miniature.language_model import MICRO
    from common.miniature.worlds import safety

    micro, figures = miniature_student(safety, MICRO), {}
    for method in methods:
        whole, at_boundaries, at_records = (Path(folder) / f"{method} {name}" for name in ("whole", "stopped", "killed"))
        looped(method, micro, whole)
        first = next(whole.glob("round-0-*"))
        records = sum(len(lines_of(first / name)) for name in ("answers.jsonl", "scored.jsonl"))
        stops, signals = stopped(method, micro, at_boundaries), killed(method, micro, at_records, [1] * (records - 1))
        looped(method, micro, at_records)
        equal = [contents(place) == contents(whole) for place in (at_boundaries, at_records)]
        figures[method] = {"stops": len(stops), "kills": signals.count(signal.SIGKILL), "equal_to_uninterrupted": all(equal)}
    return figures


def trainings(count, folder):
    """Figures of `killed_at_random` preference trainings of a tiny model: in one process, in two, and spread over two."""
    from tiny_models import tiny_causal_model
    from trainer.killed import killed_at_random

    model, figures, progress = str(tiny_causal_model(Path(folder) / "model")), {}, Progress("trainings that are killed", 3)
    for name, processes, options in (("one process", 1, {}), ("two", 2, {}), ("two, FSDP", 2, {"fsdp": True})):
        figures[name] = killed_at_random(model, Path(folder) / name, processes, count, **options)
        progress(1)
    return figures


def faults(rates, count, folder, kinds=(*FAULTS, "refused"), concurrency=32):
    """{kind: {rate: figures}} of `count` chains each: how many prompts end as a pair, how many as a failure with its reason,
    how many of these are errors, and how many end as neither."""
    table, progress = {kind: {} for kind in kinds}, Progress("kinds and rates of faults", len(kinds) * len(rates))
    for kind in kinds:
        patience = {"timeout": TIMEOUT if kind == "timeout" else 30, "backoff": 0.2 if kind == "refused" else 0.05}  # who is away is away for longer
        for rate in rates:
            at = Path(folder) / f"{kind}-{rate}"
            with FaultServer("" if kind == "refused" else kind, rate, delay=0.005, seed=int(100 * rate)) as server:
                away = threading.Event()
                flapping = threading.Thread(target=flap, args=(server, rate, away))
                if kind == "refused":
                    flapping.start()
                stopped = ""
                try:
                    chains(server.url, at, count, concurrency, judged=False, **patience)
                except EndpointError as error:
                    stopped = str(error)
                away.set()
                if kind == "refused":
                    flapping.join()
            done, failed = len(lines_of(at / "pairs.jsonl")), lines_of(at / "failed_pairs.jsonl")
            reasons = Counter(json.loads(line)["reason"] for line in failed)
            errors = sum(n for reason, n in reasons.items() if reason.startswith("error"))
            table[kind][str(rate)] = {"prompts": count, "pairs": done, "failed": dict(reasons), "errors": errors, "neither": count - done - len(failed), "stopped": stopped}
            progress(1)
    return table


def flap(server, rate, away, cycle=1.0):
    """The server goes away for this share of the time: connections are refused, those in use break."""
    while not away.wait(cycle * (1 - rate)):
        server.__exit__()
        time.sleep(cycle * rate)
        server.__enter__()


def throughput(count, concurrency=32, delay=0.5, serial=8):
    """Requests a second of whole chains, against one request after the other, as a plain loop over the prompts asks."""
    with FaultServer(delay=delay) as server, tempfile.TemporaryDirectory() as folder:
        one, start = EndpointChat("m", server.url, "", concurrency=1), time.perf_counter()
        one.complete([[{"role": "user", "content": f"serial {i}"}] for i in range(serial)], SAMPLING)
        alone = serial / (time.perf_counter() - start)
        start = time.perf_counter()
        chains(server.url, folder, count, concurrency, judged=False)
        together = 3 * count / (time.perf_counter() - start)
    return {"concurrency": concurrency, "delay_s": delay, "chains": count, "serial_per_s": round(alone, 3), "per_s": round(together, 2), "ratio": round(together / alone, 2)}


class InstantJudge:
    """A judge that costs no time."""

    name, scale = "instant", (0.0, 1.0)

    def judge(self, prompts, answers):
        return [Judgement(1.0, "word " * 60) for _ in answers]


def growth(count):
    """Bytes on disk and at the peak in memory of a tenth of `count` chains and of all, generated, scored and handed back. The
    list of prompts is the caller's and not counted; syncing is left out."""
    sync, os.fsync = os.fsync, lambda number: None
    few = max(count // 10, 1_000)  # more than a batch
    progress, sizes, peaks = Progress("examples", few + count), [], []
    try:
        for n in (few, count):
            asked = records(n)
            with tempfile.TemporaryDirectory() as folder:
                tracemalloc.start()
                pairs = generate_pairs(KeptChat(Instant(), Path(folder) / "replies.jsonl"), asked, SAFETY, SAMPLING, Path(folder) / "pairs.jsonl")
                scored = score_pairs(InstantJudge(), pairs, Path(folder) / "scored.jsonl", progress=progress)
                assert len(scored) == n
                peaks.append(tracemalloc.get_traced_memory()[1])
                tracemalloc.stop()
                sizes.append(sum(path.stat().st_size for path in Path(folder).iterdir()))
    finally:
        os.fsync = sync
    return {"examples": [few, count], "disk_bytes_per_example": [round(size / n) for size, n in zip(sizes, (few, count))], "peak_memory_bytes": peaks,
            "memory_bytes_per_further_example": round((peaks[1] - peaks[0]) / (count - few))}  # fmt: skip


def million(count, folder):
    """A teacher that costs no time writes `count` chains in a process that kill -9 ends at nine tenths of them, and that is
    started again.

    resume_s: from the second start, libraries loaded, to the first request; resume_cpu_s: of one core, libraries included.
    peak_memory_bytes: of the second process, Python included.
    """
    pairs, command = Path(folder) / "pairs.jsonl", [sys.executable, Path(__file__).with_name("chains.py"), folder, str(count)]
    start = time.perf_counter()
    killed = subprocess.run([*command, str(9 * count // 10)], stdout=subprocess.DEVNULL)
    spent, there = time.perf_counter() - start, sum(1 for _ in open(pairs, "rb"))
    assert killed.returncode == -signal.SIGKILL
    again = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert again.stdout.readline() == "begins\n"
    start = time.perf_counter()
    cpu, resumed = float(again.stdout.readline()), time.perf_counter() - start
    peak = int(again.stdout.readline())
    ids = Counter(hash(json.loads(line)["id"]) for line in open(pairs, "rb"))
    assert again.wait() == 0 and len(ids) == count == ids.total()
    return {
        "chains": count, "killed_at": there, "chains_per_s": round(there / spent), "bytes_per_chain": round(sum(path.stat().st_size for path in Path(folder).iterdir()) / count),
        "resume_s": round(resumed, 1), "resume_cpu_s": round(cpu, 1), "peak_memory_bytes": peak,
    }  # fmt: skip


def start_kernel(notebook, folder, number):
    """(seconds, what the notebook printed or why it failed) of one kernel."""
    start, log = time.perf_counter(), Path(folder) / f"{number}.log"
    try:
        execute(notebook, Path(folder) / f"{number}.ipynb", {"number": number}, log=log)
    except Exception as error:
        return time.perf_counter() - start, repr(error)[:300]
    return time.perf_counter() - start, log.read_text().strip()


def kernels(count, folder, side_by_side=4):
    """`count` notebooks through papermill, each in a kernel of its own: those that failed or met another's kernel, and seconds."""
    import nbformat

    cells = [nbformat.v4.new_code_cell("number: int = 0", metadata={"tags": ["parameters"]}), nbformat.v4.new_code_cell("print(number)")]
    notebook, progress = Path(folder) / "tiny.ipynb", Progress("kernels", count)
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}), notebook)
    seconds, failed, start = [], {}, time.perf_counter()
    with ProcessPoolExecutor(side_by_side) as pool:
        started = {pool.submit(start_kernel, notebook, folder, number): number for number in range(count)}
        for future in as_completed(started):
            took, printed = future.result()
            seconds.append(took)
            if printed != str(started[future]):
                failed[started[future]] = printed
            progress(1)
    return {"starts": count, "side_by_side": side_by_side, "failed": failed, "median_s": round(median(seconds), 2), "longest_s": round(max(seconds), 2),
            "all_s": round(time.perf_counter() - start, 1)}  # fmt: skip


def local(url, student, experiment="safety"):
    """`make local SHORT=1` from nothing, and again: a real teacher's twelve prompts through all three steps, to the tables.

    replies: of the teacher and the student's first answers, after each run; the second one asks for none.
    """
    folder, figures = resolve("runs/local-reliability"), []
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "common.local", url, *(("--student", student) if student else ()), "--short", "--to", folder.name, "--experiment", experiment]
    for _ in range(2):
        start = time.perf_counter()
        subprocess.run(command, check=True)
        replies = sum(len(lines_of(path)) for path in folder.rglob("*replies*.jsonl"))
        figures.append({"seconds": round(time.perf_counter() - start), "replies": replies})
    rows = (folder / "tables" / experiment / "table.csv").read_text(encoding="utf-8").splitlines()
    return {"experiment": experiment, "first": figures[0], "again": figures[1], "lines_of_table": len(rows) - 1}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--trainings", type=int, default=20, help="kills of a training, in one process, in two, and spread over two")
    parser.add_argument("--prompts", type=int, default=100, help="of each fault and rate")
    parser.add_argument("--chains", type=int, default=320, help="of the throughput")
    parser.add_argument("--examples", type=int, default=100_000)
    parser.add_argument("--million", type=int, default=1_000_000, help="chains of a teacher that costs no time")
    parser.add_argument("--kernels", type=int, default=200)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parts = {
        "kills": lambda folder: kills(wanted.kills, folder),
        "rounds": lambda folder: rounds(("iterative_dpo", "selm", "apl_hybrid"), folder),
        "trainings": lambda folder: trainings(wanted.trainings, folder),
        "faults": lambda folder: faults(RATES, wanted.prompts, folder),
        "throughput": lambda folder: throughput(wanted.chains),
        "growth": lambda folder: growth(wanted.examples),
        "million": lambda folder: million(wanted.million, folder),
        "kernels": lambda folder: kernels(wanted.kernels, folder),
        "local": lambda folder: local(os.environ["TEACHER_URL"], os.environ.get("STUDENT", "")),
    }
    parser.add_argument("--only", nargs="+", choices=parts, default=list(parts))
    wanted = parser.parse_args()
    os.environ["NO_PROXY"] = "127.0.0.1"
    for part in wanted.only:
        if part == "local" and "TEACHER_URL" not in os.environ:
            print("local: skipped, since no server is named: make reliability TEACHER_URL=http://127.0.0.1:8080/v1 STUDENT=folder", flush=True)
            continue
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            figures = parts[part](folder)
        print(part, figures, flush=True)
        figures = {"measured": time.strftime("%Y-%m-%d"), "seconds": round(time.perf_counter() - start), "figures": figures}
        kept = json.loads(wanted.results.read_text()) if wanted.results.exists() else {}
        write_json(wanted.results, {name: {**kept, part: figures}[name] for name in parts if name in {**kept, part: figures}})
        print(f"{part}: {figures['seconds']} s, in {wanted.results}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        chains(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        main()
