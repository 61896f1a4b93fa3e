"""`index`: the profiles and the catalogue of a root become the files that replicas serve from.

A bucket whose profiles are as they were in the version before keeps its files, and so does the catalogue, so an index
after a small build is little work. A root that has an index gets a new one at the end of every build.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from time import time

from ray_profile.config import Config
from ray_profile.errors import RootError
from ray_profile.pipelines.buckets import IndexJob
from ray_profile.pipelines.build import engine_of
from ray_profile.pipelines.engine import Engine, Progress
from ray_profile.pipelines.fusing import by_bucket
from ray_profile.pipelines.run import Run
from ray_profile.pipelines.tables import items_table, profiles_table
from ray_profile.store.index import Manifest, Part, current, publish, whole
from ray_profile.store.root import Root
from ray_profile.store.tables import DataFile, Handle
from ray_profile.store.waves import ignore_step


@dataclass(frozen=True)
class Indexed:
    """The version that is there now, and how many of its parts were written or kept from the one before."""

    version: int
    profiles: int
    written: int
    kept: int

    def to_json(self) -> dict[str, int]:
        """The same as plain values."""
        return vars(self)


def index(config: Config, local: bool = False, progress: Progress | None = None, rebuild: bool = False) -> Indexed:
    """Bring the serving index up to date with the profiles; where it is already, no engine is started.

    Files that are missing or cut are written again, and with `rebuild` all of them.

    Raises `RootError` where there are no profiles, or the config is not that of the root; `StorageError` where the
    store fails. Then the versions before stay as they are.
    """
    Root.existing(config.root)  # a build may begin a root, and a mistyped one here would be another
    run = Run.open(config, datetime.now(UTC), ignore_step)
    run.check()
    if not rebuild:
        profiles, known = _profiles(run), _known(run)
        same, due = _due(run, profiles, known)
        if known is not None and not due and known.version == profiles.version:
            return Indexed(known.version, known.profiles, 0, len(same))
    engine = engine_of(run.config, local, progress)
    try:
        return indexed(run, engine, rebuild)
    finally:
        engine.close()


def indexed(run: Run, engine: Engine, rebuild: bool = False) -> Indexed:
    """The same by the engine of a run."""
    profiles = _profiles(run)
    same, due = _due(run, profiles, None if rebuild else _known(run))
    written = engine.index(IndexJob(run.root, run.width, due)) if due else []
    parts = {part.bucket: part for part in (*same, *written)}
    items = parts.pop(None, None)
    of_buckets = tuple(part for _, part in sorted(parts.items(), key=lambda each: each[0] or 0))
    facts = run.width, run.root.facts.buckets, run.encoder_digest
    manifest = Manifest(profiles.version, *facts, of_buckets, items, time())
    publish(run.root, manifest)
    return Indexed(manifest.version, manifest.profiles, len(written), len(same))


def _due(
    run: Run, profiles: Handle, known: Manifest | None
) -> tuple[list[Part], dict[int | None, tuple[DataFile, ...]]]:
    """The parts of a version before that may stand in the next one, and what the others are to be made of."""
    files: dict[int | None, tuple[DataFile, ...]] = dict(by_bucket(profiles.files()).items())
    items = items_table(run.root).open()
    if items is not None and items.files():
        files[None] = tuple(items.files())
    same = [
        part
        for part in (whole(run.root, known.all_parts) if known is not None and _alike(known, run) else ())
        if part.made_of == tuple(file.path for file in files.get(part.bucket, ()))
    ]
    kept = {part.bucket for part in same}
    return same, {bucket: each for bucket, each in files.items() if bucket not in kept}


def _alike(known: Manifest, run: Run) -> bool:
    """Whether files of an earlier version may stand beside new ones."""
    return (known.width, known.encoder) == (run.width, run.encoder_digest)


def is_behind(run: Run) -> bool:
    """Whether a root that is served has profiles that its index does not know."""
    try:
        known = current(run.root)
    except RootError:
        return True  # there is one, and it is broken
    return known is not None and known.version != _profiles(run).version


def _known(run: Run) -> Manifest | None:
    """The newest version; one that cannot be read is made anew."""
    try:
        return current(run.root)
    except RootError:
        return None


def _profiles(run: Run) -> Handle:
    handle = profiles_table(run.root).open()
    if handle is None or not handle.files():
        raise RootError(f"{run.root.address} has no profiles yet; `ray-profile build` makes them")
    return handle
