"""A cell of a file, of whatever type -> an id, a number or a text. Whole columns at once."""

from __future__ import annotations

import polars as pl

#: Words that exporters write where there is nothing.
MISSING_WORDS = ("", "NULL", "Null", "null", "NaN", "nan", "NaT", "None", "none", "<NA>", "N/A", "\\N")

_SIGNS = r"^(?:US\$|[$€£¥￥₹])\s*|\s*(?:元|€)$"
_THOUSANDS = r"^[+-]?\d{1,3}(?:,\d{3})+(?:\.\d+)?$"


def identifiers(values: pl.Series) -> pl.Series:
    """Ids as text: 17850.0 and "17850.0" are "17850"; empty ones and words for nothing ("NULL", "nan") are null."""
    if values.dtype.is_integer():
        return values.cast(pl.String)
    if values.dtype.is_float():
        whole = values.cast(pl.Int64, strict=False)
        exact = (whole.cast(values.dtype) == values).fill_null(False)
        text = values.cast(pl.String).zip_with(~exact, whole.cast(pl.String))
    else:
        text = as_text(values).str.strip_chars()
        decimal = text.str.ends_with(".0").fill_null(False)
        if decimal.any():
            text = text.zip_with(~decimal, text.str.replace(r"^(-?\d+)\.0$", "$1"))
    return text.set(text.is_in(MISSING_WORDS).fill_null(False), None)


def as_text(values: pl.Series) -> pl.Series:
    """Any column as text; lists and structs as JSON."""
    if isinstance(values.dtype, (pl.List, pl.Array, pl.Struct, pl.Duration)):
        frame = pl.DataFrame({"value": values}).select(pl.struct("value").struct.json_encode())
        text = frame.to_series().str.extract(r"(?s)^\{\"[^\"]*\":(.*)\}$", 1)
        return text.set(values.is_null(), None)
    if values.dtype == pl.String:
        return values
    return values.cast(pl.String, strict=False)


def numbers(values: pl.Series, signs: bool = False) -> tuple[pl.Series, pl.Series]:
    """Values as float64 and whether each is unreadable (no finite number). `signs`: "$1,234.50" is 1234.5."""
    if not values.dtype.is_numeric():
        text = as_text(values).str.strip_chars()
        missing = text.is_in([word for word in MISSING_WORDS if word.lower() != "nan"]).fill_null(True)
        parsed = text.cast(pl.Float64, strict=False)
        if signs and (parsed.is_null() & ~missing).any():
            bare = text.str.replace_all(_SIGNS, "")
            grouped = bare.str.contains(_THOUSANDS)
            bare = bare.zip_with(~grouped.fill_null(False), bare.str.replace_all(",", "", literal=True))
            parsed = parsed.zip_with(parsed.is_not_null(), bare.cast(pl.Float64, strict=False))
    else:
        missing = values.is_null()
        parsed = values.cast(pl.Float64, strict=False)
    bad = ~missing & ~parsed.is_finite().fill_null(False)
    return parsed.set(bad | missing, None), bad


def joined(frame: pl.DataFrame, names: tuple[str, ...]) -> pl.Series:
    """Several columns as one text, joined by newlines, empty ones left out; null where all are empty."""
    parts = []
    for name in names:
        text = as_text(frame[name])
        parts.append(text.set((text.str.strip_chars() == "").fill_null(False), None))
    if len(parts) == 1:
        return parts[0]
    whole = pl.select(pl.concat_str(parts, separator="\n", ignore_nulls=True)).to_series()
    return whole.set((whole == "").fill_null(False), None)
