"""Chat models behind one method: conversations in, replies out. Teacher, judge and student are all called this way."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from common.replies import clean, cleaned
from common.schema import Message, Reply, Sampling, fingerprint
from common.storage import JsonlStore, read_lines
from common.wording import sentence_prefixes

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


OnReply = Callable[[int, Reply], None]
"""Called with the number of a conversation and its reply the moment this has come, in any order."""


class ChatModel(Protocol):
    """Anything with a name and this method; the notebooks do not know which one they use.

    The name tells models apart whose replies may differ: replies are kept under it.
    """

    name: str

    def complete(self, conversations: Sequence[list[Message]], sampling: Sampling, on_reply: OnReply | None = None) -> list[Reply]:
        """One reply per conversation, in order; `on_reply` has seen each one before."""
        ...


def hand_over(replies: Iterable[Reply], on_reply: OnReply | None) -> list[Reply]:
    """The replies as a list, each shown to `on_reply` as soon as it is made."""
    finished = []
    for reply in replies:
        if on_reply:
            on_reply(len(finished), reply)
        finished.append(reply)
    return finished


class KeptChat:
    """A chat model whose replies are kept on disk as they come, so that nothing is paid for twice.

    Replies are handed over clean (`common.replies`), whoever wrote the file. A reply is found by model, conversation and
    sampling, its seed included: the same request, in one batch or in a run of next week, is asked once. Failed and filtered replies are not kept, so the next run asks again; cut ones are.

    Args:
        chat: the model; None answers from what `path` holds alone (recorded replies).
        path: JSONL file; it is locked while replies are asked for, and only then. Recorded replies are read and never written.

    Raises:
        BlockingIOError: another process has the file open.
        LookupError: no `chat`, and the file lacks a reply or holds those of several models.
    """

    def __init__(self, chat: ChatModel | None, path: str | Path):
        self.chat, self.path = chat, Path(path)
        self.name = chat.name if chat else self._recorded_name()
        self._store: JsonlStore | None = None

    def complete(self, conversations: Sequence[list[Message]], sampling: Sampling, on_reply: OnReply | None = None) -> list[Reply]:
        self._store = self._store or JsonlStore(self.path, read_only=self.chat is None)
        rows: dict[str, list[int]] = {}  # of the same request
        for row, conversation in enumerate(conversations):
            rows.setdefault(fingerprint(self.name, conversation, sampling.model_dump(), digits=32), []).append(row)
        replies: list[Reply | None] = [None] * len(conversations)

        def give(key: str, reply: Reply) -> None:
            for row in rows[key]:
                replies[row] = reply
                if on_reply:
                    on_reply(row, reply)

        with self._store as store:
            kept, missing = ([key for key in rows if (key in store) is there] for there in (True, False))
            for key in kept:
                fields = store[key]
                give(key, cleaned(Reply(**{name: fields[name] for name in Reply.model_fields if name in fields})))

            def keep(number: int, reply: Reply) -> None:
                reply = cleaned(reply)
                if not reply.failed and reply.finish_reason != "content_filter":
                    store.append({"id": missing[number], "chat": self.name, **reply.model_dump()})
                give(missing[number], reply)

            if missing:
                self._asked().complete([conversations[rows[key][0]] for key in missing], sampling, keep)
        return replies

    def _asked(self) -> ChatModel:
        if self.chat is None:
            raise LookupError(f"{self.path} holds no reply to some of what is asked: record it with the same model, texts and sampling, or name a model")
        return self.chat

    def _recorded_name(self) -> str:
        names = sorted({fields["chat"] for _, fields in read_lines(self.path)}) if self.path.exists() else []
        if len(names) != 1:
            raise LookupError(f"{self.path} must hold the recorded replies of one model; it holds those of {', '.join(names) or 'none'}")
        return names[0]


class WholeSentences:
    """A chat model whose replies, where they were cut off for length, end with their last whole sentence and count as whole; one
    without any stays cut off."""

    def __init__(self, chat: ChatModel):
        self.chat, self.name = chat, chat.name

    def complete(self, conversations: Sequence[list[Message]], sampling: Sampling, on_reply: OnReply | None = None) -> list[Reply]:
        each = on_reply and (lambda row, reply: on_reply(row, self._ended(reply)))
        return [self._ended(reply) for reply in self.chat.complete(conversations, sampling, each)]

    def _ended(self, reply: Reply) -> Reply:
        prefixes = sentence_prefixes(reply.text) if reply.finish_reason == "length" else []
        return reply.model_copy(update={"text": prefixes[0], "finish_reason": "stop"}) if prefixes else reply


LOOK_EVERY = 32
"""Tokens after which finished rows leave their batch."""


class LocalChat:
    """A transformers model in this process: batched, sorted by length so that little is padding, rows leaving when they end.

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

    def complete(self, conversations: Sequence[list[Message]], sampling: Sampling, on_reply: OnReply | None = None) -> list[Reply]:
        """Replies in the order asked. Greedy at temperature 0; the caller's training mode is restored afterwards."""
        import torch

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
                if on_reply:
                    on_reply(row, reply)
            if self.progress:
                self.progress(len(rows))
        self.model.train(was_training)
        return replies

    def _generate(self, prompts: list[list[int]], sampling: Sampling) -> list[Reply]:
        stops = self.model.generation_config.eos_token_id
        stops = set(stops if isinstance(stops, list) else [stops]) | {self.tokenizer.eos_token_id}
        return [self._reply(prompt, tokens, stops) for prompt, tokens in zip(prompts, self._continued(prompts, sampling, stops))]

    def _continued(self, prompts: list[list[int]], sampling: Sampling, stops: set[int]) -> list[list[int]]:
        """The tokens behind each prompt, up to a stop and maybe beyond. Rows that met one leave, unless states are recurrent."""
        import torch

        from common.student import learned_positions

        width, pad = max(map(len, prompts)), self.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts], device=self.model.device)
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=self.model.device)
        sampled = {"do_sample": True, "temperature": sampling.temperature, "top_k": 0, "top_p": 1.0} if sampling.temperature else {"do_sample": False}
        positions = learned_positions(self.model)
        most = min(sampling.max_new_tokens, positions - width) if positions else sampling.max_new_tokens
        if most < 1:
            raise ValueError(f"a prompt of {width} tokens leaves no room for an answer: {self.name} has {positions} positions")
        generated: list[list[int]] = [[] for _ in prompts]
        rows, cache = list(range(len(prompts))), None  # those still in the batch
        for start in range(0, most, LOOK_EVERY):
            output = self.model.generate(
                input_ids=ids, attention_mask=mask, past_key_values=cache, max_new_tokens=min(LOOK_EVERY, most - start),
                pad_token_id=pad, use_cache=True, repetition_penalty=self.repetition_penalty, return_dict_in_generate=True, **sampled,
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

    def _reply(self, prompt: list[int], generated: list[int], stops: set[int]) -> Reply:
        end = next((i for i, token in enumerate(generated) if token in stops), None)
        tokens = generated if end is None else generated[:end]
        return Reply(
            text=clean(self.tokenizer.decode(tokens, skip_special_tokens=True)),
            finish_reason="length" if end is None else "stop",
            prompt_tokens=len(prompt),
            completion_tokens=len(tokens),
        )
