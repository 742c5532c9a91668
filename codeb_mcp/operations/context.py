"""What an operation is handed: the installation's parts and the caller. Passed, never global."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from codeb_mcp.drivers.dns import Names
from codeb_mcp.drivers.hosts import Hosts, Inspector
from codeb_mcp.drivers.outside import Outside
from codeb_mcp.drivers.own_stores import Stores
from codeb_mcp.drivers.protocols import Clock, Containers, Images, Ports, Prober, Proxy, PullRequests, Traffic
from codeb_mcp.model.access import Principal
from codeb_mcp.model.server import Server
from codeb_mcp.operations.env_copies import EnvCopies
from codeb_mcp.registry.audit import AuditTrail
from codeb_mcp.registry.env_history import EnvHistories
from codeb_mcp.registry.journal import Journals
from codeb_mcp.registry.limits import RateLimiter
from codeb_mcp.registry.store import StateStore
from codeb_mcp.settings import Settings

if TYPE_CHECKING:
    from codeb_mcp.operations.runs import Runs
    from codeb_mcp.operations.trail import Trail


@dataclass(frozen=True, slots=True)
class Event:
    """One piece of news from a run. `fraction` is how far the step is (0..1), None while unknown; `position` of `total`
    steps."""

    operation_id: str
    step: str
    status: str
    position: int
    total: int
    fraction: float | None = None
    message: str = ""


Progress = Callable[[Event], None]


def unheard(event: Event) -> None:
    """For callers who do not listen."""


@dataclass(frozen=True, slots=True)
class AppServer:
    """All that a release is run with on one app server: its engine, its proxy with the flags, its ports, and its
    front door as strangers find it."""

    containers: Containers
    images: Images
    proxy: Proxy
    traffic: Traffic
    prober: Prober
    ports: Ports
    outside: Outside


class AppServers(Protocol):
    """The app servers of the inventory."""

    def at(self, key: str, server: Server) -> AppServer:
        """The app server of that name; nothing is connected before it is used."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


@dataclass(frozen=True, slots=True)
class Drivers(AppServer):
    """The outside world: the app server beside the control plane, and all else. `hosts` are the servers of the inventory,
    `app_servers` those of them that run releases."""

    clock: Clock
    hosts: Hosts
    app_servers: AppServers
    inspect: Inspector
    names: Names
    pull_requests: PullRequests
    stores: Stores = field(default_factory=Stores)


@dataclass(frozen=True, slots=True)
class Registry:
    """The single source of truth."""

    store: StateStore
    journals: Journals
    audit: AuditTrail
    limiter: RateLimiter
    env: EnvHistories


@dataclass(frozen=True, slots=True)
class Services:
    """Everything an installation consists of. `allocation`: whoever hands out ports in this process holds it.
    `copies`: who copies variables to the Backup servers."""

    settings: Settings
    drivers: Drivers
    registry: Registry
    trail: Trail
    runs: Runs
    log: Any
    allocation: asyncio.Lock = field(default_factory=asyncio.Lock)
    copies: EnvCopies = field(default_factory=EnvCopies)

    @property
    def store(self) -> StateStore:
        """Short for `registry.store`."""
        return self.registry.store


@dataclass(frozen=True, slots=True)
class Context:
    """One call."""

    services: Services
    caller: Principal
    correlation_id: str
    progress: Progress = unheard

    @property
    def store(self) -> StateStore:
        """Short for `services.registry.store`."""
        return self.services.registry.store
