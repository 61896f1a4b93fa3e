"""Which tags items and texts carry, and which source is named."""

from __future__ import annotations

import facet_world as world
import numpy as np
import polars as pl
import pytest

from ray_profile.encode.heads import Odds, TagMatrix
from ray_profile.encode.taxonomy import Taxonomy
from ray_profile.profile.tagging import LONG, Tagger


def _items(*categories: list[str] | None) -> pl.DataFrame:
    return pl.DataFrame({"categories": list(categories)}, schema={"categories": pl.List(pl.String)})


def _tags(tagger: Tagger, items: pl.DataFrame, *vectors: list[float] | None) -> dict[int, dict[str, str]]:
    known = np.array([vector is not None for vector in vectors] or [False] * items.height)
    matrix = np.array([vector or [0.0] * 4 for vector in vectors] or [[0.0] * 4] * items.height, np.float16)
    found = tagger.tag_items(items, matrix, known)
    assert found.schema == LONG
    out: dict[int, dict[str, str]] = {}
    for row, tag, source, _ in found.rows():
        assert tag not in out.setdefault(row, {}), "a tag twice in one row"
        out[row][tag] = source
    return out


def test_without_a_taxonomy_the_finest_category_is_the_tag() -> None:
    items = _items(["Music", "Guitars"], None, [], ["家居"], ["Music", None])
    assert _tags(Tagger(), items) == {0: {"Guitars": "catalogue"}, 3: {"家居": "catalogue"}}


def test_words_are_matched_by_id_name_and_category_whatever_their_case_and_width() -> None:
    items = _items([" GUITARS "], ["ｇｕｉｔａｒｓ"], ["厨房"], ["coffee makers"], ["Guitar strings"])
    music = {"guitar": "catalogue", "music": "catalogue"}
    coffee = {"coffee": "catalogue", "kitchen": "catalogue"}
    assert _tags(world.TAGGER, items) == {0: music, 1: music, 2: {"kitchen": "catalogue"}, 3: coffee}


def test_the_catalogues_word_goes_before_a_resemblance_and_parents_follow_their_child() -> None:
    items = _items(["Guitars"], [], ["Music"])
    found = _tags(world.TAGGER, items, world.GUITAR, world.GUITAR, world.GUITAR)
    assert found[0] == {"guitar": "catalogue", "music": "catalogue"}
    assert found[1] == {"guitar": "zero-shot", "music": "zero-shot"}
    assert found[2] == {"guitar": "zero-shot", "music": "catalogue"}


def test_a_parent_takes_the_best_score_of_its_children() -> None:
    taxonomy = Taxonomy.parse(
        {
            "tags": [
                {"id": "all", "name": "all"},
                {"id": "mid", "name": "mid", "parent": "all"},
                {"id": "guitar", "name": "g", "parent": "mid"},
                {"id": "coffee", "name": "c", "parent": "mid"},
            ]
        }
    )
    tagger = Tagger(taxonomy, world.MATRIX)
    texts = tagger.tag_texts(np.array([[0.7, 0.65, 0, 0.3]], np.float16), np.array([0]))
    best = tagger.best([texts])
    scores = dict(best.select("tag", "score").rows())
    assert set(scores) == {"guitar", "coffee", "mid", "all"}
    assert scores["all"] == scores["mid"] == scores["guitar"] > scores["coffee"] > 0.6


def test_only_the_named_rows_are_tagged_and_keep_their_numbers() -> None:
    vectors = np.array([world.GUITAR, world.COFFEE, world.PLAIN, world.OUTDOOR], np.float16)
    found = world.TAGGER.tag_texts(vectors, np.array([1, 2, 3]))
    assert found.select("row", "tag").rows() == [(1, "coffee"), (3, "outdoor")]
    assert world.TAGGER.tag_texts(vectors, np.array([], int)).schema == LONG
    assert Tagger().tag_texts(vectors, np.arange(4)).is_empty()


#: Along axis 3, which says nothing to a plain encoder, the head hears of coffee; along the others it hears outdoor.
HEARD = TagMatrix(
    ("coffee", "outdoor"),
    np.array([[0, 0, 0, 9], [9, 9, 9, 0]], np.float32),
    np.full(2, 0.5, np.float32),
    Odds(1.0, np.zeros(2, np.float32), "softmax"),
)
LEARNT = Tagger(world.TAXONOMY, world.MATRIX, HEARD)


def test_reviews_are_tagged_by_the_models_head_and_all_else_by_resemblance() -> None:
    vectors = np.array([world.PLAIN, world.GUITAR, world.GUITAR, world.PLAIN], np.float16)
    found = LEARNT.tag_texts(vectors, np.arange(4), np.array([True, True, False, False]))
    assert found.schema == LONG
    assert found.select("row", "tag", "source").rows() == [
        (0, "coffee", "model"), (1, "outdoor", "model"), (2, "guitar", "zero-shot"),
    ]  # fmt: skip
    assert found["score"].to_list() == pytest.approx([1 / (1 + np.exp(-9))] * 2 + [1], abs=1e-6)
    some = LEARNT.tag_texts(vectors, np.array([1, 2]), np.array([True, True, False, False]))
    assert some.equals(found[1:])
    assert LEARNT.tag_texts(vectors, np.array([], int), np.array([], bool)).schema == LONG
    assert _tags(LEARNT, _items([]), world.GUITAR) == {0: {"guitar": "zero-shot", "music": "zero-shot"}}


def test_the_catalogue_goes_before_the_model_and_the_model_before_a_resemblance() -> None:
    parts = [
        pl.DataFrame([(row, "coffee", source, score)], schema=LONG, orient="row")
        for row, known in enumerate([("zero-shot", "model", "catalogue"), ("zero-shot", "model")])
        for source, score in zip(known, (0.99, 0.6, 1.0), strict=False)
    ]
    for order in (parts, parts[::-1]):
        best = LEARNT.best(order).filter(pl.col("tag") == "coffee").select("row", "source", "score")
        assert best.rows() == [(0, "catalogue", 1.0), (1, "model", pytest.approx(0.6))]
    assert set(LEARNT.best(parts)["tag"]) == {"coffee", "kitchen"}


def test_a_row_that_is_not_known_has_no_resemblance() -> None:
    assert _tags(world.TAGGER, _items([], []), None, world.OUTDOOR) == {1: {"outdoor": "zero-shot"}}
    assert _tags(world.TAGGER, _items()) == {}
