"""Speed of our batched evaluation against asking one prompt at a time, and whether both say the same.

    python tests/benchmarks/generation.py --rows ROWS.jsonl [--prompts 32]

SmolLM2-135M-Instruct answers the first persona prompts greedily, in NF4 as `make small` does (seconds) and in float32 (same
text). Adds `evaluation` to results/benchmarks.json.
"""

import argparse
import json
import time

import torch
from train_step import RESULTS, measured_before, persona_pairs, rounded

from common.chat.local import LocalChat
from common.profiles.small.smollm2 import smollm2
from common.runtime import quiet_libraries
from common.schema import Sampling
from common.storage import write_json
from common.student.load import load_student


def answer(student, conversations, max_new_tokens, batch_size):
    """Replies and seconds, after one answer that does not count."""
    chat, sampling = LocalChat(*student, batch_size=batch_size), Sampling(max_new_tokens=max_new_tokens)
    chat.complete(conversations[:1], Sampling(max_new_tokens=2))
    begun = time.perf_counter()
    return chat.complete(conversations, sampling), time.perf_counter() - begun


def compare(student, conversations, max_new_tokens, batch_size=16):
    """Batches against one conversation at a time, the same code but for the batch."""
    together, batched = answer(student, conversations, max_new_tokens, batch_size)
    alone, looped = answer(student, conversations, max_new_tokens, 1)
    return {
        "prompts": len(conversations), "batch": batch_size, "tokens": sum(reply.completion_tokens for reply in alone), "seconds_batched": batched, "seconds_one_at_a_time": looped,
        "ratio": looped / batched, "same_text": sum(a.text == b.text for a, b in zip(together, alone)),
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", required=True, help="persona pairs, see common.small")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=80, help="of an answer at most")
    wanted = parser.parse_args()
    quiet_libraries()
    conversations = [pair["prompt"] for pair in persona_pairs(wanted.rows, wanted.prompts)]
    kinds = {"nf4": {}, "float32": {"four_bit": False, "compute_dtype": torch.float32}}
    found = {name: compare(load_student(smollm2(), **how), conversations, wanted.tokens) for name, how in kinds.items()}
    write_json(RESULTS, rounded({**measured_before(), "evaluation": found}))
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
