"""What the contract suite of zones runs against: the fake, BIND, PowerDNS, and a stand-in for Cloudflare."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from codeb_mcp.drivers.dns import Zone
from codeb_mcp.drivers.dns_cloudflare import CloudflareZone
from codeb_mcp.drivers.dns_powerdns import PowerDnsZone
from codeb_mcp.drivers.dns_rfc2136 import TsigKey, UpdateZone
from codeb_mcp.drivers.fake_names import FakeWorld, FakeZone
from codeb_mcp.model.dns import Record
from tests.lab.cloudflare_stand_in import running_stand_in
from tests.lab.dns import KEY, running_bind, running_powerdns
from tests.lab.ports import FreePorts

ZONE = "lab.test"
KINDS = ("fake", "bind", "powerdns", "cloudflare_stand_in")
REAL = ("bind", "powerdns")


class Keeper(Protocol):
    """Who keeps the zone: a person with other rights than ours."""

    def change(self, zone: str, *lines: tuple[str, str, str], delete: bool = False) -> None:
        """Add or delete records."""
        ...

    def ask(self, name: str, kind: str) -> list[str]:
        """Values as they are served, sorted."""
        ...


@dataclass
class FakeKeeper:
    """The keeper of the fake zone."""

    world: FakeWorld = field(default_factory=FakeWorld)

    def change(self, zone: str, *lines: tuple[str, str, str], delete: bool = False) -> None:
        """See `Keeper.change`."""
        rows = {Record(name, kind, value.strip('"').rstrip(".")) for name, kind, value in lines}
        self.world.records = self.world.records - rows if delete else self.world.records | rows

    def ask(self, name: str, kind: str) -> list[str]:
        """See `Keeper.ask`."""
        end = "." if kind == "CNAME" else ""
        return sorted(one.value + end for one in self.world.records if (one.name, one.type) == (name, kind))


@dataclass
class ZoneCase:
    """One kind of zone. `zone(…)` makes a client; `secret` is a file with the right secret."""

    kind: str
    keeper: Keeper
    zone: Callable[..., Zone]
    secret: Path
    server: Any


@contextmanager
def zone_case(kind: str, ports: FreePorts, folder: Path) -> Iterator[ZoneCase]:
    """A zone of that kind, its server started and ended."""
    running: Any = {
        "fake": lambda: nullcontext(FakeKeeper()),
        "bind": lambda: running_bind(ports),
        "powerdns": lambda: running_powerdns(ports),
        "cloudflare_stand_in": running_stand_in,
    }[kind]()
    with running as server:
        secret = folder / "secret"
        if kind == "cloudflare_stand_in":
            secret.write_text(server.token, encoding="utf-8")
            secret.chmod(0o600)
        elif kind != "fake":
            secret = server.secret_file

        def make(zone: str = ZONE, *, file: Path = secret, seconds: float = 5.0, key: str = KEY) -> Zone:
            if kind == "bind":
                return UpdateZone(zone, server.address, key=TsigKey(key, file), timeout_seconds=seconds)
            if kind == "powerdns":
                return PowerDnsZone(zone, server.api, secret_file=file, timeout_seconds=seconds)
            if kind == "cloudflare_stand_in":
                return CloudflareZone(zone, server.url, secret_file=file, timeout_seconds=seconds)
            return FakeZone(server.world)

        yield ZoneCase(kind, server, make, secret, server)
