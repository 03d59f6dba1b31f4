"""A chat model whose replies are kept on disk and never paid for twice."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from common.chat.model import ChatModel, OnReply
from common.chat.pacing import EndpointError
from common.chat.replies import cleaned
from common.schema import Message, Reply, Sampling, fingerprint
from common.storage import JsonlStore, read_lines


class KeptChat:
    """A chat model whose replies are kept on disk as they come, so that nothing is paid for twice.

    Replies are handed over clean (`common.chat.replies`), whoever wrote the file. A reply is found by model,
    conversation and sampling, its seed included: the same request, in one batch or in a run of next week, is asked
    once. Failed and filtered replies are not kept, so the next run asks again; cut ones are.

    Args:
        chat: the model; None answers from what `path` holds alone (recorded replies).
        path: JSONL file; it is locked while replies are asked for, and only then. Recorded replies are read and never
            written.

    Raises:
        BlockingIOError: another process has the file open.
        LookupError: no `chat`, and the file lacks a reply or holds those of several models.
        EndpointError: the server says that it serves another model than before, in this run or an earlier one.
    """

    def __init__(self, chat: ChatModel | None, path: str | Path):
        self.chat, self.path = chat, Path(path)
        self.name = chat.name if chat else self._recorded_name()
        self._store: JsonlStore | None = None
        self._served = ""

    def complete(
        self, conversations: Sequence[list[Message]], sampling: Sampling, on_reply: OnReply | None = None
    ) -> list[Reply]:
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
                self._check_served(reply)
                if not reply.failed and reply.finish_reason != "content_filter":
                    store.append({"id": missing[number], "chat": self.name, **reply.model_dump()})
                give(missing[number], reply)

            if missing:
                self._asked().complete([conversations[rows[key][0]] for key in missing], sampling, keep)
        return replies

    def _check_served(self, reply: Reply) -> None:
        if not reply.model:
            return
        self._served = self._served or next(
            (
                fields["model"]
                for _, fields in read_lines(self.path)
                if fields["chat"] == self.name and "model" in fields
            ),
            reply.model,
        )
        if reply.model != self._served:
            raise EndpointError(
                f"{self.name} answers as {reply.model!r} now and answered as {self._served!r} before, so another model would be mixed in; serve {self._served} again, or begin a new run with another output"
            )

    def _asked(self) -> ChatModel:
        if self.chat is None:
            raise LookupError(
                f"{self.path} holds no reply to some of what is asked: record it with the same model, texts and sampling, or name a model"
            )
        return self.chat

    def _recorded_name(self) -> str:
        lines = list(read_lines(self.path)) if self.path.exists() else []
        if strange := [number for number, fields in lines if "chat" not in fields]:
            raise ValueError(f"{self.path}, line {strange[0]}: no reply that was kept, since it names no chat")
        names = sorted({fields["chat"] for _, fields in lines})
        if len(names) != 1:
            raise LookupError(
                f"{self.path} must hold the recorded replies of one model; it holds those of {', '.join(names) or 'none'}"
            )
        return names[0]
