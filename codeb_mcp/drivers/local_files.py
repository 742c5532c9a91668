"""Files of this machine by system calls, in the words of `Host`. All of it blocks: call it in a thread.

Raises OSError where the operating system said no; `told` puts that into our words.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from codeb_mcp.drivers.attempt import Attempt, temporary_name
from codeb_mcp.drivers.hosts import FileStat
from codeb_mcp.model.errors import CodebError

MODES = 0o7777
PART_BYTES = 1_048_576


def told(attempt: Attempt, error: OSError) -> CodebError:
    """The refusal of the operating system in our words."""
    said = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return attempt.full(said.lower())
    if error.errno in (errno.EACCES, errno.EPERM):
        return attempt.forbidden(said.lower())
    if error.errno == errno.ENOENT:
        return attempt.refused("there is no such file or folder", reason="not_there")
    return attempt.refused(said.lower())


def look(path: bytes) -> FileStat | None:
    """What is there, not following a link."""
    try:
        return _told(os.lstat(path))
    except (FileNotFoundError, NotADirectoryError):
        return None


def _told(found: os.stat_result) -> FileStat:
    kinds = ((stat.S_ISREG, "file"), (stat.S_ISDIR, "folder"), (stat.S_ISLNK, "link"))
    kind = next((name for is_kind, name in kinds if is_kind(found.st_mode)), "other")
    return FileStat(kind, found.st_mode & MODES, found.st_uid, found.st_gid, found.st_size)


def _need(attempt: Attempt, found: FileStat, kinds: tuple[str, ...]) -> None:
    if found.kind not in kinds:
        said = f"it is a {found.kind}" if found.kind != "other" else "it is no file"
        raise attempt.refused(said, reason=f"is_{found.kind}")


def read(attempt: Attempt, path: bytes, max_bytes: int) -> bytes | None:
    """The content of a regular file; None when there is nothing."""
    found = look(path)
    if found is None:
        return None
    _need(attempt, found, ("file",))
    try:
        # O_NONBLOCK: what was a file a moment ago may be a pipe now, and nobody may write to it.
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    with os.fdopen(handle, "rb", buffering=0) as file:
        _need(attempt, _told(os.fstat(handle)), ("file",))
        content = bytearray()
        while len(content) <= max_bytes:
            part = file.read(min(PART_BYTES, max_bytes + 1 - len(content)))
            if not part:
                return bytes(content)
            content += part
    raise attempt.refused(f"it is larger than {max_bytes} bytes", reason="too_large")


def write(attempt: Attempt, path: bytes, data: bytes, mode: int) -> None:
    """Put the file in place, durably; see `Host.write`."""
    found = look(path)
    if found is not None:
        _need(attempt, found, ("file", "link", "other"))
    temporary = temporary_name(path)
    try:
        _create(temporary, data, mode)
        attempt.send()
        os.rename(temporary, path)
    except BaseException:
        attempt.denied()
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync_folder(os.path.dirname(path))


def _create(path: bytes, data: bytes, mode: int) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(handle, mode & MODES)
        view = memoryview(data)
        while view:
            view = view[os.write(handle, view) :]
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(path: bytes) -> None:
    """Make the names in the folder durable."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def names(attempt: Attempt, path: bytes) -> list[str] | None:
    """The names in a folder, sorted; None when there is none."""
    found = look(path)
    if found is None:
        return None
    _need(attempt, found, ("folder",))
    try:
        return sorted(name.decode("utf-8", "surrogateescape") for name in os.listdir(path))
    except FileNotFoundError:
        return None


def make_folder(attempt: Attempt, path: bytes, mode: int) -> bool:
    """Have the folder and those above it, durably; True when it was made."""
    found = look(path)
    if found is not None:
        _need(attempt, found, ("folder",))
        if found.mode != mode & MODES:
            attempt.send()
            os.chmod(path, mode & MODES)
        return False
    above = os.path.dirname(path)
    if look(above) is None:
        make_folder(attempt, above, 0o755)
    attempt.send()
    try:
        os.mkdir(path, mode & MODES)
    except FileExistsError:
        return False
    os.chmod(path, mode & MODES)  # the umask took its part of the mode
    sync_folder(above)
    return True


def remove(attempt: Attempt, path: bytes) -> bool:
    """Remove a file, durably; False when there was none."""
    found = look(path)
    if found is None:
        return False
    _need(attempt, found, ("file", "link", "other"))
    attempt.send()
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    sync_folder(os.path.dirname(path))
    return True
