"""A local transformers model as a chat model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from common.chat.model import OnReply
from common.chat.replies import clean
from common.schema import Message, Reply, Sampling

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import LogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase


LOOK_EVERY = 32
"""Tokens after which finished rows leave their batch."""
ProcessorOf = Callable[[Sequence[int]], "LogitsProcessor"]
"""The processor of a batch, given the numbers of its conversations: its rows in that order, each as often as it has
beams or samples."""
Batch = tuple[Sequence[int], list[list[int]]]
"""Numbers of conversations, and their prompts as token ids."""


class LocalChat:
    """A transformers model in this process: batched, sorted by length so that little is padding, rows leaving when they
    end.

    Args:
        repetition_penalty: 1.0 is none. Small models loop; use the same value for every method that is compared.
        progress: called with the number of finished conversations after each batch.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        name: str = "local",
        batch_size: int = 64,
        repetition_penalty: float = 1.0,
        progress: Callable[[int], object] | None = None,
    ):
        self.model, self.tokenizer, self.name = model, tokenizer, name
        self.batch_size, self.repetition_penalty, self.progress = batch_size, repetition_penalty, progress

    def complete(
        self, conversations: Sequence[list[Message]], sampling: Sampling, on_reply: OnReply | None = None
    ) -> list[Reply]:
        """Replies in the order asked. Greedy at temperature 0; the caller's training mode is restored afterwards."""
        replies: list[Reply | None] = [None] * len(conversations)
        with self._answering(sampling.seed):
            for rows, prompts in self._batches(conversations, self.batch_size):
                for row, prompt, tokens in zip(rows, prompts, self._continued(prompts, sampling)):
                    replies[row] = self._reply(prompt, tokens)
                    if on_reply:
                        on_reply(row, replies[row])
        return replies

    def continuations(self, prefixes: list[list[int]], sampling: Sampling, top_k: int = 0) -> list[list[int]]:
        """The tokens behind each of a batch of token lists, up to one of `stops` and maybe beyond. top_k: likeliest tokens
        that are sampled among, 0 for all."""
        with self._answering(sampling.seed):
            return self._continued(prefixes, sampling, top_k)

    def best(
        self,
        conversations: Sequence[list[Message]],
        sampling: Sampling,
        beams: int = 1,
        kept: int = 1,
        processor_of: ProcessorOf | None = None,
    ) -> list[list[Reply]]:
        """The `kept` likeliest replies to each conversation that a search over `beams` beams finds, the likeliest first;
        at a temperature above 0 so many samples, and `beams` is 1. One beam without a processor is `complete`."""
        replies: list[list[Reply]] = [[] for _ in conversations]
        size = max(1, self.batch_size // max(beams, kept))
        with self._answering(sampling.seed):
            for rows, prompts in self._batches(conversations, size):
                ids, mask, settings = self._inputs(prompts, sampling)
                new = self.model.generate(
                    input_ids=ids, attention_mask=mask, num_beams=beams, num_return_sequences=kept,
                    logits_processor=[processor_of(rows)] if processor_of else None, **settings,
                )[:, ids.size(1) :].tolist()  # fmt: skip
                for place, (row, prompt) in enumerate(zip(rows, prompts)):
                    replies[row] = [self._reply(prompt, tokens) for tokens in new[place * kept : (place + 1) * kept]]
        return replies

    @contextmanager
    def _answering(self, seed: int) -> Iterator[None]:
        """Context in which the model answers: seeded, not training, its weights unpacked."""
        import torch

        from common.student.dequantised import dequantised

        was_training = self.model.training
        self.model.eval()
        torch.manual_seed(seed)
        try:
            with dequantised(self.model):
                yield
        finally:
            self.model.train(was_training)

    def _batches(self, conversations: Sequence[list[Message]], size: int) -> Iterator[Batch]:
        """The conversations in batches of similar length."""
        prompts = [
            self.tokenizer.apply_chat_template(conversation, add_generation_prompt=True, return_dict=True)["input_ids"]
            for conversation in conversations
        ]
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            yield rows, [prompts[row] for row in rows]
            if self.progress:
                self.progress(len(rows))

    def _inputs(
        self, prompts: list[list[int]], sampling: Sampling, top_k: int = 0
    ) -> tuple[Tensor, Tensor, dict[str, Any]]:
        """(token ids padded on the left, attention mask, how `generate` is to go on)."""
        import torch

        from common.student.load import learned_positions

        width, pad = max(map(len, prompts)), self.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts], device=self.model.device)
        mask = torch.tensor(
            [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=self.model.device
        )
        sampled = (
            {"do_sample": True, "temperature": sampling.temperature, "top_k": top_k, "top_p": sampling.top_p}
            if sampling.temperature
            else {"do_sample": False}
        )
        positions = learned_positions(self.model)
        most = min(sampling.max_new_tokens, positions - width) if positions else sampling.max_new_tokens
        if most < 1:
            raise ValueError(
                f"a prompt of {width} tokens leaves no room for an answer: {self.name} has {positions} positions"
            )
        settings = {"max_new_tokens": most, "pad_token_id": pad, "use_cache": True}
        return ids, mask, settings | {"repetition_penalty": self.repetition_penalty, **sampled}

    @property
    def stops(self) -> set[int]:
        return stops_of(self.model, self.tokenizer)

    def _continued(self, prompts: list[list[int]], sampling: Sampling, top_k: int = 0) -> list[list[int]]:
        """The tokens behind each prompt, up to a stop and maybe beyond. Rows that met one leave, unless states are
        recurrent."""
        import torch

        ids, mask, settings = self._inputs(prompts, sampling, top_k)
        most, stops = settings["max_new_tokens"], self.stops
        generated: list[list[int]] = [[] for _ in prompts]
        rows, cache = list(range(len(prompts))), None  # those still in the batch
        for start in range(0, most, LOOK_EVERY):
            output = self.model.generate(
                input_ids=ids, attention_mask=mask, past_key_values=cache, return_dict_in_generate=True,
                **settings | {"max_new_tokens": min(LOOK_EVERY, most - start)},
            )  # fmt: skip
            new, cache = output.sequences[:, ids.size(1) :], output.past_key_values
            for row, tokens in zip(rows, new.tolist()):
                generated[row] += tokens
            ids, mask = output.sequences, torch.cat([mask, torch.ones_like(new)], dim=1)
            going = [i for i, row in enumerate(rows) if not stops.intersection(generated[row])]
            if not going:
                break
            if len(going) < len(rows) and all(hasattr(layer, "batch_select_indices") for layer in cache.layers):
                kept = torch.tensor(going, device=ids.device)
                rows, ids, mask = [rows[i] for i in going], ids[kept], mask[kept]
                cache.batch_select_indices(kept)
        return generated

    def _reply(self, prompt: list[int], generated: list[int]) -> Reply:
        stops = self.stops
        end = next((i for i, token in enumerate(generated) if token in stops), None)
        tokens = generated if end is None else generated[:end]
        return Reply(
            text=clean(self.tokenizer.decode(tokens, skip_special_tokens=True)),
            finish_reason="length" if end is None else "stop",
            prompt_tokens=len(prompt),
            completion_tokens=len(tokens),
        )


def stops_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokens that end an answer."""
    stops = model.generation_config.eos_token_id
    return set(stops if isinstance(stops, list) else [stops]) | {tokenizer.eos_token_id}
