"""Chat models behind one method: conversations in, replies out. Teacher, judge and student are all called this way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import torch

from common.schema import Message, Reply, Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class ChatModel(Protocol):
    """Anything with a name and this method; the notebooks do not know which one they use."""

    name: str

    def complete(self, conversations: Sequence[list[Message]], sampling: Sampling) -> list[Reply]:
        """One reply per conversation, in order."""
        ...


class LocalChat:
    """A transformers model in this process: batched, sorted by length so that little is padding.

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

    @torch.no_grad()
    def complete(self, conversations: Sequence[list[Message]], sampling: Sampling) -> list[Reply]:
        """Replies in the order asked. Greedy at temperature 0; the caller's training mode is restored afterwards."""
        prompts = [
            self.tokenizer.apply_chat_template(conversation, add_generation_prompt=True, return_dict=True)["input_ids"]
            for conversation in conversations
        ]
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        replies: list[Reply | None] = [None] * len(prompts)
        was_training = self.model.training
        self.model.eval()
        torch.manual_seed(sampling.seed)
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            for row, reply in zip(rows, self._generate([prompts[row] for row in rows], sampling)):
                replies[row] = reply
            if self.progress:
                self.progress(len(rows))
        self.model.train(was_training)
        return replies

    def _generate(self, prompts: list[list[int]], sampling: Sampling) -> list[Reply]:
        width, pad = max(map(len, prompts)), self.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts], device=self.model.device)
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=self.model.device)
        sampled = {"do_sample": True, "temperature": sampling.temperature, "top_k": 0, "top_p": 1.0} if sampling.temperature else {"do_sample": False}
        output = self.model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=sampling.max_new_tokens, pad_token_id=pad,
            repetition_penalty=self.repetition_penalty, **sampled,
        )
        stops = self.model.generation_config.eos_token_id
        stops = set(stops if isinstance(stops, list) else [stops]) | {self.tokenizer.eos_token_id}
        return [self._reply(prompt, row, stops) for prompt, row in zip(prompts, output[:, width:].tolist())]

    def _reply(self, prompt: list[int], generated: list[int], stops: set[int]) -> Reply:
        end = next((i for i, token in enumerate(generated) if token in stops), None)
        tokens = generated if end is None else generated[:end]
        return Reply(
            text=self.tokenizer.decode(tokens, skip_special_tokens=True).strip(),
            finish_reason="length" if end is None else "stop",
            prompt_tokens=len(prompt),
            completion_tokens=len(tokens),
        )
