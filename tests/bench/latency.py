"""A read operation (`slot_status`) over stdio, `/mcp` and `POST /api/tool`, against the bare SDK and a bare Starlette route.

    python -m tests.bench.latency [--calls 400]

The counterpart gets the same request and answers the same JSON: what is compared is what we add to it (key, rights, limits,
registry, audit, metrics, checks of the body). The client is a socket or a pipe and nothing more, so it hides nothing.
Calls go in turns to both. All servers share one core and the client has another: the cores of a shared machine are not
equally fast, and without that the same code was seen at 1.03 and at 1.92 within a minute. Exits 1 above a bound.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.bench.start import VERSION, envelope
from tests.faces.world import open_world

BOUNDS = {"stdio": 1.3, "/mcp": 1.3, "/api/tool": 1.5}
ARGUMENTS = {"projectName": "shop", "environment": "production"}
WARM = 30
SETTLE_SECONDS = 0.001
BARE = """
import contextlib, json, sys
import anyio, mcp.types as t, uvicorn
from mcp.server import Server
from mcp.server.stdio import stdio_server
from mcp.server.streamable_http_manager import StreamableHTTPASGIApp, StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecuritySettings
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route
ANSWER, WIRE = json.load(open(sys.argv[1]))
SCHEMA = {"type": "object", "properties": {"projectName": {"type": "string"}, "environment": {"type": "string"}}}
async def tools(ctx, params):
    return t.ListToolsResult(tools=[t.Tool(name="slot_status", description="Echo", input_schema=SCHEMA)])
async def call(ctx, params):
    return t.CallToolResult(content=[t.TextContent(text=json.dumps(ANSWER))], structured_content=ANSWER)
server = Server("bare", version="1", on_list_tools=tools, on_call_tool=call, get_tool_input_schema=lambda name: SCHEMA)
async def stdio():
    async with stdio_server() as (r, w):
        await server.run(r, w, server.create_initialization_options())
async def tool(request):
    body = await request.json()
    return JSONResponse(WIRE if body["tool"] else None)
if len(sys.argv) < 3:
    anyio.run(stdio)
else:
    hosts = TransportSecuritySettings(allowed_hosts=["127.0.0.1:*"])
    manager = StreamableHTTPSessionManager(server, security_settings=hosts)
    @contextlib.asynccontextmanager
    async def lifespan(app):
        async with manager.run():
            yield
    routes = [Route("/api/tool", tool, methods=["POST"]), Route("/mcp", StreamableHTTPASGIApp(manager))]
    uvicorn.run(Starlette(routes=routes, lifespan=lifespan), port=int(sys.argv[2]), log_config=None, access_log=False)
"""


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def rpc(number: int) -> bytes:
    """The call as JSON-RPC."""
    params = {"name": "slot_status", "arguments": ARGUMENTS, "_meta": envelope()}
    return json.dumps({"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params}).encode()


class Pipe:
    """A server on stdin and stdout."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def call(self, number: int) -> Any:
        """One call; answers the structured content."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(rpc(number) + b"\n")
        stdin.flush()
        return json.loads(stdout.readline())["result"]["structuredContent"]


class Http:
    """A keep-alive connection."""

    def __init__(self, port: int, key: str) -> None:
        self._socket = _connected(port)
        self._file = self._socket.makefile("rb")
        self._head = f"Host: 127.0.0.1:{port}\r\nX-API-Key: {key}\r\nContent-Type: application/json\r\n"

    def mcp(self, number: int) -> Any:
        """One call of `/mcp`."""
        own = f"MCP-Protocol-Version: {VERSION}\r\nMcp-Method: tools/call\r\nMcp-Name: slot_status\r\n"
        return self._post("/mcp", rpc(number), own + "Accept: application/json, text/event-stream\r\n")["result"][
            "structuredContent"
        ]

    def tool(self, number: int) -> Any:
        """One `POST /api/tool`."""
        return self._post("/api/tool", json.dumps({"tool": "slot_status", "params": ARGUMENTS}).encode(), "")

    def _post(self, path: str, body: bytes, own: str) -> Any:
        head = f"POST {path} HTTP/1.1\r\n{self._head}{own}Content-Length: {len(body)}\r\n\r\n"
        self._socket.sendall(head.encode() + body)
        status, length = self._file.readline(), 0
        while (line := self._file.readline()) != b"\r\n":
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        answer = self._file.read(length)
        assert b" 200 " in status, (status, answer)
        return json.loads(answer)


def _connected(port: int) -> socket.socket:
    deadline = time.monotonic() + 60
    while True:
        try:
            made = socket.create_connection(("127.0.0.1", port), timeout=30)
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return made


@contextmanager
def process(command: list[str], environ: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A child that ends with the block."""
    child = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environ
    )
    try:
        yield child
    finally:
        child.terminate()
        child.wait(30)
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()


def share_a_core(servers: list[subprocess.Popen[bytes]]) -> None:
    """Put the servers, with the threads that they have and will have, on one core and this process on another, where there
    are two."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        print("one core: servers and client share it")
        return
    for server in servers:
        for thread in os.listdir(f"/proc/{server.pid}/task"):
            os.sched_setaffinity(int(thread), {cores[0]})
    os.sched_setaffinity(0, {cores[1]})


def compare(ours: Callable[[int], Any], bare: Callable[[int], Any], calls: int) -> tuple[float, float]:
    """Medians in seconds, measured in turns."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(1, calls + WARM + 1):
        for call, took in zip((ours, bare), times, strict=True):
            time.sleep(SETTLE_SECONDS)  # what the other server still does after its answer is not this one's time
            started = time.perf_counter()
            call(number)
            took.append(time.perf_counter() - started)
    return statistics.median(times[0][WARM:]), statistics.median(times[1][WARM:])


async def _prepare(root: Path) -> tuple[str, Any]:
    async with open_world(root) as world:
        await world.with_project()
        key = world.keys["acme"]["viewer"]
        return key, await world.call("slot_status", key, **ARGUMENTS)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--calls", type=int, default=400)
    calls = parser.parse_args().calls
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        root = Path(folder, "codeb")
        key, answer = asyncio.run(_prepare(root))
        port, bare_port = free_port(), free_port()
        (root / "codeb.toml").write_text(
            f"housekeeping_seconds = 3600\n[server]\nport = {port}\n"
            'calls_per_minute = 10000000\nteam_calls_per_minute = 10000000\n[docker]\nhost = "unix:///nowhere"\n',
            encoding="utf-8",
        )
        environ = {**os.environ, "CODEB_ROOT": str(root), "CODEB_API_KEY": key}
        given = Path(folder, "answer.json")
        script = Path(folder, "bare.py")
        script.write_text(BARE, encoding="utf-8")

        servers: list[subprocess.Popen[bytes]] = []

        def start(*command: str) -> subprocess.Popen[bytes]:
            servers.append(stack.enter_context(process([sys.executable, *command], environ)))
            return servers[-1]

        start("-m", "codeb_mcp", "serve")
        ours = Http(port, key)
        given.write_text(json.dumps([answer, ours.tool(0)]), encoding="utf-8")
        start(str(script), str(given), str(bare_port))
        bare = Http(bare_port, key)
        pipes = Pipe(start("-m", "codeb_mcp", "stdio")), Pipe(start(str(script), str(given)))
        pairs = {
            "stdio": (pipes[0].call, pipes[1].call),
            "/mcp": (ours.mcp, bare.mcp),
            "/api/tool": (ours.tool, bare.tool),
        }
        for number in range(WARM):
            for pair in pairs.values():
                for call in pair:
                    call(number)
        share_a_core(servers)
        return _report({name: compare(*pair, calls) for name, pair in pairs.items()}, calls)


def _report(found: dict[str, tuple[float, float]], calls: int) -> int:
    print(f"slot_status, median of {calls} calls in turns with the bare counterpart that answers the same JSON")
    for name, (own, bare) in found.items():
        print(
            f"  {name:10} {own * 1000:7.3f} ms  bare {bare * 1000:7.3f} ms  ratio {own / bare:.2f}  bound {BOUNDS[name]}"
        )
    return 1 if any(own / bare > BOUNDS[name] for name, (own, bare) in found.items()) else 0


if __name__ == "__main__":
    sys.exit(main())
