"""The contract of the state store: versioned documents, commits that are all or nothing, leases with fencing tokens.

Everything above this module knows the registry only through `StateStore`. The file backend lives in `files.py`.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from codeb_mcp.model.errors import Conflict

Document = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Stored:
    """A document as read: treat `doc` as read-only. `version` is its serial (1 for the first commit, only grows)."""

    doc: Document
    version: int


@dataclass(frozen=True, slots=True)
class Change:
    """One document of a commit. `expected` is the version it was read at, 0 for "must not exist"; `doc` None deletes."""

    key: str
    doc: Document | None
    expected: int


@dataclass(frozen=True, slots=True)
class Fence:
    """Proof that the writer holds a lease: a commit is refused when the lease's token has grown since."""

    lease: str
    token: int


@dataclass(frozen=True, slots=True)
class Lease:
    """A lock with an owner and an end. `token` grows with each acquisition of the same name, for ever."""

    name: str
    owner: str
    token: int
    acquired_at: datetime
    expires_at: datetime

    @property
    def fence(self) -> Fence:
        """The proof to hand to commits and journals."""
        return Fence(self.name, self.token)


class StateStore(Protocol):
    """Where the registry lives.

    Keys are relative paths without suffix: `ssot`, `slots/worb-production`, `domains/worb`, `api-keys`, `teams`.
    Raises `RegistryDamaged` when something stored cannot be trusted, `Conflict` when an expected version is stale and
    `LeaseLost` when a fence is old. "Not found" is None and is only ever said when it is certain.
    """

    async def identity(self) -> str:
        """The registry's lineage: never changes, and no other registry has it."""
        ...

    async def get(self, key: str) -> Stored | None:
        """The document, or None when there certainly is none."""
        ...

    async def keys(self, prefix: str) -> list[str]:
        """All document keys that start with `prefix`, sorted."""
        ...

    async def commit(self, changes: Sequence[Change], *, fence: Fence | None = None) -> dict[str, int]:
        """Write all changes or none, durably; answers the new version per key (0 for a deleted one)."""
        ...

    def watch(self, prefix: str = "") -> AsyncIterator[str]:
        """Keys as they change, in this or any other process; a hint, the documents are the truth."""
        ...

    async def acquire(self, name: str, owner: str, *, ttl_seconds: float = 30.0) -> Lease:
        """Take the lease or raise `LockHeld` (details: holder, since, until). An expired one (plus 15 s of grace), or
        one whose owner process is gone from this host, is taken over with a higher token."""
        ...

    async def renew(self, lease: Lease, *, ttl_seconds: float = 30.0) -> Lease:
        """Prolong; raises `LeaseLost` when somebody else holds it by now."""
        ...

    async def release(self, lease: Lease) -> None:
        """Give it back; releasing a lease that was lost does nothing."""
        ...

    async def lease(self, name: str) -> Lease | None:
        """Who holds it now, if anybody does."""
        ...

    async def check(self, fence: Fence) -> None:
        """Raise `LeaseLost` unless the fence's token is still the newest and the lease is held."""
        ...

    async def forget_deleted(self, prefix: str, *, older_than_seconds: float) -> int:
        """Drop what is kept of documents deleted that long ago; answers how many. A new one still counts on."""
        ...

    async def force_release(self, name: str, token: int) -> None:
        """Break the lease with exactly this token (`Conflict` when it is another). The caller audits it."""
        ...


async def update(
    store: StateStore, key: str, change: Callable[[Document | None], Document | None], *, fence: Fence | None = None
) -> Stored | None:
    """Read, apply the pure function, commit; again from the start when another writer was faster.

    `change` gets None for a missing document and answers the new one; answering the same object means "leave it".
    Raises `Conflict` after 50 lost races, which other writers' progress makes all but impossible.
    """
    for attempt in range(50):
        stored = await store.get(key)
        doc = change(stored.doc if stored else None)
        if stored and doc is stored.doc:
            return stored
        try:
            versions = await store.commit([Change(key, doc, stored.version if stored else 0)], fence=fence)
        except Conflict:
            await asyncio.sleep(random.uniform(0, min(0.002 * 2**attempt, 0.1)))
            continue
        return None if doc is None else Stored(doc, versions[key])
    raise Conflict(f"{key} kept changing while it was being written", hint="Try again.", key=key)
