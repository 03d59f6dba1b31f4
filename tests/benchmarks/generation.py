"""Speed of our batched evaluation against asking one prompt at a time, and whether both say the same.

    python tests/benchmarks/generation.py --rows ROWS.jsonl [--prompts 32]

SmolLM2-135M-Instruct answers the first persona prompts greedily, in NF4 as `make small` does (seconds) and in float32 (same
text): each behind a persona of its own, and all behind one persona as their system prompt. Adds `evaluation` to
results/benchmarks.json.
"""

import argparse
import json
import os
import time

import torch
from train_step import RESULTS, measured_before, persona_pairs, rounded

from common.chat.local import LocalChat
from common.profiles.small.smollm2 import smollm2
from common.runtime import quiet_libraries
from common.schema import Sampling
from common.storage import read_lines, write_json
from common.student.load import load_student


def answer(student, conversations, max_new_tokens, batch_size):
    """Replies and seconds, after one answer that does not count."""
    chat, sampling = LocalChat(*student, batch_size=batch_size), Sampling(max_new_tokens=max_new_tokens)
    chat.complete(conversations[:1], Sampling(max_new_tokens=2))
    begun = time.perf_counter()
    return chat.complete(conversations, sampling), time.perf_counter() - begun


def compare(student, conversations, max_new_tokens, batch_size=16):
    """Batches against one conversation at a time, the same code but for the batch."""
    print(f"  {len(conversations)} prompts in batches of {batch_size}", flush=True)
    together, batched = answer(student, conversations, max_new_tokens, batch_size)
    print(f"  {len(conversations)} prompts one at a time; the batches took {batched:.0f} s", flush=True)
    alone, looped = answer(student, conversations, max_new_tokens, 1)
    return {
        "prompts": len(conversations), "prompt_tokens": sum(reply.prompt_tokens for reply in alone), "shared_tokens": shared_tokens(student[1], conversations), "batch": batch_size,
        "tokens": sum(reply.completion_tokens for reply in alone), "seconds_batched": batched, "seconds_one_at_a_time": looped, "ratio": looped / batched,
        "same_text": sum(a.text == b.text for a, b in zip(together, alone)),
    }  # fmt: skip


def shared_tokens(tokenizer, conversations):
    """Tokens that all prompts begin with, and that could be computed once."""
    return len(os.path.commonprefix([tokenizer.apply_chat_template(one, add_generation_prompt=True, return_dict=True)["input_ids"] for one in conversations]))


def behind_one_persona(rows_file, count):
    """Prompts of the first rows, all behind the first row's persona as their system prompt."""
    rows = [row for _, row in read_lines(rows_file)][:count]
    return [[{"role": "system", "content": rows[0]["persona"].strip()}, {"role": "user", "content": row["prompt"]}] for row in rows]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", required=True, help="persona pairs, see common/profiles/small/prepare.py")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=80, help="of an answer at most")
    wanted = parser.parse_args()
    quiet_libraries()
    kinds = {"nf4": {}, "float32": {"four_bit": False, "compute_dtype": torch.float32}}
    cases = {"": [pair["prompt"] for pair in persona_pairs(wanted.rows, wanted.prompts)], "_one_persona": behind_one_persona(wanted.rows, wanted.prompts)}
    found = {}
    for kind, how in kinds.items():
        print(f"loading the student, {kind}", flush=True)
        student = load_student(smollm2(), **how)
        for case, conversations in cases.items():
            print(f"{kind}{case}", flush=True)
            found[f"{kind}{case}"] = compare(student, conversations, wanted.tokens)
    write_json(RESULTS, rounded({**measured_before(), "evaluation": found}))
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
