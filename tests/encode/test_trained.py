"""The heads of a trained model: their file, their probabilities, and what their model.json says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import handmade
import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from ray_profile.config import Encoder
from ray_profile.encode.heads import MAX_TAGS, TagMatrix
from ray_profile.encode.taxonomy import Tag, Taxonomy
from ray_profile.encode.trained import Heads, check, settled, stored_taxonomy
from ray_profile.errors import EncoderError

IDS = ("guitar", "咖啡", "outdoor")
RESIDUAL = np.arange(12, dtype=np.float32).reshape(3, 4) / 10
TAGS = handmade.tag_head(IDS, RESIDUAL, bias=[0.1, -0.2, 0.3], threshold=[0.2, 0.4, 0.6], default_threshold=0.7)
FELT = handmade.sentiment(np.eye(3, 4) * 5, (0, -1, 1))
HEADS = Heads(FELT, np.array([0.5, 0, -0.25], np.float32), TAGS, {"macro_f1": 0.61})


class Axes:
    """An encoder whose n-th text lies along the n-th axis of four."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def encode(self, texts: pl.Series) -> Axes:
        self.texts = texts.to_list()
        self.vectors = np.eye(len(texts), 4, dtype=np.float16)
        return self


def taxonomy(*ids: str) -> Taxonomy:
    return Taxonomy(tuple(Tag(name, name) for name in ids))


def changed(data: bytes, drop: tuple[str, ...] = (), heads: Any = None, **tensors: Any) -> bytes:
    """The file with other tensors (by name, dots as __) and other metadata."""
    kept = {name: value for name, value in load(data).items() if name not in drop}
    said = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    known = {name.replace("__", "."): np.asarray(value) for name, value in tensors.items()}
    return save({**kept, **known}, metadata=said if heads is None else heads)


def test_heads_survive_their_file() -> None:
    again = Heads.from_bytes(HEADS.to_bytes())
    assert again.report == {"macro_f1": 0.61}
    assert again.sentiment is not None
    assert again.tags is not None
    assert again.sentiment.source == "model"
    assert np.array_equal(again.sentiment.weights, FELT.weights)
    assert np.array_equal(again.sentiment.bias, FELT.bias)
    assert np.array_equal(again.decision, HEADS.decision)
    for name in ("residual", "bias", "threshold"):
        assert np.array_equal(getattr(again.tags, name), getattr(TAGS, name))
    assert (again.tags.ids, again.tags.activation) == (IDS, "softmax")
    scalars = (again.tags.scale, again.tags.default_bias, again.tags.default_threshold)
    assert scalars == pytest.approx((4.0, 0.0, 0.7))
    assert again.to_bytes() == HEADS.to_bytes()


def test_the_file_is_float32_under_the_documented_names() -> None:
    tensors = load(HEADS.to_bytes())
    assert {name: value.shape for name, value in tensors.items()} == {
        "sentiment.weight": (3, 4), "sentiment.bias": (3,), "sentiment.decision": (3,), "tags.residual": (3, 4),
        "tags.bias": (3,), "tags.threshold": (3,), "tags.scale": (1,), "tags.default_bias": (1,),
        "tags.default_threshold": (1,),
    }  # fmt: skip
    assert {str(value.dtype) for value in tensors.values()} == {"float32"}


def test_either_head_may_be_absent() -> None:
    only_felt, only_tags = (Heads.from_bytes(each.to_bytes()) for each in (Heads(FELT), Heads(tags=TAGS)))
    assert only_felt.tags is None
    assert only_felt.sentiment is not None
    assert only_tags.sentiment is None
    assert only_tags.tags is not None


def test_a_class_that_never_occurred_stays_excluded() -> None:
    heads = Heads.from_bytes(Heads(handmade.sentiment(np.eye(3, 4), (0, -np.inf, 0))).to_bytes())
    assert heads.sentiment is not None
    shares = heads.sentiment.predict(handmade.unit([[1, 2, 3, 4]]))
    assert shares[0, 1] == 0
    assert heads.labels(shares).tolist() == [2]


def test_a_label_is_the_likeliest_class_after_its_offset() -> None:
    shares = np.array([[0.3, 0.3, 0.4], [0.1, 0.1, 0.8]])
    assert Heads().labels(shares).tolist() == [2, 2]
    assert Heads(decision=np.array([0.5, 0, 0], np.float32)).labels(shares).tolist() == [0, 2]


BROKEN = {
    "no file": (b"", "holds no heads"),
    "cut": (HEADS.to_bytes()[:-1], "holds no heads"),
    "no metadata": (changed(HEADS.to_bytes(), heads={}), "KeyError: 'heads'"),
    "other metadata": (changed(HEADS.to_bytes(), heads={"heads": "[]"}), "holds no heads"),
    "half of a group": (changed(HEADS.to_bytes(), drop=("sentiment.bias",)), r"lacks sentiment.bias.*float32 \(3\)"),
    "half of tags": (changed(HEADS.to_bytes(), drop=("tags.scale",)), r"lacks tags.scale.*float32 \(1\)"),
    "float16": (changed(HEADS.to_bytes(), tags__bias=np.zeros(3, np.float16)), r"float16 \(3,\).*float32 \(3\)"),
    "two tags": (changed(HEADS.to_bytes(), tags__residual=np.zeros((2, 4), np.float32)), r"\(2, 4\).*\(3, D\)"),
    "no width": (changed(HEADS.to_bytes(), tags__residual=np.zeros((3, 0), np.float32)), r"\(3, 0\).*\(3, D\)"),
    "flat": (changed(HEADS.to_bytes(), sentiment__weight=np.zeros(12, np.float32)), r"\(12,\).*\(3, D\)"),
    "nan": (changed(HEADS.to_bytes(), tags__bias=np.array([0, np.nan, 0], np.float32)), "tags.bias holds nan"),
    "infinite": (changed(HEADS.to_bytes(), sentiment__bias=np.array([0, np.inf, 0], np.float32)), "holds inf"),
    "no class": (changed(HEADS.to_bytes(), sentiment__bias=np.full(3, -np.inf, np.float32)), "holds -inf"),
    "weights": (changed(HEADS.to_bytes(), sentiment__weight=np.full((3, 4), -np.inf, np.float32)), "holds -inf"),
    "threshold": (
        changed(HEADS.to_bytes(), tags__threshold=np.zeros(3, np.float32)),
        "tags.threshold holds 0.*above 0",
    ),
    "scale": (changed(HEADS.to_bytes(), tags__scale=np.array([-1], np.float32)), "tags.scale holds -1.*above 0"),
    "twice": (Heads(tags=handmade.tag_head(("a", "a"), np.ones((2, 4)))).to_bytes(), "list of different ids"),
    "relu": (Heads(tags=handmade.tag_head(("a",), np.ones((1, 4)), "relu")).to_bytes(), "'relu'.*softmax or sigmoid"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_file_says_what_is_wrong_and_what_to_do(what: str) -> None:
    data, says = BROKEN[what]
    with pytest.raises(EncoderError, match=rf"here\.safetensors.*{says}.*train the model again") as caught:
        Heads.from_bytes(data, "here.safetensors")
    assert caught.value.exit_code == 2


def test_probabilities_are_what_the_formula_says() -> None:
    v = handmade.unit(np.array([[1, 2, 3, 4], [-1, 0, 2, 0]]))
    a = np.eye(3, 4) + RESIDUAL
    logits = 4.0 * v @ a.T + [0.1, -0.2, 0.3]
    odds = np.exp(logits)
    for activation, wanted in (("softmax", odds / odds.sum(1, keepdims=True)), ("sigmoid", odds / (1 + odds))):
        head = handmade.tag_head(IDS, RESIDUAL, activation, bias=[0.1, -0.2, 0.3], threshold=[1e-9] * 3)  # type: ignore[arg-type]
        found = head.matrix(taxonomy(*IDS), Axes()).tags_of(v)
        got = np.zeros((2, 3))
        for row, tag, score in found.rows():
            got[row, IDS.index(tag)] = score
        assert got == pytest.approx(wanted, abs=1e-6)
        assert found.schema == {"row": pl.UInt32, "tag": pl.String, "score": pl.Float32}
        assert found.equals(found.sort("row", "score", "tag", descending=[False, True, False]))


def test_a_tag_is_given_from_its_threshold_on_and_the_furthest_above_it_by_ratio() -> None:
    ids = ("a", "b", "c", "d")
    none = np.zeros((4, 4), np.float32)

    def given(**more: Any) -> dict[str, float]:
        head = handmade.tag_head(ids, none, "sigmoid", scale=1.0, **more)
        found = head.over(ids, none).tags_of(np.eye(1, 4, dtype=np.float16))
        return dict(found.select("tag", "score").rows())

    assert given(threshold=[0.5, 0.51, 0.4, 0.9]) == {"a": 0.5, "c": 0.5}  # no bias: each is a half, which reaches .5
    # Ratios 1, 5, 2 and 3.3: `a` is the one too many, though none is likelier.
    assert list(given(threshold=[0.5, 0.1, 0.25, 0.15])) == ["b", "c", "d"]
    assert len(given(threshold=[0.1] * 4)) == MAX_TAGS
    assert given(threshold=[1.5] * 4) == {}  # above 1: never


def test_a_tag_that_training_never_saw_has_no_residual_and_the_defaults() -> None:
    head = handmade.tag_head(
        ("old",), [[9, 9, 9, 9]], bias=[3], threshold=[0.9], default_bias=-1.5, default_threshold=0.3
    )
    encoder = Axes()
    matrix = head.matrix(taxonomy("new", "old", "newer"), encoder)
    assert encoder.texts == ["new", "old", "newer"]
    assert matrix.tags == ("new", "old", "newer")
    assert matrix.odds is not None
    assert matrix.odds.bias == pytest.approx([-1.5, 3, -1.5])
    assert matrix.thresholds == pytest.approx([0.3, 0.9, 0.3])
    assert matrix.vectors == pytest.approx(np.array([[1, 0, 0, 0], [9, 10, 9, 9], [0, 0, 1, 0]]))


def test_the_source_tells_the_two_kinds_apart() -> None:
    assert TAGS.matrix(taxonomy(*IDS), Axes()).source == "model"
    assert TagMatrix(("a",), np.eye(1, 4, dtype=np.float32), np.zeros(1, np.float32)).source == "zero-shot"


def test_no_tags_and_no_rows_give_no_tags() -> None:
    nobody = handmade.tag_head((), np.zeros((0, 4)))
    v = handmade.unit([[1, 0, 0, 0]])
    assert nobody.over((), np.zeros((0, 4), np.float32)).tags_of(v).is_empty()
    assert TAGS.matrix(taxonomy(*IDS), Axes()).tags_of(v[:0]).is_empty()
    assert Heads.from_bytes(Heads(tags=nobody).to_bytes()).tags.ids == ()  # type: ignore[union-attr]


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 9),
    st.integers(1, 40),
    st.sampled_from(["softmax", "sigmoid"]),
    st.floats(0.01, 300),
    st.integers(0, 9),
)
def test_scores_are_probabilities_at_any_scale(tags: int, rows: int, activation: Any, scale: float, seed: int) -> None:
    draw = np.random.default_rng(seed)
    ids = tuple(f"t{at}" for at in range(tags))
    head = handmade.tag_head(
        ids, draw.normal(size=(tags, 4)), activation, scale=scale, bias=draw.normal(size=tags) * 50
    )
    matrix = head.over(ids, handmade.unit(draw.normal(size=(tags, 4))))
    v = handmade.unit(draw.normal(size=(rows, 4))).astype(np.float16)
    assert matrix.odds is not None
    p = matrix.odds(v.astype(np.float32) @ matrix.vectors.T)
    assert p.dtype == np.float32
    assert np.isfinite(p).all()
    assert ((p >= 0) & (p <= 1)).all()
    if activation == "softmax":
        assert p.sum(1) == pytest.approx(np.ones(rows), abs=1e-4)
    found = matrix.tags_of(v)
    above = p[found["row"].to_numpy(), [ids.index(tag) for tag in found["tag"]]]
    assert np.array_equal(above, found["score"].to_numpy())
    assert (above >= 0.5).all()
    assert len(found) == np.minimum((p >= 0.5).sum(1), MAX_TAGS).sum()


# ---- the folder


def test_a_folder_without_heads_has_none(encoder: Path) -> None:
    assert Heads.read(encoder) is None


def test_heads_of_another_width_are_refused(encoder: Path, tmp_path: Path) -> None:
    for heads, name in ((Heads(FELT), "sentiment.weight"), (Heads(tags=TAGS), "tags.residual")):
        folder = handmade.write_model(tmp_path / name, encoder, heads)
        with pytest.raises(EncoderError, match=rf"{name} is for vectors of 4 numbers, and the encoder .* gives 32"):
            Heads.read(folder)


def test_what_the_config_leaves_open_is_what_the_model_was_trained_with(encoder: Path, tmp_path: Path) -> None:
    trained = {"prefix": "query: ", "pooling": "cls", "max_length": 64}
    folder = handmade.write_model(tmp_path / "m", encoder, None, described={"encoder": trained})
    found = settled(Encoder(model=str(folder), dtype="float32"), folder)
    assert found == Encoder(model=str(folder), dtype="float32", **trained)  # type: ignore[arg-type]
    assert settled(found, folder) == found
    assert settled(Encoder(pooling="cls"), folder).pooling == "cls"
    plain = Encoder(model=str(encoder))
    assert settled(plain, encoder) is plain


@pytest.mark.parametrize(
    ("said", "both"),
    [
        ({"prefix": ""}, r"encoder.prefix = ''.*trained with 'query: '"),  # the default, but said
        ({"pooling": "last"}, r"encoder.pooling = 'last'.*trained with 'cls'"),
        ({"max_length": 128}, r"encoder.max_length = 128.*trained with 64"),
    ],
)
def test_what_the_config_says_must_not_contradict_the_model(
    encoder: Path, tmp_path: Path, said: dict[str, Any], both: str
) -> None:
    trained = {"prefix": "query: ", "pooling": "cls", "max_length": 64}
    folder = handmade.write_model(tmp_path / "m", encoder, None, described={"encoder": trained})
    with pytest.raises(EncoderError, match=both):
        settled(Encoder(**said), folder)


@pytest.mark.parametrize(
    ("trained", "says"),
    [
        ({"prefix": ""}, "lacks one of prefix, pooling, max_length"),
        ("mean", "lacks one of"),
        ({"prefix": "", "pooling": "max", "max_length": 64}, "encoder.pooling = 'max'"),
        ({"prefix": "", "pooling": "cls", "max_length": "long"}, "encoder.max_length = 'long'"),
    ],
)
def test_a_model_that_says_nothing_sensible_of_its_settings_is_refused(
    encoder: Path, tmp_path: Path, trained: Any, says: str
) -> None:
    folder = handmade.write_model(tmp_path / "m", encoder, None, described={"encoder": trained})
    with pytest.raises(EncoderError, match=rf"model\.json.*{says}.*train the model again"):
        settled(Encoder(), folder)


def test_the_taxonomy_comes_back_with_the_catalogues_own_words(encoder: Path, tmp_path: Path) -> None:
    known = Taxonomy(
        (
            Tag("Camping & Hiking", "Camping & Hiking", categories=("Camping & Hiking",)),
            Tag("guitars", "guitars", categories=("guitars",)),
            Tag("Guitars", "Guitars", "六弦", ("stays in tune",), "guitars", ("Guitars",)),
        )
    )
    folder = handmade.write_model(tmp_path / "m", encoder, Heads(), known)
    assert stored_taxonomy(folder) == known
    assert stored_taxonomy(folder).digest == known.digest


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        (None, "None is no list of tags"),
        ([{"name": "x"}], "is no list of tags"),
        ([{"id": "x", "name": "x", "colour": "red"}], "is no list of tags"),
        (["x"], "is no list of tags"),
        ([{"id": "x", "name": "x"}] * 2, "repeats the id 'x'"),
        ([{"id": "x", "name": "x", "parent": "y"}], "unknown parent 'y'"),
    ],
)
def test_a_broken_taxonomy_says_so(encoder: Path, tmp_path: Path, entries: Any, says: str) -> None:
    folder = handmade.write_model(tmp_path / "m", encoder, None, described={"taxonomy": entries})
    with pytest.raises(EncoderError, match=rf"model\.json.*{says}.*Set taxonomy\.path"):
        stored_taxonomy(folder)


def test_a_folder_is_checked_as_a_build_will_need_it(encoder: Path, tmp_path: Path) -> None:
    wide = handmade.tag_head(IDS, np.zeros((3, 32)))
    check(handmade.write_model(tmp_path / "good", encoder, Heads(tags=wide), taxonomy(*IDS)))
    check(handmade.write_model(tmp_path / "plain", encoder, None))
    with pytest.raises(EncoderError, match=r"no model\.json"):
        check(encoder)
    with pytest.raises(EncoderError, match=r"Set taxonomy\.path"):
        check(handmade.write_model(tmp_path / "nameless", encoder, Heads(tags=wide)))
