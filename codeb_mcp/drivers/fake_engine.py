"""The state behind the fakes of `fakes.py`: an engine, its images and containers, and the registries it pulls from."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from codeb_mcp.drivers.faults import Faults
from codeb_mcp.drivers.protocols import Answer, Container, ContainerSpec, Image
from codeb_mcp.model.errors import DriverRefused, DriverUnavailable
from codeb_mcp.model.times import utc_text

App = Callable[[str], Answer]
GIGABYTE = 1024**3


@dataclass(frozen=True, slots=True)
class FakeImage:
    """An image and the environment built into it, with the knobs of the sample application: APP_VERSION, HEALTH (ok,
    fail, hang, redirect), HEALTH_PATH, CRASH_AT_START, TERM."""

    image: Image
    environment: Mapping[str, str]


@dataclass
class FakeContainer:
    """A container and, while it runs and the engine serves, the little HTTP server of its application."""

    seen: Container
    environment: Mapping[str, str]
    spec: ContainerSpec
    lines: list[str] = field(default_factory=list)
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    server: asyncio.Server | None = None
    removed: bool = False

    def answer(self, path: str) -> Answer:
        """What the application says to a GET."""
        version, kind = self.environment.get("APP_VERSION", "unversioned"), self.environment.get("HEALTH", "ok")
        if path not in (self.environment.get("HEALTH_PATH", "/health"), "/", "/version"):
            return Answer(404, body_head="no such page\n")
        if path in ("/", "/version") or kind == "ok":
            return Answer(200, body_head=f"{version}\n")
        if kind == "redirect":
            return Answer(302, location="/login")
        if kind == "hang":
            return Answer(None, problem="no answer in time")
        return Answer(503, body_head="unhealthy: the database is not reachable\n")

    def say(self, text: str) -> None:
        """Write a line to the log."""
        self.lines.append(f"{utc_text(datetime.now(UTC))} {text}")
        self.changed.set()

    def become(self, state: str, *, exit_code: int | None = None) -> None:
        """Change the observed state; a test may use it to let a container die."""
        self.seen = replace(self.seen, state=state, exit_code=exit_code)
        self.changed.set()


class FakeEngine:
    """What `FakeContainers` and `FakeImages` of one engine share, and what a test sets and looks at.

    `serve`: a running container answers over HTTP on its loopback port. `apps`: a running container enters its
    application there by port (hand in the dictionary of the proxy's fake). `away` lets every call find nobody.
    """

    def __init__(self, *, serve: bool = False, apps: dict[int, App] | None = None) -> None:
        self.serve = serve
        self.apps: dict[int, App] = {} if apps is None else apps
        self.away = False
        self.free_bytes: int | None = 100 * GIGABYTE
        self.faults = Faults()
        self.lock = asyncio.Lock()
        self.containers: dict[str, FakeContainer] = {}
        self.images: dict[str, FakeImage] = {}
        self.names: dict[str, str] = {}
        self.remote: dict[str, FakeImage] = {}
        self.registries_down: set[str] = set()
        self.logins: dict[str, tuple[str, str]] = {}
        self._made = 0

    def publish(
        self, reference: str, version: str = "v1", *, labels: Mapping[str, str] | None = None, **knobs: str
    ) -> Image:
        """Put an image into the registry that the reference names."""
        digest = self._identity(f"digest of {reference}")
        image = Image(reference, self._identity(reference), digest, 34_000_000, dict(labels or {}))
        self.remote[reference] = FakeImage(image, {"APP_VERSION": version, **knobs})
        return image

    def load(self, reference: str, version: str = "v1", **knobs: str) -> Image:
        """Put an image onto the engine without any registry."""
        identity = self._identity(reference)
        image = Image(reference, identity, identity, 34_000_000)
        self.keep(FakeImage(image, {"APP_VERSION": version, **knobs}), reference)
        return image

    def keep(self, found: FakeImage, reference: str) -> None:
        """Have the image locally under this name."""
        self.images[found.image.image_id] = found
        self.names[reference] = found.image.image_id

    def check_there(self, doing: str) -> None:
        """Raise DriverUnavailable while the engine is away."""
        if self.away:
            raise DriverUnavailable(
                f"the container engine cannot be reached while {doing}: connection refused",
                hint="Start the container engine.",
                reason="engine_unreachable",
            )

    async def start(self, made: FakeContainer) -> None:
        """Let the container run, or crash, as its environment says."""
        crash = made.environment.get("CRASH_AT_START")
        if crash is not None:
            made.say(f"fatal: told to end with {crash}")
            made.seen = replace(made.seen, restart_count=3, started_at=datetime.now(UTC))
            made.become("restarting", exit_code=int(crash))
            return
        await self._listen(made)
        made.seen = replace(made.seen, started_at=datetime.now(UTC))
        made.become("running")
        made.say(f"version {made.environment.get('APP_VERSION', 'unversioned')} listens")

    async def stop(self, made: FakeContainer, *, removed: bool = False) -> None:
        """Let it end (143, or 137 for one that ignores SIGTERM) and free its port."""
        self.apps.pop(made.spec.host_port, None)
        if made.server is not None:
            made.server.close()
            made.server = None
        made.removed = removed
        made.become("exited", exit_code=137 if made.environment.get("TERM") == "ignore" else 143)

    async def close(self) -> None:
        """End all servers."""
        for made in self.containers.values():
            await self.stop(made)

    def _identity(self, text: str) -> str:
        self._made += 1
        return "sha256:" + hashlib.sha256(f"{self._made} {text}".encode()).hexdigest()

    def new_id(self) -> str:
        """An id for a container."""
        return self._identity("container").removeprefix("sha256:")

    async def _listen(self, made: FakeContainer) -> None:
        port = made.spec.host_port
        taken = port in self.apps
        if self.serve and not taken:
            try:
                made.server = await asyncio.start_server(_connection(made), "127.0.0.1", port)
            except OSError:
                taken = True
        if taken:
            raise DriverRefused(
                f"the container engine refused starting container {made.seen.name}: port is already allocated",
                hint="Another process or container listens on the slot's port.",
                reason="port_in_use",
                container=made.seen.name,
            )
        self.apps[port] = made.answer


def _connection(made: FakeContainer) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.LimitOverrunError):
            head = await reader.readuntil(b"\r\n\r\n")
            answer = made.answer(head.split(b" ", 2)[1].decode("latin-1").partition("?")[0])
            if answer.status is None:
                await reader.read()  # until the client gives up
            else:
                body = answer.body_head.encode()
                place = f"Location: {answer.location}\r\n" if answer.location else ""
                lines = f"HTTP/1.1 {answer.status} -\r\nContent-Length: {len(body)}\r\n{place}Connection: close\r\n\r\n"
                writer.write(lines.encode() + body)
                await writer.drain()
        writer.close()

    return one
