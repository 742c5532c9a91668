"""The state store without a disk, for tests of everything above it: the same promises within one event loop."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from codeb_mcp.model.errors import Conflict, InvalidRequest
from codeb_mcp.registry.documents import check_key, parse, prepare
from codeb_mcp.registry.leases import Holding, check_lease_name, held_by, lease_lost, not_held_with, utc_now
from codeb_mcp.registry.store import Change, Fence, Lease, Stored


class MemoryStore:
    """`StateStore` in memory; see there. Nothing survives the process, and no lease holder is ever known to be gone."""

    def __init__(self, *, clock: Callable[[], datetime] = utc_now) -> None:
        self._clock = clock
        self._identity = secrets.token_hex(16)
        self._documents: dict[str, Stored] = {}
        self._reached: dict[str, int] = {}
        self._leases: dict[str, Holding] = {}
        self._changed = asyncio.Condition()
        self._history: list[str] = []

    async def identity(self) -> str:
        """A lineage of its own."""
        return self._identity

    async def get(self, key: str) -> Stored | None:
        """The document, or None when there is none."""
        return self._documents.get(check_key(key))

    async def keys(self, prefix: str) -> list[str]:
        """All document keys that start with `prefix`, sorted."""
        return sorted(key for key in self._documents if key.startswith(prefix))

    async def commit(self, changes: Sequence[Change], *, fence: Fence | None = None) -> dict[str, int]:
        """Write all changes or none; answers the new version per key (0 for a deleted one)."""
        prepared = [prepare(change) for change in changes]
        if len({item.key for item in prepared}) != len(prepared):
            raise InvalidRequest("one commit changes the same document twice")
        if fence is not None:
            await self.check(fence)
        for item in prepared:
            present = self._documents.get(item.key)
            found = present.version if present else 0
            if found != item.expected:
                raise Conflict(f"{item.key} is at version {found}", key=item.key, expected=item.expected, found=found)
        versions = {}
        for item in prepared:
            if item.doc is None and not item.expected:
                versions[item.key] = 0
                continue
            self._reached[item.key] = serial = self._reached.get(item.key, 0) + 1
            versions[item.key] = serial if item.doc is not None else 0
            if item.doc is None:
                del self._documents[item.key]
            else:
                self._documents[item.key] = Stored(parse(item.body), serial)
        await self._tell(list(versions))
        return versions

    async def watch(self, prefix: str = "") -> AsyncIterator[str]:
        """Keys as they change from the first iteration on."""
        position = len(self._history)
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda seen=position: len(self._history) > seen)  # type: ignore[misc]
            news, position = self._history[position:], len(self._history)
            for key in news:
                if key.startswith(prefix):
                    yield key

    async def acquire(self, name: str, owner: str, *, ttl_seconds: float = 30.0) -> Lease:
        """Take the lease or raise `LockHeld`."""
        now = self._clock()
        former = self._leases.get(check_lease_name(name))
        if former is not None and not former.free_at(now):
            raise held_by(former.lease)
        token = former.lease.token + 1 if former else 1
        lease = Lease(name, owner, token, now, now + timedelta(seconds=ttl_seconds))
        self._leases[name] = Holding(lease, held=True)
        return lease

    async def renew(self, lease: Lease, *, ttl_seconds: float = 30.0) -> Lease:
        """Prolong; raises `LeaseLost` when somebody else holds it by now."""
        await self.check(lease.fence)
        renewed = replace(lease, expires_at=self._clock() + timedelta(seconds=ttl_seconds))
        self._leases[lease.name] = Holding(renewed, held=True)
        return renewed

    async def release(self, lease: Lease) -> None:
        """Give it back; releasing a lease that was lost does nothing."""
        holding = self._leases.get(lease.name)
        if holding is not None and holding.lease.token == lease.token:
            self._leases[lease.name] = replace(holding, held=False)

    async def lease(self, name: str) -> Lease | None:
        """Who holds it now, if anybody does."""
        holding = self._leases.get(check_lease_name(name))
        return holding.lease if holding and not holding.free_at(self._clock()) else None

    async def check(self, fence: Fence) -> None:
        """Raise `LeaseLost` unless the fence's token is still the newest and the lease is held."""
        holding = self._leases.get(check_lease_name(fence.lease))
        if holding is None or not holding.held or holding.lease.token != fence.token:
            raise lease_lost(fence, holding.lease.token if holding and holding.held else None)

    async def forget_deleted(self, prefix: str, *, older_than_seconds: float) -> int:
        """Nothing is kept of a deleted document but its serial."""
        return 0

    async def force_release(self, name: str, token: int) -> None:
        """Break the lease with exactly this token (`Conflict` when it is another)."""
        holding = self._leases.get(check_lease_name(name))
        if holding is None or not holding.held or holding.lease.token != token:
            raise not_held_with(name, token, holding.lease.token if holding and holding.held else None)
        self._leases[name] = replace(holding, held=False)

    async def _tell(self, keys: list[str]) -> None:
        async with self._changed:
            self._history += keys
            self._changed.notify_all()
