"""How a long run shows that it is alive: a bar, or plain lines, and without the chatter of the libraries below it."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from ray_profile.printing import console

#: The stage, how much is done and how much there is, and how many rows or profiles are among what is done.
Tell = Callable[[str, float, float, int], None]

#: What a stage counts besides its own measure.
COUNTED = {"fold": "rows", "fuse": "profiles"}
PLAIN_EVERY_SECONDS = 5.0

#: Ray Data's own word on what our progress shows already, its remark that it shows nothing itself, and its tracebacks
#: of an error that is raised all the same, and then explained in one line.
_CHATTER = {
    "ray.data._internal.progress": logging.ERROR,
    "ray.data._internal.execution.streaming_executor": logging.WARNING,
    "ray.data._internal.execution.streaming_executor_state": logging.CRITICAL,
    "ray.data.exceptions": logging.CRITICAL,
}

#: Ray writes it from C++ as an error, once a process, for every actor pool of Ray Data; no setting but the level of
#: all its logs turns it off. The pool holds the arguments for as long as it lives, so the warning has no object here.
_HARMLESS = "has constructor arguments in the object store and max_restarts > 0"

_FILTER = f"""
import sys
for line in sys.stdin.buffer:
    if {_HARMLESS.encode()!r} not in line:
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
"""


@contextmanager
def progress() -> Iterator[Tell]:
    """A function to tell of progress: a bar with the remaining time, or plain lines where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield plain_progress()
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description:<8}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        _Rate(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Progress(*columns, console=console(stderr=True), transient=True) as bars:
        tasks = {"starting": bars.add_task("starting", total=None)}

        def tell(stage: str, done: float, total: float, rows: int = 0) -> None:
            if "starting" in tasks:
                bars.remove_task(tasks.pop("starting"))
            if stage in tasks and done < bars.tasks[bars.task_ids.index(tasks[stage])].completed:
                bars.remove_task(tasks.pop(stage))  # the next wave
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=max(total, 1.0), rows=0)
            bars.update(tasks[stage], completed=done if total else 1.0, total=max(total, 1.0), rows=rows)

        yield tell


class _Rate(ProgressColumn):
    """Rows or profiles a second since the stage began."""

    def render(self, task: Task) -> Text:
        rate = _rate(task.description, task.fields.get("rows", 0), task.elapsed or 0.0)
        return Text(rate, style="progress.data.speed")


def _rate(stage: str, rows: int, seconds: float) -> str:
    return f"{rows / seconds:,.0f} {COUNTED.get(stage, 'rows')}/s" if rows and seconds > 0 else ""


def plain_progress(clock: Callable[[], float] = time.monotonic, write: Callable[[str], object] | None = None) -> Tell:
    """Lines on stderr: one when a stage begins, one every few seconds, one when it is done."""
    say = write or sys.stderr.write
    began: dict[str, tuple[float, float]] = {}
    said: dict[str, tuple[float, float]] = {}

    def tell(stage: str, done: float, total: float, rows: int = 0) -> None:
        now, share = clock(), min(max(0.0, done / total), 1.0) if total > 0 else 1.0
        at, before = said.get(stage, (now, -1.0))
        if share < before or stage not in began:  # a stage begins, or the next wave does
            began[stage], before, at = (now, share), -1.0, now - PLAIN_EVERY_SECONDS
        if share == before == 1.0 or (share < 1 and now - at < PLAIN_EVERY_SECONDS):
            return
        said[stage] = now, share
        start, first = began[stage]
        moving = first + 0.001 < share < 1 and now > start  # less says nothing about the rest
        left = f", about {(now - start) * (1 - share) / (share - first):,.0f} s left" if moving else ""
        rate = _rate(stage, rows, now - start)
        say(f"{stage}: {share:.0%}{f', {rate}' if rate else ''}{left}\n")

    return tell


@contextmanager
def without_chatter() -> Iterator[None]:
    """Keep from the terminal what Ray says in passing; its warnings and errors pass.

    What is written below Python goes through a process that leaves one known line out: in a process of its own, so that
    the last words of a crash are not lost with it.
    """
    for name, level in _CHATTER.items():
        logging.getLogger(name).setLevel(level)
    sys.stderr.flush()
    terminal, python = os.dup(2), sys.stderr
    process = subprocess.Popen(
        [sys.executable, "-S", "-E", "-c", _FILTER], stdin=subprocess.PIPE, stdout=terminal, start_new_session=True
    )
    assert process.stdin is not None
    with os.fdopen(os.dup(terminal), "w", buffering=1, encoding=python.encoding, errors="backslashreplace") as direct:
        os.dup2(process.stdin.fileno(), 2)
        sys.stderr = direct
        try:
            yield
        finally:
            sys.stderr = python
            os.dup2(terminal, 2)
            os.close(terminal)
            process.stdin.close()
            with suppress(subprocess.TimeoutExpired):  # another process may hold the pipe a little longer
                process.wait(timeout=2)
