"""Speed and memory of our preference trainer against TRL's `DPOTrainer`, stock and with precomputed reference, and of SFT against `SFTTrainer`.

    python tests/benchmarks/train_step.py [--rows ROWS.jsonl] [--rounds 5] [--only bars,real,sft,grid,growth,profile]

The same model with the same LoRA, the same pairs, batch, threads and gradient checkpointing. Every contestant runs in a
process of its own, in turn: `--rounds` times three steps in the cases with SmolLM2's own size, two steps in grid and growth;
medians count, minimum and maximum over the rounds stand beside them. A step is everything between two optimiser updates; a cold
epoch adds what comes before the first one, our reference pass included, and what the last step takes more than others: ours
measures KL there, as in every tenth of a long training. A step of dSC is one of SFT: it trains on fewer rows. Writes
results/benchmarks.json after every cell, then a table and a figure.

ROWS.jsonl holds the persona pairs that `common/profiles/small/prepare.py` describes; without it there is no real case.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
from contest import (
    LORA_RANK,
    SMOLLM2,
    Clock,
    floor_operations,
    make_model,
    matmul_rate,
    name_of,
    peak_gib,
    random_pairs,
    trainer_for,
)
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback

from common.profiles.small.prepare import cut
from common.profiles.small.smollm2 import smollm2
from common.report.figures import save_figure
from common.runtime import quiet_libraries
from common.storage import read_lines, write_json
from common.student.load import best_compute_dtype, load_student

RESULTS = Path(__file__).resolve().parent.parent.parent / "results" / "benchmarks.json"
CONTESTANTS = ("ours", "trl", "trl_precomputed")
SFT = ("ours_sft", "trl_sft")
TENTH = {**SMOLLM2, "num_hidden_layers": 3, "vocab_size": 4915}
"""A tenth of SmolLM2-135M: its width, and the same share of work in the head."""
KINDS = {  # (NF4, checkpointing): name, marker and line in the figure
    (True, False): ("NF4", "o", "-"), (True, True): ("NF4, checkpointing", "s", "--"),
    (False, False): ("float32", "^", ":"), (False, True): ("float32, checkpointing", "v", "-."),
}  # fmt: skip
GRID = [(prompt, answer) for prompt in (60, 300, 800) for answer in (60, 120, 300)]  # tokens


def measured_before():
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def persona_pairs(rows_file, count):
    """The first rows as conversations, both answers cut at a sentence end within 60 words; rows whose first sentence is longer are passed over."""
    rows = [{**row, **{name: cut(row[name], lambda text: len(text.split()), 60) for name in ("assistant_response", "persona_response")}} for _, row in read_lines(rows_file)]
    rows = [row for row in rows if row["assistant_response"] and row["persona_response"]][:count]
    return [{
        "prompt": [{"role": "user", "content": f"{row['persona'].strip()}\n\n{row['prompt']}"}],
        "chosen": [{"role": "assistant", "content": row["assistant_response"]}],
        "rejected": [{"role": "assistant", "content": row["persona_response"]}],
    } for row in rows]  # fmt: skip


def measure(contestant, folder, pairs, batch, steps, four_bit, checkpointing, profiled=None):
    """Trains one step that does not count, `steps` more, and a last one, in which ours measures KL besides; figures of this
    process. `profiled`: one more callback."""
    quiet_libraries()
    model, tokenizer = load_student(folder, four_bit=four_bit, compute_dtype=None if four_bit else torch.float32)
    dtype, begun = name_of(model.dtype), time.perf_counter()
    trainer = trainer_for(contestant, model, tokenizer, pairs, tempfile.mkdtemp(dir=folder), per_device_train_batch_size=batch, gradient_checkpointing=checkpointing, max_steps=steps + 2)
    prepared, clock = time.perf_counter() - begun, Clock()
    trainer.add_callback(clock)
    if profiled:
        trainer.add_callback(profiled)
    loss = trainer.train().training_loss
    step = statistics.median(clock.steps[1:-1])
    lengths = {name: statistics.mean(map(len, trainer.train_dataset[f"{name}_ids"])) for name in ("prompt", "chosen", "rejected") if f"{name}_ids" in trainer.train_dataset.column_names}
    return {
        "seconds_per_step": step, "pairs_per_second": batch / step, "cold_seconds_per_pair": (prepared + clock.steps[-1] - step) / len(pairs) + step / batch,
        "last_step_seconds": clock.steps[-1], "peak_gib": peak_gib(), "mean_loss": loss, "tokens": lengths, "computed_in": dtype,
    }  # fmt: skip


def where_time_goes(folder, pairs, batch, vocabulary):
    """Shares of one of our training steps, by torch's profiler."""

    class Profiled(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 1:
                self.profile = profile(activities=[ProfilerActivity.CPU], record_shapes=True)
                self.profile.start()

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 2:
                self.profile.stop()

    callback = Profiled()
    measure("ours", folder, pairs, batch, 1, True, False, callback)
    seconds = {name: 0.0 for name in ("head", "attention", "products with frozen weights", "products with LoRA weights", "unpacking NF4", "optimiser", "the rest")}
    for row in callback.profile.key_averages(group_by_input_shape=True):
        sizes = {size for shape in row.input_shapes for size in shape}
        if row.key.startswith("_ScoreWithGradient"):
            seconds["head"] += row.cpu_time_total
        elif row.key.startswith("_Stretches"):
            seconds["attention"] += row.cpu_time_total
        elif row.key.startswith("Optimizer.step"):
            seconds["optimiser"] += row.cpu_time_total
        elif "dequantize" in row.key:
            seconds["unpacking NF4"] += row.self_cpu_time_total
        elif row.key in ("aten::mm", "aten::addmm") and vocabulary not in sizes:
            seconds[f"products with {'LoRA' if LORA_RANK in sizes else 'frozen'} weights"] += row.self_cpu_time_total
    whole = sum(row.self_cpu_time_total for row in callback.profile.key_averages())
    seconds["the rest"] = whole - sum(seconds.values())
    return {name: part / whole for name, part in seconds.items()}


def in_own_process(function, *arguments):
    """Runs it in a fork of a server that has imported everything and computed nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["__main__", "bitsandbytes", "common.trainer.rdpo", "common.training.supervised"])  # of a test, the main module is pytest
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_send_result, args=(send, function, *arguments))
    process.start()
    send.close()
    try:
        return receive.recv()
    except EOFError:
        raise RuntimeError(f"{function.__name__} failed in its process; its error is above") from None
    finally:
        process.join()


def _send_result(send, function, *arguments):
    send.send(function(*arguments))


def compare(folder, pairs, batch, steps, rounds, four_bit=True, checkpointing=False, contestants=CONTESTANTS):
    """Median figures of every contestant, and the first one's, ours, against each other one's, with minimum and maximum over the rounds."""
    runs = []
    for number in range(1, rounds + 1):
        runs.append({})
        for name in contestants:
            print(f"  round {number} of {rounds}: {name}", flush=True)
            runs[-1][name] = in_own_process(measure, name, folder, pairs, batch, steps, four_bit, checkpointing)
    ours, *others = contestants
    tokens, dtype = runs[0][ours]["tokens"], runs[0][ours]["computed_in"]
    for name, figures in ((name, run[name]) for run in runs for name in contestants):
        counted, computed_in = figures.pop("tokens"), figures.pop("computed_in")
        assert (counted, computed_in) == (tokens, dtype), f"{name}: {counted} tokens in {computed_in}, {ours}: {tokens} in {dtype}; no ratio is fair"
    figures = {name: {key: statistics.median(run[name][key] for run in runs) for key in runs[0][name]} for name in contestants}
    ranges = {name: {key: [min(run[name][key] for run in runs), max(run[name][key] for run in runs)] for key in ("seconds_per_step", "peak_gib")} for name in contestants}
    of_rounds = {name: [against(run[ours], run[name]) for run in runs] for name in others}
    return {
        "tokens": tokens, "batch": batch, "steps": steps, "rounds": rounds, "four_bit": four_bit, "checkpointing": checkpointing, "computed_in": dtype, **figures, "ranges": ranges,
        "ratios": {name: against(figures[ours], figures[name]) for name in others},
        "ratio_ranges": {name: {key: [min(of[key] for of in found), max(of[key] for of in found)] for key in found[0]} for name, found in of_rounds.items()},
    }  # fmt: skip


def against(ours, other):
    """How many times as fast we are, in a step and in a cold epoch, and our share of the other's memory."""
    return {"step": other["seconds_per_step"] / ours["seconds_per_step"], "cold_epoch": other["cold_seconds_per_pair"] / ours["cold_seconds_per_pair"], "memory": ours["peak_gib"] / other["peak_gib"]}


def benchmark(parts, rows_file, rounds, results):
    """Fills `results`, part by part and cell by cell; yields after each."""
    if not parts:
        return
    results["threads"], results["matmul_gflops"] = torch.get_num_threads(), {}
    for dtype in {best_compute_dtype(), torch.float32}:  # what students compute in here, in NF4 and without
        print(f"the rate of matrix products in {name_of(dtype)}", flush=True)
        results["matmul_gflops"][name_of(dtype)] = matmul_rate(dtype) / 1e9

    def cell(part, shape, prompt, answer, batch, folder, steps=2, rounds=1, **how):
        print(f"{part}, prompt {prompt}, answers {answer}, {batch} pairs a step, {shape['num_hidden_layers']} layers, {shape['vocab_size']} words {how or ''}", flush=True)
        row = compare(folder, random_pairs(batch * (steps + 2), prompt, answer, shape["vocab_size"]), batch, steps, rounds, **how)
        row = {"prompt": prompt, "answer": answer, "layers": shape["num_hidden_layers"], "vocabulary": shape["vocab_size"], **row}
        if part != "sft":
            operations = batch * floor_operations(shape, prompt, answer)
            rate = results["matmul_gflops"][row["computed_in"]] * 1e9
            row |= {"floor_gflop": operations / 1e9, "share_of_matmul_rate": {name: operations / row[name]["seconds_per_step"] / rate for name in row if name in CONTESTANTS}}
        results.setdefault(part, []).append(row)
        print(f"  {describe(row)}", flush=True)

    with tempfile.TemporaryDirectory() as scratch:
        folders = {}

        def folder_of(shape):
            name = f"{shape['num_hidden_layers']}x{shape['vocab_size']}"
            if name not in folders:
                folders[name] = Path(scratch, name)
                print(f"random weights, {shape['num_hidden_layers']} layers, {shape['vocab_size']} words", flush=True)
                make_model(folders[name], shape)
            return folders[name]

        if "bars" in parts:
            for prompt, answer in ((300, 120), (60, 120)):
                yield cell("bars", SMOLLM2, prompt, answer, 4, folder_of(SMOLLM2), steps=3, rounds=rounds)
        if "real" in parts and rows_file:
            student = Path(scratch, "student")
            student.symlink_to(smollm2())
            print("real, persona pairs, 4 pairs a step, SmolLM2-135M", flush=True)
            results["real"] = compare(student, persona_pairs(rows_file, 20), 4, 3, rounds)
            yield print(f"  {describe(results['real'])}", flush=True)
        if "sft" in parts:
            for prompt, answer in ((300, 120), (60, 120)):
                yield cell("sft", SMOLLM2, prompt, answer, 4, folder_of(SMOLLM2), steps=3, rounds=rounds, contestants=SFT)
        if "grid" in parts:
            for four_bit, checkpointing in KINDS:
                for prompt, answer in GRID:
                    yield cell("grid", TENTH, prompt, answer, 2, folder_of(TENTH), four_bit=four_bit, checkpointing=checkpointing)
        if "growth" in parts:
            for batch in (1, 2, 4, 8):
                yield cell("growth_with_pairs", TENTH, 60, 120, batch, folder_of(TENTH), contestants=CONTESTANTS[:2])
            for vocabulary in (2_000, 5_000, 20_000, 50_000):
                shape = {**TENTH, "vocab_size": vocabulary}
                yield cell("growth_with_vocabulary", shape, 60, 120, 2, folder_of(shape), contestants=CONTESTANTS[:2])
        if "profile" in parts:
            for prompt, answer in ((300, 120), (60, 120)):
                print(f"profile of our step, prompt {prompt}, answers {answer}", flush=True)
                pairs = random_pairs(12, prompt, answer, SMOLLM2["vocab_size"])
                shares = in_own_process(where_time_goes, folder_of(SMOLLM2), pairs, 4, SMOLLM2["vocab_size"])
                yield results.setdefault("where_time_goes", []).append({"prompt": prompt, "answer": answer, "batch": 4, "shares": shares})


def describe(row):
    """A line on a comparison: how often as fast as each other contestant, with minimum and maximum over the rounds."""
    return "; ".join(
        f"a step {ratio['step']:.2f} times as fast as {name} ({row['ratio_ranges'][name]['step'][0]:.2f} to {row['ratio_ranges'][name]['step'][1]:.2f}), "
        f"a cold epoch {ratio['cold_epoch']:.2f} times, memory {ratio['memory']:.2f} of its"
        for name, ratio in row["ratios"].items()
    )


def draw(results, path):
    """Ratios over the grid, growth with pairs and vocabulary, and where our time goes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, ((ratios, pairs), (vocabulary, shares)) = plt.subplots(2, 2, figsize=(11, 8), layout="constrained")
    for kind, (label, marker, line) in KINDS.items():
        rows = [row for row in results.get("grid", []) if (row["four_bit"], row["checkpointing"]) == kind]
        ratios.plot([f"{row['prompt']}/{row['answer']}" for row in rows], [row["ratios"]["trl"]["step"] for row in rows], marker=marker, linestyle=line, label=label)
    ratios.axhline(1, color="black", linewidth=1)
    ratios.set(title="Times as fast as stock TRL, a training step", xlabel="tokens of prompt/answer", ylabel="times", ylim=(0, None))
    ratios.tick_params(axis="x", labelrotation=30)
    ratios.legend(loc="lower right", ncols=2, fontsize="small")
    for axes, part, key, label in ((pairs, "growth_with_pairs", "batch", "pairs in a batch"), (vocabulary, "growth_with_vocabulary", "vocabulary", "words in the vocabulary")):
        rows = results.get(part, [])
        counts = [row[key] for row in rows]
        for name, known, marker in (("trl", "stock TRL", "s"), ("ours", "ours", "o")):
            axes.plot(counts, [row[name]["seconds_per_step"] for row in rows], marker=marker, label=known)
        floor = [row["share_of_matmul_rate"]["ours"] * row["ours"]["seconds_per_step"] for row in rows]
        axes.plot(counts, floor, color="black", linestyle=":", label="operations needed, at the matmul rate")
        axes.set(title=f"Seconds a step and {label}", xlabel=label, ylabel="seconds", ylim=(0, None))
        axes.legend(fontsize="small")
    rows = results.get("where_time_goes", [])
    labels, bottom = [f"{row['prompt']}/{row['answer']}" for row in rows], [0.0] * len(rows)
    for part in rows[0]["shares"] if rows else []:
        heights = [100 * row["shares"][part] for row in rows]
        shares.barh(labels, heights, left=bottom, label=part, height=0.6)
        bottom = [low + height for low, height in zip(bottom, heights)]
    shares.set(title="Where our step's time goes", xlabel="% of a step", ylabel="tokens of prompt/answer", xlim=(0, 100))
    if rows:
        shares.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2, frameon=False, fontsize="small")
    save_figure(figure, path)
    plt.close(figure)


def table(results):
    """Markdown of the cases with SmolLM2-135M's own shape."""
    import pandas

    rows = [(f"random weights, prompt {row['prompt']}, answers {row['answer']}", row) for row in results.get("bars", [])]
    if "real" in results:
        tokens = results["real"]["tokens"]
        rows.append((f"role-play pairs, prompt {tokens['prompt']:.0f}, answers {tokens['chosen']:.0f} and {tokens['rejected']:.0f} on average", results["real"]))
    return pandas.DataFrame([{
        "SmolLM2-135M in NF4, 4 pairs a step (tokens)": name,
        **{f"{shown}, seconds a step": f"{row[key]['seconds_per_step']:.1f}" for key, shown in (("trl", "stock TRL"), ("trl_precomputed", "precomputed reference"), ("ours", "ours"))},
        "faster than stock": f"{row['ratios']['trl']['step']:.1f} times", "cold epoch": f"{row['ratios']['trl']['cold_epoch']:.1f} times", "memory": f"{row['ratios']['trl']['memory']:.2f} of stock's",
    } for name, row in rows]).to_markdown(index=False)  # fmt: skip


PARTS = ("bars", "real", "sft", "grid", "growth", "profile")


def rounded(measured):
    """The same with six digits of every number."""
    if isinstance(measured, dict):
        return {name: rounded(value) for name, value in measured.items()}
    if isinstance(measured, list):
        return [rounded(value) for value in measured]
    return float(f"{measured:.6g}") if isinstance(measured, float) else measured


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", help="persona pairs, see common.small")
    parser.add_argument("--rounds", type=int, default=5, help="of bars, real and sft")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, the others stay as they are in results/benchmarks.json; none draws again")
    wanted = parser.parse_args()
    parts = [part for part in wanted.only.split(",") if part]
    if unknown := set(parts) - set(PARTS):
        parser.error(f"--only takes {', '.join(PARTS)}, not {', '.join(sorted(unknown))}")
    measured_anew = {"bars": ["bars"], "real": ["real"] if wanted.rows else [], "sft": ["sft"], "grid": ["grid"], "growth": ["growth_with_pairs", "growth_with_vocabulary"], "profile": ["where_time_goes"]}
    stale = {name for part in parts for name in measured_anew[part]}
    results = {name: value for name, value in measured_before().items() if name not in stale}
    begun = time.perf_counter()
    for cells, _ in enumerate(benchmark(parts, wanted.rows, wanted.rounds, results), start=1):
        write_json(RESULTS, rounded(results))
        print(f"{time.perf_counter() - begun:.0f} s: {cells} cells done", flush=True)
    draw(results, RESULTS.with_suffix(".png"))
    RESULTS.with_suffix(".md").write_text(table(results) + "\n", encoding="utf-8")


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    main()
