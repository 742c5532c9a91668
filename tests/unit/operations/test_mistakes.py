"""Mistakes of the system before this one, one test each: none of them may come back."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest

from codeb_mcp.drivers.protocols import Answer
from codeb_mcp.model.access import Role
from codeb_mcp.model.errors import DriverRefused, DriverUnavailable, RegistryDamaged
from codeb_mcp.operations.housekeeping import Housekeeper
from codeb_mcp.operations.setup import initialise
from tests.unit.operations.world import World, principal

ACME = principal(Role.OWNER, "acme")


async def _two_versions(world: World) -> None:
    await world.project()
    await world.live("v1")
    await world.live("v2")


@pytest.mark.parametrize("document", ["slots/shop-production", "ssot"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"projectName": "shop"'])
async def test_mistake_1_a_registry_that_cannot_be_read_is_never_a_first_deploy(
    world: World, document: str, content: bytes
) -> None:
    await _two_versions(world)
    path = world.settings.registry / f"{document}.json"
    path.write_bytes(content)
    image = world.image("v3")
    world.restart()
    for tool, arguments in (
        ("deploy", {"image": image}),
        ("promote", {}),
        ("rollback", {}),
        ("slot_cleanup", {"force": True}),
    ):
        refusal = await world.refused(
            "registry_damaged", tool, projectName="shop", environment="production", **arguments
        )
        assert "rebuild" in refusal.hint
    assert await world.visit() == "v2"
    assert world.running() == ["shop-production-blue", "shop-production-green"]
    assert path.read_bytes() == content, "the evidence stays"


async def test_mistake_1_a_slots_document_that_breaks_its_rules_stops_nothing_live(world: World) -> None:
    await _two_versions(world)
    path = world.settings.registry / "slots" / "shop-production.json"
    path.write_text(path.read_text(encoding="utf-8").replace('"active"', '"actve"'), encoding="utf-8")
    world.restart()
    image = world.image("v3")
    refusal = await world.refused(
        "registry_damaged", "deploy", projectName="shop", environment="production", image=image
    )
    assert refusal.detail
    assert await world.visit() == "v2"


async def test_mistake_4_an_unparsable_registry_is_refused_and_not_replaced(world: World) -> None:
    await _two_versions(world)
    path = world.settings.registry / "ssot.json"
    path.write_bytes(b'{"projects": ')
    world.restart()
    await world.refused("registry_damaged", "project_create", projectName="other")
    with pytest.raises(RegistryDamaged):
        await initialise(world.services)
    assert path.read_bytes() == b'{"projects": '


@pytest.mark.parametrize("what", ["apply", "has"])
async def test_mistake_6_a_proxy_that_says_no_stops_the_promote_and_the_registry_stays(world: World, what: str) -> None:
    await world.project()
    await world.live("v1")
    await world.deploy("v2")
    if what == "apply":
        world.edge.restart(keep=False)
    before = (await world.slots()).dump()
    world.edge.fail(what, *[DriverRefused("the proxy said no")] * 3)
    refusal = await world.refused("driver_refused", "promote", projectName="shop", environment="production")
    assert "the proxy said no" in refusal.message
    assert (await world.slots()).dump() == before
    assert world.edge.flags["shop-production"] == "blue"


async def test_mistake_6_a_promote_is_no_success_unless_the_public_route_reaches_the_new_slot(world: World) -> None:
    await world.project()
    await world.live("v1")
    await world.deploy("v2")
    site = world.edge.configured["shop-production"]
    world.edge.apps[site.green_port] = lambda path: Answer(500)
    refusal = await world.refused("release_unhealthy", "promote", projectName="shop", environment="production")
    assert "500" in refusal.message
    assert await world.visit() == "v1"


async def test_mistake_6_a_custom_domain_follows_the_promote(world: World) -> None:
    await world.project("shop", domain="shop.example.com")
    await world.live("v1")
    assert await world.visit("shop.example.com") == "v1"
    await world.live("v2")
    assert await world.visit("shop.example.com") == "v2"
    await world.rollback()
    assert await world.visit("shop.example.com") == "v1"


async def test_mistake_7_a_deploy_does_not_destroy_the_way_back_unless_it_is_told_to(world: World) -> None:
    await _two_versions(world)
    image = world.image("v3")
    refusal = await world.refused("conflict", "deploy", projectName="shop", environment="production", image=image)
    assert refusal.detail["wouldLose"] == "v1"
    assert "force" in refusal.hint
    assert (await world.rollback())["restoredVersion"] == "v1"
    await world.rollback()
    await world.deploy("v3", image=image, force=True)
    assert await world.states() == ("deployed", "active")
    await world.refused("conflict", "rollback", projectName="shop", environment="production")


async def test_mistake_8_the_first_promote_makes_no_way_back_out_of_nothing(world: World) -> None:
    await world.project()
    await world.live("v1")
    assert await world.states() == ("active", "empty")
    await world.refused("conflict", "rollback", projectName="shop", environment="production")
    assert await world.visit() == "v1"


async def test_mistake_9_a_rollback_minds_the_end_of_the_grace_period(world: World) -> None:
    await _two_versions(world)
    world.clock.forward(hours=48)
    refusal = await world.refused("conflict", "rollback", projectName="shop", environment="production")
    assert "v1" in refusal.hint
    assert await world.visit() == "v2"


async def test_mistake_9_a_grace_period_ends_by_itself(world: World) -> None:
    await _two_versions(world)
    keeper = Housekeeper(world.services)
    world.clock.forward(hours=47, minutes=59)
    assert (await keeper.once()).expired == []
    world.clock.forward(minutes=1)
    assert (await keeper.once()).expired == ["shop-production-blue"]
    assert await world.states() == ("empty", "active")
    assert world.running() == ["shop-production-green"]
    assert await world.visit() == "v2"


async def test_mistake_10_the_path_that_passed_at_the_deploy_is_the_one_promote_asks(world: World) -> None:
    await world.project()
    image = world.image("v1", HEALTH_PATH="/api/health")
    await world.deploy("v1", image=image)
    assert (await world.slots()).blue.health_path == "/api/health"
    await world.promote()
    assert await world.visit(path="/api/health") == "v1"
    report = await Housekeeper(world.services).once()
    assert report.health_changed == []


async def test_mistake_11_a_preview_address_that_is_answered_does_answer(world: World) -> None:
    await world.project()
    answer = await world.deploy("v1")
    assert await world.visit(answer["previewUrl"].removeprefix("http://")) == "v1"
    world.edge.restart(keep=False)
    world.edge.fail("apply", DriverUnavailable("the proxy is away"))
    answer = await world.deploy("v2")
    assert "previewUrl" not in answer
    assert "preview address" in answer["warnings"][0]


async def test_mistake_12_health_is_looked_at_again_and_again(world: World) -> None:
    await world.project()
    await world.live("v1")
    checked = (await world.slots()).blue.health_checked_at
    world.clock.forward(minutes=1)
    world.engine.containers["shop-production-blue"].environment = {"HEALTH": "fail"}
    report = await Housekeeper(world.services).once()
    assert report.health_changed == ["shop-production-blue: unhealthy"]
    slots = await world.slots()
    assert slots.blue.health_status == "unhealthy"
    assert slots.blue.health_checked_at == world.clock.now() != checked
    world.engine.containers["shop-production-blue"].environment = {}
    assert (await Housekeeper(world.services).once()).health_changed == ["shop-production-blue: healthy"]


async def test_mistake_14_a_key_of_one_team_does_nothing_to_another(world: World) -> None:
    await world.call("team_create", teamId="acme", name="Acme")
    await world.project("theirs", caller=ACME)
    default_owner = principal(Role.OWNER, "default", platform=False)
    for tool in ("team_get", "team_settings", "token_list", "member_list"):
        await world.refused("forbidden", tool, default_owner, teamId="acme")
    await world.refused("forbidden", "token_create", default_owner, teamId="acme", name="x", role="viewer")
    await world.refused("forbidden", "member_invite", default_owner, teamId="acme", name="x")
    await world.refused("forbidden", "team_delete", default_owner, teamId="acme", confirm="acme")
    for tool in (
        "deploy",
        "promote",
        "rollback",
        "slot_status",
        "slot_cleanup",
        "project_get",
        "logs_get",
        "health_check",
    ):
        more = {"image": "a/b:1"} if tool == "deploy" else {}
        await world.refused("not_found", tool, default_owner, projectName="theirs", **more)
    rows = (await world.call("audit_list", default_owner, limit=200))["data"]
    assert {row["team"] for row in rows} == {"default"}
    rows = (await world.call("audit_list", ACME, limit=200))["data"]
    assert {row["team"] for row in rows} == {"acme"}


async def test_mistake_18_init_is_safe_to_repeat(world: World) -> None:
    await _two_versions(world)
    before = {path: path.read_bytes() for path in world.settings.registry.rglob("*.json") if "leases" not in path.parts}
    again = await initialise(world.start())
    assert again.created == ()
    assert again.owner_key is None
    assert {path: path.read_bytes() for path in before} == before


async def test_times_in_answers_are_times(world: World) -> None:
    await _two_versions(world)
    status = await world.call("slot_status", projectName="shop", environment="production")
    ends = datetime.fromisoformat(status["data"]["blue"]["graceExpiresAt"])
    assert ends == world.clock.now() + timedelta(hours=48)
