"""The story: everything through an MCP client, as an agent would do it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from demo_app.parts import ENVIRONMENT, DemoError, Parts
from demo_app.view import Step, View

CLIENTS = 16
LOAD_SECONDS = 1.0
"""How long the load runs before and after each switch."""

CALL_SECONDS = 180.0


class Story:
    """One telling. `lost`: requests that got no right answer."""

    def __init__(self, parts: Parts, view: View) -> None:
        self.parts = parts
        self.view = view
        self.lost = 0
        self._where = {"projectName": parts.project, "environment": ENVIRONMENT}

    async def tell(self) -> None:
        """From two images to a rollback under load."""
        for version in ("v1", "v2"):
            with self.view.step(f"image {version}") as step:
                made = await self.parts.make_image(version)
                step.says(f"{self.parts.image(version).rpartition('/')[2]} {made}")
        headers = {"X-API-Key": self.parts.owner_key}
        async with (
            httpx2.AsyncClient(headers=headers, timeout=CALL_SECONDS, trust_env=False) as http,
            Client(streamable_http_client(self.parts.mcp_url, http_client=http)) as client,
        ):
            await self._through(client)

    async def _through(self, client: Client) -> None:
        tools = await client.list_tools()
        self.view.chapter(f"Through an MCP client ({len(tools.tools)} tools)")
        await self._create(client)
        await self._deploy(client, "v1")
        await self._switch(client, "promote")
        self.view.chapter(f"Under load: {CLIENTS} keep-alive clients, GET and POST, no repeats")
        async with self._load() as seen:
            await self._deploy(client, "v2")
            await asyncio.sleep(LOAD_SECONDS)
            promoted = await self._switch(client, "promote")
            await asyncio.sleep(LOAD_SECONDS)
            restored = await self._switch(client, "rollback")
            await asyncio.sleep(LOAD_SECONDS)
        self._account(seen, promoted, restored)
        self.view.slots(await self._call(client, "slot_status", self._where))
        self._total(seen)

    async def _create(self, client: Client) -> None:
        policy = "always" if self.parts.registry and self.parts.pulls else "never"
        wanted = {"projectName": self.parts.project, "environments": [ENVIRONMENT], "pullPolicy": policy}
        with self.view.step("project_create") as step:
            made = await self._call(client, "project_create", wanted)
            one = made["environments"][0]
            step.says(f"{one['url']}, ports {one['ports']['blue']} (blue) and {one['ports']['green']} (green)")

    async def _deploy(self, client: Client, version: str) -> None:
        with self.view.step(f"deploy {version}") as step:
            image = {"image": self.parts.image(version), **self._where}
            done = await self._call(client, "deploy", image, step)
            step.says(f"slot {done['slot']}, port {done['port']}, {str(done.get('digest') or '')[:19]}")
        self.view.run_steps(done["steps"])

    async def _switch(self, client: Client, tool: str) -> dict[str, Any]:
        began = time.monotonic()
        with self.view.step(tool) as step:
            done = await self._call(client, tool, self._where, step)
            version = done.get("newVersion") or done.get("restoredVersion")
            step.says(f"{done.get('fromSlot') or 'nothing'} → {done['toSlot']}, {version} serves")
        self.view.run_steps(done["steps"])
        return {"began": began, "took": time.monotonic() - began, "version": version, "steps": done["steps"]}

    async def _call(
        self, client: Client, tool: str, arguments: Mapping[str, Any], step: Step | None = None
    ) -> dict[str, Any]:
        async def news(progress: float, total: float | None, message: str | None) -> None:
            if step is not None and message:
                step.busy(message, progress, total or 0)

        async with asyncio.timeout(CALL_SECONDS):
            answer = await client.call_tool(tool, dict(arguments), progress_callback=news)
        if answer.is_error:
            text = " ".join(getattr(part, "text", "") for part in answer.content)
            raise DemoError(f"{tool} failed: {text}")
        return dict(answer.structured_content or {})

    @contextlib.asynccontextmanager
    async def _load(self) -> AsyncIterator[dict[str, Any]]:
        """Clients in another process during the block; what they saw is in the dictionary afterwards."""
        host = f"{self.parts.project}.codeb.localhost"
        argv = [sys.executable, "-m", "demo_app.load", str(self.parts.public_port), host, str(CLIENTS)]
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=pipe, stdout=pipe, cwd=Path(__file__).parents[1], limit=1 << 26
        )
        seen: dict[str, Any] = {}
        try:
            await asyncio.sleep(LOAD_SECONDS)
            yield seen
            async with asyncio.timeout(30):
                out, _ = await process.communicate(b"")  # closes its stdin
            seen.update(json.loads(out))
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    def _account(self, seen: Mapping[str, Any], *switches: Mapping[str, Any]) -> None:
        self.view.chapter("What the clients saw")
        per: dict[str, int] = {}
        for _, version in seen["answers"]:
            per[version] = per.get(version, 0) + 1
        parts = ", ".join(f"{count:,} from {version}" for version, count in sorted(per.items()))
        self.view.fact("answers", parts)
        self.view.fact("requests", f"{seen['gets']:,} GET, {seen['posts']:,} POST, {seen['connections']} connections")
        for name, switch in zip(("promote v2", "rollback to v1"), switches, strict=True):
            self.view.fact(name, told(switch, seen["answers"]))

    def _total(self, seen: Mapping[str, Any]) -> None:
        self.lost = seen["lost"] + (0 if seen["answers"] else 1)
        served = len(seen["answers"])
        self.view.total(f"{served:,} requests served, {seen['lost']} lost", good=not self.lost)
        for example in seen["examples"]:
            self.view.note(example)


def told(switch: Mapping[str, Any], answers: list[tuple[float, str]]) -> str:
    """One switch as the server measured it, and as its clients did: the whole call, and for how long answers of the old
    version still came after the first of the new one."""
    step = next(one for one in switch["steps"] if one["name"] == "switch_traffic")
    whole = sum(one.get("duration") or 0 for one in switch["steps"])
    after = [(moment, version) for moment, version in answers if moment >= switch["began"]]
    first = next((moment for moment, version in after if version == switch["version"]), None)
    if first is None:
        return "no client ever saw it"
    until = switch["began"] + switch["took"] + LOAD_SECONDS
    last = max((moment for moment, version in after if version != switch["version"] and moment < until), default=first)
    crossing = max(0.0, (last - first) * 1000)
    return (
        f"switch {step['duration']:.1f} ms of {whole:.0f} ms in all steps, call {switch['took'] * 1000:.0f} ms, "
        f"crossing {crossing:.0f} ms"
    )
