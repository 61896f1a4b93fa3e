"""One new file in a hundred: folded in by a second build, against building everything anew.

    python benchmarks/increment.py [--full] [--engine local|ray] [--only reviews|events]

Two corpora of a hundred files each, newest last: *reviews* (real texts, where encoding is most of the work) and
*events* (made up, Zipf 1.1, where it is none). Ours folds the last file into a root that holds the other 99; the peer
builds a new root of all hundred. Start-up (the encoder's loading and Ray's start) is taken off both.

The increment's states must equal the rebuild's, and its profiles must equal those fused anew from the rebuild's states
with the same statistics version: untouched users keep the statistics that they were fused with.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import corpus
import measuring
import polars as pl
from rich import box
from rich.console import Console
from rich.table import Table as Printed

from ray_profile.config import Config, parse
from ray_profile.encode.text import TextEncoder
from ray_profile.pipelines import fusing, tables
from ray_profile.pipelines.build import Summary, build
from ray_profile.profile.facet import FuseContext
from ray_profile.profile.fuse import fuse
from ray_profile.store.root import Root
from ray_profile.store.tables import Table

sys.path.insert(0, str(measuring.HERE.parent / "tests"))
from equal import assert_equal_frames, profiles_of, states_of

WIDTH = 384  # of the default encoder
CLOCK = datetime(2025, 7, 2, tzinfo=UTC)
FILES = 100
COMPARED_USERS = 3_000  # beside all touched ones: comparing field by field is slow
SIZES = {  # rows and users
    ("reviews", False): (1_000, 350),
    ("reviews", True): (20_000, 8_000),
    ("events", False): (200_000, 20_000),
    ("events", True): (1_500_000, 200_000),
}


@dataclass
class Run:
    """One build: its summary, and the seconds of it that loading encoders took."""

    summary: Summary
    loading: float

    @property
    def seconds(self) -> float:
        """Wall seconds beyond start-up."""
        return self.summary.seconds - self.summary.stages.get("start", 0.0) - self.loading

    @property
    def fusing(self) -> float:
        return self.summary.stages["fuse"]


@dataclass
class Corpus:
    """The files of a corpus, and a root that holds all but the last one."""

    name: str
    folder: Path
    engine: str
    runs: dict[str, list[Run]] = field(default_factory=lambda: {"increment": [], "rebuild": []})

    def config(self, root: str) -> Config:
        shape = corpus.REVIEWS_SOURCE if self.name == "reviews" else corpus.EVENTS_SOURCE
        source = {**shape, "paths": [str(self.folder / "files" / "*.parquet")]}
        return parse({"root": str(self.folder / root), "sources": {self.name: source}})

    def write(self, rows: int, users: int, data: Path) -> None:
        """Write the files and build the root `base` without the last one."""
        if self.name == "reviews":
            last = corpus.write_reviews(self.folder / "files", data, rows, users, FILES)[-1]
        else:
            last = corpus.write_events(self.folder / "files", rows, users, FILES)[-1]
        hidden = last.rename(self.folder / "hidden.parquet")
        self.build("base")
        hidden.rename(last)

    def build(self, root: str) -> Run:
        with loading() as spent:
            summary = build(self.config(root), local=self.engine == "local", clock=CLOCK)
        return Run(summary, spent[0])

    def increment(self) -> Run:
        shutil.rmtree(self.folder / "increment", ignore_errors=True)
        shutil.copytree(self.folder / "base", self.folder / "increment")
        return self.build("increment")

    def rebuild(self) -> Run:
        shutil.rmtree(self.folder / "rebuild", ignore_errors=True)
        return self.build("rebuild")

    def works(self) -> Mapping[str, Callable[[], None]]:
        """Both ways, each noting its run."""
        return {
            "increment": lambda: self.runs["increment"].append(self.increment()),
            "rebuild": lambda: self.runs["rebuild"].append(self.rebuild()),
        }


@contextmanager
def loading() -> Iterator[list[float]]:
    """The seconds that this process spends loading text encoders, in a list of one."""
    spent, load = [0.0], TextEncoder.load

    def timed(*arguments: Any, **named: Any) -> TextEncoder:
        began = time.perf_counter()
        try:
            return load(*arguments, **named)
        finally:
            spent[0] += time.perf_counter() - began

    TextEncoder.load = timed  # type: ignore[method-assign]
    try:
        yield spent
    finally:
        TextEncoder.load = load  # type: ignore[method-assign]


def assert_right(made: Corpus) -> float:
    """The increment's tables equal the rebuild's, as the design defines it; the touched users' share of all rows."""
    ours, anew = made.folder / "increment", made.folder / "rebuild"
    before, after, states = profiles_of(made.folder / "base"), profiles_of(ours), states_of(anew, WIDTH)
    fresh = _users_of_last_wave(ours)
    others = after.join(fresh, on="user_id", how="anti").sort("user_id")
    assert others.equals(before.join(fresh, on="user_id", how="anti").sort("user_id")), "an untouched profile changed"
    some = pl.concat([fresh, others.select("user_id").sample(min(COMPARED_USERS, others.height), seed=0)])
    everybody = states_of(ours, WIDTH)
    mine = everybody.join(some, on="user_id", how="semi")
    states = states.join(some, on="user_id", how="semi")
    assert_equal_frames(mine, states)
    expected = fuse(states, _pinned(ours, after)).sort("user_id")
    assert_equal_frames(after.join(some, on="user_id", how="semi").select(expected.columns), expected)
    return float(mine.join(fresh, on="user_id", how="semi")["rows"].sum() / everybody["rows"].sum())


def _users_of_last_wave(address: Path) -> pl.DataFrame:
    root = Root.existing(str(address))
    handle = tables.states_table(root, WIDTH).open()
    assert handle is not None
    marks = tables.read_states(root, WIDTH, handle.files(), ["user_id", "wave_no"])
    return marks.filter(pl.col("wave_no") == marks["wave_no"].max()).select("user_id").unique()


def _pinned(address: Path, profiles: pl.DataFrame) -> FuseContext:
    """The statistics version, encoder and `as_of` that all of these profiles name."""
    root = Root.existing(str(address))
    as_of, version, encoder = profiles.select("as_of", "statistics", "encoder").unique().row(0)
    items = tables.items_table(root).open()
    files = tuple(items.files()) if items is not None else ()
    facts = root.facts
    corpus_ = fusing.read_statistics(root, version)
    catalogue = tables.load_items(root, files, WIDTH)
    return FuseContext(catalogue, as_of, corpus_, version, encoder, WIDTH, facts.period, facts.half_life_days)


def written(before: Path, after: Path, name: str) -> int:
    """Bytes of the files that a table has now and had not before."""
    sizes = [
        {file.path: file.size for file in handle.files()}
        if (handle := Table(Root.existing(str(root)), name).open())
        else {}
        for root in (before, after)
    ]
    return sum(size for path, size in sizes[1].items() if path not in sizes[0])


def measured(made: Corpus) -> dict[str, Any]:
    """A corpus's figures."""
    result: dict[str, Any] = {}
    for way, runs in made.runs.items():
        stages = runs[0].summary.stages
        result[way] = {
            **measuring.summary([run.seconds for run in runs]),
            "start_seconds": round(statistics.median(run.summary.seconds - run.seconds for run in runs), 3),
            "stages_seconds": {s: round(statistics.median(r.summary.stages[s] for r in runs), 3) for s in stages},
            "rows": runs[-1].summary.report.rows_read,
            "profiles_fused": runs[-1].summary.profiles_written,
            "users": runs[-1].summary.users,
        }
        for table in ("states", "profiles"):
            root = made.folder / way
            before = made.folder / "base" if way == "increment" else made.folder / "nothing"
            result[way][f"{table}_bytes_written"] = (
                written(before, root, table) if before.exists() else _size(root, table)
            )
    return result


def _size(root: Path, name: str) -> int:
    handle = Table(Root.existing(str(root)), name).open()
    assert handle is not None
    return sum(file.size for file in handle.files())


def ratios_of(result: Mapping[str, Any]) -> dict[str, float]:
    """What the floors bound."""
    share = {}
    for name, each in result.items():
        ours, peer = each["increment"], each["rebuild"]
        touched = ours["profiles_fused"] / ours["users"]
        fused = ours["stages_seconds"]["fuse"] / peer["stages_seconds"]["fuse"]
        share[f"{name}_time_of_a_rebuild"] = ours["median_seconds"] / peer["median_seconds"]
        share[f"{name}_touched_users"] = touched
        share[f"{name}_fuse_per_touched_user"] = fused / touched
        share[f"{name}_fuse_per_row_of_theirs"] = fused / each["touched_users_share_of_rows"]
    return share


def main() -> None:
    parser = measuring.arguments(__doc__.splitlines()[0])
    parser.add_argument("--engine", choices=("local", "ray"), default="local")
    parser.add_argument("--only", choices=("reviews", "events"))
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    result: dict[str, Any] = {}
    for name in [arguments.only] if arguments.only else ["reviews", "events"]:
        with tempfile.TemporaryDirectory(prefix="increment-") as folder:
            made = Corpus(name, Path(folder), arguments.engine)
            made.write(*SIZES[name, arguments.full], arguments.data)
            measuring.in_turn(made.works(), arguments.repeats)
            share = assert_right(made)
            result[name] = {"touched_users_share_of_rows": round(share, 4), **measured(made)}
    _print(result)
    body = {
        "what": "the newest of 100 files folded in by a second build, against a build of all 100 into a new root",
        "machine": measuring.machine("polars", "pyarrow", "deltalake", "torch"),
        "engine": arguments.engine,
        "corpora": result,
    }
    name = ["increment", *([arguments.only] if arguments.only else []), *(["ray"] if arguments.engine == "ray" else [])]
    measuring.finish("_".join(name), body, ratios_of(result), arguments.out, arguments.full)


def _print(result: Mapping[str, Any]) -> None:
    table = Printed(box=box.SIMPLE_HEAD)
    table.add_column("")
    for name in result:
        for way in ("increment", "rebuild"):
            table.add_column(f"{name}: {way}", justify="right")
    ways = [result[name][way] for name in result for way in ("increment", "rebuild")]
    for key in ("rows", "users", "profiles_fused", "states_bytes_written", "profiles_bytes_written"):
        table.add_row(key, *(f"{each[key]:,}" for each in ways))
    for key in ("median_seconds", "start_seconds"):
        table.add_row(key, *(f"{each[key]:.2f}" for each in ways))
    for stage in ways[0]["stages_seconds"]:
        table.add_row(f"stage {stage}", *(f"{each['stages_seconds'].get(stage, 0):.2f}" for each in ways))
    Console().print(table)
    for name, value in ratios_of(result).items():
        print(f"{name}: {value:.3f}")


if __name__ == "__main__":
    main()
