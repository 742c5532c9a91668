"""A damaged registry comes back from kept versions, containers and flags; what can be read is never changed."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from pathlib import Path

import pytest

from codeb_mcp.model.access import Role
from codeb_mcp.model.routes import Site
from codeb_mcp.operations.keys import KeyRing
from codeb_mcp.operations.rebuild import Rebuilt, rebuild
from codeb_mcp.operations.setup import initialise
from tests.unit.operations.world import World, bounded, principal

ACME = principal(Role.OWNER, "acme")


async def _full(world: World) -> None:
    """Two projects of two teams, one with a way back."""
    await world.call("team_create", teamId="acme", name="Acme")
    await world.project("shop", "production", "staging")
    await world.live("v1")
    world.clock.forward(minutes=1)
    await world.live("v2")
    await world.project("theirs", caller=ACME)
    await world.deploy("v1", "theirs", caller=ACME)


def _path(world: World, key: str) -> Path:
    return world.settings.registry / f"{key}.json"


def _forget_versions(world: World) -> None:
    """No kept version is left, as after a loss of the whole folder."""
    shutil.rmtree(world.settings.registry / ".generations")


async def _rebuilt(world: World) -> dict[str, Rebuilt]:
    world.restart()
    proposed = await rebuild(world.services, apply=False)
    done = await rebuild(world.services, apply=True)
    assert {one.key for one in done} == {one.key for one in proposed}, "what was shown is what was done"
    assert await rebuild(world.services, apply=True) == []
    return {one.key: one for one in reversed(done)}


async def test_a_registry_that_is_well_is_left_alone(world: World) -> None:
    await _full(world)
    before = {path: path.read_bytes() for path in world.settings.registry.rglob("*.json") if "leases" not in str(path)}
    assert await _rebuilt(world) == {}
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize("key", ["ssot", "teams", "api-keys", "slots/shop-production", "slots/theirs-production"])
@pytest.mark.parametrize("content", [b"", b"{", b"\x00" * 100, b"[1, 2]"])
async def test_a_damaged_document_comes_back_from_its_kept_version(world: World, key: str, content: bytes) -> None:
    await _full(world)
    _path(world, key).write_bytes(content)
    done = await _rebuilt(world)
    assert done[key].action == "restored", done
    slots = await world.slots()
    assert (slots.blue.version, slots.green.version, slots.active_slot) == ("v1", "v2", "green")
    assert await world.drift() == []
    assert (await world.rollback())["restoredVersion"] == "v1"
    assert any(
        path.read_bytes() == content
        for path in world.settings.registry.rglob("*")
        if path.is_file() and ".damaged" in str(path)
    )


async def test_a_stale_kept_version_is_corrected_by_what_runs(world: World) -> None:
    await _full(world)
    path = _path(world, "slots/shop-production")
    path.write_bytes(b"{")
    done = await _rebuilt(world)
    assert done["slots/shop-production"].action == "restored"
    slots = await world.slots()
    assert slots.active_slot == "green"
    await world.require_consistent()


@pytest.mark.parametrize("key", ["slots/shop-production", "ssot", "teams"])
async def test_without_kept_versions_containers_and_flags_tell_the_document(world: World, key: str) -> None:
    await _full(world)
    _forget_versions(world)
    _path(world, key).write_bytes(b"{")
    done = await _rebuilt(world)
    assert done[key].action == "rebuilt", done
    slots = await world.slots()
    assert (slots.blue.port, slots.green.port, slots.active_slot) == (4000, 4001, "green")
    assert (slots.blue.version, slots.green.version) == ("v1", "v2")
    assert {row["projectName"] for row in (await world.call("project_list"))["data"]} == {"shop"}
    assert {row["projectName"] for row in (await world.call("project_list", ACME))["data"]} == {"theirs"}
    assert await world.drift() == []
    assert (await world.rollback())["restoredVersion"] == "v1"
    await world.project("later")
    assert (await world.call("project_get", projectName="later"))["environments"][0]["ports"]["blue"] == 4004


@pytest.mark.parametrize("key", ["ssot", "teams"])
async def test_a_project_without_containers_is_not_forgotten(world: World, key: str) -> None:
    await _full(world)
    await world.project("idle", caller=ACME)
    _forget_versions(world)
    _path(world, key).write_bytes(b"{")
    await _rebuilt(world)
    assert {row["projectName"] for row in (await world.call("project_list", ACME))["data"]} == {"theirs", "idle"}
    found = await world.call("project_get", ACME, projectName="idle")
    assert found["environments"][0]["ports"] == {"blue": 4004, "green": 4005}
    await world.project("later")
    assert (await world.call("project_get", projectName="later"))["environments"][0]["ports"]["blue"] == 4006
    await world.deploy("v7", force=True)


async def test_a_missing_document_comes_back_as_well(world: World) -> None:
    await _full(world)
    _forget_versions(world)
    for key in ("slots/shop-production", "teams"):
        _path(world, key).unlink()
    done = await _rebuilt(world)
    assert {"slots/shop-production", "teams"} <= set(done)
    await world.require_consistent()
    assert {row["projectName"] for row in (await world.call("project_list", ACME))["data"]} == {"theirs"}


async def test_keys_that_are_lost_for_good_are_said_to_be_and_init_makes_a_new_owner(world: World) -> None:
    await _full(world)
    _forget_versions(world)
    _path(world, "api-keys").write_bytes(b"{")
    world.restart()
    done = {one.key: one for one in await rebuild(world.services, apply=True)}
    assert done["api-keys"].action == "lost"
    _path(world, "api-keys").unlink()
    world.restart()
    made = await initialise(world.services)
    assert made.owner_key is not None
    caller = await KeyRing().authenticate(world.services, made.owner_key, via="test")
    assert (caller.role, caller.platform) == (Role.OWNER, True)


async def test_a_damaged_lease_is_freed_with_a_higher_token(world: World) -> None:
    await _full(world)
    [path] = (world.settings.registry / "leases").glob("*shop-production.json")
    before = json.loads(path.read_text(encoding="utf-8"))["token"]
    path.write_bytes(b"{")
    world.restart()
    image = world.image("v3")
    await world.refused(
        "registry_damaged", "deploy", projectName="shop", environment="production", image=image, force=True
    )
    done = await _rebuilt(world)
    assert {one.action for one in done.values()} == {"freed"}
    await world.deploy("v3", image=image, force=True)
    lease = await world.services.store.acquire("environment/shop-production", "test")
    assert lease.token > before
    await world.services.store.release(lease)
    await world.promote()
    assert await world.visit() == "v3"


async def test_an_engine_that_is_away_leaves_kept_versions(world: World) -> None:
    await _full(world)
    _path(world, "ssot").write_bytes(b"{")
    world.engine.away = True
    world.restart()
    done = {one.key: one for one in reversed(await rebuild(world.services, apply=True))}
    assert done["ssot"].action == "restored"
    assert done["engine"].action == "lost"
    world.engine.away = False
    assert await world.drift() == []


async def test_containers_of_another_installation_tell_nothing(world: World) -> None:
    await _full(world)
    for made in world.engine.containers.values():
        labels = {**made.seen.labels, "codeb.installation": "another"}
        made.seen = type(made.seen)(
            **{**{name: getattr(made.seen, name) for name in made.seen.__dataclass_fields__}, "labels": labels}
        )
    _forget_versions(world)
    _path(world, "slots/shop-production").write_bytes(b"{")
    world.restart()
    [done] = await rebuild(world.services, apply=True)
    assert (done.key, done.action) == ("slots/shop-production", "rebuilt")  # by its route
    assert await world.states() == ("empty", "empty")


async def test_a_lost_flag_does_not_make_a_live_slot_out_of_nothing(world: World) -> None:
    await _full(world)
    _forget_versions(world)
    world.edge.flags.clear()
    _path(world, "slots/shop-production").write_bytes(b"{")
    await _rebuilt(world)
    slots = await world.slots()
    assert slots.active_slot is None
    assert {slots.blue.state, slots.green.state} == {"deployed"}


async def test_two_who_rebuild_at_once_end_with_one_good_registry(world: World) -> None:
    await _full(world)
    _path(world, "slots/shop-production").write_bytes(b"{")
    world.restart()
    there = world.start()
    await bounded(
        asyncio.gather(rebuild(world.services, apply=True), rebuild(there, apply=True), return_exceptions=True)
    )
    await there.trail.close()
    await world.require_consistent()


async def test_containers_routes_and_journals_tell_all_that_is_lost(world: World) -> None:
    await world.project("shop", "production", "staging", domain="www.example.com")
    await world.live("v1")
    world.clock.forward(minutes=1)
    await world.live("v2")
    world.clock.forward(minutes=1)
    await world.rollback()
    before, idle = await world.slots(), await world.slots(environment="staging")
    _forget_versions(world)
    shutil.rmtree(world.settings.registry / "slots")
    _path(world, "ssot").unlink()
    done = await _rebuilt(world)
    assert done["settings of shop"].action == "lost"
    after = await world.slots()
    for name in ("state", "port", "version", "image_id", "run_id", "grace_expires_at"):
        for side in ("blue", "green"):
            assert getattr(getattr(after, side), name) == getattr(getattr(before, side), name), (side, name)
    assert (after.active_slot, after.green.state) == ("blue", "grace")
    again = await world.slots(environment="staging")
    assert (again.blue.port, again.green.port) == (idle.blue.port, idle.green.port)
    assert await world.visit("www.example.com") == "v1"
    assert await world.drift() == []
    assert (await world.rollback())["restoredVersion"] == "v2"


async def test_a_route_that_was_left_over_makes_no_project(world: World) -> None:
    await _full(world)
    world.edge.configured["gone-production"] = Site("gone-production", ("gone.test",), 4900, 4901)
    assert await _rebuilt(world) == {}


async def _key(world: World) -> str:
    made = await world.call("token_create", name="ci", role="member")
    return str(made["token"]["id"])


async def test_a_revoked_key_stays_revoked_whatever_is_spoilt_in_place(world: World) -> None:
    key = await _key(world)
    await world.call("token_revoke", tokenId=key)
    os.truncate(_path(world, "api-keys"), 100)
    assert (await _rebuilt(world))["api-keys"].action == "restored"
    stored = await world.services.store.get("api-keys")
    assert stored is not None
    assert "revokedAt" in stored.doc["keys"][key]


async def test_a_lost_revocation_is_made_up_for_and_said_loudly(world: World) -> None:
    other, key = await _key(world), await _key(world)
    await world.call("token_revoke", tokenId=key)
    newest = max((world.settings.registry / ".generations/api-keys").glob("*.json"), key=lambda path: int(path.stem))
    newest.write_bytes(b"{")
    os.truncate(_path(world, "api-keys"), 100)
    done = (await _rebuilt(world))["api-keys"]
    assert done.action == "older"
    assert f"VERSION {newest.stem} IS LOST" in done.detail
    again, review = done.detail.split("review")
    assert key in again
    assert other in review
    stored = await world.services.store.get("api-keys")
    assert stored is not None
    assert "revokedAt" in stored.doc["keys"][key]
    assert "revokedAt" not in stored.doc["keys"][other]
