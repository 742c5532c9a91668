"""Changes of DNS and of Caddy per second.   python -m tests.bench.domains [--quick] [--json FILE]

DNS: records of a new name written and taken away again through each provider, one after the other and 16 at once. Caddy: a
domain comes and goes in a configuration that has 10 and 1,000 sites, alone and 16 at once (those share a change).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from codeb_mcp.drivers.caddy import CaddyProxy
from codeb_mcp.drivers.dns import ensure_records, remove_records
from codeb_mcp.model.dns import Wish
from codeb_mcp.model.routes import Site
from tests.contract.zones import REAL, ZONE, zone_case
from tests.lab.caddy import BINARIES, running_caddy
from tests.lab.ports import FreePorts

OWNER = "0123456789abcdef/bench"
ADDRESSES = ("192.0.2.10", "2001:db8::10")
AT_ONCE = 16
Change = Callable[[int], Awaitable[None]]


@dataclass(frozen=True)
class Row:
    """How many changes a second; one is a domain that comes or goes."""

    what: str
    at_once: int
    changes: int
    per_second: float


async def _timed(what: str, change: Change, count: int, at_once: int) -> Row:
    waiting = iter(range(count))

    async def worker() -> None:
        for number in waiting:
            await change(number)

    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(worker())
    return Row(what, at_once, 2 * count, round(2 * count / (time.perf_counter() - started), 1))


async def dns_rows(kind: str, ports: FreePorts, count: int) -> list[Row]:
    """One provider."""
    with tempfile.TemporaryDirectory() as folder, zone_case(kind, ports, Path(folder)) as case:
        zone = case.zone()

        async def change(number: int) -> None:
            name = f"n{number}.{ZONE}"
            await ensure_records(zone, Wish(name, OWNER, ADDRESSES))
            await remove_records(zone, name, OWNER)

        rows = [await _timed(f"DNS: {kind}", change, count, at_once) for at_once in (1, AT_ONCE)]
        await zone.close()
        return rows


async def caddy_rows(which: str, ports: FreePorts, sites: int, count: int) -> list[Row]:
    """One Caddy with that many sites."""
    with running_caddy(which, ports()) as server:
        proxy = CaddyProxy(server.admin, flags_folder=str(server.flags), listen=(server.listen,), tls="off")
        many = [Site(f"s{n}-production", (f"s{n}.test",), 30_000 + 2 * n, 30_001 + 2 * n) for n in range(sites)]
        await proxy.apply(upsert=many)

        async def change(number: int) -> None:
            site = many[number % sites]
            await proxy.apply(upsert=[replace(site, hosts=(*site.hosts, f"www{number}.test"))])
            await proxy.apply(upsert=[site])

        what = f"{which}, {sites} sites"
        rows = [await _timed(what, change, count, at_once) for at_once in (1, min(AT_ONCE, sites))]
        await proxy.close()
        return rows


async def measure(*, quick: bool) -> list[Row]:
    """All rows."""
    ports = FreePorts()
    rows: list[Row] = []
    try:
        for kind in REAL:
            rows += await dns_rows(kind, ports, 20 if quick else 200)
        for which in BINARIES:
            for sites in (10, 100) if quick else (10, 1000):
                rows += await caddy_rows(which, ports, sites, 5 if quick else 20)
    finally:
        ports.release()
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.domains", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small numbers, to see that it works")
    parser.add_argument("--json", type=Path, help="also write the rows there")
    said = parser.parse_args()
    rows = asyncio.run(measure(quick=said.quick))
    table = Table("what", "at once", "changes", "changes per second")
    for row in rows:
        table.add_row(row.what, str(row.at_once), str(row.changes), f"{row.per_second:g}")
    Console().print(table)
    if said.json:
        said.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
