"""The training set of a configuration: read, checked and redacted as `build` does it, labelled, tokenised, shuffled,
and kept as Parquet shards under root/training/<digest>/, so that the next run of the same files starts at once.

The manifest is written last: shards without one are what a stopped run left, and are made anew.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cached_property, partial
from typing import Any
from uuid import uuid4

import numpy as np
import polars as pl
import pyarrow as pa
import ray

from ray_profile import config as configuration
from ray_profile.config import Config
from ray_profile.encode.heads import SENTIMENTS
from ray_profile.encode.taxonomy import Taxonomy
from ray_profile.encode.tokens import Tokenizer
from ray_profile.errors import FileRejected, QuarantineLimitError, SourceError
from ray_profile.pipelines.rays import RayEngine, plainly, tokenizer_of
from ray_profile.pipelines.run import listed
from ray_profile.pipelines.tables import frame_of
from ray_profile.schema import ITEMS
from ray_profile.sources.files import SourceFile
from ray_profile.sources.formats import describes_items, is_catalogue, may_hold_text
from ray_profile.sources.ingest import ingest
from ray_profile.sources.read import Range, ranges
from ray_profile.sources.redact import fingerprint
from ray_profile.store.root import Root
from ray_profile.train.augment import rewritten
from ray_profile.train.examples import EXAMPLES, SPLITS, Known, examples, insist
from ray_profile.train.labels import read_labels, stamps
from ray_profile.train.shards import ABOUT_TOKENS, SHARD_ROWS, TOKENISED, tokenised

FOLDER = "training"
MANIFEST = "manifest.json"
SAID = "said"  # a column of reports among the examples: JSON, null in the rows of examples
_VERSION = 1  # of what shards hold


@dataclass(frozen=True)
class Shard:
    """One Parquet file of a split."""

    path: str  # relative to the root
    split: str
    rows: int


@dataclass(frozen=True)
class Corpus:
    """A training set: its shards, what they hold, and the tags that its labels number."""

    root: Root
    digest: str
    shards: tuple[Shard, ...]
    counts: dict[str, dict[str, Any]]  # by split: rows, sentiment (by class), tags (by tag), tagged, most, paired
    taxonomy: Taxonomy
    files: int
    quarantined: int

    def of(self, split: str) -> list[Shard]:
        """The shards of a split."""
        return [shard for shard in self.shards if shard.split == split]

    @cached_property
    def exclusive(self) -> bool:
        """Whether no review has two tags, so that tags are one choice."""
        return all(counts["most"] <= 1 for counts in self.counts.values())

    def strata(self, by: str) -> list[int]:
        """Rows of the train split by the class that they are drawn by (sentiment, tags or nothing), and last those
        without one. A row of several tags counts to each."""
        held = self.counts[SPLITS[0]]
        if by == "sentiment":
            return [*held["sentiment"], held["rows"] - sum(held["sentiment"])]
        return [*held["tags"], held["rows"] - held["tagged"]] if by == "tags" else [held["rows"]]

    def read(self, shard: Shard, columns: Sequence[str]) -> pl.DataFrame:
        """Columns of a shard."""
        with self.root.fs.open(self.root.path(shard.path), "rb") as file:
            return pl.read_parquet(io.BytesIO(file.read()), columns=list(columns))

    def rows(self, split: str, columns: Sequence[str], most: int | None = None) -> pl.DataFrame:
        """Columns of a split's first rows."""
        found, have = [], 0
        for shard in self.of(split):
            if most is not None and have >= most:
                break
            found.append(self.read(shard, columns))
            have += found[-1].height
        if not found:
            return pl.DataFrame(schema={name: _DTYPES[name] for name in columns})
        return pl.concat(found).head(have if most is None else most)


_DTYPES = {**EXAMPLES, **TOKENISED}


def prepare(config: Config, root: Root, taxonomy: Taxonomy | None, clock: datetime, engine: RayEngine) -> Corpus:
    """The training set of `config`: the one that is there, or one that is made now.

    Raises `SourceError` where an objective has nothing to learn from, and what reading raises.
    """
    files = [file for name in config.sources for file in listed(config, name)]
    digest = _digest(config, files, taxonomy)
    known = root.read_json(FOLDER, digest, MANIFEST)
    if known is None:
        known = _made(config, root, digest, files, taxonomy, clock, engine)
        root.create_json(known, FOLDER, digest, MANIFEST)
        known = root.read_json(FOLDER, digest, MANIFEST)
    corpus = _corpus(root, digest, known)
    insist(corpus.counts[SPLITS[0]], tuple(config.train.objectives), len(corpus.taxonomy.tags))
    return corpus


def opened(root: Root, digest: str) -> Corpus:
    """A training set that `prepare` has made."""
    return _corpus(root, digest, root.read_json(FOLDER, digest, MANIFEST))


def _corpus(root: Root, digest: str, known: Any) -> Corpus:
    shards = tuple(Shard(**shard) for shard in known["shards"])
    taxonomy = Taxonomy.restored(known["taxonomy"], root.uri(FOLDER, digest, MANIFEST))
    return Corpus(root, digest, shards, known["counts"], taxonomy, known["files"], known["quarantined"])


def _digest(config: Config, files: Sequence[SourceFile], taxonomy: Taxonomy | None) -> str:
    """Of everything that shards depend on."""
    train, labels = config.train, config.train.labels
    return configuration.digest(
        {
            "version": _VERSION,
            "files": [(file.source, file.path, file.size, file.tag) for file in files],
            "formats": {name: source.model_dump(exclude={"paths"}) for name, source in config.sources.items()},
            "labels": None if labels is None else [labels.model_dump(), stamps(labels.paths)],
            "taxonomy": taxonomy.digest if taxonomy else None,
            "tokenizer": [config.encoder.model, config.encoder.prefix, train.max_length],
            "split": [train.split, train.fold],
            "privacy": [fingerprint(config.privacy.key()), config.privacy.redact],
            "augment": train.augment.rewrite,
        }
    )


def _made(
    config: Config,
    root: Root,
    digest: str,
    files: Sequence[SourceFile],
    taxonomy: Taxonomy | None,
    clock: datetime,
    engine: RayEngine,
) -> dict[str, Any]:
    parts: list[Range] = []
    for file in files:
        with _insisting(file):
            parts += ranges(file, config.sources[file.source])
    known = Known.of(
        _items(config, parts, engine),
        None if config.train.labels is None else read_labels(config.train.labels),
        taxonomy,
    )
    spoken = [
        part
        for part in parts
        if may_hold_text(config.sources[part.file.source]) and not is_catalogue(config.sources[part.file.source])
    ]
    if not spoken:
        raise SourceError("no source can hold reviews; map `text` under [sources.X.columns]")
    attempt = uuid4().hex[:8]
    shared = ray.put((config, known, clock, spoken))
    numbers = ray.data.from_items([{"at": at} for at in range(len(spoken))], override_num_blocks=len(spoken))
    made = numbers.map_batches(partial(_examples, shared=shared), batch_size=1, batch_format="pyarrow", num_cpus=1)
    shuffled = made.random_shuffle(seed=config.train.seed).repartition(target_num_rows_per_block=SHARD_ROWS)
    write = partial(_write, root=root, folder=f"{FOLDER}/{digest}/{attempt}", tags=len(known.taxonomy.tags))
    wrote = shuffled.map_batches(write, batch_size=None, batch_format="pyarrow", num_cpus=1)
    with plainly():
        reports = [json.loads(row[SAID]) for row in wrote.iter_rows()]
    said = sorted((each for each in reports if "path" in each), key=lambda each: each["path"])
    read = [each for each in reports if "source" in each]
    _check_quarantine(config, read)
    return {
        "shards": [{name: each[name] for name in ("path", "split", "rows")} for each in said],
        "counts": {split: _summed([each for each in said if each["split"] == split]) for split in SPLITS},
        "taxonomy": [asdict(tag) for tag in known.taxonomy.tags],
        "files": len(files),
        "quarantined": sum(each["quarantined"] for each in read),
    }


@contextmanager
def _insisting(file: SourceFile) -> Iterator[None]:
    """A file that cannot be read whole is a person's to mend: nothing is trained without it."""
    try:
        yield
    except FileRejected as error:
        raise SourceError(f"{error}; mend the file or take it out of [sources.{file.source}]") from error


def _items(config: Config, parts: Sequence[Range], engine: RayEngine) -> pl.DataFrame:
    """Every item once (schema.ITEMS): a catalogue's last word goes before the first mention elsewhere."""
    every = [part for part in parts if describes_items(config.sources[part.file.source])]
    found: dict[bool, list[pl.DataFrame]] = {True: [], False: []}
    for part, read in zip(every, engine.read_items(config, every), strict=True):
        found[is_catalogue(config.sources[part.file.source])].append(read.items)
    nothing = frame_of(ITEMS.empty_table())
    stated = pl.concat([nothing, *found[True]]).unique("item_id", keep="last", maintain_order=True)
    mentioned = pl.concat([nothing, *found[False]]).unique("item_id", keep="first", maintain_order=True)
    return pl.concat([stated, mentioned.join(stated, on="item_id", how="anti")])


def _examples(table: pa.Table, shared: Any) -> Iterator[pa.Table]:
    config, known, clock, parts = ray.get(shared)
    for at in table["at"].to_pylist():
        part: Range = parts[at]
        source = config.sources[part.file.source]
        read = quarantined = 0
        with _insisting(part.file):
            for block in ingest(part, source, clock, config.privacy.key(), config.privacy.redact):
                read, quarantined = read + block.rows_read, quarantined + block.quarantined.num_rows
                found = examples(frame_of(block.rows), known, config.train)
                if config.train.augment.rewrite is not None:
                    found = pl.concat([found, rewritten(found, config.train.augment.rewrite)])
                rows = tokenised(found, *_tokenizers(config))
                yield rows.with_columns(pl.lit(None, pl.String).alias(SAID)).to_arrow()
        report = json.dumps({"source": part.file.source, "read": read, "quarantined": quarantined})
        said = pl.DataFrame(schema={**_DTYPES, SAID: pl.String}).clear(1)
        yield said.with_columns(pl.lit(report).alias(SAID)).to_arrow()


def _tokenizers(config: Config) -> tuple[Tokenizer, Tokenizer]:
    texts, titles = (
        config.encoder.model_copy(update={"max_length": length}) for length in (config.train.max_length, ABOUT_TOKENS)
    )
    return tokenizer_of(texts), tokenizer_of(titles)


def _write(table: pa.Table, root: Root, folder: str, tags: int) -> Iterator[pa.Table]:
    """Write a block's examples, a file a split; give what each file holds, and pass the reports on."""
    frame = frame_of(table)
    said = frame[SAID].drop_nulls().to_list()
    rows = frame.filter(pl.col(SAID).is_null()).drop(SAID)
    for (split,), part in sorted(rows.partition_by("split", as_dict=True).items()):
        path = f"{folder}/{split}-{uuid4().hex}.parquet"
        body = io.BytesIO()
        part.sort("id").write_parquet(body, compression="zstd")
        root.create_bytes(body.getvalue(), path)
        said.append(json.dumps({"path": path, "split": split, "rows": part.height, **_held(part, tags)}))
    yield pa.table({SAID: pa.array(said, pa.string())})


def _held(rows: pl.DataFrame, tags: int) -> dict[str, Any]:
    """What a file of examples holds, in numbers that add up (`most` apart)."""
    sentiment = np.bincount(rows["sentiment"].drop_nulls().to_numpy(), minlength=len(SENTIMENTS))
    of_tags = np.bincount(rows["tags"].explode().drop_nulls().to_numpy(), minlength=tags)
    many = rows["tags"].list.len().max()
    return {
        "sentiment": sentiment.tolist(),
        "tags": of_tags.tolist(),
        "tagged": rows["tags"].is_not_null().sum(),
        "most": many or 0,
        "paired": rows["about_ids"].is_not_null().sum(),
        "tokens": int(rows["length"].sum()),
    }


def _summed(files: Sequence[dict[str, Any]]) -> dict[str, Any]:
    whole: dict[str, Any] = {"rows": 0, "sentiment": [0] * len(SENTIMENTS), "tags": [], "tagged": 0, "paired": 0}
    whole |= {"tokens": 0, "most": 0}
    for each in files:
        for name in ("rows", "tagged", "paired", "tokens"):
            whole[name] += each[name]
        whole["sentiment"] = [a + b for a, b in zip(whole["sentiment"], each["sentiment"], strict=True)]
        whole["tags"] = [a + b for a, b in zip(whole["tags"] or [0] * len(each["tags"]), each["tags"], strict=True)]
        whole["most"] = max(whole["most"], each["most"])
    return whole


def _check_quarantine(config: Config, reports: Sequence[dict[str, Any]]) -> None:
    for name, source in config.sources.items():
        read = sum(each["read"] for each in reports if each["source"] == name)
        bad = sum(each["quarantined"] for each in reports if each["source"] == name)
        if read and bad / read > source.max_quarantine:
            raise QuarantineLimitError(
                f"[sources.{name}] {bad:,} of {read:,} rows cannot be used, and max_quarantine is "
                f"{source.max_quarantine:.2%}; `ray-profile build --dry-run` says why. Mend the files, correct "
                f"[sources.{name}], or raise sources.{name}.max_quarantine."
            )
