"""What a pure machine speaks: actions it wants done, outcomes it is told.

A machine is a frozen value. `action()` says what to do next (None: it has ended), `advance(outcome)` answers the machine
that follows. Walking it with `Done` is the plan; walking it with journalled outcomes is a resume.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, Self


@dataclass(frozen=True, slots=True)
class Action:
    """One step. `name` is stable and journalled; `step` is the name callers see; `detail` is JSON.

    `undo` steps are never cancelled and are repeated until they succeed, because they restore a legal state. A step that
    is not `cancellable` runs to its end even when the caller has asked to stop.
    """

    name: str
    step: str
    detail: Mapping[str, Any] = field(default_factory=dict)
    deadline_seconds: float = 60.0
    undo: bool = False
    cancellable: bool = True
    says: str = ""


@dataclass(frozen=True, slots=True)
class Done:
    """The step has happened; `data` is JSON that later decisions may use."""

    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Failed:
    """The step was refused, came to nothing or ran out of time; the fields are those of a CodebError."""

    code: str
    message: str
    hint: str = ""
    detail: Mapping[str, Any] = field(default_factory=dict)


Outcome = Done | Failed


class Machine(Protocol):
    """A deploy, a switch, a retirement: any run that must survive a crash."""

    def action(self) -> Action | None:
        """The next step, or None at the end."""
        ...

    def advance(self, outcome: Outcome) -> Self:
        """The machine after the present step had this outcome."""
        ...

    @property
    def failure(self) -> Failed | None:
        """Why the run did not reach its goal; None for a success or while it is running."""
        ...

    @property
    def result(self) -> Mapping[str, Any]:
        """JSON facts about the end, for the caller's answer."""
        ...


def walk(machine: Machine) -> list[Action]:
    """The steps of the run if every one succeeds: the plan, taken from the thing that is executed."""
    actions = []
    while (action := machine.action()) is not None:
        actions.append(action)
        machine = machine.advance(Done())
    return actions
