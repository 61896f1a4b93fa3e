"""A root: the folder or S3 prefix that holds every table, and the facts that its first commit fixes.

`Root` is small and travels to workers: it holds an address and facts, never keys. Keys, endpoint and region are read
from the environment (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, ...) by whoever connects.
"""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.fs as pafs
from deltalake.exceptions import DeltaError

from ray_profile.errors import RootError, StorageError

FACTS_FILE = "ray_profile.json"
DEFAULT_REGION = "us-east-1"
CREATE_ATTEMPTS = 3
RETRIES = {"retries": {"max_attempts": 2, "mode": "standard"}}  # inside each of s3fs's own five attempts

#: What to do about a fact that differs; {wanted} and {found} are the two values.
_MEND = {
    "schema_version": "use the release that made it, or build into a new root",
    "buckets": "set state.buckets = {found}, or build into a new root",
    "period": "set state.period = {found}, or build into a new root",
    "half_life_days": "set state.half_life_days = {found}, or build into a new root",
    "key_fingerprint": "name the key that it was made with under [privacy], or build into a new root",
}


@dataclass(frozen=True)
class RootFacts:
    """What is fixed for all that a root will ever hold, kept in `root/ray_profile.json`."""

    schema_version: int
    buckets: int
    period: str
    half_life_days: float
    key_fingerprint: str | None


@dataclass(frozen=True)
class Listing:
    """One file under a root: its path relative to the root, bytes, and when the store says it was written (UTC)."""

    path: str
    size: int
    modified: datetime


@contextmanager
def asking(uri: str, what: str) -> Iterator[None]:
    """Turn whatever the store's clients raise inside into one `StorageError` that says what to look at."""
    try:
        yield
    except _refusals() as error:
        said = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {said[0]}" if said else type(error).__name__
        raise StorageError(f"{uri}: cannot {what}; the store said {reason}; {_next_step(uri, str(error))}") from error


def _refusals() -> tuple[type[Exception], ...]:
    """What the clients raise; S3's only where it is loaded, for that is a quarter of the time of a local look-up."""
    botocore, polars = sys.modules.get("botocore.exceptions"), sys.modules.get("polars.exceptions")
    s3 = (botocore.BotoCoreError, botocore.ClientError) if botocore else ()
    frames = (polars.ComputeError,) if polars else ()  # a full disk, a damaged file
    return (OSError, DeltaError, pa.ArrowException, *s3, *frames)


class Root:
    """An opened root: `Root.open` for a run that may be its first, `Root.existing` for what is there."""

    def __init__(self, address: str, facts: RootFacts) -> None:
        self.address = address
        self.facts = facts

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Root) and (self.address, self.facts) == (other.address, other.facts)

    def __hash__(self) -> int:
        return hash((self.address, self.facts))

    @classmethod
    def open(cls, address: str, facts: RootFacts) -> Root:
        """The root as a run with these facts sees it, whether anything is committed to it yet or not. Writes nothing.

        Raises `RootError` where other facts are fixed, or where there are commits but no facts; `StorageError` where
        the store refuses or does not answer.
        """
        root = cls(normal(address), facts)
        found = root._facts()
        if found is None and root._has_commits():
            found = root._facts()  # a first run may have fixed them between the two looks
            if found is None:
                raise RootError(
                    f"{root.address} has a states table but no {FACTS_FILE}, so nobody knows how it was made; "
                    f"put {FACTS_FILE} back, or build into a new root"
                )
        if found is not None:
            root._compare(found, facts)
        return root

    def settle(self) -> None:
        """Fix this root's facts, or make sure that they are those which are fixed: to be called before every commit.

        So a run that commits nothing fixes nothing, and all that is ever committed was made with the same facts: of two
        first runs with other ones, the later to come here commits nothing. Raises `RootError` then.
        """
        found = self._facts()
        if found is None:
            self.create_json(dataclasses.asdict(self.facts), FACTS_FILE)
            found = self._facts()
            if found is None:
                raise StorageError(f"{self.address}: {FACTS_FILE} was written but cannot be read back; run it again")
        self._compare(found, self.facts)

    @classmethod
    def existing(cls, address: str) -> Root:
        """Open a root that a run has committed to; its facts are those that are fixed."""
        root = cls.bare(address)
        found = root._facts()
        if found is None:
            raise RootError(f"there is no root at {root.address}; `ray-profile build` makes one")
        return cls(root.address, found)

    @classmethod
    def exists(cls, address: str) -> bool:
        """Whether a run has committed to a root there."""
        return cls.bare(address)._facts() is not None

    @classmethod
    def bare(cls, address: str) -> Root:
        """The place alone, for what may lie there before anything is built, as models; its facts mean nothing."""
        return cls(normal(address), RootFacts(0, 0, "", 0.0, None))

    def __repr__(self) -> str:
        return f"Root({self.address!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {"address": self.address, "facts": self.facts}

    @property
    def remote(self) -> bool:
        """Whether the root lies in an object store."""
        return self.address.startswith("s3://")

    def uri(self, *parts: str) -> str:
        """The full address of something under the root, as Delta, Polars and DuckDB take it."""
        return "/".join((self.address, *parts))

    def path(self, *parts: str) -> str:
        """The same address as `fs` and `arrow_fs` take it: without a scheme."""
        return self.uri(*parts).removeprefix("s3://")

    @property
    def _bucket(self) -> str:
        return self.path().split("/", 1)[0]

    @cached_property
    def fs(self) -> fsspec.AbstractFileSystem:
        """fsspec's view of the store. Nothing is cached: other runs change what lies there."""
        if not self.remote:
            return fsspec.filesystem("file", use_listings_cache=False)
        import s3fs

        return s3fs.S3FileSystem(skip_instance_cache=True, use_listings_cache=False, config_kwargs=RETRIES)

    @cached_property
    def arrow_fs(self) -> pafs.FileSystem:
        """Arrow's own client, which reads Parquet faster. `from_uri`, for only that heeds AWS_ENDPOINT_URL."""
        if not self.remote:
            return pafs.LocalFileSystem()
        with asking(self.address, "connect"):
            # The bucket alone: a prefix with spaces or Han characters is no URI.
            filesystem, _ = pafs.FileSystem.from_uri(f"s3://{self._bucket}")
        return filesystem

    @property
    def storage_options(self) -> dict[str, str]:
        """What delta-rs must be told; it reads the keys from the environment itself."""
        if not self.remote:
            return {}
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or DEFAULT_REGION
        options = {"AWS_REGION": region}
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        if endpoint:
            options["AWS_ENDPOINT_URL"] = endpoint
            options["AWS_ALLOW_HTTP"] = str(endpoint.startswith("http://")).lower()
        return options

    def read_json(self, *parts: str) -> Any | None:
        """The value in one JSON file, or None where there is no such file."""
        return self.read_jsons(["/".join(parts)])[0]

    def read_jsons(self, paths: Iterable[str]) -> list[Any | None]:
        """The values in JSON files, in order and fetched at once; None for a file that is not there."""
        paths = list(paths)
        if not paths:
            return []
        full = {path: self.path(*path.split("/")) for path in paths}
        with asking(self.address, f"read {paths[0]}"):
            found = self.fs.cat(list(full.values()), on_error="return")
            return [self._decode(path, found[full[path]]) for path in paths]

    def create_json(self, value: Any, *parts: str) -> bool:
        """Write a JSON file unless there is one; whether the file there is now ours. Nobody ever sees half of it."""
        return self.create_bytes(_json(value), *parts)

    def create_bytes(self, body: bytes, *parts: str) -> bool:
        """The same for any file."""
        with asking(self.address, f"write {'/'.join(parts)}"):
            if self.remote:
                return self._create_object(body, self.path(*parts))
            return _create_file(body, Path(self.path(*parts)))

    def replace_json(self, value: Any, *parts: str) -> None:
        """Write a JSON file whatever is there. Whoever reads it sees the old one or the new one, whole."""
        self.replace(_json(value), *parts)

    def replace(self, body: bytes | Path, *parts: str) -> None:
        """The same for any file: bytes, or a copy of a local file, which need not fit into memory."""
        with asking(self.address, f"write {'/'.join(parts)}"):
            if not self.remote:
                with _draft(body, Path(self.path(*parts))) as draft:
                    draft.replace(self.path(*parts))
            elif isinstance(body, bytes):
                self.fs.pipe_file(self.path(*parts), body)
            else:
                self.fs.put_file(str(body), self.path(*parts))

    def list(self, *parts: str) -> list[Listing]:
        """Every file below a folder, sorted by path; empty where there is no such folder. Hidden files are left out."""
        base = self.path(*parts)
        with asking(self.address, f"list {'/'.join(parts) or 'it'}"):
            found: Mapping[str, Mapping[str, Any]] = self.fs.find(base, detail=True)
        start = len(self.path()) + 1
        listings = (
            Listing(path[start:], int(entry["size"]), _modified(entry))
            for path, entry in found.items()
            if entry["type"] == "file" and not Path(path).name.startswith(".")
        )
        return sorted(listings, key=lambda listing: listing.path)

    def delete(self, paths: Iterable[str]) -> None:
        """Delete files by their paths relative to the root; one that is gone already is no error."""
        for path in paths:
            full = self.path(path)
            with asking(self.address, f"delete {path}"):
                if self.remote:
                    self.fs.rm_file(full)  # S3 answers alike for a key that never was
                else:
                    Path(full).unlink(missing_ok=True)

    def _create_object(self, body: bytes, path: str) -> bool:
        for attempt in range(CREATE_ATTEMPTS):
            try:
                self.fs.pipe_file(path, body, mode="create")
            except OSError:
                # A precondition that failed may be our own first try, whose answer was lost: look at what lies there.
                if self.fs.exists(path):
                    return bool(self.fs.cat_file(path) == body)
                if attempt == CREATE_ATTEMPTS - 1:
                    raise
            else:
                return True
        raise AssertionError("unreachable")

    def _decode(self, path: str, found: bytes | Exception) -> Any | None:
        if isinstance(found, FileNotFoundError):
            # Of a key and of a whole bucket S3 says the same; a root in no bucket must not look like an empty one.
            if self.remote:
                self.fs.call_s3("head_bucket", Bucket=self._bucket)
            return None
        if isinstance(found, Exception):
            raise found
        try:
            return json.loads(found)
        except ValueError as error:
            raise RootError(f"{self.uri(path)} is no valid JSON ({error}); restore it from a copy") from error

    def _has_commits(self) -> bool:
        """Whether the states have more than version 0, which a run makes before it has anything to commit."""
        versions = (Path(entry.path).name[:20] for entry in self.list("states", "_delta_log"))
        return any(version.isdigit() and int(version) > 0 for version in versions)

    def _facts(self) -> RootFacts | None:
        found = self.read_json(FACTS_FILE)
        if found is None:
            return None
        names = [field.name for field in dataclasses.fields(RootFacts)]
        if not isinstance(found, dict) or any(name not in found for name in names):
            raise RootError(
                f"{self.uri(FACTS_FILE)} lacks one of {', '.join(names)}; restore it, or build into a new root"
            )
        return RootFacts(**{name: found[name] for name in names})

    def _compare(self, found: RootFacts, wanted: RootFacts) -> None:
        for name, mend in _MEND.items():
            there, here = getattr(found, name), getattr(wanted, name)
            if there != here:
                raise RootError(
                    f"{self.address} was made with {name} = {there!r}, but this run has {here!r}; "
                    + mend.format(found=json.dumps(there))
                )


def normal(address: str) -> str:
    """An s3:// address or an absolute local path, without a trailing slash. Other stores are refused."""
    if "%" in address or "\\" in address:
        raise RootError(
            f"root = {address!r} holds a '%' or a '\\', which Delta reads as an escape; choose another name"
        )
    if set(address) & set("*?["):
        raise RootError(
            f"root = {address!r} holds a '*', a '?' or a '[', which file systems read as a pattern; choose another name"
        )
    if address.startswith("s3://"):
        bucket, *rest = [part for part in address.removeprefix("s3://").split("/") if part] or [""]
        if not bucket:
            raise RootError(f"root = {address!r} names no bucket; write s3://BUCKET/PREFIX")
        return "/".join(("s3:/", bucket, *rest))
    if "://" in address and not address.startswith("file://"):
        raise RootError(f"root = {address!r} is no folder and no s3:// address; only these two hold a root")
    if not address.strip():
        raise RootError("root is empty; name a folder or an s3:// address")
    return str(Path(address.removeprefix("file://")).expanduser().absolute())


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, indent=1, sort_keys=True).encode()


def _create_file(body: bytes, path: Path) -> bool:
    with _draft(body, path) as draft:
        try:
            os.link(draft, path)  # unlike rename, this fails where the name is taken
        except FileExistsError:
            return path.read_bytes() == body
    return True


@contextmanager
def _draft(body: bytes | Path, path: Path) -> Iterator[Path]:
    """A whole file beside `path`, safely on the disk, to be given its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.parent / f"{path.name}.{secrets.token_hex(8)}.draft"  # not hidden, so that a cleaning finds it
    try:
        with draft.open("xb") as file:
            if isinstance(body, bytes):
                file.write(body)
            else:
                with body.open("rb") as source:
                    shutil.copyfileobj(source, file, 1 << 20)
            file.flush()
            os.fsync(file.fileno())
        yield draft
    finally:
        draft.unlink(missing_ok=True)


def _modified(entry: Mapping[str, Any]) -> datetime:
    when = entry.get("LastModified", entry.get("mtime"))
    if isinstance(when, datetime):
        return when.astimezone(UTC)
    assert isinstance(when, (int, float)), entry
    return datetime.fromtimestamp(when, UTC)


def _next_step(uri: str, said: str) -> str:
    words = said.lower()
    if "parquet" in words and any(word in words for word in ("magic", "footer", "corrupt", "deserialize")):
        return "the file is damaged; restore the root from a copy, or build into a new root"
    if not uri.startswith("s3://"):
        return "check the folder's permissions and the space left on the disk"
    if any(word in words for word in ("denied", "accesskey", "access key", "signature", "credential", "forbidden")):
        return "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and what the bucket's policy allows them"
    if any(word in words for word in ("connect", "timed out", "timeout", "resolve", "dns")):
        return "check AWS_ENDPOINT_URL and the network"
    if any(word in words for word in ("bucket", "not found", "does not exist", "nosuch")):
        return "check that the bucket exists and that `root` is spelt as it is"
    return "check that the bucket exists, the keys in the environment and AWS_ENDPOINT_URL, then run it again"
