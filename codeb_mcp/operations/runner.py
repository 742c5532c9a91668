"""Runs any machine on a journal, and resumes one.

Intent is durable before an effect, the outcome is durable before the next decision. A resume replays the outcomes and
repeats at most the one step that was in doubt, which is harmless because every action says a wish.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from codeb_mcp.model.errors import Bug, CodebError, LeaseLost, RegistryDamaged
from codeb_mcp.model.machine import Action, Done, Failed, Machine, Outcome
from codeb_mcp.registry.journal import Journal

UNDO_TRIES = 3
UNDO_PAUSE_SECONDS = 0.5

Perform = Callable[[Action], Awaitable[Mapping[str, Any]]]
Listener = Callable[[int, Action, str, str], None]
"""Called with the step's number, the action, its status (started, completed, failed) and what went wrong."""
SumUp = Callable[[Machine], Mapping[str, Any]]
"""What to keep of a machine that has ended."""


@dataclass(slots=True)
class Stop:
    """The wish to stop: `asked` is set by a cancel or by the run's deadline, `why` says which."""

    asked: asyncio.Event = field(default_factory=asyncio.Event)
    why: Failed | None = None

    def ask(self, why: Failed) -> None:
        """Ask once; later wishes change nothing."""
        if not self.asked.is_set():
            self.why = why
            self.asked.set()


async def drive(
    machine: Machine, journal: Journal, perform: Perform, listen: Listener, stop: Stop, sum_up: SumUp
) -> Machine:
    """The machine at its end, which is written with the last outcome. Raises the driver's error when an undo step cannot be done now: the run then stays open and
    is resumed later. Raises LeaseLost when another run has taken over."""
    machine, step = replay(machine, journal)
    action = machine.action()
    if action is not None and journal.in_doubt() is None:
        await journal.intend(step, action)
    while action is not None:
        listen(step, action, "started", "")
        outcome = await attempt(action, perform, stop)
        machine = machine.advance(outcome)
        following = machine.action()
        then = (step + 1, following) if following is not None else None
        end = sum_up(machine) if following is None else None
        await journal.record(step, action.name, outcome, then=then, end=end)
        failed = isinstance(outcome, Failed)
        listen(
            step, action, "failed" if failed else "completed", outcome.message if isinstance(outcome, Failed) else ""
        )
        step, action = step + 1, following
    return machine


def replay(machine: Machine, journal: Journal) -> tuple[Machine, int]:
    """The machine after all journalled outcomes, and the number of the next step; raises RegistryDamaged when the journal
    tells of another run than the plan."""
    outcomes = journal.outcomes()
    for number, (name, outcome) in enumerate(outcomes):
        action = machine.action()
        if action is None or action.name != name:
            raise RegistryDamaged(
                f"the journal of {journal.header.run_id} has step {number} {name}, the plan has "
                f"{action.name if action else 'ended'}",
                hint="The run was written by another version; cancel it with operation_cancel.",
            )
        machine = machine.advance(outcome)
    return machine, len(outcomes)


async def attempt(action: Action, perform: Perform, stop: Stop) -> Outcome:
    """Do one step within its deadline. A refusal becomes Failed; an undo step is tried again and then raises."""
    if action.undo:
        return await _undo(action, perform)
    if not action.cancellable:
        return await _once(action, perform)
    if stop.asked.is_set() and stop.why is not None:
        return stop.why
    return await _unless_stopped(action, perform, stop)


async def _unless_stopped(action: Action, perform: Perform, stop: Stop) -> Outcome:
    work = asyncio.ensure_future(_once(action, perform))
    asked = asyncio.ensure_future(stop.asked.wait())
    try:
        await asyncio.wait({work, asked}, return_when=asyncio.FIRST_COMPLETED)
        if work.done() or stop.why is None:
            return await work
        work.cancel()
        await asyncio.wait({work})
        return stop.why
    finally:
        for task in (work, asked):
            task.cancel()
        await asyncio.gather(work, asked, return_exceptions=True)


async def _undo(action: Action, perform: Perform) -> Outcome:
    for left in reversed(range(UNDO_TRIES)):
        outcome = await _once(action, perform)
        if isinstance(outcome, Done):
            return outcome
        if left == 0:
            from codeb_mcp.model.errors import from_code

            raise from_code(outcome.code, outcome.message, hint=outcome.hint, **outcome.detail)
        await asyncio.sleep(UNDO_PAUSE_SECONDS)
    raise Bug("an undo step was never tried")


async def _once(action: Action, perform: Perform) -> Outcome:
    try:
        async with asyncio.timeout(action.deadline_seconds):
            return Done(await perform(action))
    except LeaseLost:
        raise
    except CodebError as error:
        return Failed(error.code, error.message, error.hint, error.detail)
    except TimeoutError:
        seconds = f"{action.deadline_seconds:g}"
        return Failed("timeout", f"{action.step} took longer than {seconds} seconds", "Try again, or look at the logs.")
