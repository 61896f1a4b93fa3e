"""The sentiment probe of a root: fitted once on the shop's own stars, then kept, so that every wave is judged alike.

It is fitted only where reviews without stars are seen; a shop whose reviews all have stars never pays for it, and
neither does one whose encoder was trained together with a sentiment head: that is its probe.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from itertools import groupby

import polars as pl

from ray_profile.config import Config, Source
from ray_profile.encode.heads import Probe
from ray_profile.errors import FileRejected, RootError
from ray_profile.pipelines.engine import Engine
from ray_profile.pipelines.run import Run, listed
from ray_profile.pipelines.tables import frame_of
from ray_profile.sources.files import SourceFile
from ray_profile.sources.formats import may_hold_text
from ray_profile.sources.ingest import ingest
from ray_profile.sources.read import Range, ranges
from ray_profile.sources.sample import spread
from ray_profile.store.root import Root

FOLDER = ("models", "sentiment-probe")
SAMPLE_ROWS = 4_000  # rated reviews; more no longer changes a linear probe of some hundred dimensions by much
RANGES_PER_SOURCE = 8
ROWS_PER_SOURCE = 40_000  # reviews read at most


def find_or_fit(run: Run, parts: Sequence[Range], engine: Engine) -> Probe | None:
    """The model's own sentiment head; else the root's probe; else, if some reviews of a wave's ranges lack stars, one
    fitted on a sample of all that the sources list now, folded or not, if it is any good.

    So it makes no difference to the probe which of the files were folded first, or how small the waves are. Raises
    `RootError` where the stored probe is not what was stored.
    """
    known = run.sentiment or stored(run.root)
    if known is not None:
        return known
    if not _lacking(run, [part for part in parts if may_hold_text(run.config.sources[part.file.source])]):
        return None
    rated = _rated(run)
    if rated.is_empty():
        return None
    return Probe.fit(engine.encode(rated["text"]).vectors, rated["rating"], rated["user_id"])


def publish(root: Root, probe: Probe | None) -> None:
    """Keep a probe that was fitted for all waves to come; called once its wave is sure to be committed, if nobody comes
    first."""
    if probe is not None and probe.source == "probe":
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


def _lacking(run: Run, parts: Sequence[Range]) -> bool:
    """Whether a review in some ranges of each source, evenly spread, lacks its stars."""
    for _, group in groupby(parts, key=lambda part: part.file.source):
        read = 0
        for reviews in reviews_of(run.config, run.clock, spread(list(group), RANGES_PER_SOURCE)):
            if reviews["rating"].null_count():
                return True
            read += reviews.height
            if read >= ROWS_PER_SOURCE:
                break
    return False


def _rated(run: Run) -> pl.DataFrame:
    """[user_id, text, rating] of rated reviews, from ranges evenly spread over all files of each source."""
    found = [pl.DataFrame(schema={"user_id": pl.String, "text": pl.String, "rating": pl.Float32})]
    for name, source in run.config.sources.items():
        read = 0
        if not may_hold_text(source):
            continue
        files = spread(listed(run.config, name), RANGES_PER_SOURCE)
        for reviews in reviews_of(run.config, run.clock, spread(ranges_of(source, files), RANGES_PER_SOURCE)):
            found.append(reviews.drop_nulls("rating"))
            read += reviews.height
            if read >= ROWS_PER_SOURCE:
                break
    rated = pl.concat(found)
    return rated.gather_every(max(rated.height // SAMPLE_ROWS, 1)).head(SAMPLE_ROWS)


def ranges_of(source: Source, files: Sequence[SourceFile]) -> list[Range]:
    """The ranges of those files that can be read."""
    parts: list[Range] = []
    for file in files:
        with suppress(FileRejected):  # folding meets it again, and reports it
            parts += ranges(file, source)
    return parts


def reviews_of(config: Config, clock: datetime, parts: Iterable[Range]) -> Iterator[pl.DataFrame]:
    """[user_id, text, rating] of the reviews with text in some ranges, block by block; unreadable files give none."""
    for part in parts:
        source = config.sources[part.file.source]
        with suppress(FileRejected):  # folding meets it again, and reports it
            for block in ingest(part, source, clock, config.privacy.key(), config.privacy.redact):
                rows = frame_of(block.rows)
                reviews = rows.filter((pl.col("kind") == "review") & pl.col("text").is_not_null())
                yield reviews.select("user_id", "text", "rating")
