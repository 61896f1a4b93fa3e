"""How much is taken on: requests a second of each caller, and requests at once of all."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from ray_profile.serve.access import Caller
from ray_profile.serve.problems import Problem

BURST_SECONDS = 2.0  # how much of a rate may come at once
REMEMBERED = 10_000  # callers; an outside issuer has any number of them
FORGOTTEN_SECONDS = 600.0  # after which a caller begins with a full bucket


class Rates:
    """A bucket of permits for each caller, filled at their rate. It counts what one replica answers."""

    def __init__(self) -> None:
        self._left: dict[str, tuple[float, float]] = {}  # name -> permits, and when they were counted
        self._many = REMEMBERED

    def take(self, caller: Caller, cost: float = 1.0, now: float | None = None) -> None:
        """Take permits. Raises `Problem` 429, whose Retry-After says when there are enough again."""
        if caller.rate is None:
            return
        moment = monotonic() if now is None else now
        burst = max(caller.rate * BURST_SECONDS, 1.0)
        most = max(cost, burst)  # what costs more than a burst has to be waited for
        if len(self._left) >= self._many:
            self._left = {name: each for name, each in self._left.items() if moment - each[1] < FORGOTTEN_SECONDS}
            self._many = max(REMEMBERED, 2 * len(self._left))  # so that it is seldom looked through
        left, counted = self._left.get(caller.name, (burst, moment))
        left = min(most, left + (moment - counted) * caller.rate)
        if left < cost:
            self._left[caller.name] = left, moment
            wait = math.ceil((cost - left) / caller.rate)
            raise Problem(
                429, f"{caller.name!r} may ask {caller.rate:g} times a second; ask again in {wait} s", _retry(wait)
            )
        self._left[caller.name] = left - cost, moment


class Gate:
    """So many requests of a kind at once: the others are told to come again rather than left to wait."""

    def __init__(self, most: int) -> None:
        self._most, self._inside = most, 0

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Be one of them. Raises `Problem` 429 where there are enough."""
        if self._inside >= self._most:
            raise Problem(429, f"{self._most} such requests are being answered; ask again in a second", _retry(1))
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1


def _retry(seconds: int) -> dict[str, str]:
    return {"Retry-After": str(max(1, seconds))}
