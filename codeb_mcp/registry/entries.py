"""What stands in a journal, translated: headers, intents, outcomes and the steps that callers see."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from codeb_mcp.model.errors import NotFound, RegistryDamaged
from codeb_mcp.model.machine import Action, Done, Failed, Outcome
from codeb_mcp.model.times import utc_text
from codeb_mcp.registry.lines import unseal

_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
_HEADER_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class RunHeader:
    """What is known of a run before it begins. `run_id` sorts by time; `dedupe` names calls that are one and the same;
    `request` and `caller` are JSON without secrets; `created_at` is aware."""

    run_id: str
    kind: str
    request: dict[str, Any]
    caller: dict[str, Any]
    team: str
    project: str
    environment: str | None
    created_at: datetime
    correlation_id: str
    dedupe: tuple[str, ...] = ()
    deadline_seconds: float = field(default=600.0)

    def __post_init__(self) -> None:
        check_run_id(self.run_id)

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "runId": self.run_id,
            "kind": self.kind,
            "request": plain(self.request),
            "caller": plain(self.caller),
            "team": self.team,
            "project": self.project,
            "environment": self.environment,
            "createdAt": utc_text(self.created_at),
            "correlationId": self.correlation_id,
            "dedupe": list(self.dedupe),
            "deadlineSeconds": self.deadline_seconds,
        }

    @classmethod
    def of(cls, doc: Mapping[str, Any]) -> RunHeader:
        """The inverse of `as_dict`; raises KeyError or ValueError."""
        return cls(
            run_id=doc["runId"],
            kind=doc["kind"],
            request=doc["request"],
            caller=doc["caller"],
            team=doc["team"],
            project=doc["project"],
            environment=doc["environment"],
            created_at=datetime.fromisoformat(doc["createdAt"]),
            correlation_id=doc["correlationId"],
            dedupe=tuple(doc["dedupe"] or ()),
            deadline_seconds=float(doc["deadlineSeconds"]),
        )

    @classmethod
    def read(cls, path: str, run_id: str) -> RunHeader:
        """The header in the first line of a journal; raises FileNotFoundError, `NotFound` for an impossible id, and
        `RegistryDamaged`."""
        check_run_id(run_id)
        with open(path, "rb") as file:
            line = file.readline(_HEADER_BYTES)
        try:
            header = cls.of(unseal(line.removesuffix(b"\n"))["header"])
        except (ValueError, KeyError, TypeError) as error:
            raise RegistryDamaged(
                f"the journal of run {run_id} is damaged in its first line: {error}",
                hint="Move it away; nothing is known of that run.",
                runId=run_id,
                path=path,
            ) from error
        if header.run_id != run_id:
            raise RegistryDamaged(f"the journal of run {run_id} is that of run {header.run_id}", path=path)
        return header


def check_run_id(run_id: str) -> None:
    """Raise `NotFound` for a text that no run can have as its id (and that must not become part of a path)."""
    if not _RUN_ID.fullmatch(run_id):
        raise NotFound(f"{run_id[:80]!r} is no run id", hint="List the runs to find its id.")


def plain(doc: Mapping[str, Any]) -> dict[str, Any]:
    """The same as plain JSON, apart from the original, so that later changes to it do not reach the journal's copy."""
    result: dict[str, Any] = json.loads(json.dumps(dict(doc), allow_nan=False))
    return result


def intent_of(step: int, action: Action) -> dict[str, Any]:
    """What is recorded of an action before it is done."""
    return {
        "step": step,
        "name": action.name,
        "shown": action.step,
        "says": action.says,
        "undo": action.undo,
        "detail": plain(action.detail),
    }


def outcome_to(outcome: Outcome) -> dict[str, Any]:
    """What is recorded of an outcome."""
    match outcome:
        case Done(data):
            return {"done": plain(data)}
        case Failed(code, message, hint, detail):
            return {"failed": {"code": code, "message": message, "hint": hint, "detail": plain(detail)}}


def outcome_from(doc: Mapping[str, Any]) -> Outcome:
    """The inverse of `outcome_to`."""
    if "done" in doc:
        return Done(doc["done"])
    failed = doc["failed"]
    return Failed(failed["code"], failed["message"], failed["hint"], failed["detail"])


def describe_steps(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The steps for callers, in order; a step that was intended again after a crash begins where it began first."""
    steps: list[dict[str, Any]] = []
    for entry in entries:
        if entry["kind"] == "outcome":
            _close(steps[-1], entry)
        intent = entry if entry["kind"] == "intent" else entry.get("then")
        if intent is not None and not (steps and steps[-1]["status"] == "running"):
            steps.append(
                {
                    "name": intent["shown"],
                    "action": intent["name"],
                    "step": intent["step"],
                    "says": intent["says"],
                    "startedAt": entry["at"],
                    "endedAt": None,
                    "duration_ms": None,
                    "status": "running",
                }
            )
    return steps


def _close(step: dict[str, Any], entry: dict[str, Any]) -> None:
    began, ended = datetime.fromisoformat(step["startedAt"]), datetime.fromisoformat(entry["at"])
    step["endedAt"] = entry["at"]
    step["duration_ms"] = round((ended - began).total_seconds() * 1000, 3)
    failed = entry["outcome"].get("failed")
    step["status"] = "failed" if failed else "success"
    if failed:
        step["error"] = failed
