"""Files of a server over SFTP. Nothing is followed in the last part of a path, and a written file is durable.

What a call has begun it also ends: when the caller stops waiting, a temporary file is still removed and a handle closed,
because the server would otherwise keep them for as long as the session lives.
"""

from __future__ import annotations

import asyncio
import contextlib
import posixpath
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from codeb_mcp.drivers import sftp
from codeb_mcp.drivers.attempt import Attempt, file_bytes, path_bytes, temporary_name
from codeb_mcp.drivers.hosts import MAX_OUTPUT, FileStat
from codeb_mcp.drivers.ssh_errors import ssh_errors
from codeb_mcp.drivers.ssh_keys import load, prepared
from codeb_mcp.drivers.ssh_link import SshLink, joined

if TYPE_CHECKING:
    import asyncssh

T = TypeVar("T")
MAX_NAMES = 100_000
CLOSE_SECONDS = 2.0


class SshFiles:
    """The file part of a `Host`."""

    def __init__(self, link: SshLink) -> None:
        self._link = link
        self._running: set[asyncio.Task[Any]] = set()

    async def read(self, path: str, *, max_bytes: int = MAX_OUTPUT) -> bytes | None:
        """See `Host.read`."""
        attempt = Attempt(self._link.key, f"read {path}")
        name = file_bytes(attempt, path)
        return await self._do(attempt, lambda files: sftp.read(attempt, files, name, max_bytes))

    async def write(self, path: str, data: bytes, *, mode: int = 0o600) -> None:
        """See `Host.write`."""
        attempt = Attempt(self._link.key, f"write {path}")
        name = file_bytes(attempt, path)
        await self._do(attempt, lambda files: _write(attempt, files, name, data, mode))

    async def stat(self, path: str) -> FileStat | None:
        """See `Host.stat`."""
        attempt = Attempt(self._link.key, f"look at {path}")
        name = path_bytes(attempt, path)

        async def work(files: asyncssh.SFTPClient) -> FileStat | None:
            found = await sftp.look(files, name)
            return None if found is None else sftp.told(found)

        return await self._do(attempt, work)

    async def list(self, folder: str) -> list[str] | None:
        """See `Host.list`."""
        attempt = Attempt(self._link.key, f"list {folder}")
        name = path_bytes(attempt, folder)
        return await self._do(attempt, lambda files: _list(attempt, files, name))

    async def make_folder(self, path: str, *, mode: int = 0o755) -> bool:
        """See `Host.make_folder`."""
        attempt = Attempt(self._link.key, f"make the folder {path}")
        name = b"/" + posixpath.normpath(path_bytes(attempt, path)).lstrip(b"/")
        return await self._do(attempt, lambda files: _make_folder(attempt, files, name, mode))

    async def remove(self, path: str) -> bool:
        """See `Host.remove`."""
        attempt = Attempt(self._link.key, f"remove {path}")
        name = file_bytes(attempt, path)
        return await self._do(attempt, lambda files: _remove(attempt, files, name))

    async def close(self) -> None:
        """End what still runs."""
        for task in self._running:
            task.cancel()
        if self._running:
            await asyncio.wait(self._running, timeout=CLOSE_SECONDS)

    async def _do(self, attempt: Attempt, work: Callable[[asyncssh.SFTPClient], Awaitable[T]]) -> T:
        task = asyncio.create_task(self._bounded(attempt, work))
        self._running.add(task)
        task.add_done_callback(self._forget)
        return await joined(attempt, task)

    async def _bounded(self, attempt: Attempt, work: Callable[[asyncssh.SFTPClient], Awaitable[T]]) -> T:
        seconds, library = self._link.settings.file_seconds, await prepared()
        files: asyncssh.SFTPClient | None = None
        with ssh_errors(attempt):
            try:
                async with asyncio.timeout(seconds):
                    files = await self._link.files()
                    return await work(files)
            except TimeoutError:
                self._link.drop_files(files)  # the handle that it may have open is closed with the session only
                raise attempt.too_late(seconds) from None
            except (library.SFTPNoConnection, library.SFTPConnectionLost):
                self._link.drop_files(files)
                raise

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()


async def _write(attempt: Attempt, files: asyncssh.SFTPClient, name: bytes, data: bytes, mode: int) -> None:
    library = load()
    there = await sftp.look(files, name)
    if there is not None:
        sftp.need(attempt, there, ("file", "link", "other"))
    folder, temporary = posixpath.dirname(name) or b"/", temporary_name(name)
    try:
        await sftp.create(files, temporary, data, mode)
        attempt.send()
        await files.posix_rename(temporary, name)
    except Exception as error:
        full = isinstance(error, library.SFTPFailure) and await sftp.is_full(files, folder, len(data))
        await _undo(attempt, files, temporary, error)
        if full:
            raise attempt.full() from error
        raise
    await sftp.sync_folder(files, folder)


async def _undo(attempt: Attempt, files: asyncssh.SFTPClient, temporary: bytes, error: Exception) -> None:
    library = load()
    lost = isinstance(error, (library.SFTPConnectionLost, library.SFTPNoConnection))
    if isinstance(error, library.SFTPError) and not lost:
        attempt.denied()  # an answer, and it was no
    with contextlib.suppress(library.Error, OSError):
        await files.remove(temporary)


async def _list(attempt: Attempt, files: asyncssh.SFTPClient, name: bytes) -> list[str] | None:
    there = await sftp.look(files, name)
    if there is None:
        return None
    sftp.need(attempt, there, ("folder",))
    names: list[str] = []
    try:
        async for entry in files.scandir(name):
            found = entry.filename
            names.append(found.decode("utf-8", "surrogateescape") if isinstance(found, bytes) else found)
            if len(names) > MAX_NAMES:
                raise attempt.refused(f"the folder has more than {MAX_NAMES} names", reason="too_large")
    except load().SFTPNoSuchFile:
        return None
    return sorted(found for found in names if found not in (".", ".."))


async def _make_folder(attempt: Attempt, files: asyncssh.SFTPClient, name: bytes, mode: int) -> bool:
    there = await sftp.look(files, name)
    if there is not None:
        sftp.need(attempt, there, ("folder",))
        if sftp.told(there).mode != mode & sftp.MODES:
            attempt.send()
            await files.chmod(name, mode & sftp.MODES)
        return False
    above = posixpath.dirname(name)
    if await sftp.look(files, above) is None:
        await _make_folder(attempt, files, above, 0o755)
    attempt.send()
    try:
        return await sftp.have_folder(files, name, mode)
    except load().SFTPFailure as error:
        if await sftp.is_full(files, above, 1):
            raise attempt.full() from error
        raise


async def _remove(attempt: Attempt, files: asyncssh.SFTPClient, name: bytes) -> bool:
    there = await sftp.look(files, name)
    if there is None:
        return False
    sftp.need(attempt, there, ("file", "link", "other"))
    attempt.send()
    try:
        await files.remove(name)
    except load().SFTPNoSuchFile:
        return False
    await sftp.sync_folder(files, posixpath.dirname(name))
    return True
