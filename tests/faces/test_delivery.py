"""Calls that arrive twice, at once, too often, or with a key that has just been revoked."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx2
import pytest

from codeb_mcp.model.access import Role
from tests.faces.story import LIVE, image
from tests.faces.ways import ERAS, in_process, over_http, over_sse, saying
from tests.faces.world import Served, World, open_world, serving


async def _runs(world: World) -> list[str]:
    rows = (await world.call("operation_list", world.keys["acme"]["viewer"], limit=200))["data"]
    return [row["operationId"] for row in rows]


@pytest.mark.parametrize("together", [False, True])
async def test_the_same_deploy_twice_is_one_deploy(served: Served, *, together: bool) -> None:
    key, before = served.world.keys["acme"]["member"], len(await _runs(served.world))
    if together:
        replies = await asyncio.gather(*(served.tool("deploy", key, image("v2")) for _ in range(8)))
    else:
        replies = [await served.tool("deploy", key, image("v2")) for _ in range(3)]
    assert {reply.status_code for reply in replies} == {200}
    assert len({reply.json()["operationId"] for reply in replies}) == 1
    assert sum(not reply.json().get("joined", False) for reply in replies) == 1
    assert len(await _runs(served.world)) == before + 1


@pytest.mark.parametrize("tool", ["promote", "rollback"])
async def test_the_same_key_of_idempotency_switches_once(served: Served, tool: str) -> None:
    key = served.world.keys["acme"]["member"]
    await served.tool("deploy", key, image("v2"))
    if tool == "rollback":
        await served.tool("promote", key, LIVE)
    before = len(await _runs(served.world))
    ask = {**LIVE, "idempotencyKey": "ci-1"}
    replies = await asyncio.gather(*(served.tool(tool, key, ask) for _ in range(6)))
    replies.append(await served.tool(tool, key, ask))
    assert {reply.status_code for reply in replies} == {200}
    assert len({reply.json()["operationId"] for reply in replies}) == 1
    assert len(await _runs(served.world)) == before + 1


async def test_the_same_deploy_over_different_faces_is_one(served: Served) -> None:
    key, before = served.world.keys["acme"]["member"], len(await _runs(served.world))
    async with (
        in_process(served.world, key, "auto") as first,
        over_http(served, key, "legacy") as second,
        over_sse(served, key, "legacy") as third,
    ):
        outcomes = await asyncio.gather(*(saying(one)("deploy", image("v2")) for one in (first, second, third)))
        reply = await served.tool("deploy", key, image("v2"))
    assert {outcome.body["operationId"] for outcome in outcomes} == {reply.json()["operationId"]}
    assert len(await _runs(served.world)) == before + 1


async def test_eight_who_want_different_releases_get_one_winner_and_clear_answers(served: Served) -> None:
    key = served.world.keys["acme"]["member"]
    wanted = [{**image("v2"), "version": f"v2-{number}"} for number in range(8)]
    replies = await asyncio.gather(*(served.tool("deploy", key, params) for params in wanted))
    statuses = sorted(reply.status_code for reply in replies)
    assert statuses.count(200) >= 1
    assert set(statuses) <= {200, 409, 423}
    for reply in replies:
        if reply.status_code != 200:
            assert reply.json()["hint"]
    slots = (await served.tool("slot_status", key, LIVE)).json()["data"]
    assert slots["activeSlot"] == "blue"
    assert slots["blue"]["version"] == "v1"


async def test_a_caller_who_goes_away_cancels_nothing(served: Served) -> None:
    key = served.world.keys["acme"]["member"]
    pause = served.world.engine.faults.pause("images.pull")
    async with httpx2.AsyncClient(base_url=served.url, trust_env=False) as http:
        body = {"tool": "deploy", "params": image("v2")}
        call = asyncio.create_task(http.post("/api/tool", json=body, headers={"X-API-Key": key}))
        async with asyncio.timeout(20):
            await pause.reached.wait()
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
    pause.release()
    async with asyncio.timeout(20):
        await served.world.services.runs.drain()
    assert (await served.tool("slot_status", key, LIVE)).json()["data"]["green"]["version"] == "v2"


@pytest.mark.parametrize("era", ERAS)
async def test_an_mcp_client_that_disconnects_cancels_nothing(served: Served, era: str) -> None:
    key = served.world.keys["acme"]["member"]
    pause = served.world.engine.faults.pause("images.pull")

    async def leave() -> None:
        async with over_http(served, key, era) as client, asyncio.TaskGroup() as group:
            call = group.create_task(client.call_tool("deploy", image("v2")))
            await pause.reached.wait()
            call.cancel()

    async with asyncio.timeout(30):
        await leave()
    pause.release()
    async with asyncio.timeout(20):
        await served.world.services.runs.drain()
    assert (await served.tool("slot_status", key, LIVE)).json()["data"]["green"]["version"] == "v2"


async def test_a_key_has_a_number_of_calls_and_a_team_another(tmp_path: Path) -> None:
    async with (
        open_world(tmp_path / "codeb", calls_per_minute=5, team_calls_per_minute=8) as world,
        serving(world) as made,
    ):
        first, second = world.keys["acme"]["viewer"], world.keys["acme"]["member"]
        statuses = [(await made.tool("slot_list", first)).status_code for _ in range(7)]
        assert statuses == [200] * 5 + [429] * 2
        refused = await made.tool("slot_list", first)
        body = refused.json()
        assert body["error"] == "Rate limit exceeded"
        assert body["retryAfter"] == int(refused.headers["retry-after"]) >= 1
        assert refused.headers["x-ratelimit-limit"] == "5"
        assert refused.headers["x-ratelimit-remaining"] == "0"
        assert int(refused.headers["x-ratelimit-reset"]) > 1_600_000_000
        team = [(await made.tool("slot_list", second)).status_code for _ in range(5)]
        assert 429 in team
        assert team.index(429) <= 4
        other = (await made.tool("slot_list", world.keys["other"]["viewer"])).status_code
        assert other == 200
        async with in_process(world, first, "auto") as client:
            outcome = await saying(client)("slot_list", {})
        assert outcome.code == "rate_limited"
        assert outcome.detail["retryAfter"] >= 1


async def _audited(world: World, tool: str) -> list[dict[str, Any]]:
    """The audit records of a tool, newest first."""
    await world.services.trail.flush()
    page = await world.call("audit_list", world.keys["other"]["admin"], limit=200)
    return [row for row in page["data"] if row["tool"] == tool]


async def test_calls_of_tools_that_do_not_exist_are_limited_and_audited(tmp_path: Path) -> None:
    async with open_world(tmp_path / "codeb", calls_per_minute=5) as world, serving(world) as made:
        key = world.keys["other"]["viewer"]
        statuses = [(await made.tool("deplyo", key, {"projectName": "shop"})).status_code for _ in range(7)]
        assert statuses == [404] * 5 + [429] * 2
        rows = await _audited(world, "deplyo")
        assert sorted(row["outcome"] for row in rows) == ["rate_limited"] * 2 + ["unknown_tool"] * 5
        other = world.keys["other"]["member"]
        long, secret = "x" * 5_000 + "\x1b[31m", world.keys["other"]["owner"]
        for name in (long, secret):
            assert (await made.tool(name, other)).status_code == 404
        assert (await made.tool("env_sett", other, {"values": {"DATABASE_URL": "hunter2"}})).status_code == 404
        assert await _audited(world, "x" * 64) or await _audited(world, "x" * 63 + "…")
        assert len(await _audited(world, "env_sett")) == 1
        trail = "".join(path.read_text() for path in (tmp_path / "codeb" / "registry").rglob("*.jsonl"))
        assert "env_sett" in trail
        assert "hunter2" not in trail
        assert secret not in trail


BEYOND_TOOLS = {
    "index": ("GET", "/api", None),
    "tools": ("GET", "/api/tools", None),
    "audit": ("GET", "/api/audit", None),
    "nowhere": ("GET", "/nowhere", None),
    "no tool": ("POST", "/api/tool", {}),
    "tools/list": ("POST", "/mcp", {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}),
    "templates": ("POST", "/mcp", {"jsonrpc": "2.0", "id": 1, "method": "resources/templates/list", "params": {}}),
    "read": ("POST", "/mcp", {"jsonrpc": "2.0", "id": 1, "method": "resources/read", "params": {"uri": "codeb://x"}}),
    "half a call": ("POST", "/mcp", {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {}}),
}


@pytest.mark.parametrize("what", list(BEYOND_TOOLS))
async def test_every_request_of_a_key_counts_against_its_budget(what: str, tmp_path: Path) -> None:
    method, path, body = BEYOND_TOOLS[what]
    async with open_world(tmp_path / "codeb", calls_per_minute=3) as world, serving(world) as made:
        key = world.keys["other"]["viewer"]
        statuses = [
            (await made.http.request(method, path, json=body, headers={"X-API-Key": key})).status_code for _ in range(5)
        ]
        assert 429 not in statuses[:3]
        assert statuses[3:] == [429] * 2
        assert (await made.tool("slot_list", key)).status_code == 429


async def test_guessing_keys_is_slowed_down_without_locking_out_the_right_one(tmp_path: Path) -> None:
    async with open_world(tmp_path / "codeb", failed_logins_per_minute=5) as world, serving(world) as made:
        wrong = world.keys["acme"]["viewer"][:-1] + "~"
        statuses = [(await made.tool("slot_list", wrong)).status_code for _ in range(8)]
        assert statuses == [401] * 5 + [429] * 3
        refused = await made.tool("slot_list", wrong)
        assert refused.json()["error"] == "Rate limit exceeded"
        assert int(refused.headers["retry-after"]) >= 1
        assert refused.headers["x-ratelimit-remaining"] == "0"
        assert int(refused.headers["x-ratelimit-reset"]) > 1_600_000_000
        assert (await made.tool("slot_list", world.keys["acme"]["viewer"])).status_code == 200


@pytest.mark.parametrize("over", [over_http, over_sse])
async def test_a_revoked_key_stops_in_an_open_session(served: Served, over: object) -> None:
    key = await served.world.key("acme", Role.MEMBER)
    assert callable(over)
    token = next(
        row["id"]
        for row in (await served.world.call("token_list", served.world.keys["acme"]["owner"], limit=200))["data"]
        if row["last4"] == key[-4:]
    )
    async with httpx2.AsyncClient(base_url=served.url, headers={"X-API-Key": key}, trust_env=False) as http:
        handshake = {
            "jsonrpc": "2.0",
            "id": 1,
            "method": "initialize",
            "params": {
                "protocolVersion": "2025-11-25",
                "capabilities": {},
                "clientInfo": {"name": "t", "version": "1"},
            },
        }
        accept = {"Accept": "application/json, text/event-stream"}
        opened = await http.post("/mcp", json=handshake, headers=accept)
        session = {**accept, "Mcp-Session-Id": opened.headers["mcp-session-id"]}
        await http.post("/mcp", json={"jsonrpc": "2.0", "method": "notifications/initialized"}, headers=session)
        call = {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": {"name": "slot_list", "arguments": {}}}
        assert (await http.post("/mcp", json=call, headers=session)).status_code == 200
        stolen = {**session, "X-API-Key": served.world.keys["acme"]["owner"]}
        assert (await http.post("/mcp", json=call, headers=stolen)).status_code == 404
        await served.tool("token_revoke", served.world.keys["acme"]["owner"], {"tokenId": token})
        assert (await http.post("/mcp", json=call, headers=session)).status_code == 401


async def test_a_changed_role_counts_in_an_open_session(served: Served) -> None:
    key = await served.world.key("acme", Role.MEMBER)
    async with over_http(served, key, "legacy") as client:
        say = saying(client)
        assert (await say("deploy", image("v2"))).ok
        await served.world.change_key(key, role="viewer")
        assert (await say("promote", LIVE)).code == "forbidden"
