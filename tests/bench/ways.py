"""Three ways to send traffic to another release, each with real parts, so that one load can judge them side by side."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from codeb_mcp.drivers.caddy import CaddyProxy
from codeb_mcp.drivers.caddy_config import Tls
from codeb_mcp.drivers.flags import FlagTraffic
from codeb_mcp.model.names import Slot
from codeb_mcp.model.routes import Site
from tests.bench.hammer import Target
from tests.lab.caddy import caddy_binary, running_caddy
from tests.lab.daemons import LabError, program
from tests.lab.engine import PrivateEngine, spare_engine
from tests.lab.ports import FreePorts

HOST = "bench.test"
APP = Path(__file__).parent.parent / "lab/sample_app.py"
AUTHORITY = ".local/share/caddy/pki/authorities/local/root.crt"
SWARM_UPDATE_SECONDS = 60


@dataclass(frozen=True)
class Stage:
    """A running proxy in front of the application: where to shoot, and the switch to the other release."""

    target: Target
    switch: Callable[[], Awaitable[None]]


Way = Callable[[str, bool, FreePorts], contextlib.AbstractAsyncContextManager[Stage]]


@contextlib.contextmanager
def application(port: int, version: str) -> Iterator[None]:
    """The sample application in a process of its own."""
    environment = {"PORT": str(port), "APP_VERSION": version, "PATH": os.environ["PATH"]}
    process = subprocess.Popen([sys.executable, str(APP)], env=environment, stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)


async def ready(target: Target) -> None:
    """Wait until the application answers through the proxy, over TLS with a certificate if that is wanted."""
    async with asyncio.timeout(30), aiohttp.ClientSession() as session:
        while True:
            with contextlib.suppress(aiohttp.ClientError, OSError):
                scheme = "https" if target.authority else "http"
                tls = target.tls() or True
                async with session.get(
                    f"{scheme}://{target.address}:{target.port}/version", headers={"Host": target.host}, ssl=tls,
                    server_hostname=target.host if target.authority else None,
                ) as answer:  # fmt: skip
                    if answer.status == 200:
                        return
            await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def by_flag(which: str, tls: bool, ports: FreePorts) -> AsyncIterator[Stage]:
    """What codeb does: both slots stand in the configuration, one rename switches."""
    blue, green = ports.pair()
    mode: Tls = "internal" if tls else "off"
    with application(blue, "blue"), application(green, "green"), running_caddy(which, ports()) as server:
        proxy = CaddyProxy(server.admin, flags_folder=str(server.flags), listen=(server.listen,), tls=mode)
        traffic, slot = FlagTraffic(server.flags), Slot.BLUE
        traffic.switch("bench-production", slot, fence=1)
        fence = 1

        async def switch() -> None:
            nonlocal slot, fence
            slot, fence = slot.other, fence + 1
            traffic.switch("bench-production", slot, fence=fence)

        try:
            await proxy.apply(upsert=[Site("bench-production", (HOST,), blue, green)])
            target = Target("127.0.0.1", server.port, HOST, server.authority if tls else None, http2=tls)
            await ready(target)
            yield Stage(target, switch)
        finally:
            await proxy.close()


@contextlib.asynccontextmanager
async def by_patch(which: str, tls: bool, ports: FreePorts) -> AsyncIterator[Stage]:
    """What most do: the admin API gets another upstream, and Caddy reloads."""
    blue, green = ports.pair()
    port = ports()
    config = _plain_config(f"127.0.0.1:{port}", f"127.0.0.1:{blue}", tls=tls)
    with application(blue, "blue"), application(green, "green"), running_caddy(which, port, config=config) as server:
        now = blue

        async def switch() -> None:
            nonlocal now
            now = blue + green - now
            wanted = [{"dial": f"127.0.0.1:{now}"}]
            for _ in range(20):  # the admin server drops calls while it is being replaced itself
                answer = await asyncio.to_thread(server.ask, "PATCH", "/id/bench/upstreams", wanted)
                if b" 200 " in answer[:20]:
                    return
            raise LabError(f"caddy did not take the change: {answer[:200]!r}")

        target = Target("127.0.0.1", port, HOST, server.authority if tls else None, http2=tls)
        await ready(target)
        yield Stage(target, switch)


@contextlib.asynccontextmanager
async def by_swarm(which: str, tls: bool, ports: FreePorts) -> AsyncIterator[Stage]:
    """An orchestrator: `docker service update --update-order start-first`, with Caddy on the overlay network.

    The service has no virtual address (that needs IP_VS in the kernel); Caddy finds its tasks by the engine's DNS.
    """
    port = ports()
    engine = await asyncio.to_thread(spare_engine)
    had_bridge = Path("/sys/class/net/docker_gwbridge").exists()
    folder = Path(tempfile.mkdtemp(prefix="codeb-swarm-"))
    docker = _Docker(engine)
    try:
        await docker.prepare(folder)
        environment = {"APP_VERSION": "0", "TERM": "drain"}
        await docker.run(
            "service", "create", "--quiet", "--name", "app", "--network", "bench", "--endpoint-mode", "dnsrr",
            *docker.mounts, *(word for pair in environment.items() for word in ("--env", "=".join(pair))),
            "--update-order", "start-first", "--update-monitor", "1s", "bench:v1", docker.python, str(APP),
        )  # fmt: skip
        (folder / "caddy.json").write_text(json.dumps(_plain_config(f":{port}", "app:8080", tls=tls)), encoding="utf-8")
        await docker.run(
            "run", "--detach", "--name", "edge", "--network", "bench", "--publish", f"127.0.0.1:{port}:{port}",
            "--env", f"HOME={folder}", *docker.mounts, "--mount", f"type=bind,src={folder},dst={folder}", "bench:v1",
            caddy_binary(which), "run", "--config", str(folder / "caddy.json"),
        )  # fmt: skip
        version = 0

        async def switch() -> None:
            nonlocal version
            version += 1
            await docker.run(
                "service", "update", "--quiet", "--detach=false", "--update-order", "start-first",
                "--env-add", f"APP_VERSION={version}", "app",
            )  # fmt: skip

        target = Target("127.0.0.1", port, HOST, folder / AUTHORITY if tls else None, http2=tls)
        await _until_exists(target.authority)
        await ready(target)
        yield Stage(target, switch)
    finally:
        await docker.clean(remove_bridge=not had_bridge)
        await asyncio.to_thread(engine.stop)
        await asyncio.to_thread(_remove, folder)


class _Docker:
    """The engine's command line on a private engine. Containers see this machine's programs, read only."""

    def __init__(self, engine: PrivateEngine) -> None:
        self._host = engine.host
        self._program = program("docker", part="docker", package="docker.io")
        self.python = str(Path(sys.executable).resolve())
        roots = ["/usr", "/lib", "/lib64", "/bin", sys.base_prefix, sys.prefix, str(APP.parent)]
        self._roots = [root for root in dict.fromkeys(map(str, roots)) if Path(root).exists()]
        outer = [root for root in self._roots if not any(root.startswith(f"{other}/") for other in self._roots)]
        self.mounts = [word for root in outer for word in ("--mount", f"type=bind,src={root},dst={root},ro")]

    async def run(self, *words: str) -> str:
        """One command; answers what it printed, raises LabError when it failed."""
        process = await asyncio.create_subprocess_exec(
            self._program, "-H", self._host, *words, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        try:
            async with asyncio.timeout(SWARM_UPDATE_SECONDS):
                out, problem = await process.communicate()
        except TimeoutError:
            process.kill()
            await process.wait()
            raise LabError(f"docker {' '.join(words[:2])} took longer than {SWARM_UPDATE_SECONDS} s") from None
        if process.returncode:
            raise LabError(f"docker {' '.join(words[:2])}: {problem.decode()[-500:]}")
        return out.decode()

    async def prepare(self, folder: Path) -> None:
        """A swarm of one node, its network and an image that is only mount points."""
        image = folder / "empty.tar"
        image.write_bytes(_empty_image(self._roots))
        await self.run("import", str(image), "bench:v1")
        await self.run("swarm", "init", "--advertise-addr", "127.0.0.1")
        await self.run("network", "create", "--driver", "overlay", "--attachable", "bench")

    async def clean(self, *, remove_bridge: bool) -> None:
        """Leave nothing behind: containers, swarm and the bridge that a swarm makes on the machine."""
        steps = [("rm", "--force", "edge"), ("service", "rm", "app"), ("swarm", "leave", "--force")]
        if remove_bridge:
            steps.append(("network", "rm", "docker_gwbridge"))
        for step in steps:
            with contextlib.suppress(LabError):
                await self.run(*step)


def _plain_config(listen: str, dial: str, *, tls: bool) -> dict[str, Any]:
    proxy = {"@id": "bench", "handler": "reverse_proxy", "upstreams": [{"dial": dial}]}
    route = {"match": [{"host": [HOST]}], "handle": [proxy], "terminal": True}
    server: dict[str, Any] = {"listen": [listen], "routes": [route]}
    if not tls:
        return {"apps": {"http": {"servers": {"edge": {**server, "automatic_https": {"disable": True}}}}}}
    server |= {
        "automatic_https": {"disable_redirects": True},
        "tls_connection_policies": [{}],
        "protocols": ["h1", "h2"],
    }
    policy = {"subjects": [HOST], "issuers": [{"module": "internal"}]}
    return {
        "apps": {
            "http": {"servers": {"edge": server}},
            "tls": {"automation": {"policies": [policy]}},
            "pki": {"certificate_authorities": {"local": {"install_trust": False}}},
        }
    }


def _empty_image(roots: list[str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in ("proc", "sys", "dev", "etc", "tmp", *(root.lstrip("/") for root in roots)):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(entry)
    return buffer.getvalue()


async def _until_exists(path: Path | None) -> None:
    async with asyncio.timeout(30):
        while path is not None and not path.exists():
            await asyncio.sleep(0.05)


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)
