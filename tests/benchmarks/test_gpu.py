"""The benchmark for a GPU with the smallest students, on a CPU (pytest tests/benchmarks/test_gpu.py)."""

import copy
import json
import subprocess
import sys
from dataclasses import replace

import gpu
import pytest
import torch
from pages import sentences, words

SMALLEST = replace(
    gpu.DRY, students={name: gpu.DRY.students[name] for name in ("Llama 1B", "Llama 7B")}, architectures=("llama", "gemma2"), lengths=((24, 8),), batches=(2,), equality_tokens=(60, 12),
)  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu")
    return gpu.run(SMALLEST, 600, folder, gpu.time.perf_counter()), folder


def test_every_part_is_measured(made):
    results, folder = made
    assert results["left_out"] == results["failed"] == []
    assert len(results["equality"]) == 10 and len(results["speed"]) == 4 and len(results["cold_epoch"]) == 1 and len(results["generation"]) == 2
    assert json.loads((folder / "gpu.json").read_text()) == results
    assert set(results["machine"]) == {"device", "gib", "torch", "liger"} and results["matmul_tflops"]["float32"] > 0


def test_packed_and_padded_rows_are_equal(made):
    rows = made[0]["equality"]
    assert {(row["architecture"], row["attention"], row["nf4"]) for row in rows} == {
        ("llama", "sdpa", False), ("llama", "dense mask", False), ("llama", "eager", False), ("gemma2", "eager", False), ("llama", "sdpa", True),
    }  # fmt: skip
    for row in rows:
        assert row["masks"] == ("stretches_mask" if row["attention"] == "sdpa" else "dense_mask")
        for found in (row["packed"], row["padding"]):
            assert set(found) == {"logprobs", "gradients"} and max(found.values()) < gpu.BARS[row["dtype"]]
        assert row["packed"]["gradients"] > 0  # computed in another order


def test_every_contestant_trains_on_the_same_pairs(made):
    for row in made[0]["speed"]:
        who = [name for name in gpu.LABELS if name in row]
        assert who == (["ours", "trl", "trl_precomputed"] if row["student"] == "Llama 1B" and not row["checkpointing"] else ["ours", "trl"])
        for name in who:
            assert row[name]["mean_loss"] == pytest.approx(row["trl"]["mean_loss"], abs=1e-4) and row[name]["peak_gib"] > 0
            assert row[name]["range"][0] <= row[name]["seconds_per_step"] <= row[name]["range"][1]
        assert row["ratios"]["trl"]["step"] == row["trl"]["seconds_per_step"] / row["ours"]["seconds_per_step"] and row["share_of_matmul_rate"] > 0
    assert [row["checkpointing"] for row in made[0]["speed"]] == [False, False, True, True]


def test_a_cold_epoch_and_answers_are_timed(made):
    [cold] = made[0]["cold_epoch"]
    assert all(cold[name]["seconds"] > 0 for name in ("ours", "ours_again", "trl", "trl_precomputed"))
    assert set(cold["ratios"]) == {"ours_again", "trl", "trl_precomputed"}
    assert [row["nf4"] for row in made[0]["generation"]] == [True, False]
    assert all(row["ratio"] == row["tokens_per_second_batched"] / row["tokens_per_second_one_at_a_time"] for row in made[0]["generation"])


def test_bars_are_judged_and_speed_on_a_gpu_alone(made, capsys):
    results, folder = made
    states = [one["state"] for one in results["bars"]]
    assert states == ["not measured"] * 2 + ["reached"] * 4
    gpu.report(SMALLEST, results, folder)
    told = capsys.readouterr().out
    assert "not measured: times as fast as stock at 24/8\n" in told and "reached: relative difference of packed gradients, float32 (" in told
    on_a_gpu = copy.deepcopy(results)
    on_a_gpu["machine"]["gib"] = 80
    for row in on_a_gpu["speed"]:
        row["ratios"]["trl"] = {"step": 2.1, "memory": 0.61}
    judged = {one["bar"]: one["state"] for one in gpu.bars(SMALLEST, on_a_gpu)}
    assert judged["times as fast as stock at 24/8"] == "reached" and judged["share of stock's memory at 24/8"] == "missed"
    on_a_gpu["speed"][1]["ratios"]["trl"]["step"] = 1.9  # the worst student counts
    assert gpu.bars(SMALLEST, on_a_gpu)[0]["state"] == "missed"


def test_the_picture_and_a_paragraph_in_short_sentences_are_written(made):
    results, folder = made
    gpu.report(SMALLEST, results, folder)
    text = (folder / "gpu.md").read_text(encoding="utf-8")
    assert text.startswith("**On a GPU.** Measured by `make gpu`") and "Llama 7B at 24/8, checkpointing: " in text
    assert [one for one in sentences(text) if words(one) > 25] == []
    assert (folder / "gpu.png").stat().st_size > 10_000


def test_what_would_not_end_in_time_is_left_out_and_named(monkeypatch, tmp_path, capsys):
    began = []
    parts = [gpu.Part(name, "speed", seconds, lambda name=name: began.append(name) or {"batch": 0}) for name, seconds in (("short", 1), ("long", 1000), ("shorter", 0.1))]
    monkeypatch.setattr(gpu, "parts_of", lambda size, rate: parts)
    results = gpu.run(replace(SMALLEST, guess=1.0), 60, tmp_path, gpu.time.perf_counter())
    assert began == ["short", "shorter"] and results["left_out"] == ["long"]
    told = capsys.readouterr().out.splitlines()
    assert told[1] == "long: left out: out of time" and [line.split(": ")[1] for line in (told[0], told[2])] == began


def test_without_time_everything_is_left_out_and_still_reported(tmp_path, capsys):
    results = gpu.run(SMALLEST, 0, tmp_path, gpu.time.perf_counter())
    gpu.report(SMALLEST, results, tmp_path)
    told = capsys.readouterr().out
    assert told.count(": left out: out of time\n") == len(results["left_out"]) == len(gpu.parts_of(SMALLEST, 1.0))
    assert {one["state"] for one in results["bars"]} == {"not measured"} and (tmp_path / "gpu.png").exists()


def test_a_model_that_does_not_fit_is_written_down_and_the_rest_goes_on(monkeypatch, tmp_path, capsys):
    def step(size, contestant, *cell):
        if contestant == "trl":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
        if contestant == "trl_precomputed":
            raise ValueError("a fault\nin two lines")
        return {"seconds_per_step": 0.5, "peak_gib": 1.0}

    monkeypatch.setattr(gpu, "step", step)
    chosen = [part for part in gpu.parts_of(SMALLEST, 1e12) if part.section == "speed"][:2]
    monkeypatch.setattr(gpu, "parts_of", lambda size, rate: chosen)
    results = gpu.run(SMALLEST, 60, tmp_path, gpu.time.perf_counter())
    first, second = results["speed"]
    assert first["ours"] == second["ours"] == {"seconds_per_step": 0.5, "peak_gib": 1.0} and first["ratios"] == second["ratios"] == {}
    assert first["trl"] == second["trl"] == {"error": "out of memory"}
    assert first["trl_precomputed"]["error"].startswith("ValueError at test_gpu.py:") and first["trl_precomputed"]["error"].endswith(": a fault in two lines")
    assert [one["error"] for one in results["failed"]] == ["out of memory", first["trl_precomputed"]["error"], "out of memory"]
    gpu.report(SMALLEST, results, tmp_path)
    told = capsys.readouterr().out
    assert "2 were out of memory and 1 failed" in told and "In 2 cells that we could train, stock was out of memory." in told


def test_liger_is_set_against_our_step_of_the_same_case(made):
    results = copy.deepcopy(made[0])
    row = results["speed"][0]
    same = {key: row[key] for key in ("student", "prompt", "answer", "batch", "checkpointing")}
    results["speed"].append(same | {"trl_liger": {"seconds_per_step": 3 * row["ours"]["seconds_per_step"], "peak_gib": 1.0}, "ratios": {}})
    assert "With Liger's kernels, stock takes 3.0 times our time at 24/8." in gpu.paragraph(SMALLEST, results)
    gpu.draw(SMALLEST, results, made[1] / "with_liger.png")


@pytest.mark.slow
def test_a_dry_run_computes_every_part_of_every_architecture(tmp_path):
    done = subprocess.run([sys.executable, gpu.__file__, "--dry", "--to", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert results["left_out"] == results["failed"] == [] and results["machine"]["device"] == "CPU"
    assert {row["architecture"] for row in results["equality"]} == set(gpu.ARCHITECTURES) and {row["student"] for row in results["speed"]} == set(gpu.DRY.students)
    assert f"written to {tmp_path}\n" in done.stdout and {path.name for path in tmp_path.iterdir()} == {"gpu.json", "gpu.md", "gpu.png"}


def test_without_a_gpu_one_sentence_and_2(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main() == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err == gpu.NO_GPU + "\n"
