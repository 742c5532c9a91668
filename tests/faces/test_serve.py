"""`codeb serve` as a process of its own, on a registry that a world has made."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest

from tests.faces.ways import ERAS, Outcome, saying
from tests.faces.world import PATIENT, World
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
async def _serving(
    world: World, port: int, program: Sequence[str] = ("codeb_mcp", "serve")
) -> AsyncIterator[tuple[asyncio.subprocess.Process, httpx2.AsyncClient]]:
    process = await _started(world, port, program)
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


async def _started(world: World, port: int, program: Sequence[str]) -> asyncio.subprocess.Process:
    root = world.services.settings.root
    (root / "codeb.toml").write_text(
        f'housekeeping_seconds = 3600\n[server]\nport = {port}\n[docker]\nhost = "unix:///nowhere"\n', encoding="utf-8"
    )
    keep = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", *program, cwd=HERE,
        env={**keep, "CODEB_ROOT": str(root), "HOME": str(root.parent)},
        stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip


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
    # Not the health: there is no engine here, and whether housekeeping has looked already is a matter of time.
    shown = [(one["activeSlot"], one["data"]["blue"]["version"], one["data"]["green"]["state"]) for one in answers]
    assert shown == [("blue", "v1", "empty")] * 2


SLOW = {"projectName": "slow", "image": "ghcr.io/acme/slow:sick"}


async def _under_way(world: World, runs: int) -> list[str]:
    """The ids of that many runs of the slow project that try to get healthy."""
    viewer = world.keys["acme"]["viewer"]
    async with asyncio.timeout(SECONDS):
        while True:
            rows = (await world.call("operation_list", viewer, projectName="slow"))["data"]
            shown = [await world.call("operation_get", viewer, operationId=row["operationId"]) for row in rows]
            trying = [one for one in shown if one["steps"] and one["steps"][-1]["name"] == "health_check"]
            if len(trying) == runs:
                return [one["operationId"] for one in trying]
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_calls_that_wait_for_a_run_are_answered_when_the_server_ends_and_the_next_one_takes_it_up(
    shop: World, port: int, number: signal.Signals
) -> None:
    from mcp import Client
    from mcp.client.streamable_http import streamable_http_client

    member = {"X-API-Key": shop.keys["acme"]["member"]}
    await shop.call(
        "project_create", member["X-API-Key"], projectName="slow", healthCheck={**PATIENT, "deadlineSeconds": 600}
    )
    program = ["tests.faces.serve_child"]
    async with (
        _serving(shop, port, program) as (process, http),
        httpx2.AsyncClient(headers=member, timeout=60, trust_env=False) as other,
        Client(streamable_http_client(f"http://127.0.0.1:{port}/mcp", http_client=other)) as client,
    ):
        by_http = asyncio.create_task(http.post("/api/tool", json={"tool": "deploy", "params": SLOW}, headers=member))
        by_mcp = asyncio.ensure_future(saying(client)("deploy", {**SLOW, "environment": "preview"}))
        runs = await _under_way(shop, 2)
        process.send_signal(number)
        reply, said = await by_http, await by_mcp
        async with asyncio.timeout(SECONDS):
            assert await process.wait() == 0
    body = reply.json()
    assert (reply.status_code, body["code"], body["retryable"]) == (503, "driver_unavailable", True)
    assert "the same call again joins it" in body["hint"]
    assert {body["operationId"], said.detail["operationId"]} == set(runs)
    assert (said.code, said.detail["retryable"]) == ("driver_unavailable", True)
    async with _serving(shop, port, program) as (_, http):
        for run_id in runs:
            call = {"tool": "operation_get", "params": {"operationId": run_id}}
            assert (await http.post("/api/tool", json=call, headers=member)).json()["status"] == "running"
        again = await http.post("/api/tool", json={"tool": "deploy", "params": {**SLOW, "wait": False}}, headers=member)
        assert again.json()["operationId"] == body["operationId"]
        for run_id in runs:
            call = {"tool": "operation_cancel", "params": {"operationId": run_id}}
            assert (await http.post("/api/tool", json=call, headers=member)).status_code == 200


async def test_a_port_that_is_taken_is_told_before_anything_is_done(shop: World, port: int) -> None:
    with socket.create_server(("127.0.0.1", port)):
        process = await _started(shop, port, ("codeb_mcp", "serve"))
        _, said = await asyncio.wait_for(process.communicate(), SECONDS)
    assert process.returncode == 20
    assert f"error: port {port} of 127.0.0.1 cannot be listened on" in said.decode()
    assert "hint: " in said.decode()
    assert "codeb serves" not in said.decode()
