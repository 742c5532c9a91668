"""A holder of a lease: `python -m tests.crash.registry_holder ROOT` takes it and begins a run, says so, waits for a line
on its standard input, and then tries to go on. It prints what became of each attempt."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable
from pathlib import Path

from codeb_mcp.model.errors import CodebError
from codeb_mcp.model.machine import Done
from codeb_mcp.registry.files import FileStore
from codeb_mcp.registry.journal import Journals
from codeb_mcp.registry.store import Change
from tests.crash.registry_steps import PULL, header


async def main() -> None:
    """Hold it."""
    store = FileStore(Path(sys.argv[1]))
    lease = await store.acquire("environment/a", "run:r1", ttl_seconds=30)
    journal = await Journals(store.root, store).create(header("r1"), lease.fence, plan={}, first=PULL)
    await store.commit([Change("slots/a", {"by": "holder"}, 0)], fence=lease.fence)
    print("holding", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    await attempt(store.commit([Change("slots/a", {"by": "late"}, 1)], fence=lease.fence))
    await attempt(journal.record(0, "pull", Done()))
    await attempt(store.renew(lease))
    await attempt(store.check(lease.fence))
    await store.release(lease)


async def attempt(work: Awaitable[object]) -> None:
    """Say how it ended."""
    try:
        await work
        print("done", flush=True)
    except CodebError as error:
        print(error.code, flush=True)


if __name__ == "__main__":
    asyncio.run(main())
