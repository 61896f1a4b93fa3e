"""A first configuration from the files themselves: `ray-profile init`.

What a sample does not show is never invented: it stands in the file as a comment that says what is needed, and a guess
carries `# unsure: ...` beside it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import polars as pl

from ray_profile.config import Source
from ray_profile.errors import RayProfileError, SourceError
from ray_profile.sources.formats import CONTRACT, is_catalogue, layout
from ray_profile.sources.guess_columns import ColumnMap, Guessed, kinds_in, map_columns
from ray_profile.sources.guess_files import Group, group_files
from ray_profile.sources.guess_times import Times
from ray_profile.sources.naming import kind_of, normal
from ray_profile.sources.read import RANGE_BYTES
from ray_profile.sources.starter import bare_key, starter, toml

__all__ = ["Guess", "Guessed", "GuessedSource", "guess", "starter"]

_AMAZON_ID = re.compile(r"A[0-9A-Z]{9,}")
_OF_ITEMS = ("title", "item_title", "category", "categories", "brand", "price", "attributes")
_OFFSET = re.compile(r"([+-])(\d{2}):?00")
_CHINA = "Asia/Shanghai"
_TIANCHI_CODES = {"1": "view", "2": "favourite", "3": "cart", "4": "purchase"}


@dataclass(frozen=True)
class GuessedSource:
    """One source. `settings`, `columns` and `kinds` are its keys; `needed` is what must be filled in before it can be
    read (it is commented out then); `remarks` is what a person should know."""

    name: str
    files: int
    settings: Mapping[str, Guessed]
    columns: Mapping[str, Guessed] = field(default_factory=dict)
    kinds: Mapping[str, Guessed] = field(default_factory=dict)
    needed: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    def source(self) -> Source:
        """As the configuration has it. Meaningless where something is needed."""
        values = {name: guessed.value for name, guessed in self.settings.items()}
        columns = {name: guessed.value for name, guessed in self.columns.items()}
        kinds = {word: guessed.value for word, guessed in self.kinds.items() if guessed.value}
        return Source(**values, columns=columns, kinds=kinds)

    def unsure(self) -> dict[str, str]:
        """Key -> why its value may be wrong."""
        every = {
            **self.settings,
            **{f"columns.{key}": value for key, value in self.columns.items()},
            **{f"kinds.{key}": value for key, value in self.kinds.items()},
        }
        return {key: guessed.unsure for key, guessed in every.items() if guessed.unsure}


@dataclass(frozen=True)
class Guess:
    """What was found: sources, and files that are no source (each with the reason)."""

    sources: tuple[GuessedSource, ...]
    notes: tuple[str, ...]

    def warnings(self) -> list[str]:
        """What cannot be used as it is: sources that lack something, and files that are in none."""
        lacking = [
            f"[sources.{source.name}] is commented out, for it lacks {'; '.join(source.needed)}"
            for source in self.sources
            if source.needed
        ]
        return lacking + list(self.notes)

    def to_toml(self, root: str) -> str:
        """A configuration file; `config.parse` reads it."""
        lines = [
            "# Written by `ray-profile init` from a sample of the files. Check what is marked `unsure`, then see what",
            "# would happen with `ray-profile build --dry-run`. `ray-profile init` without files lists every key.",
            "",
            f"root = {toml(root)}  # folder or s3://BUCKET/PREFIX that holds all tables",
        ]
        for source in self.sources:
            lines += ["", *_section(source)]
        if self.notes:
            lines += ["", "# Files that are in no source:", *(f"#   {note}" for note in self.notes)]
        return "\n".join(lines) + "\n"


def guess(patterns: Sequence[str]) -> Guess:
    """Look into a sample of the files that the patterns name (folders, globs, s3://) and guess the sources.

    Raises `SourceError` where the patterns name no file, `StorageError` where the store refuses or does not answer.
    """
    groups, rejected = group_files(patterns)
    if not groups and not rejected:
        raise SourceError(f"{', '.join(patterns)}: no such file; name files, folders or globs, quoted for the shell")
    sources, notes = [], [str(error) for error in rejected]
    for group in groups:
        made = _source(group)
        if made is None:
            names = group.peeks[0].names
            among = f" among {', '.join(names[:8])}" if len(names) > 1 else ""  # one "name" may be a line of anything
            notes.append(f"{', '.join(group.paths)}: found no users, times, texts or items that are described{among}")
        else:
            sources.append(made)
    return Guess(tuple(sources), tuple(notes))


def _source(group: Group) -> GuessedSource | None:
    first = group.peeks[0]
    names = list(dict.fromkeys(name for each in group.peeks for name in each.names))
    frame = _sample(group)
    paths = {"paths": Guessed(list(group.paths))}
    known = _known_format(names, frame, first.header)
    made = map_columns(frame, first.header)
    if known is not None:
        zone = {}
        if known.value == "taobao":
            zone = {"timezone": Guessed(_CHINA, "Taobao's logs are in Chinese time; nothing in the file says so")}
        elif not known.value.endswith("-items"):
            zone = {"timezone": Guessed("UTC", "only decides which hour and weekday it was in the shop")}
        return GuessedSource(group.name, len(group.files), {"format": known, **paths, **zone})
    columns = _settled(made)
    if not {"user_id", "ts", "text", "rating"} & set(columns) and not _is_items(columns):
        return None
    settings = {"format": Guessed("columns"), **paths}
    needed: list[str] = []
    kinds: dict[str, Guessed] = {}
    if _is_items(columns):
        columns = _catalogue_columns(columns)
    else:
        kinds = _kinds(columns, frame)
        settings |= _kind(group, columns, kinds, needed)
        settings |= _time_settings(made.times)
        needed += _missing(columns, settings)
        columns = {key: value for key, value in columns.items() if key != "query"}
    if first.kind == "csv" and first.delimiter != "," and not (first.delimiter == "\t" and ".tsv" in first.file.path):
        settings["delimiter"] = Guessed(first.delimiter)
    largest = max(file.size for file in group.files)
    if first.kind == "csv" and largest > RANGE_BYTES and not _has_newlines(frame):
        made.remarks.append(
            "If no quoted field holds a newline, multiline = false lets these large files be read in parts."
        )
    ordered = {key: columns[key] for key in (*CONTRACT, *columns) if key in columns}
    found = GuessedSource(group.name, len(group.files), settings, ordered, kinds, tuple(needed), tuple(made.remarks))
    return found if needed else _tried(found, names, first.kind == "jsonl")


def _sample(group: Group) -> pl.DataFrame:
    """Rows of several files: one file may hold one user, or one month."""
    frames = [each.frame for each in group.peeks if len(each.frame)] or [group.peeks[0].frame]
    try:
        return pl.concat(frames, how="diagonal_relaxed")
    except pl.exceptions.PolarsError:
        return max(frames, key=len)


def _has_newlines(frame: pl.DataFrame) -> bool:
    return bool(frame.select(pl.any_horizontal(pl.col(pl.String).str.contains("\n", literal=True).any())).item())


def _tried(found: GuessedSource, names: Sequence[str], sparse: bool) -> GuessedSource | None:
    """What the reader itself says about the guess: better here than at the first build."""
    try:
        layout(found.source(), names, found.name, sparse=sparse)
    except RayProfileError as error:
        needed = (*found.needed, str(error))
        return GuessedSource(found.name, found.files, found.settings, found.columns, found.kinds, needed, found.remarks)
    return found


def _known_format(names: Sequence[str], frame: pl.DataFrame, header: bool) -> Guessed | None:
    """A built-in format that the columns (or, without a header, the values) give away."""
    has = set(names)
    if not header:
        return _headless_format(frame)
    if {"reviewerID", "asin", "overall", "unixReviewTime"} <= has:
        return Guessed("amazon-2018" if has & {"verified", "vote", "style"} else "amazon-2014")
    if {"user_id", "rating"} <= has and has & {"parent_asin", "asin"} and has & {"timestamp", "timestamp_ms"}:
        return Guessed("amazon-2023")
    if {"user_id", "item_id", "behavior_type", "item_category", "time"} <= has:
        return Guessed("taobao")
    if {"parent_asin", "title"} <= has and has & {"main_category", "store", "categories"} and "user_id" not in has:
        return Guessed("amazon-2023-items")
    if {"asin", "title"} <= has and has & {"imUrl", "salesRank", "main_cat", "also_buy", "tech1", "related"}:
        return Guessed("amazon-2018-items" if has & {"main_cat", "tech1", "also_buy"} else "amazon-2014-items")
    return None


def _headless_format(frame: pl.DataFrame) -> Guessed | None:
    values = [frame[name].drop_nulls() for name in frame.columns]
    if not len(frame) or frame.dtypes != [pl.String] * len(values):
        return None
    if len(values) == 5 and set(values[3].unique()) <= {"pv", "cart", "fav", "buy"}:
        return Guessed("taobao")
    if len(values) == 4 and values[3].str.contains(r"^\d{9,10}$").all():
        people = [bool(column.str.contains(f"^{_AMAZON_ID.pattern}$").all()) for column in values[:2]]
        if people[0] != people[1]:
            return Guessed("amazon-2014" if people[0] else "amazon-2018")
    return None


def _settled(made: ColumnMap) -> dict[str, Guessed]:
    columns = dict(made.columns)
    if "amount" in columns and "price" in columns:
        del columns["price" if columns["price"].unsure else "amount"]  # one says the other
    named = "item_id" in columns and not columns["item_id"].unsure
    if named and "text" in columns and not {"user_id", "ts", "rating", "item_title"} & set(columns):
        columns["item_title"] = Guessed(columns.pop("text").value, "an item's text, since no user and no time is here")
    return columns


def _is_items(columns: Mapping[str, Guessed]) -> bool:
    rows = {"user_id", "ts", "rating", "text", "kind", "query"}
    return "item_id" in columns and not rows & set(columns) and bool(set(_OF_ITEMS) & set(columns))


def _catalogue_columns(columns: Mapping[str, Guessed]) -> dict[str, Guessed]:
    kept = {key: value for key, value in columns.items() if key in ("item_id", *_OF_ITEMS)}
    if "item_title" in kept and "title" not in kept:
        kept["title"] = kept.pop("item_title")
    return kept


def _kinds(columns: Mapping[str, Guessed], frame: pl.DataFrame) -> dict[str, Guessed]:
    """The file's words for what a row is; an unknown one has an empty value, which is written as a comment."""
    if "kind" not in columns:
        return {}
    words = kinds_in(frame[columns["kind"].value])
    if words and set(words) <= set(_TIANCHI_CODES):
        why = "taken as Taobao's codes: 1 click, 2 collect, 3 cart, 4 buy"
        return {word: Guessed(_TIANCHI_CODES[word], why) for word in sorted(words)}
    return {
        word: Guessed(
            kind or "", "" if kind else "no kind is known by this word; its rows are quarantined until mapped"
        )
        for word, kind in words.items()
    }


def _kind(
    group: Group, columns: dict[str, Guessed], kinds: Mapping[str, Guessed], needed: list[str]
) -> dict[str, Guessed]:
    """What every row is, where no column says it."""
    if kinds:
        if "query" in columns and any(guessed.value == "search" for guessed in kinds.values()):
            columns.setdefault("text", columns["query"])
        return {}
    if "rating" in columns or "text" in columns:
        return {"kind": Guessed("review")}
    if "query" in columns and "item_id" not in columns:
        columns["text"] = columns["query"]
        return {"kind": Guessed("search")}
    if {"price", "amount", "quantity", "order_id"} & set(columns):
        return {"kind": Guessed("purchase")}
    words = [normal(word) for word in re.split(r"[^\w]+|_", group.name)]
    for word in words:
        kind = kind_of(word) or kind_of(word.removesuffix("s"))
        if kind:
            return {"kind": Guessed(kind, f"the files' name says {word!r}")}
    needed.append('kind = "view"  (or purchase, cart, favourite, search: what is a row of this file?)')
    return {}


def _missing(columns: Mapping[str, Guessed], settings: Mapping[str, Guessed]) -> Iterator[str]:
    if "user_id" not in columns:
        yield 'columns.user_id = "..."  (no column names the user; rows without one belong to no profile)'
    if "ts" not in columns:
        yield 'columns.ts = "..."  (no column holds the time; every row needs one)'
    kind = settings["kind"].value if "kind" in settings else ""
    if "item_id" not in columns and kind not in ("review", "search"):
        yield 'columns.item_id = "..."  (no column names the item; every event but a search needs one)'


def _time_settings(times: Times | None) -> dict[str, Guessed]:
    if times is None:
        return {}
    settings: dict[str, Guessed] = {}
    offset = _OFFSET.fullmatch(times.zone or "")
    if offset and int(offset.group(2)) <= 14:
        # POSIX turns the sign: Etc/GMT-8 is eight hours ahead of UTC.
        zone = (
            f"Etc/GMT{'-' if offset.group(1) == '+' else '+'}{int(offset.group(2))}" if int(offset.group(2)) else "UTC"
        )
        why = f"the times carry {times.zone}; name the shop's own zone for summer time"
        settings["timezone"] = Guessed(zone, why)
    elif times.zone is not None:
        settings["timezone"] = Guessed("UTC", "only decides which hour and weekday it was in the shop")
    else:
        settings["timezone"] = Guessed("UTC", "the times name no zone; set the shop's own")
    if times.format is not None:
        why = f"{times.rival} reads every time as well: is it day or month first?" if times.rival else ""
        settings["time_format"] = Guessed(times.format, why)
    if times.unit is not None:
        settings["time_unit"] = Guessed(times.unit)
    if times.whole_days:
        settings["whole_days"] = Guessed(True, "every time in the sample is midnight")
    return settings


def _section(source: GuessedSource) -> list[str]:
    """The lines of one source; all of them comments where something is needed."""
    head = f"sources.{bare_key(source.name)}"
    files = f"{source.files:,} file{'s' if source.files != 1 else ''}"
    lines = [f"[{head}]  # {files}"]
    lines += [_line(key, value) for key, value in source.settings.items()]
    if source.columns:
        lines += ["", f"[{head}.columns]", *(_line(key, value) for key, value in source.columns.items())]
    if source.kinds:
        lines += ["", f"[{head}.kinds]", *(_line(word, value) for word, value in source.kinds.items())]
    if source.needed:
        lines = [f"# {line}".rstrip() for line in lines]
        lines = ["# Not usable yet; remove the `# ` and add:", *(f"#   {need}" for need in source.needed), *lines]
    catalogue = not source.needed and is_catalogue(source.source())
    remarks = ["A catalogue: its rows are items.", *source.remarks] if catalogue else list(source.remarks)
    return [*(f"# {remark}" for remark in remarks), *lines]


def _line(key: str, guessed: Guessed) -> str:
    why = f"  # unsure: {guessed.unsure}" if guessed.unsure else ""
    if guessed.value == "":
        return f'# {bare_key(key)} = "..."{why}'
    return f"{bare_key(key)} = {toml(guessed.value)}{why}"
