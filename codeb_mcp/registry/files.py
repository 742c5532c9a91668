"""The state store in files: the asynchronous face of `RegistryFolder` and `Leases`."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import ParamSpec, TypeVar

from codeb_mcp.registry.commits import Request, commit_all
from codeb_mcp.registry.disk import Disk, refusals, storage_error
from codeb_mcp.registry.documents import check_key
from codeb_mcp.registry.folder import RegistryFolder
from codeb_mcp.registry.leases import Leases, check_lease_name, utc_now
from codeb_mcp.registry.repair import Damage, Repair
from codeb_mcp.registry.store import Change, Document, Fence, Lease, Stored
from codeb_mcp.registry.watch import Changes

P = ParamSpec("P")
T = TypeVar("T")

_SHARING = 64  # commits under one lock; other processes wait meanwhile, some tens of milliseconds


class FileStore:
    """`StateStore` on a local folder that any number of processes share; see `StateStore` for what each method promises.

    `root` is made when it is missing, at first use. Besides the errors of the contract, any method may raise
    `InsufficientStorage`, `DriverRefused` (the disk refused; read again before repeating) and `DeadlineExceeded` (the
    lock stayed held for `lock_wait_seconds`). A document without lineage and serial, as other programs write them, is
    adopted as version 1.
    """

    def __init__(
        self,
        root: Path,
        *,
        generations: int = 10,
        lock_wait_seconds: float = 10.0,
        clock: Callable[[], datetime] = utc_now,
        disk: Disk | None = None,
    ) -> None:
        disk = disk or Disk()
        self.root = root
        self._folder = RegistryFolder(
            root.absolute(), disk, generations=generations, lock_wait_seconds=lock_wait_seconds
        )
        self._leases = Leases(disk, self._folder.root, clock)
        self._clock = clock
        self._repair = Repair(self._folder, self._leases, clock)
        self._queue: deque[Request] = deque()
        # One thread writes, so this process queues fairly for its turn; reading never waits behind it.
        self._writing = ThreadPoolExecutor(1, thread_name_prefix="registry-write")
        self._reading = ThreadPoolExecutor(4, thread_name_prefix="registry-read")

    async def identity(self) -> str:
        """The registry's lineage; made at the first use of the folder."""
        if not self._folder.versions.lineage:
            await self._write(self._folder.open)
        return self._folder.versions.lineage

    async def get(self, key: str) -> Stored | None:
        """The document, or None when there certainly is none. One stat when it is unchanged since the last call."""
        check_key(key)
        try:
            entry = self._folder.versions.peek(key)
        except OSError as error:
            raise storage_error(error, f"read {key}") from error
        return entry.stored if entry else await self._read(self._folder.read, key)

    async def keys(self, prefix: str) -> list[str]:
        """All document keys that start with `prefix`, sorted."""
        return await self._read(self._folder.keys, prefix)

    async def commit(self, changes: Sequence[Change], *, fence: Fence | None = None) -> dict[str, int]:
        """Write all changes or none, durably; answers the new version per key (0 for a deleted one)."""

        def check() -> None:
            if fence is not None:
                self._leases.check(fence)

        request = Request(list(changes), check)
        self._queue.append(request)
        self._writing.submit(self._commit_waiting)
        return await asyncio.wrap_future(request.answer)

    async def watch(self, prefix: str = "") -> AsyncIterator[str]:
        """Keys as they change from the first iteration on; looks four times a second."""
        changes = Changes(self._folder.root, prefix)
        while True:
            for key in await self._read(changes.look):
                yield key
            await asyncio.sleep(0.25)

    async def acquire(self, name: str, owner: str, *, ttl_seconds: float = 30.0) -> Lease:
        """Take the lease, durably, or raise `LockHeld`. A caller that is cancelled meanwhile does not keep it."""
        taking = asyncio.ensure_future(self._write(self._lease, self._leases.acquire, name, owner, ttl_seconds))
        try:
            return await asyncio.shield(taking)
        except asyncio.CancelledError:
            taking.add_done_callback(self._give_back)
            raise

    async def renew(self, lease: Lease, *, ttl_seconds: float = 30.0) -> Lease:
        """Prolong; raises `LeaseLost` when somebody else holds it by now."""
        return await self._write(self._lease, self._leases.renew, lease, ttl_seconds)

    async def release(self, lease: Lease) -> None:
        """Give it back; releasing a lease that was lost does nothing."""
        await self._write(self._lease, self._leases.release, lease)

    async def lease(self, name: str) -> Lease | None:
        """Who holds it now, if anybody does."""
        with refusals(f"read the lease {check_lease_name(name)}"):
            holding = self._leases.holding(name)
        return holding.lease if holding and not holding.free_at(self._clock()) else None

    async def check(self, fence: Fence) -> None:
        """Raise `LeaseLost` unless the fence's token is still the newest and the lease is held."""
        with refusals(f"read the lease {check_lease_name(fence.lease)}"):
            self._leases.check(fence)

    async def force_release(self, name: str, token: int) -> None:
        """Break the lease with exactly this token (`Conflict` when it is another). The caller audits it."""
        await self._write(self._lease, self._leases.break_open, name, token)

    async def examine(self) -> list[Damage]:
        """Everything stored that cannot be trusted, without changing anything."""
        return await self._write(self._repair.examine)

    async def restore(self, key: str, serial: int) -> int:
        """Make a kept version the newest one, also over a damaged document, which is put aside in `.damaged`.

        Answers the new version; raises `NotFound` when that version is not kept or not readable.
        """
        return await self._write(self._repair.restore, key, serial)

    async def kept(self, key: str) -> list[Document]:
        """All kept versions of the document that can be read, newest first; its present one is among them."""
        return await self._read(self._repair.kept, key)

    async def replace_damaged(self, key: str, doc: Document) -> int:
        """Put this document in the place of whatever is there, which is put aside; answers the new version."""
        return await self._write(self._repair.replace, key, doc)

    async def replace_damaged_lease(self, name: str) -> None:
        """Free an unreadable lease, with a token above all former ones; one that can be read is left alone."""
        await self._write(self._repair.replace_lease, name)

    async def forget_deleted(self, prefix: str, *, older_than_seconds: float) -> int:
        """Drop the kept versions of documents deleted that long ago; a new one of the name still counts on from there.

        Answers how many were dropped.
        """
        return await self._write(self._repair.forget, prefix, older_than_seconds)

    def _commit_waiting(self) -> None:
        waiting: list[Request] = []
        while self._queue and len(waiting) < _SHARING:
            waiting.append(self._queue.popleft())
        commit_all(self._folder, waiting)

    def _lease(self, step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        with self._folder.locked("write a lease"):
            return step(*args, **kwargs)

    def _give_back(self, taking: asyncio.Future[Lease]) -> None:
        if not taking.cancelled() and taking.exception() is None:
            self._writing.submit(self._lease, self._leases.release, taking.result())

    async def _write(self, step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._writing, lambda: step(*args, **kwargs))

    async def _read(self, step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._reading, lambda: step(*args, **kwargs))
