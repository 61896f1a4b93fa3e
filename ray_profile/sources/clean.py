"""Text as people typed it -> text as an encoder should read it: no markup, one form per character, single blanks.

Everything is one Polars expression over the column. Python sees only rows that hold an HTML entity or a run of four
equal characters, for Polars has neither an entity decoder nor back-references.
"""

from __future__ import annotations

import html
import re

import numpy as np
import numpy.typing as npt
import polars as pl

#: A character reference that ends in a semicolon. Without one ("&copy=2", "R&amp") it is more often a URL or a brand.
_ENTITY = r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]{1,31});"

# Named elements only and attributes only with "=", so that "<3", "a <b and c> d" and the marker "<EMAIL>" are text.
_ATTRIBUTES = r"""(?:\s+[a-z:_-]+\s*=\s*(?:"[^"]*"|'[^']*'|[^\s<>"']+))*\s*/?>"""
_BLOCKS = "address|article|blockquote|br|center|dd|div|dl|dt|h[1-6]|hr|li|ol|p|pre|section|table|tbody|tr|ul"
_INLINES = (
    "a|abbr|b|big|button|code|em|embed|font|form|i|iframe|img|input|ins|del|kbd|label|link|meta|object|param|s|small"
    "|source|span|strike|strong|sub|sup|td|th|tt|u|video"
)
_BLOCK_TAG = rf"(?i)</?(?:{_BLOCKS}){_ATTRIBUTES}"
_INLINE_TAG = rf"(?i)</?(?:{_INLINES}){_ATTRIBUTES}"
_UNSEEN = r"(?is)<!--.*?-->|<(?:script|style)\b[^<>]*>.*?</(?:script|style)\s*>"

# What a browser does not show at all; a zero-width joiner goes too, so an emoji family becomes its members.
_ZERO_WIDTH = r"[\u{AD}\u{180E}\u{200B}-\u{200F}\u{202A}-\u{202E}\u{2060}-\u{206F}\u{FEFF}]"
_LINE_END = r"\r\n|[\r\x0B\x0C\u{85}\u{2028}\u{2029}]"
_CONTROL = r"[\x00-\x08\x0E-\x1F\x7F-\x9F]"

#: Four or more of one character; digits are left alone because 10000 is a number.
_RUN = re.compile(r"([^\d\n])\1{3,}")
_RUN_MIN = 4


def clean(texts: pl.Series) -> pl.Series:
    """Normalise a column of text, row by row.

    In this order: NFKC (fractions, exponents and circled numbers first set apart, so that "5½" does not become
    "51⁄2"), HTML entities, tags (block elements become a newline, inline ones nothing) and Amazon's `[[VIDEOID:…]]`
    and `[[ASIN:… name]]`, zero-width and control characters, runs of one character cut to three (not digits), blanks
    collapsed to one and line breaks to one newline, both ends stripped.

    Args:
        texts: strings (or all null), length n.

    Returns:
        Strings, length n, same name; null where the input is null or nothing is left.
    """
    texts = _decode_entities(_compose(texts.cast(pl.String)))
    column = pl.col("text")
    frame = pl.DataFrame({"text": texts}).select(_collapse_blanks(_drop_invisible(_drop_markup(column))))
    frame = frame.with_columns(_cut_runs(frame["text"]))
    return frame.select(pl.when(column != "").then(column).alias(texts.name)).to_series()


def _compose(texts: pl.Series) -> pl.Series:
    """NFKC, with the characters set apart that it would melt into the digits before them."""
    rows = (
        texts.str.contains(r"[^\x00-\x7F]").fill_null(False).arg_true()
    )  # ASCII is its own NFKC, and normalize is slow
    composed = (
        texts.gather(rows)
        .str.replace_all(r"(\d)([¼½¾⅐-⅞])", "$1 $2")
        .str.replace_all(r"(\d)([²³¹⁰⁴-⁹])", "$1^$2")
        .str.replace_all(r"([①-⑳⓪❶-❿➀-➓])", " $1 ")
        .str.replace_all(r"[™℠]", " ")
        .str.normalize("NFKC")
    )
    return _put(texts, rows, composed)


def _put(texts: pl.Series, rows: pl.Series, values: pl.Series) -> pl.Series:
    return texts if rows.is_empty() else texts.clone().scatter(rows, values)  # scatter writes into its own series


def _decode_entities(texts: pl.Series) -> pl.Series:
    """Decode character references, also those that were encoded twice ("&amp;#34;")."""
    texts = texts.str.replace_all(r"&(?:amp;)+", "&")
    rows = texts.str.contains(_ENTITY).fill_null(False).arg_true()
    pattern = re.compile(_ENTITY)
    decoded = [pattern.sub(lambda match: html.unescape(match[0]), text) for text in texts.gather(rows).to_list()]
    return _put(texts, rows, _compose(pl.Series(decoded, dtype=pl.String)))


def _drop_markup(column: pl.Expr) -> pl.Expr:
    return (
        column.str.replace_all(_UNSEEN, " ")
        .str.replace_all(_BLOCK_TAG, "\n")
        .str.replace_all(_INLINE_TAG, "")
        .str.replace_all(r"\[\[VIDEOID:[0-9a-zA-Z]*\]\]", " ")
        .str.replace_all(r"\[\[ASIN:[0-9A-Z]{10} ?([^\[\]]*)\]\]", "$1")
    )


def _drop_invisible(column: pl.Expr) -> pl.Expr:
    return column.str.replace_all(_ZERO_WIDTH, "").str.replace_all(_LINE_END, "\n").str.replace_all(_CONTROL, "")


def _collapse_blanks(column: pl.Expr) -> pl.Expr:
    return (
        column.str.replace_all(r"[ \t\u{1680}]{2,}|[\t\u{1680}]", " ")
        .str.replace_all(r" ?\n\s*", "\n")
        .str.strip_chars()
    )


def _cut_runs(texts: pl.Series) -> pl.Series:
    rows = pl.Series(_rows_with_runs(texts), dtype=pl.UInt32)
    cut = [_RUN.sub(r"\1\1\1", text) for text in texts.gather(rows).to_list()]
    return _put(texts, rows, pl.Series(cut, dtype=pl.String))


def _rows_with_runs(texts: pl.Series) -> npt.NDArray[np.int64]:
    """Numbers of the rows that may hold four equal characters in a row.

    In UTF-8, four equal characters of L bytes are 3 L neighbouring positions where byte i equals byte i + L. That
    is a comparison of the column's buffer with itself, shifted: no loop over rows. Some rows come back without a run
    (a run across two rows, or of digits); no row with a run is missed.
    """
    array = texts.rechunk().to_arrow()
    _, offset_buffer, data_buffer = array.buffers()
    assert offset_buffer is not None
    offsets = np.asarray(memoryview(offset_buffer).cast("q"))[array.offset : array.offset + len(array) + 1]
    data = np.asarray(memoryview(data_buffer or b""))[offsets[0] : offsets[-1]]
    found: list[npt.NDArray[np.int64]] = []
    for width in (1, 2, 3, 4):
        same = np.flatnonzero(data[width:] == data[:-width])
        long = (_RUN_MIN - 1) * width
        found.append(same[: 1 - long][same[long - 1 :] - same[: 1 - long] == long - 1])
    positions = np.unique(np.concatenate(found)) + offsets[0]
    return np.unique(np.searchsorted(offsets, positions, side="right") - 1)
