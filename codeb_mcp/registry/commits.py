"""Commits that wait for the same lock at the same time share it, and the sync of their folders.

Each is checked and written on its own, in the order of arrival, and answered only after its folder was synced. A
document is never written twice between two syncs, so that no generation can outlive the version it is a copy of.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field

from codeb_mcp.model.errors import CodebError, Conflict, InvalidRequest
from codeb_mcp.registry.disk import refusals
from codeb_mcp.registry.documents import Prepared, prepare
from codeb_mcp.registry.folder import RegistryFolder
from codeb_mcp.registry.store import Change
from codeb_mcp.registry.versions import Entry

Versions = dict[str, int]


@dataclass(slots=True)
class Request:
    """One commit that waits. `check` runs under the lock and raises when the writer has lost its right to write."""

    changes: Sequence[Change]
    check: Callable[[], None]
    answer: Future[Versions] = field(default_factory=Future)
    outcome: Versions | BaseException | None = None

    def tell(self) -> None:
        """Answer whoever waits."""
        if isinstance(self.outcome, BaseException):
            self.answer.set_exception(self.outcome)
        elif self.outcome is not None:
            self.answer.set_result(self.outcome)


def commit_all(folder: RegistryFolder, requests: Sequence[Request]) -> None:
    """Carry out each request and answer it, with the new versions or the error that stopped it.

    Answers are given once the lock is free, so that nobody who has one still stands in the others' way.
    """
    waiting = [request for request in requests if request.answer.set_running_or_notify_cancel()]
    try:
        ready = [(request, items) for request in waiting if (items := _prepared(request))]
        if ready:
            with folder.locked("write " + ready[0][1][0].key):
                shared = _Shared(folder)
                for request, items in ready:
                    shared.add(request, items)
                shared.finish()
    except BaseException as error:
        for request in waiting:
            request.outcome = error if request.outcome is None else request.outcome
        if not isinstance(error, CodebError):
            raise
    finally:
        for request in waiting:
            request.tell()


def _prepared(request: Request) -> list[Prepared]:
    """The checked changes; none when the request needs no lock, since its outcome is known."""
    try:
        items = [prepare(change) for change in request.changes]
        if len({item.key for item in items}) != len(items):
            raise InvalidRequest("one commit changes the same document twice")
    except CodebError as error:
        request.outcome = error
        return []
    if not items:
        request.outcome = {}
    return items


class _Shared:
    """What was staged since the last sync."""

    def __init__(self, folder: RegistryFolder) -> None:
        self._folder = folder
        self._versions = folder.versions
        self._staged: dict[str, tuple[Request, Prepared, Versions]] = {}

    def add(self, request: Request, items: list[Prepared]) -> None:
        """Check one commit and stage or write it."""
        if len(items) > 1 or items[0].key in self._staged:
            self.finish()
        try:
            with refusals("write " + ", ".join(item.key for item in items[:3])):
                request.check()
                entries = {item.key: self._versions.current(item.key) for item in items}
                for item in items:
                    _compare(item, entries[item.key])
                self._write(request, items, entries)
        except CodebError as error:
            request.outcome = error

    def finish(self) -> None:
        """Make everything that is staged durable and visible; each document may be refused on its own."""
        staged, self._staged = self._staged, {}
        unsound = self._sync(staged)
        refused = {key: unsound[key] or self._refusal(self._versions.unveil, key) for key in staged}
        for key in staged:
            if refused[key] is not None:
                self._versions.discard(key)
        visible = {os.path.dirname(self._versions.path(key)) for key in staged if refused[key] is None}
        unsynced = {path: self._refusal(self._folder.disk.sync_folder, path) for path in sorted(visible)}
        for key, (request, item, serials) in staged.items():
            refusal = refused[key] or unsynced[os.path.dirname(self._versions.path(key))]
            if refusal is not None:
                request.outcome = refusal
                continue
            self._versions.written(key, serials[key], item)
            request.outcome = serials

    def _sync(self, staged: Iterable[str]) -> dict[str, CodebError | None]:
        """Make what is staged durable, documents and their copies: syncs that run at the same time share the disk's
        work. Answers per document why not."""
        files = [(key, path) for key in staged for path in self._versions.staged(key)]
        sync = self._folder.disk.sync_file
        others = [(key, self._folder.syncing.submit(self._refusal, sync, path)) for key, path in files[1:]]
        found = [(key, self._refusal(sync, path)) for key, path in files[:1]]
        wait([done for _, done in others])  # whatever becomes of one: the lock is ours only until we return
        refused: dict[str, CodebError | None] = {}
        for key, refusal in [*found, *((key, done.result()) for key, done in others)]:
            refused[key] = refused.get(key) or refusal
        return refused

    def _refusal(self, step: Callable[[str], None], name: str) -> CodebError | None:
        try:
            with refusals("make a change durable"):
                step(name)
        except CodebError as error:
            return error
        return None

    def _write(self, request: Request, items: list[Prepared], entries: dict[str, Entry]) -> None:
        versions = self._versions
        changed = [item for item in items if item.doc is not None or item.expected]
        serials = {item.key: versions.next_serial(item.key, entries[item.key]) for item in changed}
        answer = {item.key: serials[item.key] if item.doc is not None else 0 for item in items}
        if len(items) == 1 and items[0].doc is not None:
            item = items[0]
            self._folder.disk.make_folder(os.path.dirname(versions.path(item.key)), durable=True)
            serial = serials[item.key]
            versions.stage(item.key, item.content(versions.lineage, serial), serial, entries[item.key])
            self._staged[item.key] = (request, item, answer)
            return
        if changed:
            self._folder.intent.write(changed, serials)
        request.outcome = answer


def _compare(item: Prepared, entry: Entry) -> None:
    found = entry.stored.version if entry.stored else 0
    if found != item.expected:
        raise Conflict(
            f"{item.key} is at version {found}, not {item.expected}" if found else f"{item.key} does not exist",
            hint="Read it again and repeat the change on what is there now.",
            key=item.key,
            expected=item.expected,
            found=found,
        )
