"""Personal data out of text, user ids into keyed pseudonyms, before anything is stored.

A vectorised prefilter finds the rows that could hold something (one in a hundred reviews); only those meet
`detectors`, in Python.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import re
import sys
import unicodedata
from collections.abc import Callable, Mapping

import polars as pl
import polars_hash as plh

#: Rows that can hold something: an "@", seven digits with little between them, an IP address, a QQ number, a secret.
_PREFILTER = (
    r"[@＠]|\d(?:[\s.．\-－‐-―/／()（）]{0,3}\d){6}|\d{1,3}(?:[.．]\d{1,3}){3}|[0-9a-fA-F]{0,4}[:：][0-9a-fA-F]{0,4}[:：][0-9a-fA-F]"
    r"|(?i:qq|ｑｑ|扣扣)\D{0,6}\d{5}|[?&;][a-zA-Z_]{2,14}=\S"
)

_DASHES = "‐‑‒–—―−－﹣"


@functools.cache  # not at import: it walks all of Unicode
def _plain_forms() -> dict[int, str]:
    """Every character that reads as an ASCII digit, letter or separator -> that character (one to one)."""
    table = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
    table |= {code: " " for code in range(0x80, 0x3001) if chr(code).isspace()}
    table |= {ord(dash): "-" for dash in _DASHES}
    digits = (code for code in range(0x80, sys.maxunicode + 1) if unicodedata.decimal(chr(code), None) is not None)
    return table | {code: str(unicodedata.decimal(chr(code))) for code in digits}


def redact(texts: pl.Series) -> pl.Series:
    """Replace personal data by markers: <EMAIL>, <PHONE>, <CARD>, <IBAN>, <IP>, <CN_ID>, <SSN>, <QQ>, <SECRET>.

    Digits and letters of any width or script are recognised; the text around a marker stays as it was. Applying it
    again changes nothing. Text without a digit and without "@" never changes.

    Args:
        texts: strings, length n. `clean` them first, else HTML entities and zero-width characters can hide a number.

    Returns:
        Strings, length n, same name; nulls stay null.
    """
    texts = texts.cast(pl.String)
    rows = texts.str.contains(_PREFILTER).fill_null(False).arg_true()
    if rows.is_empty():
        return texts
    return texts.scatter(rows, [_redact(text) for text in texts.gather(rows).to_list()])


def _redact(text: str) -> str:
    # What has been removed can uncover a neighbour, so repeat until nothing changes: each round removes a digit or "@".
    while spans := find(text):
        pieces: list[str] = []
        at = 0
        for start, end, marker in sorted(spans):
            pieces += (text[at:start], f"<{marker}>")
            at = end
        text = "".join(pieces) + text[at:]
    return text


def find(text: str) -> list[tuple[int, int, str]]:
    """Spans of personal data as (start, end, marker), not overlapping, in the order of the detectors."""
    from ray_profile.sources.detectors import DETECTORS  # libphonenumber, which a look-up of a pseudonym does without

    view = text if text.isascii() else text.translate(_plain_forms())
    spans: list[tuple[int, int, str]] = []
    for marker, pattern, accept in DETECTORS:

        def take(match: re.Match[str], marker: str = marker, accept: Callable[[re.Match[str]], int] = accept) -> str:
            length = accept(match)
            if not length:
                return match[0]
            start = match.start("n")
            spans.append((start, start + length, marker))
            before, after = start - match.start(), start + length - match.start()
            return match[0][:before] + "\0" * length + match[0][after:]

        view = pattern.sub(take, view)
    return spans


# --- user ids --------------------------------------------------------------------------------------------------------


def redact_distinct(texts: pl.Series) -> pl.Series:
    """`redact` for a column of few distinct values: each is looked at once."""
    distinct = texts.unique()
    known = pl.DataFrame({"text": distinct, "clean": redact(distinct)})
    return pl.DataFrame({"text": texts}).join(known, on="text", how="left", maintain_order="left")["clean"]


def telling(columns: Mapping[str, tuple[str, ...]]) -> set[str]:
    """Of a map from contract columns to a file's: the file's columns that tell whose a row is, by user or by order.

    With a key, none of their values is stored, and every id that is made of one (also a row's own) is a pseudonym.
    """
    return {*columns.get("user_id", ()), *columns.get("order_id", ())}


def pseudonyms(users: pl.Series, key: bytes | None) -> pl.Series:
    """HMAC-SHA256 of each user id under `key`, first 32 hex digits (128 bits); without a key the ids unchanged.

    Nulls stay null.
    """
    users = users.cast(pl.String)
    if key is None:
        return users
    try:
        text = key.decode()
    except UnicodeDecodeError:  # polars_hash takes the key as text only; keys are base64 as a rule
        distinct = users.drop_nulls().unique()
        hashed = [pseudonym(user, key) for user in distinct.to_list()]
        return users.replace_strict(distinct, pl.Series(hashed, dtype=pl.String), default=None, return_dtype=pl.String)
    digest = plh.col("user").chash.hmac_sha256(key=text).str.slice(0, 32)
    return pl.DataFrame({"user": users}).select(digest.alias(users.name)).to_series()


def pseudonym(user: str, key: bytes | None) -> str:
    """The pseudonym of one user id, as `pseudonyms` gives it."""
    return user if key is None else hmac.digest(key, user.encode(), "sha256").hex()[:32]


def fingerprint(key: bytes | None) -> str | None:
    """16 hex digits that tell two keys apart and do not reveal them; None without a key."""
    return None if key is None else hmac.digest(key, b"ray_profile key fingerprint", "sha256").hex()[:16]


def bucket_of(users: pl.Series, buckets: int) -> pl.Series:
    """The partition of each pseudonym: the first 8 bytes of its SHA-256, big-endian, modulo `buckets`.

    Returns:
        Int32 in [0, buckets), length n; nulls stay null.
    """
    assert buckets >= 1
    digest = plh.col("user").chash.sha2_256().str.slice(0, 16).str.to_integer(base=16, dtype=pl.UInt64)
    frame = pl.DataFrame({"user": users.cast(pl.String)}).select((digest % buckets).cast(pl.Int32).alias(users.name))
    return frame.to_series()


def bucket_of_one(user: str, buckets: int) -> int:
    """The partition of one pseudonym, as `bucket_of` gives it."""
    return int.from_bytes(hashlib.sha256(user.encode()).digest()[:8], "big") % buckets
