"""Files of an object store as copies on this machine: each fetched once for all processes, its SHA-256 checked."""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from ray_profile.errors import StorageError
from ray_profile.store.root import Root, asking

GRACE = timedelta(hours=24)  # before a root's file that nobody names is deleted: it may be a live run's
UNUSED = timedelta(hours=1)  # before a copy is


@dataclass(frozen=True)
class File:
    """A file that never changes. Its name is its SHA-256 with a suffix."""

    name: str
    size: int  # bytes

    @classmethod
    def of(cls, path: Path) -> File:
        """What a file is called by what is in it."""
        return cls(f"{digest(path)}{path.suffix}", path.stat().st_size)

    def lies_at(self, path: Path) -> bool:
        """Whether a path holds it, as far as its size tells."""
        return path.is_file() and path.stat().st_size == self.size


def local(root: Root, folder: str, file: File, cache: Path) -> Path:
    """Where a file of a root's folder lies on this machine, whole; of an object store, its copy under `cache`.

    Raises `StorageError` where it is missing or is not what it was.
    """
    if not root.remote:
        path = Path(root.path(folder, file.name))
        if not file.lies_at(path):
            raise StorageError(f"{path} is missing or cut; run `ray-profile index` again")
        return path
    path = cache / file.name
    cache.mkdir(parents=True, exist_ok=True)
    with _alone(cache / f"{file.name}.lock"):
        if file.lies_at(path):
            path.touch()  # it is used: see `tidy`
        else:
            _fetch(root, folder, path)
    return path


def tidy(cache: Path, needed: set[str]) -> None:
    """Delete what is not named and was not used for `UNUSED`: another process may be about to open it, and whoever has
    a file open keeps it. Several may tidy at once."""
    before = time.time() - UNUSED.total_seconds()
    for path in cache.iterdir():
        if path.name.removesuffix(".lock") in needed:
            continue
        with suppress(FileNotFoundError):  # another process was faster, or a draft became a copy
            if path.stat().st_mtime < before:
                path.unlink()


def digest(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fetch(root: Root, folder: str, path: Path) -> None:
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}.draft")
    try:
        with asking(root.address, f"read {folder}/{path.name}"):
            root.fs.get_file(root.path(folder, path.name), str(draft))
        if digest(draft) != path.stem:
            raise StorageError(f"{root.uri(folder, path.name)} is not what it was; run `ray-profile index --rebuild`")
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
