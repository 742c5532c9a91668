"""`codeb` on a world of fakes in a process of its own: `python -m tests.faces.cli_child ROOT WORDS…`."""

from __future__ import annotations

import os
import sys
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from codeb_mcp.app import opened
from codeb_mcp.drivers.clock import SystemClock
from codeb_mcp.drivers.fake_proxy import FakeEdge, FakeProber, FakeProxy, FakeTraffic
from codeb_mcp.drivers.fakes import FakeContainers, FakeEngine, FakeImages
from codeb_mcp.faces.cli import run
from codeb_mcp.faces.cli_call import Surroundings
from codeb_mcp.operations.context import Drivers, Services
from codeb_mcp.settings import Settings
from tests.faces.world import NoPorts


def main() -> int:
    """Run the command as the real one would, with the real signals and streams."""
    root = Path(sys.argv[1])
    edge = FakeEdge()
    engine = FakeEngine(apps=edge.apps)
    engine.publish("ghcr.io/acme/shop:sick", "sick", HEALTH="fail")
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

    return run(sys.argv[2:], Surroundings(installation, {**os.environ, "CODEB_ROOT": str(root)}))


if __name__ == "__main__":
    sys.exit(main())
