"""One way to call an operation through every face: `async with way(...) as call: outcome = await call(tool, params)`."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
from mcp import Client, MCPError, StdioServerParameters
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client

from codeb_mcp.faces.mcp import Face, parts_of
from tests.faces.world import Served, World

ENVELOPE = {"success", "tool", "duration", "timestamp", "correlationId", "result"}
ERAS = ("auto", "legacy")


@dataclass(frozen=True)
class Outcome:
    """A success with its body, or the error's code, message, hint and details."""

    body: dict[str, Any] = field(default_factory=dict)
    code: str = ""
    message: str = ""
    detail: Mapping[str, Any] = field(default_factory=dict)
    text: str = ""

    @property
    def ok(self) -> bool:
        """Whether it succeeded."""
        return not self.code


Say = Callable[[str, Mapping[str, Any]], Awaitable[Outcome]]


def of_result(result: Any) -> Outcome:
    """The outcome of an MCP tool result."""
    content, text = result.structured_content, result.content[0].text
    if not result.is_error:
        assert json.loads(text) == content
        return Outcome(content, text=text)
    error = content["error"]
    assert text.startswith(f"{error['code']}: ")
    return Outcome({}, error["code"], error["message"], error, text)


def of_reply(reply: httpx2.Response) -> Outcome:
    """The outcome of `POST /api/tool`."""
    body = reply.json()
    if body["success"]:
        assert reply.status_code in (200, 202)
        inner = body["result"]
        assert body["data"] == inner.get("data", inner)
        for name, value in inner.items():
            assert name in ENVELOPE or body[name] == value
        return Outcome(inner, text=reply.text)
    assert reply.status_code >= 400
    return Outcome({}, body["code"], body["error"], body, reply.text)


def saying(client: Client) -> Say:
    """Calls through an MCP client. An unknown tool is a protocol error there; here it is an outcome like any other."""

    async def say(tool: str, params: Mapping[str, Any]) -> Outcome:
        try:
            return of_result(await client.call_tool(tool, dict(params)))
        except MCPError as error:
            data = error.error.data or {}
            code = data.get("code", str(error.error.code))
            return Outcome({}, code, error.error.message, data, f"{error.error.message} {data}")

    return say


@contextlib.asynccontextmanager
async def in_process(world: World, key: str, era: str) -> AsyncIterator[Client]:
    """An MCP client without any transport."""

    async def who(_ctx: Any) -> Any:
        return await world.principal(key)

    async with Client(Face(parts_of(world.services), who).server(), mode=era) as client:
        yield client


@contextlib.asynccontextmanager
async def over_http(served: Served, key: str, era: str) -> AsyncIterator[Client]:
    """An MCP client on `/mcp`."""
    async with (
        httpx2.AsyncClient(headers={"X-API-Key": key}, timeout=60, trust_env=False) as http,
        Client(streamable_http_client(f"{served.url}/mcp", http_client=http), mode=era) as client,
    ):
        yield client


@contextlib.asynccontextmanager
async def over_sse(served: Served, key: str, era: str) -> AsyncIterator[Client]:
    """An MCP client on `/sse`."""
    async with Client(sse_client(f"{served.url}/sse", headers={"X-API-Key": key}), mode=era) as client:
        yield client


def child(root: Path, key: str) -> StdioServerParameters:
    """The stdio face in a process of its own, on a world of fakes at `root` that is made there."""
    keep = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    environ = {**keep, "CODEB_API_KEY": key, "HOME": str(root.parent)}
    return StdioServerParameters(
        command=sys.executable,
        args=["-m", "tests.faces.stdio_child", str(root)],
        env=environ,
        cwd=Path(__file__).parents[2],
    )


@contextlib.asynccontextmanager
async def by_api(served: Served, key: str) -> AsyncIterator[Say]:
    """`POST /api/tool`."""

    async def say(tool: str, params: Mapping[str, Any]) -> Outcome:
        return of_reply(await served.tool(tool, key, dict(params)))

    yield say
