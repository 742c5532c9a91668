"""A process that vanishes at any moment of any run: the next one brings the run to a legal end, and traffic never stops."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from codeb_mcp.model.errors import NotFound
from tests.unit.operations.mortality import Stopped, run_until, take_up
from tests.unit.operations.world import World

FEWEST_MOMENTS = 6


@dataclass(frozen=True)
class Scene:
    """An operation, what comes before it, and the versions a visitor may get when it has ended."""

    tool: str
    arguments: dict[str, Any]
    before: Callable[[World], Awaitable[None]]
    while_open: tuple[str, ...]
    at_end: tuple[str, ...]
    states: tuple[tuple[str, str], ...] = field(default=())


async def _first(world: World) -> None:
    await world.project()
    world.image("v1")


async def _v1_live(world: World) -> None:
    await world.project()
    await world.live("v1")
    world.image("v2")


async def _v2_waits(world: World) -> None:
    await _v1_live(world)
    await world.deploy("v2", image="registry.test/shop:v2")


async def _v2_live(world: World) -> None:
    await _v2_waits(world)
    await world.promote()
    world.image("v3")


HERE = {"projectName": "shop", "environment": "production"}
V1, V2, V3 = ({**HERE, "image": f"registry.test/shop:{version}", "version": version} for version in ("v1", "v2", "v3"))
SCENES = {
    "first deploy": Scene("deploy", V1, _first, ("503",), ("503",), (("deployed", "empty"),)),
    "deploy": Scene("deploy", V2, _v1_live, ("v1",), ("v1",), (("active", "deployed"),)),
    "deploy over a release that waits": Scene(
        "deploy", {**V2, "version": "v2b"}, _v2_waits, ("v1",), ("v1",), (("active", "deployed"),)
    ),
    "deploy over the way back": Scene(
        "deploy", {**V3, "force": True}, _v2_live, ("v2",), ("v2",), (("deployed", "active"),)
    ),
    "deploy and promote": Scene(
        "deploy", {**V2, "autoPromote": True}, _v1_live, ("v1", "v2"), ("v2",), (("grace", "active"),)
    ),
    "promote": Scene("promote", HERE, _v2_waits, ("v1", "v2"), ("v2",), (("grace", "active"),)),
    "rollback": Scene("rollback", HERE, _v2_live, ("v1", "v2"), ("v1",), (("active", "grace"),)),
    "cleanup": Scene("slot_cleanup", {**HERE, "force": True}, _v2_live, ("v2",), ("v2",), (("empty", "active"),)),
}


async def _moments(worlds: Callable[[], Awaitable[World]], scene: Scene) -> AsyncIterator[tuple[World, Stopped]]:
    """The scene, stopped at each of its moments in turn."""
    for at in itertools.count():
        world = await worlds()
        await scene.before(world)
        stopped = await run_until(world, at, scene.tool, **scene.arguments)
        if stopped is None:
            assert at >= FEWEST_MOMENTS, "the run was hardly watched"
            return
        yield world, stopped


@pytest.mark.parametrize("name", SCENES)
async def test_a_run_that_lost_its_process_at_any_moment_is_brought_to_its_end(
    worlds: Callable[[], Awaitable[World]], name: str
) -> None:
    scene = SCENES[name]
    async for world, stopped in _moments(worlds, scene):
        assert await world.visit() in scene.while_open, stopped.where
        await take_up(world)
        if stopped.where == "before begin":
            await world.call(scene.tool, **scene.arguments)
        assert await world.visit() in scene.at_end, stopped.where
        assert await world.states() in scene.states, stopped.where
        await world.require_consistent()


@pytest.mark.parametrize("name", SCENES)
async def test_a_later_deploy_first_settles_the_run_that_lost_its_process(
    worlds: Callable[[], Awaitable[World]], name: str
) -> None:
    scene = SCENES[name]
    async for world, stopped in _moments(worlds, scene):
        before = await world.visit()
        assert before in scene.while_open, stopped.where
        world.restart()
        deployed = await world.deploy("v9", force=True)
        slots = await world.require_consistent()
        assert deployed["version"] == "v9"
        assert await world.visit() in (*scene.while_open, *scene.at_end), stopped.where
        live = await world.visit()
        assert (slots.active.version if slots.active else "503") == live, stopped.where
        assert len(world.running()) == (2 if slots.active else 1), stopped.where


async def test_a_deletion_that_lost_its_process_at_any_moment_leaves_nothing(
    worlds: Callable[[], Awaitable[World]],
) -> None:
    async def before(world: World) -> None:
        await world.project("shop", "production", "staging")
        await world.live("v1")
        await world.deploy("v2")
        await world.deploy("v1", environment="staging", image="registry.test/shop:v1")

    scene = Scene("project_delete", {"projectName": "shop", "confirm": "shop"}, before, (), ())
    async for world, stopped in _moments(worlds, scene):
        await take_up(world)
        if stopped.where == "before begin":
            await world.call("project_delete", projectName="shop", confirm="shop")
        with pytest.raises(NotFound):
            await world.slots()
        assert world.running() == [], stopped.where
        assert world.edge.configured == {}, stopped.where
        assert world.edge.flags == {}, stopped.where
        assert (await world.call("project_list"))["total"] == 0
        assert await world.services.registry.journals.open_runs() == []
