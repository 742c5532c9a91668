"""The newest versions of `api-keys` are lost: keys that these had ended stay dead, all others go on working."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from codeb_mcp.model.access import Role
from codeb_mcp.model.errors import Unauthenticated
from codeb_mcp.operations.keys import KeyRing, records_of
from codeb_mcp.operations.rebuild import Rebuilt, rebuild
from codeb_mcp.registry.audit import AuditRecord
from codeb_mcp.registry.store import Change
from tests.unit.operations.world import OWNER, World, bounded, principal

ACME = principal(Role.OWNER, "acme")


async def _lives(world: World, key: str) -> bool:
    """Whether somebody can come in with the key."""
    try:
        await KeyRing().authenticate(world.services, key, via="test")
    except Unauthenticated:
        return False
    return True


async def _member(world: World, name: str, caller: Any = OWNER, **more: Any) -> tuple[str, str]:
    """Id and key of a new member."""
    made = await world.call("member_invite", caller, name=name, **more)
    world.clock.forward(seconds=1)
    return made["member"]["id"], made["apiKey"]


async def _token(world: World, caller: Any = OWNER, **more: Any) -> tuple[str, str]:
    """Id and text of a new key."""
    made = await world.call("token_create", caller, **{"name": "ci", "role": "member"} | more)
    world.clock.forward(seconds=1)
    return made["token"]["id"], made["token"]["key"]


async def _acme(world: World) -> str:
    """Another team; answers its owner's key."""
    made = await world.call("team_create", teamId="acme", name="Acme")
    world.clock.forward(seconds=1)
    return str(made["ownerKey"])


def _lose(world: World, versions: int = 1) -> None:
    """The document and its newest kept versions cannot be read any more."""
    kept = world.settings.registry / ".generations/api-keys"
    for path in sorted(kept.glob("*.json"), key=lambda path: -int(path.stem))[:versions]:
        path.write_bytes(b"{")
    os.truncate(world.settings.registry / "api-keys.json", 100)


def _vanish(world: World, versions: int = 1) -> None:
    """The document and its newest kept versions are gone without a trace of their numbers."""
    kept = world.settings.registry / ".generations/api-keys"
    for path in sorted(kept.glob("*.json"), key=lambda path: -int(path.stem))[:versions]:
        path.unlink()
    (world.settings.registry / "api-keys.json").unlink()


async def _rebuilt(world: World) -> Rebuilt:
    """What is done with `api-keys`; the proposal says the same."""
    world.restart()
    proposed = {one.key: one for one in await rebuild(world.services, apply=False)}
    done = {one.key: one for one in await rebuild(world.services, apply=True)}
    assert done["api-keys"] == proposed["api-keys"]
    assert await rebuild(world.services, apply=True) == []
    return done["api-keys"]


@pytest.mark.parametrize("lose", [_lose, _vanish], ids=["unreadable", "gone without a trace"])
async def test_a_removed_members_key_does_not_come_back(world: World, lose: Callable[[World], None]) -> None:
    gone, dead = await _member(world, "anna")
    _, alive = await _member(world, "ben")
    _, token = await _token(world)
    await world.call("member_remove", memberId=gone)
    lose(world)
    done = await _rebuilt(world)
    assert done.action == "older"
    assert not await _lives(world, dead)
    assert await _lives(world, alive)
    assert await _lives(world, token)


@pytest.mark.parametrize("lose", [_lose, _vanish], ids=["unreadable", "gone without a trace"])
async def test_a_deleted_teams_keys_do_not_come_back(world: World, lose: Callable[[World], None]) -> None:
    dead = [await _acme(world), (await _member(world, "anna", ACME))[1], (await _token(world, ACME))[1]]
    _, alive = await _token(world)
    await world.call("team_delete", ACME, confirm="acme")
    lose(world)
    assert (await _rebuilt(world)).action == "older"
    assert [await _lives(world, key) for key in dead] == [False] * 3
    assert await _lives(world, alive)


@pytest.mark.parametrize("lose", [_lose, _vanish], ids=["unreadable", "gone without a trace"])
async def test_everything_that_several_lost_versions_had_ended_stays_ended(
    world: World, lose: Callable[[World, int], None]
) -> None:
    owner = await _acme(world)
    member_id, member = await _member(world, "anna")
    token_id, token = await _token(world)
    _, alive = await _token(world, name="other")
    await world.call("member_remove", memberId=member_id)
    await world.call("token_revoke", tokenId=token_id)
    await world.call("team_delete", ACME, confirm="acme")
    lose(world, 3)
    await _rebuilt(world)
    assert [await _lives(world, key) for key in (owner, member, token, alive)] == [False, False, False, True]


async def test_a_removed_member_whom_no_kept_version_names_any_more_stays_out(world: World) -> None:
    gone, dead = await _member(world, "anna")
    _, alive = await _member(world, "ben")
    rotating, _ = await _member(world, "cleo")
    _, token = await _token(world)
    stored = await world.services.store.get("teams")
    assert stored is not None
    key_id = stored.doc["teams"]["default"]["members"][rotating]["keyId"]
    rotated = (await world.call("token_rotate", tokenId=key_id))["token"]["key"]
    world.clock.forward(seconds=1)
    owner = await _acme(world)
    await world.call("member_remove", memberId=gone)
    for number in range(12):
        await world.project(f"p{number}")
    assert all(gone not in str(doc) for doc in await world.services.store.kept("teams"))  # type: ignore[attr-defined]
    _lose(world)
    await _rebuilt(world)
    assert not await _lives(world, dead)
    for key in (alive, rotated, token, owner):
        assert await _lives(world, key)
    stored = await world.services.store.get("api-keys")
    assert any(
        record.created_by == "init" and record.revoked_at is None
        for record in records_of(stored.doc if stored else None)
    )


async def test_a_removed_member_whom_nobody_can_name_takes_all_keys_along_that_nobody_can_tell(world: World) -> None:
    gone, dead = await _member(world, "anna")
    _, alive = await _member(world, "ben")
    for path in (world.settings.registry / "audit").glob("*"):
        path.unlink()  # moved away to begin a new trail
    world.services = world.start()
    _, token = await _token(world)
    await world.call("member_remove", memberId=gone)
    for number in range(12):
        await world.project(f"p{number}")
    _lose(world)
    await _rebuilt(world)
    assert not await _lives(world, dead)
    assert await _lives(world, alive)
    assert await _lives(world, token)


async def test_keys_that_a_removed_members_key_was_rotated_into_stay_dead_too(world: World) -> None:
    gone, first = await _member(world, "anna")
    stored = await world.services.store.get("teams")
    assert stored is not None
    key_id = stored.doc["teams"]["default"]["members"][gone]["keyId"]
    second = (await world.call("token_rotate", tokenId=key_id))["token"]["key"]
    await world.call("member_remove", memberId=gone)
    _lose(world)
    await _rebuilt(world)
    assert [await _lives(world, key) for key in (first, second)] == [False, False]


async def test_a_key_that_was_rotated_ends_when_its_rotation_said(world: World) -> None:
    key_id, old = await _token(world)
    await world.call("token_rotate", tokenId=key_id)
    _lose(world)
    await _rebuilt(world)
    assert await _lives(world, old)
    world.clock.forward(days=8)
    assert not await _lives(world, old)


async def test_a_team_that_was_made_anew_under_the_same_name_keeps_its_new_keys(world: World) -> None:
    first = await _acme(world)
    await world.call("team_delete", ACME, confirm="acme")
    world.clock.forward(seconds=1)
    second = await _acme(world)
    third = (await _token(world, ACME))[1]
    await _token(world, name="lost")
    _lose(world)
    await _rebuilt(world)
    assert [await _lives(world, key) for key in (first, second, third)] == [False, True, True]


async def _caller_gone(world: World, call: Callable[[], Awaitable[Any]], *, before: bool) -> None:
    """The caller goes away just before or just after the registry is changed."""
    store = world.services.store
    commit, reached = store.commit, asyncio.Event()

    async def slow(changes: Sequence[Change], **more: Any) -> Any:
        if not before:
            await commit(changes, **more)
        reached.set()
        await asyncio.Event().wait()

    store.commit = slow  # type: ignore[method-assign]
    try:
        going = asyncio.ensure_future(call())
        await bounded(reached.wait())
        going.cancel()
        await asyncio.gather(going, return_exceptions=True)
    finally:
        store.commit = commit  # type: ignore[method-assign]
    world.clock.forward(seconds=1)


@pytest.mark.parametrize("before", [False, True])
async def test_a_caller_who_went_away_has_removed_a_member_exactly_if_the_registry_says_so(
    world: World, before: bool
) -> None:
    member_id, member = await _member(world, "anna")
    owner = await _acme(world)
    if before:
        await _caller_gone(world, lambda: world.call("member_remove", memberId=member_id), before=True)
        await _caller_gone(world, lambda: world.call("team_delete", ACME, confirm="acme"), before=True)
        await _token(world)
        _lose(world)
    else:
        await _caller_gone(world, lambda: world.call("member_remove", memberId=member_id), before=False)
        await _caller_gone(world, lambda: world.call("team_delete", ACME, confirm="acme"), before=False)
        _lose(world, 2)
    rows, _ = await world.services.registry.audit.page(team=None, limit=9, offset=0, tool="member_remove")
    assert rows[0]["outcome"] == "caller_gone"
    await _rebuilt(world)
    assert [await _lives(world, key) for key in (member, owner)] == [before, before]


async def test_a_revocation_whose_caller_went_away_is_done_again(world: World) -> None:
    key_id, key = await _token(world)
    await _caller_gone(world, lambda: world.call("token_revoke", tokenId=key_id), before=False)
    _lose(world)
    await _rebuilt(world)
    assert not await _lives(world, key)


async def _recorded(world: World, caller: Any, tool: str, outcome: str, **arguments: Any) -> None:
    """A record as a call would have left it."""
    at = world.clock.now()
    record = AuditRecord(at, caller.name, caller.key_id, caller.team, caller.role.value, tool, outcome)
    await world.services.trail.write(lambda: replace(record, arguments=arguments), durable=True)
    world.clock.forward(seconds=1)


@pytest.mark.parametrize("outcome", ["caller_gone", "forbidden", "not_found", "conflict", "invalid_request"])
async def test_what_was_refused_or_was_not_the_callers_to_end_ends_nothing(world: World, outcome: str) -> None:
    owner = await _acme(world)
    member_id, member = await _member(world, "anna")
    owner_id, other = await _token(world, role="owner")
    small = principal(Role.ADMIN)
    for caller, tool, arguments in (
        (ACME, "token_revoke", {"tokenId": owner_id}),
        (ACME, "member_remove", {"memberId": member_id}),
        (ACME, "member_remove", {"memberId": "mem_unheard_of"}),
        (small, "token_revoke", {"tokenId": owner_id}),
        (OWNER, "team_delete", {"teamId": "default", "confirm": "default"}),
        (ACME, "team_delete", {"confirm": "acme"}),
    ):
        await _recorded(world, caller, tool, outcome, **arguments)
    await _token(world)
    _lose(world)
    await _rebuilt(world)
    for key in (owner, member, other):
        assert await _lives(world, key)


async def test_a_registry_that_lost_nothing_ends_no_key(world: World) -> None:
    member_id, dead = await _member(world, "anna")
    _, alive = await _member(world, "ben")
    await world.call("member_remove", memberId=member_id)
    for number in range(12):
        await world.project(f"p{number}")
    os.truncate(world.settings.registry / "api-keys.json", 100)
    done = await _rebuilt(world)
    assert done.action == "restored"
    assert "revoked again" not in done.detail
    assert await _lives(world, alive)
    assert not await _lives(world, dead)


async def test_a_trail_that_is_damaged_itself_is_said_to_be(world: World) -> None:
    member_id, _ = await _member(world, "anna")
    token_id, token = await _token(world)
    await world.call("member_remove", memberId=member_id)
    await world.call("token_revoke", tokenId=token_id)
    [path] = (world.settings.registry / "audit").glob("*.jsonl")
    lines = [line for line in path.read_bytes().splitlines(keepends=True) if b'"member_remove"' not in line]
    path.write_bytes(b"".join(lines))
    _lose(world, 2)
    done = await _rebuilt(world)
    assert "THE AUDIT TRAIL IS DAMAGED" in done.detail
    assert "review these keys" in done.detail
    assert not await _lives(world, token)


async def test_what_is_done_again_counts_from_when_it_was_done_first(world: World) -> None:
    member_id, _ = await _member(world, "anna")
    world.clock.forward(hours=1)
    removed = world.clock.now()
    await world.call("member_remove", memberId=member_id)
    world.clock.forward(hours=5)
    _lose(world)
    await _rebuilt(world)
    stored = await world.services.store.get("api-keys")
    [record] = [one for one in records_of(stored.doc if stored else None) if one.revoked_at is not None]
    assert record.revoked_at is not None
    assert abs(record.revoked_at - removed) < timedelta(seconds=1)
