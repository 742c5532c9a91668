"""Noticing changed documents by looking: cheap while nothing changes, since a rename changes its folder's time."""

from __future__ import annotations

import os
import time

from codeb_mcp.registry.folder import document_keys
from codeb_mcp.registry.versions import Signature, signature_of

_SETTLED_NS = 50_000_000


class Changes:
    """What changed under a prefix between two looks, in whatever process. Blocking; used from a thread."""

    def __init__(self, root: str, prefix: str) -> None:
        self._root = root
        self._prefix = prefix
        self._documents: dict[str, Signature | None] | None = None
        self._folders: dict[str, int] = {}

    def look(self) -> list[str]:
        """Keys that were written, created or deleted since the last look, sorted; the first look answers none."""
        if self._documents is not None and self._quiet():
            return []
        folders = self._folder_times()
        now = {
            key: signature_of(f"{self._root}/{key}.json")
            for key in document_keys(self._root, self._prefix)
            if key.startswith(self._prefix)
        }
        before, self._documents, self._folders = self._documents, now, folders
        if before is None:
            return []
        return sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))

    def _quiet(self) -> bool:
        """Whether no folder changed since the last full look; a time stamp that is too fresh says nothing."""
        latest = time.time_ns() - _SETTLED_NS
        return all(_time(folder) == seen < latest for folder, seen in self._folders.items())

    def _folder_times(self) -> dict[str, int]:
        base = os.path.dirname(f"{self._root}/{self._prefix}")
        times = {base: _time(base)}
        for folder, folders, _ in os.walk(base):
            folders[:] = [name for name in folders if not name.startswith(".")]
            times[folder] = _time(folder)
        return times


def _time(folder: str) -> int:
    try:
        return os.stat(folder).st_mtime_ns
    except FileNotFoundError:
        return 0
