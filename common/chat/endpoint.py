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
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import openai
from httpx2 import ConnectError

from common.chat.dialects import Trouble, Unreadable, body_of, error_in, reply_in, tokens_in, trouble
from common.chat.model import OnReply
from common.chat.pacing import Budget, EndpointError, Pacing, Refused, Stopped, retry_after
from common.schema import Message, Reply, Sampling, unbroken

HARMLESS: list[Message] = [{"role": "user", "content": "Name a colour."}]
"""Asked where it is not clear whether a request was refused for its conversation."""
BUDGETS = ("max_tokens", "max_completion_tokens")
"""The names of the budget of a reply; nothing is asked without one, which would cost nobody knows what."""
TEMPLATE_TOKENS = 256
"""What a server may put around a conversation by itself, at most: a system prompt of its own, today's date."""


class EndpointChat:
    """Asks `model` at `base_url`, up to `concurrency` conversations at a time.

    Retried with exponential backoff and jitter, up to `attempts` times: 5xx, 408, 409, a refused or broken connection,
    no whole reply within `timeout` seconds, a reply that cannot be read. What fails then is a `Reply` with the finish
    reason `error: ...`. A 429 pauses all requests together, for as long as the endpoint says or else twice as long as
    the last time; it does not count as an attempt. Nothing else is asked until a first answer has shown that key and
    model are right.

    What a server refuses for the sake of one conversation (too long, moderation) costs that one, in whatever words it
    says so: where they tell nothing, a harmless conversation shows whether the refusal concerns all. A setting that the
    model does not take (temperature, seed, the name of the budget) is left out from then on, which is printed and
    counted.

    Bad key, unknown model, exhausted quota, the cost cap, `attempts` pauses or `concurrency` failed conversations
    without an answer between, an interrupt: no more requests are sent, those in flight are waited for and handed to
    `on_reply`, then `EndpointError` (or what interrupted) is raised, with the server's words. Works inside a running
    event loop too, as in Jupyter.

    Args:
        base_url: such as `https://api.openai.com/v1`, without credentials.
        api_key_env: name of the environment variable that holds the key; "" for an endpoint without one. The key is
            read for each call and kept nowhere.
        prices: dollars per million prompt tokens and per million completion tokens.
        max_cost: dollars that one object may spend, or all that share its `budget`; a request that could pass it at
            worst (a token a byte, the whole budget used) is not sent. What a bill hides, tells as 0, or would have told
            had the answer arrived counts with its worst. None is no limit.
        backoff: seconds before the second attempt.

    `usage` counts requests answered, their tokens, and under names of their own finish reasons that nobody knows and
    settings left out; `cost` is in dollars; all begin at 0 with the object.
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
            raise ValueError(
                "base_url must look like https://host/v1, without user, password or query; the key comes from api_key_env"
            )
        if not re.fullmatch(r"([A-Za-z_]\w*)?", api_key_env):
            raise ValueError(
                "api_key_env takes the name of an environment variable, such as OPENAI_API_KEY, never the key itself"
            )
        if len(prices) != 2 or min(prices) < 0:
            raise ValueError(
                f"prices are dollars per million prompt tokens and per million completion tokens, got {list(prices)}"
            )
        if max_cost is not None and max(prices) == 0:
            raise ValueError(f"max_cost = {max_cost:g} needs prices, or nothing is ever counted")
        self.model, self.base_url, self.api_key_env = model, base_url.rstrip("/"), api_key_env
        self.concurrency, self.timeout, self.attempts, self.backoff = concurrency, timeout, attempts, backoff
        self.prices, self.budget, self.cost = prices, Budget(max_cost), 0.0
        self.name = f"{model} at {self.base_url}"
        self.usage: Counter[str] = Counter()
        self.not_taken: set[str] = set()  # settings that the model has refused

    def complete(
        self, conversations: Sequence[list[Message]], sampling: Sampling, on_reply: OnReply | None = None
    ) -> list[Reply]:
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

    def request(self, conversation: Sequence[Message], sampling: Sampling) -> dict[str, Any]:
        """What is sent: the settings that the model takes, every half character replaced."""
        messages = [{name: unbroken(text) for name, text in message.items()} for message in conversation]
        budget = next(
            name
            for name in (BUDGETS[::-1] if "api.openai.com" in self.base_url else BUDGETS)
            if name not in self.not_taken
        )
        settings = {"temperature": sampling.temperature, budget: sampling.max_new_tokens}
        if sampling.temperature:
            settings["seed"] = sampling.seed  # some endpoints refuse it, and greedy replies need none
        if sampling.top_p < 1:
            settings["top_p"] = sampling.top_p
        if sampling.json_schema:
            settings["response_format"] = {
                "type": "json_schema",
                "json_schema": {"name": "reply", "strict": True, "schema": sampling.json_schema},
            }
        return {
            "model": self.model,
            "messages": messages,
            **{name: value for name, value in settings.items() if name not in self.not_taken},
        }

    def worst(self, request: dict[str, Any], sampling: Sampling) -> tuple[int, int]:
        """(prompt tokens, completion tokens) that a request may cost at most."""
        sent = sum(16 + len(message["content"].encode()) for message in request["messages"]) + len(
            json.dumps(request.get("response_format", ""))
        )
        return TEMPLATE_TOKENS + sent, sampling.max_new_tokens

    def leave_out(self, setting: str, words: str) -> None:
        """Asks without this setting from now on, and says so once."""
        if setting not in self.not_taken:
            print(f"{self.name} does not take {setting} ({words}): asked without it", flush=True)
            self.not_taken.add(setting)
            self.usage[f"without {setting}"] = 1

    def without_key(self, text: str) -> str:
        """The endpoint's words about a trouble, without the key, should it repeat it or, of a long one, its beginning."""
        key = os.environ.get(self.api_key_env, "").strip()
        for secret in filter(None, (key, key[:8] if len(key) >= 16 else "")):
            text = text.replace(secret, "[key]")
        return text

    def price(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Dollars."""
        return (prompt_tokens * self.prices[0] + completion_tokens * self.prices[1]) / 1e6


class _Run:
    """One call of `complete`: what its workers share. Everything here happens in one event loop."""

    def __init__(self, chat: EndpointChat):
        self.chat, self.pacing = chat, Pacing(chat.name, chat.budget, chat.attempts, chat.backoff)
        self.failed = 0  # conversations given up since the last answer

    async def complete(
        self, conversations: Sequence[list[Message]], sampling: Sampling, on_reply: OnReply | None
    ) -> list[Reply]:
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

        async with openai.AsyncOpenAI(
            base_url=self.chat.base_url, api_key=key_of(self.chat.api_key_env), max_retries=0, timeout=None
        ) as client:
            first = asyncio.create_task(work())
            while not self.chat.usage["requests"] and not first.done():
                await asyncio.sleep(0.01)
            ended = await asyncio.gather(
                first, *(work() for _ in range(self.chat.concurrency - 1)), return_exceptions=True
            )
        failures = [failure for failure in ended if failure is not None and not isinstance(failure, Stopped)]
        if failures:
            failures[0].__context__ = None  # the client's error, which holds the request and so the key
            raise failures[0]
        return replies

    async def reply(self, client: openai.AsyncOpenAI, conversation: list[Message], sampling: Sampling) -> Reply:
        """The reply, or an `error: ...` one after so many attempts."""
        for attempt in range(self.chat.attempts):
            outcome: Reply | Trouble | None = None
            while outcome is None:  # neither a pause nor a setting left out is an attempt
                outcome = await self.ask(client, conversation, sampling)
            if isinstance(outcome, Reply):
                return outcome
            if outcome.concerns == "moderation":
                return Reply(text="", finish_reason="content_filter")
            if outcome.concerns == "length":
                return Reply(text="", finish_reason=f"error: too long for the model ({outcome.words})")
            if outcome.concerns == "request":
                await self.make_sure_that_others_are_answered(client, sampling, outcome)
                return Reply(text="", finish_reason=f"error: refused ({outcome.words})")
            if attempt + 1 < self.chat.attempts:
                await self.pacing.back_off(attempt)
        return await self.given_up(client, sampling, f"{outcome.words}, asked {self.chat.attempts} times")

    async def given_up(self, client: openai.AsyncOpenAI, sampling: Sampling, reason: str) -> Reply:
        """Raises EndpointError where so many in a row got no answer and a harmless question gets none either."""
        self.failed += 1
        if (failed := self.failed) >= (self.chat.concurrency if self.chat.usage["requests"] else 1):
            answered: Reply | Trouble | None = None
            while answered is None:
                answered = await self.ask(client, HARMLESS, sampling)
            if isinstance(answered, Trouble):
                raise EndpointError(f"{self.chat.name} does not answer: {reason} for each of {failed} conversations")
        return Reply(text="", finish_reason=f"error: {reason}")

    async def make_sure_that_others_are_answered(
        self, client: openai.AsyncOpenAI, sampling: Sampling, refused: Trouble
    ) -> None:
        asked = (
            refused if sampling.json_schema else None
        )  # a server without schemas refuses every conversation that asks for one
        while asked is None:
            asked = await self.ask(client, HARMLESS, sampling)
        if isinstance(asked, Trouble):
            raise Refused(f"{self.chat.name} refuses every request: {refused.words}")

    async def ask(
        self, client: openai.AsyncOpenAI, conversation: Sequence[Message], sampling: Sampling
    ) -> Reply | Trouble | None:
        """One request: the reply, or why there is none, or None where the same may be asked at once. Raises
        EndpointError when nothing else can help."""
        request = self.chat.request(conversation, sampling)
        worst = self.chat.worst(request, sampling)
        await self.pacing.clearance(self.chat.price(*worst))
        sent, tokens = time.monotonic(), (0, 0)
        self.pacing.send(self.chat.price(*worst))
        try:
            async with asyncio.timeout(self.chat.timeout):
                response = await client.chat.completions.with_raw_response.create(**request)
            tokens = worst
            fields = body_of(response.text)
            tokens = tuple(told or most for told, most in zip(tokens_in(fields), worst))
            if error_in(fields) is not None:
                error = error_in(body_of(self.chat.without_key(response.text)))
                return self.after(trouble(200, error), sent, None, request)
            reply, unknown = reply_in(fields, sampling.max_new_tokens)
            if unknown and not self.chat.usage[f"finish_reason {unknown}"]:
                print(
                    f"{self.chat.name} ends replies with the unknown reason {unknown!r}; they are taken for whole and counted",
                    flush=True,
                )
            self.chat.usage.update(
                {
                    "requests": 1,
                    "prompt_tokens": reply.prompt_tokens,
                    "completion_tokens": reply.completion_tokens,
                    **({f"finish_reason {unknown}": 1} if unknown else {}),
                }
            )
            self.pacing.pauses = self.failed = 0
            return reply
        except openai.APIStatusError as error:
            tokens = worst if error.status_code in BILLED_MAYBE else (0, 0)
            body = self.chat.without_key(error.response.text)
            return self.after(
                trouble(error.status_code, _content(body)),
                sent,
                retry_after(error.response.headers),
                request,
                error.status_code,
            )
        except TimeoutError:
            tokens = worst
            return Trouble("again", f"no whole reply in {self.chat.timeout:g} s")
        except openai.APIConnectionError as error:
            refused = isinstance(error.__cause__, ConnectError)
            tokens = (0, 0) if refused else worst
            return Trouble("again", "connection refused" if refused else "connection broken")
        except Unreadable as error:
            return Trouble("again", f"unreadable reply ({self.chat.without_key(str(error))})")
        finally:
            self.chat.cost += self.chat.price(*tokens)
            self.pacing.receive(self.chat.price(*worst), self.chat.price(*tokens))

    def after(
        self, found: Trouble, sent: float, seconds: float | None, request: dict[str, Any], status: int = 200
    ) -> Trouble | None:
        """What to do about it: nothing but wait, leave a setting out, stop the run, or give the trouble back."""
        said = found.words if status == 200 else f"answered {status}: {found.words}"
        if found.concerns == "pause":
            self.pacing.pause(sent, found.seconds if seconds is None else seconds, found.words)
            return None
        if (
            found.concerns == "parameter"
            and found.parameter in request
            and not self.chat.not_taken | {found.parameter} >= set(BUDGETS)
        ):
            self.chat.leave_out(found.parameter, found.words)
            return None
        if (
            found.concerns in ("run", "parameter")
            or status == 403
            and found.concerns == "request"
            and not self.chat.usage["requests"]
        ):
            with_schema = "response_format" in request and status in (400, 404, 422, 501)
            kind = Refused if with_schema or found.concerns == "parameter" else EndpointError
            raise kind(f"{self.chat.name}{': ' if status == 200 else ' '}{said}") from None
        return found._replace(words=said)


BILLED_MAYBE = (408, 500, 502, 504, 520, 522, 524)
"""Answers that may stand for a reply which was made, and paid, and lost on its way."""


def _content(body: str) -> object:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return body


A_KEY = re.compile(r"[!-~]+")
"""What the header of a request can carry."""


def key_of(variable: str) -> str:
    """The key in an environment variable, "none" where no variable is named. Raises EndpointError, naming the variable,
    where it is not set or holds what no request can carry, such as typographic quotes or a line break within."""
    key = os.environ.get(variable, "").strip() if variable else "none"
    if not key:
        raise EndpointError(f"the environment variable {variable} is not set; put the endpoint's key there")
    if not A_KEY.fullmatch(key):
        raise EndpointError(
            f"the environment variable {variable} holds characters that no key has (typographic quotes, spaces or line breaks); put the bare key there"
        )
    return key
