"""Answers that several operations share: a run's steps, and turning a run into a result or an accepted id."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from pydantic import Field

from codeb_mcp.model.names import Environment, IdempotencyKey, ProjectName
from codeb_mcp.operations.catalog import Request, Result
from codeb_mcp.operations.context import Context
from codeb_mcp.operations.runs import RunView
from codeb_mcp.registry.entries import RunHeader


class EnvironmentRequest(Request):
    """A request about one environment of one project."""

    project_name: ProjectName = Field(description="Project")
    environment: Environment = Field(Environment.STAGING, description="Environment; staging if not given")


class RunRequest(EnvironmentRequest):
    """A request that starts a run."""

    wait: bool = Field(True, description="Wait for the end; false answers an operation id at once")
    idempotency_key: IdempotencyKey | None = Field(None, description="The same key never starts a second run")


class StepAnswer(Result):
    """One step of a run. `duration` in milliseconds."""

    name: str
    status: str
    duration: float | None = None
    output: str | None = None
    error: str | None = None


class RunAnswer(Result):
    """What every run answers. `accepted` without an end: look it up with operation_get."""

    operation_id: str
    status: str = Field(description="succeeded, or running when the call did not wait")
    project_name: str
    environment: str
    joined: bool | None = Field(None, description="true: the same request had been made before")
    steps: list[StepAnswer] = Field(default_factory=list)
    warnings: list[str] = Field(default_factory=list)
    message: str = ""


def header_of(
    ctx: Context, kind: str, request: RunRequest, *, team: str, seconds: float, same: str | None = None
) -> RunHeader:
    """The header of a new run by this caller. `seconds`: its total deadline; `same` names requests that are one and the
    same also without an idempotency key."""
    now = ctx.services.drivers.clock.now()
    key = f"key:{ctx.caller.team}:{kind}:{request.idempotency_key}" if request.idempotency_key else None
    dedupe = tuple(name for name in (key, same) if name)
    return RunHeader(
        run_id=new_run_id(now),
        kind=kind,
        request=request.model_dump(mode="json", by_alias=True, exclude_none=True),
        caller=ctx.caller.as_dict(),
        team=team,
        project=request.project_name,
        environment=request.environment.value,
        created_at=now,
        correlation_id=ctx.correlation_id,
        dedupe=dedupe,
        deadline_seconds=seconds,
    )


def new_run_id(now: datetime) -> str:
    """`op_{time}{random}`: sorts by the time it was made, cannot be guessed."""
    return f"op_{int(now.timestamp() * 1000):012x}{uuid.uuid4().hex[:12]}"


def steps_of(view: RunView) -> list[StepAnswer]:
    """The steps as callers know them."""
    return [StepAnswer.model_validate(step) for step in view.steps]


def common(view: RunView, message: str, warnings: list[str] | None = None) -> dict[str, Any]:
    """The fields of RunAnswer for a view."""
    return {
        "operation_id": view.header.run_id,
        "status": view.status,
        "project_name": view.header.project,
        "environment": view.header.environment or "",
        "joined": True if view.joined else None,
        "steps": steps_of(view),
        "warnings": warnings or [],
        "message": message,
    }


async def run_to_answer(ctx: Context, header: RunHeader, *, wait: bool) -> RunView:
    """Start or join the run; with `wait` answer its end and raise its failure. Who repeats a call under its own correlation
    id, because an answer was lost or to see the end, has not joined anybody else's run."""
    view = await ctx.services.runs.start(header)
    if view.joined and view.header.correlation_id == ctx.correlation_id:
        view = replace(view, joined=False)
    if not wait:
        if (failed := view.error()) is not None:
            raise failed
        return view
    return await ctx.services.runs.wait(view.header.run_id, ctx.progress, joined=view.joined)


def fact(view: RunView, *path: str) -> Any:
    """A value deep in the run's result, or None."""
    value: Any = view.result
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value
