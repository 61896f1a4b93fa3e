"""What a person sees at the end of `train` and `tune`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ray_profile.printing import plain
from ray_profile.train.report import compared, second

if TYPE_CHECKING:
    from ray_profile.pipelines.train import Summary
    from ray_profile.pipelines.tune import Tuned


def trained(done: Summary, out: Console) -> None:
    """How good the model is on people that training has not seen, what it is compared with, and how to use it."""
    if not done.trained:
        out.print("nothing new: the root has the model that these files and settings give")
    for objective in ("sentiment", "tags"):
        if objective in done.metrics:
            out.print(_table(objective, done.metrics[objective]))
    if done.trained:
        took = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in done.stages.items() if seconds >= 1)
        out.print(f"{done.steps:,} steps, {done.ended}; {took}")
    out.print(Text(f"model: {plain(done.address)}"))
    out.print(Text(f'use it in `ray-profile build` on a new root or on this one: encoder.model = "root:{done.name}"'))


def tuned(done: Tuned, out: Console) -> None:
    """The trials, best first, then the model that the best settings gave."""
    table = Table(*done.trials.columns, box=box.SIMPLE_HEAD, title="trials", title_justify="left")
    for row in done.trials.iter_rows():
        table.add_row(*(f"{cell:.4g}" if isinstance(cell, float) else plain(str(cell)) for cell in row))
    out.print(table)
    trained(done.summary, out)


def _table(objective: str, found: Mapping[str, Any]) -> Table:
    test = found["test"]
    rows = test.get("rows", 0)
    table = Table(box=box.SIMPLE_HEAD, title=f"{objective}: {rows:,} reviews of test users", title_justify="left")
    for name in ("", "macro-F1", second(test), "ours is better by (95 % interval)"):
        table.add_column(name, justify="left" if name in ("", "ours is better by (95 % interval)") else "right")
    for cells in compared(found):
        table.add_row(*map(Text, cells))
    return table
