"""What a person sees on a terminal: progress, the summary of a run, a profile, a root's state."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

if TYPE_CHECKING:
    from ray_profile.pipelines.build import Summary

PLAIN_EVERY_SECONDS = 5.0
WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
BARS = " ▁▂▃▄▅▆▇█"
STANCES = {"liked": "[green]liked[/]", "disliked": "[red]disliked[/]", "mixed": "[yellow]mixed[/]", None: ""}


def console(stderr: bool = False) -> Console:
    """Where a command prints; wide enough for tables where the output is no terminal."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else 120, highlight=False)


@contextmanager
def progress() -> Iterator[Callable[[str, float, float], None]]:
    """A function to tell of progress: a bar with the remaining time, or plain lines where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield _plain_progress()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(show_speed=True),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console(stderr=True), transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def tell(stage: str, done: float, total: float) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield tell


def _plain_progress() -> Callable[[str, float, float], None]:
    began: dict[str, float] = {}
    said: dict[str, float] = {}

    def tell(stage: str, done: float, total: float) -> None:
        now = time.monotonic()
        began.setdefault(stage, now)
        if done < total and now - said.get(stage, 0.0) < PLAIN_EVERY_SECONDS:
            return
        said[stage] = now
        share = done / total if total else 1.0
        left = (now - began[stage]) * (1 - share) / share if share else float("nan")
        remaining = f", about {left:.0f} s left" if 0 < share < 1 else ""
        sys.stderr.write(f"{stage}: {share:.0%}{remaining}\n")

    return tell


def summary(done: Summary) -> None:
    """The one table that a build ends with."""
    out, report = console(), done.report
    if not done.waves and not done.profiles_written:
        out.print(f"nothing new: {done.files_folded_before} files are folded in already ({done.seconds:.1f} s)")
        _rejected(out, done)
        return
    table = Table(box=box.SIMPLE_HEAD, title="build", title_justify="left")
    table.add_column("what")
    table.add_column("count", justify="right")
    table.add_row("rows read", f"{report.rows_read:,}")
    table.add_row("  folded", f"{report.rows_folded:,}")
    table.add_row("  anonymous (no user)", f"{report.rows_anonymous:,}")
    table.add_row("  quarantined", f"{report.rows_quarantined:,}")
    for reason, rows in sorted(report.quarantined.items()):
        table.add_row(f"    {reason}", f"{rows:,}")
    table.add_row("files rejected whole", f"{len(done.rejected):,}")
    table.add_row("users with a profile", f"{done.users:,}")
    table.add_row("profiles written", f"{done.profiles_written:,} ({done.profiles_new:,} new)")
    table.add_row("waves", f"{done.waves:,}")
    table.add_row("profiles version", f"{done.profiles_version}")
    if report.texts:
        rate = report.tokens / report.seconds["encode"] if report.seconds.get("encode") else 0.0
        table.add_row("texts encoded", f"{report.texts:,} ({report.truncated:,} cut at the encoder's max_length)")
        table.add_row("tokens", f"{report.tokens:,} ({rate:,.0f} a second of encoding)")
    for stage, seconds in done.stages.items():
        inside = {name: s for name, s in report.seconds.items() if stage == "fold" and s >= 0.05}
        detail = " (in workers: " + ", ".join(f"{n} {s:.1f}" for n, s in inside.items()) + ")" if inside else ""
        table.add_row(f"seconds: {stage}{detail}", f"{seconds:.1f}")
    table.add_row("seconds", f"{done.seconds:.1f}")
    out.print(table)
    _rejected(out, done)
    if not done.keyed:
        out.print(
            "user ids are stored as they are: no pseudonym key is named under \\[privacy] (key_file or key_env)",
            style="yellow",
        )


def _rejected(out: Console, done: Summary) -> None:
    for file in done.rejected:
        out.print(f"rejected whole: {escape(file.path)}: {escape(file.reason)}", style="yellow")
    for file in done.rejected_before:
        out.print(f"rejected before, unchanged since: {escape(file.path)}: {escape(file.reason)}", style="yellow")


def status(found: dict[str, Any]) -> None:
    """What a root holds."""
    table = Table(box=None, show_header=False)
    for name, value in found.items():
        table.add_row(name.replace("_", " "), f"{value:,}" if isinstance(value, int) else str(value))
    console().print(table)


def profile(found: dict[str, Any], user: str) -> None:
    """A profile for people: what it says, and the rows that it says it from."""
    out = console()
    out.print(f"[bold]{escape(user)}[/]  as of {_day(found['as_of'])}")
    first, last = _day(found["first_ts"]), _day(found["last_ts"])
    kinds = ", ".join(f"{each['n']:,} x {each['kind']}" for each in found["kinds"])
    out.print(f"{found['rows']:,} rows from {first} to {last} ({found['recency_days']:.0f} days before): {kinds}")
    _feelings(out, found)
    _tags(out, found)
    _words(out, found)
    _habits(out, found)
    _affinities(out, found)
    _latest(out, found)


def _feelings(out: Console, found: dict[str, Any]) -> None:
    felt = found["sentiment"]
    if felt is None:
        return
    stars = f", mean rating {found['mean_rating']:.1f}" if found["mean_rating"] is not None else ""
    trend = f", trend {felt['trend']:+.2f} per 30 days" if felt["trend"] is not None else ""
    out.print(
        f"\n[bold]feels[/]  {felt['positive']:.0%} positive, {felt['neutral']:.0%} neutral, {felt['negative']:.0%} "
        f"negative in {felt['n']:,} reviews (from {felt['source']}){stars}{trend}"
    )


def _tags(out: Console, found: dict[str, Any], most: int = 12) -> None:
    if not found["tags"]:
        return
    table = Table(box=box.SIMPLE_HEAD, title="likes", title_justify="left")
    for name, justify in (("tag", "left"), ("share", "right"), ("rows", "right"), ("items", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for name in ("", "last", "from", "because"):
        table.add_column(name, overflow="fold")
    for tag in found["tags"][:most]:
        because = "\n".join(_because(each) for each in (tag["evidence"] or [])[:2])
        weak = " [dim](weak)[/]" if tag["weak"] else ""
        table.add_row(
            escape(tag["tag"]) + weak,
            f"{tag['share']:.0%}",
            f"{tag['support']} of {tag['of']}",
            f"{tag['items']}",
            STANCES[tag["stance"]],
            _day(tag["last"]),
            tag["source"],
            escape(because),
        )
    out.print()
    out.print(table)


def _words(out: Console, found: dict[str, Any]) -> None:
    for title, name, field in (("words", "keywords", "term"), ("names", "entities", "entity")):
        if found[name]:
            said = ", ".join(f"{_plain(each[field])} x {each['n']}" for each in found[name][:12])
            out.print(f"[bold]{title}[/]  {escape(said)}")
    if found["languages"]:
        spoken = ", ".join(f"{each['language']} {each['share']:.0%}" for each in found["languages"][:4])
        out.print(f"[bold]languages[/]  {spoken}")


def _habits(out: Console, found: dict[str, Any]) -> None:
    if found["frequency"]:
        basket = f", {found['basket_size']:.1f} pieces an order" if found["basket_size"] is not None else ""
        back = f", {found['returns']['n']} returns" if found["returns"]["n"] else ""
        rank = found["price_rank"]
        level = "" if rank is None else f", dearer than {rank:.0%} of what the shop sells of its kind"
        out.print(f"[bold]buys[/]  {found['frequency']:.0f} orders, {found['monetary']:,.2f} net{basket}{back}{level}")
    if found["hours"]:
        out.print(f"[bold]hours[/]  0h {_spark(found['hours'])} 23h, {found['sessions']} sessions")
    if found["weekdays"]:
        counts = zip(WEEKDAYS, found["weekdays"], strict=True)
        out.print("[bold]weekdays[/]  " + "  ".join(f"{day} {count:.0f}" for day, count in counts))
    for name, field in (("places", "place"), ("devices", "device")):
        if found[name]:
            seen = ", ".join(f"{each[field]} {each['share']:.0%}" for each in found[name][:5])
            out.print(f"[bold]{name}[/]  {escape(seen)}")
    if found["searches"]:
        asked = ", ".join(f"{each['query']} ({each['n']})" for each in found["searches"][:8])
        out.print(f"[bold]searches[/]  {escape(asked)}")


def _affinities(out: Console, found: dict[str, Any]) -> None:
    for name, field in (("categories", "category"), ("brands", "brand")):
        if found[name]:
            liked = ", ".join(f"{each[field]} {each['share']:.0%}" for each in found[name][:8])
            out.print(f"[bold]{name}[/]  {escape(liked)}")


def _latest(out: Console, found: dict[str, Any]) -> None:
    if found["last_items"]:
        last = ", ".join(f"{each['item_id']} ({each['kind']})" for each in found["last_items"][:5])
        out.print(f"[bold]last[/]  {escape(last)}")


def _spark(counts: list[float]) -> str:
    top = max(counts) or 1.0
    return "".join(BARS[round(count / top * (len(BARS) - 1))] for count in counts)


def _because(row: dict[str, Any]) -> str:
    told = f"“{_short(row['snippet'])}”" if row["snippet"] else row["item_id"] or ""
    return f"{row['kind']} {told} ({row['id']})"


def _plain(name: str) -> str:
    kind, _, bare = name.partition(":")
    return f"{bare} ({kind})" if kind in ("brand", "category", "attribute") else name


def _short(text: str, most: int = 70) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 1] + "…"


def _day(moment: datetime | None) -> str:
    return "" if moment is None else f"{moment:%Y-%m-%d}"
