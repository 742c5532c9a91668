"""One connection pool to one container engine, with a time limit and our errors around every call."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from codeb_mcp.drivers.docker_errors import engine_errors
from codeb_mcp.model.errors import DriverUnavailable

if TYPE_CHECKING:
    import aiodocker
    import aiohttp

CALL_SECONDS = 20.0
CONNECT_SECONDS = 5.0
AT_ONCE = 16

A = TypeVar("A")
T = TypeVar("T")
Locate = Callable[[], Awaitable[str]]
"""Answers the address where the engine can be talked to at this moment, and raises our errors when there is none."""
Free = Callable[[str], Awaitable[int | None]]
"""Free bytes where a path of the engine's machine is; None when that cannot be known."""


class EngineApi:
    """Talks to the engine at `host` (`unix:///path` or `tcp://address:port`). Belongs to the event loop of its first
    call; `close()` it there.

    `locate`: for an engine that is not always reached at the same address, `host` is then only its name; `free`: how to
    learn the space on its disks; `tls`: a folder with `ca.pem`, `cert.pem` and `key.pem`, as Docker's clients have it.
    """

    def __init__(
        self, host: str, *, locate: Locate | None = None, free: Free | None = None, tls: Path | None = None
    ) -> None:
        self.host = host
        self._locate = locate
        self._free = free
        self._tls = tls
        self._docker: aiodocker.Docker | None = None
        self._address = ""

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
                return await work(await self._client())

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
                docker = await self._client()
                response = await docker._do_query(path, method, params=params, headers=headers, timeout=limits)
            try:
                yield _pieces(response, idle_seconds)
            finally:
                response.close()

    async def info(self) -> dict[str, Any]:
        """The engine's own description of itself."""

        async def ask(docker: aiodocker.Docker) -> dict[str, Any]:
            return dict(await docker.system.info())

        return await self.call("asking who it is", ask)

    async def free_bytes(self, info: Mapping[str, Any]) -> int | None:
        """Free space where the engine of that description keeps its data; None when that cannot be known."""
        if self._free is None:
            return free_bytes(self.host, info)
        return await self._free(str(info.get("DockerRootDir", "")))

    async def close(self) -> None:
        """Close all connections; a later call opens new ones."""
        docker, self._docker = self._docker, None
        if docker is not None:
            with engine_errors("closing connections"):
                await docker.close()

    async def _client(self) -> aiodocker.Docker:
        # Asked each time: a server's connection may have to be made again first.
        address = self.host if self._locate is None else await self._locate()
        if self._docker is None or self._address != address:
            await self.close()
            import aiodocker
            import aiohttp

            limits = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS)
            context = None if self._tls is None else _client_tls(self._tls)
            url = address if context is None else address.replace("tcp://", "https://")
            self._docker, self._address = aiodocker.Docker(url=url, timeout=limits, ssl_context=context), address
        return self._docker


def engine_api(host: str | EngineApi) -> EngineApi:
    """The API of the engine at that address."""
    return EngineApi(host) if isinstance(host, str) else host


def _client_tls(folder: Path) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=folder / "ca.pem")
        context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    except (OSError, ssl.SSLError) as error:
        raise DriverUnavailable(
            f"the engine's certificates in {folder} cannot be used: {type(error).__name__}",
            hint="Put ca.pem, cert.pem and key.pem there, as for Docker's own clients.",
        ) from error
    return context


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
