"""A build that kills itself: run by test_kill.py in a process of its own.

python killed.py CONFIG ROOT STEP     SIGKILL at the STEP-th step; -1: record the steps and print them
python killed.py CONFIG ROOT writeN   SIGKILL after the N-th data file is written
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import tiny

from ray_profile.config import load
from ray_profile.pipelines import buckets, catalogue, work
from ray_profile.pipelines.build import build


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    path, root, when = sys.argv[1:4]
    through_ray = "ray" in sys.argv[4:]
    steps: list[str] = []
    written = 0
    write = work.write_file

    def at(step: str) -> None:
        steps.append(step)
        if when == str(len(steps) - 1):
            die()

    def write_and_die(*arguments: Any) -> Any:
        nonlocal written
        file = write(*arguments)
        written += 1
        if when == f"write{written}":
            die()
        return file

    work.write_file = buckets.write_file = catalogue.write_file = write_and_die
    build(load(path, [f"root={root}", "encoder.dtype=float32"]), local=not through_ray, at=at, clock=tiny.CLOCK)
    print("\n".join(steps))


main()
