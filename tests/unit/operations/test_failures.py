"""When something is broken the version that serves goes on serving, and the answer says what to do."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from codeb_mcp.drivers.protocols import Answer
from codeb_mcp.model.errors import (
    CodebError,
    DeadlineExceeded,
    DriverRefused,
    DriverUnavailable,
    InsufficientStorage,
)
from codeb_mcp.operations.housekeeping import Housekeeper
from tests.unit.operations.world import World, bounded

HERE = {"projectName": "shop", "environment": "production"}


async def _v1_serves(world: World) -> None:
    await world.project()
    await world.live("v1")


async def _untouched(world: World, *, container: bool = False) -> None:
    """v1 serves, nothing of another release is left, and a later deploy works."""
    assert await world.visit() == "v1"
    assert await world.states() == ("active", "empty")
    assert world.running() == ["shop-production-blue"] + ["shop-production-green"] * container
    await world.require_consistent()
    await world.live("v9")
    assert await world.visit() == "v9"


@pytest.mark.parametrize(
    ("knobs", "said", "hint"),
    [
        ({"HEALTH": "fail"}, "answered 503", "expectedStatuses"),
        ({"HEALTH": "redirect"}, "redirect to /login", "healthCheck.path"),
        ({"HEALTH": "hang"}, "no answer in time", "containerPort"),
        ({"HEALTH_PATH": "/elsewhere"}, "answered 404", "healthCheck.path"),
        ({"CRASH_AT_START": "3"}, "exits with code 3", "log lines"),
    ],
)
async def test_a_release_that_is_never_healthy_leaves_no_trace(
    world: World, knobs: dict[str, str], said: str, hint: str
) -> None:
    await _v1_serves(world)
    refusal = await world.refused("release_unhealthy", "deploy", **HERE, image=world.image("v2", **knobs))
    assert said in refusal.message
    assert hint in refusal.hint
    assert refusal.detail["logs"] or "CRASH_AT_START" not in knobs
    assert [step["status"] for step in refusal.detail["steps"]][-2:] == ["failed", "success"]
    await _untouched(world)


async def test_an_image_that_does_not_exist_is_named(world: World) -> None:
    await _v1_serves(world)
    refusal = await world.refused("driver_refused", "deploy", **HERE, image="registry.test/shop:nope")
    assert "registry.test/shop:nope" in refusal.message
    assert "credentials" in refusal.hint
    await _untouched(world)


async def test_a_registry_that_is_away_is_named(world: World) -> None:
    await _v1_serves(world)
    image = world.image("v2")
    world.engine.registries_down.add("registry.test")
    refusal = await world.refused("driver_unavailable", "deploy", **HERE, image=image)
    assert refusal.hint
    world.engine.registries_down.clear()
    await _untouched(world)


async def test_a_full_disk_stops_the_deploy_before_the_pull(world: World) -> None:
    await _v1_serves(world)
    image = world.image("v2")
    world.engine.free_bytes = 1 << 20
    refusal = await world.refused("insufficient_storage", "deploy", **HERE, image=image)
    assert "Free disk space" in refusal.hint
    world.engine.free_bytes = 100 << 30
    await _untouched(world)


async def test_a_container_that_cannot_start_is_taken_away_again(world: World) -> None:
    await _v1_serves(world)
    world.edge.apps[4001] = lambda path: Answer(200)
    refusal = await world.refused("driver_refused", "deploy", **HERE, image=world.image("v2"))
    assert "port" in refusal.message
    world.edge.apps.pop(4001, None)
    await _untouched(world)


@pytest.mark.parametrize("method", ["images.find", "images.pull", "containers.remove", "containers.ensure"])
@pytest.mark.parametrize("after_work", [False, True])
@pytest.mark.parametrize(
    "error", [DriverUnavailable("away"), DriverRefused("no"), DeadlineExceeded("slow")], ids=lambda error: error.code
)
async def test_an_engine_that_fails_once_at_any_call_leaves_no_trace(
    world: World, method: str, after_work: bool, error: CodebError
) -> None:
    await _v1_serves(world)
    world.engine.faults.fail(method, error, after_work=after_work)
    await world.refused(error.code, "deploy", **HERE, image=world.image("v2"))
    await _untouched(world)


async def test_an_engine_that_goes_away_in_the_middle_leaves_a_run_that_is_taken_up_again(world: World) -> None:
    await _v1_serves(world)
    pause = world.engine.faults.pause("containers.ensure", after_work=True)
    deploy = asyncio.create_task(world.call("deploy", **HERE, image=world.image("v2", HEALTH="fail")))
    await bounded(pause.reached.wait())
    world.engine.away = True
    pause.release()
    with pytest.raises(DriverUnavailable) as refusal:
        await bounded(deploy)
    run_id = refusal.value.detail["operationId"]
    assert "taken up again" in refusal.value.hint
    assert (await world.call("operation_get", operationId=run_id))["status"] == "interrupted"
    rows = {row["operationId"]: row["status"] for row in (await world.call("operation_list"))["data"]}
    assert rows[run_id] == "interrupted"
    assert set(rows.values()) == {"interrupted", "succeeded"}
    assert await world.visit() == "v1"
    report = await Housekeeper(world.services).once()
    assert report.resumed == [run_id]
    await bounded(world.services.runs.drain())
    assert (await world.call("operation_get", operationId=run_id))["status"] == "interrupted"
    world.engine.away = False
    ended = await world.refused("driver_unavailable", "operation_resume", operationId=run_id)
    assert ended.detail["operationId"] == run_id
    assert (await world.call("operation_get", operationId=run_id))["status"] == "failed"
    await _untouched(world)


async def test_an_engine_that_is_away_from_the_start_refuses_at_once(world: World) -> None:
    await _v1_serves(world)
    image = world.image("v2")
    world.engine.away = True
    refusal = await world.refused("driver_unavailable", "deploy", **HERE, image=image)
    assert "Start the container engine" in refusal.hint
    refusal = await world.refused("driver_unavailable", "project_create", projectName="other")
    assert "Start the container engine" in refusal.hint
    world.engine.away = False
    await _untouched(world)


@pytest.mark.parametrize("method", ["has", "switch"])
@pytest.mark.parametrize(
    "error",
    [DriverUnavailable("away"), DriverRefused("no"), DeadlineExceeded("slow"), InsufficientStorage("full")],
    ids=lambda error: error.code,
)
@pytest.mark.parametrize("tool", ["promote", "rollback"])
async def test_a_proxy_that_fails_once_at_any_call_leaves_traffic_where_it_was(
    world: World, tool: str, method: str, error: CodebError
) -> None:
    await _v1_serves(world)
    serving = "v1"
    if tool == "promote":
        await world.deploy("v2")
    else:
        await world.live("v2")
        serving = "v2"
    before = (await world.slots()).dump()
    world.edge.fail(method, error)
    with pytest.raises(CodebError) as refusal:
        await world.call(tool, **HERE)
    assert refusal.value.code in (error.code, "switch_reverted")
    if refusal.value.code == "switch_reverted":
        assert "switched back" in refusal.value.hint
    assert await world.visit() == serving
    assert (await world.slots()).dump() == before
    await world.require_consistent()
    await world.call(tool, **HERE)
    assert await world.visit() != serving


async def test_a_switch_that_the_public_route_does_not_prove_is_taken_back(world: World) -> None:
    await _v1_serves(world)
    await world.deploy("v2")
    green = world.edge.apps[4001]
    asked: list[str] = []

    def dies_after_the_check(path: str) -> Answer:
        asked.append(path)
        return green(path) if len(asked) == 1 else Answer(500)

    world.edge.apps[4001] = dies_after_the_check
    refusal = await world.refused("switch_reverted", "promote", **HERE)
    assert "shop.codeb.localhost" in refusal.message
    assert "status 500 from slot green" in refusal.message
    assert refusal.detail["steps"][-1]["name"] == "revert_traffic"
    assert await world.visit() == "v1"
    await world.require_consistent()
    world.edge.apps[4001] = green
    await world.promote()


async def test_another_site_that_has_our_host_is_noticed_and_the_switch_taken_back(world: World) -> None:
    await _v1_serves(world)
    await world.deploy("v2")
    site = world.edge.configured["shop-production"]
    pause = world.engine.faults.pause("containers.inspect", after_work=True)
    promote = asyncio.create_task(world.call("promote", **HERE))
    await bounded(pause.reached.wait())
    pause.release()
    pause = world.engine.faults.pause("containers.inspect", after_work=True)
    await bounded(pause.reached.wait())
    del world.edge.configured["shop-production"]
    pause.release()
    with pytest.raises(CodebError) as refusal:
        await bounded(promote)
    world.edge.configured["shop-production"] = site
    assert refusal.value.code in ("switch_reverted", "driver_refused", "release_unhealthy")
    assert await world.visit() == "v1"
    await world.require_consistent()


@pytest.mark.parametrize("what", ["gone", "stopped", "another image"])
async def test_a_target_that_is_not_what_was_deployed_is_not_promoted(world: World, what: str) -> None:
    await _v1_serves(world)
    await world.deploy("v2")
    made = world.engine.containers["shop-production-green"]
    if what == "gone":
        await world.engine.stop(made, removed=True)
        del world.engine.containers["shop-production-green"]
    elif what == "stopped":
        await world.engine.stop(made)
    else:
        made.seen = type(made.seen)(**{**_fields(made.seen), "image_id": "sha256:other"})
    refusal = await world.refused("driver_refused", "promote", **HERE)
    assert "shop-production-green" in refusal.message
    assert refusal.hint
    assert await world.visit() == "v1"


def _fields(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__dataclass_fields__}


async def test_a_registry_that_cannot_be_written_stops_the_promote_and_takes_the_switch_back(world: World) -> None:
    await _v1_serves(world)
    await world.deploy("v2")
    slots = world.settings.registry / "slots" / "shop-production.json"
    held = slots.with_suffix(".held")
    pause = world.engine.faults.pause("containers.inspect", nth=2, after_work=True)
    promote = asyncio.create_task(world.call("promote", **HERE))
    await bounded(pause.reached.wait())
    slots.rename(held)
    slots.write_bytes(b"{")
    pause.release()
    with pytest.raises(CodebError) as refusal:
        await bounded(promote)
    held.rename(slots)
    assert refusal.value.code == "switch_reverted"
    assert refusal.value.detail["cause"] == "registry_damaged"
    assert await world.visit() == "v1"
    world.restart()
    await world.require_consistent()


async def test_a_flag_that_differs_from_the_registry_keeps_deploys_away_from_the_live_slot(world: World) -> None:
    await _v1_serves(world)
    await world.deploy("v2")
    world.edge.flags["shop-production"] = (await world.slots()).green.name
    image = world.image("v3")
    refusal = await world.refused("conflict", "deploy", **HERE, image=image)
    assert "registry_check" in refusal.hint
    refusal = await world.refused("conflict", "slot_cleanup", **HERE, force=True)
    assert "registry_check" in refusal.hint
    assert await world.visit() == "v2"


async def test_without_an_image_the_answer_says_how_to_name_one(world: World) -> None:
    await world.project()
    refusal = await world.refused("invalid_request", "deploy", **HERE, version="v1")
    assert refusal.detail["fields"] == [{"field": "image", "problem": "is missing"}]
    await world.call("project_update", projectName="shop", image="registry.test/shop")
    world.image("v1")
    assert (await world.call("deploy", **HERE, version="v1"))["image"] == "registry.test/shop:v1"


async def test_an_image_from_a_registry_that_is_not_allowed_is_refused(world: World) -> None:
    await _v1_serves(world)
    docker = world.settings.docker.model_copy(update={"allowed_registries": ("ghcr.io",)})
    world.settings = world.settings.model_copy(update={"docker": docker})
    world.restart()
    refusal = await world.refused("forbidden", "deploy", **HERE, image=world.image("v2"))
    assert "ghcr.io" in refusal.hint


async def test_a_skipped_health_check_is_made_up_for_by_promote(world: World) -> None:
    await _v1_serves(world)
    answer = await world.deploy("v2", image=world.image("v2", HEALTH="fail"), skipHealthcheck=True)
    assert "promote will check" in answer["warnings"][0]
    await world.refused("release_unhealthy", "promote", **HERE)
    assert await world.visit() == "v1"
