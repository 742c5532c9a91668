"""A run's steps over HTTP as they happen: from the beginning, without gaps, to the result."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from codeb_mcp.faces.calls import Caller
from codeb_mcp.faces.run_streams import RunStreams
from codeb_mcp.model.access import Role
from codeb_mcp.model.errors import DriverUnavailable
from codeb_mcp.operations.context import Event
from tests.faces.story import LIVE, image
from tests.faces.world import Served, World

SECONDS = 20


async def _begun(served: Served, version: str = "v2") -> str:
    """The id of a deploy that was started and not waited for."""
    reply = await served.tool("deploy", served.world.keys["acme"]["member"], {**image(version), "wait": False})
    run: str = reply.json()["operationId"]
    return run


def _stream(served: Served, run: str, key: str = "") -> Any:
    headers = {"X-API-Key": key or served.world.keys["acme"]["viewer"]}
    return served.http.stream("GET", f"/api/operations/{run}/stream", headers=headers)


async def _events(reply: httpx2.Response) -> AsyncIterator[tuple[str, Any]]:
    """`(event, data)` until the stream ends."""
    event = ""
    async with asyncio.timeout(SECONDS):
        async for line in reply.aiter_lines():
            if line.startswith("event: "):
                event = line[7:]
            elif line.startswith("data: "):
                yield event, json.loads(line[6:])


def _steps(events: list[tuple[str, Any]]) -> list[tuple[str, str]]:
    """The last word on each step, in order."""
    last = {data["position"]: (data["name"], data["status"]) for event, data in events if event == "step"}
    return [last[position] for position in sorted(last)]


async def _known(served: Served, run: str) -> dict[str, Any]:
    reply = await served.tool("operation_get", served.world.keys["acme"]["viewer"], {"operationId": run})
    body: dict[str, Any] = reply.json()["result"]
    return body


@pytest.mark.parametrize("version", ["v2", "sick"])
async def test_a_run_that_has_ended_is_told_whole_and_the_stream_ends(served: Served, version: str) -> None:
    run = await _begun(served, version)
    await served.world.services.runs.drain()
    async with _stream(served, run) as reply:
        assert reply.status_code == 200
        assert reply.headers["content-type"] == "text/event-stream"
        events = [event async for event in _events(reply)]
    known = await _known(served, run)
    assert _steps(events) == [(step["name"], step["status"]) for step in known["steps"]]
    assert [event for event, _ in events].count("result") == 1
    assert events[-1] == ("result", known)
    assert known["status"] == ("succeeded" if version == "v2" else "failed")


async def test_steps_are_told_as_they_happen(served: Served) -> None:
    pause = served.world.engine.faults.pause("containers.ensure")
    run = await _begun(served)
    await pause.reached.wait()
    events = []
    async with _stream(served, run) as reply:
        async for event, data in _events(reply):
            events.append((event, data))
            if event == "step" and data["name"] == "start_container" and data["status"] == "running":
                assert (await _known(served, run))["status"] == "running"
                pause.release()
    known = await _known(served, run)
    assert events[-1] == ("result", known)
    assert known["status"] == "succeeded"
    assert _steps(events) == [(step["name"], step["status"]) for step in known["steps"]]
    assert any(event == "progress" for event, _ in events)


async def test_a_slow_reader_misses_no_step_and_holds_up_nobody(shop: World) -> None:
    pause = shop.engine.faults.pause("images.pull")
    viewer = await shop.principal(shop.keys["acme"]["viewer"])
    begun = await shop.call("deploy", shop.keys["acme"]["member"], **image("v2"), wait=False)
    run = begun["operationId"]
    await pause.reached.wait()
    stream = await RunStreams(Caller(shop.services)).open(viewer, run, "slow")
    sent, may_read, stuck = bytearray(), asyncio.Event(), asyncio.Event()

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            stuck.set()
            await may_read.wait()
            sent.extend(message.get("body", b""))

    async def receive() -> Any:
        await asyncio.Event().wait()

    following = asyncio.create_task(stream({}, receive, send))
    async with asyncio.timeout(SECONDS):
        await stuck.wait()
        for number in range(10_000):
            stream._hear(Event(run, "pull_image", "running", 1, 5, number / 10_000, f"layer {number}"))
        pause.release()
        await shop.services.runs.drain()
        may_read.set()
        await following
    known = await shop.call("operation_get", shop.keys["acme"]["viewer"], operationId=run)
    told = [part.splitlines() for part in sent.decode().split("\n\n") if part.startswith("event: ")]
    events = [(lines[0][7:], json.loads(lines[1][6:])) for lines in told]
    assert _steps(events) == [(step["name"], step["status"]) for step in known["steps"]]
    assert events[-1][0] == "result"
    assert sum(event == "progress" for event, _ in events) < 10


async def test_a_run_that_stays_open_is_told_as_interrupted(served: Served) -> None:
    world = served.world
    world.engine.faults.fail("containers.ensure", DriverUnavailable("away"))
    pause = world.engine.faults.pause("images.pull")
    run = await _begun(served)
    await pause.reached.wait()
    async with _stream(served, run) as reply:
        await world.services.runs.close()
        events = [event async for event in _events(reply)]
    assert (events[-1][0], events[-1][1]["status"]) == ("result", "interrupted")
    pause.release()


@pytest.mark.parametrize(("team", "role", "status"), [("other", "owner", 404), ("default", "owner", 404)])
async def test_a_run_of_another_team_is_not_found(served: Served, team: str, role: str, status: int) -> None:
    run = await _begun(served)
    async with _stream(served, run, served.world.keys[team][role]) as reply:
        assert reply.status_code == status
    for name in ("op_unknown", "..%2f..%2fetc", "%00", "a" * 500):
        async with _stream(served, name) as reply:
            assert reply.status_code in (404, 422), name
    assert (await served.http.get(f"/api/operations/{run}/stream")).status_code == 401


async def test_it_ends_when_its_key_is_revoked_and_counts_per_key(served: Served) -> None:
    pause = served.world.engine.faults.pause("images.pull")
    run = await _begun(served)
    await pause.reached.wait()
    key = await served.world.key("acme", Role.VIEWER)
    async with _stream(served, run, key) as reply:
        events = _events(reply)
        assert (await anext(events))[0] in ("step", "progress")
        await served.world.change_key(key, revokedAt="2020-01-01T00:00:00+00:00")
        rest = [event async for event, _ in events]
    assert "result" not in rest
    pause.release()
    assert (await served.tool("slot_status", served.world.keys["acme"]["viewer"], LIVE)).status_code == 200
