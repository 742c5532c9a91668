"""The newest MCP Inspector, in its command-line mode, over stdio, streamable HTTP and SSE.

It needs Node 22.19 or newer. An older one gets the npm package `node` beside the Inspector, in a temporary folder that
all workers of a run share.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from codeb_mcp.faces.tools import FILE
from tests.faces.story import LIVE, image
from tests.faces.world import Served, World

pytestmark = pytest.mark.real("node")

NEEDED = (22, 19)
INSTALL_SECONDS = 300
RUN_SECONDS = 90
REFUSED, TOOL_ERROR = 3, 5


@dataclass(frozen=True)
class Inspector:
    """The installed Inspector. `environ` has the right Node first."""

    folder: Path
    environ: dict[str, str]

    async def __call__(self, *words: str) -> tuple[int, Any, str]:
        """Run it; answers exit code, stdout as JSON (or text), stderr."""
        process = await asyncio.create_subprocess_exec(
            str(self.folder / "node_modules" / ".bin" / "inspector"), "--cli", "-q", *words,
            env=self.environ, cwd=self.folder,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        async with asyncio.timeout(RUN_SECONDS):
            out, said = await process.communicate()
        try:
            return process.returncode or 0, json.loads(out), said.decode()
        except ValueError:
            return process.returncode or 0, out.decode(), said.decode()


def _node_version(environ: dict[str, str]) -> tuple[int, ...]:
    node = shutil.which("node", path=environ["PATH"])
    if node is None:
        return (0,)
    said = subprocess.run([node, "--version"], capture_output=True, text=True, timeout=30, check=True).stdout
    return tuple(int(part) for part in said.strip().lstrip("v").split(".")[:2])


@pytest.fixture(scope="session")
def inspector(tmp_path_factory: pytest.TempPathFactory) -> Inspector:
    """The Inspector, installed once for all workers of a run. Without npm the tests fail; leaving them out is said by
    CODEB_TEST_WITHOUT=node."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = shared / "inspector"
    folder.mkdir(exist_ok=True)
    local = str(folder / "node_modules" / ".bin")
    environ = {"PATH": f"{local}{os.pathsep}{os.environ['PATH']}", "HOME": str(folder)}
    with (folder / "lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            npm = shutil.which("npm")
            assert npm, "npm is missing: install nodejs and npm, or say CODEB_TEST_WITHOUT=node"
            wanted = ["@modelcontextprotocol/inspector@latest"]
            if _node_version(environ) < NEEDED:
                wanted.append("node@22")
            command = [npm, "install", "--no-audit", "--no-fund", "--prefix", str(folder), *wanted]
            subprocess.run(command, check=True, timeout=INSTALL_SECONDS, capture_output=True)
            (folder / "done").touch()
    assert _node_version(environ) >= NEEDED
    return Inspector(folder, environ)


def _stdio(world: World, key: str) -> list[str]:
    root = world.services.settings.root
    environ = {"CODEB_ROOT": str(root), "CODEB_API_KEY": key, "HOME": str(root.parent)}
    pairs = [word for name, value in environ.items() for word in ("-e", f"{name}={value}")]
    code = "from codeb_mcp.__main__ import stdio; stdio()"
    return [*pairs, "--cwd", str(Path(__file__).parents[2]), "--", sys.executable, "-c", code]


def _target(way: str, served: Served, key: str) -> list[str]:
    if way == "stdio":
        return _stdio(served.world, key)
    path = "sse" if way == "sse" else "mcp"
    transport = ["--transport", "sse"] if way == "sse" else []
    return ["--server-url", f"{served.url}/{path}", *transport, "--header", f"X-API-Key: {key}"]


WAYS = [("stdio", "legacy"), ("stdio", "modern"), ("http", "legacy"), ("http", "modern"), ("sse", "legacy")]


@pytest.mark.parametrize(("way", "era"), WAYS)
async def test_it_lists_calls_and_reads(inspector: Inspector, served: Served, way: str, era: str) -> None:
    key = served.world.keys["acme"]["member"]
    target = ["--protocol-era", era]
    code, listed, said = await inspector(*target, "--method", "tools/list", "--strict", *_target(way, served, key))
    assert code == 0, said
    names = [tool["name"] for tool in listed["tools"]]
    assert {"deploy", "promote", "slot_status"} <= set(names)
    assert "team_create" not in names

    call = ["--method", "tools/call", "--tool-name"]
    params = ["--tool-args-json", json.dumps(LIVE)]
    code, found, said = await inspector(*target, *call, "slot_status", *params, *_target(way, served, key))
    assert code == 0, said
    assert found["structuredContent"]["activeSlot"] == "blue"

    code, found, said = await inspector(*target, "--method", "resources/list", *_target(way, served, key))
    assert code == 0, said
    assert "codeb://registry/ssot" in [one["uri"] for one in found["resources"]]


@pytest.mark.parametrize("way", ["stdio", "http"])
async def test_a_tool_that_fails_is_a_tool_error(inspector: Inspector, served: Served, way: str) -> None:
    key = served.world.keys["acme"]["member"]
    call = ["--method", "tools/call", "--tool-name", "rollback", "--tool-args-json", json.dumps(LIVE)]
    code, found, _ = await inspector(*call, *_target(way, served, key))
    assert code == TOOL_ERROR
    assert found["structuredContent"]["error"]["code"] == "conflict"


async def test_it_deploys_over_http(inspector: Inspector, served: Served) -> None:
    key = served.world.keys["acme"]["member"]
    call = ["--method", "tools/call", "--tool-name", "deploy", "--tool-args-json", json.dumps(image("v2"))]
    code, found, said = await inspector("--protocol-era", "modern", *call, *_target("http", served, key))
    assert code == 0, said
    assert found["structuredContent"]["slot"] == "green"
    assert found["structuredContent"]["status"] == "succeeded"


async def test_a_wrong_key_is_refused(inspector: Inspector, served: Served) -> None:
    wrong = served.world.keys["acme"]["member"][:-1] + "~"
    code, _, said = await inspector("--method", "tools/list", *_target("http", served, wrong))
    assert code == REFUSED, said


async def test_many_calls_at_once_all_succeed(inspector: Inspector, served: Served) -> None:
    key = served.world.keys["acme"]["viewer"]
    call = ["--method", "tools/call", "--tool-name", "slot_status", "--tool-args-json", json.dumps(LIVE)]
    load = ["--load", "--load-requests", "300", "--load-concurrency", "16"]
    code, found, said = await inspector("--protocol-era", "modern", *call, *load, *_target("http", served, key))
    assert code == 0, (found, said)


async def test_every_pattern_of_a_schema_is_one_for_javascript(inspector: Inspector) -> None:
    def patterns(schema: Any) -> list[str]:
        if isinstance(schema, dict):
            own = [schema["pattern"]] if isinstance(schema.get("pattern"), str) else []
            return own + [found for value in schema.values() for found in patterns(value)]
        return [found for item in schema for found in patterns(item)] if isinstance(schema, list) else []

    found = sorted(set(patterns(json.loads(FILE.read_text(encoding="utf-8")))))
    assert len(found) >= 5
    script = "for (const p of JSON.parse(process.argv[1])) new RegExp(p, 'u')"
    node = shutil.which("node", path=inspector.environ["PATH"])
    assert node
    done = subprocess.run(
        [node, "-e", script, json.dumps(found)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
