"""Single steps over SFTP, as OpenSSH's server understands them. Paths are bytes; raises what the library raises."""

from __future__ import annotations

import contextlib
import stat
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from codeb_mcp.drivers.attempt import Attempt
from codeb_mcp.drivers.hosts import FileStat
from codeb_mcp.drivers.ssh_keys import load

if TYPE_CHECKING:
    import asyncssh

LEAST_READ = 4096
MODES = 0o7777
OPEN_TRIES = 8


async def look(files: asyncssh.SFTPClient, path: bytes) -> asyncssh.SFTPAttrs | None:
    """What is there, not following a link; None when there is nothing."""
    try:
        return await files.lstat(path)
    except load().SFTPNoSuchFile:
        return None


def told(found: asyncssh.SFTPAttrs) -> FileStat:
    """The same in our words."""
    bits = found.permissions or 0
    kinds = ((stat.S_ISREG, "file"), (stat.S_ISDIR, "folder"), (stat.S_ISLNK, "link"))
    kind = next((name for is_kind, name in kinds if is_kind(bits)), "other")
    return FileStat(kind, bits & MODES, found.uid or 0, found.gid or 0, found.size or 0)


def need(attempt: Attempt, found: asyncssh.SFTPAttrs, kinds: tuple[str, ...]) -> None:
    """DriverRefused unless it is one of these kinds."""
    kind = told(found).kind
    if kind not in kinds:
        raise attempt.refused(f"it is a {kind}" if kind != "other" else "it is no file", reason=f"is_{kind}")


@contextlib.asynccontextmanager
async def opened(
    files: asyncssh.SFTPClient, path: bytes, flags: int, mode: int | None = None
) -> AsyncIterator[asyncssh.SFTPClientFile]:
    """An open file or folder; closed afterwards, or with its connection."""
    library = load()
    file = await files.open(path, flags, library.SFTPAttrs(permissions=mode), encoding=None)
    try:
        yield file
    finally:
        with contextlib.suppress(library.SFTPError):
            await file.close()


async def read(attempt: Attempt, files: asyncssh.SFTPClient, path: bytes, max_bytes: int) -> bytes | None:
    """The content of a regular file; None when there is nothing.

    SFTP cannot say "do not follow a link". So what was opened has to be what was looked at; a file that is replaced by
    another one just then is looked at again.
    """
    for _ in range(OPEN_TRIES):
        before = await look(files, path)
        if before is None:
            return None
        need(attempt, before, ("file",))
        try:
            async with opened(files, path, load().FXF_READ) as file:
                if _identity(await file.stat()) == _identity(before):
                    return await _content(attempt, file, before.size or 0, max_bytes)
        except load().SFTPNoSuchFile:
            continue
    raise attempt.refused("it is replaced all the time", reason="changing")


def _identity(found: asyncssh.SFTPAttrs) -> tuple[object, ...]:
    return found.permissions, found.uid, found.gid, found.size, found.mtime


async def _content(attempt: Attempt, file: asyncssh.SFTPClientFile, size: int, max_bytes: int) -> bytes:
    """All of it, however much it is by now; files in /proc say a size of 0."""
    content, step = bytearray(), file.read_len or LEAST_READ
    while len(content) <= max_bytes:
        wanted = max(size - len(content) + 1, LEAST_READ)
        part: Any = await file.read(min(wanted, step, max_bytes + 1 - len(content)), len(content))
        if not part:
            return bytes(content)
        content += part
    raise attempt.refused(f"it is larger than {max_bytes} bytes", reason="too_large")


async def create(files: asyncssh.SFTPClient, path: bytes, data: bytes, mode: int) -> None:
    """A new file with that content, durable; the name must be free. The mode is set before the content comes."""
    library = load()
    flags = library.FXF_WRITE | library.FXF_CREAT | library.FXF_EXCL
    async with opened(files, path, flags, 0o600) as file:
        await file.chmod(mode & MODES)
        await _fill(file, data)
        await file.fsync()


async def _fill(file: asyncssh.SFTPClientFile, data: bytes) -> None:
    # Part by part: of several parts under way at once the library forgets some when the connection is lost.
    step = file.write_len or LEAST_READ
    for first in range(0, len(data), step):
        await file.write(data[first : first + step], first)


async def sync_folder(files: asyncssh.SFTPClient, path: bytes) -> None:
    """Make the names in a folder durable. The server opens a folder like a file, and syncs what it has opened."""
    async with opened(files, path, load().FXF_READ) as folder:
        await folder.fsync()


async def is_full(files: asyncssh.SFTPClient, folder: bytes, size: int) -> bool:
    """Whether that many bytes, or one more file, do not fit there: SFTP has no word for a full disk."""
    try:
        space = await files.statvfs(folder)
    except load().SFTPError:
        return False
    return space.bavail * space.frsize < max(size, 1) or (space.files > 0 and space.favail == 0)


async def have_folder(files: asyncssh.SFTPClient, path: bytes, mode: int) -> bool:
    """Make one folder, durably; False when somebody else made it meanwhile."""
    library = load()
    try:
        await files.mkdir(path, library.SFTPAttrs(permissions=mode))
    except library.SFTPFailure:
        there = await look(files, path)
        if there is not None and told(there).kind == "folder":
            return False
        raise
    await files.chmod(path, mode & MODES)  # the account's umask took its part of the mode
    await sync_folder(files, path.rsplit(b"/", 1)[0] or b"/")
    return True
