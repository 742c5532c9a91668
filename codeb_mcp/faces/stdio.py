"""`codeb stdio`: MCP over stdin and stdout, on the local registry or as a bridge to a running server.

MCP clients start this anew for every conversation and wait for it, so everything heavy is imported here, late, with the
garbage collector off: it would only look through a hundred thousand objects that stay for good.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from codeb_mcp.faces.cli_keys import configured_key

if TYPE_CHECKING:
    from codeb_mcp.faces.calls import Caller
    from codeb_mcp.faces.mcp import Parts
    from codeb_mcp.model.access import Principal
    from codeb_mcp.operations.context import Services
    from codeb_mcp.settings import Settings

DRAIN_SECONDS = 60.0
"""How long runs that were started here may go on after the client has gone; what is left stays open in its journal."""
CLOSE_SECONDS = 5.0


def stdio(settings: Settings, connect: str | None = None) -> None:
    """Serve until stdin ends or SIGTERM comes. `connect`: the address of a running server to pass everything on to.

    Raises Unauthenticated when no key is configured or it is not valid.
    """
    key = configured_key(os.environ)
    gc.disable()
    asyncio.run(_bridge(connect, key) if connect else _local(settings, key))


def _settled() -> None:
    """Everything is imported: from now on the collector looks at new objects only."""
    gc.enable()
    gc.freeze()


async def _local(settings: Settings, key: str) -> None:
    from codeb_mcp.app import opened

    async with opened(settings, late=True) as services:
        await serve_streams(services, key)


async def serve_streams(services: Services, key: str) -> None:
    """Serve this process's stdin and stdout as the key's owner, until stdin ends."""
    from mcp.server.stdio import stdio_server

    from codeb_mcp.faces.logs import forward_library_logs
    from codeb_mcp.faces.mcp import Face

    forward_library_logs(services.log)
    sender = KeyHolder(services, key)
    await sender()
    server = Face(late_parts(services), sender).server()
    _settled()
    _leave_on_signals(lambda: _close(services))
    async with stdio_server() as (read, write):
        await server.run(read, write, server.create_initialization_options())
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_SECONDS):
            await services.runs.drain()


def late_parts(services: Services) -> Parts:
    """The way to the operations, which are loaded when one is called for the first time: the list of tools needs none."""
    made: list[Caller] = []

    async def parts() -> Caller:
        if not made:
            from codeb_mcp.faces.calls import Caller
            from codeb_mcp.operations.catalog import load_all

            load_all()
            made.append(Caller(services))
        return made[0]

    return parts


async def _close(services: Services) -> None:
    """Runs that are open stay so in their journals; what is gathered for the audit trail is written."""
    await services.runs.close()
    await services.trail.close()


class KeyHolder:
    """The one caller of this process. Its key's record is looked up for every message, so a revoked key stops at once."""

    def __init__(self, services: Services, key: str) -> None:
        from codeb_mcp.operations.keys import KeyRing

        self._services = services
        self._key = key
        self._ring = KeyRing()

    async def __call__(self, ctx: Any = None) -> Principal:
        """The caller; raises Unauthenticated once the key is revoked or has expired."""
        return await self._ring.authenticate(self._services, self._key, via="stdio")


async def _bridge(url: str, key: str) -> None:
    from mcp.server.stdio import stdio_server

    from codeb_mcp.faces.bridge import connected, relay

    async def nothing() -> None:
        return

    _leave_on_signals(nothing)
    async with connected(url, key) as server, stdio_server() as client:
        _settled()
        await relay(client, server)


def _leave_on_signals(close: Callable[[], Awaitable[None]]) -> None:
    """On SIGTERM or SIGINT close and leave. The reader of stdin sits in a thread that nothing can interrupt, so the process
    does not wait for it."""
    loop = asyncio.get_running_loop()
    leaving: list[asyncio.Task[None]] = []

    async def leave(number: int) -> None:
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await close()
        finally:
            sys.stderr.flush()
            os._exit(128 + number)

    def asked(number: int) -> None:
        leaving.append(loop.create_task(leave(number)))

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked, number)
