"""The audit trail as calls see it: changes wait for the disk, reads are gathered and written within a second."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from codeb_mcp.model.errors import CodebError
from codeb_mcp.registry.audit import AuditRecord, AuditTrail

Made = Callable[[], AuditRecord]
GATHER_SECONDS = 1.0
GATHER_RECORDS = 200


class Trail:
    """Writes records in the order of their calls. `close` writes what is still gathered."""

    def __init__(self, audit: AuditTrail) -> None:
        self.audit = audit
        self._gathered: list[Made] = []
        self._timer: asyncio.Task[None] | None = None
        self._order = asyncio.Lock()

    async def write(self, make: Made, *, durable: bool) -> None:
        """Add the record that `make` answers; with `durable` it is on the disk when this returns. `make` is called by
        whoever writes, in another thread: masking secrets is not what a reader should wait for."""
        self._gathered.append(make)
        if durable or len(self._gathered) >= GATHER_RECORDS:
            await self.flush(durable=durable)
        elif self._timer is None or self._timer.done():
            self._timer = asyncio.create_task(self._later())

    async def flush(self, *, durable: bool = False) -> None:
        """Write what is gathered."""
        async with self._order:
            makers, self._gathered = self._gathered, []
            if not makers:
                return
            try:
                await self.audit.append_made(lambda: [make() for make in makers], durable=durable)
            except BaseException:
                self._gathered = [*makers, *self._gathered]
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
