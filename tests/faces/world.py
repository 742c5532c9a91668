"""An installation for the server faces: a real registry in a temporary folder, an outside world of fakes, and keys of
every role in two teams. `served()` puts it behind a real port."""

from __future__ import annotations

import asyncio
import contextlib
import io
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import structlog
import uvicorn

from codeb_mcp.app import opened
from codeb_mcp.drivers.clock import SystemClock
from codeb_mcp.drivers.fake_names import FakeNames, FakeOutside, FakeWorld
from codeb_mcp.drivers.fake_proxy import FakeEdge, FakeProber, FakeProxy, FakeTraffic
from codeb_mcp.drivers.fakes import FakeContainers, FakeEngine, FakeImages
from codeb_mcp.drivers.flags import LocalTraffic
from codeb_mcp.drivers.github import GitHubPullRequests
from codeb_mcp.drivers.inspect import SocketInspector
from codeb_mcp.drivers.ssh import SshHosts
from codeb_mcp.faces.http import build_app, server_config
from codeb_mcp.faces.logs import forward_library_logs
from codeb_mcp.model.access import Principal, Role
from codeb_mcp.operations.context import Drivers, Services
from codeb_mcp.operations.invoke import Call, invoke
from codeb_mcp.operations.keys import KeyRing, NewKey, issue, with_key
from codeb_mcp.operations.setup import initialise
from codeb_mcp.registry.store import update
from codeb_mcp.settings import Server, Settings
from tests.lab.app_servers import FakeAppServers

START_SECONDS = 20
IMPATIENT = {"deadlineSeconds": 1, "intervalSeconds": 0.2}
PATIENT = {"deadlineSeconds": 60, "intervalSeconds": 0.2}


class NoPorts:
    """Nothing listens on this host, so that ports are the same in every run."""

    async def listening(self) -> frozenset[int]:
        """See `Ports.listening`."""
        return frozenset()


def fake_drivers(engine: FakeEngine, edge: FakeEdge) -> Drivers:
    """An outside world in memory, with the real clock."""
    dns = FakeWorld(zones={"example.com"})
    return Drivers(
        containers=FakeContainers(engine),
        images=FakeImages(engine),
        proxy=FakeProxy(edge),
        traffic=LocalTraffic(FakeTraffic(edge)),
        prober=FakeProber(edge),
        ports=NoPorts(),
        clock=SystemClock(),
        hosts=SshHosts(),
        app_servers=FakeAppServers(),
        inspect=SocketInspector(),
        pull_requests=GitHubPullRequests("http://127.0.0.1:9", None),
        names=FakeNames(dns),
        outside=FakeOutside(dns),
    )


def opener_with_a_sick(image: str) -> Callable[[Settings], contextlib.AbstractAsyncContextManager[Services]]:
    """What `opened` is, on an outside world of its own whose only image never gets healthy: for child processes."""
    edge = FakeEdge()
    engine = FakeEngine(apps=edge.apps)
    engine.publish(image, "sick", HEALTH="fail")
    return lambda settings: opened(removable(settings), fake_drivers(engine, edge))


@dataclass
class World:
    """`keys["acme"]["member"]` is the text of a key; `services` is the installation, `log` what it logged."""

    services: Services
    engine: FakeEngine
    edge: FakeEdge
    log: io.StringIO
    ring: KeyRing = field(default_factory=KeyRing)
    keys: dict[str, dict[str, str]] = field(default_factory=dict)

    async def key(
        self, team: str, role: Role, *, scopes: tuple[str, ...] = (), life: timedelta | None = timedelta(days=1)
    ) -> str:
        """A new key."""
        now = self.services.drivers.clock.now()
        issued = issue(NewKey(team, role, f"{team} {role}", scopes, life), by="test", now=now)
        await update(self.services.store, "api-keys", lambda doc: with_key(doc, issued.record, now))
        return issued.text

    async def change_key(self, text: str, **fields: str) -> None:
        """Change the record behind a key, as another process could."""
        record = await self.ring._find(self.services.store, text)
        assert record is not None

        def change(doc: Any) -> Any:
            return {**doc, "keys": {**doc["keys"], record.id: {**doc["keys"][record.id], **fields}}}

        await update(self.services.store, "api-keys", change)

    async def principal(self, text: str, via: str = "test") -> Principal:
        """The caller behind a key."""
        return await self.ring.authenticate(self.services, text, via=via)

    async def call(self, tool: str, key: str, /, **params: Any) -> dict[str, Any]:
        """Call an operation without any face."""
        answer = await invoke(self.services, Call(tool, params, await self.principal(key)))
        return answer.body

    async def with_project(self, name: str = "shop", team: str = "acme") -> World:
        """A project with a live v1 in production, and images v1, v2 and one that never gets healthy."""
        member = self.keys[team]["member"]
        await self.call("project_create", member, projectName=name, healthCheck=IMPATIENT)
        publish(self, name)
        await self.call("deploy", member, projectName=name, environment="production", image=f"ghcr.io/acme/{name}:v1")
        await self.call("promote", member, projectName=name, environment="production")
        return self


def publish(world: World, name: str = "shop") -> None:
    """Put versions v1 to v3 of an image into the registry that the engine pulls from, and one that never gets healthy."""
    for version in ("v1", "v2", "v3"):
        world.engine.publish(f"ghcr.io/acme/{name}:{version}", version)
    world.engine.publish(f"ghcr.io/acme/{name}:sick", "sick", HEALTH="fail")


def settings_for(root: Path, **server: Any) -> Settings:
    """Settings with limits that no test but the one for limits meets."""
    limits = {"calls_per_minute": 1_000_000, "team_calls_per_minute": 1_000_000, "failed_logins_per_minute": 1_000_000}
    settings = Settings(root=root, server=Server.model_validate({**limits, **server}), log_level="info")
    return removable(settings)


def removable(settings: Settings) -> Settings:
    """The settings without files that even root cannot remove."""
    return settings.model_copy(update={"env": settings.env.model_copy(update={"immutable_master": False})})


@contextlib.asynccontextmanager
async def open_world(root: Path, **server: Any) -> AsyncIterator[World]:
    """A world with teams `default` (which runs the installation), `acme` and `other`."""
    edge = FakeEdge()
    engine = FakeEngine(apps=edge.apps)
    async with opened(settings_for(root, **server), fake_drivers(engine, edge)) as services:
        log = io.StringIO()
        structlog.configure(logger_factory=structlog.PrintLoggerFactory(log))
        forward_library_logs(services.log)
        first = await initialise(services)
        world = World(services, engine, edge, log)
        world.keys["default"] = {"owner": first.owner_key or ""}
        await _teams(world)
        yield world
        await services.runs.drain()


async def _teams(world: World) -> None:
    for team in ("acme", "other"):
        made = await world.call("team_create", world.keys["default"]["owner"], teamId=team, name=team)
        world.keys[team] = {"owner": made["ownerKey"]}
    for team in ("default", "acme", "other"):
        for role in (Role.VIEWER, Role.MEMBER, Role.ADMIN):
            world.keys[team][role.value] = await world.key(team, role)


@dataclass(frozen=True)
class Served:
    """A world behind a real port."""

    world: World
    url: str
    http: httpx2.AsyncClient

    async def tool(
        self, tool: Any, key: str, /, params: Any = None, headers: Mapping[str, str] | None = None
    ) -> httpx2.Response:
        """`POST /api/tool`."""
        body = {"tool": tool, "params": params if params is not None else {}}
        return await self.http.post("/api/tool", json=body, headers={"X-API-Key": key, **(headers or {})})


@contextlib.asynccontextmanager
async def serving(world: World, build: Callable[[Services], Any] = build_app) -> AsyncIterator[Served]:
    """The world's HTTP face on a free loopback port, until the end of the block."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # else no TCP_NODELAY
    listener.bind(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    config = server_config(build(world.services), world.services.settings)
    config.timeout_graceful_shutdown = 1
    server = uvicorn.Server(config)
    task = asyncio.create_task(_quietly(server, listener))
    try:
        async with asyncio.timeout(START_SECONDS):
            while not server.started and not task.done():
                await asyncio.sleep(0.005)
        async with httpx2.AsyncClient(base_url=url, timeout=60, trust_env=False) as http:
            yield Served(world, url, http)
    finally:
        server.should_exit = True
        async with asyncio.timeout(START_SECONDS):
            await task
        listener.close()


async def _quietly(server: uvicorn.Server, listener: socket.socket) -> None:
    """`Server.serve` without its signal handlers: those belong to the test runner."""
    config = server.config
    config.load()
    server.lifespan = config.lifespan_class(config)
    await server.startup(sockets=[listener])
    await server.main_loop()
    await server.shutdown(sockets=[listener])
