"""Journals: what was recorded is read back, what is torn is dropped, what is damaged is refused, who was fenced stops."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from codeb_mcp.model.errors import Bug, Conflict, LeaseLost, NotFound, RegistryDamaged
from codeb_mcp.model.machine import Action, Done, Failed
from codeb_mcp.registry.entries import RunHeader
from codeb_mcp.registry.files import FileStore
from codeb_mcp.registry.journal import Journal, Journals
from codeb_mcp.registry.lines import seal, unseal_all
from codeb_mcp.registry.lock import hold
from codeb_mcp.registry.store import Lease
from tests.unit.registry.clock import StillClock

PULL = Action("pull", "pull_image", {"image": "worb:1"}, says="pulling worb:1")
START = Action("start", "start_container", {"port": 4000})
STOP = Action("stop", "cleanup_container", undo=True)
FAILED = Failed("driver_refused", "no such image", "Push it.", {"image": "worb:1"})


class World:
    """A registry, a lease and journals."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.clock = StillClock()
        self.store = FileStore(root, clock=self.clock)
        self.journals = Journals(root, self.store, clock=self.clock)

    def header(self, run_id: str = "0190-a", **changes: Any) -> RunHeader:
        known: dict[str, Any] = {
            "run_id": run_id,
            "kind": "deploy",
            "request": {"image": "worb:1", "한": [1]},
            "caller": {"keyId": "k1"},
            "team": "default",
            "project": "worb",
            "environment": "staging",
            "created_at": self.clock(),
            "correlation_id": "c1",
            "dedupe": ("d1",),
            "deadline_seconds": 170.0,
        }
        return RunHeader(**{**known, **changes})

    async def lease(self) -> Lease:
        return await self.store.acquire("environment/worb-staging", "run:0190-a")

    async def begun(self, run_id: str = "0190-a") -> Journal:
        return await self.create(run_id, await self.lease())

    async def create(self, run_id: str, lease: Lease, **changes: Any) -> Journal:
        return await self.journals.create(
            self.header(run_id, **changes), lease.fence, plan={"phase": "pulling"}, first=PULL
        )

    def path(self, run_id: str = "0190-a") -> Path:
        return self.root / "operations" / "open" / f"{run_id}.jsonl"


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "registry")


async def two_steps(world: World) -> Journal:
    journal = await world.begun()
    world.clock.forward(1.5)
    await journal.record(0, "pull", Done({"digest": "sha256:1"}), then=(1, START))
    world.clock.forward(0.25)
    await journal.record(1, "start", FAILED, then=(2, STOP))
    return journal


async def test_what_was_recorded_is_read_back_by_another_process(world: World) -> None:
    await two_steps(world)
    journal = await Journals(world.root, FileStore(world.root)).open("0190-a")
    assert journal.header == world.header(created_at=journal.header.created_at)
    assert journal.planned() == {"phase": "pulling"}
    assert journal.outcomes() == [("pull", Done({"digest": "sha256:1"})), ("start", FAILED)]
    assert journal.in_doubt() == "stop"
    assert journal.finished() is None


async def test_steps_tell_the_story_for_callers(world: World) -> None:
    journal = await two_steps(world)
    assert [(step["name"], step["status"], step["duration_ms"], step["says"]) for step in journal.steps()] == [
        ("pull_image", "success", 1500.0, "pulling worb:1"),
        ("start_container", "failed", 250.0, ""),
        ("cleanup_container", "running", None, ""),
    ]
    assert journal.steps()[1]["error"]["message"] == "no such image"
    assert journal.steps()[0]["startedAt"] == "2026-01-31T23:59:00Z"


async def test_an_intent_repeated_after_a_crash_is_one_step(world: World) -> None:
    journal = await world.begun()
    world.clock.forward(5)
    await journal.intend(0, PULL)
    world.clock.forward(5)
    await journal.record(0, "pull", Done())
    assert [(step["name"], step["duration_ms"]) for step in journal.steps()] == [("pull_image", 10_000)]
    assert journal.in_doubt() is None


async def test_a_run_may_also_be_planned_after_it_began(world: World) -> None:
    journal = await world.journals.create(world.header(), (await world.lease()).fence)
    assert (journal.planned(), journal.in_doubt()) == (None, None)
    await journal.plan({"phase": "pulling"})
    with pytest.raises(Bug):
        await journal.plan({"phase": "other"})
    await journal.intend(0, PULL)
    again = await world.journals.open("0190-a")
    assert (again.planned(), again.in_doubt()) == ({"phase": "pulling"}, "pull")


async def test_an_outcome_without_its_intent_is_a_bug(world: World) -> None:
    journal = await world.begun()
    with pytest.raises(Bug):
        await journal.record(0, "start", Done())
    await journal.record(0, "pull", Done())
    with pytest.raises(Bug):
        await journal.record(0, "pull", Done())


@pytest.mark.parametrize("together", [True, False])
async def test_a_finished_run_moves_and_can_still_be_read(world: World, together: bool) -> None:
    journal = await two_steps(world)
    assert await world.journals.open_runs() == ["0190-a"]
    if together:
        await journal.record(2, "stop", Done(), end={"ok": False})
    else:
        await journal.record(2, "stop", Done())
        await journal.finish({"ok": False})
    assert not world.path().exists()
    assert await world.journals.open_runs() == []
    again = await world.journals.open("0190-a")
    assert again.finished() == {"ok": False}
    assert [name for name, _ in again.outcomes()] == ["pull", "start", "stop"]
    assert again.in_doubt() is None
    with pytest.raises(Conflict):
        await journal.intend(4, PULL)
    with pytest.raises(Conflict):
        await world.create("0190-a", await world.store.lease("environment/worb-staging") or pytest.fail("no lease"))


async def test_a_crash_between_the_end_and_the_move_is_mended_by_whoever_looks(world: World) -> None:
    journal = await world.begun()
    data = world.path().read_bytes()
    await journal.finish({"ok": True})
    done = world.root / "operations/done/0190-a.jsonl"
    os.rename(done, world.path())
    assert world.path().read_bytes() != data
    assert await world.journals.open_runs() == []
    assert done.exists()
    assert not world.path().exists()


async def test_a_writer_whose_lease_was_taken_over_is_refused(world: World) -> None:
    journal = await world.begun()
    world.clock.forward(100)
    new = await world.store.acquire("environment/worb-staging", "run:0190-b")
    for attempt in (journal.intend(0, PULL), journal.record(0, "pull", Done()), journal.finish({})):
        with pytest.raises(LeaseLost):
            await attempt
    resumed = await world.journals.open("0190-a")
    with pytest.raises(LeaseLost):
        await resumed.intend(0, PULL)
    resumed.fence = new.fence
    await resumed.record(0, "pull", Done(), then=(1, START))
    await journal.reload()
    assert journal.in_doubt() == "start"


async def test_an_old_lease_cannot_begin_a_run(world: World) -> None:
    lease = await world.lease()
    await world.store.release(lease)
    with pytest.raises(LeaseLost):
        await world.create("0190-a", lease)
    assert not world.path().exists()


@pytest.mark.parametrize("cut", [1, 5, 40])
async def test_a_torn_last_line_is_dropped_and_written_over(world: World, cut: int) -> None:
    journal = await two_steps(world)
    size = world.path().stat().st_size
    os.truncate(world.path(), size - cut)
    resumed = await world.journals.open("0190-a")
    assert resumed.outcomes() == [("pull", Done({"digest": "sha256:1"}))]
    assert resumed.in_doubt() == "start"
    resumed.fence = journal.fence
    await resumed.record(1, "start", Done())
    assert [name for name, _ in (await world.journals.open("0190-a")).outcomes()] == ["pull", "start"]


async def test_a_last_line_with_an_unwritten_block_is_torn_too(world: World) -> None:
    await two_steps(world)
    data = world.path().read_bytes()
    world.path().write_bytes(data[:-60] + b"\0" * 40 + data[-20:])
    assert len((await world.journals.open("0190-a")).outcomes()) == 1


async def test_any_other_damage_is_refused(world: World) -> None:
    journal = await two_steps(world)
    good = world.path().read_bytes()
    lines = good.splitlines(keepends=True)
    damages = [
        b"".join(lines[:2] + lines[3:]),
        b"".join([*lines[:2], lines[3], lines[2], *lines[4:]]),
        b"".join([*lines, lines[-1]]),
        *(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :] for at in range(0, len(good) - 1, 97)),
    ]
    for damaged in damages:
        world.path().write_bytes(damaged)
        with pytest.raises(RegistryDamaged):
            await Journals(world.root, world.store).open("0190-a")
        assert await Journals(world.root, world.store).open_runs() == ["0190-a"]
    assert len(damages) > 15
    world.path().write_bytes(damages[0])
    with pytest.raises(RegistryDamaged):
        await journal.record(2, "stop", Done())
    assert world.path().read_bytes() == damages[0]


def test_each_flipped_bit_of_a_line_is_noticed() -> None:
    line = seal({"n": 1, "name": "pull"}) + seal({"n": 2})
    for at in range(line.index(b"\n")):
        for bit in range(8):
            spoilt = line[:at] + bytes([line[at] ^ (1 << bit)]) + line[at + 1 :]
            assert unseal_all(spoilt)[2] is not None, (at, bit)


async def test_cancel_is_a_wish_that_any_process_can_make_and_see(world: World) -> None:
    journal = await world.begun()
    assert not journal.cancel_requested()
    await (await Journals(world.root, world.store).open("0190-a")).request_cancel("anna")
    assert journal.cancel_requested()
    await journal.finish({})
    assert not journal.cancel_requested()
    with pytest.raises(Conflict):
        await journal.request_cancel("anna")


async def test_pages_are_newest_first_and_filtered(world: World) -> None:
    lease = await world.lease()
    for n in range(7):
        journal = await world.create(f"0190-{n}", lease, project=f"p{n % 2}")
        if n < 5:
            await journal.finish({"n": n})
    page, total = await world.journals.page(limit=2, offset=1, match=lambda header: header.project == "p0")
    assert ([run.header.run_id for run in page], total) == (["0190-4", "0190-2"], 4)
    everything, total = await world.journals.page(limit=100, offset=0)
    assert [run.finished() for run in everything] == [None, None, {"n": 4}, {"n": 3}, {"n": 2}, {"n": 1}, {"n": 0}]
    assert await world.journals.prune(3) == 2
    assert (await world.journals.page(limit=100, offset=0))[1] == 5


async def test_a_damaged_run_is_shown_as_such_in_a_page(world: World) -> None:
    await two_steps(world)
    data = world.path().read_bytes()
    world.path().write_bytes(data.replace(b"sha256:1", b"sha256:2"))
    page, total = await world.journals.page(limit=10, offset=0)
    assert (total, page[0].damage) == (1, "line 4 does not match its checksum")


@pytest.mark.parametrize("run_id", ["", "../x", "a/b", "x" * 65, "a b", "-x", "none"])
async def test_a_run_that_is_not_there_is_not_found(world: World, run_id: str) -> None:
    with pytest.raises(NotFound):
        await world.journals.open(run_id)


async def test_a_cancelled_append_is_written_whole_or_not_at_all(world: World) -> None:
    journal = await world.begun()
    for n in range(30):
        task = asyncio.create_task(journal.intend(n, PULL))
        for _ in range(n % 4):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await journal.intend(99, START)
    assert (await world.journals.open("0190-a")).in_doubt() == "start"


async def test_two_writers_with_one_lease_take_turns(world: World) -> None:
    first = await world.begun()
    second = await world.journals.open("0190-a")
    second.fence = first.fence
    await asyncio.gather(*(journal.intend(n, PULL) for n in range(10) for journal in (first, second)))
    assert len((await world.journals.open("0190-a")).entries) == 23


async def test_reading_needs_no_lock(world: World) -> None:
    await two_steps(world)
    with hold(str(world.root / ".lock"), wait_seconds=1):
        assert (await asyncio.wait_for(world.journals.open("0190-a"), 5)).in_doubt() == "stop"
