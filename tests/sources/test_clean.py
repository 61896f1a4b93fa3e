"""What `clean` promises of text: one form, no markup, nothing lost that a reader would miss."""

from __future__ import annotations

import time
import unicodedata
from pathlib import Path

import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ray_profile.sources.clean import clean


def one(text: str | None) -> str | None:
    result: str | None = clean(pl.Series("text", [text], dtype=pl.String)).item()
    return result


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("it&#39;s &quot;good&quot; &amp; cheap", 'it\'s "good" & cheap'),
        ("&amp;#34;twice&amp;#34;", '"twice"'),
        ("AT&T, R&amp;B, ?a=1&copy=2", "AT&T, R&B, ?a=1&copy=2"),
        ("&nbsp;a&nbsp;&nbsp;b&#65313;", "a bA"),
        ("one<br/>two<BR>three", "one\ntwo\nthree"),
        ("<p class='x'>a</p><p>b</p>", "a\nb"),
        ('a <b>bold</b> <a href="http://x.y/?q=1" target=_blank>link</a>', "a bold link"),
        ("<script>alert('x')</script>fine<!-- note -->", "fine"),
        ("&lt;br&gt;escaped", "escaped"),
        ("I <3 it, 5 < 6 > 4, a <b and c> d", "I <3 it, 5 < 6 > 4, a <b and c> d"),
        ("write to <EMAIL> or <PHONE>", "write to <EMAIL> or <PHONE>"),
        ("see [[VIDEOID:9a8b]] [[ASIN:B000123456 Nice Strings]] now", "see Nice Strings now"),
    ],
)
def test_markup_and_entities(raw: str, expected: str) -> None:
    assert one(raw) == expected


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("ＡＢＣ　１２３！", "ABC 123!"),
        ("音质①好②便宜", "音质 1 好 2 便宜"),
        ("5½ inches, 10² m²", "5 1⁄2 inches, 10^2 m2"),
        ("Fender™ ﬁne", "Fender fine"),
        ("一\u200b二\ufeff三\u00ad四\x00五\x07", "一二三四五"),
        ("a\tb \t c", "a b c"),
        ("a \r\n\r\n  b\u2028c\n\n\nd", "a\nb\nc\nd"),
        ("soooooo good!!!!!!!", "sooo good!!!"),
        ("好好好好好好好。。。。。。", "好好好。。。"),
        ("👍👍👍👍👍", "👍👍👍"),
        ("10000000 and 8888888", "10000000 and 8888888"),
        ("book aaa 好好好", "book aaa 好好好"),
    ],
)
def test_characters(raw: str, expected: str) -> None:
    assert one(raw) == expected


@pytest.mark.parametrize("raw", ["", "   ", "\n\t\u3000\u200b", "<br/>", None])
def test_nothing_left_is_null(raw: str | None) -> None:
    assert one(raw) is None


def test_shape_name_and_input_are_kept() -> None:
    raw = pl.Series("review", ["aaaaa&amp;", None, "好"])
    result = clean(raw)
    assert (result.name, result.dtype, result.to_list()) == ("review", pl.String(), ["aaa&", None, "好"])
    assert raw.to_list() == ["aaaaa&amp;", None, "好"]
    assert clean(pl.Series("review", [], dtype=pl.String)).to_list() == []
    assert clean(pl.Series("review", [None, None])).to_list() == [None, None]


def test_runs_are_found_in_every_row_and_not_across_rows() -> None:
    rows = ["aa", "aaaab", "aa", "好好", "好好好好", None, "xx!!!!!", "😀😀😀😀😀"]
    assert clean(pl.Series(rows)).to_list() == ["aa", "aaab", "aa", "好好", "好好好", None, "xx!!!", "😀😀😀"]
    assert clean(pl.Series(rows)[4:]).to_list() == ["好好好", None, "xx!!!", "😀😀😀"]


texts = st.text(
    alphabet=st.one_of(st.sampled_from('ab好！! \n\t<>&;#39/b="½①２²\u200b'), st.characters(codec="utf-8")), max_size=60
)


@given(st.lists(st.one_of(st.none(), texts), max_size=6))
@example(["&amp;amp;lt;b&amp;gt;"])
@settings(deadline=None, max_examples=100)
def test_rows_do_not_influence_each_other_and_the_form_is_normal(rows: list[str | None]) -> None:
    result = clean(pl.Series("t", rows, dtype=pl.String)).to_list()
    assert result == [one(row) for row in rows]
    for text in result:
        if text is not None:
            assert text == text.strip() != ""
            assert "  " not in text
            assert "\n\n" not in text
            assert not any(unicodedata.category(character) == "Cc" and character != "\n" for character in text)


@given(st.text(alphabet="abc 好的吗。,!0123456789\n", max_size=80))
@settings(deadline=None)
def test_clean_text_stays_as_it_is(text: str) -> None:
    first = one(text)
    assert one(first) == first


@pytest.mark.parametrize(
    "piece", ["&amp;", "&#38;", "<", '<a href="', "<!--", "<script>", "好", "a\n ", "[[ASIN:B000123456 "]
)
def test_long_text_takes_linear_time(piece: str) -> None:
    start = time.perf_counter()
    clean(pl.Series([piece * (100_000 // len(piece))]))
    assert time.perf_counter() - start < 3


def test_real_reviews(shared: Path) -> None:
    for name, column in (("amazon_musical", "reviewText"), ("shopping_zh", "review")):
        raw = pl.read_parquet(shared / "data" / name / "reviews.parquet")[column].head(5000)
        result = clean(raw)
        assert result.str.contains(r"&(?:amp|quot|#34);|<br|\t|\r|  ").sum() == 0
        assert result.is_null().sum() == raw.fill_null("").str.strip_chars("\u3000\ufeff \n\t\r").eq("").sum()
        assert clean(result).equals(result, null_equal=True)
