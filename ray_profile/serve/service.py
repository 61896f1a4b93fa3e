"""What the routes answer from: the index of the moment, the names of users, and who may ask. It knows no server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from time import time
from typing import Any

import polars as pl

from ray_profile.profile.document import FIELDS
from ray_profile.serve import nearby
from ray_profile.serve.access import ANYBODY, Caller, Issuer, authenticated, learnt
from ray_profile.serve.audit import Audit
from ray_profile.serve.limits import Gate, Rates
from ray_profile.serve.problems import Problem, insist_on_text, quoted
from ray_profile.serve.segments import Segments
from ray_profile.sources.redact import bucket_of_one, pseudonym
from ray_profile.sources.values import identifiers
from ray_profile.store.index import Index

Get = Callable[[Index, int, str], bytes | None]
Compute = Callable[[list[dict[str, Any]]], Awaitable[dict[str, Any]]]
Embed = Callable[[list[str]], Awaitable[list[bytes]]]

MAX_USERS = 1_000  # of one request
MAX_ID_CHARS = 1_000
MAX_EMBEDDING = 16  # requests of one replica that wait for an encoder
MAX_NEARBY = 16  # searches of one replica at once


@dataclass
class Service:
    """One replica's state. `index` is replaced as a whole, so whoever has taken it sees one version to the end."""

    index: Index
    key: bytes | None  # of the pseudonyms
    audit: Audit
    segments: Segments
    issuers: Sequence[Issuer] = ()  # none: anybody may ask, which is for the loopback interface alone
    embed: Embed | None = None  # texts -> what the encoder makes of each, as JSON; None: this endpoint has no encoder
    compute: Compute | None = None  # rows of a person -> their profile; None as above
    tags: Mapping[str, str] = field(default_factory=dict)  # id -> what a person reads; absent: the id says it
    waits_for: str | None = None  # what is not there yet, so that this replica should not be asked; None: nothing
    rates: Rates = field(default_factory=Rates)
    gate: Gate = field(default_factory=lambda: Gate(MAX_EMBEDDING))
    gate_of_nearby: Gate = field(default_factory=lambda: Gate(MAX_NEARBY))
    clock: Callable[[], float] = time

    def known(self, authorization: str | None) -> Caller:
        """Who asks. Raises `Problem` 401."""
        return authenticated(self.issuers, authorization, self.clock()) if self.issuers else ANYBODY

    async def asker(self, authorization: str | None) -> Caller:
        """`known`, which looks again for whom it does not know where an issuer has new keys. Raises `Problem` 401."""
        try:
            return self.known(authorization)
        except Problem:
            if not await learnt(self.issuers, authorization):
                raise
        return self.known(authorization)

    def admit(self, caller: Caller, scope: str, cost: float = 1.0) -> None:
        """Raise `Problem` 403 where somebody may not ask for this, 429 where they ask too often."""
        caller.insist(scope)
        self.rates.take(caller, cost)

    def profile(self, caller: Caller, route: str, user: str, by_pseudonym: bool = False) -> tuple[Index, bytes]:
        """A user's profile as JSON, and the version that it is of. Raises `Problem` 404 where there is none."""
        return self._found(caller, route, user, by_pseudonym, Index.get)

    def reasons(self, caller: Caller, route: str, user: str, by_pseudonym: bool = False) -> tuple[Index, bytes]:
        """The same for what the profile rests on."""
        return self._found(caller, route, user, by_pseudonym, Index.why)

    def _found(self, caller: Caller, route: str, user: str, by_pseudonym: bool, get: Get) -> tuple[Index, bytes]:
        index, name = self.index, self.name(user, by_pseudonym)
        found = _value(index, name, get)
        self.audit.note(caller.name, route, [name or ""], int(found is not None))
        if found is None:
            raise Problem(404, "there is no profile of this user; write the id as the shop's files do")
        return index, found

    def profiles(self, caller: Caller, route: str, users: Sequence[str]) -> tuple[Index, list[bytes | None]]:
        """Profiles of several users, in their order, all of one version; None where there is none."""
        index = self.index
        names = [self.name(user, False) for user in users]
        found = [_value(index, name, Index.get) for name in names]
        self.audit.note(caller.name, route, [name or "" for name in names], sum(each is not None for each in found))
        return index, found

    async def similar(self, caller: Caller, user: str, by_pseudonym: bool, count: int) -> dict[str, Any]:
        """{version, users}: see `nearby.users_like`. Whose profiles are told of is in the audit log."""
        index, document, vector = self._placed(caller, "similar", user, by_pseudonym)
        with self.gate_of_nearby.inside():
            found = await asyncio.to_thread(nearby.users_like, index, document, vector, count)
        self.audit.note(caller.name, "similar:found", [each["user_id"] for each in found], len(found))
        return {"version": index.version, "users": found}

    async def items_for(self, caller: Caller, user: str, by_pseudonym: bool, count: int) -> dict[str, Any]:
        """{version, items}: see `nearby.items_for`."""
        index, document, vector = self._placed(caller, "items", user, by_pseudonym)
        if index.items is None:
            return {"version": index.version, "items": []}
        with self.gate_of_nearby.inside():
            found = await asyncio.to_thread(nearby.items_for, index.items, document, vector, count)
        return {"version": index.version, "items": found}

    async def items_like(self, item: str, count: int) -> dict[str, Any]:
        """{version, item, items}: see `nearby.items_like`. Raises `Problem` 404 where there is no such item."""
        insist_on_text("the id of an item", item, MAX_ID_CHARS)
        index = self.index
        found = None if index.items is None else index.items.get(item)
        if found is None or index.items is None:
            raise Problem(404, "there is no such item; write the id as the shop's files do")
        with self.gate_of_nearby.inside():
            like = await asyncio.to_thread(nearby.items_like, index.items, item, count)
        return {"version": index.version, "item": json.loads(found), "items": like}

    def _placed(self, caller: Caller, route: str, user: str, by_pseudonym: bool) -> tuple[Index, Any, nearby.Vector]:
        """A user's document and vector, of one version. Raises `Problem` 404 where there is no profile."""
        index, found = self._found(caller, route, user, by_pseudonym, Index.get)
        document = json.loads(found)
        name = document["user_id"]
        vector = index.vector(bucket_of_one(name, index.manifest.buckets), name)
        assert vector is not None, "who has a document has a place for a vector"
        return index, document, vector

    def name(self, user: str, by_pseudonym: bool) -> str | None:
        """The pseudonym of a user's own id; None for what names nobody."""
        insist_on_text("the id of a user", user, MAX_ID_CHARS)
        if "\0" in user:
            raise Problem(422, f"user {quoted(user)} holds NUL, which no id does")
        if by_pseudonym:
            return user
        known = _identifier(user)
        return None if known is None else pseudonym(known, self.key)


def _value(index: Index, name: str | None, get: Get) -> bytes | None:
    return None if name is None else get(index, bucket_of_one(name, index.manifest.buckets), name)


def etag(index: Index) -> str:
    """The tag of a version."""
    return f'"{index.version}-{(index.manifest.encoder or "0")[:8]}"'


def fields(document: bytes, wanted: str) -> bytes:
    """A document with some of its fields, in their order there; `user_id` and `as_of` are always among them.

    Raises `Problem` 422 for a field that profiles do not have.
    """
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    for name in names:
        if name not in FIELDS:
            raise Problem(422, f"fields={quoted(name)} is no field of a profile; there are {', '.join(FIELDS)}")
    whole: dict[str, Any] = json.loads(document)
    kept = {name: value for name, value in whole.items() if name in names or name in ("user_id", "as_of")}
    return json.dumps(kept, ensure_ascii=False, separators=(",", ":")).encode()


@lru_cache(maxsize=65_536)
def _identifier(user: str) -> str | None:
    """`values.identifiers` of one id."""
    found: str | None = identifiers(pl.Series([user]))[0]
    return found
