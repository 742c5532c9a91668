"""The main job from the first deploy to the way back."""

from __future__ import annotations

from tests.unit.operations.world import World

STEPS = [
    "get_slot_status",
    "select_slot",
    "pull_image",
    "cleanup_container",
    "start_container",
    "health_check",
    "update_registry",
]


async def test_deploy_promote_deploy_promote_and_roll_back(world: World) -> None:
    await world.project()
    first = await world.deploy("v1")
    assert (first["slot"], first["port"], first["version"]) == ("blue", 4000, "v1")
    assert [step["name"] for step in first["steps"]][: len(STEPS)] == STEPS
    assert {step["status"] for step in first["steps"]} == {"success"}
    assert await world.visit() == "503"
    assert await world.visit("shop-production-blue.preview.codeb.localhost") == "v1"
    assert first["previewUrl"] == "http://shop-production-blue.preview.codeb.localhost"

    promoted = await world.promote()
    assert (promoted.get("fromSlot"), promoted["toSlot"], promoted["newVersion"]) == (None, "blue", "v1")
    assert promoted["productionUrl"] == "http://shop.codeb.localhost"
    assert await world.visit() == "v1"
    assert await world.states() == ("active", "empty")

    second = await world.deploy("v2")
    assert (second["slot"], second["port"]) == ("green", 4001)
    assert await world.visit() == "v1"
    promoted = await world.promote()
    assert (promoted["fromSlot"], promoted["toSlot"]) == ("blue", "green")
    assert (promoted["previousVersion"], promoted["newVersion"]) == ("v1", "v2")
    assert promoted["graceExpiresAt"] == "2026-01-09T12:00:00Z"
    assert await world.visit() == "v2"
    assert await world.states() == ("grace", "active")

    back = await world.rollback(reason="v2 is slow")
    assert (back["fromSlot"], back["toSlot"], back["restoredVersion"]) == ("green", "blue", "v1")
    assert await world.visit() == "v1"
    assert await world.states() == ("active", "grace")
    slots = await world.require_consistent()
    assert slots.blue.rolled_back_at == world.clock.now()
    forth = await world.rollback()
    assert forth["restoredVersion"] == "v2"
    assert await world.visit() == "v2"
