"""The public keys of an outside issuer (a JWKS, RFC 7517): read at intervals, and again when a token names a new one.

Reading never holds up the event loop. While it fails, the keys that were read last stay good for a while, and then none
is: an issuer that cannot be reached lets nobody in that it did not let in before.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from time import monotonic

import aiohttp
import jwt

from ray_profile.errors import ConfigError

#: Signatures that need a private key to make. With a symmetric one, whoever reads the public keys could sign.
ALGORITHMS = (
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "EdDSA"),
)
FETCH_SECONDS = 3.0  # of one read, from the first byte sent to the last received
AGAIN_SECONDS = 10.0  # between reads for keys that are not known (strangers can name as many as they like) or failed
MAX_BYTES = 1 << 20
log = logging.getLogger("ray_profile.serve")

Fetch = Callable[[], Awaitable[bytes]]


class KeySet:
    """The keys that were read last, by their id."""

    def __init__(
        self,
        fetch: Fetch,
        refresh_seconds: float,
        keep_seconds: float,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._fetch, self._clock = fetch, clock
        self._refresh_seconds, self._keep_seconds = refresh_seconds, keep_seconds
        self._keys: Mapping[str, jwt.PyJWK] = {}
        self._read, self._tried, self._away = float("-inf"), float("-inf"), False
        self._reading = asyncio.Lock()

    def key(self, name: str) -> jwt.PyJWK | None:
        """A key by its id, from memory; None for one that is not known, or was read too long ago."""
        return self._keys.get(name) if self._clock() - self._read < self._keep_seconds else None

    async def learn(self, name: str) -> bool:
        """Look once more for a key that is not known; whether it is now. The keys are read at most every
        `AGAIN_SECONDS`, whoever asks; while the issuer is away nobody waits for it but `follow`."""
        if self._away:
            return False
        async with self._reading:  # the others who miss a key wait for the read that is under way, and no longer
            if self.key(name) is None and not self._away and self._clock() - self._tried >= AGAIN_SECONDS:
                await self._refresh()
        return self.key(name) is not None

    async def follow(self) -> None:
        """Read the keys now and at intervals, for ever."""
        while True:
            async with self._reading:
                await self._refresh()
            await asyncio.sleep(AGAIN_SECONDS if self._away else self._refresh_seconds)

    async def _refresh(self) -> None:
        self._tried = self._clock()
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                self._keys = keys_of(await self._fetch())
            self._read, self._away = self._clock(), False
        except Exception as error:  # whatever it is, the next look may do
            self._away = True
            log.error("serve.jwt.jwks cannot be read (%s: %s); the keys before stay good for a while",
                      type(error).__name__, error)  # fmt: skip


def keys_of(document: bytes) -> dict[str, jwt.PyJWK]:
    """The keys of a JWKS that may sign, by their id. Raises `ValueError` where there is none."""
    try:
        found = jwt.PyJWKSet.from_dict(json.loads(document)).keys
    except (jwt.PyJWTError, AttributeError, RecursionError) as error:
        raise ValueError(f"it is no JWKS: {error}") from error
    keys = {each.key_id: each for each in found if isinstance(each.key_id, str) and each.key_id and _signs(each)}
    if not keys:
        raise ValueError(f"it holds no key with a `kid` that signs by one of {', '.join(ALGORITHMS)}")
    return keys


def _signs(key: jwt.PyJWK) -> bool:
    return key.public_key_use in (None, "sig") and key.algorithm_name in ALGORITHMS


def fetch_of(place: str) -> Fetch:
    """How the document at a path or an address is read. Raises `ConfigError` for a file that is no JWKS: an address
    may be away when a replica starts, a file may not."""
    if "://" in place:
        return lambda: _get(place)
    path = Path(place)
    try:
        keys_of(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConfigError(f"serve.jwt.jwks {place!r} cannot be used ({error}); save the issuer's JWKS there") from error
    return lambda: asyncio.to_thread(path.read_bytes)


async def _get(address: str) -> bytes:
    """A document of at most `MAX_BYTES`. A redirect is not followed: it may lead where anybody can write."""
    trusts_proxies = address.startswith("https:")  # what is not encrypted stays on this machine
    async with (
        aiohttp.ClientSession(trust_env=trusts_proxies) as session,
        session.get(address, allow_redirects=False) as answer,
    ):
        if answer.status != 200:
            raise OSError(f"{address} answers {answer.status}")
        found = bytearray()
        async for piece in answer.content.iter_any():
            found += piece
            if len(found) > MAX_BYTES:
                raise OSError(f"{address} sends more than {MAX_BYTES:,} bytes")
        return bytes(found)
