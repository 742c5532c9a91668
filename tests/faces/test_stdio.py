"""`codeb stdio` as a process of its own: on the local registry, and as a bridge to a server."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, MCPError, StdioServerParameters

from codeb_mcp.model.access import Role
from tests.faces.story import LIVE, image
from tests.faces.ways import ERAS, saying
from tests.faces.world import Served, World

HERE = Path(__file__).parents[2]
COMMAND = ["-c", "from codeb_mcp.__main__ import stdio; stdio()"]


def _environ(world: World, key: str) -> dict[str, str]:
    keep = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    root = str(world.services.settings.root)
    return {**keep, "CODEB_ROOT": root, "CODEB_API_KEY": key, "HOME": str(world.services.settings.root.parent)}


def _codeb(world: World, key: str, *options: str) -> StdioServerParameters:
    return StdioServerParameters(command=sys.executable, args=[*COMMAND, *options], env=_environ(world, key), cwd=HERE)


@asynccontextmanager
async def _process(world: World, key: str, *options: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, *COMMAND, *options, cwd=HERE, env=_environ(world, key),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.mark.parametrize("era", ERAS)
async def test_it_serves_the_local_registry_as_the_configured_key(shop: World, era: str) -> None:
    async with Client(_codeb(shop, shop.keys["acme"]["viewer"]), mode=era) as client:
        say = saying(client)
        names = [tool.name for tool in (await client.list_tools()).tools]
        status = await say("slot_status", LIVE)
        refused = await say("promote", LIVE)
        foreign = await say("slot_status", {"projectName": "nowhere"})
    assert "slot_status" in names
    assert "promote" not in names
    assert status.body["activeSlot"] == "blue"
    assert refused.code == "forbidden"
    assert foreign.code == "not_found"


async def test_the_key_may_lie_in_a_file_that_only_its_owner_reads(shop: World) -> None:
    file = shop.services.settings.root.parent / ".config" / "codeb" / "key"
    file.parent.mkdir(parents=True)
    file.write_text(shop.keys["acme"]["viewer"], encoding="utf-8")
    file.chmod(0o600)
    async with Client(_codeb(shop, ""), mode="auto") as client:
        assert (await saying(client)("slot_list", {})).ok
    file.chmod(0o644)
    async with _process(shop, "") as process:
        _, said = await process.communicate()
    assert process.returncode == 11
    assert b"can be read by others" in said


@pytest.mark.parametrize("how", ["no key", "revoked", "unknown"])
async def test_without_a_valid_key_it_does_not_start(shop: World, how: str) -> None:
    key = await shop.key("acme", Role.OWNER)
    if how == "revoked":
        await shop.change_key(key, revokedAt="2020-01-01T00:00:00+00:00")
    text = {"no key": "", "revoked": key, "unknown": key[:-1] + "~"}[how]
    async with _process(shop, text) as process:
        out, said = await process.communicate()
    assert process.returncode == 11
    assert out == b""
    assert b"error:" in said
    assert not text or text.encode() not in said


async def test_a_key_that_is_revoked_meanwhile_stops(shop: World) -> None:
    key = await shop.key("acme", Role.VIEWER)
    async with Client(_codeb(shop, key), mode="legacy") as client:
        say = saying(client)
        assert (await say("slot_list", {})).ok
        await shop.change_key(key, revokedAt="2020-01-01T00:00:00+00:00")
        assert (await say("slot_list", {})).code == "unauthenticated"
        with pytest.raises(MCPError):
            await client.list_tools()


async def _line(process: asyncio.subprocess.Process, message: Any) -> Any:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(message if isinstance(message, bytes) else json.dumps(message).encode() + b"\n")
    await process.stdin.drain()
    async with asyncio.timeout(60):
        return json.loads(await process.stdout.readline())


HELLO = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}},
}


async def test_nonsense_on_stdin_does_not_end_it_and_nothing_but_answers_is_on_stdout(shop: World) -> None:
    async with _process(shop, shop.keys["acme"]["viewer"]) as process:
        assert process.stdin is not None
        process.stdin.write(b"not json\n\n{}\n[1,2]\n\xff\xfe\n" + b"[" * 5000 + b"\n")
        assert (await _line(process, HELLO))["id"] == 1
        deep: Any = "x"
        for _ in range(80):
            deep = {"a": deep}
        for number, arguments in enumerate(({"limit": 10**400}, {"a": deep}, {"projectName": "x" * 500_000}), 2):
            params = {"name": "slot_list", "arguments": arguments}
            call = {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params}
            answer = await _line(process, call)
            assert answer["id"] == number
            assert answer["result"]["isError"]
            assert answer["result"]["structuredContent"]["error"]["code"] == "invalid_request"
        infinite = b'{"jsonrpc":"2.0","id":9,"method":"tools/call","params":{"name":"slot_list","arguments":{"limit":1e999}}}\n'
        assert (await _line(process, infinite))["id"] == 9
        process.stdin.close()
        async with asyncio.timeout(60):
            assert await process.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_ends_at_once_when_asked_to(shop: World, number: signal.Signals) -> None:
    async with _process(shop, shop.keys["acme"]["viewer"]) as process:
        assert (await _line(process, HELLO))["id"] == 1
        process.send_signal(number)
        async with asyncio.timeout(30):
            assert await process.wait() == 128 + number
    rows, _ = await shop.services.registry.audit.page(team="acme", limit=1, offset=0)
    assert rows
    assert (await shop.services.registry.audit.verify()).ok


@pytest.mark.parametrize("era", ERAS)
async def test_the_bridge_passes_everything_on(served: Served, era: str) -> None:
    world, heard = served.world, []

    async def hear(progress: float, total: float | None, message: str | None) -> None:
        heard.append((progress, message))

    key = world.keys["acme"]["member"]
    async with Client(_codeb(world, key, "--connect", served.url), mode=era) as client:
        say = saying(client)
        assert client.instructions
        assert "promote" in [tool.name for tool in (await client.list_tools()).tools]
        result = await client.call_tool("deploy", image("v2"), progress_callback=hear)
        assert not result.is_error
        assert (await say("slot_status", LIVE)).body["data"]["green"]["version"] == "v2"
        assert (await say("slot_stats", {})).code == "unknown_tool"
        assert (await say("team_create", {"teamId": "x", "name": "x"})).code == "forbidden"
        slots = (await client.read_resource("codeb://slots/shop/production")).model_dump_json()
        assert "activeSlot" in slots
        assert len((await client.list_resource_templates()).resource_templates) == 2
    assert len(heard) >= 5
    assert any("pull_image" in (message or "") for _, message in heard)
    rows = (await world.call("audit_list", key, tool="deploy"))["data"]
    assert rows[0]["actor"] == "acme member"


@pytest.mark.parametrize("era", ERAS)
async def test_the_bridge_tells_when_its_key_is_no_longer_valid(served: Served, era: str) -> None:
    key = await served.world.key("acme", Role.VIEWER)
    async with Client(_codeb(served.world, key, "--connect", f"{served.url}/mcp/"), mode=era) as client:
        assert (await saying(client)("slot_list", {})).ok
        await served.world.change_key(key, revokedAt="2020-01-01T00:00:00+00:00")
        with pytest.raises(MCPError) as caught:
            await client.call_tool("slot_list", {})
    assert caught.value.error.message == "unauthenticated: Invalid API key"


async def test_the_bridge_outlives_a_server_that_is_away(shop: World) -> None:
    options = ("--connect", "http://127.0.0.1:9")
    async with _process(shop, shop.keys["acme"]["viewer"], *options) as process:
        for number in (1, 2):
            answer = await _line(process, {**HELLO, "id": number})
            assert answer["id"] == number
            assert answer["error"]["message"].startswith("driver_unavailable: http://127.0.0.1:9 cannot be reached")
        assert process.stdin is not None
        process.stdin.close()
        async with asyncio.timeout(60):
            assert await process.wait() == 0
