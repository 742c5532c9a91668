"""Names as the world sees them, and the zones of the settings: resolvers and providers of one installation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from codeb_mcp.drivers.dns import Zone
from codeb_mcp.drivers.dns_rfc2136 import split_address
from codeb_mcp.model.dns import Caa
from codeb_mcp.model.errors import DeadlineExceeded, DriverRefused, DriverUnavailable

if TYPE_CHECKING:
    from dns.asyncresolver import Resolver
    from dns.rdatatype import RdataType
    from dns.resolver import Answer

ASKED_AT_ONCE = 16


class DnsNames:
    """Implements `Names`. `resolvers`: addresses, with or without a port; without any those of the system are asked. Nothing is
    remembered between two questions."""

    def __init__(
        self, resolvers: tuple[str, ...], zones: Mapping[str, Callable[[], Zone]], *, timeout_seconds: float = 5.0
    ) -> None:
        self._resolvers = resolvers
        self._make = zones
        self._zones: dict[str, Zone] = {}
        self._seconds = timeout_seconds
        self._bound = asyncio.Semaphore(ASKED_AT_ONCE)
        self._resolver: Resolver | None = None

    async def lookup(self, name: str, kind: str) -> tuple[str, ...]:
        """See `Names.lookup`."""
        answer = await self._ask(name, kind)
        return tuple(sorted(rdata.to_text() for rdata in answer.rrset or ())) if answer is not None else ()

    async def caa(self, name: str) -> tuple[Caa, ...]:
        """See `Names.caa`."""
        labels = name.split(".")
        for start in range(len(labels)):
            answer = await self._ask(".".join(labels[start:]), "CAA")
            if answer is not None and answer.rrset:
                return tuple(
                    Caa(one.flags, one.tag.decode("ascii", "replace").lower(), one.value.decode("utf-8", "replace"))
                    for one in answer.rrset
                )
        return ()

    def zone(self, zone: str) -> Zone:
        """See `Names.zone`."""
        if zone not in self._make:
            raise DriverRefused(f"no provider of zone {zone} is configured", hint="Add it to [dns.zones].", zone=zone)
        if zone not in self._zones:
            self._zones[zone] = self._make[zone]()
        return self._zones[zone]

    async def close(self) -> None:
        """See `Names.close`."""
        for zone in self._zones.values():
            await zone.close()
        self._zones.clear()

    async def _ask(self, name: str, kind: str) -> Answer | None:
        import dns.resolver

        async with self._bound, self._errors(name):
            try:
                return await self._ready().resolve(
                    name + ".", _type(kind), search=False, lifetime=self._seconds, raise_on_no_answer=False
                )
            except dns.resolver.NXDOMAIN:
                return None

    def _ready(self) -> Resolver:
        if self._resolver is None:
            from dns.asyncresolver import Resolver
            from dns.nameserver import Do53Nameserver

            made = Resolver(configure=not self._resolvers)
            if self._resolvers:
                made.nameservers = [Do53Nameserver(*split_address(one)) for one in self._resolvers]
            made.timeout = min(2.0, self._seconds)
            made.cache = None
            self._resolver = made
        return self._resolver

    @asynccontextmanager
    async def _errors(self, name: str) -> AsyncIterator[None]:
        import dns.exception

        who = ", ".join(self._resolvers) or "the system's resolvers"
        try:
            async with asyncio.timeout(self._seconds + 1):
                yield
        except (TimeoutError, dns.exception.Timeout):
            raise DeadlineExceeded(
                f"{name} was not resolved within {self._seconds:g} s by {who}", hint="Look at the resolvers."
            ) from None
        except (dns.exception.DNSException, OSError) as error:
            raise DriverUnavailable(
                f"{name} cannot be resolved by {who}: {type(error).__name__}", hint="Look at the resolvers ([dns])."
            ) from None


def _type(kind: str) -> RdataType:
    from dns.rdatatype import RdataType

    return RdataType.from_text(kind)
