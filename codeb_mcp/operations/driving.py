"""One run's life in this process: its machine is driven, its lease is kept, its end is written."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from codeb_mcp.model.errors import CodebError, LeaseLost, RegistryDamaged
from codeb_mcp.model.machine import Action, Failed, Machine, walk
from codeb_mcp.model.machines import machine_from_json
from codeb_mcp.operations import switching as _switching  # noqa: F401 - its steps are registered by that
from codeb_mcp.operations.context import Event, Progress, Services
from codeb_mcp.operations.perform import Performer
from codeb_mcp.operations.runner import Stop, drive
from codeb_mcp.registry.journal import Journal
from codeb_mcp.registry.store import Lease

HEARTBEAT_SECONDS = 5.0
POLL_SECONDS = 0.2
CANCELLED = Failed("cancelled", "the run was cancelled", "Start it again when you want it.")


def summary(machine: Machine) -> dict[str, Any]:
    """What the journal keeps of the end."""
    doc: dict[str, Any] = {"ok": machine.failure is None, "result": dict(machine.result)}
    if (failure := machine.failure) is not None:
        detail = dict(failure.detail)
        doc["failure"] = {"code": failure.code, "message": failure.message, "hint": failure.hint, "detail": detail}
    return doc


@dataclass(slots=True)
class Life:
    """A run that this process drives. `listeners` hear its progress, `ended` is called once when it has ended."""

    services: Services
    journal: Journal
    lease: Lease
    ended: Callable[[Journal], None]
    stop: Stop = field(default_factory=Stop)
    listeners: list[Progress] = field(default_factory=list)
    task: asyncio.Task[None] | None = None
    free: bool = False

    def begin(self) -> None:
        """Live in a task of its own, so that no caller's end is the run's end."""
        self.task = asyncio.create_task(self._live(), name=self.journal.header.run_id)

    async def _live(self) -> None:
        """Drive the run with a heart that keeps the lease; both end together."""
        header = self.journal.header
        log = self.services.log.bind(operation_id=header.run_id, kind=header.kind, project=header.project)
        heart = asyncio.create_task(self._heart(asyncio.current_task()))
        try:
            await self.drive()
        except LeaseLost as lost:
            log.warning("run was taken over", problem=lost.message)
        except CodebError as error:
            log.warning("run stays open", code=error.code, problem=error.message)
        except Exception:
            log.exception("run crashed and stays open")
        finally:
            heart.cancel()
            await asyncio.gather(heart, return_exceptions=True)
            await asyncio.shield(self.let_go())

    async def let_go(self) -> None:
        """Give the lease back, if that has not been done."""
        if not self.free:
            await self.services.store.release(self.lease)
            self.free = True

    async def _heart(self, run: asyncio.Task[Any] | None) -> None:
        """Prolong the lease and listen for a cancel from another process; losing the lease stops the run at once."""
        waited = 0.0
        while True:
            await asyncio.sleep(POLL_SECONDS)
            waited += POLL_SECONDS
            if self.journal.cancel_requested():
                self.stop.ask(CANCELLED)
            if waited < HEARTBEAT_SECONDS:
                continue
            waited = 0.0
            try:
                self.lease = await self.services.store.renew(self.lease)
            except LeaseLost:
                if run is not None:
                    run.cancel()
                return
            except CodebError as error:
                self.services.log.warning("lease could not be renewed", problem=error.message)

    async def drive(self) -> None:
        """From wherever the journal is to the end. Raises the driver's error when an undo cannot be done now."""
        self.journal.fence = self.lease.fence
        machine = planned_machine(self.journal)
        seconds = self.journal.header.deadline_seconds
        timer = asyncio.get_running_loop().call_later(seconds, self.stop.ask, _too_long(seconds))
        news = _News(self.journal.header.run_id, len(walk(machine)), self.listeners)
        installation = await self.services.store.identity()
        performer = Performer(self.services, installation, self.lease.fence, self.journal.header.kind, news.within)
        try:
            await drive(machine, self.journal, performer.perform, news.step, self.stop, summary)
        finally:
            timer.cancel()
        self.ended(self.journal)


def planned_machine(journal: Journal) -> Machine:
    """The machine that the journal was begun with; raises RegistryDamaged when there is none."""
    planned = journal.planned()
    if planned is None:
        raise RegistryDamaged(
            f"the journal of {journal.header.run_id} holds no plan", hint="Nothing was done; move the file away."
        )
    return machine_from_json(planned["machine"])


@dataclass(slots=True)
class _News:
    """Turns what the runner tells into events for listeners."""

    run_id: str
    total: int
    listeners: list[Progress]
    position: int = 0

    def step(self, step: int, action: Action, status: str, problem: str) -> None:
        """A step began or ended."""
        self.position = step + 1
        self._tell(action, status, 1.0 if status == "completed" else None, problem or action.says)

    def within(self, action: Action, fraction: float | None, message: str) -> None:
        """A step tells how far it is."""
        self._tell(action, "running", fraction, message)

    def _tell(self, action: Action, status: str, fraction: float | None, message: str) -> None:
        total = max(self.total, self.position)
        event = Event(self.run_id, action.step, status, self.position, total, fraction, message)
        for listener in list(self.listeners):
            listener(event)


def _too_long(seconds: float) -> Failed:
    return Failed("timeout", f"the run took longer than {seconds:g} seconds", "Look at its steps with operation_get.")


def plan_document(machine_json: Mapping[str, Any], looked: tuple[tuple[str, float], ...]) -> dict[str, Any]:
    """What the journal keeps of a plan: the machine, and the steps that were taken to decide on it (ms)."""
    return {
        "machine": dict(machine_json),
        "looked": [{"name": name, "duration": round(took, 1)} for name, took in looked],
    }
