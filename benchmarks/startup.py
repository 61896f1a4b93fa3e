"""The fixed cost of each command: what a person waits for before any real work.

    python benchmarks/startup.py [--full]

`--help`, `show`, a build that finds nothing new and a whole `build --local` of 1,000 reviews, each in a process of its
own, in turn with `python -c pass`, which no command can beat. Goals: `--help` under .3 s, `show` under 1 s, the build
under 10 s. The root is a local folder, the encoder the default.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import measuring
import polars as pl
from rich import box
from rich.console import Console
from rich.table import Table

REVIEWS = 1_000
GOALS = {"help": 0.3, "show": 1.0, "build 1,000 reviews": 10.0}  # seconds
REPEATS = {False: 5, True: 11}

#: Where a build's time goes before the first text is encoded.
PARTS = """
import time
began = time.perf_counter()
import torch
torch_imported = time.perf_counter()
from ray_profile.config import Encoder
from ray_profile.encode.text import TextEncoder
imported = time.perf_counter()
encoder = TextEncoder.load(Encoder())
import polars as pl
loaded = time.perf_counter()
encoder.encode(pl.Series(["a first text"]))
print(torch_imported - began, imported - torch_imported, loaded - imported, time.perf_counter() - loaded)
"""


def called(*command: str) -> None:
    """Run a command that must succeed."""
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def shop(data: Path, folder: Path) -> tuple[Path, str]:
    """A configuration over the first reviews, and a user among them."""
    reviews = pl.read_parquet(data / "amazon_musical" / "reviews.parquet").head(REVIEWS)
    reviews.write_parquet(folder / "reviews.parquet")
    config = folder / "ray_profile.toml"
    config.write_text(
        'root = "root"\n[sources.reviews]\nformat = "amazon-2014"\npaths = ["reviews.parquet"]\n', encoding="utf-8"
    )
    return config, str(reviews["reviewerID"][0])


def parts(repeats: int) -> dict[str, float]:
    """Median seconds of what stands before the first text: torch, our imports, the weights, the first batch."""
    runs = [
        [
            float(each)
            for each in subprocess.run(
                [sys.executable, "-c", PARTS], check=True, stdout=subprocess.PIPE, text=True
            ).stdout.split()
        ]
        for _ in range(repeats)
    ]
    names = ("import torch", "import the rest", "load the encoder", "first text")
    return {name: round(statistics.median(each), 3) for name, each in zip(names, zip(*runs, strict=True), strict=True)}


def main() -> None:
    arguments = measuring.arguments(__doc__ or "").parse_args()
    repeats = REPEATS[arguments.full]
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        config, user = shop(arguments.data, folder)
        build = ("-m", "ray_profile", "build", "--local", "--config", str(config))
        called(*build)
        other = ("--set", f"root={folder / 'other'}")

        def afresh() -> None:
            called(*build, *other)

        works: dict[str, Callable[[], None]] = {
            "python -c pass": lambda: called("-c", "pass"),
            "help": lambda: called("-m", "ray_profile", "--help"),
            "show": lambda: called("-m", "ray_profile", "show", user, "--config", str(config)),
            "build nothing new": lambda: called(*build),
        }
        seconds, _ = measuring.in_turn(works, repeats)
        seconds["build 1,000 reviews"] = []
        for _ in range(max(3, repeats // 2)):
            shutil.rmtree(folder / "other", ignore_errors=True)
            once, _ = measuring.in_turn({"build": afresh}, 1)
            seconds["build 1,000 reviews"] += once["build"]
        results = {name: measuring.summary(each) for name, each in seconds.items()}
        inside = parts(max(3, repeats // 2))
    least = results["python -c pass"]["median_seconds"]
    ratios = {f"{name}_over_python": results[name]["median_seconds"] / least for name in ("help", "show")}
    table = Table(box=box.SIMPLE_HEAD, title="seconds from the command to its end, median")
    for column in ("command", "seconds", "goal"):
        table.add_column(column, justify="left" if column == "command" else "right")
    for name, result in results.items():
        table.add_row(name, f"{result['median_seconds']:.2f}", f"{GOALS[name]:.1f}" if name in GOALS else "")
    for name, value in inside.items():
        table.add_row(f"  {name}", f"{value:.2f}", "")
    Console().print(table)
    body = {
        "what": "the fixed cost of each command",
        "machine": measuring.machine("torch", "polars", "transformers"),
        "goals_seconds": GOALS,
        "results": results,
        "before_the_first_text_seconds": inside,
    }
    measuring.finish("startup", body, ratios, arguments.out, arguments.full)


if __name__ == "__main__":
    main()
