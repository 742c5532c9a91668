"""A deploy to an app server over SSH, against the same deploy to the engine beside the control plane.

    python -m tests.bench.deploy_ssh [--rounds 12]

Needs root and the lab hosts. Both engines are of this machine; each image is pulled from a registry on the engine's own
loopback into an empty slot, and proven through a proxy there. Deploys go in turns; medians are compared.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import secrets
import statistics
import time
from collections.abc import Iterator
from typing import Any

from codeb_mcp import app
from codeb_mcp.operations.context import Services
from codeb_mcp.operations.invoke import Call, invoke
from codeb_mcp.operations.servers import load_server
from codeb_mcp.registry.store import update
from tests.lab.engine import Engine, shared_engine
from tests.lab.far_servers import FarServers, far_servers
from tests.lab.hosts import shared_hosts
from tests.lab.installation import Installation, installed
from tests.lab.ports import FreePorts
from tests.lab.registry import shared_registry
from tests.lab.samples import SampleImages
from tests.unit.operations.world import OWNER

HOST = "app"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=12)
    rounds = parser.parse_args().rounds
    name = f"bench{secrets.token_hex(4)}"
    with laboratory() as (engine, address, far, made):
        asyncio.run(measure(made, far, SampleImages(engine, address, name), name, rounds))


@contextlib.contextmanager
def laboratory() -> Iterator[tuple[Engine, str, FarServers, Installation]]:
    """An engine and a registry here, an app server behind SSH, and an installation that knows both."""
    engine, hold = shared_engine()
    registry, registry_hold = shared_registry()
    lab, lab_hold = shared_hosts()
    ports = FreePorts()
    try:
        with (
            far_servers(lab, HOST) as far,
            installed(engine, ports(), ports(), which="caddy-debian", extra=far.toml()) as made,
        ):
            yield engine, registry.address, far, made
    finally:
        for held in (hold, registry_hold, lab_hold):
            if held is not None:
                held.release()


async def measure(made: Installation, far: FarServers, images: SampleImages, name: str, rounds: int) -> None:
    """Deploys to both in turns, and what one round trip of the connection takes."""
    took: dict[str, list[float]] = {"near": [], "far": []}
    steps: dict[str, dict[str, list[float]]] = {"near": {}, "far": {}}
    async with app.opened(made.settings) as services:
        await update(services.store, "ssot", lambda doc: {**(doc or {}), "servers": far.entries()})
        for project in took:
            await call(services, "project_create", projectName=f"{name}-{project}", environments=["production"])
        await call(services, "project_place", **live(f"{name}-far"), servers=[HOST])
        for number in range(rounds + 1):
            for project in took:
                version = f"{project}{number}"
                image = await (images.pushed(version) if project == "near" else far.image(name, version))
                started = time.perf_counter()
                body = await call(services, "deploy", **live(f"{name}-{project}"), image=image)
                if number:  # the first one makes connections
                    took[project].append(time.perf_counter() - started)
                    for one in body["steps"]:
                        steps[project].setdefault(one["name"], []).append(one["duration"])
                await call(services, "slot_cleanup", **live(f"{name}-{project}"), force=True)
        trip = await round_trip(services)
        for project in took:
            await call(services, "project_delete", projectName=f"{name}-{project}", confirm=f"{name}-{project}")
    images.remove_all()
    near, distant = (statistics.median(took[one]) * 1000 for one in ("near", "far"))
    bound = 1.15 * near + 2 * trip
    print(
        f"deploy here {near:.1f} ms, over SSH {distant:.1f} ms, ratio {distant / near:.3f}; one round trip {trip:.2f} ms"
    )
    print(f"bound 1.15 x here + 2 round trips = {bound:.1f} ms: {'met' if distant <= bound else 'NOT met'}")
    for step, times in steps["far"].items():
        print(f"  {step:20} {statistics.median(steps['near'][step]):8.1f} {statistics.median(times):8.1f} ms")


async def round_trip(services: Services) -> float:
    """Milliseconds of the smallest question over the kept connection."""
    host = services.drivers.hosts.at(HOST, await load_server(services.store, HOST))
    times = []
    for _ in range(60):
        started = time.perf_counter()
        await host.stat("/")
        times.append((time.perf_counter() - started) * 1000)
    return statistics.median(times)


def live(project: str) -> dict[str, Any]:
    """The environment that is measured."""
    return {"projectName": project, "environment": "production"}


async def call(services: Services, tool: str, **arguments: Any) -> dict[str, Any]:
    """One call as the owner."""
    return (await invoke(services, Call(tool, arguments, OWNER))).body


if __name__ == "__main__":
    main()
