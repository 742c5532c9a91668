"""What happens by itself: grace periods end, runs are taken up, health, routes and images are kept in order."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from codeb_mcp.model.errors import DriverRefused, DriverUnavailable
from codeb_mcp.model.names import Slot
from codeb_mcp.operations.housekeeping import Housekeeper
from tests.unit.operations.world import World, bounded


async def _two_versions(world: World, name: str = "shop") -> None:
    await world.project(name)
    await world.live("v1", name)
    await world.live("v2", name)


async def test_a_round_over_a_tidy_installation_does_nothing(world: World) -> None:
    await _two_versions(world)
    before = {path: path.read_bytes() for path in world.settings.registry.rglob("*.json")}
    report = await Housekeeper(world.services).once()
    assert (report.expired, report.resumed, report.routes, report.health_changed, report.problems) == (
        [],
        [],
        [],
        [],
        [],
    )
    written = {path.name for path in before if path.read_bytes() != before[path]}
    assert written <= {"head.json"}


@pytest.mark.parametrize("hours", [0, 1, 48, 720])
async def test_a_grace_period_lasts_as_long_as_the_environment_says(world: World, hours: float) -> None:
    await world.project()
    await world.call("project_update", projectName="shop", environment="production", graceHours=hours)
    await world.live("v1")
    await world.live("v2")
    keeper = Housekeeper(world.services)
    if hours:
        world.clock.forward(hours=hours, seconds=-1)
        assert (await keeper.once()).expired == []
        await world.rollback()
        await world.rollback()
        world.clock.forward(hours=hours, seconds=1)
    assert (await keeper.once()).expired == ["shop-production-blue"]
    assert await world.states() == ("empty", "active")
    assert await world.visit() == "v2"
    await world.require_consistent()


async def test_requests_on_an_expired_slot_are_waited_for_up_to_the_drain_time(world: World) -> None:
    await _two_versions(world)
    await world.call("project_update", projectName="shop", environment="production", drainSeconds=0.05)
    world.edge.running[4000] = 2
    world.clock.forward(hours=49)
    assert (await Housekeeper(world.services).once()).expired == ["shop-production-blue"]
    [run] = [row for row in (await world.call("operation_list"))["data"] if row["kind"] == "slot_cleanup"]
    facts = (await world.call("operation_get", operationId=run["operationId"]))["result"]["facts"]
    assert (facts["drain"]["inFlight"], facts["drain"]["drained"]) == (2, False)


async def test_one_environment_that_cannot_be_retired_does_not_keep_others_from_it(world: World) -> None:
    await _two_versions(world, "one")
    await _two_versions(world, "two")
    world.clock.forward(hours=49)
    world.engine.faults.fail("containers.remove", DriverRefused("no"), nth=1)
    world.engine.faults.fail("containers.remove", DriverRefused("no"), nth=2)
    world.engine.faults.fail("containers.remove", DriverRefused("no"), nth=3)
    keeper = Housekeeper(world.services)
    report = await keeper.once()
    assert report.expired == ["two-production-blue"]
    assert len(report.problems) == 1
    await keeper.once()
    await bounded(world.services.runs.drain())
    assert world.running() == ["one-production-green", "two-production-green"]


async def test_an_environment_that_is_worked_on_is_left_for_the_next_round(world: World) -> None:
    await _two_versions(world)
    world.clock.forward(hours=49)
    lease = await world.services.store.acquire("environment/shop-production", "run:op_x")
    report = await Housekeeper(world.services).once()
    assert (report.expired, report.problems) == ([], [])
    await world.services.store.release(lease)
    assert (await Housekeeper(world.services).once()).expired == ["shop-production-blue"]


async def test_two_housekeepers_at_once_retire_a_slot_once(world: World) -> None:
    await _two_versions(world)
    world.clock.forward(hours=49)
    there = world.start()
    reports = await asyncio.gather(Housekeeper(world.services).once(), Housekeeper(there).once())
    assert sum(len(report.expired) for report in reports) == 1
    assert [report.problems for report in reports] == [[], []]
    await there.runs.close()
    await there.trail.close()


async def test_a_proxy_that_lost_its_configuration_gets_it_back(world: World) -> None:
    await _two_versions(world)
    await world.project("new")
    world.edge.restart(keep=False)
    assert await world.visit() != "v2"
    report = await Housekeeper(world.services).once()
    assert sorted(report.routes) == ["new-production", "shop-production"]
    assert await world.visit() == "v2"
    assert await world.visit("new.codeb.localhost") == "503"


async def test_routes_of_environments_that_are_off_come_back_as_well(world: World) -> None:
    await world.project()
    await world.deploy("v1")
    world.edge.restart(keep=False)
    report = await Housekeeper(world.services).once()
    assert (report.routes, report.problems) == (["shop-production"], [])
    assert await world.visit() == "503"


async def test_a_flag_that_was_lost_comes_back_before_the_route(world: World) -> None:
    await _two_versions(world)
    world.edge.restart(keep=False)
    world.edge.flags.clear()
    await Housekeeper(world.services).once()
    assert world.edge.flags["shop-production"] is Slot.GREEN
    assert await world.visit() == "v2"


async def test_a_proxy_that_is_away_is_a_problem_of_this_round_only(world: World) -> None:
    await _two_versions(world)
    world.edge.fail("sites", DriverUnavailable("the proxy is away"))
    world.engine.containers["shop-production-green"].environment = {"HEALTH": "fail"}
    report = await Housekeeper(world.services).once()
    assert "the proxy is away" in report.problems[0]
    assert report.health_changed == ["shop-production-green: unhealthy"]
    assert (await Housekeeper(world.services).once()).problems == []


async def test_one_damaged_document_does_not_stop_the_housekeeping_of_others(world: World) -> None:
    await _two_versions(world, "broken")
    await _two_versions(world, "shop")
    path = world.settings.registry / "slots" / "broken-production.json"
    path.write_bytes(b"{")
    world.restart()
    world.edge.restart(keep=False)
    world.clock.forward(hours=49)
    world.engine.containers["shop-production-green"].environment = {"HEALTH": "fail"}
    report = await Housekeeper(world.services).once()
    assert report.expired == ["shop-production-blue"]
    assert report.routes == ["shop-production"]
    assert report.health_changed == ["shop-production-green: unhealthy"]
    assert any("broken-production" in problem for problem in report.problems)
    assert "broken-production-blue" in world.running()
    assert report.images_removed == []


async def test_an_open_run_is_taken_up(world: World) -> None:
    await _two_versions(world)
    world.clock.forward(hours=49)
    pause = world.engine.faults.pause("containers.ensure", after_work=True)
    call = asyncio.create_task(world.deploy("v3"))
    await bounded(pause.reached.wait())
    world.restart()
    report = await Housekeeper(world.services).once()
    assert len(report.resumed) == 1
    await bounded(world.services.runs.drain())
    assert await world.states() == ("deployed", "active")
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)


async def test_a_damaged_journal_stops_neither_housekeeping_nor_deploys(world: World) -> None:
    await _two_versions(world)
    await world.project("blog")
    pause = world.engine.faults.pause("images.pull")
    call = asyncio.create_task(world.deploy("v1", "blog"))
    await bounded(pause.reached.wait())
    [path] = (world.settings.registry / "operations" / "open").glob("*.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1].replace(b"blog", b"blag") + lines[2])
    world.restart()
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    report = await Housekeeper(world.services).once()
    assert report.health_changed == []
    await world.deploy("v3", force=True)
    assert await world.visit() == "v2"


# ── images ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _images(world: World) -> set[str]:
    return {one.image.reference.rpartition(":")[2] for one in world.engine.images.values()}


async def _rounds(world: World, *versions: str) -> None:
    for version in versions:
        await world.deploy(version, force=True)
        await world.promote()


async def test_old_images_go_and_those_in_slots_and_the_newest_stay(world: World) -> None:
    await world.project("shop", keep=2)
    world.engine.load("registry.test/base:1")
    await _rounds(world, "v1", "v2", "v3", "v4", "v5")
    report = await Housekeeper(world.services).once()
    assert sorted(report.images_removed) == [f"registry.test/shop:v{number}" for number in (1, 2, 3)]
    assert _images(world) == {"v4", "v5", "1"}
    assert (await world.rollback())["restoredVersion"] == "v4"


async def test_the_way_back_is_pinned_however_old_its_image_is(world: World) -> None:
    await world.project("shop", "production", "staging", keep=1)
    await world.live("v1")
    await world.live("v2")
    for number in range(3, 8):
        await world.deploy(f"v{number}", environment="staging", force=True)
    await Housekeeper(world.services).once()
    assert {"v1", "v2", "v7"} <= _images(world)
    await world.rollback()
    assert await world.visit() == "v1"


async def test_the_image_of_a_slot_stays_also_when_its_container_is_gone(world: World) -> None:
    await world.project("shop", keep=1)
    await _rounds(world, "v1", "v2")
    gone = world.engine.containers.pop("shop-production-blue")
    await world.engine.stop(gone, removed=True)
    assert (await Housekeeper(world.services).once()).images_removed == []
    [found] = await world.drift()
    assert (await world.call("registry_repair", driftIds=[found["id"]]))["repaired"] == 1
    assert (await world.rollback())["restoredVersion"] == "v1"


async def test_an_image_that_was_here_before_is_never_ours_to_remove(world: World) -> None:
    await world.project("shop", keep=1)
    own = world.image("v1")
    world.engine.keep(world.engine.remote[own], own)
    await world.deploy("v1", image=own)
    await world.promote()
    await _rounds(world, "v2", "v3", "v4")
    await Housekeeper(world.services).once()
    assert "v1" in _images(world)


async def test_a_tag_that_moved_leaves_its_former_image_to_be_removed(world: World) -> None:
    await world.project("shop", keep=1)
    for number in range(4):
        world.clock.forward(hours=2)
        world.image("latest")
        await world.deploy(f"n{number}", image="registry.test/shop:latest", force=True)
        await world.promote()
    assert len(world.engine.images) == 4
    await Housekeeper(world.services).once()
    assert len(world.engine.images) == 2


async def test_images_of_a_deleted_project_go(world: World) -> None:
    await world.project()
    await world.live("v1")
    await world.call("project_delete", projectName="shop", confirm="shop")
    await Housekeeper(world.services).once()
    assert _images(world) == set()


async def test_an_image_that_somebody_else_removed_is_forgotten(world: World) -> None:
    await world.project("shop", keep=1)
    await _rounds(world, "v1", "v2", "v3", "v4")
    gone = [image_id for image_id, one in world.engine.images.items() if one.image.reference.endswith(":v1")]
    del world.engine.images[gone[0]]
    await Housekeeper(world.services).once()
    stored = await world.services.store.get("images/shop")
    assert stored is not None
    assert [entry["reference"] for entry in stored.doc["images"]] == ["registry.test/shop:v3", "registry.test/shop:v4"]


async def test_the_image_of_a_deploy_under_way_stays(world: World) -> None:
    await world.project("shop", "production", "staging", keep=1)
    pause = world.engine.faults.pause("containers.remove")
    image = world.image("v1")
    call = asyncio.create_task(world.deploy("v1", image=image))
    await bounded(pause.reached.wait())
    await world.deploy("v2", environment="staging")
    await Housekeeper(world.services).once()
    assert "v1" in _images(world)
    pause.release()
    await bounded(call)


async def test_images_are_looked_through_every_ten_minutes_only(world: World) -> None:
    await world.project("shop", keep=1)
    keeper = Housekeeper(world.services)
    await keeper.once()
    await _rounds(world, "v1", "v2", "v3", "v4")
    assert (await keeper.once()).images_removed == []
    world.clock.forward(minutes=10)
    assert len((await keeper.once()).images_removed) == 2


async def test_a_damaged_environment_keeps_every_image(world: World) -> None:
    await world.project("shop", keep=1)
    await _rounds(world, "v1", "v2", "v3", "v4")
    path: Path = world.settings.registry / "slots" / "shop-production.json"
    path.write_bytes(b"{")
    world.restart()
    report = await Housekeeper(world.services).once()
    assert report.images_removed == []
    assert len(_images(world)) == 4
