"""`build`: source files become profiles, incrementally and exactly once.

    open -> plan -> for each wave: catalogue -> fold -> commit -> then once: statistics -> fuse -> commit -> tidy up

and where the root has a serving index, a new one after the fuse.

What a run decides is here; where its tasks run is the engine's business. Planning starts nothing: a run without new
files ends before Ray or torch is imported. Fusing comes last in every run, with or without new files, so that a crash
between the two commits heals with the next run and gives what an undisturbed run would have given.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ray_profile.config import Config
from ray_profile.errors import EncoderError, QuarantineLimitError, SourceError
from ray_profile.pipelines.report import Report, add, counted
from ray_profile.pipelines.run import Run
from ray_profile.pipelines.watch import Watch
from ray_profile.store.plan import RejectedFile
from ray_profile.store.tables import Table
from ray_profile.store.waves import Step, ignore_step, unfused

if TYPE_CHECKING:
    from ray_profile.pipelines.engine import Engine, Progress


@dataclass
class Summary:
    """What a run did: `report` adds up all rows, `seconds` is wall time, `stages` wall time by stage of the run."""

    waves: int = 0
    users: int = 0
    profiles_new: int = 0
    profiles_changed: int = 0
    profiles_version: int | None = None
    indexed: int | None = None  # the version of the serving index that this run made
    files_folded_before: int = 0
    rejected: list[RejectedFile] = field(default_factory=list)
    rejected_before: list[RejectedFile] = field(default_factory=list)
    reports: list[Report] = field(default_factory=list)  # one a file
    full: dict[str, int] = field(default_factory=dict)  # map column -> states in which it has reached its cap
    keyed: bool = True
    seconds: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)

    @property
    def report(self) -> Report:
        return add(self.reports)

    @property
    def nameless(self) -> dict[str, int]:
        """Sources of whose rows none names a user, most likely because another column does, with their rows."""
        read, named = Counter[str](), Counter[str]()
        for report in self.reports:
            read[report.source] += report.rows_read
            named[report.source] += report.rows_read - report.rows_anonymous
        return {source: rows for source, rows in sorted(read.items()) if rows and not named[source]}

    @property
    def profiles_written(self) -> int:
        return self.profiles_new + self.profiles_changed

    def to_json(self) -> dict[str, Any]:
        """The keys that scripts read."""
        report = self.report
        return {
            "rows_read": report.rows_read,
            "rows_folded": report.rows_folded,
            "rows_anonymous": report.rows_anonymous,
            "rows_quarantined": report.rows_quarantined,
            "files_rejected": len(self.rejected),
            "users": self.users,
            "profiles_written": self.profiles_written,
            "waves": self.waves,
            "profiles_version": self.profiles_version,
            "seconds": round(self.seconds, 3),
        }


def build(
    config: Config,
    local: bool = False,
    refresh: bool = False,
    at: Step = ignore_step,
    progress: Progress | None = None,
    clock: datetime | None = None,
) -> Summary:
    """Fold in every file that is new, then fuse every user that changed (all of them on `refresh`).

    `at` is told each step of the commit protocol; `clock` is the run's now (UTC). Raises `RayProfileError`s, and then
    the tables are as the last commit left them.
    """
    from ray_profile.pipelines.index import indexed, is_behind

    watch = Watch()
    run = Run.open(config, clock or datetime.now(UTC), at)
    plan = run.plan()
    summary = Summary(
        stages=watch.stages, keyed=run.keyed, files_folded_before=len(plan.folded), rejected_before=list(plan.rejected)
    )
    watch.mark("plan")
    profiles = Table(run.root, "profiles")
    due = unfused(run.writer.handle, profiles.open())
    if plan.waves or due or (refresh and run.writer.number > 0) or is_behind(run):
        from ray_profile.pipelines.fusing import fuse_changed
        from ray_profile.pipelines.wave import fold_wave

        engine = engine_of(run.config, local, progress)
        watch.mark("start")
        try:
            try:
                for wave in plan.waves:
                    folded = fold_wave(run, wave, engine)
                    summary.waves += 1
                    summary.reports += folded.reports
                    summary.rejected += folded.rejected
                    summary.full = counted((summary.full, folded.full))
            except (QuarantineLimitError, EncoderError, SourceError):
                if summary.waves or due:  # one bad wave must not keep the good ones from being read
                    fuse_changed(run, engine, refresh)
                raise
            watch.mark("fold")
            result = fuse_changed(run, engine, refresh)
            summary.profiles_new, summary.profiles_changed = result.new, result.changed
            watch.mark("fuse")
            if is_behind(run):
                summary.indexed = indexed(run, engine).version
                watch.mark("index")
        finally:
            engine.close()
        watch.mark("close")
        run.writer.remove_orphans(run.clock)
    handle = profiles.open()
    if handle is not None:
        summary.users, summary.profiles_version = sum(file.rows for file in handle.files()), handle.version
    watch.mark("tidy")
    summary.seconds = sum(summary.stages.values())
    return summary


def engine_of(config: Config, local: bool, progress: Progress | None = None) -> Engine:
    """Where the tasks of a run are done: on Ray, which this starts where RAY_ADDRESS names no cluster, or here."""
    from ray_profile.pipelines.engine import no_progress

    if local:
        from ray_profile.pipelines.local import LocalEngine

        return LocalEngine(config, progress or no_progress)
    from ray_profile.pipelines.rays import RayEngine

    return RayEngine(config, progress or no_progress)
