"""When the next request to an endpoint may be sent: not in a pause that it asked for, not beyond the budget, not after
a stop."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime

LONGEST_BACKOFF, LONGEST_PAUSE = 60.0, 900.0  # seconds


class EndpointError(RuntimeError):
    """The run cannot go on: bad key, unknown model, exhausted quota, cost cap. What was answered before is kept."""


class Refused(EndpointError):
    """The endpoint does not take such a request, whatever it asks; another one it may."""


class Stopped(Exception):
    """This worker ends because another one has said why."""


class Budget:
    """Dollars spent, and those that requests on their way may cost at worst. `limit` None is no limit."""

    def __init__(self, limit: float | None):
        self.limit, self.spent, self.reserved = limit, 0.0, 0.0

    def allows(self, worst: float) -> bool:
        """Whether a request that costs `worst` at worst cannot pass the limit."""
        return self.limit is None or self.spent + self.reserved + worst <= self.limit


class Pacing:
    """What the workers of one run share, in one event loop: pauses, the budget, and whether the run is being stopped.

    Args:
        name: of the endpoint, for messages.
        patience: pauses without an answer between after which the run is stopped.
        backoff: seconds of the first wait; each further one is twice as long.
    """

    def __init__(self, name: str, budget: Budget, patience: int, backoff: float):
        self.name, self.budget, self.patience, self.backoff = name, budget, patience, backoff
        self.stopping = False
        self.in_flight = 0
        self.resume_at = 0.0  # monotonic time
        self.pauses = 0  # since the last answer

    def send(self, worst: float) -> None:
        """A request that costs so many dollars at worst is on its way."""
        self.in_flight += 1
        self.budget.reserved += worst

    def receive(self, worst: float, cost: float) -> None:
        """It has come back, or will not, and has cost so many."""
        self.in_flight -= 1
        self.budget.reserved -= worst
        self.budget.spent += cost

    async def clearance(self, worst: float) -> None:
        """Waits out the common pause, and for room in the budget. Raises when the run is being stopped or the budget is
        used up."""
        while not self.stopping:
            if (wait := self.resume_at - time.monotonic()) > 0:
                await self.sleep(wait + random.uniform(0, 0.1) * self.backoff)
            elif self.budget.allows(worst):
                return
            elif self.in_flight:
                await self.sleep(0.01)
            else:
                raise EndpointError(
                    f"{self.name}: {self.budget.spent:.4f} dollars are spent, and the next request could pass max_cost = {self.budget.limit:g}; raise it to go on"
                )
        raise Stopped

    def pause(self, sent: float, seconds: float | None, words: str = "") -> None:
        """Nobody asks for some time. Refusals of what was sent before the pause began do not prolong it. `words` are
        the endpoint's."""
        now = time.monotonic()
        if sent < self.resume_at:
            self.resume_at = max(self.resume_at, now + (seconds or 0))
            return
        self.pauses += 1
        if self.pauses > self.patience or (seconds or 0) > LONGEST_PAUSE:
            said = f"asks to wait {seconds:.0f} s" if seconds else f"refused through {self.patience} pauses"
            raise EndpointError(
                f"{self.name} {said} (429{words and f': {words}'}); run again later, or with less concurrency"
            )
        self.resume_at = now + (seconds or self._wait(self.pauses - 1))

    async def back_off(self, attempt: int) -> None:
        """Waits after the failure of an attempt, 0 the first, with jitter."""
        await self.sleep(self._wait(attempt) * random.uniform(0.5, 1))

    def _wait(self, before: int) -> float:
        return min(LONGEST_BACKOFF, self.backoff * 2**before)

    async def sleep(self, seconds: float) -> None:
        """Sleeps, unless the run is being stopped."""
        until = time.monotonic() + seconds
        while not self.stopping:
            if (left := until - time.monotonic()) <= 0:
                return
            await asyncio.sleep(min(left, 0.1))
        raise Stopped


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that the endpoint asks to wait, given as a number or as a date; None where it does not say."""
    value = headers.get("retry-after", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
