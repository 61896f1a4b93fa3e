"""Fold one wave in: catalogue, probe, rows; check what came out; one commit, or none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

import polars as pl
import pyarrow as pa

from ray_profile.encode.heads import Encodes, TagMatrix
from ray_profile.encode.tokens import Letters, readable_or_raise
from ray_profile.errors import FileRejected, QuarantineLimitError, RayProfileError
from ray_profile.pipelines import catalogue, probe, work
from ray_profile.pipelines.engine import Engine
from ray_profile.pipelines.report import Report, add, counted
from ray_profile.pipelines.run import NEWEST, Run
from ray_profile.pipelines.tables import frame_of
from ray_profile.profile.tagging import Tagger
from ray_profile.schema import ITEMS, REASONS
from ray_profile.sources.files import SourceFile
from ray_profile.sources.formats import describes_items, is_catalogue
from ray_profile.sources.read import Range, ranges
from ray_profile.store.plan import Found, PlannedFile, RejectedFile, Wave
from ray_profile.store.tables import DataFile

MAX_BLAMED = 5
#: Application ids of states commits that carry what was read of all waves: the encoder is judged by the whole, so that
#: one day's few texts in another script do not stop a shop whose corpus the encoder reads.
LETTERS, UNKNOWN_LETTERS = "letters", "unknown_letters"


#: A file may belong to two sources (orders that also make the catalogue), so that a path alone names nothing.
Key = tuple[str, str]  # source, path


@dataclass(frozen=True)
class Folded:
    """What a committed wave took in."""

    reports: list[Report]  # one a file
    rejected: list[RejectedFile]
    full: dict[str, int] = field(default_factory=dict)  # map column -> states in which it has reached its cap


def fold_wave(run: Run, wave: Wave, engine: Engine) -> Folded:
    """Read a wave's files, commit their states, and say what became of every row.

    A file that turns out unreadable when some of its rows were folded already makes the wave fold again without it.
    Raises `QuarantineLimitError`, `EncoderError`, `FencedError`, `StorageError`; no row is committed then.
    """
    run.writer.write_plan(wave)
    parts, rejected = _ranges(run, wave)
    tagger = make_tagger(run, engine)
    handle = run.writer.handle
    before = Letters(handle.transaction(LETTERS) or 0, handle.transaction(UNKNOWN_LETTERS) or 0)
    items, of_titles = _catalogue(run, wave, parts, rejected, tagger, engine, before)
    sources = run.config.sources
    readable = [part for key, each in parts.items() for part in each if key not in rejected]
    rows = [part for part in readable if not is_catalogue(sources[part.file.source])]
    head = probe.find_or_fit(run, rows, engine)
    job = work.WaveJob(run.config, run.root, wave.uuid, wave.number, run.clock, run.width, items, tagger, head)
    run.at("write.before")
    written, reports = _fold(run, job, rows, rejected, engine)
    files = [each.file for each in written]
    run.at("write.after")
    named = [_named(file, rejected[_key(file)]) for file in wave.files if _key(file) in rejected]
    total = add(reports)
    letters = before + of_titles + Letters(total.characters, total.unknown_characters)
    try:
        readable_or_raise(run.config.encoder.model, letters)
        _check(run, wave, reports, named)
    except RayProfileError:
        run.root.delete(f"states/{file.path}" for file in files)
        raise
    probe.publish(run.root, head)
    facts = {**_newest(run, written), LETTERS: letters.read, UNKNOWN_LETTERS: letters.unknown}
    run.writer.commit_wave(wave, files, named, facts)
    return Folded(reports, named, counted(each.full for each in written))


def _newest(run: Run, written: Sequence[work.Written]) -> dict[str, int]:
    """The start of the newest period in the states, which says what profiles are as of."""
    periods = [each.newest for each in written]
    before = run.writer.handle.transaction(NEWEST)
    known = periods if before is None else [*periods, before]
    return {NEWEST: max(known)} if known else {}


def make_tagger(run: Run, encoder: Encodes) -> Tagger:
    """The taxonomy's tags, with the vectors by which texts resemble them, and the model's own head for reviews.

    Where the shop names no taxonomy, the model's stored one is all there is: nothing is tagged by resemblance with
    words that were never meant for it (a book's title is "Sports & Outdoors" to nobody).
    """
    trained = run.heads.tags if run.heads is not None else None
    if run.taxonomy is None:
        return Tagger()
    if run.config.taxonomy.path is None:
        return Tagger(run.taxonomy, None, None if trained is None else trained.matrix(run.taxonomy, encoder))
    plain = TagMatrix.build(run.taxonomy, encoder, run.config.taxonomy.threshold)
    return Tagger(run.taxonomy, plain, None if trained is None else trained.over(plain.tags, plain.vectors))


def _ranges(run: Run, wave: Wave) -> tuple[dict[Key, list[Range]], dict[Key, FileRejected]]:
    """The ranges of each readable file, and why each other one is rejected."""
    parts: dict[Key, list[Range]] = {}
    rejected: dict[Key, FileRejected] = {}
    for file in wave.files:
        try:
            parts[_key(file)] = ranges(SourceFile(**asdict(file)), run.config.sources[file.source])
        except FileRejected as error:
            rejected[_key(file)] = error
    return parts, rejected


def _catalogue(
    run: Run,
    wave: Wave,
    parts: Mapping[Key, Sequence[Range]],
    rejected: dict[Key, FileRejected],
    tagger: Tagger,
    engine: Engine,
    before: Letters,
) -> tuple[tuple[DataFile, ...], Letters]:
    sources = run.config.sources
    every = [part for (name, _), each in parts.items() for part in each if describes_items(sources[name])]
    named: dict[Key, _Named] = {}
    for part, found in zip(every, engine.read_items(run.config, every), strict=True):
        if found.rejected:
            rejected[_key(part.file)] = found.rejected
        if _key(part.file) not in rejected:
            named.setdefault(_key(part.file), _Named()).add(found, last=is_catalogue(sources[part.file.source]))
    good = {key: each for key, each in named.items() if key not in rejected}
    _check_catalogues(run, good)
    for at, table in enumerate(table for each in good.values() for table in each.nameless):
        work.write_quarantined(run.root, wave.uuid, f"items-{at}.parquet", table)
    stated = [each.items for (name, _), each in good.items() if is_catalogue(sources[name])]
    mentioned = [each.items for (name, _), each in good.items() if not is_catalogue(sources[name])]
    model = run.config.encoder.model
    return catalogue.update(run.root, wave, stated, mentioned, tagger, engine, model, before, run.at)


@dataclass
class _Named:
    """The items of a file, each once, and its rows that name none: what the driver holds while ranges come in."""

    items: pl.DataFrame = field(default_factory=lambda: frame_of(ITEMS.empty_table()))
    nameless: list[pa.Table] = field(default_factory=list)

    def add(self, found: work.ItemsRead, last: bool) -> None:
        """Take in a range; of an item that is named again the last word counts, or the first."""
        both = pl.concat([self.items, found.items])
        self.items = both.unique("item_id", keep="last" if last else "first", maintain_order=True)
        self.nameless += found.nameless


def _check_catalogues(run: Run, read: Mapping[Key, _Named]) -> None:
    """A catalogue of which too many rows name no item fails the wave too; its rows are items, not users' rows."""
    for name, source in run.config.sources.items():
        mine = [found for (of, _), found in read.items() if of == name and is_catalogue(source)]
        bad = sum(table.num_rows for found in mine for table in found.nameless)
        named = sum(found.items.height for found in mine)
        if bad and bad / (bad + named) > source.max_quarantine:
            raise QuarantineLimitError(
                f"[sources.{name}] {bad:,} rows of the catalogue are broken or name no item, beside {named:,} good "
                f"items, and max_quarantine is {source.max_quarantine:.2%}; no row was committed. Mend the files, "
                f"correct [sources.{name}], or raise sources.{name}.max_quarantine."
            )


def _fold(
    run: Run, job: work.WaveJob, rows: Sequence[Range], rejected: dict[Key, FileRejected], engine: Engine
) -> tuple[list[work.Written], list[Report]]:
    while True:
        written, reports = engine.fold(job, rows)
        bad = [report for report in reports if report.rejected]
        for report in bad:
            rejected[report.source, report.file] = FileRejected(report.file, report.rejected, report.transient)
            work.drop_quarantined(run.root, job.uuid, report.source, report.file)
        if not any(report.rows_folded for report in bad):
            return written, [report for report in reports if not report.rejected]
        # Some of its rows are in the files: none of it may count, so the wave is folded again without it.
        run.root.delete(f"states/{each.file.path}" for each in written)
        rows = [part for part in rows if _key(part.file) not in rejected]


def _check(run: Run, wave: Wave, reports: Sequence[Report], rejected: Sequence[RejectedFile]) -> None:
    for name, source in run.config.sources.items():
        mine = [report for report in reports if report.source == name]
        size = sum(file.size for file in wave.files if file.source == name)
        lost = sum(file.size for file in rejected if file.source == name)
        whole = add(mine)
        of_bytes = lost / size if size else 0.0
        of_rows = whole.rows_quarantined / whole.rows_read if whole.rows_read else 0.0
        share = of_bytes + (1 - of_bytes) * of_rows
        if share > source.max_quarantine:
            blamed = _blame(mine, [file for file in rejected if file.source == name])
            raise QuarantineLimitError(
                f"[sources.{name}] {share:.2%} of this wave cannot be used, and max_quarantine is "
                f"{source.max_quarantine:.2%}; no row was committed.\n{blamed}\n"
                f"Mend the files, correct [sources.{name}], or raise sources.{name}.max_quarantine."
            )


def _blame(reports: Sequence[Report], rejected: Sequence[RejectedFile]) -> str:
    lines = [f"  {file.path}: rejected whole: {file.reason}" for file in rejected]
    for report in sorted(reports, key=lambda report: -report.rows_quarantined):
        if report.rows_quarantined:
            why = "; ".join(f"{rows:,} x {reason} ({REASONS[reason]})" for reason, rows in report.quarantined.items())
            lines.append(f"  {report.file}: {why}; for example {', '.join(report.examples)}")
    more = len(lines) - MAX_BLAMED
    return "\n".join(lines[:MAX_BLAMED] + ([f"  ... and {more} more files"] if more > 0 else []))


def _key(file: Found) -> Key:
    return file.source, file.path


def _named(file: PlannedFile, why: FileRejected) -> RejectedFile:
    return RejectedFile(**asdict(file), reason=why.reason, transient=why.transient)
