"""Wall seconds by stage of a run."""

from __future__ import annotations

import time


class Watch:
    """Each `mark` counts the seconds since the one before it to a stage."""

    def __init__(self) -> None:
        self.stages: dict[str, float] = {}
        self._last = time.perf_counter()

    def mark(self, stage: str) -> None:
        """The stage that ends now; one may come several times."""
        now = time.perf_counter()
        self.stages[stage] = self.stages.get(stage, 0.0) + now - self._last
        self._last = now
