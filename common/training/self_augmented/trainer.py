"""SAPO, self-augmented preference optimisation (arXiv 2405.20830), and self-play, on LoRA adapters.

SAPO as in the authors' code (yinyueqin/SAPO, sapo/alignment/trainer.py). Three students begin alike: the policy, a
moving copy and the reference. Before every step the copy moves towards the policy and makes a segment of each good
answer of the batch anew; these pairs go into a buffer, from which the batch is drawn, and the loss is DPO's against the
reference. What is ours:
- The reference becomes the copy at the beginning of every epoch. In their code it does after every 108 steps, about an
  epoch of theirs.
- An adapter's factors are averaged, where they average weights. The product of averages differs from the average of
  products by b (1 - b) times the product of the factors' differences, which is small from a common start.
- Optimiser, batch and epochs are those of all rows here; theirs are RMSprop, 64 and 4.
- A pair whose answers are identical has no gradient and stays out of the buffer.

Self-play is the first algorithm of SPIN (arXiv 2401.01335) with an epoch for an iteration: the policy of the epoch's
beginning answers every prompt anew, and is the reference. It is SAPO's control and not SPIN as published, whose code
(uclaml/SPIN) trains several epochs an iteration, adds the pairs of the iteration before and begins the optimiser anew.
Here answers are sampled as segments are, and are no longer than the good ones.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import AbstractContextManager
from itertools import islice

import torch
from torch import Tensor

from common.chat.local import LocalChat
from common.logprobs.masks import give_attention_back
from common.methods import SelfAugmentedSettings
from common.schema import Sampling
from common.trainer.rdpo import RDPOTrainer, use_adapter
from common.training.self_augmented.buffer import Buffer, MadePair
from common.training.self_augmented.counts import Counts
from common.training.self_augmented.segments import cut_point, spliced

POLICY, COPY, REFERENCE = "default", "ema", "ref"
"""Names of the three adapters; the first and last are TRL's."""
TEMPERATURE, TOP_P, TOP_K = 0.7, 0.95, 50
"""How segments are sampled: the authors'."""


def move(copy: Tensor, policy: Tensor, kept: float) -> None:
    """Moves a copy to kept * copy + (1 - kept) * policy, in place; exactly its own or the policy's at 1 and 0."""
    copy.lerp_(policy, 1 - kept)


class SelfAugmentedTrainer(RDPOTrainer):
    """`RDPOTrainer` whose pairs are made while it trains, in one process; the data's rejected answers are not read.

    settings: of SAPO; None is self-play. All that is drawn hangs on `args.seed`. `made` counts the answers, and the log
    has it at every step.
    """

    def __init__(self, *args, settings: SelfAugmentedSettings | None, **kwargs):
        super().__init__(*args, **kwargs)
        self.settings, self.made, seed = settings, Counts(), self.args.seed
        self._seen: set[int] = set()
        self._cuts, self._pieces = random.Random(f"cuts {seed}"), random.Random(f"pieces {seed}")
        self._buffer = Buffer(settings.buffer, random.Random(f"draws {seed}")) if settings else None
        self._chat = LocalChat(self.model, self._tokenizer)
        with self._randomness_kept():
            for name in (COPY, REFERENCE):
                self.model.add_adapter(name, self.model.peft_config[POLICY])
        of = lambda adapter: [p for name, p in self.model.named_parameters() if f".{adapter}." in name]  # noqa: E731
        self._factors = list(zip(of(POLICY), of(COPY), of(REFERENCE), strict=True))
        for policy, *others in self._factors:
            for other in others:
                other.data = policy.data.clone()  # its type too

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device):
        """The batches of a step, whole or in parts: as many pairs as the data have there, drawn from what is made."""
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._move(begins_epoch=float(self.state.epoch).is_integer())
        good = [(ids[:start], ids[start:]) for batch in batches for (ids, start), _ in self._groups_that_fit(batch)]
        drawn = iter(self._drawn(self._remade(good)))
        for name, count in self.made.logged.items():
            self._metrics["train"][name].append(count)
        parts = [list(islice(drawn, len(batch["input_ids"]) // 2)) for batch in batches]
        return [self.data_collator([_row(pair) for pair in part]) for part in parts], items

    @torch.no_grad()
    def _move(self, begins_epoch: bool) -> None:
        for policy, copy, reference in self._factors:
            if self.settings or begins_epoch:
                move(copy, policy, self.settings.ema if self.settings else 0.0)
            if begins_epoch:
                reference.copy_(copy)

    def _drawn(self, made: list[MadePair]) -> list[MadePair]:
        """As many pairs as were made, from the buffer; the same ones in self-play, and where it has none yet."""
        if self._buffer is None:
            return made
        self._buffer.add([pair for pair in made if pair.chosen != pair.rejected])
        return self._buffer.draw(len(made)) or made

    def _remade(self, good: list[tuple[list[int], list[int]]]) -> list[MadePair]:
        """A pair of every prompt and its good answer, with the one that the moving copy makes of it."""
        segments = [min(self.settings.segment if self.settings else len(answer), len(answer)) for _, answer in good]
        cuts = [cut_point(len(answer), segment, self._cuts) for (_, answer), segment in zip(good, segments)]
        pieces = self._continued([prompt + answer[:cut] for (prompt, answer), cut in zip(good, cuts)], max(segments))
        pairs = []
        for (prompt, answer), segment, cut, piece in zip(good, segments, cuts, pieces):
            rejected, ended = spliced(answer, cut, piece[:segment], self._chat.stops)
            self._seen.add(hash((tuple(prompt), tuple(rejected))))
            self.made.answers += 1
            self.made.ended += ended
            self.made.identical += rejected == answer
            pairs.append(MadePair(prompt, answer, rejected))
        self.made.distinct = len(self._seen)
        return pairs

    def _continued(self, prefixes: list[list[int]], tokens: int) -> list[list[int]]:
        """What the moving copy says behind each of them."""
        sampling = Sampling(
            temperature=TEMPERATURE, top_p=TOP_P, max_new_tokens=tokens, seed=self._pieces.getrandbits(31)
        )
        give_attention_back(self.model)
        with use_adapter(self.model, COPY), self._randomness_kept():
            return self._chat.continuations(prefixes, sampling, TOP_K)

    def _randomness_kept(self) -> AbstractContextManager:
        """Context that leaves torch's random numbers as they are: a row sees its data in the order of others."""
        device = self.accelerator.device
        return torch.random.fork_rng([device] if device.type == "cuda" else [])


def _row(pair: MadePair) -> dict[str, list[int]]:
    return {"prompt_ids": pair.prompt, "chosen_ids": pair.chosen, "rejected_ids": pair.rejected}
