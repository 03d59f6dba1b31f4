"""What our trainer is worth on one GPU: equality of packed and padded rows, speed and memory against TRL, cold epochs, generation.

    python tests/benchmarks/gpu.py [--dry] [--minutes 8] [--to runs/gpu]

Needs no network and no weights: students of 1B and 7B get random weights on the device and are rounded to NF4 there. One process measures
part by part, the most important first; a part that would not end in time is left out and named, a model that does not fit is written down as
out of memory. A step's figure is the median over some, with minimum and maximum, after two that do not count.
Writes gpu.json after every part, then gpu.png and gpu.md, a paragraph for docs/speed.md. --dry computes every part on a CPU with tiny
students: it shows that all of them work, and its times mean nothing.

Equality is relative: of log-probabilities the largest difference over the largest value, of LoRA gradients the norm of the difference over
the norm. `padding` beside it is what the same model differs by between a padded batch and rows computed one at a time.
"""

import argparse
import contextlib
import gc
import importlib.util
import io
import math
import os
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

BEGUN = time.perf_counter()  # importing what trains is part of the time
if __name__ == "__main__":  # before a library looks for GPUs
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ |= {"CUDA_VISIBLE_DEVICES": ""} if "--dry" in sys.argv else {}
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # of several the first: trainers would share the batch out

import torch  # noqa: E402
from contest import (  # noqa: E402
    Clock,
    floor_operations,
    matmul_rate,
    name_of,
    peak_gib,
    random_pairs,
    trainer_for,
    wait,
    words_tokenizer,
)
from generation import answer  # noqa: E402

from common.logprobs.compute import grouped_logprobs  # noqa: E402
from common.logprobs.masks import mask_maker  # noqa: E402
from common.logprobs.packing import dense_mask, pack  # noqa: E402
from common.logprobs.rows import in_rows, packed_logprobs  # noqa: E402
from common.report.figures import grid_of_axes, save_figure  # noqa: E402
from common.runtime import quiet_libraries, resolve  # noqa: E402
from common.storage import write_json, write_whole  # noqa: E402
from common.student.adapters import adapters_to_float32, lora_settings  # noqa: E402
from common.student.load import forbid_cpu_repacking, own_device  # noqa: E402

NO_GPU = "There is no CUDA device here: run this on a machine with a GPU, or with --dry to see every part work on a CPU."
OUT_OF_MEMORY, OUT_OF_TIME = "out of memory", "left out: out of time"
ARCHITECTURES = {  # of the comparison of packed and padded rows: what is set besides the shape
    "llama": {}, "mistral": {"sliding_window": 48}, "qwen2": {}, "qwen3": {}, "gemma2": {"sliding_window": 48}, "gemma3_text": {"sliding_window": 48},
}  # fmt: skip
WITHOUT_SDPA = ("gemma2",)
LABELS = {"ours": "ours", "trl": "stock TRL", "trl_precomputed": "TRL, reference precomputed", "trl_liger": "TRL with Liger"}
COLORS = {"ours": "#1f77b4", "trl": "#d62728", "trl_precomputed": "#ff7f0e", "trl_liger": "#9467bd"}
BARS = {"step": 2.0, "memory": 0.6, "float32": 1e-5, "bfloat16": 2e-2}
"""Times as fast as stock at least, share of its memory at most, and relative differences at most."""


def shape(width, inner, layers, heads, key_heads, vocabulary, **more):
    return {
        "hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": key_heads,
        "vocab_size": vocabulary, **more,
    }  # fmt: skip


@dataclass(frozen=True)
class Size:
    """How large everything is. students: name -> architecture and shape, the first for most parts. guess: factor on the seconds that parts guess."""

    students: dict[str, tuple[str, dict]]
    equality: dict  # shape of the students that are compared
    equality_tokens: tuple[int, int]
    attentions: tuple[str, ...]
    architectures: tuple[str, ...]
    lengths: tuple[tuple[int, int], ...]  # tokens of prompt and answer; the first two have bars
    batches: tuple[int, ...]
    batch: int  # of parts that are no matter of the batch
    warm: int
    steps: int
    cold_pairs: int
    prompts: int
    new_tokens: int
    guess: float


GPU = Size(
    students={
        "Llama 1B": ("llama", shape(2048, 8192, 16, 32, 8, 128_256, tie_word_embeddings=True)),
        "Llama 7B": ("llama", shape(4096, 11_008, 32, 32, 32, 32_000)),
        "Qwen 1.5B": ("qwen2", shape(1536, 8960, 28, 12, 2, 151_936, tie_word_embeddings=True)),
        "Qwen 7B": ("qwen2", shape(3584, 18_944, 28, 28, 4, 152_064)),
    },
    equality=shape(512, 1024, 4, 8, 4, 8192, head_dim=64), equality_tokens=(300, 120), attentions=("sdpa", "dense mask", "eager", "flex_attention"),
    architectures=tuple(ARCHITECTURES), lengths=((300, 120), (1000, 500), (60, 120)), batches=(2, 4, 8, 16), batch=4, warm=2, steps=5, cold_pairs=64, prompts=32,
    new_tokens=64, guess=1.0,
)  # fmt: skip
TINY = shape(64, 128, 2, 4, 2, 300, head_dim=16)
DRY = Size(
    students={"Llama 1B": ("llama", {**TINY, "tie_word_embeddings": True}), "Llama 7B": ("llama", TINY), "Qwen 1.5B": ("qwen2", {**TINY, "tie_word_embeddings": True}), "Qwen 7B": ("qwen2", TINY)},
    equality=TINY, equality_tokens=(60, 12), attentions=("sdpa", "dense mask", "eager"),  # flex attention has no backward on a CPU
    architectures=tuple(ARCHITECTURES), lengths=((24, 8), (40, 12), (8, 8)), batches=(2, 4), batch=2, warm=1, steps=1, cold_pairs=4, prompts=4, new_tokens=4, guess=0.0,
)  # fmt: skip


def device():
    return "cuda" if torch.cuda.is_available() else "cpu"


def student(architecture, of_shape, dtype, four_bit, attention="sdpa", scale=1.0):
    """A student of random weights made on the device; scale: of its matrices, so that small models' answers differ by more than rounding."""
    from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

    positions = {"max_position_embeddings": 4096, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0}
    config = AutoConfig.for_model(architecture, **positions, **of_shape)
    torch.manual_seed(0)
    with torch.device(device()):
        random_model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    weights = {name: tensor * scale if tensor.ndim == 2 and scale != 1 else tensor for name, tensor in random_model.state_dict().items()}
    make = type(random_model)
    del random_model
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype)
    model = make.from_pretrained(
        None, config=config, state_dict=weights, dtype=dtype, attn_implementation=attention, quantization_config=nf4 if four_bit else None, device_map={"": own_device()},
    )  # fmt: skip
    forbid_cpu_repacking(model)
    return model.eval()


def compute_dtype():
    """What students of the parts on speed compute in."""
    return torch.bfloat16 if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else torch.float32


def equality(size, architecture, dtype, four_bit, attention):
    """Relative differences of packed and padded rows, and of padded rows to rows computed one at a time."""
    from peft import get_peft_model

    own, scale = "sdpa" if attention == "dense mask" else attention, 5 * math.sqrt(64 / size.equality["hidden_size"])
    model = get_peft_model(student(architecture, size.equality | ARCHITECTURES[architecture], dtype, four_bit, own, scale), lora_settings(8))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn_like(parameter) * 0.02
    adapters_to_float32(model)
    prompt, length = size.equality_tokens
    draw = torch.Generator().manual_seed(0)
    tokens = lambda count: torch.randint(3, size.equality["vocab_size"], (count,), generator=draw).tolist()  # noqa: E731
    prompts = [tokens(count) for count in (prompt, prompt // 2, prompt + 7)]
    groups = [[(shared + tokens(own), len(shared)) for own in (length - i, length // 2 + i)] for i, shared in enumerate(prompts)]

    def computed(score):
        model.zero_grad()
        with torch.autocast(device(), torch.bfloat16, enabled=dtype == torch.bfloat16):
            logps = score()
        (logps[0::2] - logps[1::2]).sum().backward()
        return logps.detach(), torch.cat([parameter.grad.flatten().float() for parameter in model.parameters() if parameter.requires_grad])

    def apart(one, other):
        return {"logprobs": float((one[0] - other[0]).abs().max() / other[0].abs().max()), "gradients": float((one[1] - other[1]).norm() / other[1].norm())}

    padded = computed(lambda: grouped_logprobs(model, groups, packed=False))
    alone = computed(lambda: torch.cat([in_rows(model, [one])[0] for one in chain.from_iterable(groups)]))
    if attention == "dense mask":
        made, packed = dense_mask, computed(lambda: packed_logprobs(model, pack(groups), dense_mask))
    else:
        packed = computed(lambda: grouped_logprobs(model, groups))
        made = mask_maker(model)  # None: nothing was packed
    return {
        "architecture": architecture, "dtype": name_of(dtype), "nf4": four_bit, "attention": attention, "masks": made.__name__ if made else "none, not packed", "packed": apart(packed, padded),
        "padding": apart(padded, alone),
    }  # fmt: skip


def trained(size, contestant, name, pairs, batch, checkpointing, folder, **options):
    """(trainer after its training, its clock, GiB before both); a model of random weights in NF4."""
    architecture, of_shape = size.students[name]
    model, tokenizer = student(architecture, of_shape, compute_dtype(), True), words_tokenizer(of_shape["vocab_size"])
    wait()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    before, clock = torch.cuda.memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0, Clock()
    trainer = trainer_for(contestant, model, tokenizer, pairs, folder, per_device_train_batch_size=batch, gradient_checkpointing=checkpointing, **options)
    trainer.add_callback(clock)
    trainer.train()
    return trainer, clock, before


def step(size, contestant, name, prompt, length, batch, checkpointing):
    """Seconds and peak memory of a training step."""
    vocabulary = size.students[name][1]["vocab_size"]
    with tempfile.TemporaryDirectory() as folder:
        pairs = random_pairs(batch * (size.warm + size.steps), prompt, length, vocabulary)
        trainer, clock, before = trained(size, contestant, name, pairs, batch, checkpointing, folder, max_steps=size.warm + size.steps)
    seconds = clock.steps[size.warm :]
    return {
        "seconds_per_step": statistics.median(seconds), "range": [min(seconds), max(seconds)], "first_step": clock.steps[0], "peak_gib": peak_gib(), "model_gib": before,
        "mean_loss": trainer.state.log_history[-1]["train_loss"],
    }  # fmt: skip


def contest(size, rate, name, prompt, length, batch, checkpointing, contestants):
    """Every contestant's step in turn, and ours against each other one's where both could be computed."""
    figures = {one: attempt(step, size, one, name, prompt, length, batch, checkpointing) for one in contestants}
    row = {"student": name, "prompt": prompt, "answer": length, "batch": batch, "checkpointing": checkpointing, **figures, "ratios": {}}
    if "seconds_per_step" not in figures.get("ours", {}):
        return row
    ours = figures["ours"]
    row["share_of_matmul_rate"] = batch * floor_operations(size.students[name][1], prompt, length) / ours["seconds_per_step"] / rate
    row["ratios"] = {
        one: {"step": other["seconds_per_step"] / ours["seconds_per_step"], "memory": ours["peak_gib"] / other["peak_gib"]}
        for one, other in figures.items() if one != "ours" and "error" not in other
    }  # fmt: skip
    return row


def cold_epoch(size, name, prompt, length, contestants):
    """Seconds for an epoch over pairs of many lengths, everything before its first step included; ours a second time with the reference kept."""

    def seconds(contestant, folder, **options):
        pairs = random_pairs(size.cold_pairs, prompt, length, size.students[name][1]["vocab_size"], spread=0.5)
        return {"seconds": trained(size, contestant, name, pairs, size.batch, False, folder, num_train_epochs=1, **options)[1].cold_epoch}

    row = {"student": name, "prompt": prompt, "answer": length, "pairs": size.cold_pairs, "batch": size.batch}
    with tempfile.TemporaryDirectory() as folder:
        kept = {"reference_cache": str(Path(folder, "kept"))}
        for key, contestant, options in [("ours", "ours", kept), ("ours_again", "ours", kept), *((one, one, {}) for one in contestants if one != "ours")]:
            row[key] = attempt(seconds, contestant, tempfile.mkdtemp(dir=folder), **options)
    if "error" not in row["ours"]:
        row["ratios"] = {one: row[one]["seconds"] / row["ours"]["seconds"] for one in ("ours_again", *contestants) if one != "ours" and "error" not in row[one]}
    return row


def generation(size, name, four_bit):
    """Tokens a second of greedy answers, in a batch and one prompt at a time."""
    architecture, of_shape = size.students[name]
    tokenizer = words_tokenizer(of_shape["vocab_size"])
    pair = (student(architecture, of_shape, compute_dtype(), four_bit), tokenizer)
    conversations = [[{"role": "user", "content": one["prompt"].strip()}] for one in random_pairs(size.prompts, *size.lengths[0], of_shape["vocab_size"])]
    found = {"student": name, "nf4": four_bit, "computed_in": name_of(compute_dtype()), "prompt": size.lengths[0][0], "batch": size.prompts}
    for key, asked, batch in (("batched", conversations, size.prompts), ("one_at_a_time", conversations[: max(1, size.prompts // 8)], 1)):
        replies, seconds = answer(pair, asked, size.new_tokens, batch)
        found[f"tokens_per_second_{key}"] = sum(reply.completion_tokens for reply in replies) / seconds
    found["ratio"] = found["tokens_per_second_batched"] / found["tokens_per_second_one_at_a_time"]
    return found


def attempt(measure, *arguments, **options):
    """What `measure` returns, or {"error": what went wrong}: a model that does not fit must not end the others' run. Memory is given back."""
    try:
        found = measure(*arguments, **options)
    except Exception as error:  # whose traceback would keep the model in memory
        text, place = " ".join(str(error).split()), traceback.extract_tb(error.__traceback__)[-1]
        full = isinstance(error, torch.OutOfMemoryError) or OUT_OF_MEMORY in text.lower()
        found = {"error": OUT_OF_MEMORY if full else f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}: {text[:300]}"}
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return found


@dataclass(frozen=True)
class Part:
    """seconds: a guess, on a GPU, without which it does not begin. section: of the results, where its row goes."""

    name: str
    section: str
    seconds: float
    measure: Callable[[], dict]


def has_liger():
    """Liger's kernels are Triton's, for a GPU alone."""
    return torch.cuda.is_available() and importlib.util.find_spec("liger_kernel") is not None


def parts_of(size, rate):
    """All parts, the most important first."""
    first, *others = size.students
    two, three = ("ours", "trl"), ("ours", "trl", "trl_precomputed")
    parts: list[Part] = []

    def add(name, section, seconds, measure, *arguments):
        parts.append(Part(name, section, seconds, lambda: measure(size, *arguments)))

    def add_equality(architecture, kinds, seconds):
        for dtype, four_bit, attention in kinds:
            label = f"packed and padded rows, {architecture}, {name_of(dtype)}{', NF4' if four_bit else ''}, {attention}"
            add(label, "equality", seconds, equality, architecture, dtype, four_bit, attention)

    def add_contest(name, lengths, batch, checkpointing, who, seconds):
        label = f"a step, {name}, {lengths[0]}/{lengths[1]} tokens, batch {batch}{', checkpointing' if checkpointing else ''}"
        seconds += batch * sum(lengths) / 1500  # a batch of 16 at 1000/500 takes a second a step
        add(label, "speed", seconds * len(who), contest, rate, name, *lengths, batch, checkpointing, who)

    dtypes = (torch.float32, torch.bfloat16)
    add_equality("llama", [(dtype, False, attention) for dtype in dtypes for attention in size.attentions], 30)
    for lengths in size.lengths:
        add_contest(first, lengths, size.batch, False, three, 8)
    add(f"a cold epoch, {first}", "cold_epoch", 45, cold_epoch, first, *size.lengths[0], three)
    for name in others:
        for lengths in size.lengths[:2]:
            add_contest(name, lengths, size.batch, False, two, 12 if "7B" in name else 8)
    for lengths in size.lengths[:2]:
        add_contest(first, lengths, size.batch, True, two, 8)
    for four_bit in (True, False):
        add(f"generation, {first}, {'NF4' if four_bit else name_of(compute_dtype())}", "generation", 20, generation, first, four_bit)
    for architecture in size.architectures:
        if architecture != "llama":
            ways = ("eager" if architecture in WITHOUT_SDPA else "sdpa", "flex_attention")
            add_equality(architecture, [(dtype, False, attention) for dtype in dtypes for attention in ways if attention in size.attentions], 12)
    add_equality("llama", [(dtype, True, "sdpa") for dtype in dtypes], 10)
    for batch in size.batches:
        for lengths in size.lengths:
            if batch != size.batch:
                add_contest(first, lengths, batch, False, two, 8)
    add_contest("Llama 7B", size.lengths[0], size.batch, True, two, 12)
    for lengths in size.lengths[:2] if has_liger() else ():  # last, since it changes functions of transformers for good
        add_contest(first, lengths, size.batch, False, ("trl_liger",), 10)
    return parts


def run(size, seconds, folder, begun):
    """Measures part by part for so many seconds after `begun`; writes results after each, and returns them."""
    gc.collect()
    gc.freeze()  # what libraries hold is not looked through after every part
    gpu = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    results = {
        "machine": {"device": gpu.name if gpu else "CPU", "gib": round(gpu.total_memory / 2**30, 1) if gpu else 0, "torch": torch.__version__, "liger": has_liger()},
        "matmul_tflops": {name_of(dtype): matmul_rate(dtype, device(), 8192 if gpu else 256) / 1e12 for dtype in {compute_dtype(), torch.float32}},
        "computed_in": name_of(compute_dtype()), "batch": size.batch, "equality": [], "speed": [], "cold_epoch": [], "generation": [], "left_out": [], "failed": [],
    }  # fmt: skip
    parts = parts_of(size, results["matmul_tflops"][name_of(compute_dtype())] * 1e12)
    for number, part in enumerate(parts, start=1):
        left = seconds - (time.perf_counter() - begun)
        if left <= part.seconds * size.guess:
            print(f"{part.name}: {OUT_OF_TIME}", flush=True)
            results["left_out"].append(part.name)
            continue
        print(f"{number} of {len(parts)}, {left:.0f} s left: {part.name}", flush=True)
        with contextlib.redirect_stdout(io.StringIO()):  # of trainers
            row = {"part": part.name, **attempt(part.measure)}
        results[part.section].append(row)
        for who, error in [(part.name, row.get("error")), *((f"{part.name}, {one}", found["error"]) for one, found in row.items() if isinstance(found, dict) and "error" in found)]:
            if error:
                print(f"  {who}: {error}", flush=True)
                results["failed"].append({"part": who, "error": error})
        write_json(folder / "gpu.json", results)
    results["bars"] = bars(size, results)
    results["seconds"] = time.perf_counter() - begun
    write_json(folder / "gpu.json", results)
    return results


def cells(results, **wanted):
    """Rows of `speed` where stock and we could be computed."""
    return [row for row in results["speed"] if "trl" in row.get("ratios", {}) and all(row[key] == value for key, value in wanted.items())]


def bars(size, results):
    """What was to be reached: its name, the worst value measured, the bound, and whether it was reached. Speed and memory on a GPU alone."""

    def bar(name, values, bound, least=False):
        worst = (min if least else max)(values) if values else None
        state = "not measured" if worst is None else "reached" if (worst >= bound if least else worst <= bound) else "missed"
        return {"bar": name, "worst": worst, "bound": bound, "state": state}

    found = []
    for prompt, length in size.lengths[:2]:
        rows = cells(results, prompt=prompt, answer=length, batch=size.batch, checkpointing=False) if results["machine"]["gib"] else []
        found.append(bar(f"times as fast as stock at {prompt}/{length}", [row["ratios"]["trl"]["step"] for row in rows], BARS["step"], least=True))
        found.append(bar(f"share of stock's memory at {prompt}/{length}", [row["ratios"]["trl"]["memory"] for row in rows], BARS["memory"]))
    for dtype in ("float32", "bfloat16"):
        rows = [row["packed"] for row in results["equality"] if row.get("dtype") == dtype]
        for of in ("logprobs", "gradients"):
            found.append(bar(f"relative difference of packed {of}, {dtype}", [row[of] for row in rows], BARS[dtype]))
    return found


def paragraph(size, results):
    """Markdown for docs/speed.md."""
    machine, said = results["machine"], []
    for row in cells(results, batch=size.batch):
        ratio, how = row["ratios"]["trl"], ", checkpointing" if row["checkpointing"] else ""
        said.append(f"- {row['student']} at {row['prompt']}/{row['answer']}{how}: {row['ours']['seconds_per_step']:.3f} s a step, {ratio['step']:.1f} times as fast as stock TRL.")
        said[-1] += f" Memory is {ratio['memory']:.2f} of stock's."
        if precomputed := row["ratios"].get("trl_precomputed"):
            said[-1] += f" With its reference precomputed, stock is {precomputed['step']:.1f} times as slow."
    where = f"on one {machine['device']} with {machine['gib']} GiB" if machine["gib"] else "in a dry run on a CPU, where times mean nothing"
    lines = [f"**On a GPU.** Measured by `make gpu` {where}. Students have random weights in NF4, and {results['batch']} pairs make a step."]
    if said:
        lines += ["Prompt and answer lengths are tokens:", "\n".join(said)]
    sentences = []
    worst = {one["bar"]: one["worst"] for one in results["bars"]}
    for dtype in ("float32", "bfloat16"):
        if (logps := worst[f"relative difference of packed logprobs, {dtype}"]) is not None:
            gradients = worst[f"relative difference of packed gradients, {dtype}"]
            sentences.append(f"Packed and padded rows differ by at most {logps:.0e} of a log-probability in {dtype}, and gradients by {gradients:.0e}.")
    for row in results["cold_epoch"]:
        if ratio := row.get("ratios", {}).get("trl"):
            sentences.append(f"A cold epoch of {row['pairs']} pairs is {ratio:.1f} times as fast as stock.")
    for row in results["generation"]:
        if "ratio" in row:
            kind = "NF4" if row["nf4"] else row["computed_in"]
            sentences.append(f"In {kind}, {row['student']} answers with {row['tokens_per_second_batched']:.0f} tokens a second in batches of {row['batch']}, {row['ratio']:.0f} times one prompt at a time.")
    for row in results["speed"]:
        ours = [one["ours"]["seconds_per_step"] for one in cells(results, **{key: row.get(key) for key in ("student", "prompt", "answer", "batch", "checkpointing")})]
        if ours and "seconds_per_step" in row.get("trl_liger", {}):
            sentences.append(f"With Liger's kernels, stock takes {row['trl_liger']['seconds_per_step'] / ours[0]:.1f} times our time at {row['prompt']}/{row['answer']}.")
    if alone := [row for row in results["speed"] if row.get("trl") == {"error": OUT_OF_MEMORY} and "seconds_per_step" in row["ours"]]:
        sentences.append(f"In {len(alone)} cells that we could train, stock was out of memory.")
    states = {state: [one["bar"] for one in results["bars"] if one["state"] == state] for state in ("reached", "missed", "not measured")}
    sentences.append(f"Of {len(results['bars'])} bars, {len(states['reached'])} were reached, {len(states['missed'])} missed and {len(states['not measured'])} not measured.")
    if results["left_out"]:
        sentences.append(f"For lack of time, {len(results['left_out'])} parts were left out.")
    if failed := results["failed"]:
        full = sum(one["error"] == OUT_OF_MEMORY for one in failed)
        sentences.append(f"Of the cells, {full} were out of memory and {len(failed) - full} failed.")
    return "\n\n".join([*lines, " ".join(sentences)]) + "\n"


def draw(size, results, path):
    """Seconds and memory of a step by case, the gain by batch, and equality."""
    figure, ((seconds, memory), (gain, equal)) = grid_of_axes(2, 2, 11, 8)
    cases: dict[tuple, dict] = {}
    for row in results["speed"]:
        if row.get("batch") == size.batch and not row["checkpointing"]:
            cases.setdefault((row["student"], row["prompt"], row["answer"]), {}).update(row)
    rows = list(cases.values())
    who = [one for one in LABELS if any(one in row for row in rows)]
    height = 0.8 / max(1, len(who))
    labels = [f"{row['student']}\n{row['prompt']}/{row['answer']}" for row in rows]
    for axes, key, title in ((seconds, "seconds_per_step", "Seconds a training step"), (memory, "peak_gib", "Peak memory, GiB")):
        for number, one in enumerate(who):
            places = [place + number * height for place, row in enumerate(rows) if key in row.get(one, {})]
            axes.barh(places, [row[one][key] for row in rows if key in row.get(one, {})], height=height, color=COLORS[one], label=LABELS[one])
        axes.set_yticks([place + 0.4 - height / 2 for place in range(len(rows))], labels, fontsize=7)
        axes.invert_yaxis()
        axes.set(title=f"{title}, {size.batch} pairs, NF4")
    if who:
        seconds.legend(fontsize=8, frameon=False, ncols=len(who), loc="upper center", bbox_to_anchor=(0.5, -0.06))
    for (prompt, length), marker in zip(size.lengths, "osv"):
        line = sorted((row["batch"], row["ratios"]["trl"]["step"]) for row in cells(results, student=next(iter(size.students)), prompt=prompt, answer=length, checkpointing=False))
        if line:
            gain.plot(*zip(*line), marker=marker, label=f"{prompt}/{length} tokens")
    gain.axhline(1, color="0.4", linewidth=0.8)
    gain.set(title=f"Times as fast as stock TRL, {next(iter(size.students))}", xlabel="pairs in a batch", xticks=size.batches, ylim=(0, None))
    if gain.lines[:-1]:
        gain.legend(fontsize=8, frameon=False)
    kind = lambda row: f"{row['architecture']}{', NF4' if row['nf4'] else ''}, {row['attention']}"  # noqa: E731
    for dtype, color in (("float32", "#1f77b4"), ("bfloat16", "#ff7f0e")):
        found = [row for row in results["equality"] if row.get("dtype") == dtype]
        for of, marker in (("logprobs", "o"), ("gradients", "s")):
            equal.scatter([max(row["packed"][of], 1e-9) for row in found], [kind(row) for row in found], color=color, marker=marker, s=20, label=f"{of}, {dtype}")
        equal.axvline(BARS[dtype], color=color, linestyle=":", linewidth=1)
    equal.set(title="Packed against padded rows, relative difference", xscale="log")
    equal.tick_params(axis="y", labelsize=7)
    equal.legend(fontsize=8, frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.1))
    save_figure(figure, path)


def report(size, results, folder):
    """The bars line by line, then picture and paragraph."""
    for one in results["bars"]:
        value = "" if one["worst"] is None else f" ({one['worst']:.2g} against {one['bound']:g})"
        print(f"{one['state']}: {one['bar']}{value}", flush=True)
    draw(size, results, folder / "gpu.png")
    text = paragraph(size, results)
    write_whole(folder / "gpu.md", text)
    print(f"\n{text}\n{results['seconds']:.0f} s; written to {folder}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dry", action="store_true", help="every part on a CPU with tiny students, a minute; its times mean nothing")
    parser.add_argument("--minutes", type=float, default=8.0, help="all parts together; what would not end in time is left out")
    parser.add_argument("--to", default="runs/gpu", help="folder for gpu.json, gpu.png and gpu.md")
    wanted = parser.parse_args()
    if not (wanted.dry or torch.cuda.is_available()):
        print(NO_GPU, file=sys.stderr)
        return 2
    if wanted.dry:
        torch.set_num_threads(1)  # on a busy machine two threads wait for each other at every one of many small products
    quiet_libraries()
    folder, size = resolve(wanted.to), DRY if wanted.dry else GPU
    folder.mkdir(parents=True, exist_ok=True)
    reserve = 10 * size.guess  # for the picture
    results = run(size, 60 * wanted.minutes - reserve, folder, BEGUN)
    report(size, results, folder)
    return int(any(one["error"] != OUT_OF_MEMORY for one in results["failed"]))


if __name__ == "__main__":
    sys.exit(main())
