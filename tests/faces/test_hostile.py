"""Over 400 hostile values in every field of every operation, and over every face: nothing happens, nothing crashes.

Canary files lie outside of the installation; a payload that got through to a shell, a path or a template would make or
change one. Every field gets every payload through the whole HTTP application (without a socket); every payload goes once
over each real transport.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, MCPError

from codeb_mcp.faces.http import build_app
from codeb_mcp.faces.tools import ToolList
from codeb_mcp.model.errors import Conflict, DriverRefused, Forbidden, InvalidRequest, NotFound, ReleaseUnhealthy
from codeb_mcp.operations.catalog import CATALOG, Effect, load_all
from tests.faces.cli_world import CliWorld, typed
from tests.faces.payloads import others, texts
from tests.faces.story import LIVE
from tests.faces.test_rights import arguments
from tests.faces.test_stdio import _codeb
from tests.faces.ways import child, in_process, over_http, over_sse
from tests.faces.world import World, open_world, serving

load_all()
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff]")
NAME = re.compile(r"[A-Za-z0-9._+-]+")
FINE = {200, 202, 400, 403, 404, 409, 422, 424}
NO_SUCH_IMAGE = 502
GROUPS = 4
REFUSED = {
    error.exit_code for error in (InvalidRequest, NotFound, Forbidden, Conflict, ReleaseUnhealthy, DriverRefused)
}
LEFT_OUT = {"--follow", "--help"}


ANY, EACH, NAME_OF = "*", "[]", "*name"
"""Steps of a path that are no names of fields: the value of a free name, a member of a list, and a free name itself."""
DEEPEST = 6


def _choices(schema: Any, shared: Any) -> Iterator[dict[str, Any]]:
    """The schema itself and all that may stand in its place."""
    if not isinstance(schema, dict):
        return
    if "$ref" in schema:
        yield from _choices(shared[schema["$ref"].rpartition("/")[2]], shared)
        return
    yield schema
    for kind in ("anyOf", "oneOf", "allOf"):
        for one in schema.get(kind, ()):
            yield from _choices(one, shared)


def _inside(schema: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The places inside an object or a list, by the step that leads there."""
    yield from schema.get("properties", {}).items()
    if "items" in schema:
        yield EACH, schema["items"]
    for inner in (schema.get("additionalProperties"), *schema.get("patternProperties", {}).values()):
        if isinstance(inner, dict):
            yield ANY, inner


def _paths(schema: Any, shared: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Where text, or something with text inside, may be put; nested places below it."""
    if len(above) > DEEPEST:
        return
    for one in _choices(schema, shared):
        if one.get("type") in ("string", "array") or "enum" in one:
            yield above
        for name, inner in _inside(one):
            if name == ANY:
                yield (*above, NAME_OF)
            yield from _paths(inner, shared, (*above, name))
        if above and one.get("type") == "object":
            yield (*above, "unknown")


def fields() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Every operation with each of its fields that takes text, nested ones by their path."""
    tools = ToolList.load()
    for tool in CATALOG:
        schema = tools.input_schema(tool) or {}
        for path in dict.fromkeys(_paths(schema, schema.get("$defs", {}))):
            yield tool, path
        yield tool, ("unknown",)


FIELDS = list(fields())


def test_nested_fields_are_among_them() -> None:
    for tool in ("project_create", "project_update"):
        for path in (
            ("limits", "tmpfs", EACH), ("limits", "capabilities", EACH), ("healthCheck", "path"), ("envContract", NAME_OF),
            ("envContract", ANY, "pattern"), ("envContract", ANY, "environments", EACH), ("limits", "unknown"),
        ):  # fmt: skip
            assert (tool, path) in FIELDS, path
    assert ("project_create", ("environments", EACH)) in FIELDS
    assert ("workflow_scan", ("files", NAME_OF)) in FIELDS


def _put(params: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    return {**params, path[0]: _wrapped(path[1:], value)}


def _wrapped(path: tuple[str, ...], value: Any) -> Any:
    if not path:
        return value
    if path[0] == EACH:
        return [_wrapped(path[1:], value)]
    if path[0] == NAME_OF:
        return {value if isinstance(value, str) else json.dumps(value): {}}
    return {"LOG_LEVEL" if path[0] == ANY else path[0]: _wrapped(path[1:], value)}


class Canaries:
    """Files beside the installation, and what must not change in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self.victim = folder / "victim"
        self.victim.write_text("untouched", encoding="utf-8")
        self._outside = self._seen()

    def fill(self, text: str) -> str:
        """The payload with the places of the canaries."""
        return text.replace("{canary}", str(self.folder / "canary")).replace("{victim}", str(self.victim))

    def _seen(self) -> list[str]:
        return sorted(str(path) for path in self.folder.rglob("*"))

    def check(self, world: World) -> None:
        """Nothing was made or changed outside, and inside there are harmless names only."""
        assert self._seen() == self._outside
        assert self.victim.read_text(encoding="utf-8") == "untouched"
        root = world.services.settings.root
        for path in root.rglob("*"):
            assert path.resolve().is_relative_to(root.resolve())
            assert NAME.fullmatch(path.name), path
        for name in world.engine.containers:
            assert NAME.fullmatch(name), name
        for key in world.edge.configured:
            assert NAME.fullmatch(key), key


async def _check_state(world: World) -> None:
    slots = await world.call("slot_status", world.keys["acme"]["viewer"], **LIVE)
    assert slots["data"]["activeSlot"] == "blue"
    assert slots["version"] == "v1"
    verified = await world.call("audit_verify", world.keys["acme"]["admin"])
    assert verified["ok"], verified


Ask = Callable[[bytes], Awaitable[tuple[int, bytes]]]


def _asking(world: World) -> Ask:
    """The whole application without a socket: thousands of requests in little time."""
    app = build_app(world.services)
    head = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")]
    head.append((b"x-api-key", world.keys["acme"]["owner"].encode()))
    scope = {
        "type": "http", "method": "POST", "path": "/api/tool", "raw_path": b"/api/tool", "query_string": b"",
        "root_path": "", "headers": head, "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 1), "scheme": "http",
        "http_version": "1.1", "asgi": {"version": "3.0", "spec_version": "2.3"},
    }  # fmt: skip

    async def ask(body: bytes) -> tuple[int, bytes]:
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        await app({**scope}, receive, send)
        return sent[0]["status"], b"".join(part.get("body", b"") for part in sent[1:])

    return ask


def _judge(where: Any, status: int, body: bytes) -> None:
    fine = FINE | ({NO_SUCH_IMAGE} if where[0] == "deploy" else set())
    assert status in fine, (where, status, body)
    answer = json.loads(body)
    assert answer["success"] is (status in (200, 202)), (where, body)
    if status >= 400:
        assert answer["code"] != "bug"
        assert answer["error"], (where, body)
        assert not UNPRINTABLE.search(json.dumps(answer, ensure_ascii=False)), (where, body)


@pytest.mark.parametrize("group", range(GROUPS))
async def test_no_field_lets_a_hostile_value_through(group: int, tmp_path: Path) -> None:
    canaries = Canaries(tmp_path / "outside")
    payloads: list[Any] = [*(canaries.fill(text) for text in texts()), *others()]
    assert len(payloads) >= 400
    tried = 0
    async with open_world(tmp_path / "codeb") as world:
        await world.with_project()
        ask = _asking(world)
        for tool, path in FIELDS[group::GROUPS]:
            given = arguments(tool, "acme")
            for payload in payloads:
                body = json.dumps({"tool": tool, "params": _put(given, path, payload)}).encode()
                if b"\\ud" in body and isinstance(payload, str):
                    body = json.dumps({"tool": tool, "params": _put(given, path, payload)}, ensure_ascii=False).encode()
                status, answer = await ask(body)
                _judge((tool, path, payload), status, answer)
                tried += 1
        canaries.check(world)
        await _check_state(world)
        assert "operation crashed" not in world.log.getvalue()
    assert tried == len(FIELDS[group::GROUPS]) * len(payloads)


def _spread(canaries: Canaries) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every payload once, in one field after the other."""
    payloads: list[Any] = [*(canaries.fill(text) for text in texts()), *others()]
    for number, payload in enumerate(payloads):
        tool, path = FIELDS[number % len(FIELDS)]
        yield tool, _put(arguments(tool, "acme"), path, payload)


async def _storm(client: Client, canaries: Canaries) -> None:
    for tool, params in _spread(canaries):
        result = await client.call_tool(tool, params)
        if result.is_error:
            error = result.structured_content["error"]
            assert error["code"] not in ("bug", "internal"), (tool, params, error)
            assert not UNPRINTABLE.search(json.loads(result.content[0].model_dump_json())["text"])


@pytest.mark.parametrize("way", ["mcp auto", "mcp legacy", "http auto", "http legacy", "sse legacy", "sse auto"])
async def test_no_transport_of_mcp_lets_a_hostile_value_through(way: str, tmp_path: Path) -> None:
    name, _, era = way.partition(" ")
    canaries = Canaries(tmp_path / "outside")
    async with open_world(tmp_path / "codeb") as world:
        await world.with_project()
        key = world.keys["acme"]["owner"]
        if name == "mcp":
            async with in_process(world, key, era) as client:
                await _storm(client, canaries)
        else:
            over = over_http if name == "http" else over_sse
            async with serving(world) as served, over(served, key, era) as client:
                await _storm(client, canaries)
        canaries.check(world)
        await _check_state(world)


@pytest.mark.parametrize("era", ["auto", "legacy"])
async def test_stdio_lets_no_hostile_value_through(era: str, tmp_path: Path) -> None:
    canaries = Canaries(tmp_path / "outside")
    async with Client(child(tmp_path / "codeb", ""), mode=era) as client:
        await client.call_tool("project_create", {"projectName": "shop"})
        await _storm(client, canaries)
        assert (await client.call_tool("audit_verify", {})).structured_content["ok"]
    assert sorted(path.name for path in canaries.folder.rglob("*")) == ["victim"]
    assert canaries.victim.read_text(encoding="utf-8") == "untouched"


@pytest.mark.parametrize("era", ["auto", "legacy"])
async def test_the_bridge_lets_no_hostile_value_through(era: str, tmp_path: Path) -> None:
    canaries = Canaries(tmp_path / "outside")
    async with open_world(tmp_path / "codeb") as world:
        await world.with_project()
        async with serving(world) as served:
            bridge = _codeb(world, world.keys["acme"]["owner"], "--connect", served.url)
            async with Client(bridge, mode=era) as client:
                await _storm(client, canaries)
        canaries.check(world)
        await _check_state(world)


@pytest.mark.parametrize("typing", [True, False])
def test_the_command_line_lets_no_hostile_value_through(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], *, typing: bool
) -> None:
    canaries = Canaries(tmp_path / "outside")
    world = CliWorld(tmp_path / "codeb", capsys).initialised().with_live()
    commands = 0
    for tool, params in _spread(canaries):
        words = typed(tool, params, tmp_path) if typing else ["call", tool, json.dumps(params, ensure_ascii=False)]
        if words is None or LEFT_OUT & set(words):
            continue
        said = world(*words, *(["--yes"] if CATALOG[tool].effect is Effect.DESTROY and typing else []))
        commands += 1
        assert said.code in REFUSED or said.code in (0, 2), (words, said)
        assert "Traceback" not in said.err, (words, said)
        assert not UNPRINTABLE.search((said.out + said.err).replace("\n", " ")), (words, said)
    assert commands > 200
    assert canaries.folder.joinpath("victim").read_text(encoding="utf-8") == "untouched"
    assert sorted(path.name for path in canaries.folder.rglob("*")) == ["victim"]
    for path in (tmp_path / "codeb").rglob("*"):
        assert NAME.fullmatch(path.name), path
    assert world("slot", "status", "shop", "--json").json["data"]["activeSlot"] == "blue"
    assert world("audit", "verify", "--json").json["ok"]


async def test_names_of_tools_addresses_queries_and_headers_are_hostile_too(tmp_path: Path) -> None:
    canaries = Canaries(tmp_path / "outside")
    async with open_world(tmp_path / "codeb") as world:
        await world.with_project()
        key = world.keys["acme"]["owner"]
        async with serving(world) as served, over_http(served, key, "auto") as client:
            port = int(served.url.rpartition(":")[2])
            for text in (canaries.fill(text) for text in texts()):
                reply = await served.tool(text, key, LIVE)
                assert reply.status_code in (400, 404), text
                for path in ("/api/audit", "/api/logs/stream"):
                    reply = await served.http.get(
                        path, params={"project": text, "tool": text}, headers={"X-API-Key": key}
                    )
                    assert reply.status_code in (404, 422), (path, text)
                value = text.encode("utf-8", "replace").replace(b"\r", b" ").replace(b"\n", b" ")
                status = await _status_with_raw_headers(port, value, key)
                assert status.split(b" ")[1] in (b"200", b"400", b"431"), (text, status)
            for text in (canaries.fill(text) for text in texts()[:100]):
                with pytest.raises(MCPError):
                    await client.read_resource(f"codeb://slots/{text}/production")
        canaries.check(world)
        await _check_state(world)
        assert "crashed" not in world.log.getvalue()


async def _status_with_raw_headers(port: int, value: bytes, key: str) -> bytes:
    """The first line of the answer to a request whose headers no client library would send."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        head = b"GET /api HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nX-API-Key: " + key.encode()
        writer.write(head + b"\r\nX-Correlation-ID: " + value + b"\r\nUser-Agent: " + value + b"\r\n\r\n")
        async with asyncio.timeout(20):
            return await reader.readline()
    finally:
        writer.close()


async def test_raw_nonsense_on_the_port_harms_nobody(tmp_path: Path) -> None:
    lines = (
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", b"GET / HTTP/1.1\r\n\r\n", b"GET /../../etc/passwd HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\0" * 4096, b"POST /api/tool HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /api/tool HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        b"GET /%00%0a%0d HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /api HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: 127.0.0.1\r\n\r\n", b"A" * 100_000,
    )  # fmt: skip
    async with open_world(tmp_path / "codeb") as world, serving(world) as served:
        port = int(served.url.rpartition(":")[2])
        for line in lines:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(line)
            writer.write_eof()
            async with asyncio.timeout(20):
                answer = await reader.read()
            assert b" 200 " not in answer[:40], (line, answer)
            assert b" 500 " not in answer[:40], (line, answer)
            writer.close()
        assert (await served.http.get("/health")).status_code == 200
