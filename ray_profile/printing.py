"""What a person sees on a terminal: the summary of a run, a root's state, a profile."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from ray_profile.schema import REASONS

if TYPE_CHECKING:
    from ray_profile.pipelines.build import Summary

WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
BARS = ".▁▂▃▄▅▆▇█"
STANCES = {"liked": "green", "disliked": "red", "mixed": "yellow"}
PLURALS = {"review": "reviews", "search": "searches", "view": "views", "favourite": "favourites"}
PLURALS |= {"cart": "put in the cart", "purchase": "purchases", "return": "returns"}

LABEL_CELLS = 10
FACT_COLUMNS = (("share", 5), ("rows", 11), ("items", 6), ("stance", 8), ("last", 10), ("from", 10))
TAG_CELLS = 12  # at least; a longer tag is folded where the terminal is narrow
MAX_TAGS = 12
WIDE = 100  # cells from which an evidence id is printed whole

#: What a text can do to a terminal: control characters, and those that turn the direction of what follows.
_HARMFUL = dict.fromkeys((*range(32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A)), " ")


def console(stderr: bool = False) -> Console:
    """Where a command prints; wide enough for tables where the output is no terminal."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(file=stream, width=None if stream.isatty() else 120, highlight=False, emoji=False)


def plain(text: str) -> str:
    """The text on one line, without what could move a terminal's cursor or change its colours."""
    return " ".join(text.translate(_HARMFUL).split())


def summary(done: Summary, out: Console | None = None) -> None:
    """The one table that a build ends with."""
    out = out or console()
    if not done.waves and not done.profiles_written:
        out.print(f"nothing new: {done.files_folded_before:,} files are folded in already ({done.seconds:.1f} s)")
    else:
        table = Table(box=box.SIMPLE_HEAD, title="build", title_justify="left")
        table.add_column("what", no_wrap=True)
        table.add_column("count", justify="right", no_wrap=True)
        table.add_column("")
        for row in _summary_rows(done):
            table.add_row(*(Text(cell) for cell in row))
        out.print(table)
    for when, files in (("whole", done.rejected), ("before, unchanged since", done.rejected_before)):
        for file in files:
            out.print(Text(f"rejected {when}: {plain(file.path)}: {plain(file.reason)}"), style="yellow")
    for name, rows in done.nameless.items():
        text = f"[sources.{name}] none of the {rows:,} rows names a user: see what its columns map to user_id"
        out.print(Text(text), style="yellow")
    if done.waves and not done.keyed:
        out.print(
            Text("user ids are stored as they are: no pseudonym key is named under [privacy] (key_file or key_env)"),
            style="yellow",
        )


def _summary_rows(done: Summary) -> Iterator[tuple[str, str, str]]:
    report = done.report
    if done.waves:
        yield "rows read", f"{report.rows_read:,}", _counted(done.waves, "wave", "waves")
        yield "  folded", f"{report.rows_folded:,}", ""
        yield "  anonymous", f"{report.rows_anonymous:,}", "they name no user"
        yield "  quarantined", f"{report.rows_quarantined:,}", ""
        for reason, rows in sorted(report.quarantined.items()):
            yield f"    {reason}", f"{rows:,}", REASONS.get(reason, "")
        yield "files rejected whole", f"{len(done.rejected):,}", ""
    yield "users with a profile", f"{done.users:,}", f"version {done.profiles_version} of the table"
    new, changed = f"{done.profiles_new:,} new", f"{done.profiles_changed:,} changed"
    yield "profiles written", f"{done.profiles_written:,}", f"{new}, {changed}"
    if report.texts:
        rate = report.tokens / report.seconds["encode"] if report.seconds.get("encode") else 0.0
        yield "texts encoded", f"{report.texts:,}", f"{report.truncated:,} cut at the encoder's max_length"
        yield "tokens", f"{report.tokens:,}", f"{rate:,.0f} a second of encoding"
    for name, states in done.full.items():
        yield f"full: {name}", f"{states:,}", "states whose map is full: what it has no room for is counted together"
    yield "seconds", f"{done.seconds:.1f}", ""
    for stage, seconds in done.stages.items():
        inside = [f"{name} {s:.1f}" for name, s in sorted(report.seconds.items()) if stage == "fold" and s >= 0.05]
        yield f"  {stage}", f"{seconds:.1f}", f"in workers: {', '.join(inside)}" if inside else ""


def status(found: dict[str, Any]) -> None:
    """What a root holds."""
    grid = Table.grid(padding=(0, 2))
    for name, value in found.items():
        grid.add_row(Text(name.replace("_", " ")), Text(_said(value)))
    console().print(grid)


def _said(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return f"{value:,}" if isinstance(value, int) else plain(str(value))


def profile(found: dict[str, Any], user: str, out: Console | None = None) -> None:
    """A profile for people: what it says, and the rows that it says it from. What it cannot say stands last."""
    out = out or console()
    out.print(Text.assemble((plain(user), "bold"), f"  before {found['as_of']:%Y-%m-%d %H:%M} UTC"))
    missing: list[str] = []
    _section(out, "rows", _span(found), missing)
    _section(out, "feels", _feelings(found), missing)
    tags = found["tags"] or []
    _tags(out, "likes", [tag for tag in tags if tag["stance"] != "disliked"])
    _tags(out, "dislikes", [tag for tag in tags if tag["stance"] == "disliked"])
    if not tags:
        missing.append("likes")
    for label, parts in _parts(found):
        _section(out, label, parts, missing)
    if missing:
        out.print(_labelled("", [f"not enough data for {', '.join(missing)}"], out.width, "dim"))


def _section(out: Console, label: str, parts: Sequence[str], missing: list[str]) -> None:
    if parts:
        out.print(_labelled(label, parts, out.width))
    else:
        missing.append(label)


def _labelled(label: str, parts: Sequence[str], width: int, style: str = "") -> Table:
    """A label and its parts, joined by commas; a line ends between two parts wherever they fit on one."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(width=LABEL_CELLS, no_wrap=True, style="bold")
    grid.add_column(overflow="fold", style=style)
    grid.add_row(Text(label), Text("\n".join(_lines(parts, width - LABEL_CELLS - 3))))
    return grid


def _lines(parts: Sequence[str], cells: int) -> list[str]:
    lines: list[str] = []
    for at, part in enumerate(parts):
        piece = plain(part) + ("," if at + 1 < len(parts) else "")
        if lines and cell_len(lines[-1]) + 1 + cell_len(piece) <= cells:
            lines[-1] += " " + piece
        else:
            lines.append(piece)
    return lines


def _span(found: dict[str, Any]) -> list[str]:
    if not found["rows"]:
        return []
    days = _counted(round(found["recency_days"]), "day", "days")
    span = f"{found['rows']:,} from {_day(found['first_ts'])} to {_day(found['last_ts'])}, {days} before"
    return [span, *(_kind(each["kind"], each["n"]) for each in found["kinds"] or [])]


def _feelings(found: dict[str, Any]) -> list[str]:
    felt = found["sentiment"]
    if felt is None:
        return []
    shares = [f"{felt[name]:.0%} {name}" for name in ("positive", "neutral", "negative")]
    source = {"stars": "their stars", "probe": "their words", "mixed": "their stars and words"}
    source["model"] = "their words, as the trained model reads them"
    shares[-1] += f" in {_counted(felt['n'], 'review', 'reviews')} (by {source.get(felt['source'], felt['source'])})"
    if found["mean_rating"] is not None:
        shares.append(f"mean rating {found['mean_rating']:.1f} of 5")
    if felt["trend"] is not None:
        shares.append(f"trend {round(felt['trend'], 2) + 0.0:+.2f} per 30 days")
    return shares


def _tags(out: Console, label: str, tags: Sequence[dict[str, Any]]) -> None:
    """One line of facts a tag, and under it the two rows that speak for it most."""
    if not tags:
        return
    facts = sum(cells + 2 for _, cells in FACT_COLUMNS)
    longest = max(cell_len(plain(tag["tag"])) for tag in tags[:MAX_TAGS])
    wide = max(TAG_CELLS, min(longest, out.width - facts - 2))
    out.print()
    out.print(_facts([Text(label, style="bold"), *(Text(name, style="dim") for name, _ in FACT_COLUMNS)], wide))
    for tag in tags[:MAX_TAGS]:
        cells = (
            f"{tag['share']:.0%}",
            f"{tag['support']} of {tag['of']}",
            f"{tag['items']}{' weak' if tag['weak'] else ''}",
            tag["stance"] or "",
            _day(tag["last"]),
            # Only the model's score is a probability; a cosine would look like one.
            f"model {tag['score']:.0%}" if tag["source"] == "model" else tag["source"],
        )
        name = Text(plain(tag["tag"]), style="dim" if tag["weak"] else "")
        styled = [Text(cell, style=STANCES.get(cell, "")) for cell in cells]
        out.print(_facts([name, *styled], wide))
        for row in (tag["evidence"] or [])[:2]:
            out.print(Padding(_because(row, out.width - 4), (0, 0, 0, 4)), style="dim")
    if len(tags) > MAX_TAGS:
        out.print(f"  and {len(tags) - MAX_TAGS} more (--json has all of them)", style="dim")
    out.print()


def _facts(cells: Sequence[Text], wide: int) -> Table:
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(width=wide, overflow="fold")
    for name, width in FACT_COLUMNS:
        grid.add_column(width=width, justify="right" if name in ("share", "rows", "items") else "left")
    grid.add_row(*cells)
    return grid


def _because(row: dict[str, Any], cells: int) -> Text:
    """One row of evidence on one line: kind, what was said or which item, and its id (whole where there is room)."""
    name = plain(row["id"])
    name = name if cells + 4 >= WIDE or len(name) <= 12 else name[:8] + "…"
    told = Text(f"“{plain(row['snippet'])}”" if row["snippet"] else plain(row["item_id"] or ""))
    room = cells - cell_len(name) - len("favourite") - 4
    if cell_len(told.plain) > room:
        told.truncate(room - 1, overflow="ellipsis")
        told.append("”" if row["snippet"] else "")
    return Text.assemble(f"{row['kind']:<9}  ", told, f"  {name}")


def _parts(found: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Label and parts of every section below the tags."""
    yield "words", _counts(found["keywords"], "term")
    named = [{"entity": _entity(each["entity"]), "n": each["n"]} for each in found["entities"] or []]
    yield "names", _counts(named, "entity")
    yield "languages", _shares(found["languages"], "language", 4)
    yield "buys", _buys(found)
    hours = found["hours"] or []
    yield "hours", [f"0h {_spark(hours)} 23h in the shop's time zone"] if any(hours) else []
    yield "sessions", _sessions(found)
    days = found["weekdays"] or []
    counts = [f"{day} {count:.0f}" for day, count in zip(WEEKDAYS, days, strict=True)] if any(days) else []
    yield "weekdays", counts
    for label, field in (("places", "place"), ("devices", "device")):
        yield label, _shares(found[label], field, 5)
    yield "searches", _counts(found["searches"], "query")
    for label, field in (("categories", "category"), ("brands", "brand")):
        yield label, _shares(found[label], field, 8)
    yield "last items", [f"{each['item_id']} ({each['kind']})" for each in (found["last_items"] or [])[:5]]


def _buys(found: dict[str, Any]) -> list[str]:
    back = found["returns"] or {"n": 0}
    if not found["frequency"] and not back["n"]:
        return []
    parts = [_counted(round(found["frequency"] or 0), "order", "orders"), f"{found['monetary'] or 0:,.2f} net"]
    if found["basket_size"] is not None:
        parts.append(f"{found['basket_size']:.1f} pieces an order")
    if back["n"]:
        parts.append(_counted(back["n"], "return", "returns"))
    if found["price_rank"] is not None:
        parts.append(f"dearer than {found['price_rank']:.0%} of what the shop sells of its kind")
    return parts


def _sessions(found: dict[str, Any]) -> list[str]:
    minutes = found["session_minutes"]
    mean = f" of {minutes:.0f} minutes on average" if minutes is not None and minutes >= 0.5 else ""
    return [_counted(found["sessions"], "session", "sessions") + mean] if found["sessions"] else []


def _counts(entries: Iterable[dict[str, Any]] | None, field: str, most: int = 12) -> list[str]:
    return [f"{each[field]} x {each['n']}" for each in list(entries or [])[:most]]


def _shares(entries: Iterable[dict[str, Any]] | None, field: str, most: int) -> list[str]:
    return [f"{each[field]} {each['share']:.0%}" for each in list(entries or [])[:most]]


def _spark(counts: Sequence[float]) -> str:
    top = max(counts) or 1.0
    return "".join(BARS[round(count / top * (len(BARS) - 1))] for count in counts)


def _entity(name: str) -> str:
    kind, _, bare = name.partition(":")
    return f"{bare} ({kind})" if kind in ("brand", "category", "attribute") else name


def _kind(kind: str, n: int) -> str:
    return f"{n:,} {kind if n == 1 and kind != 'cart' else PLURALS.get(kind, kind)}"


def _counted(n: int, one: str, many: str) -> str:
    return f"{n:,} {one if n == 1 else many}"


def _day(moment: datetime | None) -> str:
    return "" if moment is None else f"{moment:%Y-%m-%d}"
