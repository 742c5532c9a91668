"""The deploy machine: put a release into the idle slot and prove it healthy, or leave no trace.

Each step's name on the wire is one of those existing workflows read (`pull_image`, `cleanup_container`, …). A failure at
any point removes the new container and its record; the live slot is never touched by any path through the table.

Steps that write the registry cannot be cancelled half-way: whether the write came through would then be unknown.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Self

from pydantic import BaseModel, ConfigDict

from codeb_mcp.model.machine import Action, Done, Failed, Outcome
from codeb_mcp.model.names import Environment, Slot, Version, container_name, environment_key
from codeb_mcp.model.project import HealthCheck, Limits, PullPolicy
from codeb_mcp.model.traffic import Switch, SwitchPlan


class Phase(StrEnum):
    """Where a deploy stands."""

    PULLING = "pulling"
    EMPTYING = "emptying"
    CLEANING = "cleaning"
    STARTING = "starting"
    CHECKING = "checking"
    RECORDING = "recording"
    PUBLISHING = "publishing"
    PROMOTING = "promoting"
    FORGETTING = "forgetting"
    UNDOING = "undoing"
    READY = "ready"
    FAILED = "failed"


P = Phase
NEXT: Mapping[tuple[Phase, bool], Phase] = {
    (P.PULLING, True): P.EMPTYING,
    (P.PULLING, False): P.FAILED,
    (P.EMPTYING, True): P.CLEANING,
    (P.EMPTYING, False): P.FAILED,
    (P.CLEANING, True): P.STARTING,
    (P.CLEANING, False): P.UNDOING,
    (P.STARTING, True): P.CHECKING,
    (P.STARTING, False): P.UNDOING,
    (P.CHECKING, True): P.RECORDING,
    (P.CHECKING, False): P.UNDOING,
    (P.RECORDING, True): P.PUBLISHING,
    (P.RECORDING, False): P.FORGETTING,
    (P.PUBLISHING, True): P.READY,
    (P.PUBLISHING, False): P.READY,
    (P.FORGETTING, True): P.UNDOING,
    (P.UNDOING, True): P.FAILED,
}


class DeployPlan(BaseModel):
    """Everything a deploy decided before its first effect. `replaces`: the slot held something that must go first."""

    model_config = ConfigDict(frozen=True, defer_build=True)

    run_id: str
    project: str
    team: str
    environment: Environment
    slot: Slot
    port: int
    container_port: int
    image: str
    version: Version
    pull_policy: PullPolicy
    health_check: HealthCheck
    limits: Limits
    by: str
    replaces: bool
    skip_healthcheck: bool = False
    promotion: SwitchPlan | None = None

    @property
    def key(self) -> str:
        """`{project}-{environment}`."""
        return environment_key(self.project, self.environment)

    @property
    def container(self) -> str:
        """The container's name."""
        return container_name(self.project, self.environment, self.slot)


@dataclass(frozen=True, slots=True)
class Deploy:
    """One deploy. `pulled` and `proven` are what the engine and the health check told."""

    plan: DeployPlan
    phase: Phase = Phase.PULLING
    pulled: Mapping[str, Any] = field(default_factory=dict)
    started: Mapping[str, Any] = field(default_factory=dict)
    proven: Mapping[str, Any] = field(default_factory=dict)
    published: Mapping[str, Any] = field(default_factory=dict)
    promotion: Switch | None = None
    failure: Failed | None = None

    @property
    def result(self) -> Mapping[str, Any]:
        """Slot, port, version, image, digest, health path and what the promotion said."""
        facts = {
            "slot": self.plan.slot.value,
            "port": self.plan.port,
            "version": self.plan.version,
            "image": self.plan.image,
            "digest": self.pulled.get("digest"),
            "healthPath": self.proven.get("path"),
            "published": dict(self.published),
        }
        return facts | ({"promotion": dict(self.promotion.result)} if self.promotion else {})

    def action(self) -> Action | None:
        """The step of the present phase."""
        if self.phase is Phase.PROMOTING and self.promotion is not None:
            return self.promotion.action()
        build = _ACTIONS.get(self.phase)
        return build(self) if build else None

    def advance(self, outcome: Outcome) -> Self:
        """The deploy after this outcome; raises ValueError when it has already ended."""
        if self.phase is Phase.PROMOTING and self.promotion is not None:
            return self._promoted(self.promotion.advance(outcome))
        done = isinstance(outcome, Done)
        if (self.phase, done) not in NEXT:
            raise ValueError(f"a deploy that is {self.phase} cannot take {outcome!r}")
        after = P.FORGETTING if self._is_called_off(outcome) else NEXT[self.phase, done]
        following = self._settled(replace(self, phase=after, **self._learnt(outcome)))
        if following.phase is Phase.READY and self.plan.promotion is not None:
            return replace(following, phase=Phase.PROMOTING, promotion=Switch(following._promotion_plan()))
        return following

    def _is_called_off(self, outcome: Outcome) -> bool:
        """A preview that does not answer is a warning; a cancel at that step still undoes the deploy, and so does a proxy
        that serves the release without having been told to."""
        if self.phase is not P.PUBLISHING or not isinstance(outcome, Failed):
            return False
        return outcome.code == "cancelled" or outcome.detail.get("reason") == "flags_unseen"

    def _learnt(self, outcome: Outcome) -> dict[str, Any]:
        if isinstance(outcome, Failed):
            warns = self.phase is P.PUBLISHING and not self._is_called_off(outcome)
            return {"published": {"problem": outcome.message}} if warns else {"failure": outcome}
        slot = {P.PULLING: "pulled", P.STARTING: "started", P.CHECKING: "proven", P.PUBLISHING: "published"}
        return {slot[self.phase]: outcome.data} if self.phase in slot else {}

    def _settled(self, after: Self) -> Self:
        """Skip what this plan has no need of."""
        if after.phase is Phase.EMPTYING and not self.plan.replaces:
            return replace(after, phase=Phase.CLEANING)
        return after

    def _promotion_plan(self) -> SwitchPlan:
        if self.plan.promotion is None:
            raise ValueError("this deploy promotes nothing")
        return self.plan.promotion.model_copy(
            update={
                "digest": self.pulled.get("digest"),
                "image_id": self.pulled.get("imageId"),
                "health_path": self.proven.get("path"),
            }
        )

    def _promoted(self, promotion: Switch) -> Self:
        if promotion.action() is not None:
            return replace(self, promotion=promotion)
        end = Phase.FAILED if promotion.failure else Phase.READY
        return replace(self, promotion=promotion, phase=end, failure=promotion.failure)


def _pull(d: Deploy) -> Action:
    return Action(
        "pull_image", "pull_image", {"key": d.plan.key, "image": d.plan.image, "policy": d.plan.pull_policy, "project": d.plan.project},
        deadline_seconds=900, says=f"pull {d.plan.image}",
    )  # fmt: skip


def _empty(d: Deploy) -> Action:
    says = f"empty slot {d.plan.slot} in the registry"
    detail = {"key": d.plan.key, "slot": d.plan.slot.value}
    return Action("empty_slot", "cleanup_container", detail, cancellable=False, says=says)


def _clean(d: Deploy) -> Action:
    detail = {"key": d.plan.key, "name": d.plan.container, "stopTimeout": d.plan.limits.stop_timeout_seconds}
    deadline = 30 + d.plan.limits.stop_timeout_seconds
    return Action(
        "remove_container", "cleanup_container", detail,
        deadline_seconds=deadline, says=f"remove what is left of {d.plan.container}",
    )  # fmt: skip


def _forget(d: Deploy) -> Action:
    says = f"strike {d.plan.version} from slot {d.plan.slot} again"
    return replace(_empty(d), step="update_registry", undo=True, says=says)


def _undo(d: Deploy) -> Action:
    action = _clean(d)
    return replace(action, undo=True, says=f"take {d.plan.container} away again")


def _start(d: Deploy) -> Action:
    detail = {
        "key": d.plan.key, "name": d.plan.container, "project": d.plan.project, "environment": d.plan.environment.value,
        "slot": d.plan.slot.value, "team": d.plan.team, "version": d.plan.version, "run": d.plan.run_id,
        "imageId": d.pulled.get("imageId"), "reference": d.pulled.get("reference"), "digest": d.pulled.get("digest"),
        "hostPort": d.plan.port, "containerPort": d.plan.container_port, "limits": d.plan.limits.model_dump(mode="json"),
    }  # fmt: skip
    return Action("start_container", "start_container", detail, says=f"start {d.plan.container} on port {d.plan.port}")


def _check(d: Deploy) -> Action:
    health = d.plan.health_check
    detail = {
        "key": d.plan.key, "name": d.plan.container, "port": d.plan.port, "skip": d.plan.skip_healthcheck,
        "health": health.model_dump(mode="json"),
    }  # fmt: skip
    says = "skip the health check" if d.plan.skip_healthcheck else f"wait for {' or '.join(health.paths)}"
    return Action(
        "check_health", "health_check", detail, deadline_seconds=health.deadline_seconds + 10, says=says
    )  # fmt: skip


def _record(d: Deploy) -> Action:
    release = {
        "version": d.plan.version, "image": d.plan.image, "digest": d.pulled.get("digest"), "image_id": d.pulled.get("imageId"),
        "container_name": d.plan.container, "run_id": d.plan.run_id, "health_path": d.proven.get("path"),
        "health_status": "unknown" if d.plan.skip_healthcheck else "healthy", "env_hash": d.started.get("envHash"),
    }  # fmt: skip
    detail = {"key": d.plan.key, "slot": d.plan.slot.value, "by": d.plan.by, "release": release}
    says = f"write slot {d.plan.slot} into the registry"
    return Action("record_release", "update_registry", detail, cancellable=False, says=says)


def _publish(d: Deploy) -> Action:
    detail = {"key": d.plan.key, "slot": d.plan.slot.value}
    return Action("publish_preview", "publish_preview", detail, says="make the preview address answer")


_ACTIONS = {
    P.PULLING: _pull, P.EMPTYING: _empty, P.CLEANING: _clean, P.STARTING: _start, P.CHECKING: _check,
    P.RECORDING: _record, P.PUBLISHING: _publish, P.FORGETTING: _forget, P.UNDOING: _undo,
}  # fmt: skip
