"""The serving index: every profile as ready JSON bytes beside its vector, a part a bucket, found in no time; and the
catalogue in the same way, as one part.

    index/files/<sha256>.mdb    a part's documents (shelf.py); never changed, so versions share what is alike
    index/files/<sha256>.near   which of its vectors are near which (nearest.py); absent where it has none
    index/<version>.json        which files a version consists of; written last. The version is that of the profiles
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from ray_profile.errors import RootError
from ray_profile.store import copies, shelf
from ray_profile.store.copies import GRACE, File
from ray_profile.store.root import Root
from ray_profile.store.shelf import Shelf

FOLDER = "index"
FILES = f"{FOLDER}/files"
FORMAT = 2  # of the files; an index of another one is made anew
KEPT = 2  # versions: the newest, and the one that replicas still serve while they fetch it


@dataclass(frozen=True)
class Part:
    """A bucket's profiles, or the catalogue (no bucket): its files, its documents and what they were made of."""

    bucket: int | None
    documents: int
    data: File
    near: File | None  # None: nothing in it has a vector
    made_of: tuple[str, ...]  # the data files of the profiles or items table

    @property
    def files(self) -> tuple[File, ...]:
        """What lies under `FILES`."""
        return (self.data,) if self.near is None else (self.data, self.near)


@dataclass(frozen=True)
class Manifest:
    """What a version consists of. `width` is the vectors' D."""

    version: int
    width: int
    buckets: int
    encoder: str | None  # the digest of the model whose vectors these are
    parts: tuple[Part, ...]
    items: Part | None = None  # None: the shop has no catalogue
    made: float = 0.0  # Unix seconds
    format: int = FORMAT

    @property
    def profiles(self) -> int:
        """How many profiles it has."""
        return sum(part.documents for part in self.parts)

    @property
    def all_parts(self) -> tuple[Part, ...]:
        """Those of the profiles, and that of the items."""
        return self.parts if self.items is None else (*self.parts, self.items)

    def to_json(self) -> dict[str, Any]:
        """As a JSON value."""
        return asdict(self)

    @classmethod
    def of(cls, found: Any, where: str) -> Manifest:
        """From `to_json`. Raises `RootError` for anything else, and for files of another format."""
        try:
            if found["format"] != FORMAT:
                raise TypeError(f"format {found['format']!r}, this release reads {FORMAT}")
            items = None if found["items"] is None else _part(found["items"])
            return cls(**{**found, "parts": tuple(_part(part) for part in found["parts"]), "items": items})
        except (TypeError, KeyError) as error:
            raise RootError(f"{where} is no manifest of an index ({error}); run `ray-profile index` again") from error


def _part(found: Any) -> Part:
    near = None if found["near"] is None else File(**found["near"])
    return Part(**{**found, "data": File(**found["data"]), "near": near, "made_of": tuple(found["made_of"])})


def write_part(
    bucket: int | None,
    documents: pl.DataFrame,
    vectors: npt.NDArray[np.float16],
    made_of: Sequence[str],
    root: Root,
) -> Part:
    """Write N documents [id, json, why (optional)] and their vectors (N, D), zero where there is none, under the root.

    Raises `StorageError` where the store fails.
    """
    with tempfile.TemporaryDirectory(prefix="index-") as made:
        paths = Path(made) / "part.mdb", Path(made) / "part.near"
        shelf.write(documents, vectors, *paths)
        data, near = (_kept(path, root) if path.exists() else None for path in paths)
        assert data is not None
        return Part(bucket, documents.height, data, near, tuple(made_of))


def _kept(path: Path, root: Root) -> File:
    file = File.of(path)
    root.replace(path, *FILES.split("/"), file.name)  # also where one is: it may be damaged
    return file


def publish(root: Root, manifest: Manifest) -> None:
    """Make a version visible, when all its files are there, and delete what no recent version needs."""
    root.replace_json(manifest.to_json(), FOLDER, _name(manifest.version))
    _clean(root)


def whole(root: Root, parts: Iterable[Part]) -> list[Part]:
    """Those parts whose files are under the root with the bytes that they had."""
    sizes = {Path(entry.path).name: entry.size for entry in root.list(*FILES.split("/"))}
    return [part for part in parts if all(sizes.get(file.name) == file.size for file in part.files)]


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

    def __init__(self, manifest: Manifest, shelves: dict[int | None, Shelf]) -> None:
        self.manifest = manifest
        self._shelves = shelves

    @classmethod
    def open(cls, root: Root, manifest: Manifest, cache: Path) -> Index:
        """Open a version; files of an object store are first copied to `cache`, each once for all who share it.

        Raises `StorageError` where a file is missing or is not what the manifest says.
        """
        mine = cache / hashlib.sha256(root.address.encode()).hexdigest()[:16]
        shelves: dict[int | None, Shelf] = {}
        for part in manifest.all_parts:
            data, *near = (copies.local(root, FILES, file, mine) for file in part.files)
            shelves[part.bucket] = Shelf(data, near[0] if near else None, manifest.width)
        if root.remote:
            copies.tidy(mine, {file.name for part in manifest.all_parts for file in part.files})
        return cls(manifest, shelves)

    @property
    def version(self) -> int:
        """Of the profiles table."""
        return self.manifest.version

    @property
    def items(self) -> Shelf | None:
        """The catalogue; None where the shop has none."""
        return self._shelves.get(None)

    def get(self, bucket: int, user: str) -> bytes | None:
        """A profile's JSON, or None where there is no such user."""
        found = self._shelves.get(bucket)
        return None if found is None else found.get(user)

    def why(self, bucket: int, user: str) -> bytes | None:
        """The JSON of what a profile rests on, or None where there is no such user."""
        found = self._shelves.get(bucket)
        return None if found is None else found.why(user)

    def vector(self, bucket: int, user: str) -> npt.NDArray[np.float32] | None:
        """A profile's vector (D,), zero where it has none; None where there is no such user."""
        found = self._shelves.get(bucket)
        return None if found is None else found.vector(user)

    def nearest_users(self, vector: npt.NDArray[np.float32], count: int) -> list[tuple[str, float]]:
        """At most `count` users and their similarities to a vector (D,): see `shelf.nearest`."""
        return shelf.nearest((each for bucket, each in self._shelves.items() if bucket is not None), vector, count)


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
            needed |= {file.name for part in read(root, version).all_parts for file in part.files}
    before = datetime.now(UTC) - GRACE
    root.delete(
        entry.path
        for entry in root.list(*FILES.split("/"))
        if Path(entry.path).name not in needed and entry.modified < before
    )
