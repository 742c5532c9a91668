"""What of an environment's history has reached which Backup server, in `.copied.json` beside the history.

It is a memory, not a truth: when it is lost or unreadable, everything is copied once more.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass

from codeb_mcp.registry.disk import Disk, put, read_file, refusals
from codeb_mcp.registry.env_history import EnvHistory
from codeb_mcp.registry.env_log import LOG
from codeb_mcp.registry.lock import hold

_FILE = ".copied.json"
_LARGEST = 65536


@dataclass(frozen=True, slots=True)
class Reached:
    """One server. `versions`: the newest version whose file is there, and of all before it; `log`: the newest version
    that the log there names."""

    versions: str = ""
    log: str = ""


class EnvCopied:
    """The memory of one environment. Blocking, used from threads."""

    def __init__(self, history: EnvHistory, disk: Disk | None = None) -> None:
        self._folder = history.folder
        self._disk = disk or Disk()

    def reached(self, server: str) -> Reached:
        """What is known to be on that server."""
        entry = self._read().get(server)
        match entry:
            case {"versions": str(versions), "log": str(log)}:
                return Reached(versions, log)
        return Reached()

    def note(self, server: str, reached: Reached) -> None:
        """Remember it. Only the holder of `alone` may call it."""
        doc = {**self._read(), server: {"versions": reached.versions, "log": reached.log}}
        with refusals("note what was copied"):
            put(self._disk, f"{self._folder}/{_FILE}", json.dumps(doc).encode())

    def forget(self) -> None:
        """Take nothing for granted any more: the next trip brings everything."""
        with refusals("note what was copied"):
            put(self._disk, f"{self._folder}/{_FILE}", b"{}")

    def is_settled(self, servers: list[str]) -> bool:
        """Whether all of these servers have had everything since the log last changed."""
        return bool(servers) and self._read().get("_settled") == [*sorted(servers), *self.sight()]

    def settle(self, servers: list[str], sight: list[int]) -> None:
        """Remember that they have had everything as of this `sight` of the log."""
        with refusals("note what was copied"):
            doc = {**self._read(), "_settled": [*sorted(servers), *sight]}
            put(self._disk, f"{self._folder}/{_FILE}", json.dumps(doc).encode())

    def sight(self) -> list[int]:
        """What the log looks like from outside: it changes whenever the log does."""
        try:
            status = os.stat(f"{self._folder}/{LOG}")
        except FileNotFoundError:
            return []
        return [status.st_ino, status.st_size, status.st_mtime_ns]

    @contextlib.contextmanager
    def alone(self, wait_seconds: float) -> Iterator[None]:
        """One copier at a time, in all processes: nobody puts an older log over a newer one."""
        with refusals("wait for the copier"), hold(f"{self._folder}/.copied.lock", wait_seconds=wait_seconds):
            yield

    def _read(self) -> dict[str, object]:
        try:
            doc = json.loads(read_file(f"{self._folder}/{_FILE}", _LARGEST)[0])
        except (FileNotFoundError, ValueError):
            return {}
        return doc if isinstance(doc, dict) else {}
