"""The MCP face: what is listed, how errors look, progress, resources; in both protocol eras."""

from __future__ import annotations

from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
from mcp import Client, MCPError

from codeb_mcp.faces.mcp import INSTRUCTIONS, Face, parts_of
from codeb_mcp.faces.tools import FILE, generate
from codeb_mcp.model.access import Role
from codeb_mcp.operations.catalog import CATALOG, Effect, load_all
from codeb_mcp.operations.invoke import may
from tests.faces.story import LIVE, image
from tests.faces.ways import ERAS, in_process, saying
from tests.faces.world import World


def text_of(content: Any) -> str:
    """The text of a content block or a resource."""
    assert isinstance(content.text, str)
    return content.text


pytestmark = pytest.mark.parametrize("era", ERAS)


def test_the_list_that_ships_is_the_catalog(era: str) -> None:
    assert FILE.read_text(encoding="utf-8") == generate(load_all()), "run: python -m codeb_mcp.faces.tools"


def test_the_instructions_are_short(era: str) -> None:
    assert len(INSTRUCTIONS) <= 4000


def test_no_argument_is_mirrored_in_a_header(era: str) -> None:
    assert "x-mcp-header" not in FILE.read_text(encoding="utf-8"), "then the SDK must be handed the schemas"


async def test_instructions_and_version_reach_the_client(world: World, era: str) -> None:
    async with in_process(world, world.keys["acme"]["viewer"], era) as client:
        assert client.instructions == INSTRUCTIONS
        assert client.server_info is not None
        assert client.server_info.name == "codeb-deploy"


@pytest.mark.parametrize("team", ["default", "acme"])
@pytest.mark.parametrize("role", list(Role))
async def test_a_caller_sees_exactly_what_it_may_use(world: World, era: str, team: str, role: Role) -> None:
    caller = await world.principal(world.keys[team][role.value])
    async with in_process(world, world.keys[team][role.value], era) as client:
        names = [tool.name for tool in (await client.list_tools()).tools]
    assert names == [name for name in load_all() if may(CATALOG[name], caller)]


async def test_a_key_limited_to_tools_sees_only_those(world: World, era: str) -> None:
    key = await world.key("acme", Role.OWNER, scopes=("tool:slot_*",))
    async with in_process(world, key, era) as client:
        assert [tool.name for tool in (await client.list_tools()).tools] == ["slot_cleanup", "slot_list", "slot_status"]


async def test_annotations_say_what_the_operation_does(world: World, era: str) -> None:
    async with in_process(world, world.keys["default"]["owner"], era) as client:
        tools = (await client.list_tools()).tools
    assert {tool.name for tool in tools} == set(CATALOG)
    for tool in tools:
        operation, hints = CATALOG[tool.name], tool.annotations
        assert hints is not None
        assert hints.read_only_hint is (operation.effect is Effect.READ)
        assert hints.destructive_hint is (operation.effect is Effect.DESTROY)
        assert hints.idempotent_hint is operation.idempotent
        assert hints.open_world_hint is False
        assert tool.description == operation.description
        assert tool.title
        assert tool.input_schema["type"] == "object"
        assert tool.input_schema["additionalProperties"] is False
        assert tool.output_schema is not None
        assert tool.meta is not None
        assert tool.meta["codeb/role"] == operation.role.value


async def test_the_list_is_the_same_twice(world: World, era: str) -> None:
    seen = []
    for _ in range(2):
        async with in_process(world, world.keys["acme"]["admin"], era) as client:
            seen.append((await client.list_tools()).model_dump_json())
    assert seen[0] == seen[1]


async def test_an_unknown_tool_is_a_protocol_error_with_the_nearest_names(world: World, era: str) -> None:
    async with in_process(world, world.keys["acme"]["viewer"], era) as client:
        with pytest.raises(MCPError) as caught:
            await client.call_tool("slot_statsu", {})
    assert caught.value.error.code == -32602
    assert "slot_status" in caught.value.error.data["nearest"]


async def test_a_failure_tells_code_reason_and_next_step(shop: World, era: str) -> None:
    async with in_process(shop, shop.keys["acme"]["member"], era) as client:
        result = await client.call_tool("deploy", image("sick"))
    assert result.is_error
    text, error = text_of(result.content[0]), result.structured_content["error"]
    assert text.startswith("release_unhealthy: ")
    assert error["hint"] in text
    assert error["operationId"] in text
    assert error["correlationId"]
    assert [step["name"] for step in error["steps"]][-1] == "cleanup_container"


async def test_what_fails_and_what_succeeds_both_fit_the_output_schema(shop: World, era: str) -> None:
    async with in_process(shop, shop.keys["default"]["owner"], era) as client:
        for tool in (await client.list_tools()).tools:
            assert tool.output_schema is not None
            assert "error" not in tool.output_schema["properties"] or tool.output_schema["anyOf"]
            for arguments in ({}, {"unknown": 1}, LIVE):
                result = await client.call_tool(tool.name, arguments)
                jsonschema.validate(result.structured_content, tool.output_schema)
                assert ("error" in result.structured_content) is bool(result.is_error)


async def test_a_wrong_parameter_is_named(world: World, era: str) -> None:
    async with in_process(world, world.keys["acme"]["viewer"], era) as client:
        result = await client.call_tool("slot_status", {"projectName": "shop", "enviroment": "production"})
    assert result.is_error
    assert result.structured_content["error"]["fields"] == [{"field": "enviroment", "problem": "unknown parameter"}]


async def test_a_deploy_tells_how_far_it_is(shop: World, era: str) -> None:
    heard: list[tuple[float, float | None, str | None]] = []

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        heard.append((progress, total, message))

    async with in_process(shop, shop.keys["acme"]["member"], era) as client:
        result = await client.call_tool("deploy", image("v2"), progress_callback=hear)
    assert not result.is_error
    assert len(heard) >= 5
    assert [progress for progress, _, _ in heard] == sorted(progress for progress, _, _ in heard)
    assert all(total is not None and progress <= total for progress, total, _ in heard)
    words = " ".join(message or "" for _, _, message in heard)
    for step in ("pull_image", "start_container", "health_check", "update_registry"):
        assert step in words


async def test_resources_are_the_own_teams(shop: World, era: str) -> None:
    await shop.call("project_create", shop.keys["other"]["member"], projectName="secret-shop")
    async with in_process(shop, shop.keys["acme"]["viewer"], era) as client:
        uris = [str(one.uri) for one in (await client.list_resources()).resources]
        ssot = text_of((await client.read_resource("codeb://registry/ssot")).contents[0])
        slots = text_of((await client.read_resource("codeb://slots/shop/production")).contents[0])
    assert uris == [
        "codeb://registry/ssot",
        "codeb://slots/shop/production",
        "codeb://slots/shop/staging",
    ]
    assert '"shop"' in ssot
    assert "secret-shop" not in ssot
    assert '"activeSlot":"blue"' in slots


async def test_a_run_can_be_read(shop: World, era: str) -> None:
    key = shop.keys["acme"]["member"]
    run = await shop.call("deploy", key, **image("v2"))
    async with in_process(shop, key, era) as client:
        text = text_of((await client.read_resource(f"codeb://operations/{run['operationId']}")).contents[0])
        templates = [one.uri_template for one in (await client.list_resource_templates()).resource_templates]
    assert '"status":"succeeded"' in text
    assert templates == ["codeb://slots/{project}/{environment}", "codeb://operations/{id}"]


@pytest.mark.parametrize(
    "uri",
    [
        "codeb://slots/secret-shop/production",
        "codeb://slots/nowhere/production",
        "codeb://slots/shop/mars",
        "codeb://slots/../production",
        "codeb://operations/op_unknown",
        "codeb://operations/%2e%2e%2fssot",
        "codeb://registry/api-keys",
        "file:///etc/passwd",
        "codeb://slots/shop/production/../../registry/ssot",
    ],
)
async def test_what_is_not_there_or_not_ones_own_is_not_found(shop: World, era: str, uri: str) -> None:
    await shop.call("project_create", shop.keys["other"]["member"], projectName="secret-shop")
    async with in_process(shop, shop.keys["acme"]["viewer"], era) as client:
        with pytest.raises(MCPError) as caught:
            await client.read_resource(uri)
    assert caught.value.error.code == -32602
    assert caught.value.error.message == "Resource not found"


async def test_a_crash_of_ours_tells_an_id_and_nothing_else(shop: World, era: str) -> None:
    async def who(_ctx: Any) -> Any:
        raise RuntimeError("password=hunter22 at /srv/secret")

    async with Client(Face(parts_of(shop.services), who).server(), mode=era) as client:
        for call in (
            client.list_tools(),
            client.call_tool("slot_list", {}),
            client.read_resource("codeb://registry/ssot"),
        ):
            with pytest.raises(MCPError) as caught:
                await call
            assert caught.value.error.code == -32603
            assert "hunter22" not in str(caught.value.error)
            assert "/srv/secret" not in str(caught.value.error)
    logged = shop.log.getvalue()
    assert "crashed" in logged
    assert "hunter22" not in logged


async def test_a_cursor_that_nobody_gave_out_is_refused(world: World, era: str) -> None:
    async with in_process(world, world.keys["acme"]["viewer"], era) as client:
        for ask in (client.list_tools, client.list_resources):
            call: Any = ask
            with pytest.raises(MCPError) as caught:
                await call(cursor="7")
            assert caught.value.error.code == -32602


async def test_a_revoked_key_stops_within_an_open_session(world: World, era: str) -> None:
    key = await world.key("acme", Role.MEMBER)
    async with in_process(world, key, era) as client:
        say = saying(client)
        assert (await say("slot_list", {})).ok
        await world.change_key(key, revokedAt="2020-01-01T00:00:00+00:00")
        assert (await say("slot_list", {})).code == "unauthenticated"
        with pytest.raises(MCPError):
            await client.list_tools(cache_mode="bypass")
        with pytest.raises(MCPError):
            await client.read_resource("codeb://registry/ssot", cache_mode="bypass")


async def test_a_change_of_role_counts_at_once(shop: World, era: str) -> None:
    key = await shop.key("acme", Role.MEMBER)
    async with in_process(shop, key, era) as client:
        await shop.change_key(key, role="viewer")
        assert (await saying(client)("promote", LIVE)).code == "forbidden"
