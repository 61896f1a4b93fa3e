"""`build --dry-run`: what the sources hold and how long a build would take, from a sample, writing nothing.

The root is only read, and need not exist.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from rich import box
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape
from rich.table import Table as Grid

from ray_profile.config import Config
from ray_profile.errors import RayProfileError
from ray_profile.pipelines.estimate import Estimate, estimate
from ray_profile.pipelines.run import Run, listed, resolved
from ray_profile.schema import REASONS, SCHEMA_VERSION
from ray_profile.sources.files import SourceFile
from ray_profile.sources.quality import SourceQuality, describe
from ray_profile.sources.redact import fingerprint
from ray_profile.sources.sample import Sample, draw
from ray_profile.store.plan import Plan
from ray_profile.store.root import Root, RootFacts
from ray_profile.store.tables import Table
from ray_profile.store.waves import Writer, ignore_step

NAMED = 5  # new files of a source that the report names


@dataclass(frozen=True)
class DryRun:
    """`sources` describe all files, `estimate` is for the new ones. `new` has every new file by source; `problems` are
    what would stop a build."""

    root: str
    root_exists: bool
    sources: list[SourceQuality]
    estimate: Estimate
    new: Mapping[str, tuple[SourceFile, ...]]
    files_folded: int = 0
    files_rejected_before: int = 0
    problems: tuple[str, ...] = ()


def dry_run(config: Config, clock: datetime, sample_rows: int = 20_000) -> DryRun:
    """Sample every source, measure this machine on the samples, and say what a build at `clock` (aware) would do.

    What would stop a build is listed in `problems`. Raises `ConfigError` for a key that cannot be read.
    """
    key = config.privacy.key()
    problems: list[str] = []
    files = {name: _listed(config, name, problems) for name in config.sources}
    plan, exists = _plan(config, key, clock, problems)
    new = _new(files, plan)
    drawn: dict[str, Sample] = {}
    for name, source in config.sources.items():
        if files[name]:
            try:
                drawn[name] = draw(source, files[name], clock, key, sample_rows)
            except RayProfileError as error:
                problems.append(str(error))
    qualities = [describe(name, config.sources[name], files[name], sample) for name, sample in drawn.items()]
    problems += [_too_bad(each) for each in qualities if each.too_bad]
    shares = {each.name: sum(file.size for file in new[each.name]) / max(each.bytes, 1) for each in qualities}
    measured = estimate(config, clock, key, drawn, shares, problems)
    return DryRun(
        config.root,
        exists,
        qualities,
        measured,
        new,
        len(plan.folded) if plan else 0,
        len(plan.rejected) if plan else 0,
        tuple(dict.fromkeys(problems)),
    )


def _listed(config: Config, name: str, problems: list[str]) -> list[SourceFile]:
    try:
        found = listed(config, name)
    except RayProfileError as error:
        problems.append(str(error))
        return []
    if not found:
        problems.append(f"[sources.{name}] paths match no file: {', '.join(config.sources[name].paths)}")
    return found


def _plan(config: Config, key: bytes | None, clock: datetime, problems: list[str]) -> tuple[Plan | None, bool]:
    """The plan that a build would make, where there is a root to plan on; and whether there is one."""
    state = config.state
    facts = RootFacts(SCHEMA_VERSION, state.buckets, state.period, state.half_life_days, fingerprint(key))
    exists = False
    try:
        if not Root.exists(config.root):
            return None, False
        exists = True
        root = Root.open(config.root, facts)
        table = Table(root, "states")
        if table.open() is None:
            return None, True
        return Run.on(resolved(config), root, Writer(root, table, ignore_step), ignore_step, clock).plan(), True
    except RayProfileError as error:
        problems.append(str(error))
        return None, exists


def _new(files: Mapping[str, Sequence[SourceFile]], plan: Plan | None) -> dict[str, tuple[SourceFile, ...]]:
    if plan is None:
        return {name: tuple(each) for name, each in files.items()}
    planned = {(file.source, file.path) for wave in plan.waves for file in wave.files}
    return {name: tuple(f for f in each if (f.source, f.path) in planned) for name, each in files.items()}


def _too_bad(each: SourceQuality) -> str:
    why = "; ".join(f"{found.reason} ({REASONS[found.reason]}): {found.rows:,} rows" for found in each.quarantined)
    return (
        f"[sources.{each.name}] {each.quarantined_share:.2%} of the sample's rows are bad, and max_quarantine is "
        f"{each.max_quarantine:.2%}: {why}. Mend the files, correct [sources.{each.name}], or raise max_quarantine."
    )


def print_report(console: Console, found: DryRun) -> None:
    """Show a dry run to people."""
    for each in found.sources:
        new = found.new[each.name]
        _print_source(console, each, len(new))
        if found.root_exists and new:
            more = f" and {len(new) - NAMED:,} more" if len(new) > NAMED else ""
            console.print(f"  new: {escape(', '.join(file.path for file in new[:NAMED]))}{more}")
        console.print()
    _print_estimate(console, found)
    for problem in found.problems:
        console.print(f"[bold red]A build would stop:[/] {escape(problem)}")
    where = "exists" if found.root_exists else "does not exist yet; `ray-profile build` makes it"
    console.print(f"The root {escape(found.root)} {where}. Nothing was written.")


def _print_source(console: Console, each: SourceQuality, new: int) -> None:
    about = "" if each.rows_exact else "about "
    console.print(
        f"[bold]{escape(each.name)}[/] ({escape(each.format)}{', a catalogue' if each.catalogue else ''}): "
        f"{_count(each.files, 'file')}, {new:,} of them new, {decimal(each.bytes)}, {about}{each.rows:,} rows"
    )
    lines = [f"{each.rows_sampled:,} rows of {_count(each.files_sampled, 'file')} read"]
    if each.users:
        lines[0] += f"; {each.users:,} users and {each.items:,} items among them"
    if each.first and each.last:
        hours = f", {each.whole_day_share:.0%} of them without an hour" if each.whole_day_share else ""
        lines.append(f"times from {each.first:%Y-%m-%d %H:%M} to {each.last:%Y-%m-%d %H:%M} UTC{hours}")
    if each.kinds:
        lines.append("kinds: " + _shares(each.kinds))
    if each.text_chars:
        half, most, _, longest = each.text_chars
        what = "titles" if each.catalogue else "texts"
        spread = f"{half:,.0f} characters, nine tenths up to {most:,.0f}, the longest {longest:,.0f}"
        lines.append(f"{what}: {each.text_share:.0%} of rows; {spread}")
    if each.languages:
        lines.append("languages: " + _shares(each.languages))
    if each.anonymous_share:
        lines.append(f"{each.anonymous_share:.1%} of rows name no user: counted, not folded in")
    if each.repeated_share:
        what = "name an item again" if each.catalogue else "repeat an earlier one (events are kept, reviews are not)"
        lines.append(f"{each.repeated_share:.1%} of rows {what}")
    for line in lines:
        console.print(f"  {escape(line)}")
    _print_columns(console, each)
    for bad in each.quarantined:
        console.print(
            f"  [yellow]{bad.share:.2%} quarantined: {bad.reason}[/] ({escape(REASONS[bad.reason])}), "
            f"as row {bad.row:,} of {escape(bad.file)}: {escape(bad.raw or 'not shown')}"
        )
    for path, reason in each.rejected:
        console.print(f"  [red]cannot be read:[/] {escape(path)} {escape(reason)}")


def _print_columns(console: Console, each: SourceQuality) -> None:
    grid = Grid(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("column", "empty", "from", "to", "distinct"):
        grid.add_column(name, justify="left" if name == "column" else "right")
    for column in each.columns:
        distinct = "" if column.distinct is None else f"{column.distinct:,}"
        grid.add_row(column.name, f"{column.null_share:.1%}", _bound(column.low), _bound(column.high), distinct)
    if each.columns:
        console.print(grid)


def _print_estimate(console: Console, found: DryRun) -> None:
    measured = found.estimate
    grid = Grid(box=box.SIMPLE_HEAD, pad_edge=False, title="Time for the new files, one step after the other")
    for name in ("step", "amount", "rate", "time"):
        grid.add_column(name, justify="left" if name == "step" else "right")
    rows, tokens = f"{measured.rows:,} rows", f"{measured.tokens:,} tokens"
    grid.add_row("read and check", rows, f"{measured.read_rows_per_second:,.0f}/s", _span(measured.read_seconds))
    if measured.tokens:
        grid.add_row("encode", tokens, f"{measured.tokens_per_second:,.0f}/s", _span(measured.encode_seconds))
    grid.add_row("fold", rows, f"{measured.fold_rows_per_second:,.0f}/s", _span(measured.fold_seconds))
    grid.add_row("[bold]together[/]", "", "", f"[bold]{_span(measured.seconds)}[/]")
    console.print(grid)
    if measured.tokens:
        console.print(
            f"{measured.texts:,} texts and {measured.titles:,} titles of items, {measured.tokens_per_text:,.0f} tokens "
            f"each; {measured.unknown_share:.1%} of the texts' letters are unknown to the encoder."
        )
    if found.files_folded or found.files_rejected_before:
        rejected = f", {found.files_rejected_before:,} rejected before" if found.files_rejected_before else ""
        console.print(f"Left alone: {_count(found.files_folded, 'file')} folded in already{rejected}.")
    console.print("Assumed: " + "; ".join(measured.assumptions) + ".")


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _shares(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {share:.1%}" for name, share in list(shares.items())[:6])


def _bound(value: float | datetime | None) -> str:
    if value is None:
        return ""
    return f"{value:%Y-%m-%d}" if isinstance(value, datetime) else f"{value:,.6g}"


def _span(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
