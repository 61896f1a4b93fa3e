"""The serving index: every profile as ready JSON bytes beside its vector, one LMDB file a bucket, found in no time.

    index/files/<sha256>.mdb    a bucket's profiles; never changed, so versions share the buckets that did not change
    index/<version>.json        which files a version consists of; written last. The version is that of the profiles

In a file a user's id (the hash of a very long one) leads, behind "p", to the profile's JSON bytes followed by its
vector in little-endian float16, zero where it has none; and behind "w" to the JSON bytes of why it says so.
"""

from __future__ import annotations

import fcntl
import hashlib
import itertools
import json
import os
import secrets
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import lmdb
import numpy as np
import numpy.typing as npt
import polars as pl

from ray_profile.errors import RootError, StorageError
from ray_profile.store.root import Root, asking

FOLDER = "index"
FILES = f"{FOLDER}/files"
KEPT = 2  # versions: the newest, and the one that replicas still serve while they fetch it
GRACE = timedelta(hours=24)  # before a file that no version names is deleted: it may be a live run's
PROFILE, WHY = b"p", b"w"  # what a key leads to; in the order of their bytes
_LONGEST_KEY = 511  # bytes, of LMDB
_PAGE = 4096
_FLOAT16 = np.dtype("<f2")


@dataclass(frozen=True)
class Part:
    """One file of a version: its bucket, the SHA-256 and bytes of the file, and what it was made of."""

    bucket: int
    file: str
    size: int
    profiles: int
    made_of: tuple[str, ...]  # the data files of the profiles table


@dataclass(frozen=True)
class Manifest:
    """What a version consists of. `width` is the vectors' D."""

    version: int
    width: int
    buckets: int
    encoder: str | None  # the digest of the model whose vectors these are
    parts: tuple[Part, ...]
    made: float = 0.0  # Unix seconds; 0: before this was noted

    @property
    def profiles(self) -> int:
        """How many profiles it has."""
        return sum(part.profiles for part in self.parts)

    def to_json(self) -> dict[str, Any]:
        """As a JSON value."""
        return {**vars(self), "parts": [vars(part) for part in self.parts]}

    @classmethod
    def of(cls, found: Any, where: str) -> Manifest:
        """From `to_json`. Raises `RootError` for anything else."""
        try:
            parts = tuple(Part(**{**part, "made_of": tuple(part["made_of"])}) for part in found["parts"])
            return cls(**{**found, "parts": parts})
        except (TypeError, KeyError) as error:
            raise RootError(f"{where} is no manifest of an index ({error}); run `ray-profile index` again") from error


def write_part(bucket: int, profiles: pl.DataFrame, width: int, made_of: Sequence[str], root: Root) -> Part:
    """Write a bucket's profiles [user_id, json, why, vector (List(Float32), null: none)] under the root.

    The same profiles give the same file. Raises `StorageError` where the store fails.
    """
    with tempfile.TemporaryDirectory(prefix="index-") as made:
        path = Path(made) / "part.mdb"
        _write(path, profiles, width)
        digest = _digest(path)
        root.replace(path, *FILES.split("/"), f"{digest}.mdb")  # also where one is: it may be damaged
        return Part(bucket, digest, path.stat().st_size, profiles.height, tuple(made_of))


def publish(root: Root, manifest: Manifest) -> None:
    """Make a version visible, when all its files are there, and delete what no recent version needs."""
    root.replace_json(manifest.to_json(), FOLDER, _name(manifest.version))
    _clean(root)


def whole(root: Root, parts: Iterable[Part]) -> list[Part]:
    """Those parts whose files are under the root with the bytes that they had."""
    sizes = {Path(entry.path).stem: entry.size for entry in root.list(*FILES.split("/"))}
    return [part for part in parts if sizes.get(part.file) == part.size]


def current(root: Root) -> Manifest | None:
    """The newest version, or None where nothing was indexed."""
    versions = _versions(root)
    return read(root, versions[-1]) if versions else None


def read(root: Root, version: int) -> Manifest:
    """The manifest of a version. Raises `RootError` where there is none."""
    name = _name(version)
    found = root.read_json(FOLDER, name)
    if found is None:
        raise RootError(f"{root.address} has no index of version {version}; `ray-profile index` makes the newest")
    return Manifest.of(found, root.uri(FOLDER, name))


class Index:
    """A version that is opened: all its files are there, whole."""

    def __init__(self, manifest: Manifest, files: Mapping[int, _File]) -> None:
        self.manifest = manifest
        self._files = files

    @classmethod
    def open(cls, root: Root, manifest: Manifest, cache: Path) -> Index:
        """Open a version; files of an object store are first copied to `cache`, each once for all who share it.

        Raises `StorageError` where a file is missing or is not what the manifest says.
        """
        mine = cache / hashlib.sha256(root.address.encode()).hexdigest()[:16]
        opened = cls(manifest, {part.bucket: _opened(_local(root, part, mine)) for part in manifest.parts})
        if root.remote:
            _tidy(mine, manifest)
        return opened

    @property
    def version(self) -> int:
        """Of the profiles table."""
        return self.manifest.version

    def get(self, bucket: int, user: str) -> bytes | None:
        """A profile's JSON, or None where there is no such user."""
        value = self._value(bucket, PROFILE, user)
        return None if value is None else value[: len(value) - self._tail]

    def why(self, bucket: int, user: str) -> bytes | None:
        """The JSON of what a profile rests on, or None where there is no such user."""
        return self._value(bucket, WHY, user)

    def vector(self, bucket: int, user: str) -> npt.NDArray[np.float16] | None:
        """A profile's vector (D,), zero where it has none; None where there is no such user."""
        value = self._value(bucket, PROFILE, user)
        return None if value is None else np.frombuffer(value, _FLOAT16, offset=len(value) - self._tail)

    def vectors(self) -> Iterator[tuple[list[str], npt.NDArray[np.float16]]]:
        """Of each bucket the users that have a vector, in the order of their ids, and the vectors (N, D)."""
        for file in self._files.values():
            users, rows = [], []
            for value in file.values(PROFILE):
                row = np.frombuffer(value, _FLOAT16, offset=len(value) - self._tail)
                if row.any():
                    users.append(json.loads(value[: len(value) - self._tail])["user_id"])
                    rows.append(row)
            if rows:
                yield users, np.stack(rows)

    @property
    def _tail(self) -> int:
        return self.manifest.width * _FLOAT16.itemsize

    def _value(self, bucket: int, kind: bytes, user: str) -> bytes | None:
        file = self._files.get(bucket)
        return None if file is None else file.get(kind + _key(user))


class _File:
    """An open LMDB file. LMDB forbids a process to open one twice, so versions that share a file share this."""

    def __init__(self, path: Path) -> None:
        try:
            # Nobody writes: no locks. Read ahead would fetch neighbours of a profile that nobody asked for.
            self._env = lmdb.open(
                str(path), subdir=False, readonly=True, lock=False, readahead=False, max_spare_txns=64
            )
        except lmdb.Error as error:
            raise StorageError(
                f"{path} cannot be opened ({error}); delete it, and run `ray-profile index` where it is a root's own"
            ) from error

    def get(self, key: bytes) -> bytes | None:
        with self._env.begin() as transaction:
            value: bytes | None = transaction.get(key)
            return value

    def values(self, kind: bytes) -> Iterator[bytes]:
        with self._env.begin() as transaction, transaction.cursor() as cursor:
            cursor.set_range(kind)
            for key, value in cursor:
                if not key.startswith(kind):
                    return
                yield value


_open_files: WeakValueDictionary[tuple[str, int], _File] = WeakValueDictionary()


def _opened(path: Path) -> _File:
    place = (str(path.resolve()), os.getpid())
    file = _open_files.get(place)
    if file is None:
        file = _open_files[place] = _File(path)
    return file


def _write(path: Path, profiles: pl.DataFrame, width: int) -> None:
    keyed = [_key(user) for user in profiles["user_id"]]
    order = sorted(range(len(keyed)), key=keyed.__getitem__)
    none = bytes(width * _FLOAT16.itemsize)
    tails = [none if row is None else np.asarray(row, _FLOAT16).tobytes() for row in profiles["vector"]]
    bodies, reasons = ([text.encode() for text in profiles[name]] for name in ("json", "why"))
    values = {PROFILE: [body + tail for body, tail in zip(bodies, tails, strict=True)], WHY: reasons}
    # Values of more than half a page lie on pages of their own; the file grows only to the pages that are used.
    room = sum(len(value) + 2 * _PAGE for each in values.values() for value in each) + (16 << 20)
    env = lmdb.open(str(path), subdir=False, map_size=2 * room, lock=False, sync=False)
    with env, env.begin(write=True) as transaction:
        for kind, at in itertools.product(values, order):
            written = transaction.put(kind + keyed[at], values[kind][at], append=True, overwrite=False)
            assert written, f"user {profiles['user_id'][at]!r} has two profiles"
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _key(user: str) -> bytes:
    key = user.encode()
    if 0 < len(key) < _LONGEST_KEY - 32:
        return key
    return b"\0" + hashlib.sha256(key).digest()


def _local(root: Root, part: Part, cache: Path) -> Path:
    """Where a part's file lies on this machine, whole."""
    name = f"{part.file}.mdb"
    if not root.remote:
        path = Path(root.path(FILES, name))
        if not path.is_file() or path.stat().st_size != part.size:
            raise StorageError(f"{path} is missing or cut; run `ray-profile index` again")
        return path
    path = cache / name
    cache.mkdir(parents=True, exist_ok=True)
    with _alone(cache / f"{part.file}.lock"):
        if not path.is_file() or path.stat().st_size != part.size:
            _fetch(root, part, path)
    return path


def _tidy(cache: Path, manifest: Manifest) -> None:
    """Delete copies that this version does not need: whoever has one open keeps it, and what is missed is fetched."""
    needed = {part.file for part in manifest.parts}
    for path in cache.iterdir():
        old = path.stat().st_mtime < time.time() - GRACE.total_seconds()
        if path.name.partition(".")[0] not in needed and (path.suffix == ".mdb" or old):
            path.unlink(missing_ok=True)


def _fetch(root: Root, part: Part, path: Path) -> None:
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}.draft")
    try:
        with asking(root.address, f"read {FILES}/{path.name}"):
            root.fs.get_file(root.path(FILES, path.name), str(draft))
        if _digest(draft) != part.file:
            raise StorageError(f"{root.uri(FILES, path.name)} is not what it was; run `ray-profile index --rebuild`")
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """One process of a machine at a time."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _name(version: int) -> str:
    return f"{version:020d}.json"


def _versions(root: Root) -> list[int]:
    names = (Path(entry.path) for entry in root.list(FOLDER))
    return sorted(int(path.stem) for path in names if path.suffix == ".json" and path.stem.isdigit())


def _clean(root: Root) -> None:
    versions = _versions(root)
    root.delete(f"{FOLDER}/{_name(version)}" for version in versions[:-KEPT])
    needed: set[str] = set()
    for version in versions[-KEPT:]:
        with suppress(RootError):  # a broken one names nothing; its files are kept for as long as a live run's
            needed |= {part.file for part in read(root, version).parts}
    before = datetime.now(UTC) - GRACE
    root.delete(
        entry.path
        for entry in root.list(*FILES.split("/"))
        if Path(entry.path).name.partition(".")[0] not in needed and entry.modified < before
    )
