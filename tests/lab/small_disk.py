"""A small disk that can really be full: a tmpfs at a folder, taken away afterwards, also by the next run after a crash."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.lab.daemons import LabError, start_time, state_folder

_BLOCK = 1 << 16


class SmallDisk:
    """A mounted tmpfs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / ".ballast"

    def fill(self) -> None:
        """Take all the space there is, to the last byte."""
        with self._ballast.open("ab", buffering=0) as file:
            for size in (_BLOCK, 512, 1):
                with contextlib.suppress(OSError):
                    while file.write(b"\0" * size):
                        pass
        if (free := os.statvfs(self.folder).f_bavail) != 0:
            raise LabError(f"{free} blocks are still free after {errno.errorcode[errno.ENOSPC]}")

    def free(self) -> None:
        """Give it back."""
        self._ballast.unlink(missing_ok=True)


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[SmallDisk]:
    """Mount one at the folder, which is made."""
    notes = state_folder() / "small-disks"
    notes.mkdir(mode=0o700, exist_ok=True)
    _sweep(notes)
    note = notes / f"{os.getpid()}-{folder.name}-{abs(hash(str(folder)))}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    note.write_text(f"{os.getpid()} {start_time(os.getpid())} {folder}", encoding="utf-8")
    options = f"size={megabytes}m,mode=700"
    argv = ["mount", "-t", "tmpfs", "-o", options, "codeb-lab", str(folder)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
    if done.returncode:
        raise LabError(f"no small disk: {done.stderr.strip()}")
    try:
        yield SmallDisk(folder)
    finally:
        _unmount(str(folder))
        note.unlink(missing_ok=True)


def _sweep(notes: Path) -> None:
    for note in notes.iterdir():
        with contextlib.suppress(OSError, ValueError):
            pid, born, folder = note.read_text(encoding="utf-8").split(" ", 2)
            if start_time(int(pid)) != int(born):
                _unmount(folder)
                note.unlink(missing_ok=True)


def _unmount(folder: str) -> None:
    subprocess.run(["umount", "-l", folder], capture_output=True, timeout=20, check=False)
