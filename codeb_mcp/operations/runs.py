"""Runs: started once, lived through crashes, waited for by anybody.

A run never lives in the call that asked for it: a caller who goes away cancels nothing. Its life is in the journal, so
any process of this installation can look at it, cancel it, or take it over after a crash.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from codeb_mcp.model.errors import (
    CodebError,
    Conflict,
    DriverUnavailable,
    LockHeld,
    NotFound,
    RegistryDamaged,
    from_code,
)
from codeb_mcp.model.machine import Failed, Machine
from codeb_mcp.model.machines import machine_to_json
from codeb_mcp.model.names import Environment, lease_name
from codeb_mcp.operations.context import Progress, Services, unheard
from codeb_mcp.operations.driving import CANCELLED, POLL_SECONDS, Life, plan_document
from codeb_mcp.operations.requests import (
    JOINED_WHILE_OPEN,
    begun_by,
    ended_before,
    how_to_go_on,
    lease_for,
    occupied,
    remember,
    repeats,
    same_request,
    why_open,
)
from codeb_mcp.registry.entries import RunHeader
from codeb_mcp.registry.journal import Journal
from codeb_mcp.registry.leases import held_by
from codeb_mcp.registry.store import Lease


@dataclass(frozen=True, slots=True)
class Planned:
    """What a planner decided: the machine, and the steps it took to look around (name, duration in ms)."""

    machine: Machine
    looked: tuple[tuple[str, float], ...] = ()


Planner = Callable[[Services, RunHeader], Awaitable[Planned]]
PLANNERS: dict[str, Planner] = {}
STILL_STANDS: dict[str, Callable[[Services, RunHeader, Mapping[str, Any]], Awaitable[bool]]] = {}
"""Per kind: whether what a finished run achieved still is so; only then a repeated request joins it."""


def planner(kind: str) -> Callable[[Planner], Planner]:
    """Register how runs of a kind decide what to do. A planner looks and decides, and has no effect."""

    def register(plan: Planner) -> Planner:
        PLANNERS[kind] = plan
        return plan

    return register


@dataclass(frozen=True, slots=True)
class RunView:
    """A run as callers see it. `status`: running, interrupted, succeeded, failed."""

    header: RunHeader
    status: str
    steps: list[dict[str, Any]]
    finished: Mapping[str, Any] | None
    joined: bool = False

    @property
    def result(self) -> Mapping[str, Any]:
        """The machine's facts; empty while it runs."""
        found: Mapping[str, Any] = (self.finished or {}).get("result", {})
        return found

    def error(self) -> CodebError | None:
        """The failure as an error, with the operation's id and its steps."""
        failure = (self.finished or {}).get("failure")
        if failure is None:
            return None
        detail = {**failure.get("detail", {}), "operationId": self.header.run_id, "steps": self.steps}
        return from_code(failure["code"], failure["message"], hint=failure.get("hint", ""), **detail)


class Runs:
    """Starts, joins, resumes and cancels runs. One per process; `bind` hands it the installation."""

    def __init__(self) -> None:
        self._live: dict[str, Life] = {}
        self._watchers: list[Callable[[RunView], None]] = []
        self._services: Services | None = None

    def bind(self, services: Services) -> None:
        """Called once by the composition root."""
        self._services = services

    @property
    def services(self) -> Services:
        """The installation."""
        if self._services is None:
            raise CodebError("runs were used before the installation was put together")
        return self._services

    def on_end(self, watcher: Callable[[RunView], None]) -> None:
        """Have the watcher told of every run that this process brings to its end; it must not raise."""
        self._watchers.append(watcher)

    # ── start and join ──────────────────────────────────────────────────────────────────────────────────────────

    async def start(self, header: RunHeader) -> RunView:
        """Start the run, or join the one that the same request began. Raises LockHeld when another holds the lease."""
        if (earlier := await self._joinable(header)) is not None:
            return earlier
        try:
            lease = await lease_for(self.services, header)
        except LockHeld as held:
            return await self._join_holder(header, held)
        try:
            earlier = await self._joinable(header) or await self._settle(header, lease)
            if earlier is not None:
                await self.services.store.release(lease)
                return await self._rejoined(earlier)
            plan = await PLANNERS[header.kind](self.services, header)
            # First: a key that names a run which never began is harmless, a run that nobody can join is not.
            await remember(self.services, header, header.run_id)
            journal = await self._begin(header, lease, plan)
        except BaseException:
            await self.services.store.release(lease)
            raise
        self._spawn(journal, lease)
        return self.view(journal)

    async def _begin(self, header: RunHeader, lease: Lease, plan: Planned) -> Journal:
        """The journal, with plan and first intent in its first write."""
        document = plan_document(machine_to_json(plan.machine), plan.looked)
        journals = self.services.registry.journals
        return await journals.create(header, lease.fence, plan=document, first=plan.machine.action())

    async def _joinable(self, header: RunHeader) -> RunView | None:
        """The earlier run of the same request, if it is to be joined: by its idempotency key, else by what it asks for.
        Raises Conflict for a key of another request."""
        for name in header.dedupe:
            journal = await begun_by(self.services, name)
            view = await self._to_join(name, header, journal) if journal else None
            if view is not None:
                await remember(self.services, header, view.header.run_id)
                return view
        return None

    async def _to_join(self, name: str, header: RunHeader, journal: Journal) -> RunView | None:
        keyed = name.startswith("key:")
        if keyed and not same_request(journal.header, header):
            said, earlier = "this idempotency key belongs to another request", journal.header.run_id
            raise Conflict(said, hint="Use a new key for a new request.", operationId=earlier)
        view = self.view(journal, joined=True)
        if view.status == "running":
            return await self._rejoined(view)
        if keyed:
            return view
        if view.status != "succeeded":
            return None
        stands = STILL_STANDS.get(header.kind)
        return view if stands is None or await stands(self.services, journal.header, view.result) else None

    async def _rejoined(self, view: RunView) -> RunView:
        """An open run that nobody drives any more is taken up again before somebody waits for it."""
        run_id = view.header.run_id
        if view.finished is None and (await self.look(run_id)).status == "interrupted":
            try:
                await self.resume(run_id)
            except LockHeld:
                self.services.log.info("run is taken up by another process", operation_id=run_id)
        return view

    async def _join_holder(self, header: RunHeader, held: LockHeld) -> RunView:
        """The same request may be under way, or have arrived twice at once: give its first copy a moment to write its
        journal. What was open when this request was made is joined, even when it has ended by now."""
        run_id = held.detail.get("operationId")
        for _ in range(20 if header.dedupe or header.kind in JOINED_WHILE_OPEN else 0):
            if (earlier := await self._joinable(header)) is not None:
                return earlier
            if run_id is None:
                break
            try:
                holder = await self.services.registry.journals.open(run_id)
            except NotFound:
                await asyncio.sleep(0.05)
                continue
            again = repeats(header, holder.header) and not holder.cancel_requested()
            if set(holder.header.dedupe).isdisjoint(header.dedupe) and (not again or ended_before(holder, header)):
                break
            await remember(self.services, header, run_id)
            return await self._rejoined(self.view(holder, joined=True))
        raise occupied(held)

    async def _require_alone(self, header: RunHeader) -> None:
        """Runs of a whole project and runs of its environments exclude each other: both take their own lease first and
        look for the other's then, so that whoever comes second sees the first. Raises LockHeld."""
        others = [None] if header.environment else [environment.value for environment in Environment]
        for environment in others:
            other = await self.services.store.lease(lease_name(header.project, environment))
            if other is not None:
                raise held_by(other)

    async def _settle(self, header: RunHeader, lease: Lease) -> RunView | None:
        """Runs that a crash left open on this environment (or in this project, for a run of all of it) are undone before a
        new one begins; one that the same request began is answered instead, to be joined. Raises LockHeld when somebody
        works on the project meanwhile, or it is half deleted."""
        await self._require_alone(header)
        for run_id in await self.services.registry.journals.open_runs():
            journal = await self._legible(run_id)
            if journal is None or journal.finished() or journal.header.project != header.project:
                continue
            environment = journal.header.environment
            if environment == header.environment:
                await self._stand_down(journal)
                if repeats(header, journal.header) and not journal.finished() and not journal.cancel_requested():
                    await remember(self.services, header, run_id)
                    return self.view(journal, joined=True)
                await self._undo(journal, lease)
            elif header.environment is None:
                theirs = await self.services.store.acquire(lease_name(header.project, environment), f"run:{run_id}")
                try:
                    await self._stand_down(journal)
                    await self._undo(journal, theirs)
                finally:
                    await self.services.store.release(theirs)
            elif environment is None:
                hint = "It is taken up again by itself; see operation_get."
                raise LockHeld(f"{header.project} is being deleted", hint=hint, operationId=run_id)
        return None

    async def _legible(self, run_id: str) -> Journal | None:
        """The journal; None for a damaged one, which must not keep other environments from working."""
        try:
            return await self.services.registry.journals.open(run_id)
        except RegistryDamaged as error:
            self.services.log.error("a run's journal is damaged", operation_id=run_id, problem=error.message)
            return None

    async def _stand_down(self, journal: Journal) -> None:
        """A run that has lost its lease is driven no more, also not by this process."""
        former = self._live.get(journal.header.run_id)
        if former is not None and former.task is not None:
            former.task.cancel()
            await asyncio.wait({former.task})
            await journal.reload()

    async def _undo(self, journal: Journal, lease: Lease) -> None:
        """Bring a run to its end that nobody drives."""
        if journal.finished():
            return
        life = Life(self.services, journal, lease, self._ended)
        life.stop.ask(Failed("cancelled", "a later run took its place", "Nothing to do."))
        await life.drive()

    def _spawn(self, journal: Journal, lease: Lease) -> Life:
        run_id = journal.header.run_id
        life = self._live[run_id] = Life(self.services, journal, lease, self._ended)
        life.begin()
        if life.task is not None:
            life.task.add_done_callback(lambda _: self._live.pop(run_id, None))
        return life

    def _ended(self, journal: Journal) -> None:
        for tell in self._watchers:
            tell(self.view(journal))

    # ── look, wait, cancel, resume ──────────────────────────────────────────────────────────────────────────────

    def view(self, journal: Journal, *, joined: bool = False) -> RunView:
        """The run as it stands in the journal."""
        finished = journal.finished()
        status = "running"
        if finished is not None:
            status = "succeeded" if finished.get("ok") else "failed"
        planned = journal.planned() or {}
        looked = [{**step, "status": "success"} for step in planned.get("looked", [])]
        steps = [*looked, *(shown_step(step) for step in journal.steps())]
        return RunView(journal.header, status, steps, finished, joined)

    async def look(self, run: str | Journal) -> RunView:
        """The run, by its id or by its journal; one that nobody drives any more shows as interrupted."""
        journal = run if isinstance(run, Journal) else await self.services.registry.journals.open(run)
        view, run_id = self.view(journal), journal.header.run_id
        if view.status == "running" and run_id not in self._live:
            lease = await self.services.store.lease(lease_name(journal.header.project, journal.header.environment))
            if lease is None or lease.owner != f"run:{run_id}":
                again = self.view(await self.services.registry.journals.open(run_id))
                return again if again.finished else RunView(view.header, "interrupted", view.steps, None)
        return view

    async def wait(self, run_id: str, progress: Progress = unheard, *, joined: bool = False) -> RunView:
        """The run at its end. Raises its failure; DriverUnavailable when it had to stay open."""
        live = self._live.get(run_id)
        if live is not None and live.task is not None:
            live.listeners.append(progress)
            try:
                await asyncio.wait({live.task})
            finally:
                live.listeners.remove(progress)
        view = self.view(live.journal) if live and live.journal.finished() else await self.look(run_id)
        while view.status == "running":
            await asyncio.sleep(POLL_SECONDS)
            view = await self.look(run_id)
        if (error := view.error()) is not None:
            raise error
        if view.status == "interrupted":
            raise DriverUnavailable(
                f"run {run_id} could not be brought to an end yet{why_open(view.steps)}",
                hint=how_to_go_on(view.header),
                operationId=run_id,
                steps=view.steps,
            )
        return RunView(view.header, view.status, view.steps, view.finished, joined)

    async def cancel(self, run_id: str, by: str) -> RunView:
        """Ask the run to stop and undo; raises Conflict when it has already ended."""
        journal = await self.services.registry.journals.open(run_id)
        if journal.finished() is not None:
            raise Conflict(f"run {run_id} has already ended", hint="Look at it with operation_get.")
        await journal.request_cancel(by)
        if (live := self._live.get(run_id)) is not None:
            live.stop.ask(CANCELLED)
        elif (await self.look(run_id)).status == "interrupted":
            await self.resume(run_id)
        return await self.look(run_id)

    async def resume(self, run_id: str) -> RunView:
        """Take up a run that a crash or an unreachable driver left open. Raises LockHeld while somebody drives it."""
        if run_id in self._live:
            return await self.look(run_id)
        journal = await self.services.registry.journals.open(run_id)
        if journal.finished() is not None:
            return self.view(journal)
        name = lease_name(journal.header.project, journal.header.environment)
        lease = await self.services.store.acquire(name, f"run:{run_id}")
        try:
            await self._require_alone(journal.header)
            await journal.reload()
        except BaseException:
            await self.services.store.release(lease)
            raise
        if journal.finished() is not None:
            await self.services.store.release(lease)
            return self.view(journal)
        live = self._spawn(journal, lease)
        if journal.cancel_requested():
            live.stop.ask(CANCELLED)
        return self.view(journal)

    async def resume_all(self) -> list[str]:
        """Take up every open run that nobody drives; answers their ids."""
        taken = []
        for run_id in await self.services.registry.journals.open_runs():
            try:
                if run_id not in self._live and (await self.resume(run_id)).finished is None:
                    taken.append(run_id)
            except (LockHeld, NotFound):
                continue
            except CodebError as error:
                self.services.log.warning("run cannot be taken up", operation_id=run_id, problem=error.message)
        return taken

    async def close(self) -> None:
        """Stop driving; what is not finished stays open in its journal and is taken up at the next start."""
        lives, tasks = list(self._live.values()), self._tasks()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for life in lives:  # one that was cancelled before its first step could not do so itself
            await life.let_go()

    async def drain(self) -> None:
        """Wait until every run of this process has ended."""
        while tasks := self._tasks():
            await asyncio.wait(tasks)

    def _tasks(self) -> list[asyncio.Task[None]]:
        return [live.task for live in self._live.values() if live.task is not None]


def shown_step(step: Mapping[str, Any]) -> dict[str, Any]:
    """A journalled step as callers know it: name, status, duration in ms, output or error."""
    shown = {"name": step["name"], "status": step["status"]}
    if step.get("duration_ms") is not None:
        shown["duration"] = round(step["duration_ms"], 1)
    if step.get("error"):
        return {**shown, "error": step["error"]["message"]}
    return {**shown, "output": step["says"]} if step.get("says") else shown
