"""Speed and memory of our preference trainer against TRL's `DPOTrainer`, stock and with precomputed reference.

    python tests/benchmarks/bench_trainer.py [--model smollm2] [--write]

Same random Llama in NF4 with the same LoRA, same pairs, batch and threads. Every contestant runs in a process of its own, in
turn, `--rounds` times; medians count. `--write` keeps the figures in results/benchmarks/trainer.json.
"""

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
CONTESTANTS = ("ours", "trl", "trl_precomputed")
LENGTHS = ((300, 120), (60, 120))  # tokens of the prompt, of each answer
MODELS = {
    "small": {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 6, "num_attention_heads": 3, "num_key_value_heads": 3, "vocab_size": 8192},
    # SmolLM2-135M's shape
    "smollm2": {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152},
}  # fmt: skip


def make_model(folder, shape):
    """Random weights, tied embeddings, and a tokenizer for which one word is one token."""
    import torch
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


def make_pairs(count, prompt, answer, vocabulary):
    from datasets import Dataset

    draw = random.Random(0)
    words = lambda n: " ".join(f"w{draw.randrange(3, vocabulary)}" for _ in range(n))  # noqa: E731
    rows = [{"prompt": words(prompt) + " ", "chosen": words(answer - 1) + " <end>", "rejected": words(answer - 1) + " <end>"} for _ in range(count)]
    return Dataset.from_list([{**row, "score_chosen": 1.0, "score_rejected": 0.0} for row in rows])


def measure(contestant, folder, prompt, answer, batch, steps, checkpointing):
    """Trains `steps` steps after a first one that does not count; figures of this process."""
    import torch
    from transformers import TrainerCallback
    from trl import DPOConfig, DPOTrainer

    from common.run import quiet_libraries
    from common.student import load_student, lora_settings
    from common.trainer import RDPOConfig, RDPOTrainer

    quiet_libraries()
    model, tokenizer = load_student(folder)
    pairs = make_pairs(batch * (steps + 1), prompt, answer, len(tokenizer))
    options = {
        "output_dir": tempfile.mkdtemp(dir=folder), "per_device_train_batch_size": batch, "max_length": None, "beta": 0.1, "learning_rate": 1e-4, "bf16": model.dtype == torch.bfloat16, "use_cpu": not torch.cuda.is_available(),
        "gradient_checkpointing": checkpointing, "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "dataloader_pin_memory": False,
    }  # fmt: skip
    begun = time.perf_counter()
    if contestant == "ours":
        trainer = RDPOTrainer(model, RDPOConfig(method="dpo", **options), pairs, processing_class=tokenizer, peft_config=lora_settings())
    else:
        settings = DPOConfig(precompute_ref_log_probs=contestant == "trl_precomputed", **options)
        pairs = pairs.remove_columns(["score_chosen", "score_rejected"])
        trainer = DPOTrainer(model, args=settings, train_dataset=pairs, processing_class=tokenizer, peft_config=lora_settings())
    prepared = time.perf_counter() - begun
    row = trainer.train_dataset[0]
    assert [len(row[f"{name}_ids"]) for name in ("prompt", "chosen", "rejected")] == [prompt, answer, answer]
    times = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            times.append(-time.perf_counter())

        def on_step_end(self, *args, **kwargs):
            times[-1] += time.perf_counter()

    trainer.add_callback(Clock())
    loss = trainer.train().training_loss
    return {
        "seconds_per_step": statistics.median(times[1:]), "pairs_per_second": batch / statistics.median(times[1:]),
        "seconds_before_training": prepared, "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "mean_loss": loss,
    }  # fmt: skip


def in_own_process(contestant, *arguments):
    command = [sys.executable, __file__, "child", contestant, *map(str, arguments)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"})
    return json.loads(output.stdout.splitlines()[-1])


def compare(shape, lengths, batch=4, steps=3, rounds=3, checkpointing=False):
    """Per lengths: median figures of every contestant, and ours as a multiple of each other one's."""
    table = []
    with tempfile.TemporaryDirectory() as folder:
        make_model(folder, shape)
        for prompt, answer in lengths:
            runs = [{name: in_own_process(name, folder, prompt, answer, batch, steps, int(checkpointing)) for name in CONTESTANTS} for _ in range(rounds)]
            figures = {name: {key: statistics.median(run[name][key] for run in runs) for key in runs[0][name]} for name in CONTESTANTS}
            ratios = {
                f"{what} against {name}": figures["ours"][key] / figures[name][key]
                for name in CONTESTANTS[1:] for what, key in (("speed", "pairs_per_second"), ("memory", "peak_gib"))
            }  # fmt: skip
            table.append({"prompt": prompt, "answer": answer, **figures, **ratios})
            print(f"prompt {prompt}, answer {answer}: " + ", ".join(f"{name} {value:.2f}" for name, value in ratios.items()), flush=True)
            for name in CONTESTANTS:
                print(f"  {name}: " + ", ".join(f"{key} {value:.4g}" for key, value in figures[name].items()), flush=True)
    return table


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", choices=MODELS, default="small")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--write", action="store_true", help="into results/benchmarks/trainer.json")
    wanted = parser.parse_args()
    table = compare(MODELS[wanted.model], LENGTHS, wanted.batch, wanted.steps, wanted.rounds, wanted.checkpointing)
    if wanted.write:
        from common.storage import write_json

        threads = int(os.environ.get("OMP_NUM_THREADS", os.cpu_count()))
        write_json(ROOT / "results" / "benchmarks" / "trainer.json", {**vars(wanted), "threads": threads, "lengths": table})


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        print(json.dumps(measure(sys.argv[2], sys.argv[3], *map(int, sys.argv[4:]))))
    else:
        main()
