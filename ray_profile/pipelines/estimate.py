"""How long a build would take on this machine: rates measured on samples, carried over to all new files."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

import polars as pl
import pyarrow as pa

from ray_profile.config import Config, Source
from ray_profile.encode.text import TextEncoder
from ray_profile.encode.tokens import Letters, readable_or_raise
from ray_profile.errors import EncoderError, RayProfileError
from ray_profile.pipelines.run import resolved
from ray_profile.profile.facet import FoldContext
from ray_profile.profile.fold import fold
from ray_profile.profile.items import Items
from ray_profile.sources.formats import is_catalogue
from ray_profile.sources.ingest import ingest, ingest_items
from ray_profile.sources.sample import Sample

TOKENISED = 1_000  # texts a source whose tokens are counted
ENCODED_TOKENS = 4_096  # in all, to measure the speed
FOLDED = 4_000  # rows of a block with texts that are folded to measure the speed


@dataclass(frozen=True)
class Estimate:
    """What a build of the new files would take on this machine, from rates measured on samples.

    Rates are per second. `texts` and `titles` are how many distinct ones would be encoded. `unknown_share` is the share
    of letters that the encoder's vocabulary does not know; `refused` is the error that it would raise, or "".
    """

    rows: int = 0
    texts: int = 0
    titles: int = 0
    tokens: int = 0
    tokens_per_text: float = 0.0
    tokens_per_second: float = 0.0
    unknown_share: float = 0.0
    refused: str = ""
    read_rows_per_second: float = 0.0
    fold_rows_per_second: float = 0.0
    read_seconds: float = 0.0
    encode_seconds: float = 0.0
    fold_seconds: float = 0.0
    assumptions: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """All stages one after the other, as the plain loop runs them."""
        return self.read_seconds + self.encode_seconds + self.fold_seconds


@dataclass
class _Work:
    """What is extrapolated, summed over the sources."""

    rows: float = 0.0
    texts: float = 0.0
    titles: float = 0.0
    tokens: float = 0.0
    read_seconds: float = 0.0
    fold_seconds: float = 0.0
    characters: int = 0
    unknown: int = 0
    to_encode: list[pl.Series] = field(default_factory=list)


def estimate(
    config: Config,
    clock: datetime,
    key: bytes | None,
    drawn: Mapping[str, Sample],
    shares: Mapping[str, float],
    problems: list[str],
) -> Estimate:
    """Measure on the samples of each source and carry over; `shares` are the new files' shares of a source's bytes.

    What would stop a build is appended to `problems`.
    """
    encoder = _encoder(config, drawn, problems)
    width = encoder.width if encoder else 1
    work = _Work()
    for name, sample in drawn.items():
        _add_rows(work, config.sources[name], config, clock, key, sample, sample.rows_total * shares[name], width)
        if encoder is not None:
            _add_texts(work, encoder, sample, shares[name])
    speed = _tokens_per_second(encoder, work.to_encode) if encoder else 0.0
    refused = _refused(config, work)
    if refused:
        problems.append(refused)
    every = work.texts + work.titles
    return Estimate(
        rows=round(work.rows),
        texts=round(work.texts),
        titles=round(work.titles),
        tokens=round(work.tokens),
        tokens_per_text=work.tokens / every if every else 0.0,
        tokens_per_second=speed,
        unknown_share=work.unknown / work.characters if work.characters else 0.0,
        refused=refused,
        read_rows_per_second=work.rows / work.read_seconds if work.read_seconds else 0.0,
        fold_rows_per_second=work.rows / work.fold_seconds if work.fold_seconds else 0.0,
        read_seconds=work.read_seconds,
        encode_seconds=work.tokens / speed if speed else 0.0,
        fold_seconds=work.fold_seconds,
        assumptions=_assumptions(drawn),
    )


def _encoder(config: Config, drawn: Mapping[str, Sample], problems: list[str]) -> TextEncoder | None:
    if all(not len(sample.titles) and not len(_texts(sample)) for sample in drawn.values()):
        return None
    try:
        return TextEncoder.load(resolved(config).encoder)
    except RayProfileError as error:
        problems.append(str(error))
        return None


def _texts(sample: Sample) -> pl.Series:
    if "text" not in sample.good.columns:
        return pl.Series("text", [], dtype=pl.String)
    return sample.good["text"].drop_nulls()


def _add_rows(
    work: _Work,
    source: Source,
    config: Config,
    clock: datetime,
    key: bytes | None,
    sample: Sample,
    rows: float,
    width: int,
) -> None:
    """The time to read and to fold `rows` rows, as measured on the first block of a range of middling size."""
    work.rows += rows
    if not sample.parts or not rows:
        return
    part = sorted(sample.parts, key=lambda part: part.end - part.start)[len(sample.parts) // 2]
    items = ingest_items(part, source)
    began = time.perf_counter()
    stated = next(items, None)
    item_seconds = time.perf_counter() - began
    if is_catalogue(source):
        if stated is not None:
            work.read_seconds += rows * item_seconds / max(stated.num_rows, 1)
        return
    began = time.perf_counter()
    block = next(ingest(part, source, clock, key, config.privacy.redact), None)
    if block is not None:
        seconds = time.perf_counter() - began + (item_seconds if stated is not None else 0.0)
        work.read_seconds += rows * seconds / block.rows_read
        work.fold_seconds += rows / block.rows_read * _fold_seconds(config, block.rows, width)


def _fold_seconds(config: Config, block: pa.Table, width: int) -> float:
    """How long folding a block takes. Texts are the work, row by row; of a block with texts a part is enough."""
    rows = pl.from_arrow(block)
    assert isinstance(rows, pl.DataFrame)
    if rows.is_empty():
        return 0.0
    part = rows if rows["text"].null_count() == rows.height else rows.head(FOLDED)
    unit = pl.Series([[1.0] + [0.0] * (width - 1)], dtype=pl.Array(pl.Float16, width))
    vector = pl.when(pl.col("text").is_not_null()).then(pl.lit(unit).first())
    part = part.with_columns(vector.alias("vector"))
    context = FoldContext(Items.none(width), width, config.state.period, config.state.half_life_days)
    fold(part.head(10), context)  # loads the segmenter and the language model
    began = time.perf_counter()
    fold(part, context)
    return (time.perf_counter() - began) * rows.height / part.height


def _add_texts(work: _Work, encoder: TextEncoder, sample: Sample, share: float) -> None:
    """How many distinct texts and titles the new files hold, and how many tokens."""
    texts, titles = _texts(sample), sample.titles.drop_nulls()
    scale = sample.rows_total * share / max(sample.rows_read, 1)
    if len(texts):
        tokens = encoder.tokenizer.tokenise(_some(texts, TOKENISED))
        found = texts.n_unique() * scale
        work.texts += found
        work.tokens += found * len(tokens.ids.values) / len(tokens.ids)
        work.characters += tokens.characters
        work.unknown += tokens.unknown_characters
        work.to_encode.append(_some(texts, TOKENISED))
    if len(titles):
        tokens = encoder.tokenizer.tokenise(_some(titles, TOKENISED))
        is_catalogue = "user_id" not in sample.mapped
        most = float("inf") if is_catalogue else _distinct(sample.good["item_id"].drop_nulls())
        found = min(titles.n_unique() * scale, most)
        work.titles += found
        work.tokens += found * len(tokens.ids.values) / len(tokens.ids)
        work.to_encode.append(_some(titles, TOKENISED))


def _some(texts: pl.Series, most: int) -> pl.Series:
    return texts.gather_every(max(len(texts) // most, 1)).head(most)


def _distinct(values: pl.Series) -> float:
    """How many distinct values there are where a sample shows these: Chao's estimate (Scand. J. Stat. 11, 1984)."""
    counts = values.value_counts()["count"]
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    return len(counts) + once * (once - 1) / (2 * (twice + 1))


def _tokens_per_second(encoder: TextEncoder, parts: Sequence[pl.Series]) -> float:
    """Measured on a batch's worth of tokens: short texts alone fill no batch, and would look slow."""
    if not parts:
        return 0.0
    texts = pl.concat([part.alias("text") for part in parts])
    lengths = encoder.tokenizer.tokenise(texts).ids
    texts = _some(texts, max(int(ENCODED_TOKENS * len(lengths) / len(lengths.values)), 1))
    encoder.encode(texts.head(4))  # the first call sets the device up
    began = time.perf_counter()
    tokens = encoder.encode(texts).tokens
    return tokens / (time.perf_counter() - began)


def _refused(config: Config, work: _Work) -> str:
    try:
        readable_or_raise(config.encoder.model, Letters(work.characters, work.unknown))
    except EncoderError as error:
        return str(error)
    return ""


def _assumptions(drawn: Mapping[str, Sample]) -> tuple[str, ...]:
    places = sum(sample.files for sample in drawn.values())
    said = [
        f"all files are like the samples of {places} of them",
        "one process on this machine does one step after the other; workers share the work, and add their start",
        "rates were measured on one block of rows a source and on a few hundred texts",
        "tags by text, the fuse of the profiles and the commits come on top",
    ]
    if not all(sample.exact for sample in drawn.values()):
        said.append("rows are estimated by bytes where they were not counted")
    return tuple(said)
