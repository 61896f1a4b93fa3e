from __future__ import annotations

import random
import time
from pathlib import Path

import jieba
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_profile.encode.terms import Gazetteer, keywords, languages, stop_words

SHAPE = {"row": pl.UInt32, "term": pl.String, "n": pl.UInt32}
FOUND = {"row": pl.UInt32, "entity": pl.String, "start": pl.UInt32, "end": pl.UInt32}


def terms_of(text: str) -> dict[str, int]:
    return {term: n for _, term, n in keywords(pl.Series([text])).iter_rows()}


def test_words_and_phrases_are_counted_in_lower_case() -> None:
    assert terms_of("Great Strap, great strap!") == {"great": 2, "strap": 2, "great strap": 2}


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("the sound of guitars", "sound guitars"),  # a stop word between
        ("warm sound. Guitars ring", "sound guitars"),
        ("warm sound\nguitars ring", "sound guitars"),
        ("warm sound (guitars)", "sound guitars"),
        ("warm sound <EMAIL> guitars", "sound guitars"),
        ("质量好，屏幕清晰", "质量屏幕"),
        ("手机的屏幕", "手机屏幕"),
    ],
)
def test_a_phrase_crosses_no_border(text: str, phrase: str) -> None:
    found = terms_of(text)
    assert found
    assert phrase not in found


def test_what_is_no_term() -> None:
    assert terms_of("I am the 2024 x 3.5 10,000 ２０ <EMAIL> <CN_ID> https://a.example/buy?x=1 我 的 了") == {}
    assert "email" not in terms_of("write to <EMAIL> now")


def test_apostrophes_hyphens_and_accents_stay_inside_a_word() -> None:
    found = terms_of("D’Addario's 5-string café don’t naïve r&b")
    assert {"d'addario", "5-string", "café", "naïve", "r&b"} <= set(found)
    assert not {"don't", "don", "t", "d'addario's"} & set(found)


def test_chinese_is_segmented_and_mixes_with_english() -> None:
    found = terms_of("手机屏幕很清晰，iPhone case 也不错")
    assert {"手机", "屏幕", "手机屏幕", "清晰", "iphone", "case", "iphone case", "不错"} <= set(found)
    assert "很" not in found


def test_other_scripts_without_spaces_give_no_terms() -> None:
    assert terms_of("とてもきれい สวยมาก") == {}
    assert terms_of("좋은 기타") == {"좋은": 1, "기타": 1, "좋은 기타": 1}


def test_empty_and_null_texts() -> None:
    for texts in (pl.Series([], dtype=pl.String), pl.Series([None, "", " \n"], dtype=pl.String), pl.Series([None])):
        assert keywords(texts).schema == SHAPE
        assert keywords(texts).is_empty()


def test_terms_do_not_depend_on_words_added_to_the_shared_segmenter() -> None:
    jieba.add_word("屏幕很清晰")
    try:
        assert "屏幕很清晰" not in terms_of("手机屏幕很清晰")
    finally:
        jieba.del_word("屏幕很清晰")


words = st.sampled_from(
    ["great", "the", "strap", "5", "手机", "的", "屏幕清晰", "<EMAIL>", ".", "\n", "don't", "é", "の"]
)
corpora = st.lists(st.none() | st.lists(words, max_size=8).map(" ".join), max_size=6)


@settings(max_examples=60, deadline=None)
@given(corpora, st.integers(0, 6))
def test_terms_of_pieces_are_the_terms_of_the_whole(texts: list[str | None], cut: int) -> None:
    whole = keywords(pl.Series(texts, dtype=pl.String))
    cut = min(cut, len(texts))
    first = keywords(pl.Series(texts[:cut], dtype=pl.String))
    second = keywords(pl.Series(texts[cut:], dtype=pl.String)).with_columns(pl.col("row") + pl.lit(cut, pl.UInt32))
    assert whole.equals(pl.concat([first, second]))
    assert whole.select("row", "term").is_unique().all()
    assert not set(whole["term"]) & stop_words()


@pytest.mark.parametrize("piece", ["手", "手机的屏幕很清晰", "a", "a'", "<A", "great guitar ", "😀", "-"])
def test_the_longest_text_takes_no_long_time(piece: str) -> None:
    text = (piece * 100_000)[:100_000]
    began = time.perf_counter()
    found = keywords(pl.Series([text]))
    assert time.perf_counter() - began < 10  # seconds; under one on an idle machine
    assert found["row"].to_list() == [0] * len(found)


def test_languages_of_plain_sentences() -> None:
    texts = {
        "This is a very good guitar for the price": "en",
        "GREAT GUITAR STRAP, I LOVE IT": "en",
        "Das ist eine sehr gute Gitarre für den Preis": "de",
        "手机很好": "zh",
        "我买了iPhone和iPad": "zh",
        "これはとても良い本です": "ja",
        "좋아요": "ko",
        "ok": None,
        "123 !!": None,
        "": None,
    }
    assert languages(pl.Series("x", list(texts))).to_list() == list(texts.values())
    assert languages(pl.Series("x", [None, "好"])).to_list() == [None, "zh"]
    assert languages(pl.Series("x", [], dtype=pl.String)).dtype == pl.String


def test_languages_of_real_reviews(shared: Path) -> None:
    english = pl.read_parquet(shared / "data/amazon_musical/reviews.parquet")["reviewText"].drop_nulls()[:2000]
    chinese = pl.read_parquet(shared / "data/shopping_zh/reviews.parquet")["review"].drop_nulls()[:4000]
    assert (languages(english) == "en").sum() > 0.99 * len(english)
    assert (languages(chinese) == "zh").sum() > 0.995 * len(chinese)


SHOP = Gazetteer.from_names(
    ["Fender", "Lancôme", "Les Paul", "Paul Reed Smith", "苹果", "D'Addario", "삼성", "HP", "12", "the", None],
    ["Guitars", "fender", "苹果手机", "Acoustic Guitars"],
    ["cordless", "棉"],
)


def found(text: str) -> list[tuple[str, str]]:
    hits = SHOP.find(pl.Series([text]))
    return [(entity, text[start:end]) for _, entity, start, end in hits.iter_rows()]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("my FENDER!", [("brand:fender", "FENDER")]),
        ("fenders, defender, fender2", []),
        ("Fender's", [("brand:fender", "Fender")]),
        ("我的fender吉他", [("brand:fender", "fender")]),
        ("äfender", []),
        ("fenderé", []),
        ("acoustic guitars", [("category:acoustic guitars", "acoustic guitars")]),
        ("a les paul reed smith", [("brand:les paul", "les paul")]),
        ("苹果手机和苹果", [("category:苹果手机", "苹果手机"), ("brand:苹果", "苹果")]),
        ("LANCÔME lancôme Lancôme", [("brand:lancôme", form) for form in ("LANCÔME", "lancôme", "Lancôme")]),
        ("d’addario", [("brand:d'addario", "d’addario")]),
        ("삼성은 좋다", [("brand:삼성", "삼성")]),
        ("the 12 HP 棉", []),
        ("", []),
    ],
)
def test_names_are_found_at_word_borders(text: str, expected: list[tuple[str, str]]) -> None:
    assert found(text) == expected


def test_find_keeps_its_shape_without_names_or_texts() -> None:
    assert Gazetteer.from_names().find(pl.Series(["fender"])).schema == FOUND
    assert SHOP.find(pl.Series([], dtype=pl.String)).schema == FOUND
    assert SHOP.find(pl.Series([None], dtype=pl.String)).is_empty()


pieces = st.sampled_from(
    ["fender", "Fender", "苹果", "苹果手机", " ", "é", "x", "😀", "les paul", " reed smith", "guitars"]
)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(pieces, max_size=8).map("".join), max_size=4))
def test_spans_are_names_in_order_and_never_overlap(texts: list[str]) -> None:
    names = dict(SHOP.names.iter_rows())
    last_row, last_end = -1, 0
    for row, entity, start, end in SHOP.find(pl.Series(texts, dtype=pl.String)).iter_rows():
        assert names[texts[row][start:end].lower()] == entity
        assert row > last_row or (row == last_row and start >= last_end)
        last_row, last_end = row, end


def test_twenty_thousand_names_and_a_very_long_text() -> None:
    draw = random.Random(0)
    names = ["".join(draw.choices("abcdefgh", k=6)) for _ in range(20_000)]
    text = " ".join(draw.choices(names, k=14_000))  # 98,000 characters
    hits = Gazetteer.from_names(names).find(pl.Series([text]))
    assert len(hits) == 14_000
    assert hits["end"].max() == len(text)
