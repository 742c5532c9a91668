"""The command line in this process, on a real registry in a temporary folder and an outside world of fakes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from codeb_mcp.app import opened
from codeb_mcp.drivers.clock import SystemClock
from codeb_mcp.drivers.fake_proxy import FakeEdge, FakeProber, FakeProxy, FakeTraffic
from codeb_mcp.drivers.fakes import FakeContainers, FakeEngine, FakeImages
from codeb_mcp.drivers.kernel import KernelPorts
from codeb_mcp.faces.cli import run
from codeb_mcp.faces.cli_call import Surroundings
from codeb_mcp.operations.context import Drivers, Services
from codeb_mcp.settings import Settings


@dataclass(frozen=True)
class Said:
    """What a command answered."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Its stdout as JSON."""
        return json.loads(self.out)


class CliWorld:
    """`world("slot", "list")` runs a command; the fakes stay the same between commands."""

    def __init__(self, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.root = root
        self.home = root.parent / "home"
        self.environ: dict[str, str] = {"CODEB_ROOT": str(root), "HOME": str(self.home)}
        self.edge = FakeEdge()
        self.engine = FakeEngine(apps=self.edge.apps)
        self._capsys = capsys

    def drivers(self) -> Drivers:
        """An outside world in memory."""
        return Drivers(
            containers=FakeContainers(self.engine),
            images=FakeImages(self.engine),
            proxy=FakeProxy(self.edge),
            traffic=FakeTraffic(self.edge),
            prober=FakeProber(self.edge),
            ports=KernelPorts(),
            clock=SystemClock(),
        )

    def open(self, settings: Settings) -> AbstractAsyncContextManager[Services]:
        """The installation of this world."""
        return opened(settings, self.drivers())

    def __call__(self, *words: str, environ: Mapping[str, str] | None = None) -> Said:
        """Run `codeb WORDS`."""
        around = Surroundings(self.open, {**self.environ, **(environ or {})})
        self._capsys.readouterr()
        code = run(list(words), around)
        said = self._capsys.readouterr()
        return Said(code, said.out, said.err)

    def initialised(self) -> CliWorld:
        """The same world after `codeb init`, with the owner's key in the environment."""
        self.environ["CODEB_API_KEY"] = self("init", "--json").json["ownerKey"]
        return self

    def with_project(self, name: str = "shop") -> CliWorld:
        """The same world with a project and two versions of its image in a registry."""
        self("project", "create", name)
        for version in ("v1", "v2"):
            self.engine.publish(f"ghcr.io/acme/{name}:{version}", version)
        self.engine.publish(f"ghcr.io/acme/{name}:sick", "sick", HEALTH="fail")
        return self
