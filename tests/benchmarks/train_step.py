"""Speed and memory of our preference trainer against TRL's `DPOTrainer`, stock and with precomputed reference.

    python tests/benchmarks/train_step.py [--rows ROWS.jsonl] [--rounds 2] [--only bars,real,grid,growth,profile]

The same model with the same LoRA, the same pairs, batch, threads and gradient checkpointing. Every contestant runs in a
process of its own, in turn: `--rounds` times three steps in the cases with SmolLM2's own size, two steps in grid and growth;
medians count. A step is everything between two optimiser updates; a cold epoch
adds what comes before the first one, our reference pass included. Writes results/benchmarks.json after every cell, then a
table and a figure.

ROWS.jsonl holds the persona pairs that `common/profiles/small/prepare.py` describes; without it there is no real case.
"""

import argparse
import json
import multiprocessing
import os
import random
import resource
import statistics
import tempfile
import time
from pathlib import Path

import torch
from datasets import Dataset
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback
from trl import DPOConfig, DPOTrainer

from common.profiles.small.prepare import cut
from common.profiles.small.smollm2 import smollm2
from common.report.figures import save_figure
from common.runtime import quiet_libraries
from common.storage import read_lines, write_json
from common.student.adapters import lora_settings
from common.student.load import load_student
from common.trainer.config import RDPOConfig
from common.trainer.rdpo import RDPOTrainer

RESULTS = Path(__file__).resolve().parent.parent.parent / "results" / "benchmarks.json"
CONTESTANTS = ("ours", "trl", "trl_precomputed")
SMOLLM2 = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152}
TENTH = {**SMOLLM2, "num_hidden_layers": 3, "vocab_size": 4915}
"""A tenth of SmolLM2-135M: its width, and the same share of work in the head."""
KINDS = {  # (NF4, checkpointing): name, marker and line in the figure
    (True, False): ("NF4", "o", "-"), (True, True): ("NF4, checkpointing", "s", "--"),
    (False, False): ("float32", "^", ":"), (False, True): ("float32, checkpointing", "v", "-."),
}  # fmt: skip
GRID = [(prompt, answer) for prompt in (60, 300, 800) for answer in (60, 120, 300)]  # tokens
LORA_RANK = 16


def measured_before():
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def make_model(folder, shape):
    """Random weights, tied embeddings, and a tokenizer for which one word is one token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = {"<pad>": 0, "<end>": 1, "<unknown>": 2} | {f"w{i}": i for i in range(3, shape["vocab_size"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unknown>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>", unk_token="<unknown>")
    wrapped.chat_template = "{% for message in messages %}{{ message['content'] + ' ' }}{% endfor %}"
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=True, max_position_embeddings=2048, eos_token_id=1, pad_token_id=0)).save_pretrained(folder)
    wrapped.save_pretrained(folder)


def random_pairs(count, prompt, answer, vocabulary):
    draw = random.Random(0)
    words = lambda n: " ".join(f"w{draw.randrange(3, vocabulary)}" for _ in range(n))  # noqa: E731
    return [{"prompt": words(prompt) + " ", "chosen": words(answer - 1) + " <end>", "rejected": words(answer - 1) + " <end>"} for _ in range(count)]


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
    """Trains one step that does not count, then `steps` more; figures of this process. `profiled`: one more callback."""
    quiet_libraries()
    model, tokenizer = load_student(folder, four_bit=four_bit, compute_dtype=None if four_bit else torch.float32)
    options = {
        "output_dir": tempfile.mkdtemp(dir=folder), "per_device_train_batch_size": batch, "max_length": None, "beta": 0.1, "learning_rate": 1e-4,
        "bf16": model.dtype == torch.bfloat16, "use_cpu": not torch.cuda.is_available(), "gradient_checkpointing": checkpointing,
        "max_steps": steps + 1, "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "dataloader_pin_memory": False,
    }  # fmt: skip
    begun = time.perf_counter()
    shared = {"train_dataset": Dataset.from_list(pairs), "processing_class": tokenizer, "peft_config": lora_settings(LORA_RANK)}
    if contestant == "ours":
        trainer = RDPOTrainer(model, args=RDPOConfig(method="dpo", **options), **shared)
    else:
        trainer = DPOTrainer(model, args=DPOConfig(precompute_ref_log_probs=contestant == "trl_precomputed", **options), **shared)
    prepared = time.perf_counter() - begun
    times = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            times.append(-time.perf_counter())

        def on_step_end(self, *args, **kwargs):
            times[-1] += time.perf_counter()

    trainer.add_callback(Clock())
    if profiled:
        trainer.add_callback(profiled)
    loss = trainer.train().training_loss
    step = statistics.median(times[1:])
    lengths = {name: statistics.mean(map(len, trainer.train_dataset[f"{name}_ids"])) for name in ("prompt", "chosen", "rejected")}
    return {
        "seconds_per_step": step, "pairs_per_second": batch / step, "cold_seconds_per_pair": prepared / len(pairs) + step / batch,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, "mean_loss": loss, "tokens": lengths,
    }  # fmt: skip


def matmul_rate(dtype, size=2048):
    """Floating-point operations a second of a square matrix product, the median of ten."""
    a, b, times = torch.randn(size, size, dtype=dtype), torch.randn(size, size, dtype=dtype), []
    for _ in range(12):
        begun = time.perf_counter()
        a @ b
        times.append(time.perf_counter() - begun)
    return 2 * size**3 / statistics.median(times[2:])


def floor_operations(shape, prompt, answer):
    """Floating-point operations that one pair cannot do without: prompt once, head on completions, frozen weights, nothing twice.

    A product counts two operations a weight and token, once forward and once for the gradient of its input; LoRA counts three
    times; attention three times what its queries see.
    """
    width, inner, layers, vocabulary = (shape[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size"))
    key_width = width * shape["num_key_value_heads"] // shape["num_attention_heads"]
    ends = [(width, width), (width, key_width), (width, key_width), (width, width), (width, inner), (width, inner), (inner, width)]
    tokens, seen = prompt + 2 * (answer - 1), prompt**2 / 2 + 2 * ((answer - 1) * prompt + (answer - 1) ** 2 / 2)
    weights, lora = sum(a * b for a, b in ends), sum(LORA_RANK * (a + b) for a, b in ends)
    return layers * (tokens * (4 * weights + 6 * lora) + 12 * seen * width) + 4 * 2 * answer * vocabulary * width


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
    """Median figures of every contestant, and ours as a multiple of each other one's."""
    runs = [{name: in_own_process(measure, name, folder, pairs, batch, steps, four_bit, checkpointing) for name in contestants} for _ in range(rounds)]
    tokens = runs[0]["ours"]["tokens"]
    assert all(run[name].pop("tokens") == tokens for run in runs for name in contestants)
    figures = {name: {key: statistics.median(run[name][key] for run in runs) for key in runs[0][name]} for name in contestants}
    ours = figures["ours"]
    ratios = {
        name: {"step": other["seconds_per_step"] / ours["seconds_per_step"], "cold_epoch": other["cold_seconds_per_pair"] / ours["cold_seconds_per_pair"], "memory": ours["peak_gib"] / other["peak_gib"]}
        for name, other in figures.items() if name != "ours"
    }  # fmt: skip
    return {"tokens": tokens, "batch": batch, "steps": steps, "rounds": rounds, "four_bit": four_bit, "checkpointing": checkpointing, **figures, "ratios": ratios}


def benchmark(parts, rows_file, rounds, results):
    """Fills `results`, part by part and cell by cell; yields after each."""
    if not parts:
        return
    results["threads"] = torch.get_num_threads()
    results["matmul_gflops"] = {str(dtype).removeprefix("torch."): matmul_rate(dtype) / 1e9 for dtype in (torch.bfloat16, torch.float32)}

    def cell(part, shape, prompt, answer, batch, folder, steps=2, rounds=1, **how):
        row = compare(folder, random_pairs(batch * (steps + 1), prompt, answer, shape["vocab_size"]), batch, steps, rounds, **how)
        operations = batch * floor_operations(shape, prompt, answer)
        rate = results["matmul_gflops"]["bfloat16" if row["four_bit"] else "float32"] * 1e9
        share = {name: operations / row[name]["seconds_per_step"] / rate for name in row if name in CONTESTANTS}
        row = {"prompt": prompt, "answer": answer, "layers": shape["num_hidden_layers"], "vocabulary": shape["vocab_size"], **row}
        results.setdefault(part, []).append({**row, "floor_gflop": operations / 1e9, "share_of_matmul_rate": share})

    with tempfile.TemporaryDirectory() as scratch:
        folders = {}

        def folder_of(shape):
            name = f"{shape['num_hidden_layers']}x{shape['vocab_size']}"
            if name not in folders:
                folders[name] = Path(scratch, name)
                make_model(folders[name], shape)
            return folders[name]

        if "bars" in parts:
            for prompt, answer in ((300, 120), (60, 120)):
                yield cell("bars", SMOLLM2, prompt, answer, 4, folder_of(SMOLLM2), steps=3, rounds=rounds)
        if "real" in parts and rows_file:
            student = Path(scratch, "student")
            student.symlink_to(smollm2())
            yield results.update(real=compare(student, persona_pairs(rows_file, 16), 4, 3, rounds))
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
                pairs = random_pairs(8, prompt, answer, SMOLLM2["vocab_size"])
                shares = in_own_process(where_time_goes, folder_of(SMOLLM2), pairs, 4, SMOLLM2["vocab_size"])
                yield results.setdefault("where_time_goes", []).append({"prompt": prompt, "answer": answer, "batch": 4, "shares": shares})


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
        floor = [row["floor_gflop"] / results["matmul_gflops"]["bfloat16"] for row in rows]
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


PARTS = ("bars", "real", "grid", "growth", "profile")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", help="persona pairs, see common.small")
    parser.add_argument("--rounds", type=int, default=2, help="of bars and real")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, the others stay as they are in results/benchmarks.json; none draws again")
    wanted = parser.parse_args()
    parts = [part for part in wanted.only.split(",") if part]
    if unknown := set(parts) - set(PARTS):
        parser.error(f"--only takes {', '.join(PARTS)}, not {', '.join(sorted(unknown))}")
    measured_anew = {"bars": ["bars"], "real": ["real"] if wanted.rows else [], "grid": ["grid"], "growth": ["growth_with_pairs", "growth_with_vocabulary"], "profile": ["where_time_goes"]}
    stale = {name for part in parts for name in measured_anew[part]}
    results = {name: value for name, value in measured_before().items() if name not in stale}
    begun = time.perf_counter()
    for cells, _ in enumerate(benchmark(parts, wanted.rows, wanted.rounds, results), start=1):
        write_json(RESULTS, results)
        print(f"{time.perf_counter() - begun:.0f} s: {cells} cells done", flush=True)
    draw(results, RESULTS.with_suffix(".png"))
    RESULTS.with_suffix(".md").write_text(table(results) + "\n", encoding="utf-8")


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    main()
