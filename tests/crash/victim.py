"""`codeb serve`, but it kills itself with SIGKILL at one exact point of one run.

VICTIM_DIES=`KIND:ACTION:N:WHEN`: in runs of KIND, at the Nth time ACTION is performed; WHEN is `before` (its intent is
durable, nothing has happened), `after` (it has happened, its outcome is not durable) or `recorded` (its outcome is).
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from codeb_mcp.faces.http import serve
from codeb_mcp.model.machine import Action, Outcome
from codeb_mcp.operations import perform
from codeb_mcp.operations.catalog import load_all
from codeb_mcp.registry.journal import Journal
from codeb_mcp.settings import load

Record = Callable[..., Awaitable[None]]


def die() -> None:
    """Like a power cut for this process."""
    os.kill(os.getpid(), signal.SIGKILL)


class Trap:
    """Counts what happens in runs of one kind and dies at the appointed moment."""

    def __init__(self, order: str) -> None:
        self.kind, self.action, number, self.when = order.split(":")
        self.left = int(number)

    def record(self, genuine: Record) -> Record:
        """Die when the outcome of the action is durable."""

        async def record(journal: Journal, step: int, name: str, outcome: Outcome, **rest: Any) -> None:
            await genuine(journal, step, name, outcome, **rest)
            if journal.header.kind == self.kind and name == self.action and self._now():
                die()

        return record

    def step(self, genuine: perform.Step) -> perform.Step:
        """Die before or after the action itself."""

        async def step(run: perform.Performer, action: Action) -> Mapping[str, Any]:
            now = run.kind == self.kind and self._now()
            if now and self.when == "before":
                die()
            try:
                return await genuine(run, action)
            finally:
                if now:
                    die()

        return step

    def _now(self) -> bool:
        self.left -= 1
        return self.left == 0


def arm(order: str) -> None:
    """Make this process die where the order says."""
    load_all()
    trap = Trap(order)
    if trap.when == "recorded":
        Journal.record = trap.record(Journal.record)  # type: ignore[method-assign, assignment]
    else:
        perform.STEPS[trap.action] = trap.step(perform.STEPS[trap.action])


if __name__ == "__main__":
    arm(os.environ["VICTIM_DIES"])
    asyncio.run(serve(load()))
