"""What is new, folded, rejected or changed among the files that the sources list."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_profile.errors import ChangedFileError, RootError
from ray_profile.store.plan import PastWave, Plan, PlannedFile, RejectedFile, Wave, check_digests, make_plan

CLOCK = datetime(2026, 3, 1, tzinfo=UTC)
DIGESTS: dict[str, str | None] = {"encoder": "e1", "schema": "s1", "taxonomy": None, "key": "k1", "formats": "f1"}


def file(path: str, size: int = 10, tag: str = "", source: str = "reviews") -> PlannedFile:
    return PlannedFile(source, path, size, tag or f"tag of {path.rsplit('/')[-1]}")


def past(number: int, *files: PlannedFile, rejected: Sequence[RejectedFile] = ()) -> PastWave:
    wave = Wave(f"{number:032x}", number, CLOCK.isoformat(), "fold", files, DIGESTS)
    return PastWave(wave, tuple(rejected))


def planned(
    found: Sequence[PlannedFile],
    *before: PastWave,
    digests: Mapping[str, str | None] = DIGESTS,
    wave_bytes: float = 1000,
    replaceable: Sequence[str] = (),
) -> Plan:
    return make_plan(found, before, len(before), digests, {"root": "/r"}, CLOCK, wave_bytes, replaceable)


def new(plan: Plan) -> list[str]:
    return [each.path for wave in plan.waves for each in wave.files]


def test_nothing_listed_is_nothing_to_do() -> None:
    assert planned([]) == Plan((), (), ())


def test_only_new_files_are_planned_and_a_vanished_one_changes_nothing() -> None:
    plan = planned([file("b"), file("c")], past(1, file("a"), file("b")))
    assert new(plan) == ["c"]
    assert plan.folded == (file("b"),)
    (wave,) = plan.waves
    assert (wave.number, wave.clock, wave.digests, wave.config) == (2, CLOCK.isoformat(), DIGESTS, {"root": "/r"})
    assert len(wave.uuid) == 32


def test_a_file_that_moved_with_its_folder_is_not_folded_again() -> None:
    before = past(1, file("/old/shop/a.csv"), file("/old/shop/b.csv", tag="u"), file("/old/shop/c.csv", tag="u"))
    moved = [file("/new/shop/a.csv"), file("/new/shop/b.csv", tag="u"), file("/new/shop/c.csv", tag="u")]
    assert planned(moved, before) == Plan((), tuple(moved), ())
    assert new(planned([*moved, file("/old/shop/a.csv")], before)) == ["/new/shop/a.csv"]  # a copy is another file
    assert new(planned([file("/new/shop/a.csv", tag="v")], before)) == ["/new/shop/a.csv"]
    assert new(planned([file("/new/shop/a.csv", source="orders")], before)) == ["/new/shop/a.csv"]


def test_a_file_that_seems_to_be_renamed_is_refused() -> None:
    with pytest.raises(
        ChangedFileError, match=r"/shop/c.csv has the size and tag of /shop/a.csv, which wave 1 .*old name"
    ):
        planned([file("/shop/c.csv", tag="t")], past(1, file("/shop/a.csv", tag="t")))


def test_waves_hold_at_most_so_many_bytes_but_a_file_at_least() -> None:
    sizes = {"a": 4, "b": 5, "c": 3, "d": 30, "e.gz": 0, "f": 10}
    plan = planned([file(path, size) for path, size in sizes.items()], wave_bytes=10)
    assert [[each.path for each in wave.files] for wave in plan.waves] == [["a", "b"], ["c"], ["d"], ["e.gz", "f"]]
    assert [wave.number for wave in plan.waves] == [1, 2, 3, 4]


@given(st.lists(st.integers(1, 40), max_size=30), st.integers(1, 50))
def test_splitting_keeps_every_file_once(sizes: list[int], wave_bytes: int) -> None:
    files = [file(f"{number:03}", size) for number, size in enumerate(sizes)]
    plan = planned(files, wave_bytes=wave_bytes)
    assert [each for wave in plan.waves for each in wave.files] == files
    assert all(sum(each.size for each in wave.files) <= wave_bytes or len(wave.files) == 1 for wave in plan.waves)
    assert all(wave.files for wave in plan.waves)


@pytest.mark.parametrize("now", [file("a", size=11), file("a", tag="u")])
def test_a_changed_file_is_an_error_that_names_file_and_wave(now: PlannedFile) -> None:
    with pytest.raises(ChangedFileError, match=rf"^a has changed since wave 1 \({1:032x}, 2026-03-01.*new root$"):
        planned([now], past(1, file("a")))


def test_a_text_without_bytes_is_planned_once_it_has_some() -> None:
    empty, written = file("p.csv", size=0), file("p.csv", size=30, tag="u")
    assert planned([empty]) == Plan((), (), ())
    assert new(planned([empty, file("a")])) == ["a"]
    assert new(planned([written], past(1, file("a")))) == ["p.csv"]
    # A root of an earlier release, which took such a file for folded.
    assert planned([empty], past(1, empty)) == Plan((), (), ())
    assert new(planned([written], past(1, empty))) == ["p.csv"]
    assert planned([written], past(1, empty), past(2, written)).folded == (written,)


def test_a_folded_file_that_lost_its_bytes_has_changed_but_a_catalogue_is_left_alone() -> None:
    before, emptied = past(1, file("a.csv")), file("a.csv", size=0, tag="u")
    with pytest.raises(ChangedFileError, match=r"10 bytes and tag tag of a.csv then, 0 bytes"):
        planned([emptied], before)
    assert planned([emptied], before, replaceable=["reviews"]) == Plan((), (), ())


@pytest.mark.parametrize("name", ["a.parquet", "a.csv.gz"])
def test_an_empty_file_that_must_have_bytes_is_read_and_so_rejected_until_it_changes(name: str) -> None:
    empty = file(name, size=0)
    assert new(planned([empty])) == [name]
    before = past(1, empty, rejected=[RejectedFile("reviews", name, 0, empty.tag, "is empty")])
    assert (new(planned([empty], before)), len(planned([empty], before).rejected)) == ([], 1)
    assert new(planned([file(name, size=30, tag="u")], before)) == [name]


def test_a_catalogue_may_change() -> None:
    before = past(1, file("items.csv", source="items"), file("a"))
    changed = file("items.csv", tag="u", source="items")
    assert new(planned([changed, file("a")], before, replaceable=["items"])) == ["items.csv"]
    assert new(planned([changed], before, past(2, changed), replaceable=["items"])) == []


def test_a_rejected_file_is_tried_again_only_when_it_changed() -> None:
    rejected = RejectedFile("reviews", "a", 10, "t", "a broken gzip")
    before = past(1, file("a"), file("b"), rejected=[rejected])
    plan = planned([file("a"), file("b")], before)
    assert (new(plan), plan.rejected, plan.folded) == ([], (rejected,), (file("b"),))
    mended = file("a", tag="u")
    assert new(planned([mended], before)) == ["a"]
    assert planned([mended], before, past(2, mended)).folded == (mended,)


def test_a_file_that_only_changed_while_being_read_is_tried_again() -> None:
    rejected = RejectedFile("reviews", "a", 10, "t", "vanished", transient=True)
    assert new(planned([file("a")], past(1, file("a"), rejected=[rejected]))) == ["a"]


@pytest.mark.parametrize(
    ("name", "step"), [("encoder", "rebuild"), ("schema", "rebuild"), ("taxonomy", "re-tag"), ("key", "privacy")]
)
def test_a_digest_that_must_not_change_is_named_with_what_to_do(name: str, step: str) -> None:
    with pytest.raises(RootError, match=rf"the {name} has changed since wave 1.*'new'.*{step}.*new root"):
        planned([], past(1, file("a")), digests={**DIGESTS, name: "new"})


def test_of_two_encoders_both_are_named_so_that_one_can_keep_the_old_or_rebuild_with_the_new() -> None:
    def change(then: str, now: str) -> str:
        wave = dataclasses.replace(past(1, file("a")).wave, config={"encoder": {"model": then}})
        with pytest.raises(RootError) as caught:
            check_digests([PastWave(wave)], {**DIGESTS, "encoder": "new"}, {"encoder": {"model": now}})
        return str(caught.value)

    old, new = "s3://b/r/models/enc/0000000000000001", "s3://b/r/models/enc/0000000000000002"
    assert f"keep the old one with encoder.model = {old!r}" in change(old, new)
    assert f"build into a new root with encoder.model = {new!r}" in change(old, new)
    assert "encoder.model" not in change(old, old)  # its files have changed where they lie, or its prefix
    assert "set the old encoder" in change(old, old)


def test_new_formats_and_compactions_are_no_change_of_digest() -> None:
    compaction = PastWave(Wave(f"{2:032x}", 2, CLOCK.isoformat(), "compact"))
    plan = planned([file("b")], past(1, file("a")), compaction, digests={**DIGESTS, "formats": "f2"})
    assert (new(plan), plan.waves[0].number) == (["b"], 3)


def test_a_renamed_source_does_not_fold_its_files_twice() -> None:
    with pytest.raises(RootError, match=r"a is folded in as a file of source 'reviews'.*'comments'.*old name"):
        planned([file("a", source="comments")], past(1, file("a")))


def test_two_sources_may_read_one_file() -> None:
    plan = planned([file("a"), file("a", source="events")], past(1, file("a")))
    assert [each.source for wave in plan.waves for each in wave.files] == ["events"]


def test_a_plan_survives_its_json() -> None:
    wave = Wave(
        "0" * 32, 3, CLOCK.isoformat(), "fold", (file("评论/一月.jsonl.gz"),), DIGESTS, {"encoder": {"model": "m"}}
    )
    assert Wave.from_json(json.loads(json.dumps(wave.to_json(), ensure_ascii=False))) == wave


@pytest.mark.parametrize("value", [{}, {"files": [{"path": "a"}]}, {"files": [], "nonsense": 1}])
def test_a_file_that_is_no_plan_is_a_root_error(value: dict[str, object]) -> None:
    with pytest.raises(RootError, match="no plan"):
        Wave.from_json(value)
