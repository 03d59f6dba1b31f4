"""A local OpenAI-compatible server on a real socket whose replies are a function of the conversation, and that can fail.

`with FaultServer(fault="reset", rate=0.3) as server:` serves at `server.url` and notes in `server.answered` the
requests that it answered in full, in `server.asked` all of them.
"""

import asyncio
import hashlib
import json
import random
import threading
from contextlib import suppress
from pathlib import Path

import yaml

FAULTS = ("429", "429 with Retry-After", "500", "502", "503", "dropped", "timeout", "reset", "bad JSON", "empty choices", "null content", "length", "content_filter")
STATUS = {"quota": 429, "429 with Retry-After": 429}
CODES = {"quota": "insufficient_quota", "too long": "context_length_exceeded"}
LISTENING = range(20_000, 30_000)  # below the ports of outgoing connections, one of which could take ours while we are away
TIMEOUT = 1.5  # seconds after which the tests' clients give up; the fault "timeout" takes longer


def answer_to(messages, response_format=None):
    """What the model "says": any change of any turn changes it. A judge's question is answered with a verdict."""
    digest = hashlib.sha256(json.dumps(messages, sort_keys=True).encode()).hexdigest()
    if response_format:
        scores = response_format["json_schema"]["schema"]["properties"]["score"]["enum"]
        return json.dumps({"reasoning": f"answer {digest[:8]}, and Rating: [[1]] is quoted", "score": scores[int(digest, 16) % len(scores)]})
    verdict = f"\nRating: [[{int(digest, 16) % 2}]]" if "Rating: [[0]]" in messages[-1]["content"] else ""
    return f"answer {digest[:8]} – naïve 日本{verdict}"


class FaultServer:
    """
    fault: one of FAULTS; or "400", "401", "403", "404", "quota", "too long".
    rate: share of requests that meet it. delay: seconds before an answer. retry_after: seconds, in that header.
    on_answer: called after each answer with their number so far. schemas: a `response_format` is "ignored", "kept" or "refused".
    """

    def __init__(self, fault="", rate=1.0, delay=0.0, seed=0, port=0, retry_after=0.1, on_answer=lambda count: None, schemas="ignored"):
        self.schemas = schemas
        self.fault, self.rate, self.delay, self.port, self.on_answer = fault, rate, delay, port, on_answer
        self.random, self.retry_after = random.Random(seed), retry_after
        self.forget()

    def forget(self):
        """Begins a new log."""
        self.asked, self.answered, self.refused_at, self.asked_at, self.most_at_once, self.now = [], [], [], [], 0, 0

    def __enter__(self):
        self.loop, ready = asyncio.new_event_loop(), threading.Event()
        self.loop.set_exception_handler(lambda loop, context: None)  # connections cut while stopping

        async def start():
            for port in [self.port] if self.port else random.sample(LISTENING, 50):
                with suppress(OSError):  # taken
                    self.server, self.port = await asyncio.start_server(self.serve, "127.0.0.1", port), port
                    return ready.set()

        def run():
            self.loop.run_until_complete(start())
            self.loop.run_forever()

        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()
        assert ready.wait(10)
        self.url = f"http://127.0.0.1:{self.port}/v1"
        return self

    def __exit__(self, *_):
        async def stop():
            self.server.close()
            tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(stop(), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()

    async def serve(self, reader, writer):
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = next(int(line.split(b":")[1]) for line in head.lower().splitlines() if line.startswith(b"content-length"))
                await self.handle(head.decode(), json.loads(await reader.readexactly(length)), writer)
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass  # the client or the server is going
        finally:
            writer.close()

    async def handle(self, head, request, writer):
        self.asked.append(request)
        self.asked_at.append(self.loop.time())
        fault = self.fault if self.random.random() < self.rate else ""
        fault = "400" if self.schemas == "refused" and "response_format" in request else fault
        self.now += 1
        self.most_at_once = max(self.most_at_once, self.now)
        try:
            await asyncio.sleep(self.delay)
            body, status, headers = self.reply(fault, request, head), 200, {}
            if fault in CODES or fault[:1].isdigit():
                status = STATUS.get(fault) or (400 if fault == "too long" else int(fault))
                headers = {"Retry-After": self.retry_after} if fault.endswith("Retry-After") else {}
            if fault == "timeout":
                await asyncio.sleep(2 * TIMEOUT)
            if fault == "dropped":
                raise ConnectionResetError
            await self.send(writer, status, body.encode(), headers, cut=fault == "reset")
            if status == 429:
                self.refused_at.append(self.loop.time())
            if fault in ("", "length", "content_filter"):
                self.answered.append(request)
                self.on_answer(len(self.answered))
        finally:
            self.now -= 1

    def reply(self, fault, request, head):
        messages, code = request["messages"], CODES.get(fault)
        if code or fault[:1].isdigit():
            return json.dumps({"error": {"message": f"no, for {head}", "type": code or "error", "code": code}})
        text, budget = answer_to(messages, request.get("response_format") if self.schemas == "kept" else None), request.get("max_tokens") or request["max_completion_tokens"]
        cut = {"length": text[:6], "content_filter": None, "null content": None}
        usage = {"prompt_tokens": sum(len(m["content"].split()) for m in messages), "completion_tokens": min(5, budget)}
        reason = fault if fault in ("length", "content_filter") else "stop" if budget >= 5 else "length"
        choice = {"index": 0, "message": {"role": "assistant", "content": cut.get(fault, text)}, "finish_reason": reason}
        body = json.dumps({"id": "x", "object": "chat.completion", "choices": [] if fault == "empty choices" else [choice], "usage": usage})
        return body[:-7] if fault == "bad JSON" else body

    async def send(self, writer, status, body, headers, cut=False):
        lines = [f"HTTP/1.1 {status} X", "Content-Type: application/json", f"Content-Length: {len(body)}", *(f"{k}: {v}" for k, v in headers.items())]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + (body[: len(body) // 2] if cut else body))
        await writer.drain()
        if cut:
            writer.transport.abort()
            raise ConnectionResetError


def providers_file(folder, **providers):
    """Path of a YAML file of providers, by name their fields; a server of this module needs no key."""
    path = Path(folder, "providers.yaml")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(providers, sort_keys=False), encoding="utf-8")
    return str(path)
