"""App servers in memory, for tests of what several of them do together."""

from __future__ import annotations

from dataclasses import dataclass, field

from codeb_mcp.drivers.fake_names import FakeOutside, FakeWorld
from codeb_mcp.drivers.fake_proxy import FakeEdge, FakeProber, FakeProxy, FakeTraffic
from codeb_mcp.drivers.fakes import FakeContainers, FakeEngine, FakeImages
from codeb_mcp.drivers.flags import LocalTraffic
from codeb_mcp.model.server import Server
from codeb_mcp.operations.context import AppServer


@dataclass
class FreePortsOnly:
    """Implements `Ports`: what the test says is listened on."""

    ports: set[int] = field(default_factory=set)

    async def listening(self) -> frozenset[int]:
        """See `Ports.listening`."""
        return frozenset(self.ports)


class FakeAppServer:
    """One app server: `engine` and `edge` are for the test to look at and to break."""

    def __init__(self) -> None:
        self.edge = FakeEdge()
        self.engine = FakeEngine(apps=self.edge.apps)
        self.ports = FreePortsOnly()

    def drivers(self) -> AppServer:
        """Drivers for it."""
        return AppServer(
            containers=FakeContainers(self.engine),
            images=FakeImages(self.engine),
            proxy=FakeProxy(self.edge),
            traffic=LocalTraffic(FakeTraffic(self.edge)),
            prober=FakeProber(self.edge),
            ports=self.ports,
            outside=FakeOutside(FakeWorld()),
        )


class FakeAppServers:
    """Implements `AppServers`; each name that is asked for gets a server."""

    def __init__(self) -> None:
        self.servers: dict[str, FakeAppServer] = {}

    def __getitem__(self, key: str) -> FakeAppServer:
        return self.servers.setdefault(key, FakeAppServer())

    def at(self, key: str, server: Server) -> AppServer:
        """See `AppServers.at`."""
        return self[key].drivers()

    async def close(self) -> None:
        """See `AppServers.close`."""
