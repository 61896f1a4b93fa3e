"""The sentiment probe of a root: fitted once on the shop's own stars, then kept, so that every wave is judged alike.

It is fitted only where reviews without stars are seen; a shop whose reviews all have stars never pays for it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

import polars as pl

from ray_profile.encode.heads import Probe
from ray_profile.errors import FileRejected, RootError
from ray_profile.pipelines.engine import Engine
from ray_profile.pipelines.run import Run
from ray_profile.pipelines.tables import frame_of
from ray_profile.sources.formats import may_hold_text
from ray_profile.sources.ingest import ingest
from ray_profile.sources.read import Range
from ray_profile.store.root import Root

FOLDER = ("models", "sentiment-probe")
SAMPLE_ROWS = 4_000  # rated reviews; more no longer changes a linear probe of some hundred dimensions by much
RANGES_PER_SOURCE = 8
ROWS_PER_SOURCE = 40_000  # read at most, where stars are rare


def find_or_fit(run: Run, ranges: Sequence[Range], engine: Engine) -> Probe | None:
    """The root's probe; else one fitted on a sample of this wave, if some of its reviews lack stars and it is any good.

    Raises `RootError` where the stored probe is not what was stored.
    """
    known = stored(run.root)
    if known is not None:
        return known
    rated, lacking = _sample(run, [part for part in ranges if may_hold_text(run.config.sources[part.file.source])])
    if rated.is_empty() or not lacking:
        return None
    rated = rated.head(SAMPLE_ROWS)
    return Probe.fit(engine.encode(rated["text"]).vectors, rated["rating"], rated["user_id"])


def publish(root: Root, probe: Probe | None) -> None:
    """Keep a probe for all waves to come; called once its wave is sure to be committed, if nobody comes first."""
    if probe is not None:
        body = probe.to_bytes()
        mark = hashlib.sha256(body).hexdigest()
        root.create_bytes(body, *FOLDER, f"{mark}.safetensors")
        root.create_json({"sha256": mark}, *FOLDER, "current.json")


def stored(root: Root) -> Probe | None:
    """The root's probe, its bytes checked against their digest."""
    named = root.read_json(*FOLDER, "current.json")
    if named is None:
        return None
    path = root.path(*FOLDER, f"{named['sha256']}.safetensors")
    with root.fs.open(path, "rb") as file:
        body = file.read()
    if hashlib.sha256(body).hexdigest() != named["sha256"]:
        raise RootError(f"{path} does not hold what its name says; restore it from a copy, or build into a new root")
    return Probe.from_bytes(body)


def _sample(run: Run, ranges: Sequence[Range]) -> tuple[pl.DataFrame, bool]:
    """[user_id, text, rating] of the rated reviews in the first ranges of each source, enough to fit a probe on; and
    whether any review there lacks its stars."""
    rated = [pl.DataFrame(schema={"user_id": pl.String, "text": pl.String, "rating": pl.Float32})]
    lacking = False
    for _, group in groupby(ranges, key=lambda part: part.file.source):
        found = read = 0
        for reviews in _reviews(run, list(group)[:RANGES_PER_SOURCE]):
            rated.append(reviews.drop_nulls("rating"))
            lacking = lacking or reviews["rating"].null_count() > 0
            found, read = found + rated[-1].height, read + reviews.height
            if found >= SAMPLE_ROWS or read >= ROWS_PER_SOURCE:
                break
    return pl.concat(rated), lacking


def _reviews(run: Run, ranges: Iterable[Range]) -> Iterator[pl.DataFrame]:
    for part in ranges:
        source = run.config.sources[part.file.source]
        try:
            for block in ingest(part, source, run.clock, run.config.privacy.key(), run.config.privacy.redact):
                rows = frame_of(block.rows)
                reviews = rows.filter((pl.col("kind") == "review") & pl.col("text").is_not_null())
                yield reviews.select("user_id", "text", "rating")
        except FileRejected:
            continue  # folding meets it again, and reports it
