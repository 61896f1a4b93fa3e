"""Publishes a model and kills itself: run by test_models.py in a process of its own.

python published.py ROOT FOLDER STEP    SIGKILL at the step called STEP; copyN: after the N-th file
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from ray_profile.store.models import publish
from ray_profile.store.root import Root


def main() -> None:
    address, folder, when = sys.argv[1:]
    replace, copied = Root.replace, 0

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def replace_and_die(root: Root, body: Any, *parts: str) -> None:
        nonlocal copied
        replace(root, body, *parts)
        copied += 1
        if when == f"copy{copied}":
            die()

    Root.replace = replace_and_die  # type: ignore[method-assign]
    publish(Root.bare(address), "enc", Path(folder), lambda step: die() if step == when else None)


main()
