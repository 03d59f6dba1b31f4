"""A chat model behind any OpenAI-compatible endpoint: many requests at once, none lost, none beyond the budget.

Retries, pauses and budget are ours and not the client's: the client retries each request for itself, pauses none of the
others when the endpoint asks for patience, and never asks again for an answer that it could not read.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import openai
from httpx2 import ConnectError

from common.chat import OnReply
from common.pacing import Budget, EndpointError, Pacing, Stopped, retry_after
from common.schema import Message, Reply, Sampling

OF_THE_CONVERSATION = ("context_length_exceeded", "content_filter")  # codes of a 400 that say nothing about other requests


class EndpointChat:
    """Asks `model` at `base_url`, up to `concurrency` conversations at a time.

    Retried with exponential backoff and jitter, up to `attempts` times: 5xx, 408, 409, a refused or broken connection, no
    whole reply within `timeout` seconds, a reply that cannot be read. What fails then is a `Reply` with the finish reason
    `error: ...`. A 429 pauses all requests together, for as long as the endpoint says or else twice as long as the last
    time; it does not count as an attempt. Nothing else is asked until a first answer has shown that key and model are right.

    Any other 4xx, an exhausted quota, the cost cap, `attempts` pauses or `concurrency` failed conversations without an
    answer between, an interrupt: no more requests are sent, those in flight are waited for and handed to `on_reply`, then
    `EndpointError` (or what interrupted) is raised. Works inside a running event loop too, as in Jupyter.

    Args:
        base_url: such as `https://api.openai.com/v1`, without credentials.
        api_key_env: name of the environment variable that holds the key; "" for an endpoint without one. The key is read
            for each call and kept nowhere.
        prices: dollars per million prompt tokens and per million completion tokens.
        max_cost: dollars that one object may spend; a request that could pass it at worst (a token a byte, the whole
            budget used) is not sent. A request whose bill is unknown counts with its worst. None is no limit.
        backoff: seconds before the second attempt.

    `usage` counts requests answered and their tokens, `cost` is in dollars; both begin at 0 with the object.
    """

    def __init__(
        self,
        model: str,
        base_url: str,
        api_key_env: str,
        concurrency: int = 16,
        timeout: float = 300.0,
        attempts: int = 8,
        backoff: float = 1.0,
        prices: Sequence[float] = (0.0, 0.0),
        max_cost: float | None = None,
    ):
        address = urlsplit(base_url)
        if address.scheme not in ("http", "https") or address.username or address.password or address.query:
            raise ValueError("base_url must look like https://host/v1, without user, password or query; the key comes from api_key_env")
        if not re.fullmatch(r"([A-Za-z_]\w*)?", api_key_env):
            raise ValueError("api_key_env takes the name of an environment variable, such as OPENAI_API_KEY, never the key itself")
        if len(prices) != 2 or min(prices) < 0:
            raise ValueError(f"prices are dollars per million prompt tokens and per million completion tokens, got {list(prices)}")
        if max_cost is not None and max(prices) == 0:
            raise ValueError(f"max_cost = {max_cost:g} needs prices, or nothing is ever counted")
        self.model, self.base_url, self.api_key_env = model, base_url.rstrip("/"), api_key_env
        self.concurrency, self.timeout, self.attempts, self.backoff = concurrency, timeout, attempts, backoff
        self.prices, self.budget = prices, Budget(max_cost)
        self.name = f"{model} at {self.base_url}"
        self.usage: Counter[str] = Counter()

    @property
    def cost(self) -> float:
        return self.budget.spent

    def complete(self, conversations: Sequence[list[Message]], sampling: Sampling, on_reply: OnReply | None = None) -> list[Reply]:
        """Replies in the order asked; `on_reply` is called in another thread, one reply at a time."""
        key_of(self.api_key_env)
        run = _Run(self)
        thread = ThreadPoolExecutor(max_workers=1)  # with an event loop of its own, whatever runs in the caller's
        try:
            return thread.submit(asyncio.run, run.complete(conversations, sampling, on_reply)).result()
        except BaseException:
            run.pacing.stopping = True
            raise
        finally:
            thread.shutdown(wait=True)

    def price(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Dollars."""
        return (prompt_tokens * self.prices[0] + completion_tokens * self.prices[1]) / 1e6


class _Run:
    """One call of `complete`: what its workers share. Everything here happens in one event loop."""

    def __init__(self, chat: EndpointChat):
        self.chat, self.pacing = chat, Pacing(chat.name, chat.budget, chat.attempts, chat.backoff)
        self.failed = 0  # conversations given up since the last answer

    async def complete(self, conversations: Sequence[list[Message]], sampling: Sampling, on_reply: OnReply | None) -> list[Reply]:
        replies: list[Reply | None] = [None] * len(conversations)
        todo = iter(enumerate(conversations))

        async def work() -> None:
            try:
                for row, conversation in todo:
                    replies[row] = await self.reply(client, conversation, sampling)
                    if on_reply:
                        on_reply(row, replies[row])
            except BaseException:
                self.pacing.stopping = True
                raise

        async with openai.AsyncOpenAI(base_url=self.chat.base_url, api_key=key_of(self.chat.api_key_env), max_retries=0, timeout=None) as client:
            first = asyncio.create_task(work())
            while not self.chat.usage["requests"] and not first.done():
                await asyncio.sleep(0.01)
            ended = await asyncio.gather(first, *(work() for _ in range(self.chat.concurrency - 1)), return_exceptions=True)
        failures = [failure for failure in ended if failure is not None and not isinstance(failure, Stopped)]
        if failures:
            failures[0].__context__ = None  # the client's error, which holds the request and so the key
            raise failures[0]
        return replies

    async def reply(self, client: openai.AsyncOpenAI, conversation: list[Message], sampling: Sampling) -> Reply:
        """The reply, or an `error: ...` one after so many attempts."""
        budget = "max_completion_tokens" if "api.openai.com" in self.chat.base_url else "max_tokens"
        request = {"model": self.chat.model, "messages": conversation, "temperature": sampling.temperature, budget: sampling.max_new_tokens}
        if sampling.temperature:
            request["seed"] = sampling.seed  # some endpoints refuse it, and greedy replies need none
        if sampling.json_schema:
            request["response_format"] = {"type": "json_schema", "json_schema": {"name": "reply", "strict": True, "schema": sampling.json_schema}}
        worst = self.chat.price(sum(16 + len(message["content"].encode()) for message in conversation), sampling.max_new_tokens)
        for attempt in range(self.chat.attempts):
            outcome: Reply | str | None = None
            while outcome is None:  # a pause is no attempt
                outcome = await self.ask(client, request, worst)
            if isinstance(outcome, Reply):
                return outcome
            if attempt + 1 < self.chat.attempts:
                await self.pacing.back_off(attempt)
        self.failed += 1
        if self.failed >= (self.chat.concurrency if self.chat.usage["requests"] else 1):
            raise EndpointError(f"{self.chat.name} does not answer: {outcome}, asked {self.chat.attempts} times for each of {self.failed} conversations")
        return Reply(text="", finish_reason=f"error: {outcome}, asked {self.chat.attempts} times")

    async def ask(self, client: openai.AsyncOpenAI, request: Mapping[str, Any], worst: float) -> Reply | str | None:
        """One request: the reply, or why there is none, or None after a 429. Raises EndpointError when nothing else can help."""
        await self.pacing.clearance(worst)
        sent, cost = time.monotonic(), 0.0
        self.pacing.send(worst)
        try:
            async with asyncio.timeout(self.chat.timeout):
                response = await client.chat.completions.with_raw_response.create(**request)
            cost = worst
            reply, cost = self.read(response.text, worst)
            self.pacing.pauses = self.failed = 0
            return reply
        except openai.RateLimitError as error:
            if "insufficient_quota" in (error.code, error.type):
                raise EndpointError(f"{self.chat.name}: the quota is exhausted ({self.said(error)})") from None
            self.pacing.pause(sent, retry_after(error.response.headers))
            return None
        except openai.APIStatusError as error:
            if error.code in OF_THE_CONVERSATION:
                return Reply(text="", finish_reason="content_filter" if error.code == "content_filter" else f"error: {error.code}")
            if error.status_code < 500 and error.status_code not in (408, 409):
                raise EndpointError(f"{self.chat.name} answered {error.status_code}: {self.said(error)}") from None
            return f"status {error.status_code}"
        except TimeoutError:
            cost = worst
            return f"no whole reply in {self.chat.timeout:g} s"
        except openai.APIConnectionError as error:
            refused = isinstance(error.__cause__, ConnectError)
            cost = 0.0 if refused else worst
            return "connection refused" if refused else "connection broken"
        except (ValueError, TypeError, LookupError, AttributeError) as error:  # what `read` finds
            return f"unreadable reply ({type(error).__name__})"
        finally:
            self.pacing.receive(worst, cost)

    def read(self, body: str, worst: float) -> tuple[Reply, float]:
        """(reply, dollars) of the body of a 200. Raises ValueError, TypeError, LookupError or AttributeError where it is malformed."""
        fields = json.loads(body)
        choice, used = fields["choices"][0], fields.get("usage") or {}
        text, finish_reason = choice["message"]["content"], choice["finish_reason"]
        if text is None and finish_reason not in ("length", "content_filter"):
            raise ValueError("no content")
        tokens = {name: used.get(name) or 0 for name in ("prompt_tokens", "completion_tokens")}
        reply = Reply(text=text or "", finish_reason=finish_reason, **tokens)
        self.chat.usage.update(requests=1, **tokens)
        return reply, self.chat.price(**tokens) if used else worst

    def said(self, error: Exception) -> str:
        """The endpoint's words, without the key, should it repeat it."""
        key = os.environ.get(self.chat.api_key_env, "")
        text = str(error)
        for secret in filter(None, (key, key[:8])):
            text = text.replace(secret, "[key]")
        return text[:300]


def key_of(variable: str) -> str:
    """The key in an environment variable; "none" where no variable is named. Raises EndpointError where it is not set."""
    if variable and not os.environ.get(variable):
        raise EndpointError(f"the environment variable {variable} is not set; put the endpoint's key there")
    return os.environ[variable] if variable else "none"
