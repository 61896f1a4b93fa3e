"""Look at a root: one profile, now or as of a day, and what the root holds."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import polars as pl
import pyarrow.compute as pc

from ray_profile.config import Config
from ray_profile.errors import ConfigError, RootError, UnknownUserError
from ray_profile.sources.redact import bucket_of_one, fingerprint, pseudonyms
from ray_profile.sources.values import identifiers
from ray_profile.store.root import Root
from ray_profile.store.tables import BUCKET, Handle, Table, read_files
from ray_profile.store.waves import WRITER, Writer, unfused


def profile_of(config: Config, user: str, as_of: str | None = None) -> dict[str, Any]:
    """One user's profile as plain values, by their own id.

    With `as_of` (ISO 8601, the start of a period) it is what would have been built from data before that moment.
    Raises `UnknownUserError`, `RootError` and, for another moment, `ConfigError`.
    """
    root, name = _opened(config, user)
    bucket = bucket_of_one(name, root.facts.buckets)
    if as_of is not None:
        return _as_of(config, root, name, bucket, _moment(as_of), user)
    table = Table(root, "profiles")
    handle = table.open()
    if handle is None:
        raise RootError(f"{root.address} has no profiles yet; `ray-profile build` makes them")
    rows = read_files(table, handle.files([bucket]), filters=pc.field("user_id") == name)
    return _only(rows.drop_columns([BUCKET]).to_pylist(), user, root)


def status_of(config: Config) -> dict[str, Any]:
    """What a root holds: its facts, users, waves and versions, and what the profiles do not tell yet.

    `profiles_as_of` is the moment before which the newest profiles count, `profiles_as_of_earlier` how many count up to
    an earlier one: those of users of whom no later run had rows.
    """
    root = Root.existing(config.root)
    states, profiles = Table(root, "states").open(), Table(root, "profiles").open()
    items = Table(root, "items", partitioned=False).open()
    crowded = _files_by_bucket(states)
    newest, earlier = _ages(root, profiles)
    return {
        "root": root.address,
        "buckets": root.facts.buckets,
        "period": root.facts.period,
        "half_life_days": root.facts.half_life_days,
        "pseudonyms": root.facts.key_fingerprint is not None,
        "waves": 0 if states is None else states.transaction(WRITER) or 0,
        "waves_not_fused": 0 if states is None else len(unfused(states, profiles)),
        "users": _rows(profiles),
        "profiles_as_of": newest,
        "profiles_as_of_earlier": earlier,
        "states": _rows(states),
        "items": _rows(items),
        "states_version": None if states is None else states.version,
        "profiles_version": None if profiles is None else profiles.version,
        "statistics_version": None if profiles is None else profiles.transaction("statistics"),
        "most_files_in_a_bucket": max(crowded.values(), default=0),
    }


def key_of(config: Config, root: Root) -> bytes | None:
    """The key of a root's pseudonyms. Raises `RootError` where the configuration names another one."""
    key = config.privacy.key()
    if fingerprint(key) != root.facts.key_fingerprint:
        raise RootError(
            f"{root.address} was built with another pseudonym key (fingerprint {root.facts.key_fingerprint}, here "
            f"{fingerprint(key)}); name that key under [privacy]"
        )
    return key


def _opened(config: Config, user: str) -> tuple[Root, str]:
    root = Root.existing(config.root)
    key = key_of(config, root)
    name = pseudonyms(identifiers(pl.Series([user])), key)[0]
    if name is None:
        raise UnknownUserError(f"{user!r} names no user: files write that where there is none; name a user")
    return root, str(name)


def _as_of(config: Config, root: Root, name: str, bucket: int, moment: datetime, user: str) -> dict[str, Any]:
    from ray_profile.encode.weights import model_digest, resolve
    from ray_profile.pipelines import tables  # the facets, which a plain lookup does without
    from ray_profile.pipelines.buckets import statistics_of_bucket
    from ray_profile.pipelines.fusing import by_bucket
    from ray_profile.pipelines.run import resolved, width_of
    from ray_profile.profile import statistics
    from ray_profile.profile.facet import FuseContext
    from ray_profile.profile.fold import state_schema
    from ray_profile.profile.fuse import fuse
    from ray_profile.profile.periods import check_as_of
    from ray_profile.store.plan import check_digests

    facts = root.facts
    moment = check_as_of(moment, facts.period)
    config = resolved(config, root)
    folder = resolve(config.encoder.model)
    width = width_of(folder)
    states, digest = tables.states_table(root, width), model_digest(folder, config.encoder)
    handle, items = states.open(), tables.items_table(root).open()
    if handle is None:
        raise RootError(f"{root.address} has no states yet; `ray-profile build` makes them")
    check_digests(Writer(root, states).past(), {"encoder": digest}, config.model_dump(mode="json"))
    files = by_bucket(handle.files())
    corpus = statistics.combine(statistics_of_bucket(root, width, each, moment) for each in files.values())
    context = FuseContext(
        tables.load_items(root, tuple(items.files()) if items else (), width),
        moment,
        corpus,
        0,  # statistics of their own, which no version names
        digest,
        width,
        facts.period,
        facts.half_life_days,
    )
    mine = tables.read_states(root, width, files.get(bucket, ())).filter(pl.col("user_id") == name)
    profiles = fuse(state_schema(width).merge(mine), context)
    return _only(profiles.to_dicts(), user, root, f" before {moment.date()}")


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(f"--as-of {text!r} is no ISO 8601 date; write it as 2024-05-01") from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _only(rows: list[dict[str, Any]], user: str, root: Root, when: str = "") -> dict[str, Any]:
    if not rows:
        raise UnknownUserError(f"{root.address} has no profile of user {user!r}{when}; write the id as your files do")
    assert len(rows) == 1, f"user {user!r} has {len(rows)} profiles"
    return rows[0]


def _rows(handle: Handle | None) -> int:
    return 0 if handle is None else sum(file.rows for file in handle.files())


def _ages(root: Root, profiles: Handle | None) -> tuple[datetime | None, int]:
    """The latest `as_of` of all profiles, and how many have an earlier one."""
    files = [] if profiles is None else profiles.files()
    if not files:
        return None, 0
    moments = read_files(Table(root, "profiles"), files, columns=["as_of"])["as_of"]
    newest = pc.max(moments)
    return newest.as_py(), len(moments.filter(pc.less(moments, newest)))


def _files_by_bucket(handle: Handle | None) -> dict[int, int]:
    counts: dict[int, int] = {}
    for file in [] if handle is None else handle.files():
        counts[file.bucket] = counts.get(file.bucket, 0) + 1
    return counts
