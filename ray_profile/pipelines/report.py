"""What became of every row: one report a block, added up into the summary of a run."""

from __future__ import annotations

import dataclasses
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

MAX_EXAMPLES = 3


@dataclass
class Report:
    """One block of a range (or, added up, many). `rejected` is the reason where the file cannot be read whole."""

    source: str
    file: str
    rows_read: int = 0
    rows_folded: int = 0
    rows_anonymous: int = 0
    quarantined: dict[str, int] = field(default_factory=dict)  # reason code -> rows
    examples: list[str] = field(default_factory=list)  # "row 17: rating_range"
    rejected: str = ""
    transient: bool = False  # of a rejected file: worth another try as it is
    texts: int = 0
    tokens: int = 0
    truncated: int = 0
    characters: int = 0
    unknown_characters: int = 0
    seconds: dict[str, float] = field(default_factory=dict)  # stage -> wall seconds in its worker
    cost: float = 0.0  # its part of the wave's work, for progress only

    @property
    def rows_quarantined(self) -> int:
        return sum(self.quarantined.values())

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Report:
        return cls(**json.loads(text))

    def assert_balanced(self) -> None:
        """Of every readable row it is known what became of it."""
        assert self.rows_read == self.rows_folded + self.rows_anonymous + self.rows_quarantined, (
            f"{self.file}: {self.rows_read} rows read, but {self.rows_folded} folded + {self.rows_anonymous} anonymous "
            f"+ {self.rows_quarantined} quarantined"
        )

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time spent inside to a stage."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - began


def add(reports: Iterable[Report], source: str = "", file: str = "") -> Report:
    """The sum of reports, under the name of a source or a file."""
    total = Report(source, file)
    for report in reports:
        for name in ("rows_read", "rows_folded", "rows_anonymous", "texts", "tokens", "truncated"):
            setattr(total, name, getattr(total, name) + getattr(report, name))
        total.characters += report.characters
        total.unknown_characters += report.unknown_characters
        total.cost += report.cost
        total.rejected, total.transient = total.rejected or report.rejected, total.transient or report.transient
        total.examples = (total.examples + report.examples)[:MAX_EXAMPLES]
        total.quarantined = counted((total.quarantined, report.quarantined))
        for stage, seconds in report.seconds.items():
            total.seconds[stage] = total.seconds.get(stage, 0.0) + seconds
    return total


def counted(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """The sum of some counts by name, sorted by name."""
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part)
    return dict(sorted(total.items()))


def by_file(reports: Iterable[Report]) -> dict[tuple[str, str], Report]:
    """The sum of the reports of each (source, file), sorted."""
    groups: dict[tuple[str, str], list[Report]] = {}
    for report in reports:
        groups.setdefault((report.source, report.file), []).append(report)
    return {key: add(groups[key], *key) for key in sorted(groups)}
