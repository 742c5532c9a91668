"""Resolvers on a real name server: certain answers, and failures that are no answers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from codeb_mcp.drivers.names import DnsNames
from codeb_mcp.model.dns import Caa
from codeb_mcp.model.errors import DeadlineExceeded, DriverRefused, DriverUnavailable
from tests.conftest import _leave_out_without
from tests.lab.dns import Bind, running_bind
from tests.lab.ports import FreePorts


@pytest.fixture(scope="module")
def bind() -> Iterator[Bind]:
    """A name server for this module."""
    _leave_out_without("dns")
    ports = FreePorts()
    with running_bind(ports) as server:
        yield server
    ports.release()


async def test_names_are_looked_up_aliases_are_followed_and_nothing_is_a_certain_answer(
    bind: Bind, unique: str
) -> None:
    names = DnsNames((bind.address,), {})
    host = f"{unique}.lab.test"
    assert await names.lookup(host, "A") == ()
    bind.change("lab.test", (host, "A", "192.0.2.1"), (f"alias-{host}", "CNAME", f"{host}."))
    assert await names.lookup(host, "A") == ("192.0.2.1",), "nothing is remembered"
    assert await names.lookup(host, "AAAA") == ()
    assert await names.lookup(f"alias-{host}", "A") == ("192.0.2.1",)


async def test_the_nearest_caa_counts(bind: Bind, unique: str) -> None:
    names = DnsNames((bind.address,), {})
    above, host = f"{unique}.lab.test", f"a.b.{unique}.lab.test"
    assert await names.caa(host) == ()
    bind.change("lab.test", (above, "CAA", '0 issue "above.example"'))
    assert await names.caa(host) == (Caa(0, "issue", "above.example"),)
    bind.change("lab.test", (host, "CAA", '128 issue ";"'))
    assert await names.caa(host) == (Caa(128, "issue", ";"),)


async def test_a_resolver_that_is_away_hangs_or_refuses_is_no_answer(bind: Bind, free_ports: FreePorts) -> None:
    away = DnsNames((f"127.0.0.1:{free_ports()}",), {}, timeout_seconds=0.5)
    with pytest.raises((DriverUnavailable, DeadlineExceeded)):
        await away.lookup("www.lab.test", "A")
    refuses = DnsNames((bind.address,), {})
    with pytest.raises(DriverUnavailable):
        await refuses.lookup("www.example.com", "A")
    bind.freeze()
    try:
        with pytest.raises(DeadlineExceeded):
            async with asyncio.timeout(20):
                await DnsNames((bind.address,), {}, timeout_seconds=0.3).lookup("www.lab.test", "A")
    finally:
        bind.thaw()


def test_a_zone_that_nobody_configured_is_refused() -> None:
    with pytest.raises(DriverRefused):
        DnsNames((), {}).zone("example.com")
