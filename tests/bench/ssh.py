"""What SSH costs: a command and an engine call over the kept connection, against the same on the machine itself.

    python -m tests.bench.ssh [--calls 300]

Needs root and the lab hosts. Calls go in turns to both sides, so that a slow moment of the machine hits both; medians are
compared. Both commands are started for each call; the connection, the engine's socket and its HTTP connection are kept.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable

import aiodocker

from codeb_mcp.drivers.hosts import Host
from codeb_mcp.drivers.ssh import SshHosts, SshSettings
from codeb_mcp.model.server import Server
from tests.lab.hosts import LabHosts, shared_hosts

WARM = 20
HOST = "app"
Call = Callable[[], Awaitable[object]]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="What SSH costs.")
    parser.add_argument("--calls", type=int, default=300)
    calls = parser.parse_args().calls
    lab, hold = shared_hosts()
    try:
        asyncio.run(measure(lab, calls))
    finally:
        hold.release()


async def measure(lab: LabHosts, calls: int) -> None:
    """All comparisons."""
    hosts = SshHosts(SshSettings(key_file=lab.key_file))
    entry = {"host": lab.address(HOST), "role": "application", "user": "root", "hostKey": lab.host_key(HOST)}
    try:
        remote = hosts.at(HOST, Server.model_validate(entry))
        here = hosts.at("here", Server.model_validate({**entry, "connection": "local"}))
        await compare("run true", lambda: remote.run(["true"]), lambda: here.run(["true"]), calls)
        await compare("stat", lambda: remote.stat("/etc"), lambda: here.stat("/etc"), calls)
        data = b"x" * 1000
        await compare(
            "write 1 kB", lambda: remote.write("/tmp/bench", data), lambda: here.write("/dev/shm/bench", data), calls
        )
        await here.remove("/dev/shm/bench")
        await engine(lab, remote, calls)
        await first_call(lab, entry, 15)
        started = time.perf_counter()
        await asyncio.gather(*(remote.run(["true"], timeout_seconds=60) for _ in range(200)))
        print(f"200 commands at once over one connection: {time.perf_counter() - started:.2f} s")
    finally:
        await hosts.close()


async def engine(lab: LabHosts, remote: Host, calls: int) -> None:
    """One call of the engine in the host: over SSH, and on its own socket as the machine sees it."""
    direct = await asyncio.to_thread(lab.start_engine, HOST)
    forwarded = await remote.socket("/var/run/docker.sock")
    async with aiodocker.Docker(url=f"unix://{forwarded}") as far, aiodocker.Docker(url=f"unix://{direct}") as near:
        await compare("engine version", far.version, near.version, calls)
        await compare("engine list containers", far.containers.list, near.containers.list, calls)


async def first_call(lab: LabHosts, entry: dict[str, str], times: int) -> None:
    """A command over a connection that has to be made."""
    took = []
    for _ in range(times):
        hosts = SshHosts(SshSettings(key_file=lab.key_file))
        started = time.perf_counter()
        await hosts.at(HOST, Server.model_validate(entry)).run(["true"])
        took.append(time.perf_counter() - started)
        await hosts.close()
    print(f"{'first command, with the login':26} {statistics.median(took) * 1000:8.2f} ms")


async def compare(name: str, far: Call, near: Call, calls: int) -> None:
    """Print the medians of both and their ratio."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(calls + WARM):
        for call, took in zip((far, near), times, strict=True):
            started = time.perf_counter()
            await call()
            took.append(time.perf_counter() - started)
    ssh, local = (statistics.median(took[WARM:]) * 1000 for took in times)
    print(f"{name:26} {ssh:8.2f} ms over SSH {local:8.2f} ms here    ratio {ssh / local:5.2f}")


if __name__ == "__main__":
    main()
