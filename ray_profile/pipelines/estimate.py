"""How long a build would take on this machine: rates measured on samples, carried over to all new files."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import polars as pl

from ray_profile.config import Config
from ray_profile.encode.text import TextEncoder
from ray_profile.encode.tokens import readable_or_raise
from ray_profile.errors import EncoderError
from ray_profile.profile.facet import FoldContext
from ray_profile.profile.fold import fold
from ray_profile.profile.items import Items
from ray_profile.sources.ingest import identified
from ray_profile.sources.redact import pseudonyms, redact
from ray_profile.sources.sample import Sample

TOKENISED = 256  # texts a source whose tokens are counted
ENCODED = 192  # texts in all that are encoded to measure the speed
PIECE, ENCODE_SECONDS = 64, 5.0  # so many at once, until so long
FOLDED = 4_000  # rows a source that are redacted and folded to measure the speed


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
    config: Config, key: bytes | None, drawn: Mapping[str, Sample], shares: Mapping[str, float], problems: list[str]
) -> Estimate:
    """Measure on the samples of each source and carry over; `shares` are the new files' shares of a source's bytes.

    What would stop a build is appended to `problems`.
    """
    encoder = _encoder(config, drawn, problems)
    width = encoder.width if encoder else 1
    work = _Work()
    for name, sample in drawn.items():
        _add_rows(work, config, key, sample, sample.rows_total * shares[name], width)
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
        return TextEncoder.load(config.encoder)
    except EncoderError as error:
        problems.append(str(error))
        return None


def _texts(sample: Sample) -> pl.Series:
    if "text" not in sample.good.columns:
        return pl.Series("text", [], dtype=pl.String)
    return sample.good["text"].drop_nulls()


def _add_rows(work: _Work, config: Config, key: bytes | None, sample: Sample, rows: float, width: int) -> None:
    """The time to read and check (measured while sampling), to redact and to fold `rows` rows like the sample's."""
    read = max(sample.rows_read, 1)
    work.rows += rows
    work.read_seconds += rows * sample.seconds / read
    good = sample.good.head(FOLDED)
    if good.is_empty() or "user_id" not in good.columns:
        return
    began = time.perf_counter()
    private = good.with_columns(pseudonyms(good["user_id"], key).alias("user_id"))
    if config.privacy.redact:
        private = private.with_columns(redact(private["text"]).alias("text"))
    table = pl.from_arrow(identified(private))
    assert isinstance(table, pl.DataFrame)
    folded = rows * sample.good.height / read / table.height  # how often such a piece would be folded
    work.read_seconds += folded * (time.perf_counter() - began)
    has_text = pl.when(pl.col("text").is_not_null())
    vector = pl.lit(pl.Series([[1.0] + [0.0] * (width - 1)], dtype=pl.Array(pl.Float16, width))).first()
    table = table.with_columns(has_text.then(vector).alias("vector"))
    context = FoldContext(Items.none(width), width, config.state.period, config.state.half_life_days)
    fold(table.head(10), context)  # loads the segmenter and the language model
    began = time.perf_counter()
    fold(table, context)
    work.fold_seconds += folded * (time.perf_counter() - began)


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
    if not parts:
        return 0.0
    texts = _some(pl.concat([part.alias("text") for part in parts]), ENCODED)
    encoder.encode(texts.head(4))  # the first call sets the device up
    pieces = -(-len(texts) // PIECE)
    tokens, began = 0, time.perf_counter()
    for at in range(pieces):
        tokens += encoder.encode(texts.gather_every(pieces, at)).tokens
        if time.perf_counter() - began > ENCODE_SECONDS:
            break
    return tokens / (time.perf_counter() - began)


def _refused(config: Config, work: _Work) -> str:
    try:
        readable_or_raise(config.encoder.model, work.characters, work.unknown)
    except EncoderError as error:
        return str(error)
    return ""


def _assumptions(drawn: Mapping[str, Sample]) -> tuple[str, ...]:
    places = sum(len(sample.files) for sample in drawn.values())
    said = [
        f"all files are like the samples of {places} of them",
        "one process on this machine does one step after the other; workers share the work, and add their start",
        "rates were measured on a few thousand rows and a few hundred texts",
        "tags by text, the fuse of the profiles and the commits come on top",
    ]
    if not all(sample.exact for sample in drawn.values()):
        said.append("rows are estimated by bytes where they were not counted")
    return tuple(said)
