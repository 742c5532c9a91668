"""The switch machine: promote and roll back are the same run with another target.

Success means that a request over the public route reached the new slot. Anything less is taken back, so there are two
legal ends: the new slot serves and the registry says so, or the former one serves and the registry never changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict

from codeb_mcp.model.machine import Action, Done, Failed, Outcome
from codeb_mcp.model.names import Environment, Slot, environment_key
from codeb_mcp.model.project import HealthCheck


class Phase(StrEnum):
    """Where a switch stands."""

    CHECKING = "checking"
    ROUTING = "routing"
    LOOKING = "looking"
    SWITCHING = "switching"
    VERIFYING = "verifying"
    RECORDING = "recording"
    DRAINING = "draining"
    REVERTING = "reverting"
    SWITCHED = "switched"
    FAILED = "failed"


P = Phase
NEXT: Mapping[tuple[Phase, bool], Phase] = {
    (P.CHECKING, True): P.ROUTING,
    (P.CHECKING, False): P.FAILED,
    (P.ROUTING, True): P.LOOKING,
    (P.ROUTING, False): P.FAILED,
    (P.LOOKING, True): P.SWITCHING,
    (P.LOOKING, False): P.FAILED,
    (P.SWITCHING, True): P.VERIFYING,
    (P.SWITCHING, False): P.REVERTING,
    (P.VERIFYING, True): P.RECORDING,
    (P.VERIFYING, False): P.REVERTING,
    (P.RECORDING, True): P.DRAINING,
    (P.RECORDING, False): P.REVERTING,
    (P.DRAINING, True): P.SWITCHED,
    (P.DRAINING, False): P.SWITCHED,
    (P.REVERTING, True): P.FAILED,
}


class SwitchPlan(BaseModel):
    """Everything a switch decided before its first effect. `digest` and `image_id` None: filled in by the deploy before
    it. `routed`: the proxy was seen to know both slots. `look_first`: a proxy that sees no flags would send to this slot anyway,
    so that an answer of it proves something only when there was none before."""

    model_config = ConfigDict(frozen=True, defer_build=True)

    kind: Literal["promote", "rollback"]
    run_id: str
    project: str
    environment: Environment
    from_slot: Slot | None
    to_slot: Slot
    to_port: int
    from_port: int | None
    container: str
    version: str | None
    previous_version: str | None
    digest: str | None
    image_id: str | None
    health_path: str | None
    health_check: HealthCheck
    hosts: tuple[str, ...]
    by: str
    grace_hours: float
    drain_seconds: float = 0
    routed: bool = False
    look_first: bool = False
    reason: str = ""

    @property
    def key(self) -> str:
        """`{project}-{environment}`."""
        return environment_key(self.project, self.environment)


@dataclass(frozen=True, slots=True)
class Switch:
    """One promote or rollback."""

    plan: SwitchPlan
    phase: Phase = Phase.CHECKING
    seen: Mapping[str, Any] = field(default_factory=dict)
    drained: Mapping[str, Any] = field(default_factory=dict)
    recorded: Mapping[str, Any] = field(default_factory=dict)
    failure: Failed | None = None

    @property
    def result(self) -> Mapping[str, Any]:
        """Slots, versions, digest and what the drain saw."""
        return {
            "fromSlot": self.plan.from_slot.value if self.plan.from_slot else None,
            "toSlot": self.plan.to_slot.value,
            "previousVersion": self.plan.previous_version,
            "newVersion": self.plan.version,
            "digest": self.plan.digest,
            "hosts": list(self.plan.hosts),
            "drain": dict(self.drained),
            "graceExpiresAt": self.recorded.get("graceExpiresAt"),
        }

    def action(self) -> Action | None:
        """The step of the present phase."""
        build = _ACTIONS.get(self.phase)
        return build(self.plan) if build else None

    def advance(self, outcome: Outcome) -> Self:
        """The switch after this outcome; raises ValueError when it has already ended."""
        done = isinstance(outcome, Done)
        if (self.phase, done) not in NEXT:
            raise ValueError(f"a switch that is {self.phase} cannot take {outcome!r}")
        after = replace(self, phase=self._skipped(NEXT[self.phase, done]))
        if isinstance(outcome, Failed):
            return after if self.phase is P.DRAINING else replace(after, failure=_explained(self.phase, outcome))
        learnt: Mapping[Phase, str] = {P.CHECKING: "seen", P.RECORDING: "recorded", P.DRAINING: "drained"}
        update: dict[str, Any] = {learnt[self.phase]: outcome.data} if self.phase in learnt else {}
        return replace(after, **update)

    def _skipped(self, phase: Phase) -> Phase:
        """Past the phases that this plan has no need of."""
        if phase is P.ROUTING and self.plan.routed:
            phase = P.LOOKING
        if phase is P.LOOKING and not self.plan.look_first:
            return P.SWITCHING
        return P.SWITCHED if phase is P.DRAINING and not self.plan.drain_seconds else phase


def _explained(phase: Phase, failed: Failed) -> Failed:
    """A failure after the switch says that the switch was taken back."""
    if phase in (P.CHECKING, P.ROUTING, P.LOOKING) or failed.code in ("cancelled", "lease_lost"):
        return failed
    hint = f"Traffic was switched back. {failed.hint}".strip()
    return Failed("switch_reverted", failed.message, hint, {**failed.detail, "cause": failed.code})


def _check(plan: SwitchPlan) -> Action:
    health = plan.health_check
    if plan.health_path:
        health = health.model_copy(update={"path": plan.health_path})
    detail = {
        "key": plan.key, "name": plan.container, "port": plan.to_port, "imageId": plan.image_id,
        "health": {**health.model_dump(mode="json"), "deadline_seconds": min(health.deadline_seconds, 15.0)},
    }  # fmt: skip
    return Action("check_target", "check_target", detail, says=f"ask slot {plan.to_slot} whether it is healthy")


def _route(plan: SwitchPlan) -> Action:
    detail = {"key": plan.key}
    return Action("ensure_route", "ensure_route", detail, says="see that the proxy knows both slots")


def _look(plan: SwitchPlan) -> Action:
    path = plan.health_path or plan.health_check.paths[0]
    detail = {"key": plan.key, "host": plan.hosts[0], "path": path}
    return Action("check_flags", "check_flags", detail, says="see that the proxy sees the traffic flags")


def _switch(plan: SwitchPlan) -> Action:
    detail = {"key": plan.key, "slot": plan.to_slot.value}
    return Action("switch_traffic", "switch_traffic", detail, says=f"send traffic to {plan.to_slot}")


def _verify(plan: SwitchPlan) -> Action:
    health = plan.health_check
    detail = {
        "key": plan.key, "hosts": list(plan.hosts), "slot": plan.to_slot.value, "name": plan.container, "imageId": plan.image_id,
        "paths": [plan.health_path] if plan.health_path else list(health.paths),
        "expected": list(health.expected_statuses),
    }  # fmt: skip
    return Action("verify_public", "verify_public", detail, says="ask the public address and see who answers")


def _record(plan: SwitchPlan) -> Action:
    detail: dict[str, Any] = {
        "key": plan.key,
        "slot": plan.to_slot.value,
        "by": plan.by,
        "graceHours": plan.grace_hours,
    }
    # Not cancellable: a write that came through and was then taken for cancelled would part registry and traffic.
    says = f"write {plan.to_slot} as active"
    return Action("record_switch", "update_registry", detail, cancellable=False, says=says)


def _drain(plan: SwitchPlan) -> Action:
    detail = {"key": plan.key, "port": plan.from_port, "seconds": plan.drain_seconds}
    deadline = plan.drain_seconds + 10
    return Action("drain", "drain", detail, deadline_seconds=deadline, says="count requests still on the former slot")


def _revert(plan: SwitchPlan) -> Action:
    detail = {"key": plan.key, "slot": plan.from_slot.value if plan.from_slot else None}
    back_to = plan.from_slot.value if plan.from_slot else "nothing"
    return Action("switch_traffic", "revert_traffic", detail, undo=True, says=f"send traffic back to {back_to}")


_ACTIONS = {
    P.CHECKING: _check, P.ROUTING: _route, P.LOOKING: _look, P.SWITCHING: _switch, P.VERIFYING: _verify, P.RECORDING: _record,
    P.DRAINING: _drain, P.REVERTING: _revert,
}  # fmt: skip
