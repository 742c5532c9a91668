"""Containers and images in memory. They pass the contract suites of the real drivers; faults are ordered on the engine.

    engine = FakeEngine(serve=True)
    engine.publish("ghcr.io/acme/shop:v1", "v1", HEALTH="fail")
    engine.faults.fail("containers.ensure", DriverUnavailable("..."), nth=2, after_work=True)
    containers, images = FakeContainers(engine), FakeImages(engine)

Methods in faults: `containers.engine|ensure|remove|inspect|list|logs` and `images.pull|find|list_labelled|remove`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from datetime import datetime

from codeb_mcp.drivers.docker_spec import PROJECT_LABEL, fence_of, is_ours, is_wanted
from codeb_mcp.drivers.fake_engine import FakeContainer, FakeEngine, FakeImage
from codeb_mcp.drivers.protocols import Container, ContainerSpec, Engine, Image, PullProgress
from codeb_mcp.model.errors import DriverRefused, DriverUnavailable, InsufficientStorage, NotFound
from codeb_mcp.model.names import image_registry

__all__ = ["FakeContainer", "FakeContainers", "FakeEngine", "FakeImage", "FakeImages"]


class FakeContainers:
    """The `Containers` protocol on a FakeEngine."""

    def __init__(self, engine: FakeEngine) -> None:
        self._engine = engine

    async def engine(self) -> Engine:
        """See `Containers.engine`."""
        async with self._engine.faults.around("containers.engine"):
            self._engine.check_there("asking who it is")
            return Engine("0.fake", "1.41", "/nowhere", self._engine.free_bytes)

    async def ensure(self, spec: ContainerSpec) -> Container:
        """See `Containers.ensure`."""
        async with self._engine.faults.around("containers.ensure"):
            self._engine.check_there(f"creating container {spec.name}")
            async with self._engine.lock:
                return await self._ensure(spec)

    async def remove(
        self, name: str, *, fence: int, stop_timeout_seconds: int = 15, adopted: str | None = None
    ) -> bool:
        """See `Containers.remove`."""
        async with self._engine.faults.around("containers.remove"):
            self._engine.check_there(f"removing container {name}")
            async with self._engine.lock:
                made = self._engine.containers.get(name)
                if made is None:
                    return False
                _check_fence(made.seen, fence)
                await self._take_away(made, adopted)
                return True

    async def inspect(self, name: str) -> Container | None:
        """See `Containers.inspect`."""
        async with self._engine.faults.around("containers.inspect"):
            self._engine.check_there(f"inspecting container {name}")
            made = self._engine.containers.get(name)
            return made.seen if made else None

    async def list(self, *, managed: bool = True) -> list[Container]:
        """See `Containers.list`."""
        async with self._engine.faults.around("containers.list"):
            self._engine.check_there("listing containers")
            found = [made.seen for _, made in sorted(self._engine.containers.items())]
            return [one for one in found if PROJECT_LABEL in one.labels or not managed]

    async def logs(
        self, name: str, *, tail: int, since: datetime | None = None, follow: bool = False
    ) -> AsyncIterator[str]:
        """See `Containers.logs`."""
        async with self._engine.faults.around("containers.logs"):
            self._engine.check_there(f"reading the log of {name}")
            made = self._engine.containers.get(name)
        if made is None:
            raise NotFound(f"there is no container {name}", hint="List the slots to see what there is.", container=name)
        seen = max(0, len(made.lines) - tail)
        while True:
            made.changed.clear()
            for line in made.lines[seen:]:
                seen += 1
                if since is None or datetime.fromisoformat(line.split(" ", 1)[0]) >= since:
                    yield line
            if not follow or made.removed or not made.seen.running:
                return
            await made.changed.wait()

    async def close(self) -> None:
        """See `Containers.close`; the engine and its servers go on (`FakeEngine.close` ends them)."""

    async def _ensure(self, spec: ContainerSpec) -> Container:
        made = self._engine.containers.get(spec.name)
        if made is not None:
            _check_fence(made.seen, fence_of(spec.labels))
            if not is_wanted(made.seen, spec):
                await self._take_away(made)
                made = None
        made = made or self._create(spec)
        if not made.seen.running and made.seen.state != "restarting":
            await self._engine.start(made)
        return made.seen

    def _create(self, spec: ContainerSpec) -> FakeContainer:
        image = self._engine.images.get(spec.image_id)
        if image is None:
            raise DriverRefused(
                f"the container engine refused creating container {spec.name}: no such image: {spec.image_id}",
                hint="The image is no longer on the engine; deploy it again.",
                reason="image_not_found",
            )
        seen = Container(
            spec.name, self._engine.new_id(), spec.image_id, spec.image_reference, dict(spec.labels), "created",
            (spec.host_port,), None, None, 0, ports={spec.host_port: spec.container_port},
            environment={**image.environment, **spec.environment},
        )  # fmt: skip
        made = FakeContainer(seen, {**image.environment, **spec.environment}, spec)
        self._engine.containers[spec.name] = made
        return made

    async def _take_away(self, made: FakeContainer, adopted: str | None = None) -> None:
        if not is_ours(made.seen.labels) and made.seen.container_id != adopted:
            raise DriverRefused(
                f"container {made.seen.name} was not made by CodeB and is left alone",
                hint="Rename or remove it yourself.",
                reason="foreign_container",
            )
        del self._engine.containers[made.seen.name]
        await self._engine.stop(made, removed=True)


class FakeImages:
    """The `Images` protocol on a FakeEngine."""

    def __init__(
        self,
        engine: FakeEngine,
        credentials: Callable[[str], tuple[str, str] | None] = lambda registry: None,
        min_free_bytes: int = 0,
    ) -> None:
        self._engine = engine
        self._credentials = credentials
        self._min_free_bytes = min_free_bytes

    async def pull(self, reference: str, *, policy: str = "always", progress: PullProgress | None = None) -> Image:
        """See `Images.pull`."""
        async with self._engine.faults.around("images.pull"):
            self._engine.check_there(f"pulling {reference}")
            here = self._local(reference)
            if here is not None and policy != "always":
                return here.image
            if policy == "never":
                raise _refused(reference, "it is not on the engine", "image_not_found")
            self._check_disk()
            found = self._ask_registry(reference)
            for fraction, words in ((None, "asking"), (0.5, "half of it"), (1.0, "the image is here")):
                if progress is not None:
                    progress(fraction, words)
            self._engine.keep(found, reference)
            return found.image

    async def find(self, reference: str) -> Image | None:
        """See `Images.find`."""
        async with self._engine.faults.around("images.find"):
            self._engine.check_there(f"inspecting image {reference}")
            found = self._local(reference)
            return found.image if found else None

    async def list_labelled(self, label: str) -> list[Image]:
        """See `Images.list_labelled`."""
        async with self._engine.faults.around("images.list_labelled"):
            self._engine.check_there("listing images")
            name, _, value = label.partition("=")
            found = [one.image for one in self._engine.images.values() if name in one.image.labels]
            return [image for image in found if not value or image.labels[name] == value]

    async def remove(self, image_id: str) -> bool:
        """See `Images.remove`."""
        async with self._engine.faults.around("images.remove"):
            self._engine.check_there(f"removing image {image_id}")
            if not image_id.startswith("sha256:"):
                raise DriverRefused(f"{image_id} is no image id", hint="Name the image by its id.", reason="no_id")
            used = any(made.seen.image_id == image_id for made in self._engine.containers.values())
            if used or self._engine.images.pop(image_id, None) is None:
                return False
            self._engine.names = {name: one for name, one in self._engine.names.items() if one != image_id}
            return True

    async def close(self) -> None:
        """See `Images.close`."""

    def _local(self, reference: str) -> FakeImage | None:
        for found in self._engine.images.values():
            repository = found.image.reference.rpartition(":")[0]
            if reference in (found.image.image_id, f"{repository}@{found.image.digest}"):
                return found
        return self._engine.images.get(self._engine.names.get(reference, ""))

    def _check_disk(self) -> None:
        free = self._engine.free_bytes
        if free is not None and free < self._min_free_bytes:
            raise InsufficientStorage(
                f"the engine's disk has {free / 1e9:.1f} GB left, a pull needs {self._min_free_bytes / 1e9:.1f} GB free",
                hint="Free disk space.",
                freeBytes=free,
                neededBytes=self._min_free_bytes,
            )

    def _ask_registry(self, reference: str) -> FakeImage:
        registry = image_registry(reference)
        if registry in self._engine.registries_down:
            raise DriverUnavailable(
                f"the container engine refused pulling {reference}: connection refused",
                hint="See that the registry is up.",
                reason="registry_unreachable",
            )
        wanted = self._engine.logins.get(registry)
        if wanted is not None and self._credentials(registry) != wanted:
            raise _refused(reference, "no basic auth credentials", "unauthorized")
        for found in self._engine.remote.values():
            repository = found.image.reference.rpartition(":")[0]
            if reference in (found.image.reference, f"{repository}@{found.image.digest}"):
                return found
        raise _refused(reference, "manifest unknown", "image_not_found")


def _refused(reference: str, words: str, reason: str) -> DriverRefused:
    return DriverRefused(
        f"the container engine refused pulling {reference}: {words}",
        hint="Check the image's name and CodeB's credentials for its registry.",
        reason=reason,
        image=reference,
    )


def _check_fence(container: Container, fence: int) -> None:
    newest = fence_of(container.labels)
    if newest > fence:
        raise DriverRefused(
            f"container {container.name} belongs to a newer run (fence {newest}, ours is {fence})",
            hint="Another run took over this environment.",
            reason="fenced",
            fence=newest,
        )
