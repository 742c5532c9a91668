"""What the contract suites of containers and images run against: the fake, or a real engine with a real registry."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import pytest

from codeb_mcp.drivers.docker import DockerContainers
from codeb_mcp.drivers.docker_images import DockerImages
from codeb_mcp.drivers.fakes import FakeContainers, FakeEngine, FakeImages
from codeb_mcp.drivers.protocols import Containers, ContainerSpec, Image, Images
from tests.lab.engine import Engine
from tests.lab.ports import FreePorts
from tests.lab.samples import SampleImages

T = TypeVar("T")
WAIT_SECONDS = 20.0
LOGIN = ("anna", "right-horse")
WORLDS = ["fake", pytest.param("real", marks=pytest.mark.real("docker", "registry"))]

Credentials = Callable[[str], tuple[str, str] | None]


def nobody(registry: str) -> None:
    """No credentials for any registry."""


@dataclass
class World:
    """One engine with a registry; every name in it is this test's own."""

    unique: str
    ports: FreePorts
    containers: Containers
    images: Images
    _images: list[Images] = field(default_factory=list)

    async def publish(self, version: str = "v1", *, labels: Mapping[str, str] | None = None, **knobs: str) -> str:
        """An image that is in the registry and not on the engine."""
        raise NotImplementedError

    async def load(self, version: str = "v1", **knobs: str) -> str:
        """An image that is on the engine and in no registry."""
        raise NotImplementedError

    async def stop(self, name: str) -> None:
        """Somebody stops the container by hand."""
        raise NotImplementedError

    async def foreign(self, image: Image, name: str) -> None:
        """Somebody else creates a container, without labels of ours."""
        raise NotImplementedError

    def puller(self, credentials: Credentials = nobody, min_free_bytes: int = 0) -> Images:
        """The same engine's images with other settings."""
        raise NotImplementedError

    async def image(self, version: str = "v1", **knobs: str) -> Image:
        """An image of the sample application on the engine."""
        found = await self.images.find(await self.load(version, **knobs))
        assert found is not None
        return found

    def spec(
        self, image: Image, name: str = "app", *, run: str = "run-1", fence: int = 1, **more: Any
    ) -> ContainerSpec:
        """A container of this test."""
        labels = {"codeb.project": self.unique, "codeb.run": run, "codeb.fence": str(fence)}
        made = ContainerSpec(
            name=f"{self.unique}-{name}", image_id=image.image_id, image_reference=image.reference, labels=labels,
            host_port=self.ports(), container_port=8080, environment={}, memory_bytes=128 << 20, cpus=1.0, pids=64,
            stop_timeout_seconds=5,
        )  # fmt: skip
        return replace(made, **more)

    async def close(self) -> None:
        """Let go of connections and servers."""
        await self.containers.close()
        for images in [self.images, *self._images]:
            await images.close()


class FakeWorld(World):
    """All in memory, with real little HTTP servers."""

    def __init__(self, unique: str, ports: FreePorts) -> None:
        self.engine = FakeEngine(serve=True)
        super().__init__(unique, ports, FakeContainers(self.engine), FakeImages(self.engine))

    async def publish(self, version: str = "v1", *, labels: Mapping[str, str] | None = None, **knobs: str) -> str:
        reference = f"registry.test/{self.unique}/app:{version}"
        self.engine.publish(reference, version, labels=labels, **knobs)
        return reference

    async def load(self, version: str = "v1", **knobs: str) -> str:
        reference = f"registry.test/{self.unique}/app:{version}"
        self.engine.load(reference, version, **knobs)
        return reference

    async def stop(self, name: str) -> None:
        await self.engine.stop(self.engine.containers[name])

    async def foreign(self, image: Image, name: str) -> None:
        await self.containers.ensure(replace(self.spec(image), name=name, labels={}))

    def puller(self, credentials: Credentials = nobody, min_free_bytes: int = 0) -> Images:
        return FakeImages(self.engine, credentials, min_free_bytes)

    async def close(self) -> None:
        await super().close()
        await self.engine.close()


class RealWorld(World):
    """A real engine and a real registry."""

    def __init__(self, unique: str, ports: FreePorts, engine: Engine, samples: SampleImages) -> None:
        self.engine = engine
        self.samples = samples
        super().__init__(unique, ports, DockerContainers(engine.host), DockerImages(engine.host, nobody, 0))

    async def publish(self, version: str = "v1", *, labels: Mapping[str, str] | None = None, **knobs: str) -> str:
        return await self.samples.pushed(version, labels=labels, auth=None, **knobs)

    async def load(self, version: str = "v1", **knobs: str) -> str:
        return await self.samples.local(version, labels=None, **knobs)

    async def stop(self, name: str) -> None:
        async with self.engine.docker() as docker:
            await docker.containers.container(name).stop(t=1)

    async def foreign(self, image: Image, name: str) -> None:
        async with self.engine.docker() as docker:
            await docker.containers.create({"Image": image.image_id}, name=name)

    def puller(self, credentials: Credentials = nobody, min_free_bytes: int = 0) -> Images:
        self._images.append(DockerImages(self.engine.host, credentials, min_free_bytes))
        return self._images[-1]


@contextlib.asynccontextmanager
async def made_world(request: pytest.FixtureRequest, kind: str) -> AsyncIterator[World]:
    """The world of that kind, taken down at the end."""
    unique, ports = request.getfixturevalue("unique"), request.getfixturevalue("free_ports")
    world: World
    if kind == "fake":
        world = FakeWorld(unique, ports)
    else:
        world = RealWorld(unique, ports, request.getfixturevalue("engine"), request.getfixturevalue("sample_images"))
    try:
        yield world
    finally:
        await world.close()


async def eventually(look: Callable[[], Awaitable[T | None]], what: str) -> T:
    """The first true answer; fails when there is none in time."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                found = await look()
                if found:
                    return found
                await asyncio.sleep(0.02)
    raise AssertionError(f"{what} did not happen within {WAIT_SECONDS:g} s")


async def get(port: int, path: str = "/health", host: str = "127.0.0.1") -> tuple[int, str] | None:
    """Status and body of a GET; None while nobody answers."""
    try:
        async with asyncio.timeout(5):
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(f"GET {path} HTTP/1.1\r\nHost: app.test\r\nConnection: close\r\n\r\n".encode())
            answer = (await reader.read()).decode()
            writer.close()
    except (OSError, TimeoutError):
        return None
    head, _, body = answer.partition("\r\n\r\n")
    return (int(head.split(" ")[1]), body) if head else None


async def healthy(port: int) -> str:
    """Wait until the health page answers; its text."""
    status, body = await eventually(lambda: get(port), f"an answer on port {port}")
    assert status == 200
    return body.strip()
