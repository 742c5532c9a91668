"""One question to a service behind a socket: is it there, and which version. Implements `Inspector`."""

from __future__ import annotations

import asyncio

from codeb_mcp.drivers.docker import DockerContainers
from codeb_mcp.drivers.protocols import Engine
from codeb_mcp.model.errors import DriverUnavailable

ASK_SECONDS = 10.0
HEAD_BYTES = 500


class SocketInspector:
    """A connection of its own for every question: they are rare, and a kept one could belong to a server that is gone."""

    async def http(self, socket: str, path: str, *, host: str = "127.0.0.1") -> tuple[int, str]:
        """See `Inspector.http`."""
        import aiohttp

        limit = aiohttp.ClientTimeout(total=ASK_SECONDS)
        try:
            async with (
                aiohttp.ClientSession(connector=aiohttp.UnixConnector(path=socket), timeout=limit) as session,
                session.get(f"http://{host}{path}", allow_redirects=False) as answer,
            ):
                return answer.status, (await answer.content.read(HEAD_BYTES)).decode("utf-8", "replace")
        except (aiohttp.ClientError, TimeoutError, asyncio.IncompleteReadError, OSError) as error:
            raise DriverUnavailable(
                f"nobody answers {path}: {type(error).__name__}", hint="Start the service, or look at its log."
            ) from None

    async def engine(self, address: str) -> Engine:
        """Which container engine answers there; raises DriverUnavailable when none does."""
        containers = DockerContainers(address)
        try:
            return await containers.engine()
        finally:
            await containers.close()
