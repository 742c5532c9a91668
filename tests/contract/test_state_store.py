"""What every state store promises; files and memory pass the same tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from codeb_mcp.model.errors import Conflict, InvalidRequest, LeaseLost, LockHeld
from codeb_mcp.model.times import utc_text
from codeb_mcp.registry.files import FileStore
from codeb_mcp.registry.memory import MemoryStore
from codeb_mcp.registry.store import Change, Fence, StateStore, update
from tests.unit.registry.clock import StillClock


@pytest.fixture
def clock() -> StillClock:
    return StillClock()


@pytest.fixture(params=["files", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path, clock: StillClock) -> StateStore:
    return FileStore(tmp_path / "registry", clock=clock) if request.param == "files" else MemoryStore(clock=clock)


async def value(store: StateStore, key: str) -> tuple[Mapping[str, Any], int] | None:
    found = await store.get(key)
    return (found.doc, found.version) if found else None


async def test_a_document_that_was_never_written_is_none(store: StateStore) -> None:
    assert await store.get("ssot") is None


async def test_a_commit_answers_the_new_version_and_the_document_can_be_read(store: StateStore) -> None:
    assert await store.commit([Change("ssot", {"a": [1, "두"]}, 0)]) == {"ssot": 1}
    assert await value(store, "ssot") == ({"a": [1, "두"]}, 1)
    assert await store.commit([Change("ssot", {}, 1)]) == {"ssot": 2}
    assert await value(store, "ssot") == ({}, 2)


async def test_the_stored_document_does_not_follow_later_changes_of_the_callers(store: StateStore) -> None:
    doc = {"list": [1]}
    await store.commit([Change("ssot", doc, 0)])
    doc["list"].append(2)
    assert await value(store, "ssot") == ({"list": [1]}, 1)


@pytest.mark.parametrize("expected", [0, 1, 3])
async def test_a_stale_version_is_a_conflict_that_says_both_versions(store: StateStore, expected: int) -> None:
    await store.commit([Change("ssot", {"a": 1}, 0)])
    await store.commit([Change("ssot", {"a": 2}, 1)])
    with pytest.raises(Conflict) as caught:
        await store.commit([Change("ssot", {"a": 3}, expected)])
    assert caught.value.detail == {"key": "ssot", "expected": expected, "found": 2}
    assert await value(store, "ssot") == ({"a": 2}, 2)


async def test_several_documents_change_together_or_not_at_all(store: StateStore) -> None:
    await store.commit([Change("slots/a-staging", {"n": 1}, 0)])
    with pytest.raises(Conflict):
        await store.commit([Change("ssot", {"n": 1}, 0), Change("slots/a-staging", {"n": 2}, 0)])
    assert await store.get("ssot") is None
    assert await store.commit([Change("ssot", {"n": 1}, 0), Change("slots/a-staging", {"n": 2}, 1)]) == {
        "ssot": 1,
        "slots/a-staging": 2,
    }
    assert await value(store, "ssot") == ({"n": 1}, 1)
    assert await value(store, "slots/a-staging") == ({"n": 2}, 2)


async def test_a_deleted_document_is_gone_and_its_successor_goes_on_counting(store: StateStore) -> None:
    await store.commit([Change("domains/worb", {"a": 1}, 0)])
    assert await store.commit([Change("domains/worb", None, 1)]) == {"domains/worb": 0}
    assert await store.get("domains/worb") is None
    assert await store.keys("domains/") == []
    assert await store.commit([Change("domains/worb", {"a": 2}, 0)]) == {"domains/worb": 3}


async def test_deleting_what_is_not_there_changes_nothing(store: StateStore) -> None:
    assert await store.commit([Change("ssot", None, 0)]) == {"ssot": 0}
    assert await store.commit([Change("ssot", {}, 0)]) == {"ssot": 1}


async def test_an_empty_commit_is_nothing(store: StateStore) -> None:
    assert await store.commit([]) == {}


async def test_keys_are_those_with_the_prefix_sorted(store: StateStore) -> None:
    names = ["ssot", "slots/worb-production", "slots/da-rak-staging", "slots/worb-staging", "domains/worb"]
    await store.commit([Change(name, {}, 0) for name in names])
    await store.acquire("environment/worb-staging", "run:1")
    assert await store.keys("") == sorted(names)
    assert await store.keys("slots/") == ["slots/da-rak-staging", "slots/worb-production", "slots/worb-staging"]
    assert await store.keys("slots/worb") == ["slots/worb-production", "slots/worb-staging"]
    assert await store.keys("s") == sorted(name for name in names if name.startswith("s"))
    assert await store.keys("nothing/") == []


@pytest.mark.parametrize(
    "key",
    ["", "/", "ssot/", "/ssot", "../ssot", "slots/../ssot", "slots//a", "SSOT", "slots/.hidden", "a b", "ssot\n",
     "a\0b", "ß", "leases/x", "operations/x", "audit/x", "slots/a.json", "slots/1.gone", "a" * 500, ".lock"],
)  # fmt: skip
async def test_a_key_that_could_leave_its_place_is_refused(store: StateStore, key: str) -> None:
    with pytest.raises(InvalidRequest):
        await store.get(key)
    with pytest.raises(InvalidRequest):
        await store.commit([Change(key, {}, 0)])


def nested(depth: int) -> dict[str, Any]:
    doc: dict[str, Any] = {}
    for _ in range(depth - 1):
        doc = {"a": doc}
    return doc


@pytest.mark.parametrize(
    "doc",
    [{"a": float("nan")}, {"a": float("inf")}, {"a": object()}, {"a": "\ud800"}, {1: "a", "1": "b"}, nested(65),
     nested(5000)],
    ids=["nan", "inf", "object", "surrogate", "key twice", "too deep", "much too deep"],
)  # fmt: skip
async def test_a_document_that_could_not_be_read_again_is_refused(store: StateStore, doc: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        await store.commit([Change("ssot", doc, 0)])
    assert await store.get("ssot") is None


async def test_the_deepest_allowed_document_is_stored(store: StateStore) -> None:
    await store.commit([Change("ssot", nested(64), 0)])
    assert await value(store, "ssot") == (nested(64), 1)


async def test_one_document_twice_in_a_commit_is_refused(store: StateStore) -> None:
    with pytest.raises(InvalidRequest):
        await store.commit([Change("ssot", {"a": 1}, 0), Change("ssot", {"a": 2}, 0)])


async def test_fifty_writers_of_one_document_lose_nothing(store: StateStore) -> None:
    async def count() -> None:
        for _ in range(4):
            await update(store, "ssot", lambda doc: {"n": (doc or {"n": 0})["n"] + 1})

    await asyncio.gather(*(count() for _ in range(50)))
    assert await value(store, "ssot") == ({"n": 200}, 200)


async def test_a_commit_whose_caller_gave_up_leaves_a_whole_document(store: StateStore) -> None:
    await store.commit([Change("ssot", {"n": 1}, 0)])
    task = asyncio.create_task(store.commit([Change("ssot", {"n": 2}, 1)]))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await update(store, "ssot", lambda doc: {"n": (doc or {"n": 0})["n"] + 10})
    found = await store.get("ssot")
    assert found is not None
    assert found.doc["n"] in (11, 12)


async def test_a_watcher_hears_of_changes_creations_and_deletions_under_its_prefix(store: StateStore) -> None:
    await store.commit([Change("slots/a", {"n": 0}, 0), Change("ssot", {}, 0)])
    watching = store.watch("slots/")
    heard: set[str] = set()

    async def listen() -> None:
        async for key in watching:
            heard.add(key)
            if heard >= {"slots/a", "slots/b"}:
                return

    async def change() -> None:
        for n in range(1, 1000):
            await update(store, "slots/a", lambda doc, n=n: {"n": n})  # type: ignore[misc]
            await update(store, "slots/b", lambda doc, n=n: {"n": n})  # type: ignore[misc]
            await update(store, "ssot", lambda doc, n=n: {"n": n})  # type: ignore[misc]
            await asyncio.sleep(0.01)

    changing = asyncio.create_task(change())
    async with asyncio.timeout(20):
        await listen()
    changing.cancel()
    await asyncio.gather(changing, return_exceptions=True)
    assert heard == {"slots/a", "slots/b"}


async def test_a_lease_has_one_holder_and_says_who_it_is(store: StateStore, clock: StillClock) -> None:
    lease = await store.acquire("environment/worb-staging", "run:0190-a", ttl_seconds=30)
    assert (lease.token, lease.expires_at) == (1, clock() + timedelta(seconds=30))
    clock.forward(10)
    with pytest.raises(LockHeld) as caught:
        await store.acquire("environment/worb-staging", "run:0190-b")
    detail = caught.value.detail
    assert detail["holder"] == "run:0190-a"
    assert detail["operationId"] == "0190-a"
    assert detail["since"] == utc_text(lease.acquired_at)
    assert detail["until"] == utc_text(lease.expires_at)
    assert await store.lease("environment/worb-staging") == lease
    assert await store.lease("environment/worb-production") is None


async def test_tokens_grow_for_ever(store: StateStore) -> None:
    tokens = []
    for _ in range(3):
        lease = await store.acquire("a", "somebody")
        tokens.append(lease.token)
        await store.release(lease)
    assert tokens == [1, 2, 3]
    assert (await store.acquire("b", "somebody")).token == 1


async def test_a_released_lease_proves_nothing_any_more(store: StateStore) -> None:
    lease = await store.acquire("a", "somebody")
    await store.check(lease.fence)
    await store.release(lease)
    await store.release(lease)
    assert await store.lease("a") is None
    with pytest.raises(LeaseLost):
        await store.check(lease.fence)
    with pytest.raises(LeaseLost):
        await store.renew(lease)
    with pytest.raises(LeaseLost):
        await store.commit([Change("ssot", {}, 0)], fence=lease.fence)
    assert await store.get("ssot") is None


async def test_a_lease_that_ran_out_is_left_alone_for_the_grace_and_then_taken_over(
    store: StateStore, clock: StillClock
) -> None:
    old = await store.acquire("a", "first", ttl_seconds=30)
    clock.forward(44.9)
    with pytest.raises(LockHeld):
        await store.acquire("a", "second")
    clock.forward(0.1)
    assert await store.lease("a") is None
    new = await store.acquire("a", "second")
    assert new.token == 2
    with pytest.raises(LeaseLost) as caught:
        await store.commit([Change("ssot", {}, 0)], fence=old.fence)
    assert caught.value.detail["newest"] == 2
    with pytest.raises(LeaseLost):
        await store.renew(old)
    await store.release(old)
    assert await store.lease("a") == new
    await store.commit([Change("ssot", {}, 0)], fence=new.fence)


async def test_a_renewed_lease_lasts(store: StateStore, clock: StillClock) -> None:
    lease = await store.acquire("a", "first", ttl_seconds=30)
    for _ in range(5):
        clock.forward(25)
        lease = await store.renew(lease, ttl_seconds=30)
    assert lease.token == 1
    assert await store.lease("a") == lease
    with pytest.raises(LockHeld):
        await store.acquire("a", "second")


async def test_breaking_a_lease_needs_its_token(store: StateStore) -> None:
    lease = await store.acquire("a", "first")
    for token in (0, 2):
        with pytest.raises(Conflict):
            await store.force_release("a", token)
    await store.check(lease.fence)
    await store.force_release("a", 1)
    with pytest.raises(LeaseLost):
        await store.check(lease.fence)
    with pytest.raises(Conflict):
        await store.force_release("a", 1)
    assert (await store.acquire("a", "second")).token == 2


async def test_a_fence_of_a_lease_that_never_was_is_refused(store: StateStore) -> None:
    with pytest.raises(LeaseLost):
        await store.check(Fence("nobody", 1))


@pytest.mark.parametrize("name", ["", "../a", "A", "a/../b", "a b", ".x", "a/", "x" * 300])
async def test_a_lease_name_that_could_leave_its_place_is_refused(store: StateStore, name: str) -> None:
    with pytest.raises(InvalidRequest):
        await store.acquire(name, "somebody")
    with pytest.raises(InvalidRequest):
        await store.lease(name)


async def test_eight_callers_fight_for_a_lease_and_one_at_a_time_has_it(store: StateStore) -> None:
    inside = 0

    async def fight(owner: str) -> int:
        nonlocal inside
        while True:
            try:
                lease = await store.acquire("a", owner)
            except LockHeld:
                await asyncio.sleep(0.001)
                continue
            inside += 1
            assert inside == 1
            await store.check(lease.fence)
            inside -= 1
            await store.release(lease)
            return lease.token

    async with asyncio.timeout(20):
        tokens = await asyncio.gather(*(fight(f"caller {n}") for n in range(8)))
    assert sorted(tokens) == list(range(1, 9))


@pytest.fixture(autouse=True)
async def all_tasks_end() -> AsyncIterator[None]:
    yield
    assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []
