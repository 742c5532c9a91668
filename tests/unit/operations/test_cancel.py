"""Runs that are asked to stop, run out of time or lose their lease: at any moment, and always to a legal end."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from codeb_mcp.model.access import Role
from codeb_mcp.model.errors import CodebError, DriverUnavailable
from codeb_mcp.model.machine import Action, Outcome
from codeb_mcp.model.names import lease_name
from codeb_mcp.operations import deploys, runner
from tests.unit.operations.mortality import Stopped
from tests.unit.operations.test_crashes import FEWEST_MOMENTS, HERE, SCENES, Scene
from tests.unit.operations.world import World, bounded, principal


async def _run_id(world: World) -> str:
    return (await world.call("operation_list"))["data"][0]["operationId"]  # type: ignore[no-any-return]


async def _cancelled_at(world: World, scene: Scene, at: int) -> tuple[Stopped, dict[str, object] | CodebError] | None:
    """The operation, cancelled at that moment, and its end; None when it has fewer moments."""
    stopped = Stopped(at)
    world.restart(stopped.journals)
    call = asyncio.create_task(world.call(scene.tool, **scene.arguments))
    reached = asyncio.create_task(stopped.reached.wait())
    await bounded(asyncio.wait({call, reached}, return_when=asyncio.FIRST_COMPLETED))
    reached.cancel()
    if not stopped.reached.is_set():
        await call
        return None
    if stopped.where != "before begin":
        try:
            await world.call("operation_cancel", operationId=await _run_id(world))
        except CodebError as late:
            assert late.code == "conflict", late  # noqa: PT017 - it had ended already
    stopped.go_on()
    [end] = await bounded(asyncio.gather(call, return_exceptions=True))
    assert isinstance(end, dict | CodebError), end
    return stopped, end


@pytest.mark.parametrize("name", SCENES)
async def test_a_run_that_is_cancelled_at_any_moment_is_undone_or_done(
    worlds: Callable[[], Awaitable[World]], name: str
) -> None:
    scene = SCENES[name]
    for at in itertools.count():
        world = await worlds()
        await scene.before(world)
        before = await world.visit()
        states = await world.states()
        found = await _cancelled_at(world, scene, at)
        if found is None:
            assert at >= FEWEST_MOMENTS
            return
        stopped, end = found
        await bounded(world.services.runs.drain())
        if isinstance(end, dict):
            assert await world.states() in scene.states, stopped.where
            assert await world.visit() in scene.at_end, stopped.where
        else:
            assert end.code == "cancelled", (stopped.where, end.as_dict())
            assert await world.visit() == before, stopped.where
            now = await world.states()
            emptied = tuple("empty" if state in ("deployed", "grace") else state for state in states)
            halfway = ("active", "deployed") if "autoPromote" in scene.arguments else states
            assert now in (states, emptied, halfway), (stopped.where, states, now)
        await world.require_consistent()
        await world.deploy("v9", force=True)


async def test_what_a_cancelled_deploy_had_taken_is_free_again(world: World) -> None:
    await world.project()
    await world.live("v1")
    world.clock.forward(seconds=1)
    pause = world.engine.faults.pause("containers.ensure", after_work=True)
    call = asyncio.create_task(world.call("deploy", **HERE, image=world.image("v2", HEALTH="hang")))
    await bounded(pause.reached.wait())
    run_id = await _run_id(world)
    answer = await world.call("operation_cancel", principal(Role.MEMBER), operationId=run_id)
    assert answer["operationId"] == run_id
    pause.release()
    with pytest.raises(CodebError) as refusal:
        await bounded(call)
    assert refusal.value.code == "cancelled"
    assert world.running() == ["shop-production-blue"]
    assert await world.states() == ("active", "empty")
    again = await world.refused("conflict", "operation_cancel", operationId=run_id)
    assert "already ended" in again.message


async def test_a_cancel_from_another_process_is_heard(world: World) -> None:
    await world.project()
    here, there = world.services, world.start()
    pause = world.engine.faults.pause("images.pull")
    call = asyncio.create_task(world.call("deploy", **HERE, image=world.image("v1")))
    await bounded(pause.reached.wait())
    run_id = await _run_id(world)
    world.services = there
    await world.call("operation_cancel", operationId=run_id)
    world.services = here
    with pytest.raises(CodebError) as refusal:
        await bounded(call)
    assert refusal.value.code == "cancelled"
    await there.trail.close()
    assert await world.states() == ("empty", "empty")


async def test_a_run_whose_process_is_gone_can_be_cancelled(world: World) -> None:
    await world.project()
    await world.live("v1")
    world.clock.forward(seconds=1)
    pause = world.engine.faults.pause("containers.ensure", after_work=True)
    call = asyncio.create_task(world.call("deploy", **HERE, image=world.image("v2")))
    await bounded(pause.reached.wait())
    run_id = await _run_id(world)
    world.restart()
    assert (await world.call("operation_get", operationId=run_id))["status"] == "interrupted"
    await world.call("operation_cancel", operationId=run_id)
    await bounded(world.services.runs.drain())
    ended = await world.call("operation_get", operationId=run_id)
    assert (ended["status"], ended["failure"]["code"]) == ("failed", "cancelled")
    assert await world.states() == ("active", "empty")
    assert world.running() == ["shop-production-blue"]
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)


async def test_a_step_that_takes_too_long_fails_and_is_undone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    once = runner._once

    async def hurried(action: Action, perform: runner.Perform) -> Outcome:
        slow = action.name == "start_container"
        return await once(replace(action, deadline_seconds=0.05) if slow else action, perform)

    monkeypatch.setattr(runner, "_once", hurried)
    await world.project()
    await world.live("v1")
    world.engine.faults.pause("containers.ensure")
    refusal = await world.refused("timeout", "deploy", **HERE, image=world.image("v2"))
    assert "start_container took longer than 0.05 seconds" in refusal.message
    assert await world.visit() == "v1"
    assert await world.states() == ("active", "empty")


async def test_a_run_that_takes_too_long_in_all_is_undone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await world.project()
    await world.live("v1")
    monkeypatch.setattr(deploys, "DEPLOY_SECONDS", 0.2)
    world.engine.faults.pause("images.pull")
    refusal = await world.refused("timeout", "deploy", **HERE, image=world.image("v2"))
    assert "longer than 0.2 seconds" in refusal.message
    assert await world.states() == ("active", "empty")
    await world.require_consistent()


@pytest.mark.parametrize("method", ["images.pull", "containers.remove", "containers.ensure"])
@pytest.mark.parametrize("after_work", [False, True])
async def test_a_run_that_lost_its_lease_does_nothing_more(world: World, method: str, after_work: bool) -> None:
    await world.project()
    await world.live("v1")
    pause = world.engine.faults.pause(method, after_work=after_work)
    late = asyncio.create_task(world.call("deploy", **HERE, image=world.image("v2")))
    await bounded(pause.reached.wait())
    held = await world.services.store.lease(lease_name("shop", "production"))
    assert held is not None
    await world.services.store.force_release(held.name, held.token)
    new = await world.deploy("v3")
    assert new["version"] == "v3"
    pause.release()
    [end] = await bounded(asyncio.gather(late, return_exceptions=True))
    assert isinstance(end, CodebError)
    slots = await world.require_consistent()
    assert slots.green.version == "v3"
    assert world.engine.containers["shop-production-green"].environment["APP_VERSION"] == "v3"
    assert await world.visit() == "v1"


async def test_a_lease_that_cannot_be_kept_stops_the_run_and_the_next_process_takes_it_up(world: World) -> None:
    await world.project()
    await world.live("v1")
    world.clock.forward(seconds=1)
    pause = world.engine.faults.pause("containers.ensure", after_work=True)
    call = asyncio.create_task(world.call("deploy", **HERE, image=world.image("v2")))
    await bounded(pause.reached.wait())
    held = await world.services.store.lease(lease_name("shop", "production"))
    assert held is not None
    await world.services.store.force_release(held.name, held.token)
    pause.release()
    with pytest.raises(DriverUnavailable) as refusal:
        await bounded(call)
    run_id = refusal.value.detail["operationId"]
    answer = await world.call("operation_resume", operationId=run_id)
    assert answer["status"] == "succeeded"
    assert await world.states() == ("active", "deployed")
    await world.require_consistent()


async def test_a_drain_waits_for_requests_and_reports_what_is_left(world: World) -> None:
    await world.project()
    await world.live("v1")
    await world.deploy("v2")
    world.edge.running[4000] = 3
    answer = await world.promote(drainSeconds=0.05)
    assert answer["inFlight"] == 3
    await world.deploy("v3", force=True)
    world.edge.running[4001] = 2
    call = asyncio.create_task(world.promote(drainSeconds=30))
    while world.edge.flags["shop-production"] != "blue":
        await asyncio.sleep(0.001)
    world.edge.running[4001] = 0
    assert (await bounded(call))["inFlight"] == 0
