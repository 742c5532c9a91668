"""What the program wants from the outside world, in its own words.

Methods say the wish, so repeating one is harmless. No library's types or exceptions cross this border: a driver raises
`DriverUnavailable` (cannot be reached), `DriverRefused` (answered no), `DeadlineExceeded`, `NotFound` or
`InsufficientStorage`, nothing else. Every call has a time limit of its own.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from codeb_mcp.model.foreign import ForeignSite
from codeb_mcp.model.names import Slot
from codeb_mcp.model.routes import RivalRoute, Site

PullProgress = Callable[[float | None, str], None]
"""Called with the fraction done (0..1, None while unknown) and a short text."""


@dataclass(frozen=True, slots=True)
class Engine:
    """The container engine's own account of itself."""

    version: str
    api_version: str
    data_root: str
    free_bytes: int | None


@dataclass(frozen=True, slots=True)
class Image:
    """An image on the engine. `digest` is the registry digest, or the image id for an image that was only loaded."""

    reference: str
    image_id: str
    digest: str
    size_bytes: int
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    """All that may be said about a container; everything else is not to be had. Sizes in bytes, times in seconds."""

    name: str
    image_id: str
    image_reference: str
    labels: Mapping[str, str]
    host_port: int
    container_port: int
    environment: Mapping[str, str]
    memory_bytes: int
    cpus: float
    pids: int
    read_only_root: bool = True
    tmpfs: tuple[str, ...] = ("/tmp",)
    capabilities: tuple[str, ...] = ()
    stop_timeout_seconds: int = 15
    host_address: str = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Container:
    """A container as observed. `state` is the engine's word: created, running, restarting, exited, dead …; `ports` leads from
    each published port of the host to the container's own; `environment` may hold secrets and is never shown."""

    name: str
    container_id: str
    image_id: str
    image_reference: str
    labels: Mapping[str, str]
    state: str
    host_ports: tuple[int, ...]
    exit_code: int | None
    started_at: datetime | None
    restart_count: int
    oom_killed: bool = False
    ports: Mapping[int, int] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def running(self) -> bool:
        """Whether its main process is up."""
        return self.state == "running"


class Containers(Protocol):
    """The engine's containers. Fencing: `ensure` and `remove` refuse (DriverRefused) when an existing container of the
    name carries a `codeb.fence` label that is higher than the one handed in."""

    async def engine(self) -> Engine:
        """Who answers; raises DriverUnavailable when nobody does."""
        ...

    async def ensure(self, spec: ContainerSpec) -> Container:
        """Have exactly this container running: the same one (by its `codeb.run` label and image id) is started if need
        be and kept, another one of the name is replaced."""
        ...

    async def remove(
        self, name: str, *, fence: int, stop_timeout_seconds: int = 15, adopted: str | None = None
    ) -> bool:
        """Stop it (SIGTERM, then SIGKILL after the time-out) and remove it; False when there was none. A container without
        labels of ours is refused, unless its id is `adopted`."""
        ...

    async def inspect(self, name: str) -> Container | None:
        """The container, or None when the engine says there is none."""
        ...

    async def list(self, *, managed: bool = True) -> list[Container]:
        """All containers, running or not; `managed` keeps those with a `codeb.project` label."""
        ...

    def logs(self, name: str, *, tail: int, since: datetime | None = None, follow: bool = False) -> AsyncIterator[str]:
        """Lines, each beginning with its RFC 3339 time stamp; raises NotFound when there is no such container."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


class Images(Protocol):
    """The engine's images."""

    async def pull(self, reference: str, *, policy: str = "always", progress: PullProgress | None = None) -> Image:
        """Have the image here. `policy`: always (ask the registry), missing (only if not here), never (must be here)."""
        ...

    async def find(self, reference: str) -> Image | None:
        """The local image of that reference, digest or id."""
        ...

    async def list_labelled(self, label: str) -> list[Image]:
        """Local images that carry the label."""
        ...

    async def remove(self, image_id: str) -> bool:
        """Remove by id; False when it is gone or still used by a container."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


@dataclass(frozen=True, slots=True)
class ObservedSite:
    """One of our sites as the proxy has it; `matches` says whether it is exactly what was asked for."""

    key: str
    hosts: tuple[str, ...]
    matches: bool


class Proxy(Protocol):
    """The edge proxy. Foreign routes always survive."""

    async def apply(self, *, upsert: Sequence[Site] = (), remove: Sequence[str] = (), take_over: bool = False) -> bool:
        """Have these sites (by key) and not those; concurrent calls share one configuration change. True: it changed.
        `take_over`: a foreign route that does nothing but send hosts of a site to one of its ports gives way to it.

        Besides the driver errors: InvalidRequest for a site that no proxy should get (nothing is sent), Conflict when
        another site already claims one of its hosts.
        """
        ...

    async def has(self, site: Site) -> bool:
        """Whether exactly this site is in the proxy's running configuration."""
        ...

    async def sites(self) -> list[str]:
        """The keys of all sites of ours in the running configuration."""
        ...

    async def others(self) -> list[ForeignSite]:
        """The sites of others on the server that has, or would have, ours, as far as they go to ports of this machine."""
        ...

    async def rivals(self) -> list[RivalRoute]:
        """Routes of others that get requests for hosts of our sites before the sites do."""
        ...

    async def routes(self) -> list[Site]:
        """All sites of ours as the running configuration tells them, by key; one that cannot be told is left out."""
        ...

    async def in_flight(self, port: int, addresses: Sequence[str] = ("127.0.0.1",)) -> int | None:
        """Requests now running against the upstreams at that port; None when the proxy does not know them."""
        ...

    async def prove(self, proof: str) -> None:
        """Have plain HTTP requests for the proof path answered with this text, whatever their host, so that others can tell
        this proxy from any other. Does nothing where no authority outside is going to look."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


class Traffic(Protocol):
    """Which slot of an environment the proxy sends requests to: one durable flag per environment."""

    async def live(self, key: str) -> Slot | None:
        """The slot that serves now; None when the environment is switched off or unknown."""
        ...

    async def switch(self, key: str, slot: Slot | None, *, fence: int) -> bool:
        """Send traffic there by one atomic rename, durable on return; True when it moved. An older fence than the
        highest seen raises LeaseLost."""
        ...

    async def forget(self, key: str, *, fence: int) -> None:
        """Remove the flags of an environment that no longer exists."""
        ...

    async def keys(self) -> list[str]:
        """All environments that have a flag."""
        ...


@dataclass(frozen=True, slots=True)
class Answer:
    """What a probe got. `status` None means no HTTP answer; `problem` says why in words."""

    status: int | None
    slot: str | None = None
    body_head: str = ""
    location: str | None = None
    problem: str = ""


class Prober(Protocol):
    """Asks like a user would, without following redirects."""

    async def port(self, port: int, path: str, *, timeout_seconds: float, address: str = "127.0.0.1") -> Answer:
        """GET a slot directly on the port and address where it is published."""
        ...

    async def public(self, host: str, path: str, *, timeout_seconds: float) -> Answer:
        """GET through the proxy's public listener, with that host name; `slot` is the proxy's own X-CodeB-Slot."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


class Ports(Protocol):
    """The kernel's view of TCP ports on a host."""

    async def listening(self) -> frozenset[int]:
        """Ports that something listens on, on any address."""
        ...


class PullRequests(Protocol):
    """Where pull requests live."""

    @property
    def configured(self) -> bool:
        """Whether it can be asked at all."""
        ...

    async def state(self, repository: str, number: int) -> str | None:
        """`open` or `closed`; None when there certainly is no such pull request. Raises without a clear answer."""
        ...


class Clock(Protocol):
    """Time as data."""

    def now(self) -> datetime:
        """The present moment, aware, UTC."""
        ...
