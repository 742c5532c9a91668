"""Scripted faults for in-memory drivers: let a chosen call fail, before or after its work, or hold it until released."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from codeb_mcp.model.errors import CodebError


@dataclass
class Pause:
    """A call that waits: `reached` is set when it is there, `release()` lets it go on."""

    reached: asyncio.Event = field(default_factory=asyncio.Event)
    _go: asyncio.Event = field(default_factory=asyncio.Event)

    def release(self) -> None:
        """Let the call go on."""
        self._go.set()

    async def hold(self) -> None:
        """Wait here until released."""
        self.reached.set()
        await self._go.wait()


@dataclass(frozen=True, slots=True)
class _Fault:
    call: int
    error: CodebError | None = None
    pause: Pause | None = None
    after_work: bool = False


class Faults:
    """What goes wrong, by method name (`containers.ensure`, `images.pull` ...). `calls` counts all calls so far."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self._planned: dict[str, list[_Fault]] = {}

    def fail(self, method: str, error: CodebError, *, nth: int = 1, after_work: bool = False) -> None:
        """The nth call from now raises the error; with `after_work` its work is done and only the answer is lost."""
        self._plan(method, _Fault(self.calls[method] + nth, error=error, after_work=after_work))

    def pause(self, method: str, *, nth: int = 1, after_work: bool = False) -> Pause:
        """The nth call from now waits until the answered pause is released, before or after its work."""
        pause = Pause()
        self._plan(method, _Fault(self.calls[method] + nth, pause=pause, after_work=after_work))
        return pause

    @contextlib.asynccontextmanager
    async def around(self, method: str) -> AsyncIterator[None]:
        """To be put around the work of a call."""
        self.calls[method] += 1
        due = [fault for fault in self._planned.get(method, ()) if fault.call == self.calls[method]]
        await self._strike(due, after_work=False)
        yield
        await self._strike(due, after_work=True)

    def _plan(self, method: str, fault: _Fault) -> None:
        self._planned.setdefault(method, []).append(fault)

    async def _strike(self, due: list[_Fault], *, after_work: bool) -> None:
        for fault in due:
            if fault.after_work is after_work:
                if fault.pause is not None:
                    await fault.pause.hold()
                if fault.error is not None:
                    raise fault.error
