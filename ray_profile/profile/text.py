"""The text facet: what people write and read about, how they feel, in which words.

Its sources are reviews and search queries (their own vectors, terms, entities, language) and the items that people
viewed, kept, carted or bought (their titles' and categories' tags).
"""

from __future__ import annotations

import numpy as np
import polars as pl

from ray_profile.encode import heads, terms
from ray_profile.profile.facet import SNIPPET_CHARS, FoldContext, weighted_sum
from ray_profile.profile.tagging import LONG
from ray_profile.state import PART, TIME, Aggregate, Column, MapSum, Scalar, TopK, VectorSum

FEELINGS = ("negative", "neutral", "positive")

_INT, _FLOAT, _TEXT = pl.Int64(), pl.Float64(), pl.String()
_COUNT: dict[str, tuple[Aggregate, pl.DataType]] = {"n": ("sum", _INT)}
_SEEN: dict[str, tuple[Aggregate, pl.DataType]] = {**_COUNT, "weight": ("sum", _FLOAT), "last": ("max", TIME)}
_EVIDENCE = {"ts": TIME, "item_id": _TEXT, "snippet": _TEXT}

SENTIMENT_SOURCES = MapSum("sentiment_sources", _COUNT, cap=8)
SENTIMENT_EVIDENCE = TopK("sentiment_evidence", _EVIDENCE, k=3, cap=8)
TAGS = MapSum(
    "tag_sums",  # key: tag, source
    {**_SEEN, "score": ("sum", _FLOAT), **dict.fromkeys(FEELINGS, ("sum", _FLOAT))},
    cap=256,
    by_first=True,
)
TAG_ITEMS = MapSum("tag_items", _COUNT, cap=1024)  # key: tag, item
#: Key: tag, then SAID or DONE. What people said explains more than what they did, but weighs less: each has its places.
#: It keeps the tags that TAGS keeps, so that none is without evidence.
TAG_EVIDENCE = TopK("tag_evidence", {**_EVIDENCE, "kind": _TEXT}, k=2, cap=TAGS.cap, by_first=True)
SAID, DONE = "said", "done"
TERMS = MapSum("terms", {**_SEEN, "id": ("min", _TEXT)}, cap=512)
ENTITIES = MapSum("entity_sums", _SEEN, cap=256)
ENTITY_EVIDENCE = TopK("entity_evidence", {**_EVIDENCE, "start": _INT, "end": _INT}, k=2, cap=256)
LANGUAGES = MapSum("language_sums", _COUNT, cap=32)
LANGUAGE_EVIDENCE = TopK("language_evidence", _EVIDENCE, k=1, cap=LANGUAGES.cap)


def columns(width: int) -> tuple[Column, ...]:
    """The facet's state columns, for text vectors of `width` numbers."""
    return (
        Scalar("reviews", "sum", _INT),
        Scalar("texts", "sum", _INT),
        Scalar("rating_n", "sum", _INT),
        Scalar("rating_sum", "sum"),
        Scalar("text_weight", "sum"),
        VectorSum("text_vector", width),
        *(Scalar(name, "sum") for name in FEELINGS),
        SENTIMENT_SOURCES,
        SENTIMENT_EVIDENCE,
        Scalar("taggable", "sum", _INT),
        Scalar("taggable_weight", "sum"),
        TAGS,
        TAG_ITEMS,
        TAG_EVIDENCE,
        TERMS,
        ENTITIES,
        ENTITY_EVIDENCE,
        LANGUAGES,
        LANGUAGE_EVIDENCE,
    )


def fold(rows: pl.DataFrame, context: FoldContext) -> list[pl.DataFrame]:
    """Prepared rows (see facet.py) with `vector` (Array(Float16, D), null where not encoded) -> gathered columns."""
    titles = context.items.frame.select("item", "title")
    rows = rows.with_row_index("row").join(titles, on="item", how="left", maintain_order="left")
    # A row without words is told by what it is about; but a review says only what it says.
    about = pl.when(pl.col("kind") == "review").then("text").otherwise(pl.coalesce("text", "title"))
    rows = rows.with_columns(about.str.slice(0, SNIPPET_CHARS).alias("snippet"))
    written = rows.filter(pl.col("text").is_not_null())
    vectors = written.filter(pl.col("vector").is_not_null())
    felt = _feelings(rows, context)
    return [
        *_counts(rows, felt),
        *_text_vector(vectors),
        *_sentiment(rows, felt),
        *_tags(rows, vectors, felt, context),
        *_words(written, context),
    ]


def _counts(rows: pl.DataFrame, felt: pl.DataFrame) -> list[pl.DataFrame]:
    review = pl.col("kind") == "review"
    counts = rows.group_by("g").agg(
        review.sum().cast(_INT).alias("reviews"),
        pl.col("text").is_not_null().sum().cast(_INT).alias("texts"),
        pl.col("rating").is_not_null().sum().cast(_INT).alias("rating_n"),
        pl.col("rating").cast(_FLOAT).sum().alias("rating_sum"),
    )
    weighed = felt.join(rows.select("row", "g", "decay"), on="row")
    shares = weighed.group_by("g").agg((pl.col(name) * pl.col("decay")).sum() for name in FEELINGS)
    return [counts, shares]


def _text_vector(vectors: pl.DataFrame) -> list[pl.DataFrame]:
    if vectors.is_empty():
        return []
    matrix = vectors["vector"].to_numpy()
    groups, sums = weighted_sum(vectors["g"].to_numpy(), np.arange(len(matrix)), vectors["weight"].to_numpy(), matrix)
    vector = pl.Series("text_vector", sums, dtype=pl.Array(pl.Float64, matrix.shape[1]))
    return [
        pl.DataFrame({"g": pl.Series(groups, dtype=pl.UInt32), "text_vector": vector}),
        vectors.group_by("g").agg(pl.col("weight").sum().alias("text_weight")),
    ]


def _feelings(rows: pl.DataFrame, context: FoldContext) -> pl.DataFrame:
    """[row, negative, neutral, positive, source]: from the stars, which are the truth, else from the probe, whether it
    was fitted on the root's stars ("probe") or trained with the encoder ("model"); no row where neither speaks."""
    reviews = rows.filter(pl.col("kind") == "review")
    starred = reviews.filter(pl.col("rating").is_not_null())
    parts = [_felt(starred, heads.sentiment_of_stars(starred["rating"]), "stars")]
    silent = reviews.filter(pl.col("rating").is_null() & pl.col("vector").is_not_null())
    if context.probe is not None and not silent.is_empty():
        parts.append(_felt(silent, context.probe.predict(silent["vector"].to_numpy()), context.probe.source))
    return pl.concat(parts)


def _felt(rows: pl.DataFrame, shares: np.ndarray, source: str) -> pl.DataFrame:
    named = {name: pl.Series(shares[:, i], dtype=pl.Float64) for i, name in enumerate(FEELINGS)}
    return pl.DataFrame({"row": rows["row"], **named}).with_columns(pl.lit(source).alias("source"))


def _sentiment(rows: pl.DataFrame, felt: pl.DataFrame) -> list[pl.DataFrame]:
    felt = felt.join(rows.select("row", "g", "id", "ts", "item_id", "snippet", "decay"), on="row")
    strength = felt.unpivot(on=FEELINGS, index="row", variable_name="key", value_name="strength")
    # A review speaks for its strongest feeling, however weak: else one of three even shares would count unexplained.
    strongest = pl.col("strength") == pl.col("strength").max().over("row")
    speaking = strength.filter(strongest).join(felt.drop(FEELINGS), on="row")
    return [
        SENTIMENT_SOURCES.gather(felt.select("g", pl.col("source").alias("key"), pl.lit(1, _INT).alias("n"))),
        SENTIMENT_EVIDENCE.gather(speaking.with_columns((pl.col("strength") * pl.col("decay")).alias("weight"))),
    ]


def _tags(rows: pl.DataFrame, vectors: pl.DataFrame, felt: pl.DataFrame, context: FoldContext) -> list[pl.DataFrame]:
    rows = rows.filter(pl.col("weight") > 0)
    of_items = rows.select("row", "item").join(context.items.frame.select("item", "tags"), on="item")
    of_items = of_items.explode("tags").filter(pl.col("tags").is_not_null()).unnest("tags").select(*LONG)
    matrix = vectors["vector"].to_numpy() if not vectors.is_empty() else np.zeros((0, context.width), np.float16)
    of_texts = context.tagger.tag_texts(matrix, np.arange(len(matrix)), (vectors["kind"] == "review").to_numpy())
    of_texts = of_texts.with_columns(vectors["row"].gather(of_texts["row"]).alias("row"))
    tagged = context.tagger.best([of_items.cast(pl.Schema(LONG)), of_texts.cast(pl.Schema(LONG))])
    tagged = tagged.join(rows.select("row", "g", "id", "ts", "item_id", "kind", "text", "snippet", "weight"), on="row")
    tagged = tagged.join(felt.select("row", *FEELINGS), on="row", how="left").with_columns(
        pl.col(name).fill_null(0) * pl.col("weight") for name in FEELINGS
    )
    taggable = rows.filter(pl.col("item").is_not_null() | pl.col("vector").is_not_null())
    said = pl.when(pl.col("text").is_not_null()).then(pl.lit(SAID)).otherwise(pl.lit(DONE))
    one = pl.lit(1, _INT).alias("n")
    return [
        taggable.group_by("g").agg(
            pl.len().cast(_INT).alias("taggable"), pl.col("weight").sum().alias("taggable_weight")
        ),
        TAGS.gather(
            tagged.select(
                "g",
                _joined("tag", "source"),
                one,
                "weight",
                pl.col("ts").alias("last"),
                pl.col("score").cast(_FLOAT),
                *FEELINGS,
            )
        ),
        TAG_ITEMS.gather(tagged.filter(pl.col("item_id").is_not_null()).select("g", _joined("tag", "item_id"), one)),
        TAG_EVIDENCE.gather(tagged.with_columns(pl.concat_str("tag", said, separator=PART).alias("key"))),
    ]


def _words(written: pl.DataFrame, context: FoldContext) -> list[pl.DataFrame]:
    """Terms, entities and languages of the rows that carry text."""
    facts = written.select(pl.row_index("row"), "g", "id", "ts", "item_id", "text", "snippet", "decay").with_columns(
        pl.col("decay").alias("weight"), pl.col("ts").alias("last")
    )
    found = terms.keywords(written["text"]).rename({"term": "key"}).join(facts, on="row")
    found = found.with_columns(pl.col("n").cast(_INT), pl.col("weight") * pl.col("n"))
    spoken = facts.with_columns(terms.languages(written["text"]).alias("key"), pl.lit(1, _INT).alias("n"))
    spoken = spoken.filter(pl.col("key").is_not_null())
    pieces = [TERMS.gather(found), LANGUAGES.gather(spoken), LANGUAGE_EVIDENCE.gather(spoken)]
    if context.gazetteer is None:
        return pieces
    named = context.gazetteer.find(written["text"]).rename({"entity": "key"}).join(facts, on="row")
    around = pl.max_horizontal(pl.col("start").cast(_INT) - SNIPPET_CHARS // 2, pl.lit(0, _INT))
    named = named.with_columns(
        pl.lit(1, _INT).alias("n"),
        # The text itself is not kept, so positions count in the snippet.
        pl.col("start").cast(_INT) - around,
        pl.col("end").cast(_INT) - around,
        pl.col("text").str.slice(around, SNIPPET_CHARS).alias("snippet"),
    )
    return [*pieces, ENTITIES.gather(named), ENTITY_EVIDENCE.gather(named)]


def _joined(left: str, right: str) -> pl.Expr:
    return pl.concat_str(left, right, separator=PART).alias("key")
