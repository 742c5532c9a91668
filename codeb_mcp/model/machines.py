"""Machines as JSON and back: what a journal keeps of a plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from codeb_mcp.model.deploy import Deploy, DeployPlan
from codeb_mcp.model.machine import Action, Machine
from codeb_mcp.model.sequence import Sequence, Step
from codeb_mcp.model.traffic import Switch, SwitchPlan


def machine_to_json(machine: Machine) -> dict[str, Any]:
    """The machine's starting point; raises TypeError for a kind that cannot be journalled."""
    match machine:
        case Deploy():
            return {"kind": "deploy", "plan": machine.plan.model_dump(mode="json")}
        case Switch():
            return {"kind": "switch", "plan": machine.plan.model_dump(mode="json")}
        case Sequence():
            return {"kind": "sequence", "steps": [asdict(step) for step in machine.steps]}
    raise TypeError(f"{type(machine).__name__} cannot be journalled")


def machine_from_json(doc: Mapping[str, Any]) -> Machine:
    """The machine at its starting point; raises ValueError when the document describes none."""
    match doc.get("kind"):
        case "deploy":
            return Deploy(DeployPlan.model_validate(doc["plan"]))
        case "switch":
            return Switch(SwitchPlan.model_validate(doc["plan"]))
        case "sequence":
            return Sequence(tuple(Step(Action(**step["action"]), soft=step["soft"]) for step in doc["steps"]))
    raise ValueError(f"{doc.get('kind')!r} is no kind of machine")
