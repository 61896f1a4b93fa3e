"""The text facet's profile columns: feelings, tags with their evidence, keywords, entities, languages."""

from __future__ import annotations

import numpy as np
import polars as pl

from ray_profile.profile import statistics, text
from ray_profile.profile.facet import FuseContext, best_evidence, entries, explained, falling, listed
from ray_profile.state import OTHER, PART, TIME, distinct_keys

MAX_TAGS = 50
MAX_TERMS = 25
PRIOR_WEIGHT = 2.0  # how many views' worth of the whole shop's habits each share starts from
LIKED = 0.25  # balance (positive - negative) above which rows with a tag speak of liking, and below minus which not
MIN_TREND_ROWS = 3
MAX_FELT = 36  # periods

_INT, _FLOAT, _TEXT = pl.Int64(), pl.Float64(), pl.String()
EVIDENCE = pl.List(
    pl.Struct({"id": _TEXT, "kind": _TEXT, "weight": _FLOAT, "ts": TIME, "item_id": _TEXT, "snippet": _TEXT})
)
_TAG: dict[str, pl.DataType] = {
    "tag": _TEXT,
    "share": _FLOAT,  # of what this person does, in [0, 1], smoothed towards the shop's share
    #: Mean. Where the source is model: of the model's calibrated probabilities. Else: 1 for the catalogue's word, a
    #: cosine for a resemblance (zero-shot).
    "score": _FLOAT,
    "support": _INT,  # rows with the tag ...
    "of": _INT,  # ... of rows that could carry one
    "items": _INT,  # distinct items among them; estimated beyond 1,024 pairs of tag and item in a period
    "last": TIME,
    "stance": _TEXT,  # liked, mixed, disliked; null where no review speaks
    "source": _TEXT,  # catalogue, model or zero-shot: whose rows weigh most
    "weak": pl.Boolean(),  # fewer than two distinct items
    "evidence": EVIDENCE,
}
_KEYWORD: dict[str, pl.DataType] = {"term": _TEXT, "weight": _FLOAT, "n": _INT, "last": TIME, "id": _TEXT}
_ENTITY: dict[str, pl.DataType] = {  # of evidence, `start` and `end` are characters of the snippet
    "entity": _TEXT,
    "n": _INT,
    "last": TIME,
    "evidence": pl.List(
        pl.Struct({"id": _TEXT, "ts": TIME, "item_id": _TEXT, "start": _INT, "end": _INT, "snippet": _TEXT})
    ),
}
_LANGUAGE: dict[str, pl.DataType] = {
    "language": _TEXT,
    "share": _FLOAT,
    "evidence": pl.List(pl.Struct({"id": _TEXT, "ts": TIME, "item_id": _TEXT, "snippet": _TEXT})),
}
_FELT: dict[str, pl.DataType] = {  # shares of the newest periods in which they wrote, oldest first; n reviews
    "period": pl.Date(),
    "n": _INT,
    "negative": _FLOAT,
    "neutral": _FLOAT,
    "positive": _FLOAT,
}

DTYPES: dict[str, pl.DataType] = {
    "review_count": _INT,
    "text_count": _INT,
    "mean_rating": _FLOAT,
    "sentiment": pl.Struct(
        {
            "negative": _FLOAT,
            "neutral": _FLOAT,
            "positive": _FLOAT,
            "n": _INT,
            "trend": _FLOAT,  # change of (positive - negative) per 30 days; null under two periods or three rows
            "source": _TEXT,  # stars, model (trained with the encoder), probe (fitted on the shop's stars) or mixed
            "evidence": pl.List(
                pl.Struct(
                    {"feeling": _TEXT, "id": _TEXT, "weight": _FLOAT, "ts": TIME, "item_id": _TEXT, "snippet": _TEXT}
                )
            ),
        }
    ),
    "feelings": pl.List(pl.Struct(_FELT)),
    "tags": pl.List(pl.Struct(_TAG)),
    "keywords": pl.List(pl.Struct(_KEYWORD)),
    "entities": pl.List(pl.Struct(_ENTITY)),
    "languages": pl.List(pl.Struct(_LANGUAGE)),
    "text_vector": pl.List(pl.Float32()),
}


def vectors(states: pl.DataFrame, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Users (G,) who wrote, ascending, the decayed sums (G, D) of the vectors of their words, and its weights (G,)."""
    written = states.filter(pl.col("text_vector").is_not_null())
    u, scale = written["u"].to_numpy(), written["scale"].to_numpy()
    users, row = np.unique(u, return_inverse=True)
    sums = np.zeros((len(users), width))
    np.add.at(sums, row, written["text_vector"].list.to_array(width).to_numpy() * scale[:, None])
    return users, sums, np.bincount(row, written["text_weight"].to_numpy() * scale, minlength=len(users))


def fuse(states: pl.DataFrame, context: FuseContext) -> list[pl.DataFrame]:
    """States with `u` and `scale` (see facet.py) -> frames [u, ...] of this facet's profile columns."""
    rating = pl.when(pl.col("rating_n").sum() > 0).then(pl.col("rating_sum").sum() / pl.col("rating_n").sum())
    counts = states.group_by("u").agg(
        pl.col("reviews").sum().alias("review_count"),
        pl.col("texts").sum().alias("text_count"),
        rating.alias("mean_rating"),
    )
    return [
        counts,
        _sentiment(states),
        _felt(states),
        _tags(states, context.statistics),
        _keywords(states, context.statistics),
        _entities(states),
        _languages(states),
    ]


def _sentiment(states: pl.DataFrame) -> pl.DataFrame:
    total = sum((pl.col(name) for name in text.FEELINGS), pl.lit(0.0))
    sources = entries(states, text.SENTIMENT_SOURCES)
    voices = sources.group_by("u").agg(
        pl.col("n").sum(),
        pl.when(pl.len() > 1).then(pl.lit("mixed")).otherwise(pl.col("key").first()).alias("source"),
    )
    scaled = states.group_by("u").agg((pl.col(name) * pl.col("scale")).sum() for name in text.FEELINGS)
    shares = scaled.filter(total > 0).with_columns(pl.col(name) / total for name in text.FEELINGS)
    periods = states.filter(total > 0).select(
        "u",
        (pl.col("period").cast(pl.Int32) / 30.0).alias("x"),
        ((pl.col("positive") - pl.col("negative")) / total).alias("y"),
        total.alias("w"),
    )
    # Both are centred: weights may differ so much that the mean's rounding would outweigh the lighter periods.
    x, y = (pl.col(name) - (pl.col("w") * pl.col(name)).sum() / pl.col("w").sum() for name in "xy")
    slope = (pl.col("w") * x * y).sum() / (pl.col("w") * x * x).sum()
    trend = periods.group_by("u").agg(pl.when(pl.len() > 1).then(slope).alias("trend"))
    rows = best_evidence(states, text.SENTIMENT_EVIDENCE).rename({"key": "feeling"})
    inner = DTYPES["sentiment"].to_schema()["evidence"].inner.to_schema()  # type: ignore[attr-defined]
    joined = (
        shares.join(voices, on="u")
        .join(trend, on="u", how="left")
        .join(listed(rows, "evidence", inner), on="u", how="left")
    )
    joined = joined.with_columns(pl.when(pl.col("n") >= MIN_TREND_ROWS).then("trend").alias("trend"))
    fields = [pl.col(name) for name in DTYPES["sentiment"].to_schema()]  # type: ignore[attr-defined]
    return joined.select("u", pl.struct(fields).alias("sentiment"))


def _felt(states: pl.DataFrame) -> pl.DataFrame:
    """[u, feelings]: how they felt in each period."""
    total = sum((pl.col(name) for name in text.FEELINGS), pl.lit(0.0))
    voices = pl.col(text.SENTIMENT_SOURCES.name).list.eval(pl.element().struct.field("n")).list.sum()
    felt = states.filter(total > 0).sort("u", "period", descending=[False, True])
    felt = felt.select("u", "period", voices.alias("n"), *(pl.col(name) / total for name in text.FEELINGS))
    newest = listed(felt, "feelings", _FELT, at_most=MAX_FELT)
    return newest.with_columns(pl.col("feelings").list.reverse())


def _tags(states: pl.DataFrame, corpus: pl.DataFrame) -> pl.DataFrame:
    rows = states.group_by("u").agg(
        pl.col("taggable").sum().alias("of"), (pl.col("taggable_weight") * pl.col("scale")).sum().alias("all")
    )
    prior = statistics.of(corpus, "tag").select(
        pl.col("key").alias("tag"), (pl.col("value") / max(statistics.total(corpus, "taggable"), 1.0)).alias("prior")
    )
    parts = pl.col("key").str.split_exact(PART, 1).struct.rename_fields(["key", "said"])
    shown = best_evidence(states, text.TAG_EVIDENCE).with_columns(parts.alias("key")).unnest("key")
    tags = _tag_sums(states).join(_tag_items(states, shown), on=["u", "tag"], how="left")
    tags = tags.join(rows, on="u").join(prior, on="tag", how="left")
    felt = sum((pl.col(name) for name in text.FEELINGS), pl.lit(0.0))
    balance = ((pl.col("positive") - pl.col("negative")) / felt).round(9)
    stance = (
        pl.when(felt <= 0).then(None).when(balance > LIKED).then(pl.lit("liked"))
        .when(balance < -LIKED).then(pl.lit("disliked")).otherwise(pl.lit("mixed"))
    )  # fmt: skip
    smoothed = (pl.col("weight") + PRIOR_WEIGHT * pl.col("prior").fill_null(0.0)) / (pl.col("all") + PRIOR_WEIGHT)
    tags = tags.with_columns(
        smoothed.alias("share"),
        pl.col("n").alias("support"),
        pl.col("items").fill_null(0),
        stance.alias("stance"),
        (pl.col("items").fill_null(0) < 2).alias("weak"),
    )
    tags = tags.sort("u", falling("share"), "tag").group_by("u", maintain_order=True).head(MAX_TAGS)
    # What was said first, then what was done: "said" sorts after "done".
    shown = shown.sort(["u", "key", "said"], descending=[False, False, True], maintain_order=True)
    return listed(explained(tags.rename({"tag": "key"}), shown, "tag", EVIDENCE), "tags", _TAG)


def _tag_sums(states: pl.DataFrame) -> pl.DataFrame:
    """[u, tag, source, n, weight, score, *FEELINGS, last]; the source is the one of greater weight.

    The score is a mean over rows of one measure: probabilities are not mixed with cosines and the catalogue's ones.
    """
    sums = entries(states, text.TAGS, scaled=("weight", *text.FEELINGS)).filter(pl.col("key") != OTHER)
    parts = pl.col("key").str.split_exact(PART, 1).struct.rename_fields(["tag", "source"])
    sums = sums.with_columns(parts.alias("key")).unnest("key").sort("u", "tag", falling("weight"), "source")
    is_model = pl.col("source") == "model"
    score, n = (pl.col(name).filter(is_model == is_model.first()).sum() for name in ("score", "n"))
    return sums.group_by("u", "tag", maintain_order=True).agg(
        pl.col("source").first(),
        (score / n).alias("score"),
        *(pl.col(name).sum() for name in ("n", "weight", *text.FEELINGS)),
        pl.col("last").max(),
    )


def _tag_items(states: pl.DataFrame, shown: pl.DataFrame) -> pl.DataFrame:
    """[u, tag, items]: distinct items by tag; the kept ones over the share that was kept, where a map was full.

    The evidence `shown` [u, key, item_id, ...] names some for certain.
    """
    name = text.TAG_ITEMS.name
    pairs = entries(states, text.TAG_ITEMS).filter(pl.col("key") != OTHER)
    named = pl.col(name).list.eval(pl.element().struct.field("key") != OTHER).list.sum()
    kept = states.select("u", name, named.cast(_FLOAT).alias("kept")).with_columns(pl.col("kept").alias("seen"))
    full = pl.col("kept") < pl.col(name).list.len()
    over = kept.filter(full).drop("seen")
    over = over.with_columns(distinct_keys(over, text.TAG_ITEMS).alias("seen"))
    share = pl.concat([kept.filter(~full), over]).group_by("u").agg(pl.col("kept").sum() / pl.col("seen").sum())
    tag = pl.col("key").str.split(PART).list.first().alias("tag")
    items = pairs.group_by("u", tag).agg(pl.len().alias("items")).join(share, on="u")
    items = items.select("u", "tag", (pl.col("items") / pl.col("kept")).round().cast(_INT))
    least = shown.group_by("u", pl.col("key").alias("tag")).agg(
        pl.col("item_id").drop_nulls().n_unique().cast(_INT).alias("items")
    )
    return pl.concat([items, least]).group_by("u", "tag").agg(pl.col("items").max())


def _keywords(states: pl.DataFrame, corpus: pl.DataFrame) -> pl.DataFrame:
    """TF-IDF: decayed count x ln(1 + (writers - df + 1/2) / (df + 1/2)), df the users with the term (Robertson and
    Zaragoza, 2009, eq. 3.3, with Lucene's 1 +): never quite 0, so that the only user of a shop has keywords too.

    A word that never stands outside one of the chosen phrases is left to the phrase.
    """
    writers = max(statistics.total(corpus, "writers"), 1.0)
    common = statistics.of(corpus, "term").rename({"value": "df"})
    found = entries(states, text.TERMS, scaled=("weight",)).filter(pl.col("key") != OTHER)
    found = found.join(common, on="key", how="left")
    df = pl.col("df").fill_null(1.0).clip(upper_bound=writers)  # statistics may be older than the states
    idf = (1 + (writers - df + 0.5) / (df + 0.5)).log()
    found = found.with_columns((pl.col("weight") * idf).alias("weight"), pl.col("key").alias("term"))
    # What was said once tells little beside what was said again, however rare the word.
    found = found.filter(pl.col("weight") > 0).with_columns((pl.col("n") > 1).alias("again"))
    found = found.sort("u", ~pl.col("again"), falling("weight"), "term")
    found = found.group_by("u", maintain_order=True).head(2 * MAX_TERMS)
    inside = _parts_of_phrases(found)
    found = found.join(inside, on=["u", "term"], how="left", maintain_order="left")
    found = found.filter(pl.col("in_phrase").is_null() | (pl.col("n") > pl.col("in_phrase")))
    return listed(found.group_by("u", maintain_order=True).head(MAX_TERMS), "keywords", _KEYWORD)


def _parts_of_phrases(found: pl.DataFrame) -> pl.DataFrame:
    """[u, term, in_phrase]: the words inside the phrases among some terms, and how often the phrase was said.

    A Chinese phrase is written without a space, so each of its beginnings and ends may be a word.
    """
    spaced = found.filter(pl.col("term").str.contains(" ")).select("u", "n", pl.col("term").str.split(" "))
    chinese = found.filter(pl.col("term").str.contains(r"^\p{Han}{4,}$"))
    ends = [
        chinese.filter(pl.col("term").str.len_chars() > size).select("u", "n", end.alias("term"))
        for size in range(2, 7)
        for end in (pl.col("term").str.head(size), pl.col("term").str.tail(size))
    ]
    parts = pl.concat([spaced.explode("term"), *ends])
    return parts.group_by("u", "term").agg(pl.col("n").max().alias("in_phrase"))


def _entities(states: pl.DataFrame) -> pl.DataFrame:
    found = entries(states, text.ENTITIES, scaled=("weight",)).filter(pl.col("key") != OTHER)
    found = found.sort("u", falling("weight"), "key").group_by("u", maintain_order=True).head(MAX_TERMS)
    named = best_evidence(states, text.ENTITY_EVIDENCE)
    return listed(explained(found, named, "entity", _ENTITY["evidence"]), "entities", _ENTITY)


def _languages(states: pl.DataFrame) -> pl.DataFrame:
    spoken = entries(states, text.LANGUAGES).with_columns((pl.col("n") / pl.col("n").sum().over("u")).alias("share"))
    spoken = spoken.sort(["u", "share", "key"], descending=[False, True, False])
    heard = best_evidence(states, text.LANGUAGE_EVIDENCE)
    return listed(explained(spoken, heard, "language", _LANGUAGE["evidence"]), "languages", _LANGUAGE)
