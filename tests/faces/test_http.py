"""The HTTP face: envelopes, statuses and headers that existing clients read, and what is refused at the door."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from typing import Any

import httpx2
import pytest
from mcp import MCPError

from codeb_mcp import __version__
from codeb_mcp.faces.http import build_app
from codeb_mcp.model.access import Role
from codeb_mcp.model.errors import DriverUnavailable
from codeb_mcp.operations.catalog import load_all
from tests.faces.story import LIVE, image
from tests.faces.ways import ERAS, in_process, saying
from tests.faces.world import Served, World, serving


async def _tool(served: Served, tool: Any, params: Any = None, role: str = "member") -> httpx2.Response:
    return await served.tool(tool, served.world.keys["acme"][role], params)


# ── answers ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_result_stands_flat_under_result_and_under_data(served: Served) -> None:
    reply = await _tool(served, "deploy", image("v2"))
    body = reply.json()
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "application/json"
    assert body["slot"] == body["result"]["slot"] == body["data"]["slot"] == "green"
    assert body["success"] is True
    assert body["tool"] == "deploy"
    assert body["duration"] > 0
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", body["timestamp"])
    assert body["correlationId"] == reply.headers["x-correlation-id"]


async def test_a_result_with_data_of_its_own_keeps_it(served: Served) -> None:
    body = (await _tool(served, "slot_status", LIVE)).json()
    assert body["data"]["activeSlot"] == "blue"
    assert body["data"]["blue"]["state"] == "active"
    assert body["result"]["data"] == body["data"]


async def test_the_json_is_compact_for_those_who_grep_it(served: Served) -> None:
    assert '"success":true' in (await _tool(served, "slot_status", LIVE)).text
    assert '"success":false' in (await _tool(served, "slot_status")).text


async def test_an_old_name_is_answered_under_the_name_that_was_asked(served: Served) -> None:
    assert (await _tool(served, "deploy_project", image("v2"))).json()["tool"] == "deploy_project"


async def test_not_waiting_answers_202_and_an_id(served: Served) -> None:
    reply = await _tool(served, "deploy", {**image("v2"), "wait": False})
    assert reply.status_code == 202
    run = reply.json()["operationId"]
    await served.world.services.runs.wait(run)
    found = await _tool(served, "operation_get", {"operationId": run})
    assert found.status_code == 200
    assert found.json()["result"]["status"] == "succeeded"


@pytest.mark.parametrize("wait", [True, False])
async def test_a_failed_deploy_is_never_a_success(served: Served, *, wait: bool) -> None:
    ask = {**image("sick"), "idempotencyKey": "once"}
    first = await _tool(served, "deploy", ask)
    again = await _tool(served, "deploy", {**ask, "wait": wait})
    for reply in (first, again):
        assert reply.status_code == 424
        body = reply.json()
        assert body["success"] is False
        assert body["code"] == "release_unhealthy"
        assert body["hint"]
        assert body["operationId"]
        assert body["correlationId"]
        assert body["timestamp"]
    assert (await _tool(served, "slot_status", LIVE)).json()["data"]["green"]["state"] == "empty"


async def test_a_promote_that_is_not_proven_is_an_error(served: Served) -> None:
    await _tool(served, "deploy", image("v2"))
    served.world.edge.fail("apply", *[DriverUnavailable("the proxy is away", hint="Start it.") for _ in range(3)])
    served.world.edge.fail("switch", *[DriverUnavailable("the proxy is away", hint="Start it.") for _ in range(1)])
    reply = await _tool(served, "promote", LIVE)
    assert reply.status_code >= 400
    assert (await _tool(served, "slot_status", LIVE)).json()["data"]["activeSlot"] == "blue"


@pytest.mark.parametrize(
    ("tool", "params", "role", "status", "code"),
    [
        ("promote", LIVE, "member", 409, "conflict"),
        ("rollback", LIVE, "member", 409, "conflict"),
        ("slot_status", {"projectName": "nowhere"}, "viewer", 404, "not_found"),
        ("slot_status", {}, "viewer", 422, "invalid_request"),
        ("deploy", {"projectName": "-x"}, "member", 422, "invalid_request"),
        ("promote", LIVE, "viewer", 403, "forbidden"),
        ("team_create", {"teamId": "x", "name": "x"}, "owner", 403, "forbidden"),
        ("slot_stats", {}, "viewer", 404, "unknown_tool"),
    ],
)
async def test_errors_have_their_status(
    served: Served, tool: str, params: dict[str, Any], role: str, status: int, code: str
) -> None:
    reply = await _tool(served, tool, params, role)
    body = reply.json()
    assert (reply.status_code, body["code"], body["success"]) == (status, code, False)
    assert isinstance(body["error"], str)
    assert body["hint"]


async def test_parameters_that_do_not_fit_are_all_listed(served: Served) -> None:
    body = (await _tool(served, "deploy", {"projectName": "X Y", "version": "../x", "colour": "red"})).json()
    assert {item["field"] for item in body["details"]} == {"projectName", "version", "colour"}
    assert "projectName" in body["error"]


async def test_a_refusal_names_permission_and_role(served: Served) -> None:
    body = (await _tool(served, "promote", LIVE, "viewer")).json()
    assert body["error"] == "Permission denied: slot.promote required"
    assert body["requiredRole"] == "member"


async def test_an_unknown_tool_is_told_the_nearest_names_over_mcp(shop: World) -> None:
    for era in ERAS:
        async with in_process(shop, shop.keys["acme"]["viewer"], era) as client:
            with pytest.raises(MCPError) as refused:
                await client.call_tool("deplyo", {})
        assert refused.value.error.message.startswith("Unknown tool: deplyo. Did you mean deploy")


async def test_an_unknown_tool_lists_those_that_are_there(served: Served) -> None:
    body = (await _tool(served, "slot_stats", {}, "viewer")).json()
    assert body["error"] == "Unknown tool: slot_stats"
    assert body["availableTools"] == body["available"]
    assert "slot_status" in body["available"]
    assert "promote" not in body["available"]


async def test_a_held_lease_says_who_since_when_and_until_when(served: Served) -> None:
    lease = await served.world.services.store.acquire("environment/shop-production", "run:op_other")
    reply = await _tool(served, "promote", LIVE)
    body = reply.json()
    assert reply.status_code == 423
    assert body["code"] == "lock_held"
    assert body["retryable"] is True
    assert {"holder", "since", "until"} <= set(body["details"])
    await served.world.services.store.release(lease)


async def test_a_bug_tells_an_id_and_nothing_else(served: Served) -> None:
    served.world.engine.faults.fail("containers.logs", RuntimeError("password=hunter22 at /srv/secret"))  # type: ignore[arg-type]
    reply = await _tool(served, "logs_get", LIVE, "viewer")
    assert reply.status_code == 500
    assert reply.json()["code"] == "bug"
    assert "hunter22" not in reply.text
    assert "/srv/secret" not in reply.text
    logged = served.world.log.getvalue()
    assert reply.json()["correlationId"] in logged
    assert "hunter22" not in logged


# ── requests ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("body", [{}, {"tool": ""}, {"tool": 7}, {"tool": None}, [], "deploy", None, 7])
async def test_a_request_without_a_tool_is_400(served: Served, body: Any) -> None:
    key = served.world.keys["acme"]["viewer"]
    headers = {"X-API-Key": key, "Content-Type": "application/json"}
    reply = await served.http.post("/api/tool", content=json.dumps(body), headers=headers)
    assert reply.status_code == 400
    assert reply.json()["error"] == "Tool name required"


@pytest.mark.parametrize("params", [[], "x", 7, True])
async def test_params_must_be_an_object(served: Served, params: Any) -> None:
    reply = await _tool(served, "slot_list", params)
    assert reply.status_code == 422
    assert reply.json()["details"] == [{"field": "params", "problem": "must be an object"}]


async def test_keys_beside_tool_and_params_are_refused_by_name(served: Served) -> None:
    headers = {"X-API-Key": served.world.keys["acme"]["viewer"]}
    body = {"tool": "slot_list", "params": {}, "projectName": "shop"}
    reply = await served.http.post("/api/tool", json=body, headers=headers)
    assert reply.status_code == 422
    assert reply.json()["code"] == "invalid_request"
    assert reply.json()["details"] == [{"field": "projectName", "problem": "unknown key"}]


DEEP = b'{"tool":"slot_list","params":' + b'{"a":' * 65 + b"1" + b"}" * 65 + b"}"
BAD_BODIES = {
    "not JSON": b"{",
    "empty": b"",
    "not UTF-8": b'{"tool":"slot_list\xff"}',
    "UTF-16": '{"tool":"slot_list"}'.encode("utf-16"),
    "too deep": DEEP,
    "a bomb of brackets": b"[" * 200_000,
    "a key twice": b'{"tool":"slot_list","tool":"team_delete"}',
    "NaN": b'{"tool":"slot_list","params":{"limit":NaN}}',
    "Infinity": b'{"tool":"slot_list","params":{"limit":-Infinity}}',
    "a float too large": b'{"tool":"slot_list","params":{"limit":1e999}}',
    "a number of 5000 digits": b'{"tool":"slot_list","params":{"limit":' + b"9" * 5000 + b"}}",
    "half a surrogate": b'{"tool":"slot_list","params":{"x":"\\ud800"}}',
    "half a surrogate as key": b'{"tool":"slot_list","params":{"\\udfff":1}}',
    "trailing text": b'{"tool":"slot_list"} {}',
    "a byte order mark": b'\xef\xbb\xbf{"tool":"slot_list"}',
}


@pytest.mark.parametrize("path", ["/api/tool", "/mcp", "/messages/?session_id=0123456789abcdef0123456789abcdef"])
@pytest.mark.parametrize("name", list(BAD_BODIES))
async def test_a_body_that_could_mean_anything_is_400(served: Served, name: str, path: str) -> None:
    headers = {
        "X-API-Key": served.world.keys["acme"]["viewer"],
        "Content-Type": "application/json",
        "Accept": "application/json, text/event-stream",
    }
    reply = await served.http.post(path, content=BAD_BODIES[name], headers=headers)
    assert reply.status_code == 400, (name, reply.text)
    assert reply.json()["code"] == "invalid_request"


@pytest.mark.parametrize("path", ["/api/tool", "/mcp", "/messages/"])
@pytest.mark.parametrize("media", ["text/plain", "application/x-www-form-urlencoded", "application/jsonx", None])
async def test_another_content_type_is_415(served: Served, path: str, media: str | None) -> None:
    headers = {"X-API-Key": served.world.keys["acme"]["viewer"]} | ({"Content-Type": media} if media else {})
    reply = await served.http.post(path, content=b'{"tool":"slot_list"}', headers=headers)
    assert reply.status_code == 415
    assert reply.json()["code"] == "unsupported_media_type"


@pytest.mark.parametrize("path", ["/api/tool", "/mcp", "/messages/"])
async def test_a_huge_body_is_413_whatever_it_says_about_its_length(served: Served, path: str) -> None:
    key = served.world.keys["acme"]["viewer"]
    limit = served.world.services.settings.server.max_body_bytes
    headers = {"X-API-Key": key, "Content-Type": "application/json"}

    async def chunks() -> Any:
        yield b'{"tool":"'
        for _ in range(limit // 1024 + 2):
            yield b"x" * 1024

    for content in (b"x" * (limit + 1), chunks()):
        reply = await served.http.post(path, content=content, headers=headers)
        assert reply.status_code == 413
        assert reply.json()["code"] == "payload_too_large"


async def test_a_body_at_the_limit_is_read(served: Served) -> None:
    limit = served.world.services.settings.server.max_body_bytes
    body = b'{"tool":"slot_list","params":{}}'
    headers = {"X-API-Key": served.world.keys["acme"]["viewer"], "Content-Type": "application/json; charset=utf-8"}
    reply = await served.http.post("/api/tool", content=body + b" " * (limit - len(body)), headers=headers)
    assert reply.status_code == 200


async def test_a_correlation_id_is_taken_if_it_is_harmless_and_echoed(served: Served) -> None:
    key = served.world.keys["acme"]["viewer"]
    for said, kept in (("ci-4711.a_b", True), ("a" * 64, True), ("a" * 65, False), ("x y", False), ("<b>", False)):
        reply = await served.tool("slot_list", key, headers={"X-Correlation-ID": said})
        assert (reply.headers["x-correlation-id"] == said) is kept
        assert reply.json()["correlationId"] == reply.headers["x-correlation-id"]


# ── the door ────────────────────────────────────────────────────────────────────────────────────────────────────

ROUTES = [
    "/api",
    "/api/tools",
    "/api/audit",
    "/api/logs/stream",
    "/api/operations/op_x/stream",
    "/health",
    "/metrics",
    "/mcp",
    "/sse",
    "/nowhere",
]


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("host", ["evil.example", "evil.example:9101", "127.0.0.1.evil.example", "localhost.evil", ""])
async def test_a_foreign_host_is_421_everywhere(served: Served, path: str, host: str) -> None:
    headers = {"X-API-Key": served.world.keys["acme"]["owner"], "Host": host}
    reply = await served.http.get(path, headers=headers)
    assert reply.status_code in (421, 400 if not host else 421)


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost.evil.example", "file://"])
async def test_a_page_of_a_foreign_origin_is_403_everywhere(served: Served, path: str, origin: str) -> None:
    headers = {"X-API-Key": served.world.keys["acme"]["owner"], "Origin": origin}
    reply = await served.http.get(path, headers=headers)
    assert reply.status_code == 403
    assert reply.json()["success"] is False


async def test_this_machines_own_names_and_pages_are_let_in(served: Served) -> None:
    key = served.world.keys["acme"]["viewer"]
    for host in ("127.0.0.1", "localhost:1234", "[::1]:9101", "LOCALHOST"):
        assert (await served.tool("slot_list", key, headers={"Host": host})).status_code == 200
    for origin in ("http://localhost:3000", "https://127.0.0.1", "http://[::1]:8080"):
        assert (await served.tool("slot_list", key, headers={"Origin": origin})).status_code == 200


async def test_hosts_and_origins_of_the_settings_are_let_in(shop: World) -> None:
    server = shop.services.settings.server.model_copy(
        update={"allowed_hosts": ("codeb.example", "ops.example:*"), "allowed_origins": ("https://codeb.example",)}
    )
    object.__setattr__(
        shop.services, "settings", shop.services.settings.model_copy(update={"server": server})
    )  # the settings are frozen on purpose
    async with serving(shop) as served:
        key = shop.keys["acme"]["viewer"]
        for host, status in (("codeb.example", 200), ("codeb.example:81", 421), ("ops.example:81", 200)):
            assert (await served.tool("slot_list", key, headers={"Host": host})).status_code == status
        for origin, status in (("https://codeb.example", 200), ("http://codeb.example", 403)):
            assert (await served.tool("slot_list", key, headers={"Origin": origin})).status_code == status


@pytest.mark.parametrize("path", ["/api", "/api/tools", "/api/audit", "/api/logs/stream", "/mcp", "/sse", "/nowhere"])
async def test_without_a_key_nothing_is_told(served: Served, path: str) -> None:
    reply = await served.http.get(path)
    assert reply.status_code == 401
    assert reply.json()["error"] == "API key required. Use X-API-Key header."
    assert reply.headers["www-authenticate"] == "Bearer"


async def test_the_key_may_come_as_a_bearer(served: Served) -> None:
    key = served.world.keys["acme"]["viewer"]
    for headers in ({"Authorization": f"Bearer {key}"}, {"Authorization": f"bearer {key}"}, {"X-API-Key": key}):
        assert (await served.http.get("/api", headers=headers)).status_code == 200
    assert (await served.http.get("/api", headers={"Authorization": f"Basic {key}"})).status_code == 401


async def test_an_unknown_address_and_a_wrong_method_have_the_envelope(served: Served) -> None:
    headers = {"X-API-Key": served.world.keys["acme"]["viewer"]}
    assert (await served.http.get("/nowhere", headers=headers)).json()["success"] is False
    reply = await served.http.get("/api/tool", headers=headers)
    assert reply.status_code == 405
    assert reply.json()["success"] is False


# ── the other routes ────────────────────────────────────────────────────────────────────────────────────────────


async def test_health_needs_no_key(served: Served) -> None:
    body = (await served.http.get("/health")).json()
    assert body["status"] == "healthy"
    assert body["success"] is True
    assert body["version"] == __version__
    assert {"timestamp", "uptime"} <= set(body)


async def test_the_index_and_the_tools_tell_what_the_caller_may(served: Served) -> None:
    headers = {"X-API-Key": served.world.keys["acme"]["viewer"]}
    index = (await served.http.get("/api", headers=headers)).json()
    assert index["version"] == __version__
    tools = (await served.http.get("/api/tools", headers=headers)).json()
    assert tools["role"] == "viewer"
    allowed = {row["name"]: row["allowed"] for row in tools["tools"]}
    assert set(allowed) == set(load_all())
    assert allowed["slot_status"]
    assert not allowed["promote"]
    assert index["tools"] == [name for name, may in allowed.items() if may]


async def test_the_audit_is_paged_and_the_own_teams(served: Served) -> None:
    await served.world.call("project_create", served.world.keys["other"]["member"], projectName="theirs")
    headers = {"X-API-Key": served.world.keys["acme"]["viewer"]}
    body = (await served.http.get("/api/audit?limit=2&offset=1", headers=headers)).json()
    assert body["success"] is True
    assert (body["limit"], body["offset"], len(body["data"])) == (2, 1, 2)
    assert body["total"] >= 3
    whole = (await served.http.get("/api/audit?limit=200", headers=headers)).text
    assert "theirs" not in whole
    assert (await served.http.get("/api/audit?limit=x", headers=headers)).status_code == 422
    assert (await served.http.get("/api/audit?colour=red", headers=headers)).status_code == 422


async def test_metrics_count_calls_and_show_slots(served: Served) -> None:
    await _tool(served, "deploy", image("sick"))
    await _tool(served, "no_such_tool")
    await _tool(served, "slot_status", LIVE, "viewer")
    text = (await served.http.get("/metrics")).text
    for line in (
        'codeb_operations_total{result="ok",tool="slot_status"} 1.0',
        'codeb_operations_total{result="release_unhealthy",tool="deploy"} 1.0',
        'codeb_operations_total{result="unknown_tool",tool="unknown"} 1.0',
        'codeb_operation_duration_seconds_count{tool="slot_status"} 1.0',
        'codeb_slot_state{environment="production",project="shop",slot="blue",state="active"} 1.0',
        'codeb_slot_state{environment="production",project="shop",slot="green",state="empty"} 1.0',
        'codeb_slot_healthy{environment="production",project="shop",slot="blue"} 1.0',
        'codeb_slot_deploy_errors_total{environment="production",project="shop"} 1.0',
        "codeb_open_runs 0.0",
        f'codeb_build_info{{version="{__version__}"}} 1.0',
    ):
        assert line in text, line
    assert "op_" not in text


async def test_metrics_want_a_key_of_the_platform_unless_this_machine_asks(shop: World) -> None:
    server = shop.services.settings.server.model_copy(update={"allowed_hosts": ("api.example.com",)})
    object.__setattr__(shop.services, "settings", shop.services.settings.model_copy(update={"server": server}))
    public, keys = {"Host": "api.example.com"}, shop.keys
    async with serving(shop) as made:
        refused = await made.http.get("/metrics", headers=public)
        assert refused.status_code == 401
        assert "shop" not in refused.text
        for team, role, status in (("acme", "owner", 403), ("default", "viewer", 200), ("default", "owner", 200)):
            bearer = {**public, "Authorization": f"Bearer {keys[team][role]}"}
            reply = await made.http.get("/metrics", headers=bearer)
            assert reply.status_code == status, (team, role)
            assert ("codeb_slot_state" in reply.text) is (status == 200)
        for host in ("127.0.0.1", "localhost:9101", "[::1]"):
            assert (await made.http.get("/metrics", headers={"Host": host})).status_code == 200


async def test_metrics_want_a_key_from_another_machine_that_says_localhost(shop: World) -> None:
    app = build_app(shop.services)
    for peer, status in (("192.0.2.7", 401), ("127.0.0.1", 200), ("::1", 200)):
        transport = httpx2.ASGITransport(app=app, client=(peer, 4711))
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as http:
            assert (await http.get("/metrics")).status_code == status, peer


# ── streams ─────────────────────────────────────────────────────────────────────────────────────────────────────


class _Lines:
    """Events of an open log stream."""

    def __init__(self, reply: httpx2.Response) -> None:
        self._lines = reply.aiter_lines()

    async def next(self) -> Any:
        """The next data, or `{event: data}`."""
        event = ""
        async with asyncio.timeout(20):
            async for line in self._lines:
                if line.startswith("event: "):
                    event = line[7:]
                if line.startswith("data: "):
                    data = json.loads(line[6:])
                    return {event: data} if event else data
        return None


def _stream(served: Served, key: str, query: str = "project=shop&environment=production") -> Any:
    return served.http.stream("GET", f"/api/logs/stream?{query}", headers={"X-API-Key": key})


async def test_a_log_is_followed_cleaned_and_redacted(served: Served) -> None:
    container = served.world.engine.containers["shop-production-blue"]
    async with _stream(served, served.world.keys["acme"]["viewer"]) as reply:
        assert reply.status_code == 200
        assert reply.headers["content-type"] == "text/event-stream"
        lines = _Lines(reply)
        assert (await lines.next())["line"] == "version v1 listens"
        container.say("level=warn \x1b[31mred\x1b[0m password=hunter2222 \u202eevil")
        assert (await lines.next())["line"] == "level=warn red password=*** evil"
        container.become("exited", exit_code=0)
        assert "end" in await lines.next()


async def test_a_level_leaves_out_what_is_below_it(served: Served) -> None:
    container = served.world.engine.containers["shop-production-blue"]
    async with _stream(served, served.world.keys["acme"]["viewer"], f"{QUERY}&level=error") as reply:
        lines = _Lines(reply)
        for text in ("just a line", '{"level":"info","msg":"x"}', '{"level":"error","msg":"boom"}'):
            container.say(text)
        found = await lines.next()
        assert found["line"] == '{"level":"error","msg":"boom"}'
        assert found["level"] == "error"


QUERY = "project=shop&environment=production"


async def test_a_flood_is_slowed_down_and_said(served: Served) -> None:
    container = served.world.engine.containers["shop-production-blue"]
    async with _stream(served, served.world.keys["acme"]["viewer"]) as reply:
        lines = _Lines(reply)
        await lines.next()
        for number in range(1000):
            container.say(f"flood {number}")
        for _ in range(40):
            await asyncio.sleep(0.1)
            container.say("after")
        seen: list[Any] = []
        while not (seen and "dropped" in seen[-1]):
            seen.append(await lines.next())
        assert len(seen) < 500
        assert seen[-1]["dropped"]["lines"] > 100


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("project=nowhere&environment=production", 404),
        ("project=shop&environment=mars", 422),
        ("project=shop&environment=staging", 409),
        ("environment=production", 422),
        (f"{QUERY}&level=loud", 422),
        (f"{QUERY}&slot=red", 422),
        (f"{QUERY}&command=rm", 422),
        (f"{QUERY}&tail=5", 422),
    ],
)
async def test_a_stream_is_refused_like_the_operation(served: Served, query: str, status: int) -> None:
    headers = {"X-API-Key": served.world.keys["acme"]["viewer"]}
    assert (await served.http.get(f"/api/logs/stream?{query}", headers=headers)).status_code == status


async def test_another_teams_log_is_not_found(served: Served) -> None:
    headers = {"X-API-Key": served.world.keys["other"]["owner"]}
    assert (await served.http.get(f"/api/logs/stream?{QUERY}", headers=headers)).status_code == 404


async def test_a_key_has_a_limited_number_of_streams(served: Served) -> None:
    key = served.world.keys["acme"]["viewer"]
    async with contextlib.AsyncExitStack() as stack:
        opened = [_Lines(await stack.enter_async_context(_stream(served, key))) for _ in range(8)]
        for lines in opened:
            assert await lines.next()
        async with _stream(served, key) as ninth:
            assert ninth.status_code == 429
    async with asyncio.timeout(20):
        while True:
            async with _stream(served, key) as reply:
                if reply.status_code == 200:
                    break
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("path", [f"/api/logs/stream?{QUERY}", "/sse"])
async def test_a_stream_ends_when_its_key_is_revoked(served: Served, path: str) -> None:
    key = await served.world.key("acme", Role.VIEWER)
    async with served.http.stream("GET", path, headers={"X-API-Key": key}) as reply:
        lines = reply.aiter_lines()
        async with asyncio.timeout(20):
            await anext(lines)
            await served.world.change_key(key, revokedAt="2020-01-01T00:00:00+00:00")
            async for _ in lines:
                pass


async def test_a_client_that_goes_leaves_no_task_behind(served: Served) -> None:
    async with _stream(served, served.world.keys["acme"]["viewer"]) as reply:
        await _Lines(reply).next()
    container = served.world.engine.containers["shop-production-blue"]
    async with asyncio.timeout(20):
        while any("_send_lines" in repr(task.get_coro()) for task in asyncio.all_tasks()):
            container.say("anybody there?")
            await asyncio.sleep(0.05)


async def test_the_sdk_face_and_the_api_agree_on_the_correlation_id(served: Served) -> None:
    async with in_process(served.world, served.world.keys["acme"]["viewer"], "auto") as client:
        outcome = await saying(client)("slot_status", {"projectName": "nowhere"})
    assert re.fullmatch(r"[0-9a-f]{32}", outcome.detail["correlationId"])
