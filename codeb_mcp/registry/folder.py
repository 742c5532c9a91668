"""The registry's folder: documents as files, changed under one lock, all or nothing. Blocking; used from threads.

How one document is written: write and sync a temporary file and, beside it, a copy for the generations; rename the first,
sync its folder, name the copy. How several are: first an intent file that holds all of them, written the same way; its rename is the
moment of the commit. Then each document as above, then the intent is removed. Whoever next holds the lock, or reads
something while an intent is there, finishes it first. Every step of that may be repeated: a document is only written if
its serial is lower than the one in the intent.

A reader looks at the intent *after* it has read a document. If there is none by then, either no commit of several was
under way or all its renames had happened, so nobody ever sees one half of a commit and later the other half missing.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from codeb_mcp.model.errors import InvalidRequest, RegistryDamaged
from codeb_mcp.registry.disk import Disk, put, read_file, refusals, refuse_network_file_system
from codeb_mcp.registry.documents import check_key
from codeb_mcp.registry.intent import Intent
from codeb_mcp.registry.lock import hold
from codeb_mcp.registry.store import Stored
from codeb_mcp.registry.versions import Versions

_LINEAGE = re.compile(rb"[0-9a-f]{32}\n?")


class RegistryFolder:
    """One registry: its lock, its documents, and what is left of commits that were cut short."""

    def __init__(self, root: Path, disk: Disk, *, generations: int, lock_wait_seconds: float) -> None:
        self.root = str(root)
        self.disk = disk
        self.versions = Versions(self.root, disk, generations)
        self.intent = Intent(self.versions)
        self._lock_wait_seconds = lock_wait_seconds
        self.syncing = ThreadPoolExecutor(16, thread_name_prefix="registry-sync")
        self._opening = threading.Lock()

    def open(self) -> None:
        """Be ready: folder and lineage exist, what a crash left is finished or removed. Cheap when repeated."""
        with self._opening:
            if self.versions.lineage:
                return
            with refusals("open the registry"):
                self.disk.make_folder(self.root, durable=True)
                refuse_network_file_system(self.disk, Path(self.root))
                os.chmod(self.root, 0o700)
                with hold(f"{self.root}/.lock", wait_seconds=self._lock_wait_seconds):
                    lineage = self._own_lineage()
                    self._remove_strays()
                self.versions.lineage = lineage

    @contextlib.contextmanager
    def locked(self, what: str) -> Iterator[None]:
        """Alone with the registry, with no unfinished commit; an OSError inside becomes an answer about `what`."""
        self.open()
        with refusals(what), hold(f"{self.root}/.lock", wait_seconds=self._lock_wait_seconds):
            self.intent.finish()
            yield

    def read(self, key: str) -> Stored | None:
        """The document as it is, or None when there certainly is none."""
        self.open()
        # Damage seen without the lock may only be a writer at work; under the lock the answer is certain.
        with refusals(f"read {key}"), contextlib.suppress(RegistryDamaged):
            entry = self.versions.load(key)
            if not self.intent.pending():
                return entry.stored
        with self.locked(f"read {key}"):
            return self.versions.current(key).stored

    def keys(self, prefix: str) -> list[str]:
        """All keys that start with the prefix, sorted."""
        if prefix.startswith("/") or ".." in prefix:
            raise InvalidRequest(f"{prefix[:80]!r} is no prefix of document keys")
        self.open()
        if self.intent.pending():
            with self.locked("finish a commit"):
                pass
        with refusals("list the registry"):
            return sorted(key for key in document_keys(self.root, prefix) if key.startswith(prefix))

    def _own_lineage(self) -> str:
        path = f"{self.root}/lineage"
        try:
            data, _ = read_file(path, 100)
        except FileNotFoundError:
            data = secrets.token_hex(16).encode() + b"\n"
            put(self.disk, path, data)
        except ValueError:
            data = b""
        if not _LINEAGE.fullmatch(data):
            raise RegistryDamaged(
                "the registry's lineage file does not hold a lineage",
                hint="Write the lineage that the documents carry (32 hexadecimal digits) into it.",
                path=path,
            )
        return data.decode().strip()

    def _remove_strays(self) -> None:
        for folder, folders, names in os.walk(self.root):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for name in names:
                if name.startswith(".") and name.endswith(".tmp"):
                    self.disk.unlink(f"{folder}/{name}")


def document_keys(root: str, prefix: str) -> Iterator[str]:
    """Keys of document files in the folder that the prefix reaches into, and below."""
    base = os.path.dirname(f"{root}/{prefix}")
    for folder, folders, names in os.walk(base):
        at_root = folder == root
        folders[:] = [name for name in folders if not name.startswith(".") and not (at_root and _foreign(name))]
        for name in names:
            if name.endswith(".json") and not name.startswith("."):
                key = os.path.relpath(f"{folder}/{name}", root).removesuffix(".json")
                with contextlib.suppress(InvalidRequest):
                    yield check_key(key)


def _foreign(name: str) -> bool:
    return name in ("leases", "operations", "audit")
