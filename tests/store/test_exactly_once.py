"""Exactly once, whoever dies and whoever interleaves: the protocol of store/waves.py under thousands of schedules.

The tests would be worth nothing if they could not fail, so the last ones break the protocol in the ways that a reader
might think harmless and require that the schedules find out.
"""

from __future__ import annotations

import random
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from store_world import BROKEN, FAULTS, Process, World, build, compact, converge

from ray_profile.errors import FencedError
from ray_profile.store import plan, waves
from ray_profile.store.waves import Claim, Writer

SCHEDULES = 2000
MUTANT_SCHEDULES = 1500  # at most; each mutant is caught long before


@pytest.fixture(autouse=True)
def _restore_uuids() -> Iterator[None]:
    yield
    plan.uuid = waves.uuid = uuid  # type: ignore[attr-defined]


class Shop(RuleBasedStateMachine):
    """Files come, change and go; runs start, advance request by request, and die; answers are lost."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.world.name_waves_in_order()
        self.running: list[Process] = []

    @rule(name=st.sampled_from("abcdefg"), tag=st.integers(0, 2))
    def put_file(self, name: str, tag: int) -> None:
        self.world.sources[name] = tag  # new, changed, or back to what it was

    @precondition(lambda self: self.world.sources)
    @rule(data=st.data())
    def remove_file(self, data: st.DataObject) -> None:
        del self.world.sources[data.draw(st.sampled_from(sorted(self.world.sources)))]

    @precondition(lambda self: len(self.running) < 3)
    @rule(faults=st.lists(st.sampled_from(FAULTS), max_size=4), retry=st.booleans())
    def start_build(self, faults: list[str | None], retry: bool) -> None:
        self.running.append(Process(build(self.world, retry), faults))

    @precondition(lambda self: len(self.running) < 3)
    @rule(faults=st.lists(st.sampled_from(FAULTS), max_size=1))
    def start_compact(self, faults: list[str | None]) -> None:
        self.running.append(Process(compact(self.world), faults))

    @precondition(lambda self: self.running)
    @rule(data=st.data(), requests=st.integers(1, 40))
    def advance(self, data: st.DataObject, requests: int) -> None:
        process = data.draw(st.sampled_from(self.running))
        process.advance(requests)
        if not process.alive:
            self.running.remove(process)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def kill(self, data: st.DataObject) -> None:
        process = data.draw(st.sampled_from(self.running))
        process.kill()
        self.running.remove(process)

    @precondition(lambda self: self.world.delayed)
    @rule()
    def land(self) -> None:
        self.world.land()

    @rule(days=st.integers(1, 9))
    def wait(self, days: int) -> None:
        self.world.now += timedelta(days=days)

    def teardown(self) -> None:
        for process in self.running:
            process.kill()
        converge(self.world)


def test_the_shop_holds() -> None:
    run_state_machine_as_test(
        Shop,
        settings=settings(
            max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


def schedule(seed: int) -> World:
    """One schedule drawn from a seed: the same acts as `Shop`'s, at a tenth of the cost."""
    draw = random.Random(seed)
    world = World()
    world.name_waves_in_order()
    world.sources = dict.fromkeys("abcd"[: draw.randint(1, 4)], 0)
    running: list[Process] = []
    try:
        for _ in range(draw.randint(10, 50)):
            _act(world, running, draw)
    finally:
        for process in running:
            process.kill()
    converge(world)
    return world


def _act(world: World, running: list[Process], draw: random.Random) -> None:
    choice = draw.random()
    if choice < 0.12:
        world.sources[draw.choice("abcdefgh")] = draw.choice((0, 0, 0, 0, 0, 1, BROKEN, BROKEN))
    elif choice < 0.14 and world.sources:
        del world.sources[draw.choice(sorted(world.sources))]
    elif choice < 0.28 and len(running) < 3:
        faults = [draw.choice(FAULTS) if draw.random() < 0.3 else None for _ in range(4)]
        body = build(world, retry=draw.random() < 0.2) if draw.random() < 0.75 else compact(world)
        running.append(Process(body, faults))
    elif choice < 0.33 and running:
        running.pop(draw.randrange(len(running))).kill()
        world.happened["killed"] += 1
    elif choice < 0.36 and world.delayed:
        world.land()
    elif choice < 0.39:
        world.now += timedelta(days=draw.randint(0, 9))
    elif running:
        process = draw.choice(running)
        process.advance(draw.choice((1, 2, 5, 15, 40)))
        if not process.alive:
            running.remove(process)


def test_thousands_of_schedules_hold() -> None:
    happened: Counter[str] = Counter()
    for seed in range(SCHEDULES):
        happened.update(schedule(seed).happened)
    for each in ("fenced", "killed", "lost", "lost and retried", "landed late", "deleted", "changed file", "rejected"):
        assert happened[each] > 20, f"the schedules hardly tried {each!r}: {happened}"


def _refreshed_handle(patch: pytest.MonkeyPatch) -> None:
    original = Claim.commit

    def commit(self: Claim, wave_uuid: str, number: int, act: Any) -> None:
        opened = self._log.open()
        assert opened is not None
        self.handle = opened
        original(self, wave_uuid, number, act)

    patch.setattr(Claim, "commit", commit)


def _orphans_deleted_at_the_start(patch: pytest.MonkeyPatch) -> None:
    original = Writer.__init__

    def opened(self: Writer, *arguments: Any) -> None:
        original(self, *arguments)
        self._claim.committed = True
        self._files.delete(self._claim.orphans())
        self._claim.committed = False

    patch.setattr(Writer, "__init__", opened)


def _orphans_listed_after_the_commit(patch: pytest.MonkeyPatch) -> None:
    original = Claim.orphans

    def orphans(self: Claim, own: Any = ()) -> list[str]:
        self._seen = waves._with_uuid(self._files.list(self._log.name))
        return original(self, own)

    patch.setattr(Claim, "orphans", orphans)


def _removed_files_taken_for_orphans(patch: pytest.MonkeyPatch) -> None:
    from store_world import MemoryHandle

    patch.setattr(MemoryHandle, "tombstones", lambda _: set())


def _later_waves_not_fenced(patch: pytest.MonkeyPatch) -> None:
    original = Claim.commit

    def commit(self: Claim, wave_uuid: str, number: int, act: Any) -> None:
        original(self, wave_uuid, number, act)
        self._usable = True

    patch.setattr(Claim, "commit", commit)


def _no_shared_id(patch: pytest.MonkeyPatch) -> None:
    original = Claim.commit

    def commit(self: Claim, wave_uuid: str, number: int, act: Any) -> None:
        def alone(handle: Any, transactions: Any) -> Any:
            return act(handle, {name if name == wave_uuid else f"{name}-{wave_uuid}": 1 for name in transactions})

        original(self, wave_uuid, number, alone)

    patch.setattr(Claim, "commit", commit)


def _rejects_written_after_the_commit(patch: pytest.MonkeyPatch) -> None:
    original = Writer.commit_wave

    def commit_wave(self: Writer, wave: Any, adds: Any, rejected: Any = ()) -> None:
        original(self, wave, adds)
        if rejected:
            self._files.create_json([vars(file) for file in rejected], "waves", f"{wave.uuid}.rejected.json")

    patch.setattr(Writer, "commit_wave", commit_wave)


def _plans_believed_without_the_log(patch: pytest.MonkeyPatch) -> None:
    from store_world import MemoryHandle

    patch.setattr(MemoryHandle, "transactions", lambda _, app_ids: dict.fromkeys(app_ids, 1))


@pytest.mark.parametrize(
    "mutate",
    [
        _refreshed_handle,
        _orphans_deleted_at_the_start,
        _orphans_listed_after_the_commit,
        _removed_files_taken_for_orphans,
        _later_waves_not_fenced,
        _no_shared_id,
        _rejects_written_after_the_commit,
        _plans_believed_without_the_log,
    ],
)
def test_a_broken_protocol_is_found_out(mutate: Callable[[pytest.MonkeyPatch], None]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        mutate(patch)
        for seed in range(MUTANT_SCHEDULES):
            try:
                schedule(seed)
            except (AssertionError, KeyError):  # KeyError: a file that a table names was read after its deletion
                return
    pytest.fail(f"{MUTANT_SCHEDULES} schedules did not notice")


def test_the_schedules_are_the_same_each_time() -> None:
    assert [schedule(seed).happened for seed in range(20)] == [schedule(seed).happened for seed in range(20)]


def test_a_spent_claim_commits_nothing() -> None:
    world = World()
    world.sources = {"a": 0}
    slow = Process(build(world))
    while not any(path.startswith("states/") for path in world.files):
        slow.advance(1)
    quick = Process(build(world)).finish()
    slow.finish()
    assert quick.error is None
    assert isinstance(slow.error, FencedError)
    assert world.rows("states") == Counter({("a", 0): 1})
    converge(world)
