"""A project that is deleted while housekeeping gives routes back: no route and no flag outlives it, whoever comes first."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from codeb_mcp.drivers.fake_proxy import FakeProxy
from codeb_mcp.model.routes import Site
from codeb_mcp.operations.housekeeping import Housekeeper
from tests.unit.operations.world import World, bounded

Between = Callable[[], Awaitable[None]]


@pytest.fixture
def before_giving_back(monkeypatch: pytest.MonkeyPatch) -> Callable[[Between], None]:
    """Have something happen just before the next time that a proxy is given sites."""
    genuine = FakeProxy.apply
    waiting: list[Between] = []

    async def apply(proxy: FakeProxy, *, upsert: Sequence[Site] = (), remove: Sequence[str] = ()) -> bool:
        if upsert and waiting:
            await waiting.pop()()
        return await genuine(proxy, upsert=upsert, remove=remove)

    monkeypatch.setattr(FakeProxy, "apply", apply)
    return waiting.append


async def _delete(world: World) -> dict[str, Any]:
    return await world.call("project_delete", projectName="shop", confirm="shop")


def _nothing_is_left(world: World) -> None:
    assert world.edge.configured == {}
    assert world.edge.flags == {}


async def test_what_is_being_deleted_gets_no_route_back(world: World) -> None:
    await world.project()
    await world.live("v1")
    pause = world.engine.faults.pause("containers.remove")
    deletion = asyncio.create_task(_delete(world))
    await bounded(pause.reached.wait())
    assert world.edge.configured == {}
    report = await Housekeeper(world.services).once()
    assert (report.routes, world.edge.configured) == ([], {})
    pause.release()
    await bounded(deletion)
    _nothing_is_left(world)


async def test_a_deletion_that_ends_just_before_the_routes_are_given_back_leaves_none(
    world: World, before_giving_back: Callable[[Between], None]
) -> None:
    await world.project()
    await world.live("v1")
    await world.project("other")
    world.edge.restart(keep=False)

    async def delete() -> None:
        await _delete(world)

    before_giving_back(delete)
    report = await Housekeeper(world.services).once()
    assert report.routes == ["other-production"]
    assert list(world.edge.configured) == list(world.edge.flags) == ["other-production"]


async def test_a_route_that_is_given_back_in_the_middle_of_a_deletion_ends_with_it(
    world: World, before_giving_back: Callable[[Between], None]
) -> None:
    await world.project()
    await world.live("v1")
    world.edge.restart(keep=False)
    pause = world.engine.faults.pause("containers.remove")
    deletions: list[asyncio.Task[dict[str, Any]]] = []

    async def begin() -> None:
        deletions.append(asyncio.create_task(_delete(world)))
        await bounded(pause.reached.wait())

    before_giving_back(begin)
    await Housekeeper(world.services).once()
    assert list(world.edge.configured) == ["shop-production"]
    pause.release()
    await bounded(deletions[0])
    _nothing_is_left(world)


async def test_a_flag_is_not_set_for_what_was_deleted_meanwhile(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.project()
    world.edge.restart(keep=False)
    world.edge.flags.clear()
    acquire = world.services.store.acquire
    names: list[str] = []

    async def late(name: str, owner: str, **more: Any) -> Any:
        if owner == "routes" and not names:
            names.append(name)
            await _delete(world)
        return await acquire(name, owner, **more)

    monkeypatch.setattr(world.services.store, "acquire", late)
    await Housekeeper(world.services).once()
    assert names == ["environment/shop-production"]
    _nothing_is_left(world)
