"""The system calls that change the registry, in one place: whole files, renames, and folders made durable.

Nothing here decides anything. Tests put another `Disk` in its place: one that forgets what was never synced.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from codeb_mcp.model.errors import CodebError, DriverRefused, InsufficientStorage

NETWORK_FILE_SYSTEMS = {
    0x6969: "nfs",
    0xFF534D42: "cifs",
    0xFE534D42: "smb2",
    0x517B: "smb",
    0x65735546: "fuse",
    0x01021997: "9p",
    0x5346414F: "afs",
    0x73757245: "coda",
    0x00C36400: "ceph",
    0x0BD00BD0: "lustre",
    0x01161970: "gfs2",
    0x7461636F: "ocfs2",
    0x013111A8: "ibrix",
    0x564C: "ncp",
}
"""Magic numbers (statfs(2)) of file systems on which flock, rename and fsync promise less than the registry needs."""

_FILE_MODE = 0o600
_FOLDER_MODE = 0o700


class Disk:
    """The real one. Every method raises OSError; `refusals` turns that into an answer for the caller."""

    def file_system(self, folder: str) -> int:
        """The magic number of the file system that holds the folder."""
        space = ctypes.create_string_buffer(512)
        if ctypes.CDLL(None, use_errno=True).statfs(os.fsencode(folder), space):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), folder)
        return ctypes.c_long.from_buffer(space).value & 0xFFFFFFFF

    def make_folder(self, path: str, *, durable: bool) -> None:
        """Have the folder and its parents, mode 0700; `durable` also syncs the parent of each new one."""
        if os.path.isdir(path):
            return
        parent = os.path.dirname(path)
        self.make_folder(parent, durable=durable)
        try:
            os.mkdir(path, _FOLDER_MODE)
            os.chmod(path, _FOLDER_MODE)
        except FileExistsError:
            return
        if durable:
            self.sync_folder(parent)

    def create(self, path: str, data: bytes, *, durable: bool) -> None:
        """A new file, mode 0600, with this content; a left-over of the same name is replaced."""
        try:
            handle = _open_new(path)
        except FileExistsError:
            os.unlink(path)
            handle = _open_new(path)
        try:
            os.fchmod(handle, _FILE_MODE)
            write_all(handle, data)
            if durable:
                os.fsync(handle)
        finally:
            os.close(handle)

    def sync_file(self, path: str) -> None:
        """Make the content of a file durable."""
        _sync(path, os.O_RDONLY)

    def replace(self, source: str, target: str) -> None:
        """Give the file its final name, in one step."""
        os.rename(source, target)

    def link(self, source: str, target: str) -> None:
        """A second name for the same content; a name that is taken is left alone."""
        with contextlib.suppress(FileExistsError):
            os.link(source, target)

    def unlink(self, path: str) -> None:
        """Remove the name if it is there."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)

    def sync_folder(self, path: str) -> None:
        """Make the names in the folder durable."""
        _sync(path, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: str, flags: int) -> None:
    handle = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _open_new(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, _FILE_MODE)


def write_all(handle: int, data: bytes) -> None:
    """Write all of it, however little the kernel takes at a time."""
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]


def put(disk: Disk, path: str, data: bytes, *, durable: bool = True, sync: bool = True) -> None:
    """Replace a file as a whole: readers see the old or the new content, never a part.

    `durable` syncs the content before the rename; `sync` also the folder after it (only then the change is certain to
    survive a power cut). An OSError before the rename leaves everything as it was.
    """
    folder, name = os.path.split(path)
    temporary = temporary_name(folder, name)
    try:
        disk.create(temporary, data, durable=durable)
        disk.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            disk.unlink(temporary)
        raise
    if durable and sync:
        disk.sync_folder(folder)


def temporary_name(folder: str, name: str) -> str:
    """Where a file is prepared. One name per file is enough, since writers hold the lock; strays are overwritten."""
    return f"{folder}/.{name}.tmp"


def read_file(path: str, limit: int) -> tuple[bytes, os.stat_result]:
    """Content and status of one and the same file; raises OSError, and ValueError for more than `limit` bytes."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        status = os.fstat(handle)
        if status.st_size > limit:
            raise ValueError(f"is larger than {limit} bytes")
        parts = []
        while part := os.read(handle, max(status.st_size + 1, 4096)):
            parts.append(part)
        return b"".join(parts), status
    finally:
        os.close(handle)


@contextlib.contextmanager
def refusals(what: str) -> Iterator[None]:
    """Inside, an OSError becomes `InsufficientStorage` (disk or quota full) or `DriverRefused`, about `what`."""
    try:
        yield
    except OSError as error:
        raise storage_error(error, what) from error


def storage_error(error: OSError, what: str) -> CodebError:
    """The answer for a caller whose change the disk refused."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    name = errno.errorcode.get(error.errno or 0, "")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return InsufficientStorage(
            f"the disk is too full to {what}: {reason}", hint="Free some space, then try again.", error=name
        )
    return DriverRefused(
        f"the disk refused to {what}: {reason}",
        hint="Read the present state before you repeat anything: the change may or may not have happened. "
        "Check the disk, its mount and its permissions.",
        error=name,
    )


def refuse_network_file_system(disk: Disk, folder: Path) -> None:
    """Raise `DriverRefused` when the folder is on a file system whose locks and syncs cannot be relied on."""
    with refusals(f"look at {folder}"):
        kind = NETWORK_FILE_SYSTEMS.get(disk.file_system(str(folder)))
    if kind:
        raise DriverRefused(
            f"the registry folder is on a network or user-space file system ({kind})",
            hint="Put CODEB_ROOT on a local disk, because locks and syncs cannot be relied on there.",
            path=str(folder),
            fileSystem=kind,
        )
