"""Keys in every state; teams, members and tokens."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from codeb_mcp.model.access import Principal, Role
from codeb_mcp.model.errors import RateLimited, RegistryDamaged, Unauthenticated
from codeb_mcp.model.times import utc_text
from codeb_mcp.operations.keys import KeyRing
from codeb_mcp.registry.store import Change
from tests.unit.operations.test_rights import ACME, _end
from tests.unit.operations.world import OWNER, World, bounded, principal


async def _enter(world: World, key: str, ring: KeyRing | None = None, source: str | None = None) -> Principal:
    return await (ring or KeyRing()).authenticate(world.services, key, via="test", source=source)


async def _token(world: World, caller: Principal = OWNER, **more: Any) -> tuple[str, str]:
    """Id and text of a new key."""
    made = (await world.call("token_create", caller, **{"name": "ci", "role": "member"} | more))["token"]
    return made["id"], made["key"]


async def test_a_new_team_has_an_owner_who_sees_only_it(world: World) -> None:
    made = await world.call("team_create", teamId="acme", name="Acme")
    owner = await _enter(world, made["ownerKey"])
    assert (owner.team, owner.role, owner.platform) == ("acme", Role.OWNER, False)
    assert [row["teamId"] for row in (await world.call("team_list", owner))["data"]] == ["acme"]
    assert [row["teamId"] for row in (await world.call("team_list"))["data"]] == ["acme", "default"]
    await world.refused("conflict", "team_create", teamId="acme", name="Again")
    assert "ownerKey" not in await world.call("team_get", owner)
    renamed = await world.call("team_settings", owner, name="Acme Corp")
    assert renamed["name"] == "Acme Corp"


async def test_a_team_with_projects_and_the_platforms_own_are_not_deleted(world: World) -> None:
    made = await world.call("team_create", teamId="acme", name="Acme")
    await world.project("shop", caller=ACME)
    await world.refused("conflict", "team_delete", ACME, confirm="acme")
    await world.refused("conflict", "team_delete", OWNER, confirm="default")
    await world.call("project_delete", ACME, projectName="shop", confirm="shop")
    await world.refused("invalid_request", "team_delete", ACME, confirm="acmee")
    await world.call("team_delete", ACME, confirm="acme")
    with pytest.raises(Unauthenticated):
        await _enter(world, made["ownerKey"])


async def test_nobody_makes_or_ends_a_key_above_their_own(world: World) -> None:
    owner_id, _ = await _token(world, role="owner")
    admin = principal(Role.ADMIN)
    await world.refused("forbidden", "token_create", admin, name="x", role="owner")
    await world.refused("forbidden", "member_invite", admin, name="x", role="owner")
    await world.refused("forbidden", "token_revoke", admin, tokenId=owner_id)
    await world.refused("forbidden", "token_rotate", admin, tokenId=owner_id)
    member = await world.call("member_invite", name="boss", role="owner")
    await world.refused("forbidden", "member_remove", admin, memberId=member["member"]["id"])


async def test_the_last_owner_key_stays(world: World) -> None:
    made = await world.call("team_create", teamId="acme", name="Acme")
    first = (await world.call("token_list", ACME))["data"][0]["id"]
    refusal = await world.refused("conflict", "token_revoke", ACME, tokenId=first)
    assert "another owner" in refusal.hint
    await _enter(world, made["ownerKey"])
    second, _ = await _token(world, ACME, role="owner")
    await world.call("token_revoke", ACME, tokenId=first)
    await world.refused("conflict", "token_revoke", ACME, tokenId=second)


async def test_an_expired_or_revoked_owner_key_does_not_count_as_the_last(world: World) -> None:
    await world.call("team_create", teamId="acme", name="Acme")
    first = (await world.call("token_list", ACME))["data"][0]["id"]
    await _token(world, ACME, role="owner", expiresIn="1d")
    world.clock.forward(days=2)
    await world.refused("conflict", "token_revoke", ACME, tokenId=first)
    member = await world.call("member_invite", ACME, name="boss", role="owner")
    await world.call("token_revoke", ACME, tokenId=first)
    await world.refused("conflict", "member_remove", ACME, memberId=member["member"]["id"])


async def test_two_who_end_each_others_owner_keys_at_once_leave_one(world: World) -> None:
    await world.call("team_create", teamId="acme", name="Acme")
    first = (await world.call("token_list", ACME))["data"][0]["id"]
    second, _ = await _token(world, ACME, role="owner")
    ends = await bounded(
        asyncio.gather(*(_end(world, "token_revoke", ACME, {"tokenId": one}) for one in (first, second)))
    )
    assert sorted(ends) == ["conflict", "ok"]


@pytest.mark.parametrize("state", ["good", "revoked", "expired", "unknown", "typo", "of a deleted team", "empty"])
async def test_a_key_works_only_while_it_is_good(world: World, state: str) -> None:
    await world.call("team_create", teamId="acme", name="Acme")
    caller = ACME if state == "of a deleted team" else OWNER
    key_id, key = await _token(world, caller, expiresIn="10d")
    ring = KeyRing()
    assert (await _enter(world, key, ring)).key_id == key_id
    if state == "revoked":
        await world.call("token_revoke", tokenId=key_id)
    elif state == "expired":
        world.clock.forward(days=10)
    elif state == "of a deleted team":
        await world.call("team_delete", ACME, confirm="acme")
    elif state == "unknown":
        key = "codeb_default_admin_a1b2c3d4e5f6g7h8"
    elif state == "typo":
        key = key[:-1] + ("0" if key[-1] != "0" else "1")
    elif state == "empty":
        key = ""
    if state == "good":
        await _enter(world, key, ring)
        return
    with pytest.raises(Unauthenticated) as refusal:
        await _enter(world, key, ring)
    assert refusal.value.message == "invalid API key"
    alerts = [entry for entry in world.logged.entries if "no longer valid" in entry["event"]]
    assert bool(alerts) == (state in ("revoked", "expired", "of a deleted team"))


async def test_a_revoked_key_is_refused_by_another_process_as_well(world: World) -> None:
    key_id, key = await _token(world)
    there, ring = world.start(), KeyRing()
    await ring.authenticate(there, key, via="test")
    await world.call("token_revoke", tokenId=key_id)
    with pytest.raises(Unauthenticated):
        await ring.authenticate(there, key, via="test")


async def test_the_stored_role_counts_and_not_the_one_in_the_key(world: World) -> None:
    _, key = await _token(world, role="viewer")
    assert (await _enter(world, key)).role is Role.VIEWER
    assert "_viewer_" in key
    forged = key.replace("_viewer_", "_owner_")
    with pytest.raises(Unauthenticated):
        await _enter(world, forged)


async def test_too_many_wrong_keys_from_one_address_are_slowed_down_and_others_are_not(world: World) -> None:
    _, key = await _token(world)
    allowed = world.settings.server.failed_logins_per_minute
    for _ in range(allowed):
        with pytest.raises(Unauthenticated):
            await _enter(world, "wrong", source="192.0.2.1")
    with pytest.raises(RateLimited) as refusal:
        await _enter(world, "wrong", source="192.0.2.1")
    assert refusal.value.detail["retryAfter"] >= 1
    with pytest.raises(Unauthenticated):
        await _enter(world, "wrong", source="192.0.2.2")
    await _enter(world, key, source="192.0.2.1")


async def test_a_key_is_shown_once_and_kept_as_a_hash(world: World) -> None:
    _, key = await _token(world)
    for page in (await world.call("token_list"), await world.call("audit_list", limit=200)):
        assert key not in str(page)
    assert key not in (world.settings.registry / "api-keys.json").read_text(encoding="utf-8")
    assert all(key not in path.read_text(encoding="utf-8") for path in world.settings.registry.rglob("*.jsonl"))


async def test_a_rotated_key_works_a_week_longer_next_to_the_new_one(world: World) -> None:
    key_id, old = await _token(world, expiresIn="90d", scopes=["project:shop"])
    new = (await world.call("token_rotate", tokenId=key_id))["token"]
    assert new["scopes"] == ["project:shop"]
    assert (await _enter(world, old)).key_id == key_id
    assert (await _enter(world, new["key"])).key_id == new["id"]
    world.clock.forward(days=7)
    with pytest.raises(Unauthenticated):
        await _enter(world, old)
    await _enter(world, new["key"])
    await world.refused("conflict", "token_rotate", tokenId=key_id)


async def test_a_key_that_is_revoked_while_it_is_rotated_stays_revoked(world: World) -> None:
    for _ in range(5):
        key_id, old = await _token(world)
        await asyncio.gather(
            _end(world, "token_rotate", OWNER, {"tokenId": key_id}),
            _end(world, "token_revoke", OWNER, {"tokenId": key_id}),
        )
        with pytest.raises(Unauthenticated):
            await _enter(world, old)


async def test_a_member_who_leaves_takes_every_key_along_also_a_rotated_one(world: World) -> None:
    invited = await world.call("member_invite", name="Kim", role="member")
    member = invited["member"]
    first = invited["apiKey"]
    second = (await world.call("token_rotate", tokenId=member["keyId"]))["token"]
    third = (await world.call("token_rotate", tokenId=second["id"]))["token"]
    await world.call("member_remove", memberId=member["id"])
    for key in (first, second["key"], third["key"]):
        with pytest.raises(Unauthenticated):
            await _enter(world, key)
    assert (await world.call("member_list"))["total"] == 0
    await world.refused("not_found", "member_remove", memberId=member["id"])


async def test_many_invitations_at_once_lose_nobody(world: World) -> None:
    await bounded(asyncio.gather(*(world.call("member_invite", name=f"m{number}") for number in range(12))))
    assert (await world.call("member_list"))["total"] == 12
    assert (await world.call("team_get"))["members"] == 12


@pytest.mark.parametrize("life", ["0d", "731d", "-1d", "1w", "", "1 d", "99999d", "٣d"])
async def test_a_life_that_is_none_is_refused(world: World, life: str) -> None:
    await world.refused("invalid_request", "token_create", name="x", role="viewer", expiresIn=life)


@pytest.mark.parametrize(
    ("life", "lasts"), [("90d", timedelta(days=90)), ("12h", timedelta(hours=12)), ("7", timedelta(days=7))]
)
async def test_a_key_lives_as_long_as_it_was_told_to(world: World, life: str, lasts: timedelta) -> None:
    made = (await world.call("token_create", name="x", role="viewer", expiresIn=life))["token"]
    assert made["expiresAt"] == utc_text(world.clock.now() + lasts)


@pytest.mark.parametrize("scope", ["", "project", "team:acme", "source:nowhere", "project:" + "x" * 200])
async def test_a_scope_that_is_none_is_refused(world: World, scope: str) -> None:
    await world.refused("invalid_request", "token_create", name="x", role="viewer", scopes=[scope])


async def test_a_damaged_key_record_is_no_ones_key_and_said_plainly(world: World) -> None:
    _, key = await _token(world)
    stored = await world.services.store.get("api-keys")
    assert stored is not None
    bad = {"id": "key_bad", "teamId": "default", "role": "emperor"}
    broken = {**stored.doc, "keys": {**stored.doc["keys"], "key_bad": bad}}
    await world.services.store.commit([Change("api-keys", broken, stored.version)])
    with pytest.raises(RegistryDamaged) as refusal:
        await _enter(world, key)
    assert "key_bad" in refusal.value.message
    await world.refused("registry_damaged", "token_revoke", tokenId="key_bad")
