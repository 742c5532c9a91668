"""Servers over SSH, and this machine in the same words: `SshHosts` implements `Hosts`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from codeb_mcp.drivers import ssh_keys, ssh_run
from codeb_mcp.drivers.attempt import Attempt, command_words
from codeb_mcp.drivers.hosts import MAX_OUTPUT, FileStat, Finished, Host
from codeb_mcp.drivers.local_host import LocalHost
from codeb_mcp.drivers.ssh_errors import ssh_errors
from codeb_mcp.drivers.ssh_files import SshFiles
from codeb_mcp.drivers.ssh_link import SshLink, SshSettings, joined
from codeb_mcp.drivers.ssh_sockets import SshSockets
from codeb_mcp.model.server import Server

__all__ = ["SshHost", "SshHosts", "SshSettings"]


class SshHost:
    """A server behind SSH. Get it from `SshHosts.at`."""

    def __init__(self, key: str, server: Server, settings: SshSettings) -> None:
        self._link = SshLink(key, server, settings)
        self._files = SshFiles(self._link)
        self._sockets = SshSockets(self._link)
        self._running: set[asyncio.Task[Any]] = set()

    @property
    def key(self) -> str:
        """See `Host.key`."""
        return self._link.key

    @property
    def server(self) -> Server:
        """The inventory's entry that it was made for."""
        return self._link.server

    async def run(
        self, argv: Sequence[str], *, stdin: bytes = b"", timeout_seconds: float = 30.0, max_output: int = MAX_OUTPUT
    ) -> Finished:
        """See `Host.run`. The time includes waiting for the connection and for a free session. After it, and when
        cancelled, the command is ended on the server as well: at once while the connection is there, otherwise when the
        time is over there."""
        attempt = Attempt(self.key, f"run {argv[0] if argv else 'nothing'}")
        words = command_words(attempt, argv)
        command = ssh_run.Command(words, timeout_seconds)
        task = asyncio.create_task(self._run(attempt, command, stdin, max_output))
        self._running.add(task)
        task.add_done_callback(self._forget)
        try:
            async with asyncio.timeout(timeout_seconds):
                return await joined(attempt, task)
        except TimeoutError:
            task.cancel()
            raise attempt.too_late(timeout_seconds) from None
        except asyncio.CancelledError:
            task.cancel()
            raise

    async def read(self, path: str, *, max_bytes: int = MAX_OUTPUT) -> bytes | None:
        """See `Host.read`."""
        return await self._files.read(path, max_bytes=max_bytes)

    async def write(self, path: str, data: bytes, *, mode: int = 0o600) -> None:
        """See `Host.write`."""
        await self._files.write(path, data, mode=mode)

    async def stat(self, path: str) -> FileStat | None:
        """See `Host.stat`."""
        return await self._files.stat(path)

    async def list(self, folder: str) -> list[str] | None:
        """See `Host.list`."""
        return await self._files.list(folder)

    async def make_folder(self, path: str, *, mode: int = 0o755) -> bool:
        """See `Host.make_folder`."""
        return await self._files.make_folder(path, mode=mode)

    async def remove(self, path: str) -> bool:
        """See `Host.remove`."""
        return await self._files.remove(path)

    async def socket(self, target: str) -> str:
        """See `Host.socket`. The account needs the right to forward (`restrict,port-forwarding` in authorized_keys)."""
        return await self._sockets.socket(target)

    def abort(self) -> None:
        """Let go at once; whoever still waits gets an error."""
        self._link.abort()

    async def close(self) -> None:
        """Let go of the connection; bounded."""
        running = list(self._running)
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running, timeout=ssh_run.CLOSE_SECONDS)
        await self._files.close()
        await self._sockets.close()
        await self._link.close()

    async def _run(self, attempt: Attempt, command: ssh_run.Command, stdin: bytes, max_output: int) -> Finished:
        await ssh_keys.prepared()
        with ssh_errors(attempt):
            connection = await self._link.connection()
            async with self._link.slots:
                return await ssh_run.run(connection, attempt, command, stdin, max_output)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()


class SshHosts:
    """All servers, each with one kept connection; `connection` `local` is this machine."""

    def __init__(self, settings: SshSettings | None = None) -> None:
        self.settings = settings or SshSettings()
        self._hosts: dict[str, SshHost] = {}
        self._local: dict[str, LocalHost] = {}
        self._former: list[SshHost] = []

    def at(self, key: str, server: Server) -> Host:
        """See `Hosts.at`. When the inventory's entry changed, the former connection is dropped at once."""
        if server.connection == "local":
            return self._local.setdefault(key, LocalHost(key, sockets=self.settings.sockets))
        there = self._hosts.get(key)
        if there is not None and _way(there.server) == _way(server):
            return there
        if there is not None:
            there.abort()
            self._former.append(there)
        made = self._hosts[key] = SshHost(key, server, self.settings)
        return made

    async def host_keys(self, address: str, port: int) -> list[str]:
        """See `Hosts.host_keys`."""
        return await ssh_keys.host_keys(address, port, self.settings.connect_seconds)

    async def close(self) -> None:
        """See `Hosts.close`."""
        hosts: list[SshHost | LocalHost] = [*self._hosts.values(), *self._former, *self._local.values()]
        self._hosts.clear()
        self._former.clear()
        self._local.clear()
        await asyncio.gather(*(host.close() for host in hosts))


def _way(server: Server) -> tuple[object, ...]:
    """What a connection depends on."""
    return server.host, server.port, server.user, server.host_key
