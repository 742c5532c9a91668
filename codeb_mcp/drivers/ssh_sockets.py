"""Unix sockets on this machine that lead to a server's services, through its SSH connection."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import shutil
import tempfile
from typing import TYPE_CHECKING

from codeb_mcp.drivers.attempt import Attempt, file_bytes
from codeb_mcp.drivers.ssh_errors import ssh_errors
from codeb_mcp.drivers.ssh_keys import prepared
from codeb_mcp.drivers.ssh_link import SshLink

if TYPE_CHECKING:
    import asyncssh

_PORT_TARGET = re.compile(r"\[?([A-Za-z0-9.:-]{1,253}?)\]?:([0-9]{1,5})")
LONGEST_PATH = 107
"""The kernel's limit for a unix socket's path, in bytes."""


def target_of(attempt: Attempt, target: str) -> str | tuple[str, int]:
    """A unix socket's path, or host and port; DriverRefused for anything else."""
    if target.startswith("/"):
        path = file_bytes(attempt, target)
        if len(path) > LONGEST_PATH:
            raise attempt.refused("the socket's path is too long", reason="bad_path")
        return target
    found = _PORT_TARGET.fullmatch(target)
    if found is None or not 0 < int(found[2]) < 65_536:
        raise attempt.refused(
            "the target is neither a path nor host:port", "Use /path/of.sock or host:port.", reason="bad_target"
        )
    return found[1], int(found[2])


def private_folder(parent: str | None) -> str:
    """A new folder that only this account may enter."""
    return tempfile.mkdtemp(prefix="codeb-sockets-", dir=parent)


def socket_name(target: str) -> str:
    """The same name for the same target, so that clients find it again after a reconnect."""
    return hashlib.sha256(target.encode("utf-8", "surrogateescape")).hexdigest()[:16] + ".sock"


class SshSockets:
    """The forwarded sockets of one server."""

    def __init__(self, link: SshLink) -> None:
        self._link = link
        self._folder: str | None = None
        self._turn = asyncio.Lock()
        self._open: dict[str, tuple[asyncssh.SSHClientConnection, asyncssh.SSHListener]] = {}

    async def socket(self, target: str) -> str:
        """See `Host.socket`."""
        attempt = Attempt(self._link.key, f"forward a socket to {target}")
        wanted = target_of(attempt, target)
        await prepared()
        with ssh_errors(attempt):
            connection = await self._link.connection()
            async with self._turn:
                if self._folder is None:
                    self._folder = await asyncio.to_thread(private_folder, self._link.settings.sockets)
                path = os.path.join(self._folder, socket_name(target))
                there = self._open.get(target)
                if there is None or there[0] is not connection:
                    self._open[target] = connection, await _forwarded(connection, path, wanted)
                return path

    async def close(self) -> None:
        """Take the sockets and their folder away."""
        for _, listener in self._open.values():
            listener.close()
        self._open.clear()
        folder, self._folder = self._folder, None
        if folder is not None:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


async def _forwarded(
    connection: asyncssh.SSHClientConnection, path: str, wanted: str | tuple[str, int]
) -> asyncssh.SSHListener:
    # The library leaves the socket of a lost connection behind.
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    if isinstance(wanted, str):
        return await connection.forward_local_path(path, wanted)
    return await connection.forward_local_path_to_port(path, *wanted)
