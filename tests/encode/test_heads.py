from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ray_profile.config import Encoder
from ray_profile.encode.heads import MAX_TAGS, Probe, TagMatrix, sentiment_of_stars
from ray_profile.encode.taxonomy import Taxonomy
from ray_profile.encode.text import TextEncoder
from ray_profile.errors import EncoderError


def test_stars_become_sentiments() -> None:
    hot = sentiment_of_stars([1, 2, 2.5, 3, 3.4, 3.5, 4, 5, np.nan])
    assert hot[:8].argmax(1).tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    assert hot[:8].sum(1).tolist() == [1] * 8
    assert np.isnan(hot[8]).all()
    assert sentiment_of_stars([]).shape == (0, 3)


def separable(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, pl.Series]:
    """Unit vectors whose direction tells the stars, with noise; one user in ten rows."""
    draw = np.random.default_rng(seed)
    stars = draw.choice([1.0, 3.0, 5.0], rows, p=[0.2, 0.1, 0.7])
    x = draw.normal(size=(rows, 16)) * 0.5
    x[np.arange(rows), (stars // 2).astype(int)] += 2
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x.astype(np.float16), stars, pl.Series([f"u{i // 10}" for i in range(rows)])


def test_a_probe_learns_and_reports_unseen_users() -> None:
    x, stars, users = separable(1000)
    probe = Probe.fit(x, stars, users)
    assert probe is not None
    assert probe.report["rows"] + probe.report["held_out_rows"] == 1000
    assert 100 < probe.report["held_out_rows"] < 300
    assert probe.report["macro_f1"] > 0.9 > probe.report["majority_macro_f1"]
    shares = probe.predict(x)
    assert shares.dtype == np.float32
    assert np.allclose(shares.sum(1), 1, atol=1e-5)
    assert np.abs(shares.mean(0) - [0.2, 0.1, 0.7]).max() < 0.05
    assert probe.predict(x[:0]).shape == (0, 3)


def test_a_probe_does_not_depend_on_the_order_of_rows() -> None:
    x, stars, users = separable(600)
    order = np.random.default_rng(1).permutation(600)
    a = Probe.fit(x, stars, users)
    b = Probe.fit(x[order], stars[order], users.gather(order))
    assert a is not None
    assert b is not None
    assert a.digest == b.digest


def test_unrated_rows_are_left_out() -> None:
    x, stars, users = separable(600)
    blank = np.arange(600) % 3 == 0
    a = Probe.fit(x, np.where(blank, np.nan, stars), users)
    b = Probe.fit(x[~blank], stars[~blank], users.filter(~pl.Series(blank)))
    assert a is not None
    assert b is not None
    assert a.digest == b.digest


def test_no_probe_where_there_is_nothing_to_learn() -> None:
    x, stars, users = separable(600)
    assert Probe.fit(x[:150], stars[:150], users[:150]) is None  # too few
    assert Probe.fit(x, np.full(600, 5.0), users) is None  # one class
    assert Probe.fit(x, np.full(600, np.nan), users) is None  # no rating
    assert Probe.fit(x, stars, pl.Series(["one"] * 600)) is None  # nobody to hold out
    noise = np.random.default_rng(2).normal(size=x.shape).astype(np.float16)
    assert Probe.fit(noise, np.where(stars == 1, 1.0, 5.0), users) is None  # no better than the majority


def test_a_class_that_never_occurs_has_no_probability() -> None:
    x, stars, users = separable(800)
    kept = stars != 3
    probe = Probe.fit(x[kept], stars[kept], users.filter(pl.Series(kept)))
    assert probe is not None
    assert probe.predict(x)[:, 1].max() == 0
    assert np.array_equal(Probe.from_bytes(probe.to_bytes()).predict(x), probe.predict(x))


def test_a_probe_survives_its_file_and_refuses_others() -> None:
    x, stars, users = separable(600)
    probe = Probe.fit(x, stars, users)
    assert probe is not None
    again = Probe.from_bytes(probe.to_bytes())
    assert (again.digest, again.report) == (probe.digest, probe.report)
    for broken in (b"", b"pickle", probe.to_bytes()[:-1]):
        with pytest.raises(EncoderError, match="train it again"):
            Probe.from_bytes(broken)


@dataclass
class Letters:
    """An encoder of letter counts: enough to see what a tag does with vectors."""

    def encode(self, texts: pl.Series) -> Letters:
        counts = [[text.lower().count(letter) + 1e-3 for letter in "abcdefghijklmnopqrstuvwxyz"] for text in texts]
        x = np.array(counts, dtype=np.float32).reshape(-1, 26)
        self.vectors = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16)
        return self


def tags(*names: str, **examples: list[str]) -> Taxonomy:
    return Taxonomy.parse({"tags": [{"id": n, "name": n, "examples": examples.get(n, [])} for n in names]})


def test_a_tag_is_the_mean_of_its_texts() -> None:
    matrix = TagMatrix.build(tags("x", x=["y", "y"]), Letters())
    assert np.allclose(np.linalg.norm(matrix.vectors, axis=1), 1, atol=1e-5)
    assert np.allclose(matrix.vectors[0, [23, 24]], [1 / 5**0.5, 2 / 5**0.5], atol=0.01)


def test_tags_are_the_few_furthest_above_their_thresholds() -> None:
    encoder = Letters()
    matrix = TagMatrix.build(tags("q", "x", "z", "j", "qx"), encoder, threshold=0.3)
    found = matrix.tags_of(encoder.encode(pl.Series(["qqxx", "eeee", "qxzj", "jj"])).vectors)
    assert found.schema == {"row": pl.UInt32, "tag": pl.String, "score": pl.Float32}
    assert found.filter(pl.col("row") == 0)["tag"].to_list()[0] == "qx"
    assert found["row"].unique().sort().to_list() == [0, 2, 3]
    assert found.group_by("row").len()["len"].max() == MAX_TAGS
    assert found.equals(found.sort("row", "score", "tag", descending=[False, True, False]))
    assert found["score"].min() >= 0.3


def test_no_rows_and_no_tags_give_no_tags() -> None:
    encoder = Letters()
    assert TagMatrix.build(tags("x"), encoder).tags_of(np.empty((0, 26), np.float16)).is_empty()
    empty = TagMatrix.build(Taxonomy(()), encoder)
    assert empty.tags_of(encoder.encode(pl.Series(["x"])).vectors).is_empty()


@pytest.mark.slow
def test_zero_shot_tags_on_real_chinese_reviews(shared: Path) -> None:
    settings = Encoder(model=str(shared / "models/multilingual-e5-small-zh-en"), prefix="query: ", max_length=128)
    encoder = TextEncoder.load(settings, device="cpu")
    reviews = pl.read_parquet(shared / "data/shopping_zh/reviews.parquet").drop_nulls()
    reviews = reviews.unique("review", maintain_order=True).sample(300, seed=3).with_row_index("row")
    matrix = TagMatrix.build(tags(*sorted(set(reviews["cat"]))), encoder)
    found = matrix.tags_of(encoder.encode(reviews["review"]).vectors).join(reviews, on="row")
    assert len(found) > 15
    assert (found["tag"] == found["cat"]).mean() > 0.85


def test_zero_shot_tags_of_plain_english() -> None:
    encoder = TextEncoder.load(Encoder(), device="cpu")
    taxonomy = tags("guitar", "coffee", "shoes", guitar=["The strings of this guitar stay in tune."])
    matrix = TagMatrix.build(taxonomy, encoder)
    texts = ["This acoustic guitar has a warm tone", "Running shoes that fit", "It arrived late and I sent it back"]
    found = matrix.tags_of(encoder.encode(pl.Series(texts)).vectors)
    assert found.select("row", "tag").rows() == [(0, "guitar"), (1, "shoes")]
