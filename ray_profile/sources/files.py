"""Which files a source has: globs on this machine and on S3, one listing, no cache."""

from __future__ import annotations

import errno
import os
import re
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import Any

import fsspec

from ray_profile.config import Source
from ray_profile.errors import SourceError, StorageError
from ray_profile.remote import is_remote, refusal

#: Files that have bytes whatever they hold, so that an empty one is damaged. An empty text is merely not written yet.
NEVER_EMPTY = (".parquet", ".gz")

_MAGIC = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class SourceFile:
    """One file as it was listed: `tag` is the ETag on S3 and the modification time in nanoseconds on this machine."""

    source: str
    path: str  # absolute and without links, so that a file has one; or a full s3:// URL
    size: int  # bytes
    tag: str


def filesystem(path: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a path or URL, without listing caches, and the path as that file system writes it."""
    if is_remote(path):
        protocol = path.split("://", 1)[0]
        try:
            fs = fsspec.filesystem(protocol, use_listings_cache=False)
        except (ValueError, ImportError) as error:
            raise SourceError(f"{path}: no such storage {protocol!r} ({error}); use a folder or s3://") from error
        return fs, str(fs._strip_protocol(path))
    return fsspec.filesystem("file"), str(Path(path.removeprefix("file://")).expanduser().absolute())


def expand(name: str, source: Source) -> list[SourceFile]:
    """Every file that the source's paths name, sorted by path, each once; empty where nothing matches.

    `*`, `?` and `[..]` match inside one folder, `**` any number of folders, and a folder stands for all files in it.
    Hidden files are left out: a name that begins with `.`, or with `_` (as Spark's `_SUCCESS`), unless the path
    spells that beginning. So is what is no file: a link to nothing, a pipe.
    Raises `StorageError` where the store refuses, has no such bucket or does not answer.
    """
    found: dict[str, SourceFile] = {}
    for path in source.paths:
        for file in _expand_one(name, path):
            found[file.path] = file
    return [found[path] for path in sorted(found)]


def _expand_one(name: str, path: str) -> list[SourceFile]:
    fs, inner = filesystem(path)
    remote = is_remote(path)
    try:
        listed = _listed(fs, inner)
    except Exception as error:
        raise StorageError(refusal(path, "listed", error)) from error
    files = []
    for at, info in listed:
        if info["type"] == "directory" or (info.get("size") == 0 and str(info["name"]).endswith("/")):
            continue
        if remote:
            tag = str(info.get("ETag", info.get("LastModified", ""))).strip('"')
            files.append(SourceFile(name, str(fs.unstrip_protocol(at)), int(info["size"]), tag))
        else:
            stat = _stat(at)
            if stat is None:
                continue
            files.append(SourceFile(name, os.path.realpath(at), stat.st_size, str(stat.st_mtime_ns)))
    return files


def _stat(at: str) -> os.stat_result | None:
    """None for what is no file, or not any more: a link to nothing or to itself, a pipe, a folder behind a link."""
    try:
        found = Path(at).stat()
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise StorageError(refusal(at, "listed", error)) from error
    return found if S_ISREG(found.st_mode) else None


def _listed(fs: fsspec.AbstractFileSystem, inner: str) -> list[tuple[str, dict[str, Any]]]:
    """Path and info of what the pattern matches. Globbing by `find`, because fsspec's `glob` swallows refusals."""
    literal = not hasattr(fs, "call_s3") and fs.exists(inner)  # "report [1].csv" is a name, too
    if literal or _MAGIC.search(inner) is None:
        try:
            info = fs.info(inner)
        except FileNotFoundError:
            _insist_on_bucket(fs, inner)
            return []
        if info["type"] != "directory":
            return [(inner, info)]
        inner = inner.rstrip("/") + "/**"
    fixed = inner[: _MAGIC.search(inner).start()]  # type: ignore[union-attr]
    base, _, _ = fixed.rpartition("/")
    pattern = inner[len(base) + 1 :]
    depth = None if "**" in pattern else pattern.count("/") + 1
    try:
        found = fs.find(base or "/", maxdepth=depth, detail=True)
    except FileNotFoundError:
        found = {}
    if not found:
        _insist_on_bucket(fs, base)
    matches = _matcher(pattern)
    prefix = len(base.rstrip("/")) + 1
    return [(at, info) for at, info in found.items() if matches(at[prefix:])]


def _insist_on_bucket(fs: fsspec.AbstractFileSystem, inner: str) -> None:
    """An empty listing of S3 may mean that the bucket is absent or refused: ask for the bucket itself."""
    if hasattr(fs, "call_s3"):
        fs.call_s3("list_objects_v2", Bucket=inner.split("/", 1)[0], MaxKeys=1)


def _matcher(pattern: str) -> Any:
    parts = pattern.split("/")
    regex = re.compile(_glob_regex(parts))
    spelt = tuple(part[0] for part in parts if part[:1] in "._" and part)

    def matches(relative: str) -> bool:
        hidden = any(part[:1] in (".", "_") and part[:1] not in spelt for part in relative.split("/"))
        return not hidden and regex.fullmatch(relative) is not None

    return matches


def _glob_regex(parts: list[str]) -> str:
    pieces = []
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        if part == "**":
            pieces.append(".+" if last else "(?:[^/]+/)*")
            continue
        body = re.sub(r"\\\[!?[^\]]*?\\?\]", lambda m: _character_set(m.group()), re.escape(part))
        body = body.replace(r"\*", "[^/]*").replace(r"\?", "[^/]")
        pieces.append(body if last else body + "/")
    return "".join(pieces)


def _character_set(escaped: str) -> str:
    inside = re.sub(r"\\(.)", r"\1", escaped)[1:-1]
    negated = inside.startswith("!")
    return "[" + ("^" if negated else "") + inside.removeprefix("!").replace("\\", r"\\") + "]"
