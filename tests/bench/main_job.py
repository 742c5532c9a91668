"""What a promote costs with 10 and with 1,000 sites, and a deploy over the bare engine calls that it needs.

    python -m tests.bench.main_job [--rounds N] [--sites N] [--json]

Ratios are of medians measured in one run, turn about. Needs root (a private engine) and the newest Caddy.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import secrets
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiodocker
import aiohttp

from codeb_mcp import app
from codeb_mcp.model.access import Principal, Role
from codeb_mcp.model.names import Environment
from codeb_mcp.model.slot import Slots
from codeb_mcp.operations.context import Services
from codeb_mcp.operations.invoke import Answer, Call, invoke
from codeb_mcp.operations.setup import initialise
from codeb_mcp.operations.state import site_of
from codeb_mcp.registry.store import Change
from codeb_mcp.settings import Docker, PortSettings, ProxySettings, Server, Settings
from tests.lab.caddy import running_caddy
from tests.lab.engine import shared_engine
from tests.lab.ports import FreePorts
from tests.lab.registry import shared_registry
from tests.lab.samples import SampleImages

OWNER = Principal("bench", "bench", "default", Role.OWNER, platform=True, via="bench")
PROJECT = "bench"
PRODUCTION: dict[str, Any] = {"projectName": PROJECT, "environment": "production"}


@contextlib.asynccontextmanager
async def installation(host: str, port: int, admin: str) -> AsyncIterator[Services]:
    """Services in this process, on a registry of their own."""
    with tempfile.TemporaryDirectory(prefix="codeb-bench-") as folder:
        root = Path(folder)
        root.chmod(0o755)
        settings = Settings(
            root=root,
            base_domain="bench.test",
            preview_domain="preview.bench.test",
            log_level="error",
            docker=Docker(host=host, min_free_mb=64),
            proxy=ProxySettings(admin=admin, listen=(f"127.0.0.1:{port}",), public=f"127.0.0.1:{port}"),
            server=Server(calls_per_minute=1_000_000, team_calls_per_minute=1_000_000),
            ports=PortSettings(production=((24_000, 31_999),)),
        )
        async with app.opened(settings) as services:
            await initialise(services)
            yield services


async def call(services: Services, tool: str, **params: Any) -> Answer:
    """One call, as a face would make it."""
    return await invoke(services, Call(tool, params, OWNER))


async def fill(services: Services, sites: int) -> None:
    """More projects in registry and proxy, without containers, until there are `sites`."""
    stored = await services.store.get("ssot")
    if stored is None:
        raise SystemExit("the registry is empty")
    now, wanted, projects = services.drivers.clock.now(), [], dict(stored.doc["projects"])
    for number in range(len(projects), sites):
        name, blue = f"site{number}", 25_000 + 2 * number
        projects[name] = {"teamId": "default", "ports": {"production": {"blue": blue, "green": blue + 1}}}
        wanted.append(Slots.fresh(name, "default", Environment.PRODUCTION, (blue, blue + 1), now))
    await services.store.commit([Change("ssot", {**stored.doc, "projects": projects}, stored.version)])
    for slots in wanted:
        await services.store.commit([Change(f"slots/{slots.key}", slots.dump(), 0)])
        await services.drivers.traffic.switch(slots.key, None, fence=0)
    await services.drivers.proxy.apply(upsert=[await site_of(services.store, services.settings, one) for one in wanted])


async def promote_times(services: Services, versions: list[str], rounds: int) -> tuple[list[float], list[float]]:
    """Milliseconds of whole promotes, and without the health probe of the target. The deploys between are not counted."""
    whole, without = [], []
    for _ in range(rounds):
        versions.reverse()
        await call(services, "deploy", **PRODUCTION, image=versions[0], force=True)
        started = time.perf_counter()
        answer = await call(services, "promote", **PRODUCTION)
        took = (time.perf_counter() - started) * 1000
        probe = next(step["duration"] for step in answer.body["steps"] if step["name"] == "check_target")
        whole.append(took)
        without.append(took - probe)
    return whole, without


async def bare_deploy(host: str, reference: str, port: int) -> float:
    """Pull, create, start, first healthy answer: what no deploy can do without, with the same container settings."""
    started = time.perf_counter()
    async with aiodocker.Docker(url=host) as docker, aiohttp.ClientSession() as session:
        await docker.images.pull(reference)
        config: dict[str, Any] = {
            "Image": reference,
            "ExposedPorts": {"8080/tcp": {}},
            "Env": ["PORT=8080"],
            "HostConfig": {
                "PortBindings": {"8080/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(port)}]},
                "RestartPolicy": {"Name": "always"}, "Init": True, "CapDrop": ["ALL"], "ReadonlyRootfs": True,
                "SecurityOpt": ["no-new-privileges"], "Memory": 512 << 20, "NanoCpus": 10**9, "PidsLimit": 256,
                "Tmpfs": {"/tmp": "rw,noexec,nosuid"},
            },
        }  # fmt: skip
        container = await docker.containers.create(config, name=f"bare-{secrets.token_hex(4)}")
        await container.start()
        while True:
            with contextlib.suppress(aiohttp.ClientError, OSError):
                async with session.get(f"http://127.0.0.1:{port}/health") as answer:
                    if answer.status == 200:
                        break
            await asyncio.sleep(0.01)
        took = (time.perf_counter() - started) * 1000
        await container.delete(force=True, v=True)
    return took


async def deploy_times(services: Services, images: SampleImages, rounds: int) -> tuple[list[float], list[float]]:
    """Milliseconds of whole deploys and of the bare calls, turn about, each with an image that must be pulled."""
    ours, bare = [], []
    port = FreePorts()()
    for number in range(rounds):
        reference = await images.pushed(f"bare{number}")
        bare.append(await bare_deploy(images.engine.host, reference, port))
        reference = await images.pushed(f"ours{number}")
        started = time.perf_counter()
        await call(services, "deploy", **PRODUCTION, image=reference)
        ours.append((time.perf_counter() - started) * 1000)
        # The next deploy finds an empty slot, as the bare calls do: stopping an old release is not part of either.
        await call(services, "slot_cleanup", **PRODUCTION, force=True)
    return ours, bare


async def measure(rounds: int, sites: int) -> dict[str, float]:
    """All figures of one run."""
    engine, hold = shared_engine()
    registry, registry_hold = shared_registry()
    images = SampleImages(engine, registry.address, f"bench{secrets.token_hex(4)}")
    port = FreePorts()()
    try:
        with running_caddy("caddy-wheel", port) as caddy:
            async with installation(engine.host, port, caddy.admin) as services:
                await call(services, "project_create", projectName=PROJECT, environments=["production"])
                versions = [await images.pushed(version) for version in ("v1", "v2")]
                await fill(services, 10)
                await promote_times(services, versions, 5)
                few_whole, few = await promote_times(services, versions, rounds)
                await fill(services, sites)
                await promote_times(services, versions, 5)
                many_whole, many = await promote_times(services, versions, rounds)
                await call(services, "slot_cleanup", **PRODUCTION, force=True)
                ours, bare = await deploy_times(services, images, max(5, rounds // 4))
                await call(services, "project_delete", projectName=PROJECT, confirm=PROJECT)
    finally:
        images.remove_all()
        for held in (hold, registry_hold):
            if held is not None:
                held.release()
    middle = statistics.median
    return {
        "promote_ms_10_sites": middle(few_whole),
        "promote_without_probe_ms_10_sites": middle(few),
        f"promote_ms_{sites}_sites": middle(many_whole),
        f"promote_without_probe_ms_{sites}_sites": middle(many),
        "promote_ratio": middle(many) / middle(few),
        "deploy_ms": middle(ours),
        "bare_ms": middle(bare),
        "deploy_ratio": middle(ours) / middle(bare),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--sites", type=int, default=1000)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    figures = asyncio.run(measure(arguments.rounds, arguments.sites))
    if arguments.json:
        print(json.dumps(figures))
        return
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    for name, value in figures.items():
        print(f"{name:44s} {value:10.2f}")


if __name__ == "__main__":
    main()
