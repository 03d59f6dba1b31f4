"""Speed and memory of our trainers against TRL's: DPO and DPO with NLL against `DPOTrainer`, SFT against `SFTTrainer`.

    python tests/benchmarks/train_step.py [--rows ROWS.jsonl] [--rounds 5] [--grid-rounds 5] [--only bars,real,nll,sft,shortest,grid,growth,profile]

The same model with the same LoRA, the same pairs, batch, threads and gradient checkpointing. Every contestant trains one epoch in
a process of its own, in turn, once a round; every figure and ratio is the median over the rounds, with minimum and maximum.
A round's step is the median of its epoch without the first step and the last, in which ours measures KL, as in every tenth of
a long training. Its cold epoch is timed by a clock (`contest.Clock`). DPO has a second rival with precomputed reference. A step
of dSC is one of SFT: it trains on fewer rows. Shortest are six pairs of 60/60 tokens: no cold epoch may be slower than stock
there, and none anywhere; the last lines name those that are. Writes results/benchmarks.json after every cell, then a table and
a figure.

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
CONTESTANTS, NLL, SFT = ("ours", "trl", "trl_precomputed"), ("ours_nll", "trl_nll"), ("ours_sft", "trl_sft")
LINES = {"DPO": CONTESTANTS, "DPO with NLL": NLL, "SFT": SFT}
"""Of each kind of training ours, stock, and further rivals."""
COLD_EPOCH = "from before the trainer is made to the end of its first epoch"
"""What results/benchmarks.json says of its cold epochs; figures of files that say something else are not kept beside new ones."""
TENTH = {**SMOLLM2, "num_hidden_layers": 3, "vocab_size": 4915}
"""A tenth of SmolLM2-135M: its width, and the same share of work in the head."""
KINDS = {  # (NF4, checkpointing): name, marker and line in the figure
    (True, False): ("NF4", "o", "-"), (True, True): ("NF4, checkpointing", "s", "--"),
    (False, False): ("float32", "^", ":"), (False, True): ("float32, checkpointing", "v", "-."),
}  # fmt: skip
BARS = [(300, 120), (60, 120)]  # tokens of prompt and answer
GRID = [(prompt, answer) for prompt in (60, 300, 800) for answer in (60, 120, 300)]
SECTIONS = {  # of the results, by the part that measures them
    "bars": ["bars"], "real": ["real"], "nll": ["nll"], "sft": ["sft"], "shortest": ["shortest"], "grid": ["grid"],
    "growth": ["growth_with_pairs", "growth_with_vocabulary"], "profile": ["where_time_goes"],
}  # fmt: skip
COMPARISONS = [name for names in SECTIONS.values() for name in names if name != "where_time_goes"]


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


def measure(contestant, folder, pairs, batch, four_bit, checkpointing, profiled=None):
    """Trains one epoch, of three steps at least; figures of this process. `profiled`: one more callback."""
    quiet_libraries()
    model, tokenizer = load_student(folder, four_bit=four_bit, compute_dtype=None if four_bit else torch.float32)
    dtype, output, clock = name_of(model.dtype), tempfile.mkdtemp(dir=folder), Clock()
    trainer = trainer_for(contestant, model, tokenizer, pairs, output, per_device_train_batch_size=batch, gradient_checkpointing=checkpointing, num_train_epochs=1)
    trainer.add_callback(clock)
    if profiled:
        trainer.add_callback(profiled)
    loss = trainer.train().training_loss
    step = statistics.median(clock.steps[1:-1])
    return {
        "seconds_per_step": step, "pairs_per_second": batch / step, "cold_epoch_seconds": clock.cold_epoch, "before_first_step_seconds": clock.before_first_step,
        "first_step_seconds": clock.steps[0], "last_step_seconds": clock.steps[-1], "peak_gib": peak_gib(), "mean_loss": loss, "tokens": mean_lengths(trainer.train_dataset),
        "computed_in": dtype,
    }  # fmt: skip


def mean_lengths(dataset):
    """Tokens of prompts and answers, as a trainer has prepared them; SFT's labels hide the prompt."""
    if "labels" in dataset.column_names:
        scored = statistics.mean(sum(label != -100 for label in labels) for labels in dataset["labels"])
        return {"prompt": statistics.mean(map(len, dataset["labels"])) - scored, "chosen": scored}
    return {name: statistics.mean(map(len, dataset[f"{name}_ids"])) for name in ("prompt", "chosen", "rejected")}


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
    measure("ours", folder, pairs, batch, True, False, callback)
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


def compare(folder, pairs, batch, rounds, four_bit=True, checkpointing=False, contestants=CONTESTANTS):
    """Median figures of every contestant, and medians of the rounds' ratios of the first one, ours, to each other one; with minimum and maximum."""
    runs = []
    for number in range(1, rounds + 1):
        runs.append({})
        for name in contestants:
            print(f"  round {number} of {rounds}: {name}", flush=True)
            runs[-1][name] = in_own_process(measure, name, folder, pairs, batch, four_bit, checkpointing)
    ours, *others = contestants
    tokens, dtype = runs[0][ours]["tokens"], runs[0][ours]["computed_in"]
    for name, figures in ((name, run[name]) for run in runs for name in contestants):
        counted, computed_in = figures.pop("tokens"), figures.pop("computed_in")
        assert (counted, computed_in) == (tokens, dtype), f"{name}: {counted} tokens in {computed_in}, {ours}: {tokens} in {dtype}; no ratio is fair"
    of_rounds = {name: [against(run[ours], run[name]) for run in runs] for name in others}
    return {
        "tokens": tokens, "pairs": len(pairs), "batch": batch, "rounds": rounds, "four_bit": four_bit, "checkpointing": checkpointing, "computed_in": dtype,
        **{name: over(statistics.median, [run[name] for run in runs]) for name in contestants},
        "ranges": {name: over(extent, [run[name] for run in runs]) for name in contestants},
        "ratios": {name: over(statistics.median, found) for name, found in of_rounds.items()}, "ratio_ranges": {name: over(extent, found) for name, found in of_rounds.items()},
    }  # fmt: skip


def over(summary, rounds):
    """A summary of each figure over the rounds."""
    return {key: summary([found[key] for found in rounds]) for key in rounds[0]}


def extent(values):
    return [min(values), max(values)]


def against(ours, other):
    """How many times as fast we are, in a step and in a cold epoch, and our share of the other's memory."""
    return {"step": other["seconds_per_step"] / ours["seconds_per_step"], "cold_epoch": other["cold_epoch_seconds"] / ours["cold_epoch_seconds"], "memory": ours["peak_gib"] / other["peak_gib"]}


def benchmark(parts, rows_file, rounds, grid_rounds, results):
    """Fills `results`, part by part and cell by cell; yields after each."""
    if not parts:
        return
    results |= {"cold_epoch": COLD_EPOCH, "threads": torch.get_num_threads(), "matmul_gflops": {}}
    for dtype in {best_compute_dtype(), torch.float32}:  # what students compute in here, in NF4 and without
        print(f"the rate of matrix products in {name_of(dtype)}", flush=True)
        results["matmul_gflops"][name_of(dtype)] = matmul_rate(dtype) / 1e9

    def cell(part, shape, prompt, answer, pairs, batch, rounds, **how):
        print(f"{part}, prompt {prompt}, answers {answer}, {pairs} pairs, {batch} a step, {shape['num_hidden_layers']} layers, {shape['vocab_size']} words {how or ''}", flush=True)
        row = compare(folder_of(shape), random_pairs(pairs, prompt, answer, shape["vocab_size"]), batch, rounds, **how)
        row = {"prompt": prompt, "answer": answer, "layers": shape["num_hidden_layers"], "vocabulary": shape["vocab_size"], **row}
        if "rejected" in row["tokens"]:
            operations = batch * floor_operations(shape, prompt, answer)
            rate = results["matmul_gflops"][row["computed_in"]] * 1e9
            row |= {"floor_gflop": operations / 1e9, "share_of_matmul_rate": {name: operations / row[name]["seconds_per_step"] / rate for name in row["ranges"]}}
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
            for prompt, answer in BARS:
                yield cell("bars", SMOLLM2, prompt, answer, 20, 4, rounds)
        if "real" in parts:
            student = Path(scratch, "student")
            student.symlink_to(smollm2())
            print("real, persona pairs, 4 pairs a step, SmolLM2-135M", flush=True)
            results["real"] = [compare(student, persona_pairs(rows_file, 20), 4, rounds)]
            yield print(f"  {describe(*results['real'])}", flush=True)
        for part, contestants in (("nll", NLL), ("sft", SFT)):
            for prompt, answer in BARS if part in parts else ():
                yield cell(part, SMOLLM2, prompt, answer, 20, 4, rounds, contestants=contestants)
        if "shortest" in parts:
            for four_bit, checkpointing in KINDS:
                for contestants in LINES.values():
                    yield cell("shortest", TENTH, 60, 60, 6, 2, rounds, four_bit=four_bit, checkpointing=checkpointing, contestants=contestants)
        if "grid" in parts:
            for four_bit, checkpointing in KINDS:
                for prompt, answer in GRID:
                    yield cell("grid", TENTH, prompt, answer, 8, 2, grid_rounds, four_bit=four_bit, checkpointing=checkpointing)
        if "growth" in parts:
            for batch in (1, 2, 4, 8):
                yield cell("growth_with_pairs", TENTH, 60, 120, 4 * batch, batch, grid_rounds, contestants=CONTESTANTS[:2])
            for vocabulary in (2_000, 5_000, 20_000, 50_000):
                yield cell("growth_with_vocabulary", {**TENTH, "vocab_size": vocabulary}, 60, 120, 8, 2, grid_rounds, contestants=CONTESTANTS[:2])
        if "profile" in parts:
            for prompt, answer in BARS:
                print(f"profile of our step, prompt {prompt}, answers {answer}", flush=True)
                pairs = random_pairs(12, prompt, answer, SMOLLM2["vocab_size"])
                shares = in_own_process(where_time_goes, folder_of(SMOLLM2), pairs, 4, SMOLLM2["vocab_size"])
                yield results.setdefault("where_time_goes", []).append({"prompt": prompt, "answer": answer, "batch": 4, "shares": shares})


def line_of(row):
    """(kind of training, ours, stock) of a comparison."""
    return next((line, *contestants[:2]) for line, contestants in LINES.items() if contestants[0] in row)


def ratio(row, other, key, unit="", digits=2):
    """A ratio to another contestant: its median, and minimum and maximum over the rounds."""
    low, high = row["ratio_ranges"][other][key]
    return f"{row['ratios'][other][key]:.{digits}f}{unit} ({low:.{digits}f} to {high:.{digits}f})"


def describe(row):
    """A line on a comparison, ours with each other contestant."""
    return "; ".join(
        f"a step {ratio(row, name, 'step')} times as fast as {name}, a cold epoch {ratio(row, name, 'cold_epoch')} times, memory {ratio(row, name, 'memory')} of its" for name in row["ratios"]
    )


def name_case(row):
    """What was trained on, in a table."""
    tokens, given = row["tokens"], "prompt" in row
    lengths = f"prompt {row['prompt']}, answers {row['answer']}" if given else f"prompt {tokens['prompt']:.0f}, answers {tokens['chosen']:.0f} and {tokens['rejected']:.0f} on average"
    return f"{line_of(row)[0]}, {'random weights' if given else 'role-play pairs'}, {lengths}"


def slower_than_stock(results):
    """A line on every comparison whose cold epoch is slower than stock's by the median: none may be."""
    words = lambda row: f", {row['vocabulary']} words" if "vocabulary" in row else ""  # noqa: E731
    return [
        f"{name}: {name_case(row)}, {row['pairs']} pairs, {row['batch']} a step{words(row)}, {KINDS[row['four_bit'], row['checkpointing']][0]}: "
        f"a cold epoch {ratio(row, stock, 'cold_epoch')} times as fast as stock"
        for name in COMPARISONS for row in results.get(name, []) for _, _, stock in [line_of(row)] if row["ratios"][stock]["cold_epoch"] < 1
    ]  # fmt: skip


def draw(results, path):
    """Ratios over the grid, growth with pairs and vocabulary, where our time goes, and every kind of training."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, ((steps, epochs), (pairs, vocabulary), (shares, lines)) = plt.subplots(3, 2, figsize=(11, 12), layout="constrained")
    for axes, key, title in ((steps, "step", "a training step"), (epochs, "cold_epoch", "a cold epoch")):
        for kind, (label, marker, line) in KINDS.items():
            rows = [row for name in ("shortest", "grid") for row in results.get(name, []) if (row["four_bit"], row["checkpointing"]) == kind and "trl" in row]
            names = [("6 × " if row["pairs"] == 6 else "") + f"{row['prompt']}/{row['answer']}" for row in rows]
            axes.errorbar(names, *with_errors(rows, ["trl"] * len(rows), key), marker=marker, linestyle=line, capsize=2, label=label)
        axes.axhline(1, color="black", linewidth=1)
        axes.set(title=f"Times as fast as stock TRL, {title}", xlabel="tokens of prompt/answer, of 8 pairs and of 6", ylabel="times", ylim=(0, None))
        axes.tick_params(axis="x", labelrotation=30)
        axes.legend(loc="lower right", ncols=2, fontsize="small")
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
    rows = own_size(results)[::-1]  # the first on top
    for key, label, shift in (("cold_epoch", "a cold epoch", -0.2), ("step", "a step", 0.2)):
        heights, errors = with_errors(rows, [line_of(row)[2] for row in rows], key)
        lines.barh([place + shift for place in range(len(rows))], heights, xerr=errors, height=0.4, capsize=2, label=label)
    lines.axvline(1, color="black", linewidth=1)
    lines.set_yticks(range(len(rows)), [f"{line_of(row)[0]}, " + (f"{row['prompt']}/{row['answer']}" if "prompt" in row else "real pairs") for row in rows])
    lines.set(title="Times as fast as stock TRL, SmolLM2-135M's size", xlabel="times", xlim=(0, None))
    lines.legend(fontsize="small")
    save_figure(figure, path)
    plt.close(figure)


def with_errors(rows, others, key):
    """A ratio of every row, and how far below and above it the rounds reach."""
    medians = [row["ratios"][other][key] for row, other in zip(rows, others)]
    ranges = [row["ratio_ranges"][other][key] for row, other in zip(rows, others)]
    return medians, [[median - low for median, (low, _) in zip(medians, ranges)], [high - median for median, (_, high) in zip(medians, ranges)]]


def own_size(results):
    """Comparisons with SmolLM2-135M's own shape."""
    return [row for name in ("bars", "real", "nll", "sft") for row in results.get(name, [])]


def table(results):
    """Markdown of `own_size`: medians, and for ratios minimum and maximum over the rounds."""
    import pandas

    seconds = lambda row, name: f"{row[name]['seconds_per_step']:.1f}" if name in row else "-"  # noqa: E731
    return pandas.DataFrame([{
        "SmolLM2-135M in NF4, 4 pairs a step (tokens)": name_case(row),
        "stock TRL, seconds a step": seconds(row, stock), "precomputed reference, seconds a step": seconds(row, "trl_precomputed"), "ours, seconds a step": seconds(row, ours),
        "faster than stock": ratio(row, stock, "step", " times", 1), "cold epoch": ratio(row, stock, "cold_epoch", " times", 1), "memory": ratio(row, stock, "memory", " of stock's"),
    } for row in own_size(results) for _, ours, stock in [line_of(row)]]).to_markdown(index=False, disable_numparse=True)  # fmt: skip


def rounded(measured):
    """The same with six digits of every number."""
    if isinstance(measured, dict):
        return {name: rounded(value) for name, value in measured.items()}
    if isinstance(measured, list):
        return [rounded(value) for value in measured]
    return float(f"{measured:.6g}") if isinstance(measured, float) else measured


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", help="persona pairs, see common/profiles/small/prepare.py")
    parser.add_argument("--rounds", type=int, default=5, help="of bars, real, nll, sft and shortest; each takes about 25 minutes on 2 cores, estimated from earlier figures")
    parser.add_argument("--grid-rounds", type=int, default=5, help="of grid and growth; each takes about 20 minutes on 2 cores, estimated from earlier figures")
    parser.add_argument("--only", default=",".join(SECTIONS), help="parts, the others stay as they are in results/benchmarks.json; none draws again")
    wanted = parser.parse_args()
    parts = [part for part in wanted.only.split(",") if part and (part != "real" or wanted.rows)]
    if unknown := set(parts) - set(SECTIONS):
        parser.error(f"--only takes {', '.join(SECTIONS)}, not {', '.join(sorted(unknown))}")
    before, stale = measured_before(), {name for part in parts for name in SECTIONS[part]}
    if before.get("cold_epoch") != COLD_EPOCH and (others := {name for name in COMPARISONS if name in before} - stale):
        if not parts:
            parser.error(f"{RESULTS.name} was timed by another clock: measure {', '.join(sorted(others))} anew")
        print(f"left out, timed by another clock: {', '.join(sorted(others))}", flush=True)
        stale |= others
    results = {name: value for name, value in before.items() if name not in stale}
    begun = time.perf_counter()
    for cells, _ in enumerate(benchmark(parts, wanted.rows, wanted.rounds, wanted.grid_rounds, results), start=1):
        write_json(RESULTS, rounded(results))
        print(f"{time.perf_counter() - begun:.0f} s: {cells} cells done", flush=True)
    draw(results, RESULTS.with_suffix(".png"))
    RESULTS.with_suffix(".md").write_text(table(results) + "\n", encoding="utf-8")
    print("\n".join(slower_than_stock(results)) or "no cold epoch is slower than stock", flush=True)


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    main()
