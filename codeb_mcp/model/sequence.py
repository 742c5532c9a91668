"""A run without branches: steps in order, each of which must happen in the end.

Used where going back would be worse than going on (emptying a slot, deleting a project). A step marked `soft` only adds
a warning when it fails.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from codeb_mcp.model.machine import Action, Failed, Outcome


@dataclass(frozen=True, slots=True)
class Step:
    """An action and whether the run may go on without it."""

    action: Action
    soft: bool = False


@dataclass(frozen=True, slots=True)
class Sequence:
    """Steps, and how far they have come. `facts`: what each step told, by action name."""

    steps: tuple[Step, ...]
    position: int = 0
    facts: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    failure: Failed | None = None

    @property
    def result(self) -> Mapping[str, Any]:
        """What the steps told, and the warnings of soft ones."""
        return {"facts": dict(self.facts), "warnings": list(self.warnings)}

    def action(self) -> Action | None:
        """The present step's action; None at the end or after a failure."""
        return None if self.failure or self.position >= len(self.steps) else self.steps[self.position].action

    def advance(self, outcome: Outcome) -> Self:
        """The sequence after this outcome; raises ValueError when it has already ended."""
        if self.action() is None:
            raise ValueError("this sequence has ended")
        step = self.steps[self.position]
        if isinstance(outcome, Failed):
            if not step.soft or outcome.code == "cancelled":
                return replace(self, failure=outcome)
            return replace(self, position=self.position + 1, warnings=(*self.warnings, outcome.message))
        facts = {**self.facts, step.action.name: dict(outcome.data)}
        return replace(self, position=self.position + 1, facts=facts)


def retirement(key: str, slot: str, *, port: int, container: str, drain_seconds: float, stop_timeout: int) -> Sequence:
    """Take a slot without live traffic away: drain, strike it from the registry, stop and remove its container. The
    registry comes first so that it never names a way back that is gone."""
    return Sequence(
        (
            Step(
                Action(
                    "drain", "drain", {"key": key, "port": port, "seconds": drain_seconds},
                    deadline_seconds=drain_seconds + 10, says=f"let slot {slot} finish its requests",
                ),
                soft=True,
            ),
            Step(Action("empty_slot", "empty_slot", {"key": key, "slot": slot}, cancellable=False, says=f"mark slot {slot} empty")),
            Step(
                Action(
                    "remove_container", "remove_container", {"key": key, "name": container, "stopTimeout": stop_timeout},
                    deadline_seconds=30 + stop_timeout, undo=True, says=f"stop and remove {container}",
                )
            ),
        )
    )  # fmt: skip
