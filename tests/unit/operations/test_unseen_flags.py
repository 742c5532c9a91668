"""A proxy that may not look up the flags sends everything to blue: no run takes that for a success."""

from __future__ import annotations

from tests.unit.operations.world import World

HERE = {"projectName": "shop", "environment": "production"}


async def test_a_deploy_that_would_serve_unasked_is_undone(world: World) -> None:
    await world.project()
    world.edge.blind = True
    refusal = await world.refused("driver_refused", "deploy", **HERE, image=world.image("v1"))
    assert refusal.detail["reason"] == "flags_unseen"
    assert str(world.settings.traffic) in refusal.message
    assert world.running() == []
    assert await world.states() == ("empty", "empty")
    world.edge.blind = False
    await world.live("v1")
    await world.require_consistent()


async def test_a_promote_to_blue_is_no_proof_when_blue_answered_before(world: World) -> None:
    await world.project()
    await world.deploy("v1")
    world.edge.blind = True
    refusal = await world.refused("driver_refused", "promote", **HERE)
    assert refusal.detail["reason"] == "flags_unseen"
    assert await world.states() == ("deployed", "empty")
    world.edge.blind = False
    await world.promote()
    assert await world.visit() == "v1"
    await world.require_consistent()


async def test_a_rollback_to_blue_is_proven_as_well(world: World) -> None:
    await world.project()
    await world.live("v1")
    await world.live("v2")
    world.edge.blind = True
    refusal = await world.refused("driver_refused", "rollback", **HERE)
    assert str(world.settings.traffic) in refusal.detail["folder"]
    assert await world.states() == ("grace", "active")
    world.edge.blind = False
    await world.rollback()
    assert await world.visit() == "v1"


async def test_a_promote_to_green_that_is_taken_back_names_the_folder(world: World) -> None:
    await world.project()
    await world.live("v1")
    await world.deploy("v2")
    world.edge.blind = True
    refusal = await world.refused("switch_reverted", "promote", **HERE)
    assert str(world.settings.traffic) in refusal.hint
    assert await world.states() == ("active", "deployed")


async def test_an_idle_app_that_is_broken_does_not_keep_a_promote_from_mending_it(world: World) -> None:
    await world.project()
    await world.live("v1")
    await world.live("v2")
    await world.deploy("v3", force=True)
    del world.edge.apps[(await world.slots()).green.port]
    await world.promote()
    assert await world.visit() == "v3"


async def test_health_says_that_the_proxy_sees_no_flags(world: World) -> None:
    await world.project()
    await world.deploy("v1")
    world.edge.blind = True
    for asked in ({}, HERE):
        found = await world.call("health_check", **asked)
        assert found["status"] == "unhealthy"
        assert any(str(world.settings.traffic) in part.get("hint", "") for part in found["parts"])
    world.edge.blind = False
    assert (await world.call("health_check", **HERE))["status"] == "healthy"
