"""Process start to `tools/list` over stdio, against a minimal server of the bare SDK.

    python -m tests.bench.start [--rounds 15]

Prints medians and their ratio; exits 1 above the bound.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.faces.world import open_world

BOUND = 1.25
VERSION = "2026-07-28"
MINIMAL = """
import anyio, mcp.types as t
from mcp.server import Server
from mcp.server.stdio import stdio_server
async def tools(ctx, params):
    schema = {"type": "object", "properties": {"text": {"type": "string"}}}
    return t.ListToolsResult(tools=[t.Tool(name="echo", description="Echo", input_schema=schema)])
async def call(ctx, params):
    return t.CallToolResult(content=[t.TextContent(text="x")])
server = Server("minimal", version="1", on_list_tools=tools, on_call_tool=call)
async def main():
    async with stdio_server() as (r, w):
        await server.run(r, w, server.create_initialization_options())
anyio.run(main)
"""


def envelope() -> dict[str, Any]:
    """What every request of the modern era carries."""
    return {
        "io.modelcontextprotocol/protocolVersion": VERSION,
        "io.modelcontextprotocol/clientCapabilities": {},
        "io.modelcontextprotocol/clientInfo": {"name": "bench", "version": "1"},
    }


def listed(command: list[str], environ: dict[str, str]) -> tuple[float, int]:
    """Seconds from the start of the process to the answer, and how many tools it lists."""
    started = time.perf_counter()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        request = {"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": envelope()}}
        process.stdin.write(json.dumps(request).encode() + b"\n")
        process.stdin.flush()
        answer = json.loads(process.stdout.readline())
        took = time.perf_counter() - started
        process.stdin.close()
        process.wait(20)
    return took, len(answer["result"]["tools"])


async def _prepare(root: Path) -> str:
    async with open_world(root) as world:
        await world.with_project()
        return world.keys["default"]["owner"]


def main() -> int:
    """Measure in turns, so that both see the same machine."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "codeb")
        key = asyncio.run(_prepare(root))
        environ = {**os.environ, "CODEB_ROOT": str(root), "CODEB_API_KEY": key}
        ours, theirs, count = [], [], 0
        code = "from codeb_mcp.__main__ import stdio; stdio()"
        for number in range(rounds + 1):
            bare, _ = listed([sys.executable, "-c", MINIMAL], environ)
            own, count = listed([sys.executable, "-c", code], environ)
            if number:  # the first round only warms the disk cache
                ours.append(own)
                theirs.append(bare)
    ratio = statistics.median(ours) / statistics.median(theirs)
    print(f"process start to tools/list over stdio, median of {rounds} in turns")
    print(
        f"  minimal SDK server, 1 tool    {statistics.median(theirs) * 1000:7.0f} ms  (fastest {min(theirs) * 1000:.0f})"
    )
    print(
        f"  codeb-mcp, {count} tools         {statistics.median(ours) * 1000:7.0f} ms  (fastest {min(ours) * 1000:.0f})"
    )
    print(f"  ratio {ratio:.2f}, bound {BOUND}")
    return 0 if ratio <= BOUND else 1


if __name__ == "__main__":
    sys.exit(main())
