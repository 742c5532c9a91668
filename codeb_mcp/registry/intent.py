"""A commit of several documents, decided by one rename: the intent file, which holds all of them. Blocking.

Every step may be repeated: a document is only written if the serial it has reached is lower than the intended one.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from codeb_mcp.model.errors import InvalidRequest, RegistryDamaged
from codeb_mcp.registry.disk import put, read_file
from codeb_mcp.registry.documents import MAX_BYTES, Prepared
from codeb_mcp.registry.lines import seal, unseal
from codeb_mcp.registry.versions import Entry, Versions

_MAX_BYTES = 8 * MAX_BYTES


class Intent:
    """The intent file of one registry folder; all but `pending` under the lock."""

    def __init__(self, versions: Versions) -> None:
        self._versions = versions
        self._disk = versions.disk
        self._path = f"{versions.root}/.intent.json"

    def pending(self) -> bool:
        """Whether a commit is under way or was left unfinished."""
        return os.path.lexists(self._path)

    def finish(self) -> None:
        """Roll forward a commit that was decided but not finished; raises `RegistryDamaged` and OSError."""
        try:
            data, _ = read_file(self._path, _MAX_BYTES)
            documents = unseal(data.removesuffix(b"\n"))["documents"]
        except FileNotFoundError:
            return
        except (ValueError, KeyError) as error:
            raise RegistryDamaged(
                f"the intent file of an unfinished commit {error}",
                hint="Nobody can tell what the commit was. Move the file away to go on without it.",
                path=self._path,
            ) from error
        self._apply(documents)
        self._disk.unlink(self._path)

    def write(self, changed: Sequence[Prepared], serials: dict[str, int]) -> None:
        """Commit these documents; an OSError before the rename of the intent leaves everything as it was, one after it
        leaves the rest to whoever comes next."""
        documents = [
            {
                "key": item.key,
                "serial": serials[item.key],
                "text": item.content(self._versions.lineage, serials[item.key]).decode()
                if item.doc is not None
                else None,
            }
            for item in changed
        ]
        data = seal({"documents": documents})
        if len(data) > _MAX_BYTES:
            raise InvalidRequest(f"one commit may not be larger than {_MAX_BYTES} bytes")
        for item in changed:
            self._disk.make_folder(os.path.dirname(self._versions.path(item.key)), durable=True)
        put(self._disk, self._path, data)
        self._apply(documents)
        self._disk.unlink(self._path)

    def _apply(self, documents: Sequence[dict[str, Any]]) -> None:
        """Do what the intent says, from wherever it stands. All folders are synced, also for what was done already:
        whoever did it may have died before its own sync."""
        present = {item["key"]: self._present(item["key"]) for item in documents}
        reached = {key: entry.reached if entry else 0 for key, entry in present.items()}
        for item in documents:
            if reached[item["key"]] < item["serial"]:
                self._apply_one(item, present[item["key"]])
        for folder in sorted({os.path.dirname(self._versions.path(item["key"])) for item in documents}):
            self._disk.sync_folder(folder)
        for item in documents:
            if reached[item["key"]] <= item["serial"]:
                self._finish_one(item["key"], item["serial"], item["text"])

    def _apply_one(self, item: dict[str, Any], present: Entry | None) -> None:
        key, text = item["key"], item["text"]
        if text is not None:
            self._versions.write(key, text.encode(), item["serial"], present)
            return
        self._versions.keep(key, present)
        self._versions.forget_cached(key)
        self._disk.unlink(self._versions.path(key))

    def _finish_one(self, key: str, serial: int, text: str | None) -> None:
        if text is None:
            self._versions.generations.mark_gone(key, serial)
            self._versions.generations.prune(key, serial)
        else:
            self._versions.written(key, serial)

    def _present(self, key: str) -> Entry | None:
        try:
            return self._versions.current(key)
        except RegistryDamaged:
            return None  # half of this very commit; it could not have begun on a damaged document
