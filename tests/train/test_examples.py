"""What training learns from: labels that somebody gave, users on one side, items by their words."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_profile.config import Encoder
from ray_profile.encode.taxonomy import Tag, Taxonomy
from ray_profile.encode.tokens import Tokenizer
from ray_profile.errors import SourceError
from ray_profile.schema import ITEMS, ROWS
from ray_profile.train.batch import UNKNOWN, classes, collate
from ray_profile.train.examples import Known, examples, insist, sentiment_label, split_of
from ray_profile.train.labels import read_labels
from ray_profile.train.shards import MIN_ROWS, title_key, tokenised
from ray_profile.train_config import Labels, Train

OUTDOOR = Taxonomy(
    (
        Tag("outdoor", "Outdoor", categories=("Outdoors",)),
        Tag("tents", "Tents", parent="outdoor", categories=("Camping Tents",)),
        Tag("tea", "Tea"),
    )
)


def items(*rows: tuple[str, str | None, list[str] | None]) -> pl.DataFrame:
    frame = pl.DataFrame(ITEMS.empty_table())
    made = pl.DataFrame(
        {"item_id": [r[0] for r in rows], "title": [r[1] for r in rows], "categories": [r[2] for r in rows]},
        schema_overrides={"title": pl.String, "categories": pl.List(pl.String)},
    )
    return pl.concat([frame, made], how="diagonal_relaxed")


def rows(*said: tuple[str, str, str | None, str | None, float | None]) -> pl.DataFrame:
    """(id, user, item, text, rating), all reviews."""
    made = pl.DataFrame(
        said,
        schema={"id": pl.String, "user_id": pl.String, "item_id": pl.String, "text": pl.String, "rating": pl.Float32},
        orient="row",
    )
    made = made.with_columns(
        kind=pl.lit("review"), ts=pl.lit(datetime(2024, 1, 1, tzinfo=UTC)), weekday=pl.lit(0, pl.Int8)
    )
    return pl.concat([pl.DataFrame(ROWS.empty_table()), made], how="diagonal_relaxed")


def known(taxonomy: Taxonomy | None = OUTDOOR, labels: pl.DataFrame | None = None) -> Known:
    catalogue = items(
        ("tent", "Dome tent", ["Outdoors", "Camping Tents"]), ("tea", "绿茶", ["tea"]), ("odd", None, None)
    )
    return Known.of(catalogue, labels, taxonomy)


def test_stars_categories_and_titles_become_labels() -> None:
    found = examples(
        rows(("1", "a", "tent", "dry", 5.0), ("2", "b", "tea", "淡", 3.0), ("3", "c", "odd", "bad", 1.0)),
        known(),
        Train(),
    )
    assert found["sentiment"].to_list() == [2, 1, 0]
    assert found["tags"].to_list() == [[1], [2], None]  # the finest tag; an item without a category is no negative
    assert found["about"].to_list() == ["Dome tent. Outdoors > Camping Tents", "绿茶. tea", None]


def test_rows_without_text_and_other_kinds_are_no_examples() -> None:
    said = rows(("1", "a", "tent", None, 5.0), ("2", "a", "tent", "dry", None))
    bought = said.with_columns(kind=pl.lit("search"))
    found = examples(pl.concat([said, bought]), known(), Train())
    assert found["id"].to_list() == ["2"]
    assert found["sentiment"].to_list() == [None]


def test_the_shops_own_labels_go_before_stars_and_categories() -> None:
    labels = pl.DataFrame(
        {"id": ["1", "2"], "sentiment": [0, None], "tags": [None, ["tea", "tents"]]},
        schema={"id": pl.String, "sentiment": pl.Int8, "tags": pl.List(pl.String)},
    )
    found = examples(rows(("1", "a", "tent", "dry", 5.0), ("2", "b", "tent", "x", 4.0)), known(labels=labels), Train())
    assert found["sentiment"].to_list() == [0, 2]
    assert found["tags"].to_list() == [[1], [1, 2]]


def test_a_label_that_the_taxonomy_lacks_is_named() -> None:
    labels = pl.DataFrame(
        {"id": ["1"], "sentiment": [None], "tags": [["boats"]]}, schema_overrides={"sentiment": pl.Int8}
    )
    with pytest.raises(SourceError, match="'boats'"):
        known(labels=labels)


def test_without_a_taxonomy_common_categories_are_the_tags() -> None:
    catalogue = items(*((f"i{at}", "x", ["A", "B" if at < 6 else "rare"]) for at in range(8)))
    made = Known.of(catalogue, None, None)
    assert [tag.id for tag in made.taxonomy.tags] == ["B"]


@given(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=50, unique=True), st.integers(0, 9))
def test_a_user_is_always_on_the_same_side(users: list[str], fold: int) -> None:
    settings = Train(fold=fold)
    sides = split_of(pl.Series(users), settings).to_list()
    twice = split_of(pl.Series(users + users[::-1]), settings).to_list()
    assert twice == sides + sides[::-1]


def test_folds_give_every_user_one_turn_as_test() -> None:
    users = pl.Series([f"user {at}" for at in range(4_000)])
    tests = [(split_of(users, Train(split=(70, 10, 20), fold=fold)) == "test").to_numpy() for fold in range(5)]
    assert (np.sum(tests, 0) == 1).all()
    assert all(0.17 < each.mean() < 0.23 for each in tests)


def test_words_for_a_feeling() -> None:
    assert sentiment_label(pl.Series([1, 0, None])).to_list() == [2, 0, None]
    assert sentiment_label(pl.Series(["Positive", "neutral ", "", "0", "1.0"])).to_list() == [2, 1, None, 0, 2]
    with pytest.raises(SourceError, match="'meh'"):
        sentiment_label(pl.Series(["meh"]))


def test_labels_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "labels.csv"
    path.write_text("review,felt,tags\n1,1,tea|tents\n2,,\n", encoding="utf-8")
    found = read_labels(Labels(paths=(str(path),), columns={"id": "review", "sentiment": "felt", "tags": "tags"}))
    assert found.rows() == [("1", 2, ["tea", "tents"]), ("2", None, None)]
    with pytest.raises(SourceError, match=r"no column 'feeling'; it has review, felt, tags"):
        read_labels(Labels(paths=(str(path),), columns={"id": "review", "sentiment": "feeling"}))
    with pytest.raises(SourceError, match="matches no file"):
        read_labels(Labels(paths=(str(tmp_path / "none-*.csv"),), columns={"id": "review", "tags": "tags"}))


@pytest.mark.parametrize(
    ("objective", "held", "said"),
    [
        ("sentiment", {"sentiment": [0, 0, 9]}, "two classes, and all are positive"),
        ("sentiment", {"sentiment": [0, 0, 0]}, "no review has a rating; map `rating`"),
        ("tags", {"tags": [5, 0, 0]}, "match 1 of 3 tags"),
        ("contrast", {"paired": 0}, "name a catalogue"),
        ("mlm", {"rows": 0}, "no review with text"),
    ],
)
def test_an_objective_without_anything_to_learn_says_what_it_needs(
    objective: str, held: dict[str, object], said: str
) -> None:
    whole = {"rows": 9, "sentiment": [1, 1, 1], "tags": [3, 3, 3], "paired": 9}
    insist(whole, (objective,), 3)
    with pytest.raises(SourceError, match=said):
        insist({**whole, **held}, (objective,), 3)


def test_titles_of_the_same_words_are_alike() -> None:
    keys = title_key(
        pl.Series(["Dome Tent, 2 person", "2 PERSON dome tent!", "Dome tent, 3 person", "绿茶", "茶绿", None])
    )
    assert keys[0] == keys[1] != keys[2]
    assert keys[3] == keys[4]
    assert keys[5] is None


@pytest.fixture(scope="module")
def reader(encoder: Path) -> Tokenizer:
    return Tokenizer.load(Encoder(model=str(encoder), max_length=64))


def test_tokens_and_what_says_nothing_of_its_item(reader: Tokenizer) -> None:
    said = [(str(at), "u", "tent", f"unusual {at:04d} pegs", 5.0) for at in range(MIN_ROWS)]
    said += [(f"g{at}", "u", "tent", "great product", 5.0) for at in range(200)]
    found = tokenised(examples(rows(*said), known(), Train()), reader, reader)
    assert found["ids"].list.len().to_list() == found["length"].to_list()
    generic = found["id"].str.starts_with("g")
    # A tokenizer of bytes has common tokens only, so that nothing tells: by words it is another matter.
    assert found.filter(generic)["about_ids"].null_count() == 200
    assert (found["about_length"] == 0).to_list() == found["about_ids"].is_null().to_list()


def test_a_batch_has_what_its_rows_have(reader: Tokenizer) -> None:
    said = rows(("1", "a", "tent", "dry and light", None), ("2", "b", "tea", "淡", 3.0), ("3", "c", None, "x", 1.0))
    batch = collate(tokenised(examples(said, known(), Train()), reader, reader), 3)
    assert batch.rows == 3
    assert batch.names == ("1", "2", "3")
    assert batch.sentiment_B.tolist() == [UNKNOWN, 1, 0]
    assert batch.tags_BT[0].tolist() == [0, 1, 0]
    assert batch.tags_BT[2].isnan().all()
    assert batch.mask_BL.sum(1).tolist() == [15, 5, 3]  # bytes, and the two special tokens
    assert not batch.about_mask_BL[2].any()


def test_rows_are_drawn_by_their_rarest_tag() -> None:
    frame = pl.DataFrame({"tags": [[0, 1], [0], None, []]}, schema={"tags": pl.List(pl.Int32)})
    assert classes(frame, "tags", np.array([5, 2, 0])).tolist() == [1, 0, 3, 3]
