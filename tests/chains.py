"""Chains of a teacher that costs no time, in a process of its own whose memory is theirs. It kills itself where it is asked to.

    python tests/chains.py FOLDER COUNT [KILLED_AT]
"""

import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from common.chat.kept import KeptChat
from common.chat.model import hand_over
from common.data.self_critique import generate_pairs
from common.prompts import SAFETY
from common.schema import PromptRecord, Reply, Sampling

SAMPLING = Sampling(temperature=0.7, max_new_tokens=64, seed=5)


class Questions(Sequence):
    """So many prompts, each made when it is looked at."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.count))]
        if not 0 <= index < self.count:
            raise IndexError(index)
        return PromptRecord(id=f"p{index}", experiment="safety", split="train", prompt=f"question {index}")


class Instant:
    """A teacher that costs no time and prints the seconds of CPU until it is asked for the first time."""

    name, asked = "instant", False

    def complete(self, conversations, sampling, on_reply=None):
        if not self.asked:
            self.asked = True
            print(time.process_time(), flush=True)
        return hand_over((Reply(text="word " * 60, completion_tokens=60) for _ in conversations), on_reply)


if __name__ == "__main__":
    folder, count, killed_at = Path(sys.argv[1]), *map(int, [*sys.argv[2:], 0][:2])
    turns = 0

    def progress(finished):
        global turns
        turns += finished
        if 0 < 3 * killed_at <= turns:
            os.kill(os.getpid(), signal.SIGKILL)

    print("begins", flush=True)
    generate_pairs(KeptChat(Instant(), folder / "replies.jsonl"), Questions(count), SAFETY, SAMPLING, folder / "pairs.jsonl", progress=progress)
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())  # getrusage counts the parent's before exec too
    print(1024 * int(peak[1]), flush=True)
