"""An installation whose outside world is in memory and whose registry is a real folder; time stands until it is moved."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest
import structlog

from codeb_mcp.drivers.fake_names import FakeNames, FakeOutside, FakeWorld
from codeb_mcp.drivers.fake_proxy import FakeEdge, FakeProber, FakeProxy, FakeTraffic
from codeb_mcp.drivers.fakes import FakeContainers, FakeEngine, FakeImages
from codeb_mcp.drivers.flags import LocalTraffic
from codeb_mcp.drivers.github import GitHubPullRequests
from codeb_mcp.drivers.inspect import SocketInspector
from codeb_mcp.drivers.ssh import SshHosts
from codeb_mcp.model.access import Principal, Role
from codeb_mcp.model.errors import CodebError, LockHeld
from codeb_mcp.model.names import Environment, Slot
from codeb_mcp.model.slot import Slots
from codeb_mcp.operations.catalog import load_all
from codeb_mcp.operations.context import Drivers, Progress, Registry, Services, unheard
from codeb_mcp.operations.invoke import Call, invoke
from codeb_mcp.operations.runs import Runs
from codeb_mcp.operations.setup import initialise
from codeb_mcp.operations.state import load_slots
from codeb_mcp.operations.trail import Trail
from codeb_mcp.registry.audit import AuditTrail
from codeb_mcp.registry.disk import Disk
from codeb_mcp.registry.env_history import EnvHistories
from codeb_mcp.registry.files import FileStore
from codeb_mcp.registry.journal import Journals
from codeb_mcp.registry.limits import RateLimiter
from codeb_mcp.settings import Settings
from tests.lab.app_servers import FakeAppServers

WAIT_SECONDS = 20.0
T = TypeVar("T")
MakeJournals = Callable[[Path, FileStore, Callable[[], datetime]], Journals]


class StoppedClock:
    """Implements `Clock`; `forward` lets time pass."""

    def __init__(self) -> None:
        self.moment = datetime(2026, 1, 7, 12, 0, tzinfo=UTC)

    def now(self) -> datetime:
        """The present moment."""
        return self.moment

    def forward(self, **amount: float) -> None:
        """Let this much time pass (arguments of timedelta)."""
        self.moment += timedelta(**amount)


class UnsyncedDisk(Disk):
    """No test here pulls the plug, so nothing need wait for the platters."""

    def create(self, path: str, data: bytes, *, durable: bool) -> None:
        """See `Disk.create`."""
        super().create(path, data, durable=False)

    def sync_file(self, path: str) -> None:
        """See `Disk.sync_file`."""

    def sync_folder(self, path: str) -> None:
        """See `Disk.sync_folder`."""


@dataclass
class PortsInUse:
    """Implements `Ports`: what the test says is listened on."""

    ports: set[int] = field(default_factory=set)

    async def listening(self) -> frozenset[int]:
        """See `Ports.listening`."""
        return frozenset(self.ports)


def principal(role: Role = Role.OWNER, team: str = "default", *scopes: str, platform: bool | None = None) -> Principal:
    """A caller of this role and team; the team `default` runs the installation."""
    is_platform = team == "default" if platform is None else platform
    return Principal(f"key_{team}_{role}", f"{role} of {team}", team, role, scopes, is_platform, "test")


OWNER = principal()


def plain_journals(root: Path, store: FileStore, clock: Callable[[], datetime]) -> Journals:
    """The journals as they are in production."""
    return Journals(root, store, clock=clock, disk=UnsyncedDisk())


class World:
    """Engine, proxy, kernel, clock and one folder. `start` puts an installation on them, again after a crash."""

    def __init__(self, root: Path) -> None:
        self.clock = StoppedClock()
        self.edge = FakeEdge()
        self.dns = FakeWorld()
        self.engine = FakeEngine(apps=self.edge.apps)
        self.ports = PortsInUse()
        self.app_servers = FakeAppServers()
        self.min_free_bytes = 1 << 30
        self.logged = structlog.testing.LogCapture()
        self.settings = Settings.model_validate(
            {
                "root": root,
                "docker": {"min_free_mb": 1024},
                "proxy": {"listen": [":80"], "public": "127.0.0.1:80"},
                "server": {"calls_per_minute": 1_000_000, "team_calls_per_minute": 1_000_000},
            }
        )
        self.services = self.start()
        self._former: list[Services] = []

    def start(self, make_journals: MakeJournals = plain_journals) -> Services:
        """A new process of the installation, on the same world and folder."""
        load_all()
        store = FileStore(self.settings.registry, clock=self.clock.now, disk=UnsyncedDisk())
        registry = Registry(
            store=store,
            journals=make_journals(self.settings.registry, store, self.clock.now),
            audit=AuditTrail(self.settings.registry, disk=UnsyncedDisk()),
            limiter=RateLimiter(self.settings.run / "limits"),
            env=EnvHistories(self.settings.root, disk=UnsyncedDisk(), immutable_master=False),
        )
        drivers = Drivers(
            containers=FakeContainers(self.engine),
            images=FakeImages(self.engine, min_free_bytes=self.min_free_bytes),
            proxy=FakeProxy(self.edge),
            traffic=LocalTraffic(FakeTraffic(self.edge)),
            prober=FakeProber(self.edge),
            ports=self.ports,
            clock=self.clock,
            hosts=SshHosts(),
            app_servers=self.app_servers,
            inspect=SocketInspector(),
            pull_requests=GitHubPullRequests("http://127.0.0.1:9", None),
            names=FakeNames(self.dns),
            outside=FakeOutside(self.dns),
        )
        log = structlog.wrap_logger(structlog.ReturnLogger(), processors=[self.logged])
        services = Services(self.settings, drivers, registry, Trail(registry.audit), Runs(), log)
        services.runs.bind(services)
        return services

    def restart(self, make_journals: MakeJournals = plain_journals) -> Services:
        """The process vanishes: nothing of it acts, ends or says goodbye, and its leases run out."""
        self._former.append(self.services)
        self.clock.forward(minutes=2)
        self.services = self.start(make_journals)
        return self.services

    async def close(self) -> None:
        """End what still runs."""
        for services in (*self._former, self.services):
            await services.runs.close()
            await services.trail.close()
            await services.drivers.hosts.close()

    # ── calls ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def call(
        self, name: str, caller: Principal = OWNER, progress: Progress = unheard, /, **arguments: Any
    ) -> dict[str, Any]:
        """The wire form of the answer."""
        return (await bounded(invoke(self.services, Call(name, arguments, caller, progress=progress)))).body

    async def refused(self, code: str, tool: str, caller: Principal = OWNER, /, **arguments: Any) -> CodebError:
        """The error of a call that must fail with this code."""
        with pytest.raises(CodebError) as caught:
            await self.call(tool, caller, **arguments)
        assert caught.value.code == code, caught.value.as_dict()
        return caught.value

    # ── a project and its releases ──────────────────────────────────────────────────────────────────────────────

    async def project(self, name: str = "shop", *environments: str, caller: Principal = OWNER, **settings: Any) -> None:
        """A project with these environments (production if none is named) whose health check gives up quickly; `domain` is the
        host that production has instead of its default one."""
        settings = {"healthCheck": {"deadlineSeconds": 1, "intervalSeconds": 0.05}} | settings
        wanted, domain = list(environments or ("production",)), settings.pop("domain", None)
        await self.call("project_create", caller, projectName=name, environments=wanted, **settings)
        if domain is not None:
            await self.call("project_update", caller, projectName=name, environment="production", domain=domain)

    def image(self, version: str, name: str = "shop", **knobs: str) -> str:
        """A published image; knobs are those of the sample application."""
        reference = f"registry.test/{name}:{version}"
        self.engine.publish(reference, version, labels=None, **knobs)
        return reference

    async def deploy(self, version: str = "v1", name: str = "shop", **more: Any) -> dict[str, Any]:
        """Publish an image of that version, unless one is named, and deploy it to production."""
        image = more.pop("image", None) or self.image(version, name)
        return await self.call(
            "deploy",
            more.pop("caller", OWNER),
            **{"projectName": name, "environment": "production", "image": image, "version": version} | more,
        )

    async def promote(self, name: str = "shop", environment: str = "production", **more: Any) -> dict[str, Any]:
        """Promote what waits."""
        return await self.call("promote", projectName=name, environment=environment, **more)

    async def rollback(self, name: str = "shop", environment: str = "production", **more: Any) -> dict[str, Any]:
        """Go back."""
        return await self.call("rollback", projectName=name, environment=environment, **more)

    async def live(self, version: str = "v1", name: str = "shop") -> None:
        """Deploy and promote."""
        await self.deploy(version, name)
        await self.promote(name)

    # ── looking ─────────────────────────────────────────────────────────────────────────────────────────────────

    async def slots(self, name: str = "shop", environment: str = "production") -> Slots:
        """What the registry says."""
        return await load_slots(self.services.store, name, Environment(environment))

    async def states(self, name: str = "shop", environment: str = "production") -> tuple[str, str]:
        """States of blue and green."""
        slots = await self.slots(name, environment)
        return slots.blue.state.value, slots.green.state.value

    async def visit(self, host: str = "shop.codeb.localhost", path: str = "/version") -> str:
        """What a user gets: the version that answers, or the status."""
        answer = await FakeProber(self.edge).public(host, path, timeout_seconds=1)
        return answer.body_head.strip() if answer.status == 200 else str(answer.status)

    def running(self) -> list[str]:
        """Names of all containers, whatever their state."""
        return sorted(self.engine.containers)

    async def drift(self) -> list[dict[str, Any]]:
        """What registry_check finds."""
        rows: list[dict[str, Any]] = (await self.call("registry_check", limit=200))["data"]
        return rows

    async def require_consistent(self, name: str = "shop", environment: str = "production") -> Slots:
        """Registry, engine, flags and routes say the same, nothing is left open, and the state is legal."""
        slots = await self.slots(name, environment)
        assert await self.drift() == []
        assert await self.services.registry.journals.open_runs() == []
        for slot in Slot:
            assert (slots.record(slot).state == "active") == (slots.active_slot is slot)
        return slots


async def bounded(work: Awaitable[T], seconds: float = WAIT_SECONDS) -> T:
    """Wait, but not for ever."""
    async with asyncio.timeout(seconds):
        return await work


async def until(true: Callable[[], bool]) -> None:
    """Wait, in turns with everything else, until the condition holds."""
    async with asyncio.timeout(WAIT_SECONDS):
        while not true():
            await asyncio.sleep(0.001)


async def with_leases(world: World, work: Callable[[], Awaitable[T]]) -> T:
    """Do the work again while another holder is just letting go."""
    for _ in range(200):
        try:
            return await work()
        except LockHeld:
            await asyncio.sleep(0.005)
    return await work()


async def initialised(root: Path) -> World:
    """A world after `codeb init`."""
    world = World(root)
    await initialise(world.services)
    return world
