"""Unix sockets that lead to services of this machine itself."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil

from codeb_mcp.drivers.attempt import Attempt
from codeb_mcp.drivers.ssh_sockets import private_folder, socket_name, target_of

PART_BYTES = 65_536
CONNECT_SECONDS = 10.0


class LocalSockets:
    """A unix socket leads to itself; a port gets a socket in a private folder that passes everything on."""

    def __init__(self, key: str, parent: str | None) -> None:
        self._key = key
        self._parent = parent
        self._folder: str | None = None
        self._turn = asyncio.Lock()
        self._servers: dict[str, asyncio.Server] = {}
        self._talking: set[asyncio.Task[None]] = set()

    async def socket(self, target: str) -> str:
        """See `Host.socket`."""
        attempt = Attempt(self._key, f"forward a socket to {target}")
        wanted = target_of(attempt, target)
        if isinstance(wanted, str):
            return wanted
        async with self._turn:
            if self._folder is None:
                self._folder = await asyncio.to_thread(private_folder, self._parent)
            path = os.path.join(self._folder, socket_name(target))
            if target not in self._servers:
                self._servers[target] = await asyncio.start_unix_server(
                    lambda reader, writer: self._talk(reader, writer, *wanted), path
                )
            return path

    async def close(self) -> None:
        """Take the sockets, what talks over them, and their folder away."""
        for server in self._servers.values():
            server.close()
        self._servers.clear()
        for task in self._talking:
            task.cancel()
        if self._talking:
            await asyncio.wait(self._talking, timeout=CONNECT_SECONDS)
        folder, self._folder = self._folder, None
        if folder is not None:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, port: int) -> None:
        task = asyncio.create_task(_pass_on(reader, writer, host, port))
        self._talking.add(task)
        task.add_done_callback(self._talking.discard)


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, port: int) -> None:
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            far_reader, far_writer = await asyncio.open_connection(host, port)
    except (OSError, TimeoutError):
        writer.close()
        return
    try:
        async with asyncio.TaskGroup() as both:
            both.create_task(_copy(reader, far_writer))
            both.create_task(_copy(far_reader, writer))
    finally:
        writer.close()
        far_writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while part := await reader.read(PART_BYTES):
            writer.write(part)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
