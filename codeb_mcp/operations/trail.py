"""The audit trail as calls see it: changes wait for the disk, reads are gathered and written within a second."""

from __future__ import annotations

import asyncio
import contextlib

from codeb_mcp.model.errors import CodebError
from codeb_mcp.registry.audit import AuditRecord, AuditTrail

GATHER_SECONDS = 1.0
GATHER_RECORDS = 200


class Trail:
    """Writes records in the order of their calls. `close` writes what is still gathered."""

    def __init__(self, audit: AuditTrail) -> None:
        self.audit = audit
        self._gathered: list[AuditRecord] = []
        self._timer: asyncio.Task[None] | None = None
        self._order = asyncio.Lock()

    async def write(self, record: AuditRecord, *, durable: bool) -> None:
        """Add one record; with `durable` it is on the disk when this returns."""
        self._gathered.append(record)
        if durable or len(self._gathered) >= GATHER_RECORDS:
            await self.flush(durable=durable)
        elif self._timer is None or self._timer.done():
            self._timer = asyncio.create_task(self._later())

    async def flush(self, *, durable: bool = False) -> None:
        """Write what is gathered."""
        async with self._order:
            records, self._gathered = self._gathered, []
            if not records:
                return
            try:
                await self.audit.append(records, durable=durable)
            except BaseException:
                self._gathered = [*records, *self._gathered]
                raise

    async def close(self) -> None:
        """Write the rest and stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
        await self.flush(durable=True)

    async def _later(self) -> None:
        await asyncio.sleep(GATHER_SECONDS)
        with contextlib.suppress(CodebError):  # what was gathered stays, and the next call that writes is told
            await self.flush()
