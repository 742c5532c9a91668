"""One connection pool to one container engine, with a time limit and our errors around every call."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from codeb_mcp.drivers.docker_errors import engine_errors

if TYPE_CHECKING:
    import aiodocker
    import aiohttp

CALL_SECONDS = 20.0
CONNECT_SECONDS = 5.0
AT_ONCE = 16

A = TypeVar("A")
T = TypeVar("T")


class EngineApi:
    """Talks to the engine at `host` (`unix:///path` or `tcp://address:port`). Belongs to the event loop of its first
    call; `close()` it there."""

    def __init__(self, host: str) -> None:
        self.host = host
        self._docker: aiodocker.Docker | None = None

    async def call(
        self,
        doing: str,
        work: Callable[[aiodocker.Docker], Awaitable[T]],
        *,
        seconds: float = CALL_SECONDS,
        secrets: Iterable[str] = (),
    ) -> T:
        """Run one library call within its time limit; `doing` names it in errors, `secrets` never appear there."""
        with engine_errors(doing, secrets):
            async with asyncio.timeout(seconds):
                return await work(self._client())

    @contextlib.asynccontextmanager
    async def stream(
        self,
        doing: str,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any],
        headers: Mapping[str, str] | None = None,
        idle_seconds: float | None,
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """An endless answer in pieces as they come; raises DeadlineExceeded when none comes for `idle_seconds`.

        The library's own stream readers take a broken connection for the end of the stream, so a pull that was cut off
        would look complete. Here it raises DriverUnavailable.
        """
        import aiohttp

        limits = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)
        with engine_errors(doing):
            async with asyncio.timeout(idle_seconds):
                response = await self._client()._do_query(path, method, params=params, headers=headers, timeout=limits)
            try:
                yield _pieces(response, idle_seconds)
            finally:
                response.close()

    async def info(self) -> dict[str, Any]:
        """The engine's own description of itself."""

        async def ask(docker: aiodocker.Docker) -> dict[str, Any]:
            return dict(await docker.system.info())

        return await self.call("asking who it is", ask)

    async def close(self) -> None:
        """Close all connections; a later call opens new ones."""
        docker, self._docker = self._docker, None
        if docker is not None:
            with engine_errors("closing connections"):
                await docker.close()

    def _client(self) -> aiodocker.Docker:
        if self._docker is None:
            import aiodocker
            import aiohttp

            limits = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)
            self._docker = aiodocker.Docker(url=self.host, timeout=limits)
        return self._docker


async def _pieces(response: aiohttp.ClientResponse, idle_seconds: float | None) -> AsyncIterator[bytes]:
    while True:
        async with asyncio.timeout(idle_seconds):
            piece = await response.content.readany()
        if not piece:
            return
        yield piece


async def all_of(work: Callable[[A], Awaitable[T]], items: Iterable[A]) -> list[T]:
    """`work` done for all items, a bounded number at a time; the first error ends the others and is raised as itself."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(item: A) -> T:
        async with gate:
            return await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(item)) for item in items]
    except BaseExceptionGroup as problems:
        raise problems.exceptions[0] from None
    return [task.result() for task in tasks]


def free_bytes(host: str, info: Mapping[str, Any]) -> int | None:
    """Free space where the engine keeps its data; None when that is not on this machine."""
    if not host.startswith("unix://") or info.get("Name") != os.uname().nodename:
        return None
    try:
        usage = os.statvfs(info["DockerRootDir"])
    except (OSError, KeyError):
        return None
    return usage.f_bavail * usage.f_frsize
