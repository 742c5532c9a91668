"""Every difference between registry and world is found, and mended as proposed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest

from codeb_mcp.model.access import Role
from codeb_mcp.model.errors import DriverUnavailable
from codeb_mcp.model.names import Slot
from codeb_mcp.model.routes import Site
from tests.unit.operations.world import World, principal

BLUE, GREEN = "shop-production-blue", "shop-production-green"
Damage = Callable[[World], Awaitable[None]]


async def _two_versions(world: World) -> None:
    """v1 serves from blue, v2 waits in green."""
    await world.project()
    await world.live("v1")
    await world.deploy("v2")


async def _gone(world: World, name: str) -> None:
    await world.engine.stop(world.engine.containers[name], removed=True)
    del world.engine.containers[name]


async def _live_gone(world: World) -> None:
    await _gone(world, BLUE)


async def _waiting_gone(world: World) -> None:
    await _gone(world, GREEN)


async def _stopped(world: World) -> None:
    await world.engine.stop(world.engine.containers[BLUE])


async def _another_image(world: World) -> None:
    made = world.engine.containers[BLUE]
    other = world.engine.load("registry.test/evil:1", "evil")
    made.environment = {"APP_VERSION": "evil"}
    made.seen = replace(made.seen, image_id=other.image_id)


async def _another_port(world: World) -> None:
    made = world.engine.containers[BLUE]
    world.edge.apps.pop(4000)
    made.seen = replace(made.seen, host_ports=(4444,))


async def _traffic_elsewhere(world: World) -> None:
    world.edge.flags["shop-production"] = Slot.GREEN


async def _traffic_off(world: World) -> None:
    world.edge.flags["shop-production"] = None


async def _flag_gone(world: World) -> None:
    del world.edge.flags["shop-production"]


async def _route_gone(world: World) -> None:
    world.edge.restart(keep=False)


async def _route_changed(world: World) -> None:
    site = world.edge.configured["shop-production"]
    world.edge.configured["shop-production"] = replace(site, hosts=("other.example.com",))


MENDED: dict[str, tuple[Damage, str]] = {
    "live container gone": (_live_gone, "container_missing"),
    "waiting container gone": (_waiting_gone, "container_missing"),
    "container stopped": (_stopped, "container_stopped"),
    "another image": (_another_image, "container_wrong_image"),
    "another port": (_another_port, "container_wrong_port"),
    "traffic elsewhere": (_traffic_elsewhere, "traffic_differs"),
    "traffic off": (_traffic_off, "traffic_differs"),
    "flag gone": (_flag_gone, "traffic_differs"),
    "route gone": (_route_gone, "route_missing"),
    "route changed": (_route_changed, "route_missing"),
}


@pytest.mark.parametrize("name", MENDED)
async def test_a_difference_is_found_and_its_repair_mends_it(world: World, name: str) -> None:
    damage, kind = MENDED[name]
    await _two_versions(world)
    assert await world.drift() == []
    await damage(world)
    [found] = await world.drift()
    assert (found["kind"], found["environment"]) == (kind, "shop-production")
    answer = await world.call("registry_repair", driftIds=[found["id"]])
    assert answer["repaired"] == 1, answer
    assert answer["data"][0]["operationId"]
    slots = await world.require_consistent()
    assert (slots.blue.version, slots.green.version) == ("v1", "v2")
    assert await world.visit() == "v1"
    await world.promote()
    assert await world.visit() == "v2"


async def test_a_slot_whose_container_and_image_are_gone_is_emptied_unless_it_is_live(world: World) -> None:
    await _two_versions(world)
    slots = await world.slots()
    for name in (BLUE, GREEN):
        await _gone(world, name)
    for image in (slots.blue.image_id, slots.green.image_id):
        del world.engine.images[image or ""]
    live, waiting = await world.drift()
    assert (live["repair"], waiting["repair"]) == ("none", "empty_slot")
    answer = await world.call("registry_repair", driftIds=[live["id"], waiting["id"]])
    assert [row["repaired"] for row in answer["data"]] == [False, True]
    assert "a person has to look" in answer["data"][0]["message"]
    assert await world.states() == ("active", "empty")


async def test_what_the_registry_does_not_know_is_removed(world: World) -> None:
    await _two_versions(world)
    await world.call("slot_cleanup", projectName="shop", environment="production", force=True)
    await world.project("ghost")
    await world.deploy("v1", "ghost")
    made = world.engine.containers["ghost-production-blue"]
    site = world.edge.configured["ghost-production"]
    await world.call("project_delete", projectName="ghost", confirm="ghost")
    world.engine.containers["ghost-production-blue"] = made
    world.edge.configured["ghost-production"] = site
    stray = replace(made.seen, name=GREEN, labels={**made.seen.labels, "codeb.project": "shop", "codeb.slot": "green"})
    world.engine.containers[GREEN] = type(made)(stray, {}, made.spec)
    found = await world.drift()
    assert sorted((one["kind"], one["environment"]) for one in found) == [
        ("container_unknown", "ghost-production"),
        ("container_unknown", "shop-production"),
        ("route_unknown", "ghost-production"),
    ]
    answer = await world.call("registry_repair", driftIds=[one["id"] for one in found])
    assert answer["repaired"] == 3, answer
    assert await world.drift() == []
    assert world.running() == [BLUE]


async def test_containers_of_others_are_neither_named_nor_touched(world: World) -> None:
    await _two_versions(world)
    made = world.engine.containers[BLUE]
    foreign = replace(made.seen, name="nginx", labels={}, host_ports=(80,))
    sibling = replace(
        made.seen, name="other-production-blue", labels={**made.seen.labels, "codeb.installation": "another"}
    )
    for one in (foreign, sibling):
        world.engine.containers[one.name] = type(made)(one, {}, made.spec)
    assert await world.drift() == []


async def test_a_listener_on_the_port_of_an_empty_slot_is_named(world: World) -> None:
    await world.project()
    await world.live("v1")
    world.ports.ports.add(4001)
    [found] = await world.drift()
    assert (found["kind"], found["repair"], found["slot"]) == ("port_taken", "none", "green")


async def test_a_difference_that_is_gone_is_said_to_be_and_an_unknown_id_as_well(world: World) -> None:
    await _two_versions(world)
    await _traffic_off(world)
    [found] = await world.drift()
    world.edge.flags["shop-production"] = Slot.BLUE
    answer = await world.call("registry_repair", driftIds=[found["id"], "drift_000000000000"])
    assert answer["repaired"] == 0
    assert len(answer["data"]) == 2
    assert all(row["message"] for row in answer["data"])


async def test_the_same_difference_named_twice_is_mended_once(world: World) -> None:
    await _two_versions(world)
    await _route_gone(world)
    [found] = await world.drift()
    answer = await world.call("registry_repair", driftIds=[found["id"], found["id"]])
    assert answer["repaired"] == 1


async def test_a_repair_that_fails_says_why_and_the_next_is_made(world: World) -> None:
    await _two_versions(world)
    await _live_gone(world)
    await _route_gone(world)
    found = {one["kind"]: one["id"] for one in await world.drift()}
    world.engine.faults.fail("containers.ensure", DriverUnavailable("the engine is away"))
    answer = await world.call("registry_repair", driftIds=[found["container_missing"], found["route_missing"]])
    assert [row["repaired"] for row in answer["data"]] == [False, True]
    assert "away" in answer["data"][0]["message"]


async def test_an_engine_that_is_away_is_an_error_and_no_drift(world: World) -> None:
    await _two_versions(world)
    world.engine.away = True
    await world.refused("driver_unavailable", "registry_check")


async def test_a_proxy_that_is_away_is_not_taken_for_missing_routes(world: World) -> None:
    await _two_versions(world)
    world.edge.fail("sites", DriverUnavailable("the proxy is away"))
    assert await world.drift() == []


async def test_an_environment_that_is_worked_on_is_left_alone(world: World) -> None:
    await _two_versions(world)
    await _traffic_off(world)
    lease = await world.services.store.acquire("environment/shop-production", "run:op_x")
    assert await world.drift() == []
    await world.services.store.release(lease)
    lease = await world.services.store.acquire("project/shop", "run:op_x")
    assert await world.drift() == []
    await world.services.store.release(lease)
    assert len(await world.drift()) == 1


async def test_teams_see_their_own_drift_and_the_platform_sees_strays(world: World) -> None:
    await world.call("team_create", teamId="acme", name="Acme")
    acme = principal(Role.ADMIN, "acme")
    await _two_versions(world)
    await world.project("theirs", caller=acme)
    await _traffic_off(world)
    world.edge.configured["ghost-production"] = Site("ghost-production", ("ghost.example.com",), 4800, 4801)
    assert {row["kind"] for row in await world.drift()} == {"traffic_differs", "route_unknown"}
    assert (await world.call("registry_check", acme))["data"] == []
    found = (await world.drift())[0]
    answer = await world.call("registry_repair", acme, driftIds=[found["id"]])
    assert answer["repaired"] == 0
    only = (await world.call("registry_check", projectName="shop"))["data"]
    assert [row["kind"] for row in only] == ["traffic_differs"]
