"""The documents of a registry as single files: read, believed or refused, and written one by one. Blocking.

What it takes to believe a document: it parses, its lineage is this registry's, and no higher serial of it is known.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import Any, NamedTuple

from codeb_mcp.model.errors import RegistryDamaged
from codeb_mcp.registry.disk import Disk, read_file, temporary_name
from codeb_mcp.registry.documents import MAX_BYTES, Prepared, parse, split
from codeb_mcp.registry.generations import Generations
from codeb_mcp.registry.store import Stored

_SETTLED_NS = 20_000_000  # coarser than the kernel's time stamps: within it, two versions may look the same to stat
_RECENT_SECONDS = 5.0
_CACHE_ENTRIES = 50_000
_SMALL_BYTES = 16 * 1024

Signature = tuple[int, int, int]


class Entry(NamedTuple):
    """What is known of one document: the file's signature and content (None: no file), the serial reached so far."""

    signature: Signature | None
    stored: Stored | None
    reached: int
    settled: bool


def signature_of(path: str) -> Signature | None:
    """What changes whenever the file does; None without a file."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


class Versions:
    """All documents of one registry folder, with a cache that one stat keeps honest."""

    def __init__(self, root: str, disk: Disk, generations: int) -> None:
        self.root = root
        self.disk = disk
        self.generations = Generations(disk, root, max(generations, 2))
        self.lineage = ""
        self._cache: dict[str, Entry] = {}

    def peek(self, key: str) -> Entry | None:
        """The document by one stat if it is unchanged since it was last read, else None: use `load` then.

        Just after a write the stat alone does not prove that, so a small document is read once more.
        """
        entry = self._cache.get(key)
        if entry is None or signature_of(self.path(key)) != entry.signature:
            return None
        if entry.settled or entry.signature is None:
            return entry
        if entry.signature[1] > _SMALL_BYTES:
            return None
        with contextlib.suppress(RegistryDamaged):
            again = self._load(key)
            if (again.signature, again.reached) == (entry.signature, entry.reached):
                self._cache[key] = again
                return again
        return None

    def load(self, key: str) -> Entry:
        """The document read anew. Without the lock, damage may only be a writer at work, and must be looked at again."""
        former = self._cache.get(key)
        entry = self._load(key)
        if entry.signature is not None and (former is None or former.signature != entry.signature):
            self._settle(key, entry.signature)
        if len(self._cache) >= _CACHE_ENTRIES:
            self._cache.clear()
        self._cache[key] = entry
        return entry

    def current(self, key: str) -> Entry:
        """The document, from the cache if it is unchanged; what it says under the lock is certain."""
        return self.peek(key) or self.load(key)

    def forget_cached(self, key: str) -> None:
        """Have the document read anew next time, whatever its stat says."""
        self._cache.pop(key, None)

    def path(self, key: str) -> str:
        """The file of a document."""
        return f"{self.root}/{key}.json"

    def write(self, key: str, data: bytes, serial: int, present: Entry | None) -> None:
        """Put the new version in place, under the lock; it is durable once its folder is synced. Raises OSError.

        `present` is what it replaces; None when that cannot be trusted.
        """
        self.stage(key, data, serial, present)
        try:
            for path in self.staged(key):
                self.disk.sync_file(path)
            self.unveil(key)
        except OSError:
            self.discard(key)
            raise

    def stage(self, key: str, data: bytes, serial: int, present: Entry | None) -> None:
        """The first part of `write`: the new version and the copy that will be kept of it lie beside the present one,
        neither visible nor durable."""
        self.keep(key, present)
        try:
            self.disk.create(self._staged(key), data, durable=False)
            self.generations.prepare(key, data, serial)
        except OSError:
            self.discard(key)
            raise

    def staged(self, key: str) -> list[str]:
        """The files that `stage` writes; they have to be synced before `unveil`."""
        return [self._staged(key), *self.generations.prepared(key)]

    def unveil(self, key: str) -> None:
        """The last part of `write`: the staged version takes its place."""
        self.forget_cached(key)
        self.disk.replace(self._staged(key), self.path(key))

    def discard(self, key: str) -> None:
        """Give a staged version up."""
        with contextlib.suppress(OSError):
            self.disk.unlink(self._staged(key))
        with contextlib.suppress(OSError):
            self.generations.discard(key)

    def _staged(self, key: str) -> str:
        folder, name = os.path.split(self.path(key))
        return temporary_name(folder, name)

    def keep(self, key: str, present: Entry | None) -> None:
        """Make sure that the present version has its generation: one that was adopted, or whose copy was lost."""
        if present is not None and present.stored is not None:
            self.generations.add_missing(key, self.path(key), present.stored.version)

    def written(self, key: str, serial: int, item: Prepared | None = None) -> None:
        """Take note of a version that is durable by now; `item` saves reading it again."""
        path = self.path(key)
        self.forget_cached(key)
        # A generation that cannot be kept is made up for by the next commit; the change itself has succeeded.
        with contextlib.suppress(OSError):
            self.generations.add(key, path, serial)
            self.generations.prune(key, serial)
        if item is not None and item.doc is not None:
            self._cache[key] = Entry(signature_of(path), Stored(item.doc, serial), serial, settled=False)

    def next_serial(self, key: str, entry: Entry) -> int:
        """The serial that the next version gets."""
        if entry.stored is not None:
            return entry.stored.version + 1
        return max(entry.reached, self.generations.floor(key)) + 1

    def _load(self, key: str) -> Entry:
        path = self.path(key)
        now = time.time_ns()
        try:
            data, status = read_file(path, MAX_BYTES)
        except FileNotFoundError:
            known = self.generations.newest(key)
            if known is not None and not known.gone:
                raise self.damaged(key, f"is missing, though serial {known.serial} was written") from None
            return Entry(None, None, known.serial if known else 0, settled=True)
        except ValueError as error:
            raise self.damaged(key, str(error)) from error
        try:
            doc, lineage, serial = split(parse(data))
        except ValueError as error:
            raise self.damaged(key, str(error)) from error
        if lineage not in (None, self.lineage):
            raise self.damaged(key, f"belongs to another registry (lineage {lineage}, here {self.lineage})")
        signature = (status.st_mtime_ns, status.st_size, status.st_ino)
        former = self._cache.get(key)
        if former is None or (former.signature, former.reached) != (signature, serial):
            self._check_newest(key, serial)
        return Entry(signature, Stored(doc, serial), serial, now - status.st_mtime_ns > _SETTLED_NS)

    def _check_newest(self, key: str, serial: int) -> None:
        known = self.generations.newest(key)
        if known is not None and (known.serial, known.gone) > (serial, False):
            what = "was deleted" if known.gone else "is known"
            raise self.damaged(key, f"is an old copy (serial {serial}, but serial {known.serial} {what})")

    def damaged(self, key: str, problem: str) -> RegistryDamaged:
        """The answer for a document that cannot be trusted, with the newest version that can."""
        good = self.last_good(key)
        return RegistryDamaged(
            f"the registry document {key} {problem}",
            hint=f"Run `codeb registry rebuild`; version {good} of it is kept and readable."
            if good
            else "Run `codeb registry rebuild`; no former version of it is kept.",
            key=key,
            path=self.path(key),
            problem=problem,
            lastGood=good,
        )

    def last_good(self, key: str) -> int | None:
        """The newest kept version that can be read."""
        for generation in reversed(self.generations.known(key)):
            if not generation.gone:
                with contextlib.suppress(OSError, ValueError):
                    self.read_generation(key, generation.serial)
                    return generation.serial
        return None

    def read_generation(self, key: str, serial: int) -> dict[str, Any]:
        """The content of a kept version; raises OSError or ValueError when it is not there or cannot be trusted."""
        doc, lineage, found = split(parse(read_file(self.generations.path(key, serial), MAX_BYTES)[0]))
        if lineage not in (None, self.lineage) or found != serial:
            raise ValueError("is not the version it claims to be")
        return doc

    def _settle(self, key: str, signature: Signature) -> None:
        """Make sure that what a reader has seen survives a power cut: its writer may have died before the sync."""
        if time.time() - signature[0] / 1e9 < _RECENT_SECONDS:
            self.disk.sync_folder(os.path.dirname(self.path(key)))
