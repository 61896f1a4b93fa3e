"""One part of the serving index: documents by their ids in an LMDB file, and beside it which vectors are near which.

In the LMDB file an id (the hash of a very long one) leads, behind "p", to the document's JSON bytes followed by its
vector in little-endian float16, zero where it has none; behind "w" to the JSON bytes of why it says so; and behind "n"
the number of a vector, which is what the index of vectors knows, leads to the id.
"""

from __future__ import annotations

import hashlib
import heapq
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import lmdb
import numpy as np
import numpy.typing as npt
import polars as pl

from ray_profile.errors import StorageError
from ray_profile.store.nearest import Nearest
from ray_profile.store.nearest import write as write_vectors

NUMBER, DOCUMENT, WHY = b"n", b"p", b"w"  # what a key leads to; in the order of their bytes
OVERSAMPLED = 4  # how many more are ranked exactly than are asked for
DIGITS = 6  # of a similarity: beyond them vectors that are equal differ by the order of adding
_LONGEST_KEY = 511  # bytes, of LMDB
_PAGE = 4096
_FLOAT16 = np.dtype("<f2")
Opened = TypeVar("Opened")


def write(documents: pl.DataFrame, vectors: npt.NDArray[np.float16], data: Path, near: Path) -> None:
    """Write N documents [id, json, why (optional)] and their vectors (N, D), zero where there is none.

    `near` is written where at least one has a vector. The same documents give the same `data`, in any order.
    """
    keyed = [_key(name) for name in documents["id"]]
    order = sorted(range(len(keyed)), key=keyed.__getitem__)
    numbered = np.asarray([at for at in order if vectors[at].any()], np.int64)
    texts = {name: documents[name].to_list() for name in documents.columns}
    tails = [row.tobytes() for row in vectors.astype(_FLOAT16)]
    entries = [(NUMBER + _number(n), texts["id"][at].encode()) for n, at in enumerate(numbered)]
    entries += [(DOCUMENT + keyed[at], texts["json"][at].encode() + tails[at]) for at in order]
    entries += [(WHY + keyed[at], texts["why"][at].encode()) for at in order] if "why" in texts else []
    # Values of more than half a page lie on pages of their own; the file grows only to the pages that are used.
    room = sum(len(value) + 2 * _PAGE for _, value in entries) + (16 << 20)
    env = lmdb.open(str(data), subdir=False, map_size=2 * room, lock=False, sync=False)
    with env, env.begin(write=True) as transaction:
        for key, value in entries:
            written = transaction.put(key, value, append=True, overwrite=False)
            assert written, f"{key!r} is there twice"
    with data.open("rb") as file:
        os.fsync(file.fileno())
    if len(numbered):
        write_vectors(near, vectors[numbered])


class Shelf:
    """A part that is opened: `width` is its vectors' D."""

    def __init__(self, data: Path, near: Path | None, width: int) -> None:
        self._file = _shared(data, _File)
        self._near = None if near is None else _shared(near, Nearest)
        self._tail = width * _FLOAT16.itemsize

    def get(self, name: str) -> bytes | None:
        """A document's JSON, or None where there is no such id."""
        value = self._file.get(DOCUMENT + _key(name))
        return None if value is None else value[: len(value) - self._tail]

    def why(self, name: str) -> bytes | None:
        """The JSON of what a document rests on, or None where there is no such id."""
        return self._file.get(WHY + _key(name))

    def vector(self, name: str) -> npt.NDArray[np.float32] | None:
        """A document's vector (D,), zero where it has none; None where there is no such id."""
        value = self._file.get(DOCUMENT + _key(name))
        return None if value is None else np.frombuffer(value, _FLOAT16, offset=len(value) - self._tail).astype("f4")

    def candidates(self, vector: npt.NDArray[np.float32], count: int) -> list[tuple[float, int]]:
        """At most `count` documents about the nearest to a vector (D,): rough similarities, numbers for `exact`."""
        return [] if self._near is None else self._near.search(vector, count)

    def exact(self, vector: npt.NDArray[np.float32], number: int) -> tuple[str, float]:
        """The id of a candidate, and its similarity (the inner product) to a vector (D,)."""
        name = self._file.get(NUMBER + _number(number))
        assert name is not None, "every vector has an id"
        other = self.vector(name.decode())
        assert other is not None
        return name.decode(), round(float(vector @ other), DIGITS)


def nearest(shelves: Iterable[Shelf], vector: npt.NDArray[np.float32], count: int) -> list[tuple[str, float]]:
    """At most `count` ids of some parts and their similarities to a vector (D,), the nearest first, ties by id.

    Which are looked at is approximate; of the best `OVERSAMPLED` times as many the order is exact.
    """
    most = OVERSAMPLED * count
    rough = ((score, number, shelf) for shelf in shelves for score, number in shelf.candidates(vector, most))
    best = heapq.nlargest(most, rough, key=lambda each: each[0])
    found = [shelf.exact(vector, number) for _, number, shelf in best]
    return sorted(found, key=lambda each: (-each[1], each[0]))[:count]


class _File:
    """An open LMDB file. LMDB forbids a process to open one twice."""

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


_open_files: WeakValueDictionary[tuple[str, int], Any] = WeakValueDictionary()


def _shared(path: Path, made: Callable[[Path], Opened]) -> Opened:
    """What has a file open, once a process: versions share the files that did not change."""
    place = (str(path.resolve()), os.getpid())
    file: Opened | None = _open_files.get(place)
    if file is None:
        file = _open_files[place] = made(path)
    return file


def _number(number: int) -> bytes:
    return int(number).to_bytes(4, "big")


def _key(name: str) -> bytes:
    key = name.encode()
    if 0 < len(key) < _LONGEST_KEY - 32:
        return key
    return b"\0" + hashlib.sha256(key).digest()
