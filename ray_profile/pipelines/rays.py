"""The steps of a run on Ray: reading and folding in tasks, encoding in actors, one shuffle of partial states.

sources with text     read -> small blocks -> tokenise (tasks) -> encode (actors) -> fold (tasks) --+
sources without       read, fold (tasks) -----------------------------------------------------------+
                                                                    by bucket -> merge, write (shuffle.py)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext, Dataset
from ray.exceptions import RayError

from ray_profile.config import Config
from ray_profile.config import Encoder as Settings
from ray_profile.encode.tokens import Tokenizer
from ray_profile.errors import BuildFailed, ConfigError, RayProfileError
from ray_profile.pipelines import buckets, work
from ray_profile.pipelines.cluster import connected, most
from ray_profile.pipelines.engine import Progress
from ray_profile.pipelines.report import Report, by_file
from ray_profile.pipelines.shuffle import REPORT, Shuffle, folded
from ray_profile.pipelines.tables import frame_of
from ray_profile.profile import statistics
from ray_profile.sources.formats import may_hold_text
from ray_profile.sources.read import Range
from ray_profile.store.index import Part
from ray_profile.store.root import Root
from ray_profile.store.tables import DataFile

if TYPE_CHECKING:
    from ray_profile.encode.text import Encoded, TextEncoder

TEXTS_PER_CALL = 4_096
MAX_PARTITIONS = 200

#: What Ray Data appends, with advice on its own settings, to the message of an error that a task raises.
_ADVICE = "\nFailed to apply UDF transform after "


class RayEngine:
    """`engine.Engine` on a Ray cluster: the one that RAY_ADDRESS names, or one that it starts on this machine."""

    def __init__(self, config: Config, progress: Progress) -> None:
        self._config = config
        self._progress = progress
        self._started = connected(config.build.cpus)
        cpus, gpus = most(config.cluster)
        asked = config.build.gpus_per_encoder
        self._gpus_per_encoder = asked if asked is not None else min(gpus, 1.0)
        some = int(gpus / self._gpus_per_encoder) if self._gpus_per_encoder else 1
        self._encoders = config.build.encoders or max(some, 1)
        self._labels = config.build.encoder_labels
        self._insist_on(gpus)
        self._device = "cuda" if self._gpus_per_encoder else "cpu"  # not whatever a worker happens to see
        self._texts: list[Any] = []
        # Encoders leave a core to the tasks that read and fold, or both wait for each other for ever; on one core they
        # ask for none. (How many threads an encoder uses is another matter: see `_load`.)
        self._cpus_per_encoder = min(0.9, max(0.0, (cpus - 1) / self._encoders))
        self._threads = max(1, int(cpus) // self._encoders)
        self._partitions = int(min(config.state.buckets, max(2, 2 * cpus), MAX_PARTITIONS))
        context = DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.raise_original_map_exception = True

    def _insist_on(self, gpus: float) -> None:
        """A machine of our own, or a cluster that says how far it grows, will never have more than that: without this
        the run would wait for ever."""
        wanted = self._encoders * self._gpus_per_encoder
        own = self._started and "RAY_ADDRESS" not in os.environ
        if wanted <= gpus or not (own or self._config.cluster.gpus is not None):
            return
        if self._started:
            ray.shutdown()
        there = f"this machine has {gpus:g}" if own else f"the cluster may grow to {gpus:g} (cluster.gpus)"
        raise ConfigError(
            f"build.encoders x build.gpus_per_encoder asks for {wanted:g} GPUs, and {there}; "
            "lower them (0 GPUs encodes on the CPU), or name a cluster with more in RAY_ADDRESS"
        )

    def close(self) -> None:
        """Stop Ray if this engine started it."""
        self._dismiss_text_actors()
        if self._started:
            ray.shutdown()

    def read_items(self, config: Config, ranges: Sequence[Range]) -> Iterator[work.ItemsRead]:
        """See `Engine`."""
        task = ray.remote(work.read_items)
        return _one_by_one([partial(task.remote, config, range_) for range_ in ranges])

    def encode(self, texts: pl.Series) -> Encoded:
        """See `Engine`."""
        starts = range(0, max(len(texts), 1), TEXTS_PER_CALL)
        with plainly():
            pool = self._text_actors(min(self._encoders, len(starts)))
            calls = [
                pool[at % len(pool)].encode.remote(texts.slice(start, TEXTS_PER_CALL))
                for at, start in enumerate(starts)
            ]
            parts: list[Encoded] = ray.get(calls)
        return _joined(parts)

    def fold(self, job: work.WaveJob, ranges: Sequence[Range]) -> tuple[list[work.Written], list[Report]]:
        """See `Engine`."""
        if not ranges:
            return [], []
        self._dismiss_text_actors()  # the fold has encoders of its own, and needs the room
        total, reports = sum(work.costs_of(job.config, ranges)), list[Report]()
        done, rows = 0.0, 0

        def told(new: Sequence[Report]) -> None:
            nonlocal done, rows
            reports.extend(new)
            done, rows = done + sum(each.cost for each in new), rows + sum(each.rows_read for each in new)
            self._progress("fold", min(done, total), total, rows)

        with plainly():
            shuffle = Shuffle(job, self._partitions, told)
            for bundle in self._partials(job, ranges).iter_internal_ref_bundles():
                shuffle.add([entry.ref for entry in bundle.blocks], bundle.size_bytes())
            written = shuffle.write()
        self._progress("fold", total, total, rows)
        work.assert_all_arrived(written, reports)
        written.sort(key=lambda each: (each.file.bucket, each.file.path))
        return written, list(by_file(reports).values())

    def statistics(self, root: Root, width: int, states: Mapping[int, Sequence[DataFile]]) -> pl.DataFrame:
        """See `Engine`."""
        task = ray.remote(buckets.statistics_of_bucket)
        calls = [partial(task.remote, root, width, states[bucket]) for bucket in sorted(states)]
        return statistics.combine(_one_by_one(calls))

    def fuse(self, job: buckets.FuseJob) -> list[buckets.Fused]:
        """See `Engine`."""
        with plainly():
            task, shared = ray.remote(buckets.fuse_buckets), ray.put(job)
            waiting = [task.remote(shared, group) for group in buckets.groups_of(job, self._partitions)]
            fused: list[buckets.Fused] = []
            while waiting:
                ready, waiting = ray.wait(waiting)
                fused += [each for group in ray.get(ready) for each in group]
                self._progress("fuse", len(fused), len(job.states), sum(each.new + each.changed for each in fused))
        return sorted(fused, key=lambda each: each.bucket)

    def merge(self, job: buckets.MergeJob) -> list[DataFile]:
        """See `Engine`."""
        with plainly():
            task, shared = ray.remote(buckets.merge_bucket), ray.put(job)
            merged: list[DataFile] = ray.get([task.remote(shared, bucket) for bucket in job.states])
        return merged

    def index(self, job: buckets.IndexJob) -> list[Part]:
        """See `Engine`."""
        with plainly():
            task, shared = ray.remote(buckets.index_part), ray.put(job)
            parts: list[Part] = ray.get([task.remote(shared, bucket) for bucket in job.due])
        return parts

    def _text_actors(self, count: int) -> list[Any]:
        """At least so many actors that encode texts which are no rows; they stay until a fold needs their room."""
        wanted: dict[str, Any] = {"num_cpus": self._cpus_per_encoder, "num_gpus": self._gpus_per_encoder}
        actor: Any = ray.remote(_TextActor).options(**wanted, label_selector=self._labels)
        while len(self._texts) < count:
            self._texts.append(actor.remote(self._config.encoder, self._device, self._threads))
        return self._texts

    def _dismiss_text_actors(self) -> None:
        while self._texts:
            ray.kill(self._texts.pop())

    def _partials(self, job: work.WaveJob, ranges: Sequence[Range]) -> Dataset:
        """Partial states of all ranges and their reports (see `shuffle.folded`)."""
        speaks = {name: may_hold_text(source) for name, source in job.config.sources.items()}
        spoken = [range_ for range_ in ranges if speaks[range_.file.source]]
        silent = [range_ for range_ in ranges if not speaks[range_.file.source]]
        whole: dict[str, Any] = {"batch_size": None, "batch_format": "pyarrow"}
        fold = partial(_fold, job=job)
        parts: list[Dataset] = []
        if spoken:
            settings = job.config.encoder
            read = self._read(job, spoken).repartition(target_num_rows_per_block=work.ROWS_PER_TEXT_BLOCK)
            tokens = read.map_batches(partial(_tokenise, settings=settings), num_cpus=1, **whole)
            encoded = tokens.map_batches(
                _EncodeActor,
                fn_constructor_args=(settings, self._device, self._threads),
                compute=ActorPoolStrategy(size=self._encoders),
                num_cpus=self._cpus_per_encoder,
                num_gpus=self._gpus_per_encoder or None,
                label_selector=self._labels,
                **whole,
            )
            parts.append(encoded.map_batches(fold, num_cpus=1, **whole))
        if silent:
            parts.append(self._read(job, silent).map_batches(fold, num_cpus=1, **whole))
        return parts[0].union(*parts[1:]) if len(parts) > 1 else parts[0]

    def _read(self, job: work.WaveJob, ranges: Sequence[Range]) -> Dataset:
        numbers = ray.data.from_items([{"at": at} for at in range(len(ranges))], override_num_blocks=len(ranges))
        reader = partial(_read, job=job, ranges=list(ranges), costs=work.costs_of(job.config, ranges))
        return numbers.map_batches(reader, batch_size=1, batch_format="pyarrow", num_cpus=1)


class _Encoding:
    """An actor with an encoder. One that cannot be loaded is an error of the first task: of an actor that cannot be
    made Ray says no more than that it died."""

    def __init__(self, settings: Settings, device: str, threads: int) -> None:
        self._loaded: TextEncoder | RayProfileError
        try:
            self._loaded = _load(settings, device, threads)
        except RayProfileError as error:
            self._loaded = error

    @property
    def _encoder(self) -> TextEncoder:
        if isinstance(self._loaded, RayProfileError):
            raise self._loaded
        return self._loaded


class _TextActor(_Encoding):
    """Encodes texts that are no rows: titles and the taxonomy."""

    def encode(self, texts: pl.Series) -> Encoded:
        return self._encoder.encode(texts)


class _EncodeActor(_Encoding):
    """The encoder as an actor of the fold's pipeline."""

    def __call__(self, table: pa.Table) -> pa.Table:
        rows, reports = _unpacked(table)
        block = work.encode(work.Block(rows, Report("", "")), self._encoder)
        return _packed(block.rows, [*reports, block.report])


def _joined(parts: Sequence[Encoded]) -> Encoded:
    from ray_profile.encode.text import Encoded

    counts = ("tokens", "truncated", "characters", "unknown_characters")
    summed = {name: sum(getattr(part, name) for part in parts) for name in counts}
    return Encoded(np.concatenate([part.vectors for part in parts]), **summed)


def _load(settings: Settings, device: str, threads: int) -> TextEncoder:
    import torch

    from ray_profile.encode.text import TextEncoder

    torch.set_num_threads(
        min(threads, os.cpu_count() or 1)
    )  # Ray gives an actor as many as its num_cpus, which here says something else
    return TextEncoder.load(settings, device)


def _one_by_one(calls: Sequence[Callable[[], Any]]) -> Iterator[Any]:
    """What some tasks give, in their order: all run at once, but the driver takes one result at a time."""
    with plainly():
        waiting = [call() for call in calls]
        while waiting:
            yield ray.get(waiting.pop(0))


def _read(table: pa.Table, job: work.WaveJob, ranges: Sequence[Range], costs: Sequence[float]) -> Iterator[pa.Table]:
    for at in table["at"].to_numpy():
        for block in work.read(job, ranges[at], costs[at]):
            yield _packed(block.rows, [block.report])


def _tokenise(table: pa.Table, settings: Settings) -> pa.Table:
    rows, reports = _unpacked(table)
    block = work.tokenise(work.Block(rows, Report("", "")), tokenizer_of(settings))
    return _packed(block.rows, [*reports, block.report])


def _fold(table: pa.Table, job: work.WaveJob) -> pa.Table:
    rows, reports = _unpacked(table)
    states, report = work.fold_block(work.Block(rows, Report("", "")), job)
    return folded(states, [*reports, report])


def _packed(rows: pl.DataFrame, reports: Sequence[Report]) -> pa.Table:
    """Rows and their reports as one table: a report is a row of its own."""
    said = pl.DataFrame({REPORT: [report.to_json() for report in reports]}, schema={REPORT: pl.String})
    return pl.concat([rows.with_columns(pl.lit(None, pl.String).alias(REPORT)), said], how="diagonal").to_arrow()


def _unpacked(table: pa.Table) -> tuple[pl.DataFrame, list[Report]]:
    frame = frame_of(table)
    said = frame[REPORT].drop_nulls().to_list()
    return frame.filter(pl.col(REPORT).is_null()).drop(REPORT), [Report.from_json(text) for text in said]


_tokenizers: dict[Settings, Tokenizer] = {}


def tokenizer_of(settings: Settings) -> Tokenizer:
    """A process's own, loaded once."""
    if settings not in _tokenizers:
        _tokenizers[settings] = Tokenizer.load(settings)
    return _tokenizers[settings]


@contextmanager
def plainly() -> Iterator[None]:
    """Raise the package's own errors as they were raised in a worker, and Ray's as a failed run."""
    try:
        yield
    except Exception as error:
        if isinstance(error, RayProfileError) and not isinstance(error, RayError):
            raise
        at: BaseException | None = error  # an error of ours from a task is both, and would print as Ray's traceback
        while at is not None:
            cause = getattr(at, "cause", None) or at.__cause__
            if isinstance(cause, RayProfileError):
                cause.args = (str(cause).partition(_ADVICE)[0],)
                raise cause from None
            at = cause if isinstance(cause, BaseException) else None
        if isinstance(error, RayError):
            raise BuildFailed(f"Ray could not finish the run, which has committed nothing more: {error}") from error
        raise
