"""Zones, resolvers and the way to our own door in memory, with faults to order; the zones pass the suite of the real ones."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from codeb_mcp.drivers.outside import Served
from codeb_mcp.drivers.protocols import Answer
from codeb_mcp.model.dns import Caa, Change, Record, mark_name
from codeb_mcp.model.errors import CodebError, DriverRefused, DriverUnavailable


@dataclass
class FakeWorld:
    """What the fakes share. `records`: all that stands in any zone; `zones`: which of them may be written;
    `doors`: what answers at an address over HTTP; `certificates`: what is served for a name.

    `faults` maps a method (`read`, `write`, `lookup`, `caa`, `zone`, `knock`, `certificate`) to errors that its next calls
    raise, one each; `after` the same for `write`, raised when the work has been done.
    """

    records: set[Record] = field(default_factory=set)
    zones: set[str] = field(default_factory=set)
    caa: dict[str, tuple[Caa, ...]] = field(default_factory=dict)
    doors: dict[str, str] = field(default_factory=dict)
    certificates: dict[str, Served] = field(default_factory=dict)
    faults: dict[str, list[CodebError]] = field(default_factory=dict)
    after: dict[str, list[CodebError]] = field(default_factory=dict)
    between: list[Callable[[], None]] = field(default_factory=list)
    writes: int = 0

    def stumble(self, method: str) -> None:
        """Raise the next fault that was ordered for the method."""
        if waiting := self.faults.get(method):
            raise waiting.pop(0)

    def add(self, *records: tuple[str, str, str]) -> None:
        """Write like the person who keeps the zone: `(name, type, value)`."""
        self.records |= {Record(*one) for one in records}


class FakeZone:
    """Implements `Zone` on a FakeWorld."""

    def __init__(self, world: FakeWorld) -> None:
        self._world = world

    async def read(self, name: str) -> frozenset[Record]:
        """See `Zone.read`."""
        await asyncio.sleep(0)
        self._world.stumble("read")
        places = {(name, "A"), (name, "AAAA"), (name, "CNAME"), (mark_name(name), "TXT")}
        return frozenset(one for one in self._world.records if (one.name, one.type) in places)

    async def write(self, change: Change, seen: frozenset[Record]) -> bool:
        """See `Zone.write`."""
        await asyncio.sleep(0)
        if self._world.between:
            self._world.between.pop(0)()
        name = next(iter(change.delete | change.add)).name.removeprefix("_codeb.")
        if await self.read(name) != seen:
            return False
        self._world.stumble("write")
        self._world.records = (self._world.records - change.delete) | change.add
        self._world.writes += 1
        if waiting := self._world.after.get("write"):
            raise waiting.pop(0)
        return True

    async def close(self) -> None:
        """Nothing to let go of."""


class FakeNames:
    """Implements `Names` on a FakeWorld: what stands in its zones is what the world resolves."""

    def __init__(self, world: FakeWorld) -> None:
        self._world = world

    async def lookup(self, name: str, kind: str) -> tuple[str, ...]:
        """See `Names.lookup`."""
        await asyncio.sleep(0)
        self._world.stumble("lookup")
        return tuple(sorted(one.value for one in self._world.records if (one.name, one.type) == (name, kind)))

    async def caa(self, name: str) -> tuple[Caa, ...]:
        """See `Names.caa`."""
        await asyncio.sleep(0)
        self._world.stumble("caa")
        labels = name.split(".")
        tails = (".".join(labels[start:]) for start in range(len(labels)))
        return next((self._world.caa[tail] for tail in tails if tail in self._world.caa), ())

    def zone(self, zone: str) -> FakeZone:
        """See `Names.zone`."""
        self._world.stumble("zone")
        if zone not in self._world.zones:
            raise DriverRefused(f"no provider of zone {zone} is configured", hint="Add it to [dns.zones].", zone=zone)
        return FakeZone(self._world)

    async def close(self) -> None:
        """Nothing to let go of."""


class FakeOutside:
    """Implements `Outside` on a FakeWorld."""

    def __init__(self, world: FakeWorld) -> None:
        self._world = world

    async def knock(self, address: str, path: str) -> Answer:
        """See `Outside.knock`."""
        await asyncio.sleep(0)
        self._world.stumble("knock")
        body = self._world.doors.get(address)
        return (
            Answer(None, problem="connection refused: nothing listens there")
            if body is None
            else Answer(200, body_head=body)
        )

    async def certificate(self, host: str) -> Served:
        """See `Outside.certificate`."""
        await asyncio.sleep(0)
        self._world.stumble("certificate")
        if host not in self._world.certificates:
            raise DriverUnavailable(f"{host} serves no certificate", hint="Wait for it.")
        return self._world.certificates[host]
