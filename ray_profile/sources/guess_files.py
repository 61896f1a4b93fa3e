"""Which files belong to one source: those of one folder, one kind and one beginning of the name."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from ray_profile.config import Source
from ray_profile.errors import FileRejected
from ray_profile.sources.files import SourceFile, expand
from ray_profile.sources.peek import Peek, peek

PEEKS = 8  # files of a group that are opened, evenly spread; all of them only where these differ
_FEW_NAMES = 4  # from so many single files of one shape on, names are taken for parts of one thing (jan.csv, feb.csv)

_VARIES = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f-]{18,}|\d+")
_SUFFIX = re.compile(r"((?:\.(?:parquet|jsonl?|ndjson|csv|tsv|txt|snappy|zstd|gz))+)$", re.IGNORECASE)
_SAYS_NOTHING = {"", "part", "parts", "data", "file", "export", "dump", "chunk", "shard"}


@dataclass(frozen=True)
class Group:
    """Files of one shape: what they are called, where they lie, and a look into some of them."""

    name: str
    paths: tuple[str, ...]
    files: tuple[SourceFile, ...]
    peeks: tuple[Peek, ...]


def group_files(patterns: Sequence[str]) -> tuple[list[Group], list[FileRejected]]:
    """The groups of all files that the patterns name, and the files that cannot be read as they are.

    Raises `StorageError` where the store refuses or does not answer.
    """
    found = {pattern: expand("files", Source(format="columns", paths=(pattern,))) for pattern in patterns}
    alike: dict[tuple[str, ...], list[SourceFile]] = defaultdict(list)
    for file in {file.path: file for files in found.values() for file in files}.values():
        alike[_place(file.path)].append(file)
    rejected: list[FileRejected] = []
    shapes: dict[tuple[object, ...], list[Peek]] = defaultdict(list)
    members: dict[tuple[object, ...], list[SourceFile]] = defaultdict(list)
    for place, files in alike.items():
        for shape, peeks, mine in _by_shape(sorted(files, key=lambda file: file.path), rejected):
            shapes[(*place, *shape)] += peeks
            members[(*place, *shape)] += mine
    for keys in _parts_of_one(members):
        for key in keys[1:]:
            shapes[keys[0]] += shapes.pop(key)
            members[keys[0]] += members.pop(key)
    named = _names({key: members[key] for key in sorted(members, key=str)})
    groups = [Group(named[key], _paths(members[key], found), tuple(members[key]), tuple(shapes[key])) for key in named]
    return groups, rejected


def _place(path: str) -> tuple[str, ...]:
    """The folder with all that varies taken out, the beginning of the name, and its ending."""
    parent, _, name = path.rpartition("/")
    suffix = _suffix(name)
    beginning = _VARIES.split(name.removesuffix(suffix), maxsplit=1)[0]
    return _VARIES.sub("#", parent), beginning, suffix.lower()


def _suffix(name: str) -> str:
    found = _SUFFIX.search(name)
    return found.group(1) if found else PurePosixPath(name).suffix


def _by_shape(
    files: Sequence[SourceFile], rejected: list[FileRejected]
) -> Iterable[tuple[tuple[object, ...], list[Peek], list[SourceFile]]]:
    chosen = [files[at * len(files) // PEEKS] for at in range(PEEKS)] if len(files) > PEEKS else list(files)
    peeks = [each for file in chosen if (each := _peek(file, rejected)) is not None]
    shapes = {_shape(each) for each in peeks}
    if len(chosen) < len(files) and len(shapes) > 1:
        seen = {file.path for file in chosen}
        more = (_peek(file, rejected) for file in files if file.path not in seen)
        peeks += [each for each in more if each is not None]
        shapes = {_shape(each) for each in peeks}
    bad = {error.path for error in rejected}
    for shape in sorted(shapes, key=str):
        mine = [each for each in peeks if _shape(each) == shape]
        whole = [file for file in files if file.path not in bad] if len(shapes) == 1 else [each.file for each in mine]
        yield shape, mine, whole


def _peek(file: SourceFile, rejected: list[FileRejected]) -> Peek | None:
    try:
        return peek(file)
    except FileRejected as error:
        rejected.append(error)
        return None


def _shape(each: Peek) -> tuple[object, ...]:
    # A JSON field that no row fills is absent, so that files of one kind differ in their columns.
    return (each.kind, () if each.kind == "jsonl" else each.names, each.delimiter, each.header)


def _parts_of_one(members: Mapping[tuple[object, ...], list[SourceFile]]) -> list[list[tuple[object, ...]]]:
    """Groups of one file each that differ in nothing but the name."""
    alike: dict[tuple[object, ...], list[tuple[object, ...]]] = defaultdict(list)
    for key, files in members.items():
        if len(files) == 1 and key[3] != "jsonl":
            alike[(key[0], *key[2:])].append(key)
    return [keys for keys in alike.values() if len(keys) >= _FEW_NAMES]


def _names(members: Mapping[tuple[object, ...], Sequence[SourceFile]]) -> dict[tuple[object, ...], str]:
    """A name for each group: the beginning of its files' names, else the folder's; with the folder where two agree."""
    own = {key: _own_name(key, files) for key, files in members.items()}
    out: dict[tuple[object, ...], str] = {}
    for key, name in own.items():
        if list(own.values()).count(name) > 1:
            folder = _word(_VARIES.sub("", PurePosixPath(str(key[0])).name))
            name = f"{folder}_{name}" if folder and folder != name else name
        number = 2
        unique = name
        while unique in out.values():
            unique, number = f"{name}_{number}", number + 1
        out[key] = unique
    return out


def _own_name(key: tuple[object, ...], files: Sequence[SourceFile]) -> str:
    stem = files[0].path.rpartition("/")[2]
    single = _word(stem.removesuffix(_suffix(stem))) if len(files) == 1 and str(key[1]) else ""
    beginning = _word(str(key[1]))
    name = beginning if beginning not in _SAYS_NOTHING else single
    parts = [part for part in reversed(str(key[0]).split("/")) if "=" not in part]  # dt=2024-01-01 is a value, no name
    usable = [folder for part in parts if (folder := _word(part.replace("#", ""))) not in _SAYS_NOTHING]
    return name if name not in _SAYS_NOTHING else next(iter(usable), "source")


def _word(text: str) -> str:
    return re.sub(r"[^\w]+", "_", text).strip("_").lower()


def _paths(files: Sequence[SourceFile], found: Mapping[str, Sequence[SourceFile]]) -> tuple[str, ...]:
    """Globs that name these files and, among those that exist, no others."""
    wanted = {file.path for file in files}
    for pattern, listed in found.items():
        if {file.path for file in listed} == wanted:
            return (pattern,)
    paths = sorted(wanted)
    if len(paths) == 1:
        return (paths[0],)
    for glob in _globs(paths):
        if {file.path for file in expand("files", Source(format="columns", paths=(glob,)))} == wanted:
            return (glob,)
    return tuple(paths)


def _globs(paths: Sequence[str]) -> Iterable[str]:
    """From wide, so that next month's file is found too, to narrow."""
    parents = [path.rpartition("/")[0] for path in paths]
    names = [path.rpartition("/")[2] for path in paths]
    folder = "/".join(
        parts[0] if len(set(parts)) == 1 else "*" for parts in zip(*(p.split("/") for p in parents), strict=True)
    ) if len({parent.count("/") for parent in parents}) == 1 else ""  # fmt: skip
    if not folder and not all(parent.startswith("/") for parent in parents):
        return
    suffix, beginning = _suffix(names[0]), _VARIES.split(names[0], maxsplit=1)[0].removesuffix(_suffix(names[0]))
    if all(name.startswith(beginning) for name in names):
        yield f"{folder}/{beginning}*{suffix}"
    yield f"{folder}/*{suffix}"
    common = 0
    while len({name[: common + 1] for name in names}) == 1 and common < len(names[0]):
        common += 1
    yield f"{folder}/{names[0][:common]}*{suffix}"
