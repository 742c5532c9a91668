"""`codeb serve` as a process of its own, on a registry that a world has made."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest

from tests.faces.ways import ERAS, Outcome, saying
from tests.faces.world import World
from tests.lab.ports import FreePorts

HERE = Path(__file__).parents[2]
SECONDS = 60


@pytest.fixture
def port() -> Iterator[int]:
    """A port that no other test gets."""
    ports = FreePorts()
    yield ports()
    ports.release()


@asynccontextmanager
async def _serving(world: World, port: int) -> AsyncIterator[tuple[asyncio.subprocess.Process, httpx2.AsyncClient]]:
    root = world.services.settings.root
    (root / "codeb.toml").write_text(
        f'housekeeping_seconds = 3600\n[server]\nport = {port}\n[docker]\nhost = "unix:///nowhere"\n', encoding="utf-8"
    )
    keep = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "codeb_mcp", "serve", cwd=HERE,
        env={**keep, "CODEB_ROOT": str(root), "HOME": str(root.parent)},
        stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as http:
            async with asyncio.timeout(SECONDS):
                while not await _healthy(http):
                    await asyncio.sleep(0.05)
            yield process, http
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def _healthy(http: httpx2.AsyncClient) -> bool:
    try:
        return (await http.get("/health")).status_code == 200
    except httpx2.TransportError:
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_it_ends_in_order_when_asked_to(shop: World, port: int, number: signal.Signals) -> None:
    async with _serving(shop, port) as (process, http):
        key = {"X-API-Key": shop.keys["acme"]["viewer"]}
        body = {"tool": "slot_list", "params": {}}
        said = {**key, "X-Correlation-ID": "the-last-call"}
        assert (await http.post("/api/tool", json=body, headers=said)).status_code == 200
        async with http.stream("GET", "/sse", headers=key) as stream:
            assert stream.status_code == 200
            process.send_signal(number)
            async with asyncio.timeout(SECONDS):
                assert await process.wait() == 0
    rows, _ = await shop.services.registry.audit.page(team="acme", limit=5, offset=0)
    assert "the-last-call" in [row["correlationId"] for row in rows]
    assert (await shop.services.registry.audit.verify()).ok


async def test_it_listens_on_this_machine_only_unless_told_otherwise(shop: World, port: int) -> None:
    async with _serving(shop, port):
        wanted = f"{port:04X}"
        lines = [line.split() for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]]
        listening = {line[1] for line in lines if line[3] == "0A" and line[1].endswith(wanted)}
    assert listening == {f"0100007F:{wanted}"}


@pytest.mark.parametrize("era", ERAS)
async def test_an_mcp_client_gets_on_after_a_restart(shop: World, port: int, era: str) -> None:
    """The registry is the state: a new process answers as the former one did."""
    from mcp import Client
    from mcp.client.streamable_http import streamable_http_client

    async def ask() -> Outcome:
        headers = {"X-API-Key": shop.keys["acme"]["viewer"]}
        async with (
            httpx2.AsyncClient(headers=headers, timeout=30, trust_env=False) as http,
            Client(streamable_http_client(f"http://127.0.0.1:{port}/mcp", http_client=http), mode=era) as client,
        ):
            return await saying(client)("slot_status", {"projectName": "shop", "environment": "production"})

    answers = []
    for _ in range(2):
        async with _serving(shop, port):
            answers.append((await ask()).body)
    assert answers[0] == answers[1]
    assert answers[0]["activeSlot"] == "blue"
