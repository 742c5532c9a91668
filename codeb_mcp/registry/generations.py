"""Former versions of each document, and the memory of deleted ones.

`.generations/<key>/<serial>.json` is a copy of each version that was written, the newest ones kept: a file of its own, so
that what spoils a document in place does not spoil its copy. `<serial>.gone` says that this version was the deletion, so
that a document created anew goes on counting. The copy is written and synced before the commit, as `.next`, and gets its
name after it; a name that a power cut took back is made up for by the next commit, and never decides alone whether
something was acknowledged.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from pathlib import Path
from typing import NamedTuple

from codeb_mcp.registry.disk import Disk, put

_NAME = re.compile(r"([1-9][0-9]{0,17})\.(json|gone)")
_FLOOR = ".floor"
_NEXT = ".next"
_WITHOUT_COPY = ("idempotency/", "images/")
"""Documents that are written with every run and worth little: a second name (hard link) is enough for their serial."""


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
        self._prepared: dict[str, int] = {}

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

    def prepare(self, key: str, data: bytes, serial: int) -> None:
        """Write the copy of the version that is about to be committed, not synced, not counting yet; raises OSError."""
        self._prepared.pop(key, None)
        if key.startswith(_WITHOUT_COPY):
            return
        path = self._next_path(key)
        try:
            self._disk.create(path, data, durable=False)
        except FileNotFoundError:
            self._disk.make_folder(os.path.dirname(path), durable=False)
            self._disk.create(path, data, durable=False)
        self._prepared[key] = serial

    def prepared(self, key: str) -> list[str]:
        """The files that `prepare` wrote and that are to be synced before the commit."""
        return [self._next_path(key)] if key in self._prepared else []

    def discard(self, key: str) -> None:
        """The version that was prepared will not come."""
        if self._prepared.pop(key, None) is not None:
            self._disk.unlink(self._next_path(key))

    def add(self, key: str, document: str, serial: int) -> None:
        """Keep the version that is committed by now under its serial; raises OSError."""
        target = self.path(key, serial)
        if self._prepared.pop(key, None) == serial:
            self._disk.replace(self._next_path(key), target)
        elif key.startswith(_WITHOUT_COPY):
            self._link(document, target)
        elif not os.path.lexists(target):  # whoever committed it died before it could say so
            self._disk.make_folder(os.path.dirname(target), durable=False)
            put(self._disk, target, Path(document).read_bytes(), sync=False)

    def add_missing(self, key: str, document: str, serial: int) -> None:
        """Keep the present version, which is about to be replaced: one that was adopted, or whose name a power cut took.
        A link is enough, since it will be the only name of that file."""
        if not os.path.lexists(self.path(key, serial)):
            self._link(document, self.path(key, serial))

    def _link(self, document: str, target: str) -> None:
        try:
            self._disk.link(document, target)
        except FileNotFoundError:
            self._disk.make_folder(os.path.dirname(target), durable=False)
            self._disk.link(document, target)

    def _next_path(self, key: str) -> str:
        return f"{self._root}/{key}/{_NEXT}"

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
        self._disk.unlink(self._next_path(key))
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
