"""Who may do what: every operation, role and team; scopes; keys in every state; teams, members and tokens."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from codeb_mcp.model.access import Principal, Reach, Role
from codeb_mcp.model.errors import CodebError, RateLimited, RegistryDamaged, Unauthenticated
from codeb_mcp.operations.catalog import Effect, Operation, load_all
from codeb_mcp.operations.invoke import may
from codeb_mcp.operations.keys import KeyRing
from tests.unit.operations.world import OWNER, World, bounded, principal

CATALOG = load_all()
ROLES = {
    "viewer": {"slot_status", "slot_list", "team_list", "team_get", "member_list", "audit_list", "project_get", "project_list",
               "operation_get", "operation_list", "logs_get", "health_check", "registry_check", "port_list"},
    "member": {"deploy", "promote", "rollback", "project_create", "project_update", "operation_resume", "operation_cancel"},
    "admin": {"slot_cleanup", "team_settings", "member_invite", "member_remove", "token_create", "token_revoke", "token_list",
              "token_rotate", "project_delete", "audit_verify", "registry_repair"},
    "owner": {"team_create", "team_delete"},
}  # fmt: skip
ACME = principal(Role.OWNER, "acme")
ARGUMENTS: dict[str, dict[str, Any]] = {
    "deploy": {"image": "registry.test/shop:v1"}, "project_delete": {"confirm": "shop"}, "project_create": {},
    "token_create": {"name": "x", "role": "viewer"}, "token_revoke": {"tokenId": "key_x"}, "token_rotate": {"tokenId": "key_x"},
    "member_invite": {"name": "x"}, "member_remove": {"memberId": "mem_x"}, "team_create": {"teamId": "new", "name": "New"},
    "team_delete": {"confirm": "acme"}, "operation_get": {"operationId": "op_x"}, "operation_resume": {"operationId": "op_x"},
    "operation_cancel": {"operationId": "op_x"}, "registry_repair": {"driftIds": ["drift_x"]},
}  # fmt: skip


def _arguments(operation: Operation, *, project: str = "shop", team: str = "acme") -> dict[str, Any]:
    fields = {field.alias or name for name, field in operation.request.model_fields.items()}
    named = {"projectName": project} if "projectName" in fields else {}
    named |= {"teamId": team} if "teamId" in fields and operation.name != "team_create" else {}
    return named | ARGUMENTS.get(operation.name, {})


async def _end(world: World, tool: str, caller: Principal, arguments: dict[str, Any]) -> str:
    try:
        await world.call(tool, caller, **arguments)
    except CodebError as error:
        return error.code
    return "ok"


def test_each_operation_asks_for_the_role_of_the_table() -> None:
    asked = {name: operation.role.value for name, operation in CATALOG.items()}
    assert asked == {name: role for role, names in ROLES.items() for name in names if name in CATALOG}


@pytest.mark.parametrize("name", CATALOG)
async def test_a_role_below_is_refused_and_the_others_are_not(world: World, name: str) -> None:
    operation = CATALOG[name]
    await world.call("team_create", teamId="acme", name="Acme")
    await world.project("shop", caller=ACME)
    for role in Role:
        caller = principal(role, "acme", platform=operation.reach is Reach.PLATFORM)
        end = await _end(world, name, caller, _arguments(operation))
        if role.covers(operation.role):
            assert end != "forbidden", role
        else:
            assert end == "forbidden", role


@pytest.mark.parametrize("name", [name for name, one in CATALOG.items() if one.reach is not Reach.PLATFORM])
async def test_another_teams_things_are_out_of_reach_for_every_role(world: World, name: str) -> None:
    operation = CATALOG[name]
    await world.call("team_create", teamId="acme", name="Acme")
    await world.project("shop", caller=ACME)
    arguments = _arguments(operation)
    if "projectName" not in arguments and "teamId" not in arguments:
        return
    for role in Role:
        end = await _end(world, name, principal(role, "default", platform=False), arguments)
        taken = {"project_create": {"conflict"}}.get(name, set())
        assert end in {"forbidden", "not_found"} | taken, (role, end)


@pytest.mark.parametrize("name", [name for name, one in CATALOG.items() if one.reach is Reach.PLATFORM])
def test_only_the_platforms_team_runs_the_platform(name: str) -> None:
    assert not may(CATALOG[name], principal(Role.OWNER, "acme"))
    assert may(CATALOG[name], OWNER)


@pytest.mark.parametrize(
    ("scopes", "allowed"),
    [
        (("tool:slot_*",), {"slot_status", "slot_list", "slot_cleanup"}),
        (("tool:deploy", "tool:promote"), {"deploy", "promote"}),
        (("source:192.0.2.0/24",), set()),
    ],
)
def test_a_tool_scope_leaves_only_these_tools(scopes: tuple[str, ...], allowed: set[str]) -> None:
    caller = principal(Role.OWNER, "default", *scopes)
    assert {name for name, one in CATALOG.items() if may(one, caller)} == allowed


# ── scopes ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def _two_projects(world: World) -> None:
    await world.project("shop", "production", "staging")
    await world.project("blog", "production", "staging")


async def test_a_key_of_one_project_sees_and_touches_only_it(world: World) -> None:
    await _two_projects(world)
    await world.live("v1", "blog")
    scoped = principal(Role.OWNER, "default", "project:shop")
    await world.call("slot_status", scoped, projectName="shop")
    for tool in ("slot_status", "promote", "rollback", "project_get", "logs_get", "health_check"):
        await world.refused("forbidden", tool, scoped, projectName="blog")
    await world.refused("forbidden", "deploy", scoped, projectName="blog", image="a/b:1")
    await world.refused("forbidden", "project_create", scoped, projectName="new")
    assert {row["projectName"] for row in (await world.call("slot_list", scoped))["data"]} == {"shop"}
    assert {row["projectName"] for row in (await world.call("project_list", scoped))["data"]} == {"shop"}
    assert (await world.call("operation_list", scoped))["total"] == 0
    await world.refused("forbidden", "audit_list", scoped)
    rows = (await world.call("audit_list", scoped, limit=200, projectName="shop"))["data"]
    assert {row["project"] for row in rows} == {"shop"}


async def test_a_key_of_one_project_neither_sees_nor_mends_drift_of_another(world: World) -> None:
    await _two_projects(world)
    await world.live("v1", "blog")
    world.edge.flags["blog-production"] = None
    scoped = principal(Role.OWNER, "default", "project:shop")
    assert (await world.call("registry_check", scoped))["total"] == 0
    [found] = await world.drift()
    answer = await world.call("registry_repair", scoped, driftIds=[found["id"]])
    assert answer["repaired"] == 0
    assert world.edge.flags["blog-production"] is None


async def test_a_key_of_one_environment_changes_nothing_of_the_whole_project(world: World) -> None:
    await _two_projects(world)
    staging = principal(Role.OWNER, "default", "environment:staging")
    image = world.image("v1")
    await world.call("deploy", staging, projectName="shop", environment="staging", image=image)
    await world.refused("forbidden", "deploy", staging, projectName="shop", environment="production", image=image)
    await world.refused("forbidden", "project_delete", staging, projectName="shop", confirm="shop")
    await world.refused("forbidden", "project_update", staging, projectName="shop", keep=9)
    await world.refused("forbidden", "project_create", staging, projectName="shop", environments=["preview"])
    await world.refused(
        "forbidden", "project_update", staging, projectName="shop", environment="production", graceHours=1
    )
    assert {row["environment"] for row in (await world.call("slot_list", staging))["data"]} == {"staging"}
    world.edge.configured.pop("shop-production")
    [found] = await world.drift()
    assert (await world.call("registry_repair", staging, driftIds=[found["id"]]))["repaired"] == 0


async def test_a_scoped_owner_does_not_found_teams_or_end_its_own(world: World) -> None:
    scoped = principal(Role.OWNER, "default", "project:shop")
    await world.refused("forbidden", "team_create", scoped, teamId="acme", name="Acme")
    await world.call("team_create", teamId="acme", name="Acme")
    await world.refused("forbidden", "team_delete", principal(Role.OWNER, "acme", "project:shop"), confirm="acme")


@pytest.mark.parametrize(
    ("own", "asked", "given"),
    [
        ((), [], []),
        ((), ["project:shop"], ["project:shop"]),
        (("project:shop",), [], ["project:shop"]),
        (("project:shop",), ["project:shop"], ["project:shop"]),
        (("project:shop",), ["environment:staging"], ["environment:staging", "project:shop"]),
        (("project:shop", "project:blog"), ["project:blog"], ["project:blog"]),
        (("project:shop",), ["project:blog"], None),
        (("project:shop",), ["project:*"], None),
        (("project:shop",), ["project:shop", "project:blog"], None),
        (("tool:slot_*",), ["tool:*"], None),
        (("source:192.0.2.0/24",), ["source:0.0.0.0/0"], None),
        (("environment:staging",), ["environment:production"], None),
    ],
)
async def test_a_scoped_key_cannot_make_a_wider_one(
    world: World, own: tuple[str, ...], asked: list[str], given: list[str] | None
) -> None:
    caller = Principal("key_1", "x", "default", Role.ADMIN, own, source="192.0.2.1")
    if any(scope.startswith("tool:") for scope in own):
        caller = Principal("key_1", "x", "default", Role.ADMIN, (*own, "tool:token_create"), source="192.0.2.1")
    if given is None:
        await world.refused("forbidden", "token_create", caller, name="x", role="viewer", scopes=asked)
        return
    token = (await world.call("token_create", caller, name="x", role="viewer", scopes=asked))["token"]
    assert token["scopes"] == given
    member = await world.call("member_invite", caller, name="y", role="viewer")
    listed = (await world.call("token_list", OWNER))["data"]
    made = next(one for one in listed if one["id"] == member["member"]["keyId"])
    assert set(made["scopes"]) >= set(own)


# ── teams, members, tokens ──────────────────────────────────────────────────────────────────────────────────────


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
    assert made["expiresAt"] == (world.clock.now() + lasts).isoformat()


@pytest.mark.parametrize("scope", ["", "project", "team:acme", "source:nowhere", "project:" + "x" * 200])
async def test_a_scope_that_is_none_is_refused(world: World, scope: str) -> None:
    await world.refused("invalid_request", "token_create", name="x", role="viewer", scopes=[scope])


async def test_a_damaged_key_record_is_no_ones_key_and_said_plainly(world: World) -> None:
    _, key = await _token(world)
    stored = await world.services.store.get("api-keys")
    assert stored is not None
    from codeb_mcp.registry.store import Change

    bad = {"id": "key_bad", "teamId": "default", "role": "emperor"}
    broken = {**stored.doc, "keys": {**stored.doc["keys"], "key_bad": bad}}
    await world.services.store.commit([Change("api-keys", broken, stored.version)])
    with pytest.raises(RegistryDamaged) as refusal:
        await _enter(world, key)
    assert "key_bad" in refusal.value.message
    await world.refused("registry_damaged", "token_revoke", tokenId="key_bad")


def test_every_operation_has_an_effect_that_fits_its_name() -> None:
    for name, operation in CATALOG.items():
        reads = name.endswith(("_get", "_list", "_status", "_check", "_verify"))
        assert (operation.effect is Effect.READ) == reads, name
        assert (operation.effect is Effect.DESTROY) == name.endswith(
            ("_delete", "_cleanup", "_revoke", "_remove", "_repair")
        ) or name == "registry_repair"
