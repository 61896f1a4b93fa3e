"""`[train.labels]`: what the shop itself says of reviews, by their ids."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import fsspec
import polars as pl

from ray_profile.errors import SourceError
from ray_profile.train.examples import sentiment_label
from ray_profile.train_config import Labels


def read_labels(labels: Labels) -> pl.DataFrame:
    """[id, sentiment (Int8, or null), tags (List(String), or null)] of all files; `tags` may be lists, or words between
    bars. Raises `SourceError` for a file or a column that is not there."""
    return pl.concat([_read(path, labels.columns) for path in _paths(labels.paths)])


def stamps(paths: Sequence[str]) -> list[Any]:
    """What tells whether the files are still the same."""
    found = []
    for path in _paths(paths):
        fs, inner = fsspec.core.url_to_fs(path)
        info = fs.info(inner)
        found.append([path, info["size"], str(info.get("ETag", info.get("mtime")))])
    return found


def _paths(paths: Sequence[str]) -> list[str]:
    found: list[str] = []
    for path in paths:
        fs, inner = fsspec.core.url_to_fs(path)
        matches = sorted(fs.glob(inner)) if set(path) & set("*?[") else [inner] * fs.exists(inner)
        if not matches:
            raise SourceError(f"[train.labels] paths: {path!r} matches no file; correct it")
        found += [f"s3://{match}" if path.startswith("s3://") else str(match) for match in matches]
    return found


def _read(path: str, columns: Mapping[Any, str]) -> pl.DataFrame:
    with fsspec.open(path, "rb") as file:
        body = io.BytesIO(file.read())
    readers: dict[str, Callable[..., pl.DataFrame]] = {
        "parquet": pl.read_parquet,
        "csv": pl.read_csv,
        "jsonl": pl.read_ndjson,
    }
    reader = readers.get(path.rsplit(".", 1)[-1])
    if reader is None:
        raise SourceError(f"[train.labels] {path!r} is none of .parquet, .csv and .jsonl; write it as one")
    frame = reader(body)
    for column in columns.values():
        if column not in frame.columns:
            raise SourceError(
                f"{path} has no column {column!r}; it has {', '.join(frame.columns)}; correct [train.labels]"
            )
    nothing = {"sentiment": pl.lit(None, pl.Int8), "tags": pl.lit(None, pl.List(pl.String))}
    found = frame.select(pl.col(columns["id"]).cast(pl.String).alias("id"))
    for name, absent in nothing.items():
        if name not in columns:
            found = found.with_columns(absent.alias(name))
        elif name == "sentiment":
            found = found.with_columns(sentiment_label(frame[columns[name]]).alias(name))
        else:
            said = frame[columns[name]]
            lists = said if isinstance(said.dtype, pl.List) else said.cast(pl.String).str.split("|")
            found = found.with_columns(lists.cast(pl.List(pl.String)).alias(name))
    return found
