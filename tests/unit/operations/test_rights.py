"""Who may do what: every operation, role and team; scopes; keys in every state; teams, members and tokens."""

from __future__ import annotations

from typing import Any

import pytest

from codeb_mcp.model.access import Principal, Reach, Role
from codeb_mcp.model.errors import CodebError
from codeb_mcp.operations.catalog import Effect, Operation, load_all
from codeb_mcp.operations.invoke import may
from tests.unit.operations.world import OWNER, World, principal

CATALOG = load_all()
ROLES = {
    "viewer": {"domain_verify", "domain_list", "ssl_status", "workflow_scan", "slot_status", "slot_list", "team_list", "team_get", "member_list", "audit_list", "project_get", "project_list",
               "operation_get", "operation_list", "logs_get", "health_check", "registry_check", "port_list", "server_list", "server_check", "preview_list",
               "database_list", "env_get", "env_diff", "env_scan", "env_backup_list", "env_verify"},
    "member": {"database_create", "streaming_setup", "domain_setup", "domain_delete", "deploy", "promote", "rollback", "project_create", "project_update", "operation_resume", "operation_cancel",
               "preview_create", "preview_delete", "workflow_init", "env_set", "env_unset", "env_sync"},
    "admin": {"project_place", "adopt", "streaming_remove", "database_delete", "database_rotate", "env_restore", "server_add", "server_remove", "server_setup", "slot_cleanup", "team_settings", "member_invite", "member_remove", "token_create", "token_revoke", "token_list",
              "token_rotate", "project_delete", "audit_verify", "registry_repair"},
    "owner": {"team_create", "team_delete"},
}  # fmt: skip
ACME = principal(Role.OWNER, "acme")
ARGUMENTS: dict[str, dict[str, Any]] = {
    **{name: {"domain": "www.example.com"} for name in ("domain_setup", "domain_delete", "domain_verify", "ssl_status")},
    "deploy": {"image": "registry.test/shop:v1"}, "project_delete": {"confirm": "shop"}, "project_create": {}, "project_place": {"servers": []},
    "token_create": {"name": "x", "role": "viewer"}, "token_revoke": {"tokenId": "key_x"}, "token_rotate": {"tokenId": "key_x"},
    "member_invite": {"name": "x"}, "member_remove": {"memberId": "mem_x"}, "team_create": {"teamId": "new", "name": "New"},
    "team_delete": {"confirm": "acme"}, "operation_get": {"operationId": "op_x"}, "operation_resume": {"operationId": "op_x"},
    "env_set": {"values": {"A": "1"}}, "env_unset": {"names": ["A"]}, "env_restore": {"to": "master"}, "env_diff": {"contract": True},
    "workflow_init": {"type": "go"}, "workflow_scan": {"files": {"Dockerfile": "FROM scratch"}},
    "server_add": {"serverKey": "here", "host": "127.0.0.1", "role": "backup", "connection": "local"},
    **{name: {"environment": "production", "kind": "postgres"} for name in ("database_create", "database_rotate")},
    "database_delete": {"environment": "production", "kind": "postgres", "confirm": "shop"},
    "streaming_setup": {"environment": "production"}, "streaming_remove": {"environment": "production", "confirm": "shop"},
    "server_remove": {"serverKey": "nowhere", "confirm": "nowhere"}, "server_check": {"serverKey": "nowhere"}, "server_setup": {"serverKey": "nowhere"},
    "preview_create": {"pullRequest": 12}, "preview_delete": {"pullRequest": 12}, "operation_cancel": {"operationId": "op_x"}, "registry_repair": {"driftIds": ["drift_x"]},
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
        # What is written for a project of that name is the same whoever has it; nothing of it is told (see test_workflow).
        taken = {"project_create": {"conflict"}, "workflow_init": {"ok"}}.get(name, set())
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


def test_every_operation_has_an_effect_that_fits_its_name() -> None:
    for name, operation in CATALOG.items():
        reads = name.endswith(("_get", "_list", "_status", "_check", "_verify", "_scan", "_diff"))
        assert (operation.effect is Effect.READ) == reads, name
        assert (operation.effect is Effect.DESTROY) == name.endswith(
            ("_delete", "_cleanup", "_revoke", "_remove", "_repair")
        ) or name == "registry_repair"
