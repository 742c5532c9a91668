"""The rights table: every operation, four roles, three teams, scopes and states of a key, over HTTP and MCP.

What is expected comes from the declarations and the rules written down here, not from the code that decides.
"""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from codeb_mcp.model.access import Reach, Role
from codeb_mcp.operations.catalog import CATALOG, load_all
from tests.faces.story import LIVE
from tests.faces.ways import by_api, in_process, saying
from tests.faces.world import World, open_world, serving

load_all()
LEVEL = {"viewer": 1, "member": 2, "admin": 3, "owner": 4}
REFUSED = {"forbidden", "unauthenticated"}
SUBJECT: dict[str, Any] = {
    "operationId": "op_unknown",
    "memberId": "mem_unknown",
    "tokenId": "key_unknown",
    "driftIds": ["unknown"],
    "confirm": "no-such-thing",
    "role": "viewer",
    "name": "somebody",
    "teamId": "",
    "values": {"LOG_LEVEL": "debug"},
    "names": ["NOT_THERE"],
    "to": "20200101T000000.000000Z",
    "type": "go",
    "files": {"Dockerfile": "FROM scratch"},
    "pullRequest": 404,
    "serverKey": "nowhere",
    "servers": ["nowhere"],
    "domain": "www.example.com",
    "host": "127.0.0.1",
    "kind": "postgres",
    "connection": "local",
}
"""Arguments that fit and lead nowhere: a call that is allowed ends with its own error, not with a refusal."""


def arguments(tool: str, team: str) -> dict[str, Any]:
    """Arguments for a call about `team` and its project."""
    known = {field.alias or name for name, field in CATALOG[tool].request.model_fields.items()}
    said = {name: value for name, value in {**SUBJECT, **LIVE}.items() if name in known}
    if "teamId" in said:
        said["teamId"] = "new-team" if tool == "team_create" else team
    if tool == "project_create":
        said["projectName"] = "shop"
    return said


def expected(tool: str, role: str, *, own: bool, platform: bool) -> bool:
    """Whether a key may call the tool about its own or another team: by role, by team, and by whose the installation is."""
    operation = CATALOG[tool]
    if LEVEL[role] < LEVEL[operation.role.value]:
        return False
    if operation.reach is Reach.PLATFORM:
        return platform
    about_team = "team_id" in operation.request.model_fields
    return own or not about_team


async def test_the_table_of_roles_and_teams(shop: World) -> None:
    tried = 0
    for tool in CATALOG:
        for caller in ("acme", "other", "default"):
            for role in LEVEL:
                async with in_process(shop, shop.keys[caller][role], "auto") as client:
                    outcome = await saying(client)(tool, arguments(tool, "acme"))
                allowed = expected(tool, role, own=caller == "acme", platform=caller == "default")
                assert (outcome.code not in REFUSED) is allowed, (tool, caller, role, outcome)
                project = CATALOG[tool].reach is Reach.PROJECT
                if allowed and project and caller != "acme":
                    assert outcome.code == "not_found", (tool, caller, role, outcome)
                    assert "your team" in outcome.message
                tried += 1
    assert tried == len(CATALOG) * 12


async def test_what_another_team_is_told_does_not_depend_on_whether_it_exists(shop: World) -> None:
    async with in_process(shop, shop.keys["other"]["owner"], "auto") as client:
        say = saying(client)
        for tool in CATALOG:
            if CATALOG[tool].reach is not Reach.PROJECT:
                continue
            there = await say(tool, arguments(tool, "acme"))
            nowhere = await say(tool, {**arguments(tool, "acme"), "projectName": "ghost"})
            assert there.code == nowhere.code == "not_found"
            assert there.message.replace("shop", "ghost") == nowhere.message


async def test_another_teams_run_is_not_found(shop: World) -> None:
    run = (await shop.call("operation_list", shop.keys["acme"]["viewer"]))["data"][0]["operationId"]
    for team in ("other", "default"):
        async with in_process(shop, shop.keys[team]["owner"], "auto") as client:
            for tool in ("operation_get", "operation_resume", "operation_cancel"):
                outcome = await saying(client)(tool, {"operationId": run})
                assert outcome.code == "not_found", (team, tool, outcome)


SCOPES = [
    (("project:shop",), {**LIVE}, True),
    (("project:sh*",), {**LIVE}, True),
    (("project:other",), {**LIVE}, False),
    (("environment:production",), {**LIVE}, True),
    (("environment:staging",), {**LIVE}, False),
    (("environment:staging",), {"projectName": "shop"}, True),
    (("tool:slot_*",), {**LIVE}, True),
    (("tool:deploy",), {**LIVE}, False),
    (("project:shop", "environment:production", "tool:slot_status"), {**LIVE}, True),
    (("project:shop", "environment:staging"), {**LIVE}, False),
    (("source:127.0.0.0/8",), {**LIVE}, True),
    (("source:192.0.2.0/24",), {**LIVE}, False),
]


@pytest.mark.parametrize(("scopes", "params", "allowed"), SCOPES)
async def test_scopes_narrow_a_key(
    shop: World, scopes: tuple[str, ...], params: dict[str, str], *, allowed: bool
) -> None:
    key = await shop.key("acme", Role.OWNER, scopes=scopes)
    async with serving(shop) as served, by_api(served, key) as say:
        outcome = await say("slot_status", params)
        listed = (await served.http.get("/api/tools", headers={"X-API-Key": key})).json()["tools"]
    assert (outcome.code == "forbidden") is not allowed, outcome
    if scopes[0].startswith(("tool:", "source:")):
        may = {row["name"]: row["allowed"] for row in listed}
        assert may["slot_status"] is allowed


async def test_where_a_call_comes_from_cannot_be_claimed(shop: World) -> None:
    key = await shop.key("acme", Role.OWNER, scopes=("source:192.0.2.0/24",))
    async with serving(shop) as served:
        for header in ("X-Forwarded-For", "X-Real-IP", "Forwarded"):
            reply = await served.tool("slot_status", key, LIVE, headers={header: "192.0.2.7"})
            assert reply.status_code == 403


async def test_lists_of_a_key_that_is_limited_to_a_project_show_only_that(shop: World) -> None:
    await shop.call("project_create", shop.keys["acme"]["member"], projectName="hidden")
    key = await shop.key("acme", Role.OWNER, scopes=("project:shop",))
    async with in_process(shop, key, "auto") as client:
        lists = ("project_list", "slot_list", "operation_list", "registry_check")
        for tool, params in (*((tool, {}) for tool in lists), ("audit_list", {"projectName": "shop"})):
            outcome = await saying(client)(tool, params)
            assert outcome.ok, outcome
            assert "hidden" not in outcome.text, tool
        for uri in ("codeb://registry/ssot",):
            assert "hidden" not in (await client.read_resource(uri)).model_dump_json()
        assert "hidden" not in (await client.list_resources()).model_dump_json()


BROKEN = ["expired", "revoked", "unknown", "bad checksum", "role swapped", "team swapped", "empty", "not a key", "huge"]


async def _broken(world: World, how: str) -> str:
    good = await world.key("acme", Role.VIEWER, life=timedelta(hours=1))
    if how == "expired":
        await world.change_key(good, expiresAt="2020-01-01T00:00:00+00:00")
        return good
    if how == "revoked":
        await world.change_key(good, revokedAt="2020-01-01T00:00:00+00:00")
        return good
    if how == "unknown":
        async with open_world(world.services.settings.root.parent / "elsewhere") as other:
            return other.keys["acme"]["owner"]
    swapped = "A" if good[-1] != "A" else "B"
    return {
        "bad checksum": good[:-1] + swapped,
        "role swapped": good.replace("_viewer_", "_owner_"),
        "team swapped": good.replace("_acme_", "_default_"),
        "empty": "",
        "not a key": "let me in",
        "huge": "codeb_acme_owner_" + "A" * 20_000,
    }[how]


@pytest.mark.parametrize("how", BROKEN)
async def test_a_key_that_is_not_valid_opens_nothing(how: str, tmp_path: Path) -> None:
    async with open_world(tmp_path / "codeb") as world:
        key = await _broken(world, how)
        async with serving(world) as served:
            said = set()
            for path in ("/api", "/api/tools", "/api/audit", "/mcp", "/sse", "/api/logs/stream"):
                reply = await served.http.get(path, headers={"X-API-Key": key})
                assert reply.status_code == 401, (how, path)
                said.add(reply.json()["error"])
            for tool in CATALOG:
                reply = await served.tool(tool, key, arguments(tool, "acme"))
                assert reply.status_code == 401, (how, tool)
                said.add(reply.json()["error"])
            missing = "API key required. Use X-API-Key header."
            assert said == {missing if how == "empty" else "Invalid API key"}


async def test_a_valid_key_opens_what_it_should(world: World) -> None:
    """The counterpart: the same calls with a good key are not 401."""
    async with serving(world) as served:
        for tool in CATALOG:
            reply = await served.tool(tool, world.keys["acme"]["viewer"], arguments(tool, "acme"))
            assert reply.status_code != 401
