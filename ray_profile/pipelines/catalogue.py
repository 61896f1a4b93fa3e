"""The catalogue of a run: items that files state or rows mention are encoded, tagged and committed before their wave.

A catalogue's word replaces what was known of an item; an item that is merely mentioned by an event is added if nobody
knew it. States that are folded already keep what they were folded with.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
import pyarrow as pa

from ray_profile.encode.tokens import Letters, readable_or_raise
from ray_profile.pipelines.engine import Engine
from ray_profile.pipelines.tables import frame_of, items_table
from ray_profile.profile.items import ITEM_DTYPES, TAG_STRUCT
from ray_profile.profile.tagging import Tagger
from ray_profile.store.root import Root
from ray_profile.store.tables import DataFile, read_files, write_file
from ray_profile.store.waves import Claim, Step, Wave, file_name

CATALOGUE = "catalogue"  # the application id by which two runs that change the catalogue fence each other

_FACTS = ("title", "categories", "brand", "price", "attributes")


def update(
    root: Root,
    wave: Wave,
    stated: Sequence[pl.DataFrame],
    mentioned: Sequence[pl.DataFrame],
    tagger: Tagger,
    engine: Engine,
    model: str,
    before: Letters,
    at: Step,
) -> tuple[tuple[DataFile, ...], Letters]:
    """Bring the items table up to date with frames of schema.ITEMS. Returns its files and the letters of new titles.

    The encoder must be able to read them together with all that was read `before`. Of `stated` items the last word
    counts, of `mentioned` ones the first. Nothing is committed where nothing changed. Raises `EncoderError`, and
    `FencedError` where another run has changed the catalogue meanwhile.
    """
    table = items_table(root)
    table.create()
    claim = Claim(root, table, CATALOGUE)
    files = claim.handle.files()
    names = [name for name in ITEM_DTYPES if name not in ("vector", "tags")]
    # What a first wave that failed left behind may be of another encoder or taxonomy, which no fold has fixed yet.
    stale = files if wave.number == 1 else []
    known = frame_of(read_files(table, [] if stale else files, columns=names))
    new, replaced = _changes(known.cast({name: ITEM_DTYPES[name] for name in names}), stated, mentioned)
    if new.is_empty() and not stale:
        return tuple(files), Letters()
    encoded, letters = _encoded(new, tagger, engine)
    readable_or_raise(model, before + letters)
    removes = stale
    if not replaced.is_empty():
        removes = files
        kept = frame_of(read_files(table, files, columns=list(ITEM_DTYPES)))
        kept = kept.select(*ITEM_DTYPES).cast(pl.Schema(ITEM_DTYPES)).join(replaced, on="item_id", how="anti")
        encoded = pl.concat([kept, encoded])
    added = write_file(table, 0, file_name(wave.uuid), encoded.sort("item_id").to_arrow())
    at("items.before")
    claim.commit(wave.uuid, claim.number + 1, lambda handle, ids: handle.replace_files([added], removes, ids))
    at("items.after")
    root.delete(claim.orphans())
    return tuple(claim.handle.files()), letters


def compact(root: Root, wave_uuid: str, max_files: int) -> tuple[int, int]:
    """Merge the files of a catalogue that has more than `max_files`; returns how many there were and are, 0 and 0 where
    it was left alone. Raises `FencedError` where a run has changed the catalogue meanwhile."""
    table = items_table(root)
    if table.open() is None:
        return 0, 0
    claim = Claim(root, table, CATALOGUE)
    files = claim.handle.files()
    if len(files) <= max_files:
        return 0, 0
    whole = frame_of(read_files(table, files, columns=list(ITEM_DTYPES))).select(*ITEM_DTYPES)
    rows = whole.cast(pl.Schema(ITEM_DTYPES)).sort("item_id").to_arrow()
    added = write_file(table, 0, file_name(wave_uuid), rows)
    claim.commit(wave_uuid, claim.number + 1, lambda handle, ids: handle.replace_files([added], files, ids))
    return len(files), 1


def _changes(
    known: pl.DataFrame, stated: Sequence[pl.DataFrame], mentioned: Sequence[pl.DataFrame]
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """(items to write, [item_id] of those among them that stand in the table already)."""
    empty = known.select("item_id", *_FACTS).clear()
    said = pl.concat([empty, *(frame.select("item_id", *_FACTS) for frame in stated)])
    said = said.unique("item_id", keep="last", maintain_order=True)
    same = [pl.col(name).eq_missing(pl.col(f"{name}_known")) for name in _FACTS]
    compared = said.join(known, on="item_id", how="left", suffix="_known")
    unchanged = compared.filter(pl.all_horizontal(*same) & ~pl.col("implicit")).select("item_id")
    said = said.join(unchanged, on="item_id", how="anti").with_columns(pl.lit(False).alias("implicit"))
    seen = pl.concat([empty, *(frame.select("item_id", *_FACTS) for frame in mentioned)])
    seen = seen.unique("item_id", keep="first", maintain_order=True).with_columns(pl.lit(True).alias("implicit"))
    for other in (known, said):
        seen = seen.join(other.select("item_id"), on="item_id", how="anti")
    return pl.concat([said, seen]), said.join(known, on="item_id", how="semi").select("item_id")


def _encoded(items: pl.DataFrame, tagger: Tagger, engine: Engine) -> tuple[pl.DataFrame, Letters]:
    """Add vectors (each distinct title encoded once) and tags; and count the letters that were read."""
    titles = items.select("title").drop_nulls().unique(maintain_order=True)["title"]
    vectors, letters = np.zeros((0, 1), np.float16), Letters()
    if len(titles):
        found = engine.encode(titles)
        vectors, letters = found.vectors, Letters(found.characters, found.unknown_characters)
    rows = pl.DataFrame({"title": titles}).with_row_index("at")
    at = items.select("title").join(rows, on="title", how="left", maintain_order="left")["at"]
    known = at.is_not_null().to_numpy()
    matrix = np.zeros((items.height, vectors.shape[1]), np.float16)
    matrix[known] = vectors[at.drop_nulls().to_numpy()]
    stored = pa.Array.from_buffers(pa.binary(2 * matrix.shape[1]), len(matrix), [None, pa.py_buffer(matrix.tobytes())])
    blobs = pl.Series(stored.cast(pa.large_binary())).set(pl.Series(~known), None)
    tags = tagger.tag_items(items, matrix, known)
    packed = tags.group_by("row", maintain_order=True).agg(pl.struct("tag", "source", "score").alias("tags"))
    items = items.with_row_index("row").join(packed, on="row", how="left", maintain_order="left")
    filled = items.with_columns(pl.col("tags").fill_null(pl.lit([], dtype=pl.List(TAG_STRUCT))), blobs.alias("vector"))
    return filled.select(*ITEM_DTYPES).cast(pl.Schema(ITEM_DTYPES)), letters
