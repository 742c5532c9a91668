"""Processes that stop at a chosen moment of a run: just before or just after any line of its journal is written."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from codeb_mcp.model.machine import Action
from codeb_mcp.registry.entries import RunHeader
from codeb_mcp.registry.files import FileStore
from codeb_mcp.registry.journal import Journal, Journals
from codeb_mcp.registry.store import Fence
from tests.unit.operations.world import UnsyncedDisk, World, bounded

WRITES = ("intend", "record", "finish")


class Stopped:
    """The run stands still at the moment number `at` (from 0) until `go_on`, or for ever."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.passed = 0
        self.reached = asyncio.Event()
        self.where = ""
        self._go = asyncio.Event()

    def go_on(self) -> None:
        """Let the run go on."""
        self._go.set()

    async def pass_by(self, where: str) -> None:
        """One moment of the run."""
        number, self.passed = self.passed, self.passed + 1
        if number == self.at:
            self.where = where
            self.reached.set()
            await self._go.wait()

    def journals(self, root: Path, store: FileStore, clock: Callable[[], datetime]) -> Journals:
        """Journals whose writers stop at the chosen moment."""
        return _StoppingJournals(self, root, store, clock=clock, disk=UnsyncedDisk())


class _StoppingJournals(Journals):
    def __init__(self, stopped: Stopped, root: Path, store: FileStore, **more: Any) -> None:
        super().__init__(root, store, **more)
        self._stopped = stopped

    async def create(
        self, header: RunHeader, fence: Fence, *, plan: Any = None, first: Action | None = None
    ) -> Journal:
        await self._stopped.pass_by("before begin")
        journal = await super().create(header, fence, plan=plan, first=first)
        await self._stopped.pass_by("after begin")
        return self._watched(journal)

    async def open(self, run_id: str) -> Journal:
        return self._watched(await super().open(run_id))

    def _watched(self, journal: Journal) -> Journal:
        for name in (one for one in WRITES if hasattr(journal, one)):
            setattr(journal, name, self._around(getattr(journal, name), name))
        return journal

    def _around(self, write: Callable[..., Awaitable[None]], name: str) -> Callable[..., Awaitable[None]]:
        async def watched(*args: Any, **more: Any) -> None:
            said = f"{name} {args[1] if len(args) > 1 and isinstance(args[1], str) else ''}".strip()
            await self._stopped.pass_by(f"before {said}")
            await write(*args, **more)
            await self._stopped.pass_by(f"after {said}")

        return watched


async def run_until(world: World, at: int, tool: str, **arguments: Any) -> Stopped | None:
    """Begin the operation in a new process that stops at that moment; None when the run has fewer moments."""
    stopped = Stopped(at)
    world.restart(stopped.journals)
    call = asyncio.create_task(_quietly(world.call(tool, **arguments)))
    reached = asyncio.create_task(stopped.reached.wait())
    await bounded(asyncio.wait({call, reached}, return_when=asyncio.FIRST_COMPLETED))
    there = stopped.reached.is_set()
    for task in (call, reached):
        task.cancel()
    await asyncio.gather(call, reached, return_exceptions=True)
    return stopped if there else None


async def _quietly(work: Awaitable[Any]) -> None:
    await asyncio.gather(work, return_exceptions=True)


async def take_up(world: World) -> None:
    """A new process takes up what is open and brings it to its end."""
    services = world.restart()
    await bounded(services.runs.resume_all())
    await bounded(services.runs.drain())
