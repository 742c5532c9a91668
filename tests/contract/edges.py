"""What the contract suites of proxy, traffic and prober run against: the fake, or a real Caddy with real flags."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import aiohttp

from codeb_mcp.drivers.caddy import CaddyProxy
from codeb_mcp.drivers.caddy_config import Tls
from codeb_mcp.drivers.fake_proxy import FakeEdge, FakeProber, FakeProxy, FakeTraffic
from codeb_mcp.drivers.flags import Flags, FlagTraffic
from codeb_mcp.drivers.probe import HttpProber
from codeb_mcp.drivers.protocols import Answer, Prober, Proxy
from codeb_mcp.model.names import Slot
from codeb_mcp.model.routes import Site
from tests.lab.caddy import CaddyServer
from tests.lab.ports import FreePorts
from tests.lab.upstream import Upstream

DOMAINS = ("apps.test", "preview.test")
Release = Callable[[], Awaitable[None]]
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def site(key: str, ports: FreePorts, *hosts: str, preview: bool = False) -> Site:
    """A site on ports of its own; `{key}.test` when no host is named."""
    blue, green = ports.pair()
    previews = (f"{key}-blue.preview.test", f"{key}-green.preview.test") if preview else (None, None)
    return Site(key, hosts or (f"{key}.test",), blue, green, *previews)


@dataclass
class FakeCase:
    """The fakes."""

    ports: FreePorts
    edge: FakeEdge = field(default_factory=FakeEdge)

    def __post_init__(self) -> None:
        self.traffic: Flags = FakeTraffic(self.edge)
        self.prober: Prober = FakeProber(self.edge)

    def proxy(self) -> Proxy:
        """One more client of the same proxy."""
        return FakeProxy(self.edge)

    def add_foreign(self, host: str) -> None:
        """Another program's site."""
        self.edge.foreign.add(host)

    def restart(self, *, keep: bool) -> None:
        """The proxy ends and starts again."""
        self.edge.restart(keep=keep)

    async def serve(self, port: int, name: str) -> None:
        """An application that answers its name."""
        self.edge.apps[port] = lambda path: Answer(200, body_head=name)

    async def hold(self, wanted: Site, slot: Slot) -> Release:
        """A request that is running on that slot until it is released."""
        self.edge.running[wanted.port(slot)] += 1

        async def release() -> None:
            self.edge.running[wanted.port(slot)] -= 1

        return release

    async def close(self) -> None:
        """Nothing to end."""


class RealCase:
    """A real Caddy, real flag files, real HTTP."""

    def __init__(self, server: CaddyServer, ports: FreePorts, *, tls: Tls = "off") -> None:
        self.server = server
        self.ports = ports
        self.tls = tls
        self.traffic: Flags = FlagTraffic(server.flags)
        self.prober: Prober = HttpProber(port=server.port, tls=tls)
        self.upstreams: dict[int, Upstream] = {}
        self._stack = contextlib.AsyncExitStack()

    def proxy(self, *, listen: str | None = None, admin: str | None = None) -> CaddyProxy:
        """One more client of the same Caddy."""
        client = CaddyProxy(
            admin or self.server.admin,
            flags_folder=str(self.server.flags),
            listen=(listen or self.server.listen,),
            tls=self.tls,
            domains=DOMAINS,
        )
        self._stack.push_async_callback(client.close)
        return client

    def add_foreign(self, host: str) -> None:
        """Another program's site in the server that we share."""
        route = {"match": [{"host": [host]}], "handle": [{"handler": "static_response", "body": "foreign"}]}
        server = {"listen": [self.server.listen], "automatic_https": {"disable": True}, "routes": [route]}
        self.server.ask("POST", "/config/apps", {"http": {"servers": {"theirs": server}}})

    def restart(self, *, keep: bool) -> None:
        """Caddy ends and starts again."""
        self.server.restart(resume=keep)

    async def serve(self, port: int, name: str) -> Upstream:
        """An application that answers its name."""
        upstream = self.upstreams[port] = Upstream(name, port)
        await upstream.start()
        self._stack.push_async_callback(upstream.stop)
        return upstream

    async def hold(self, wanted: Site, slot: Slot) -> Release:
        """A request that is running on that slot until it is released."""
        upstream = self.upstreams.get(wanted.port(slot)) or await self.serve(wanted.port(slot), slot.value)
        session = aiohttp.ClientSession()
        self._stack.push_async_callback(session.close)
        url = f"http://127.0.0.1:{self.server.port}/held"
        asking = asyncio.create_task(_text(session, url, wanted.hosts[0]))
        async with asyncio.timeout(10):
            await upstream.arrived.acquire()

        async def release() -> None:
            upstream.release.set()
            async with asyncio.timeout(10):
                assert await asking == upstream.name

        return release

    async def close(self) -> None:
        """End clients and applications."""
        await self.prober.close()
        await self._stack.aclose()


async def _text(session: aiohttp.ClientSession, url: str, host: str) -> str:
    async with session.get(url, headers={"Host": host}) as answer:
        return await answer.text()


Case = FakeCase | RealCase


@contextlib.asynccontextmanager
async def serving(port: int, handler: Handler) -> AsyncIterator[None]:
    """A server that treats each connection so; gone afterwards with all connections and what treats them."""
    writers: list[asyncio.StreamWriter] = []
    tasks: list[asyncio.Task[None]] = []

    async def treat(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await handler(reader, writer)

    def begin(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.append(asyncio.create_task(treat(reader, writer)))

    server = await asyncio.start_server(begin, "127.0.0.1", port)
    try:
        yield
    finally:
        server.close()
        for writer in writers:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until(done: Callable[[], Awaitable[bool]], seconds: float = 10.0) -> None:
    """Ask again and again until it is so; fails after the limit."""
    async with asyncio.timeout(seconds):
        while not await done():
            await asyncio.sleep(0.005)
