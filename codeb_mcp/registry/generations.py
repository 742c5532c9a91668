"""Former versions of each document, and the memory of deleted ones.

`.generations/<key>/<serial>.json` is a second name (hard link) of each version that was written, the newest ones kept.
`<serial>.gone` says that this version was the deletion, so that a document created anew goes on counting. A link that
a power cut took back is made up for by the next commit; it never decides alone whether something was acknowledged.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from typing import NamedTuple

from codeb_mcp.registry.disk import Disk, put

_NAME = re.compile(r"([1-9][0-9]{0,17})\.(json|gone)")
_FLOOR = ".floor"


class Generation(NamedTuple):
    """One known version of a document; `gone` for its deletion."""

    serial: int
    gone: bool


class Generations:
    """The generations of all documents of one registry folder; to be changed under the registry's lock only."""

    def __init__(self, disk: Disk, root: str, keep: int) -> None:
        self._disk = disk
        self._root = f"{root}/.generations"
        self._keep = keep

    def known(self, key: str) -> list[Generation]:
        """All that are kept, oldest first."""
        try:
            names = os.listdir(f"{self._root}/{key}")
        except FileNotFoundError:
            return []
        found = (_NAME.fullmatch(name) for name in names)
        return sorted(Generation(int(match[1]), match[2] == "gone") for match in found if match)

    def newest(self, key: str) -> Generation | None:
        """The newest known version, whether its document is there or not."""
        return max(self.known(key), default=None)

    def path(self, key: str, serial: int) -> str:
        """Where that version is, if it is kept."""
        return f"{self._root}/{key}/{serial}.json"

    def add(self, key: str, document: str, serial: int) -> None:
        """Keep the document as it is now under its serial; raises OSError."""
        target = self.path(key, serial)
        try:
            self._disk.link(document, target)
        except FileNotFoundError:
            self._disk.make_folder(os.path.dirname(target), durable=False)
            self._disk.link(document, target)

    def add_missing(self, key: str, document: str, serial: int) -> None:
        """Keep the present version before it is replaced: one that was adopted, or whose link a power cut took."""
        if not os.path.lexists(self.path(key, serial)):
            self.add(key, document, serial)

    def mark_gone(self, key: str, serial: int) -> None:
        """Remember, durably, that this serial deleted the document; raises OSError."""
        folder = f"{self._root}/{key}"
        self._disk.make_folder(folder, durable=True)
        put(self._disk, f"{folder}/{serial}.gone", b"")
        while folder != self._root:  # the folders may be there without ever having been synced
            folder = os.path.dirname(folder)
            self._disk.sync_folder(folder)

    def prune(self, key: str, newest: int) -> None:
        """Forget all but the newest ones; raises OSError. Now and then it also looks for ones beyond the next in line."""
        if newest % 16:
            if newest > self._keep:
                self._disk.unlink(self.path(key, newest - self._keep))
            return
        for generation in self.known(key)[: -self._keep]:
            suffix = "gone" if generation.gone else "json"
            self._disk.unlink(f"{self._root}/{key}/{generation.serial}.{suffix}")

    def floor(self, key: str) -> int:
        """The highest serial among forgotten deletions beside this key: a new document starts above it."""
        try:
            with open(f"{self._floor_path(key)}", "rb") as file:
                return int(file.read())
        except FileNotFoundError:
            return 0

    def forget(self, key: str, *, older_than_seconds: float) -> bool:
        """Drop the memory of a document deleted that long ago, keeping its serial as the floor of its folder."""
        folder = f"{self._root}/{key}"
        newest = self.newest(key)
        if newest is None or not newest.gone:
            return False
        if time.time() - os.stat(f"{folder}/{newest.serial}.gone").st_mtime < older_than_seconds:
            return False
        if newest.serial > self.floor(key):
            put(self._disk, self._floor_path(key), str(newest.serial).encode())
        for generation in self.known(key):  # the deletion itself goes last: without it the others would look lost
            self._disk.unlink(f"{folder}/{generation.serial}.{'gone' if generation.gone else 'json'}")
        with contextlib.suppress(OSError):
            os.rmdir(folder)
        return True

    def all_keys(self) -> list[str]:
        """Keys that have generations, sorted."""
        found = []
        for folder, _, names in os.walk(self._root):
            if any(_NAME.fullmatch(name) for name in names):
                found.append(os.path.relpath(folder, self._root))
        return sorted(found)

    def _floor_path(self, key: str) -> str:
        return os.path.join(self._root, os.path.dirname(key), _FLOOR)
