"""A checkpoint in parts: every worker writes what it keeps of each trained parameter, and any number of workers reads.

DeepSpeed's own checkpoints belong to as many workers as wrote them, and what its converter (0.19.8) makes of them is no
state to go on from: ZeRO 3 takes the first group's learning rate and weight decay for all groups and counts a step once
for each of them, ZeRO 1 and 2 fail on a worker that has no element of a group, as of three biases among four workers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ray_profile.errors import BuildFailed

WEIGHT = "weight"
MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's, by its own names
_FILES = "part-*-of-*.safetensors"


@dataclass(frozen=True)
class Part:
    """Neighbouring elements of one parameter, which is flat here: the weights (float32) and their moments."""

    name: str  # of the parameter
    first: int  # place in the parameter of the part's first element
    values: dict[str, torch.Tensor]  # `WEIGHT` and `MOMENTS`, each (elements,): views, so that they can be filled

    @property
    def size(self) -> int:
        """Elements."""
        return len(self.values[WEIGHT])


def write(folder: Path, worker: int, workers: int, step: int, parts: Iterable[Part]) -> None:
    """Keep the parts of one of so many workers after `step` steps."""
    tensors: dict[str, torch.Tensor] = {}
    firsts: dict[str, int] = {}
    for part in parts:
        firsts[part.name] = part.first
        tensors |= {f"{kind}/{part.name}": value.to("cpu", copy=True) for kind, value in part.values.items()}
    said = {"step": str(step), "firsts": json.dumps(firsts)}
    save_file(tensors, folder / f"part-{worker}-of-{workers}.safetensors", said)


def step_of(folder: Path) -> int:
    """How many steps had been taken. Raises `BuildFailed` where the part of a worker is missing: on every worker that
    reads, or those that lack nothing would wait for the others."""
    found = list(folder.glob(_FILES))
    wanted = int(found[0].stem.rsplit("-", 1)[1]) if found else 1
    if len(found) != wanted:
        raise BuildFailed(
            f"{folder} holds {len(found)} of the {wanted} files {_FILES} of a checkpoint, and training goes on from a "
            "whole one only; delete the run's folder under training/runs in the root, and the same command begins anew"
        )
    with safe_open(found[0], "pt") as file:
        return int(file.metadata()["step"])


def fill(folder: Path, parts: Iterable[Part]) -> None:
    """Copy into the parts what all workers wrote; only their own elements are read."""
    with ExitStack() as opened:
        files = [opened.enter_context(safe_open(path, "pt")) for path in folder.glob(_FILES)]
        told = [(file, json.loads(file.metadata()["firsts"])) for file in files]
        for part in parts:
            have = sum(_copied(file, firsts[part.name], part) for file, firsts in told if part.name in firsts)
            assert have == part.size, f"{have} of {part.size} elements of {part.name} from {part.first} are in {folder}"


def _copied(file: Any, begin: int, part: Part) -> int:
    """How many elements of a part a file had; `begin` is the place of its own first element."""
    end: int = begin + file.get_slice(f"{WEIGHT}/{part.name}").get_shape()[0]
    low, high = max(begin, part.first), min(end, part.first + part.size)
    if low >= high:
        return 0
    for kind, value in part.values.items():
        found = file.get_slice(f"{kind}/{part.name}")[low - begin : high - begin]
        value[low - part.first : high - part.first].copy_(found)
    return high - low
