"""Answers are short, clean and the same for many projects as for one."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic_core import to_json

from codeb_mcp.model.access import Role
from codeb_mcp.model.errors import CodebError
from codeb_mcp.operations.catalog import ANSWER_LIMIT, Page, load_all
from codeb_mcp.operations.invoke import Call, invoke
from codeb_mcp.registry.store import Change
from tests.unit.operations.world import OWNER, World, principal

HERE = {"projectName": "shop", "environment": "production"}
CATALOG = load_all()
MANY = 500


async def _many(world: World) -> None:
    """500 projects with long names, as they stand in the registry."""
    store = world.services.store
    ssot, teams = await store.get("ssot"), await store.get("teams")
    assert ssot is not None
    assert teams is not None
    names = [f"project-with-a-rather-long-name-{number:08}" for number in range(MANY)]
    projects = {
        name: {"teamId": "default", "ports": {"production": {"blue": 20000 + 2 * number, "green": 20001 + 2 * number}}}
        for number, name in enumerate(names)
    }
    default = {**teams.doc["teams"]["default"], "projects": names}
    changes = [
        Change("ssot", {**ssot.doc, "projects": projects}, ssot.version),
        Change("teams", {**teams.doc, "teams": {"default": default}}, teams.version),
    ]
    for name in names:
        pair = projects[name]["ports"]["production"]  # type: ignore[index]
        slots = {
            "projectName": name, "environment": "production", "blue": {"name": "blue", "port": pair["blue"]},
            "green": {"name": "green", "port": pair["green"]},
        }  # fmt: skip
        changes.append(Change(f"slots/{name}-production", slots, 0))
    await store.commit(changes)


def _size(body: object) -> int:
    """In characters of its JSON."""
    return len(to_json(body).decode())


async def test_no_answer_is_too_long_with_five_hundred_projects(world: World) -> None:
    await _many(world)
    arguments: dict[str, dict[str, Any]] = {
        "team_get": {}, "team_list": {}, "team_settings": {"name": "New"}, "slot_list": {"limit": 200}, "project_list": {"limit": 200},
        "registry_check": {"limit": 200}, "audit_list": {"limit": 200}, "operation_list": {"limit": 200}, "health_check": {},
        "token_list": {"limit": 200}, "member_list": {"limit": 200}, "audit_verify": {}, "port_list": {"limit": 200},
    }  # fmt: skip
    for tool, more in arguments.items():
        if tool not in CATALOG:
            continue
        answer = await invoke(world.services, Call(tool, more, OWNER))
        assert _size(answer.body) <= ANSWER_LIMIT, tool
        if isinstance(answer.result, Page) and answer.result.total > len(answer.result.data):
            assert answer.body["nextOffset"] == len(answer.result.data), tool


@pytest.mark.parametrize("tool", ["slot_list", "project_list", "registry_check"])
async def test_the_pages_of_a_long_list_hold_every_row_once(world: World, tool: str) -> None:
    await _many(world)
    seen: list[str] = []
    offset: int | None = 0
    while offset is not None:
        page = await world.call(tool, limit=200, offset=offset)
        assert page["total"] == MANY
        seen += [row.get("projectName") or row["environment"] for row in page["data"]]
        offset = page.get("nextOffset")
    assert len(seen) == len(set(seen)) == MANY


async def test_a_repair_of_many_differences_answers_briefly(world: World) -> None:
    await _many(world)
    rows = (await world.call("registry_check", limit=100))["data"]
    body = await world.call("registry_repair", driftIds=[row["id"] for row in rows])
    assert body["repaired"] == len(rows)
    assert _size(body) <= ANSWER_LIMIT


@pytest.mark.parametrize("name", CATALOG)
def test_every_field_of_a_request_says_what_it_is_for(name: str) -> None:
    for field, info in CATALOG[name].request.model_fields.items():
        assert info.description, f"{name}.{field}"


@pytest.mark.parametrize("name", CATALOG)
def test_the_wire_is_camel_case(name: str) -> None:
    for model in (CATALOG[name].request, CATALOG[name].result):
        for field, info in model.model_fields.items():
            assert "_" not in (info.alias or field), f"{name}.{field}"


async def test_unknown_parameters_are_refused_by_name_and_the_known_ones_are_listed(world: World) -> None:
    refusal = await world.refused("invalid_request", "deploy", projectName="shop", imge="x", project_name="shop")
    assert {problem["field"] for problem in refusal.detail["fields"]} == {"imge", "project_name"}
    assert "projectName" in refusal.hint


async def test_a_refusal_of_a_hostile_field_name_is_clean(world: World) -> None:
    refusal = await world.refused("invalid_request", "slot_list", **{"a\x1b[31m\u202e\n" + "b" * 3000: 1})
    text = str(refusal.as_dict())
    assert len(text) < 2000
    assert "\x1b" not in refusal.message
    assert "\u202e" not in refusal.message


async def test_the_missing_environment_is_staging_and_the_answer_says_so(world: World) -> None:
    await world.project("shop", "production", "staging")
    answer = await world.call("deploy", projectName="shop", image=world.image("v1"))
    assert answer["environment"] == "staging"
    assert (await world.call("slot_status", projectName="shop"))["environment"] == "staging"


async def test_old_names_lead_to_the_same_operations(world: World) -> None:
    await world.project()
    await world.call("deploy_project", **HERE, image=world.image("v1"))
    assert (await world.call("slot_promote", **HERE))["toSlot"] == "blue"


async def test_the_slot_document_is_that_of_the_guide_with_the_end_of_the_grace_period(world: World) -> None:
    await world.project()
    await world.live("v1")
    await world.live("v2")
    data = (await world.call("slot_status", **HERE))["data"]
    assert {"projectName", "teamId", "environment", "activeSlot", "blue", "green", "lastUpdated"} <= set(data)
    assert data["blue"]["graceExpiresAt"]
    assert not {"lineage", "serial"} & set(data)
    row = (await world.call("slot_list"))["data"][0]
    assert (row["activeSlot"], row["blueState"], row["greenState"]) == ("green", "grace", "active")


async def test_health_of_an_environment_and_of_the_installation(world: World) -> None:
    await world.project()
    await world.live("v1")
    assert (await world.call("health_check", **HERE))["status"] == "healthy"
    world.engine.containers["shop-production-blue"].environment = {"HEALTH": "fail"}
    sick = await world.call("health_check", **HERE)
    assert sick["status"] == "unhealthy"
    assert {part["status"] for part in sick["parts"]} == {"unhealthy", "empty"}
    assert (await world.call("health_check"))["status"] == "healthy"
    world.engine.away = True
    parts = (await world.call("health_check"))["parts"]
    assert {part["name"]: part["status"] for part in parts} == {
        "engine": "unhealthy",
        "proxy": "healthy",
        "registry": "healthy",
        "traffic flags": "healthy",
    }


# ── logs ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def _logged(world: World, *lines: str) -> None:
    await world.project()
    await world.live("v1")
    made = world.engine.containers["shop-production-blue"]
    made.lines.clear()
    for line in lines:
        made.lines.append(f"{world.clock.now().isoformat()} {line}")


async def test_logs_are_cleaned_capped_and_marked_as_data(world: World) -> None:
    secret = "ghp_" + "b" * 36
    await _logged(
        world, "\x1b[31mred\x1b[0m", f"token {secret}", "a\u202egnp", "z" * 5000, "password=hunter22 ok", "\x00nul"
    )
    answer = await world.call("logs_get", **HERE)
    text = "\n".join(answer["lines"])
    assert secret not in text
    assert "hunter22" not in text
    assert not set("\x1b\x00\u202e") & set(text)
    assert max(len(line) for line in answer["lines"]) <= 500
    assert "data" in answer["notice"]


async def test_many_lines_give_the_newest_that_fit(world: World) -> None:
    await _logged(world, *(f"line {number} " + "x" * 300 for number in range(1000)))
    answer = await world.call("logs_get", **HERE, tail=1000)
    assert answer["truncated"] is True
    assert "line 999 " in answer["lines"][-1]
    assert _size(answer) <= ANSWER_LIMIT
    answer = await world.call("logs_get", **HERE, tail=5)
    assert len(answer["lines"]) == 5


@pytest.mark.parametrize("char", ["배", '"', "\\", "\t"])
async def test_lines_of_any_characters_fit(world: World, char: str) -> None:
    await _logged(world, *(char * 400 for _ in range(200)))
    assert _size(await world.call("logs_get", **HERE, tail=1000)) <= ANSWER_LIMIT


async def test_lines_can_be_searched_in_any_case(world: World) -> None:
    await _logged(world, "an Error happened", "all is well", "ERROR again")
    answer = await world.call("logs_get", **HERE, grep="error")
    assert len(answer["lines"]) == 2
    assert "truncated" not in answer or not answer["truncated"]


@pytest.mark.parametrize(
    ("since", "lines"), [("10m", 1), ("2h", 2), ("7d", 3), ("2026-01-07T11:30:00", 1), ("2026-01-07T11:30:00+00:00", 1)]
)
async def test_lines_since_a_moment(world: World, since: str, lines: int) -> None:
    await _logged(world)
    made = world.engine.containers["shop-production-blue"]
    for moment in ("2026-01-01T12:00:00+00:00", "2026-01-07T11:00:00+00:00", "2026-01-07T11:59:00+00:00"):
        made.lines.append(f"{moment} said")
    assert len((await world.call("logs_get", **HERE, since=since))["lines"]) == lines


@pytest.mark.parametrize("since", ["", "yesterday", "10", "10y", "-5m", "2026-13-01", "m", "٣m"])
async def test_a_moment_that_is_none_is_refused(world: World, since: str) -> None:
    await _logged(world)
    refusal = await world.refused("invalid_request", "logs_get", **HERE, since=since)
    assert refusal.detail["fields"][0]["field"] == "since"


async def test_without_a_container_the_answer_says_so(world: World) -> None:
    await world.project()
    await world.refused("conflict", "logs_get", **HERE)
    await world.live("v1")
    await world.refused("conflict", "logs_get", **HERE, slot="green")
    del world.engine.containers["shop-production-blue"]
    await world.refused("not_found", "logs_get", **HERE)


async def test_every_error_tells_what_is_and_what_to_do(world: World) -> None:
    await world.project()
    calls: list[tuple[str, dict[str, Any]]] = [
        ("promote", HERE), ("rollback", HERE), ("slot_cleanup", HERE), ("deploy", HERE), ("logs_get", HERE),
        ("operation_get", {"operationId": "op_x"}), ("token_revoke", {"tokenId": "x"}), ("member_remove", {"memberId": "x"}),
        ("slot_status", {"projectName": "nope"}), ("slot_status", {"projectName": "shop", "environment": "preview"}),
        ("team_create", {"teamId": "default", "name": "x"}), ("project_delete", {"projectName": "shop", "confirm": "x"}),
    ]  # fmt: skip
    for tool, arguments in calls:
        with pytest.raises(CodebError) as refusal:
            await world.call(tool, **arguments)
        assert refusal.value.hint.endswith((".", "?")), tool
        assert not refusal.value.message.endswith("."), tool
        assert refusal.value.message[:1].islower() or not refusal.value.message[:1].isalpha(), (
            tool,
            refusal.value.message,
        )


async def test_a_member_sees_only_operations_of_their_team(world: World) -> None:
    await world.call("team_create", teamId="acme", name="Acme")
    acme = principal(Role.MEMBER, "acme")
    await world.project()
    run_id = (await world.deploy("v1"))["operationId"]
    for tool in ("operation_get", "operation_resume", "operation_cancel"):
        refusal = await world.refused("not_found", tool, acme, operationId=run_id)
        other = await world.refused("not_found", tool, acme, operationId="op_" + "0" * 24)
        assert refusal.hint == other.hint
    assert (await world.call("operation_list", acme))["total"] == 0
