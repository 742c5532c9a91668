"""What a switch costs the users of a site, and what it costs us.   python -m tests.bench.switch [--quick] [--json FILE]

Loss: 16 clients in tight loops (GET and POST by turns), 2 clients whose answers take a second, and a WebSocket that is kept
open, all through a real Caddy on loopback, while traffic is switched again and again; over plain HTTP/1.1 and over TLS with
HTTP/2. Three ways to switch, in the same run. Cost: the switch itself and a change of the configuration, with 10 and with
1,000 sites in Caddy.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from codeb_mcp.drivers.caddy import CaddyProxy
from codeb_mcp.drivers.flags import FlagTraffic
from codeb_mcp.drivers.probe import HttpProber
from codeb_mcp.model.names import Slot
from codeb_mcp.model.routes import Site
from tests.bench.hammer import Hammer, Target
from tests.bench.ways import Way, application, by_flag, by_patch, by_swarm, ready
from tests.lab.caddy import BINARIES, caddy_binary, running_caddy
from tests.lab.daemons import LabError
from tests.lab.ports import FreePorts

WAYS: dict[str, tuple[str, Way]] = {
    "flag": ("codeb: rename of a flag", by_flag),
    "patch": ("Caddy admin PATCH", by_patch),
    "swarm": ("docker service update", by_swarm),
}
PAUSE_SECONDS = 0.05


@dataclass(frozen=True)
class Loss:
    """One way under load: how much was served, lost and failed, and what exactly."""

    way: str
    wire: str
    caddy: str
    switches: int
    served: int
    lost: int
    failed: int
    median_ms: float
    kinds: dict[str, dict[str, int]]
    troubles: dict[str, int]


@dataclass(frozen=True)
class Cost:
    """Medians in milliseconds with that many sites in Caddy."""

    caddy: str
    sites: int
    switch_ms: float
    seen_ms: float
    has_ms: float
    apply_ms: float
    apply_all_ms: float


async def measure_loss(name: str, *, which: str, tls: bool, switches: int) -> Loss:
    """Switch under load and count."""
    title, way = WAYS[name]
    ports = FreePorts()
    times = []
    try:
        async with way(which, tls, ports) as stage:
            hammer = Hammer(stage.target, clients=16, slow=2, websocket=True)
            async with hammer.running():
                await hammer.until_served(200, seconds=30)
                for _ in range(switches):
                    began = time.perf_counter()
                    await stage.switch()
                    times.append(time.perf_counter() - began)
                    await asyncio.sleep(PAUSE_SECONDS)
                await asyncio.sleep(1)
    finally:
        ports.release()
    report, wire = hammer.report, "TLS, HTTP/2" if tls else "HTTP/1.1"
    lost, failed = report.total("lost"), report.total("failed")
    median = statistics.median(times) * 1000
    kinds = {kind: dict(counts) for kind, counts in sorted(report.kinds.items())}
    return Loss(title, wire, which, switches, report.served, lost, failed, median, kinds, report.troubles)


async def measure_cost(count: int, *, which: str, rounds: int) -> Cost:
    """The cost of a switch, of seeing it through the proxy, and of a configuration change, with that many sites."""
    ports = FreePorts()
    blue, green = ports.pair()
    try:
        with application(blue, "blue"), application(green, "green"), running_caddy(which, ports()) as server:
            proxy = CaddyProxy(server.admin, flags_folder=str(server.flags), listen=(server.listen,), tls="off")
            prober, traffic = HttpProber(port=server.port), FlagTraffic(server.flags)
            sites = [Site(f"s{n}-production", (f"s{n}.test",), blue, green) for n in range(count)]
            for site in sites:
                traffic.switch(site.key, Slot.BLUE, fence=1)
            probed = sites[count // 2]
            try:
                began = time.perf_counter()
                await proxy.apply(upsert=sites)
                whole = (time.perf_counter() - began) * 1000
                for slot in Slot:
                    traffic.switch(probed.key, slot, fence=1)
                    await ready(Target("127.0.0.1", server.port, probed.hosts[0]))
                switch, seen = await _switches(traffic, prober, probed, rounds)
                has = await _median(rounds, lambda n: proxy.has(probed))
                apply = await _median(
                    10, lambda n: proxy.apply(upsert=[Site("x-staging", (f"x{n}.test",), blue, green)])
                )
                return Cost(which, count, switch, seen, has, apply, whole)
            finally:
                await prober.close()
                await proxy.close()
    finally:
        ports.release()


async def _switches(traffic: FlagTraffic, prober: HttpProber, site: Site, rounds: int) -> tuple[float, float]:
    moved, seen = [], []
    for number in range(rounds):
        slot = Slot.BLUE if number % 2 else Slot.GREEN
        began = time.perf_counter()
        traffic.switch(site.key, slot, fence=number + 2)
        moved.append(time.perf_counter() - began)
        answer = await prober.public(site.hosts[0], "/version", timeout_seconds=10)
        seen.append(time.perf_counter() - began)
        if answer.slot != slot.value:
            raise LabError(f"after the switch to {slot} came {answer}")
    return statistics.median(moved) * 1000, statistics.median(seen) * 1000


async def _median(rounds: int, call: Callable[[int], Awaitable[object]]) -> float:
    times = []
    for number in range(rounds):
        began = time.perf_counter()
        await call(number)
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1000


def show(losses: list[Loss], costs: list[Cost], unable: list[str]) -> None:
    """Print the tables."""
    console = Console(width=150)
    table = Table("way", "wire", "Caddy", "switches", "served", "lost", "failed", "one switch", "what went wrong")
    for row in losses:
        words = ", ".join(f"{n} × {what}" for what, n in row.troubles.items()) or "nothing"
        numbers = [str(row.switches), str(row.served), str(row.lost), str(row.failed), f"{row.median_ms:.1f} ms"]
        table.add_row(row.way, row.wire, row.caddy.removeprefix("caddy-"), *numbers, words)
    if losses:
        console.print(table)
    table = Table("Caddy", "sites", "switch", "switch + seen through the proxy", "has", "apply one", "apply all")
    for cost in costs:
        values = (cost.switch_ms, cost.seen_ms, cost.has_ms, cost.apply_ms, cost.apply_all_ms)
        table.add_row(cost.caddy.removeprefix("caddy-"), str(cost.sites), *(f"{value:.2f} ms" for value in values))
    if costs:
        console.print(table)
    for line in unable:
        console.print(line)


def machine(which: list[str]) -> dict[str, Any]:
    """What this was measured on."""
    versions = {
        one: subprocess.run([caddy_binary(one), "version"], capture_output=True, text=True, timeout=10, check=True)
        for one in which
    }
    cores = [line for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if "model name" in line]
    return {
        "kernel": platform.release(),
        "cpu": cores[0].partition(":")[2].strip() if cores else platform.machine(),
        "cores": len(cores),
        "python": platform.python_version(),
        "caddy": {one: done.stdout.split()[0] for one, done in versions.items()},
    }


async def run(options: argparse.Namespace) -> int:
    """Everything that was asked for; the exit code is 1 when a switch by flag lost or failed a request."""
    losses: list[Loss] = []
    costs: list[Cost] = []
    unable: list[str] = []
    for which in options.caddy:
        for tls in (False, True):
            for name in options.ways:
                switches = options.updates if name == "swarm" else options.switches
                print(
                    f"{name}, {'TLS and HTTP/2' if tls else 'HTTP/1.1'}, {which}: {switches} switches", file=sys.stderr
                )
                try:
                    losses.append(await measure_loss(name, which=which, tls=tls, switches=switches))
                except LabError as error:
                    if name != "swarm":
                        raise
                    unable.append(f"docker service update could not be measured: {error}")
        for count in options.sites:
            costs.append(await measure_cost(count, which=which, rounds=options.rounds))
    show(losses, costs, unable)
    if options.json:
        result = {
            "machine": machine(options.caddy),
            "losses": [asdict(row) for row in losses],
            "costs": [asdict(row) for row in costs],
            "unable": unable,
        }
        options.json.write_text(json.dumps(result, indent=2), encoding="utf-8")
    ours = WAYS["flag"][0]
    return int(any(row.way == ours and row.lost + row.failed for row in losses))


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="40 switches, 2 service updates, 10 and 100 sites")
    parser.add_argument("--switches", type=int, help="switches by flag and by PATCH (400)")
    parser.add_argument("--updates", type=int, help="service updates (8)")
    parser.add_argument("--ways", nargs="+", choices=[*WAYS], default=[*WAYS])
    parser.add_argument("--caddy", nargs="+", choices=BINARIES, default=["caddy-wheel"])
    parser.add_argument("--sites", nargs="*", type=int, help="numbers of sites for the cost of a switch (10 1000)")
    parser.add_argument("--rounds", type=int, help="switches per number of sites (200)")
    parser.add_argument("--json", type=Path, help="also write the results there")
    options = parser.parse_args()
    small = options.quick
    options.switches = options.switches or (40 if small else 400)
    options.updates = options.updates or (2 if small else 8)
    options.rounds = options.rounds or (40 if small else 200)
    options.sites = options.sites if options.sites is not None else [10, 100 if small else 1000]
    return options


if __name__ == "__main__":
    sys.exit(asyncio.run(run(parse())))
