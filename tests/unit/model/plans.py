"""Plans and slots as values, for tests of the machines."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from codeb_mcp.model.deploy import DeployPlan
from codeb_mcp.model.machine import Action, Machine, Outcome
from codeb_mcp.model.sequence import Sequence, Step, retirement
from codeb_mcp.model.traffic import SwitchPlan

NOW = datetime(2026, 1, 7, tzinfo=UTC)

SWITCH: Mapping[str, Any] = {
    "kind": "promote", "run_id": "op_1", "project": "worb", "environment": "production", "from_slot": "blue",
    "to_slot": "green", "to_port": 4001, "from_port": 4000, "container": "worb-production-green", "version": "v2",
    "previous_version": "v1", "digest": "sha256:d", "image_id": "sha256:i", "health_path": "/health",
    "health_check": {}, "hosts": ["worb.example.com"], "by": "key_1", "grace_hours": 48.0, "drain_seconds": 5,
}  # fmt: skip
DEPLOY: Mapping[str, Any] = {
    "run_id": "op_1", "project": "worb", "team": "default", "environment": "production", "slot": "green", "port": 4001,
    "container_port": 8080, "image": "ghcr.io/acme/worb:v2", "version": "v2", "pull_policy": "always",
    "health_check": {}, "limits": {}, "by": "key_1", "replaces": False,
}  # fmt: skip


def switch_plan(**changes: Any) -> SwitchPlan:
    """A promote from blue to green, with these fields changed."""
    return SwitchPlan.model_validate({**SWITCH, **changes})


def deploy_plan(*, promotion: Mapping[str, Any] | None = None, **changes: Any) -> DeployPlan:
    """A deploy to green; `promotion` holds changes to the switch that follows."""
    switch = None if promotion is None else {**SWITCH, "digest": None, "image_id": None, **promotion}
    return DeployPlan.model_validate({**DEPLOY, "promotion": switch, **changes})


def removal() -> Sequence:
    """Taking slot green away."""
    return retirement(
        "worb-production", "green", port=4001, container="worb-production-green", drain_seconds=5, stop_timeout=10
    )


def steps(*names: str, soft: tuple[str, ...] = ()) -> Sequence:
    """A sequence of steps with these names."""
    return Sequence(tuple(Step(Action(name, name, {"n": name}), soft=name in soft) for name in names))


def follow(machine: Machine, outcomes: list[Outcome]) -> tuple[Machine, list[Action]]:
    """The machine after these outcomes (or after as many as it takes), and the actions it asked for on the way."""
    actions = []
    for outcome in outcomes:
        action = machine.action()
        if action is None:
            break
        actions.append(action)
        machine = machine.advance(outcome)
    return machine, actions
