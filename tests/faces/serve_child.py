"""`codeb serve` on an engine of fakes in a process of its own: `python -m tests.faces.serve_child`."""

from __future__ import annotations

import sys
from contextlib import AbstractAsyncContextManager

from codeb_mcp.app import opened
from codeb_mcp.drivers.clock import SystemClock
from codeb_mcp.drivers.fake_proxy import FakeEdge, FakeProber, FakeProxy, FakeTraffic
from codeb_mcp.drivers.fakes import FakeContainers, FakeEngine, FakeImages
from codeb_mcp.faces import http
from codeb_mcp.faces.cli import run
from codeb_mcp.operations.context import Drivers, Services
from codeb_mcp.settings import Settings
from tests.faces.world import NoPorts


def main() -> int:
    """Serve as the real command does, with its real signals and sockets."""
    edge = FakeEdge()
    engine = FakeEngine(apps=edge.apps)
    engine.publish("ghcr.io/acme/slow:sick", "sick", HEALTH="fail")
    drivers = Drivers(
        containers=FakeContainers(engine),
        images=FakeImages(engine),
        proxy=FakeProxy(edge),
        traffic=FakeTraffic(edge),
        prober=FakeProber(edge),
        ports=NoPorts(),
        clock=SystemClock(),
    )

    def installation(settings: Settings) -> AbstractAsyncContextManager[Services]:
        return opened(settings, drivers)

    vars(http)["opened"] = installation
    return run(["serve"])


if __name__ == "__main__":
    sys.exit(main())
