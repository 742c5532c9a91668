"""Containers on a Docker Engine (20.10 or newer), hardened, published on loopback only, fenced.

Every method looks before it acts, because the answer to an earlier call may have been lost while its work was done.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

from codeb_mcp.drivers.docker_api import EngineApi, all_of, engine_api
from codeb_mcp.drivers.docker_errors import refused_container, status_of
from codeb_mcp.drivers.docker_logs import LogLines, unix_seconds
from codeb_mcp.drivers.docker_spec import (
    FENCE_LABEL,
    PROJECT_LABEL,
    container_of,
    create_body,
    fence_of,
    image_names,
    is_ours,
    is_wanted,
)
from codeb_mcp.drivers.protocols import Container, ContainerSpec, Engine
from codeb_mcp.model.errors import CodebError, DeadlineExceeded, DriverRefused, DriverUnavailable, NotFound

if TYPE_CHECKING:
    import aiodocker

CREATE_SECONDS = START_SECONDS = REMOVE_SECONDS = 60.0
STOP_EXTRA_SECONDS = 20.0
LOG_IDLE_SECONDS = 30.0
ENSURE_TRIES = 60
POLL_SECONDS = 0.05
MAX_POLL_SECONDS = 0.5

T = TypeVar("T")


class DockerContainers:
    """The `Containers` protocol on the engine at `host` (`unix:///path` or `tcp://address:port`).

    Belongs to the event loop of its first call. Containers without a label of ours are never stopped or removed.
    """

    def __init__(self, host: str | EngineApi) -> None:
        self._api = engine_api(host)

    async def engine(self) -> Engine:
        """See `Containers.engine`; `free_bytes` is None when the engine's disk is not on this machine."""
        info = await self._api.info()

        async def ask(docker: aiodocker.Docker) -> tuple[str, str]:
            answer = await docker.version()
            return str(answer["Version"]), str(answer["ApiVersion"])

        version, api_version = await self._api.call("asking its version", ask)
        return Engine(
            version=version,
            api_version=api_version,
            data_root=str(info.get("DockerRootDir", "")),
            free_bytes=await self._api.free_bytes(info),
        )

    async def ensure(self, spec: ContainerSpec) -> Container:
        """See `Containers.ensure`. Raises DriverRefused with `reason`: fenced, foreign_container, port_in_use,
        bad_command, bad_user, bad_limits, wrong_platform, image_not_found, image_mismatch, contended."""
        fence = fence_of(spec.labels)
        for attempt in range(ENSURE_TRIES):
            # A name that is taken cannot be inspected before its container is made.
            await asyncio.sleep(min(POLL_SECONDS * attempt, MAX_POLL_SECONDS))
            found = await self.inspect(spec.name)
            if found is not None:
                _check_fence(found, fence)
                if not is_wanted(found, spec):
                    await self._take_away(found, spec.stop_timeout_seconds)
                    found = None
            made = found or await self._create(spec)
            running = await self._start(made, spec) if made else None
            if running is not None:
                return running
        raise DriverRefused(
            f"container {spec.name} keeps being replaced by someone else",
            hint="See which other program manages containers of this name.",
            reason="contended",
        )

    async def remove(
        self, name: str, *, fence: int, stop_timeout_seconds: int = 15, adopted: str | None = None
    ) -> bool:
        """See `Containers.remove`."""
        found = await self.inspect(name)
        if found is None:
            return False
        _check_fence(found, fence)
        await self._take_away(found, stop_timeout_seconds, adopted)
        return True

    async def inspect(self, name: str) -> Container | None:
        """See `Containers.inspect`."""
        found = await self._look(name)
        # The engine also takes the beginning of an id for a name.
        return found if found is not None and name in (found.name, found.container_id) else None

    async def list(self, *, managed: bool = True) -> list[Container]:
        """See `Containers.list`."""
        filters = json.dumps({"label": [PROJECT_LABEL]} if managed else {})

        async def ids(docker: aiodocker.Docker) -> list[str]:
            return [entry.id for entry in await docker.containers.list(all=True, filters=filters)]

        found = await all_of(self._look, await self._api.call("listing containers", ids))
        return sorted((one for one in found if one is not None), key=lambda one: one.name)

    async def logs(
        self, name: str, *, tail: int, since: datetime | None = None, follow: bool = False
    ) -> AsyncIterator[str]:
        """See `Containers.logs`. Lines are cut at 64 KiB; for `tail` the engine counts a line
        over 16 KiB as several. Following ends with the container or with the caller."""
        found = await self._read(name, lambda raw: (str(raw["Id"]), not raw["Config"].get("Tty")))
        if found is None:
            raise NotFound(f"there is no container {name}", hint="List the slots to see what there is.", container=name)
        params: dict[str, Any] = {"stdout": 1, "stderr": 1, "timestamps": 1, "tail": tail, "follow": int(follow)}
        if since is not None:
            params["since"] = unix_seconds(since)
        identity, framed = found
        lines = LogLines(framed=framed)
        idle = None if follow else LOG_IDLE_SECONDS
        path = f"containers/{identity}/logs"
        async with self._api.stream(f"reading the log of {name}", "GET", path, params=params, idle_seconds=idle) as got:
            async for piece in got:
                for line in lines.feed(piece):
                    yield line
            for line in lines.rest():
                yield line

    async def close(self) -> None:
        """See `Containers.close`."""
        await self._api.close()

    # ── steps ───────────────────────────────────────────────────────────────────────────────────────────────────

    async def _look(self, name: str) -> Container | None:
        return await self._read(name, container_of)

    async def _read(self, name: str, read: Callable[[dict[str, Any]], T]) -> T | None:
        async def show(docker: aiodocker.Docker) -> T:
            return read(await docker.containers.container(name).show())

        try:
            return await self._api.call(f"inspecting container {name}", show)
        except DriverRefused as error:
            if status_of(error) == 404:
                return None
            raise

    async def _create(self, spec: ContainerSpec) -> Container | None:
        """The container, created and proven to be of the right image; None when the name was taken meanwhile."""
        try:
            identity = await self._post_create(spec)
        except DriverRefused as error:
            if status_of(error) == 409:
                return None
            raise refused_container(error, spec.name) from error
        except (DriverUnavailable, DeadlineExceeded):
            # The answer is lost, the container may be there.
            found = await self.inspect(spec.name)
            if found is None or not is_wanted(found, spec):
                raise
            return found
        made = await self._look(identity)
        if made is not None and made.image_id != spec.image_id:
            await self._delete(identity, spec.name)
            raise DriverRefused(
                f"container {spec.name} would have run another image than the one that was pulled",
                hint="Deploy again; the image's tag or digest was moved on the engine.",
                reason="image_mismatch",
                wanted=spec.image_id,
                found=made.image_id,
            )
        return made

    async def _post_create(self, spec: ContainerSpec) -> str:
        """Create by the first name of the image that the engine knows; answers the container id."""
        names = image_names(spec)
        for image in names:
            body = create_body(spec, image)

            async def create(docker: aiodocker.Docker, body: dict[str, Any] = body) -> str:
                return (await docker.containers.create(body, name=spec.name)).id

            try:
                return await self._api.call(
                    f"creating container {spec.name}",
                    create,
                    seconds=CREATE_SECONDS,
                    secrets=spec.environment.values(),
                )
            except DriverRefused as error:
                if status_of(error) != 404 or image == names[-1]:
                    raise
        raise DriverRefused(f"container {spec.name} names no image", hint="Deploy again.", reason="image_not_found")

    async def _start(self, made: Container, spec: ContainerSpec) -> Container | None:
        """Have it running; None when it was taken away meanwhile."""
        if made.state in ("running", "restarting"):
            return made

        async def start(docker: aiodocker.Docker) -> None:
            container = docker.containers.container(made.container_id)
            await (container.unpause() if made.state == "paused" else container.start())

        try:
            await self._api.call(
                f"starting container {made.name}", start, seconds=START_SECONDS, secrets=spec.environment.values()
            )
        except DriverRefused as error:
            if status_of(error) in (404, 409):
                return None
            raise refused_container(error, made.name) from error
        except (DriverUnavailable, DeadlineExceeded):
            # The answer is lost, the container may run.
            found = await self._look(made.container_id)
            if found is None or found.started_at is None or not found.running:
                raise
            return found
        return await self._look(made.container_id)

    async def _take_away(self, container: Container, stop_timeout_seconds: int, adopted: str | None = None) -> None:
        """Stop and remove this very container. By id: the name may belong to a newer one by now."""
        if not is_ours(container.labels) and container.container_id != adopted:
            raise DriverRefused(
                f"container {container.name} was not made by CodeB and is left alone",
                hint=f"Rename or remove it yourself: docker rename {container.name} {container.name}-old",
                reason="foreign_container",
                container=container.name,
            )

        async def stop(docker: aiodocker.Docker) -> None:
            await docker.containers.container(container.container_id).stop(t=stop_timeout_seconds)

        limit = stop_timeout_seconds + STOP_EXTRA_SECONDS
        # Gone already, or it cannot be stopped: the removal below kills it and tells which.
        with contextlib.suppress(DriverRefused, DeadlineExceeded):
            await self._api.call(f"stopping container {container.name}", stop, seconds=limit)
        await self._delete(container.container_id, container.name)

    async def _delete(self, identity: str, name: str) -> None:
        async def delete(docker: aiodocker.Docker) -> None:
            await docker.containers.container(identity).delete(force=True, v=True)

        try:
            await self._api.call(f"removing container {name}", delete, seconds=REMOVE_SECONDS)
        except DriverRefused as error:
            if status_of(error) == 409:
                await self._wait_gone(identity, name, error)
            elif status_of(error) != 404:
                raise

    async def _wait_gone(self, identity: str, name: str, conflict: CodebError) -> None:
        """Somebody else is removing it: wait for the end of that."""
        loop = asyncio.get_running_loop()
        end = loop.time() + REMOVE_SECONDS
        while await self._look(identity) is not None:
            if loop.time() > end:
                raise DeadlineExceeded(
                    f"the removal of container {name} does not come to an end",
                    hint="Look at the engine's log; restarting the engine ends a stuck removal.",
                ) from conflict
            await asyncio.sleep(POLL_SECONDS)


def _check_fence(container: Container, fence: int) -> None:
    newest = fence_of(container.labels)
    if newest > fence:
        raise DriverRefused(
            f"container {container.name} belongs to a newer run (fence {newest}, ours is {fence})",
            hint="Another run took over this environment; look at its operation instead of repeating this one.",
            reason="fenced",
            **{FENCE_LABEL.rpartition(".")[2]: newest},
        )
