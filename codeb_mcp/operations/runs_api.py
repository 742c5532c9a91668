"""Runs as callers see them: look, list, resume, cancel."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from codeb_mcp.model.access import Principal, Reach, Role, in_scope
from codeb_mcp.model.errors import NotFound
from codeb_mcp.model.names import Environment, Identifier, ProjectName
from codeb_mcp.model.times import utc_text
from codeb_mcp.operations.answers import RunAnswer, common
from codeb_mcp.operations.catalog import Effect, Page, PageRequest, Request, Result, operation
from codeb_mcp.operations.context import Context
from codeb_mcp.operations.runs import RunView


class OperationRequest(Request):
    """One run."""

    operation_id: Identifier = Field(description="Id that deploy, promote or another run answered")


class OperationResult(RunAnswer):
    """A run: what was asked, how far it is, how it ended."""

    kind: str
    created_at: str
    created_by: str
    result: dict[str, Any] | None = None
    failure: dict[str, Any] | None = Field(None, description="code, message and hint of a run that failed")


class OperationRow(Result):
    """A run in a list."""

    operation_id: str
    kind: str
    project_name: str
    environment: str | None = None
    status: str
    created_at: str
    created_by: str


class OperationListRequest(PageRequest):
    """Which runs to list."""

    project_name: ProjectName | None = Field(None, description="Only this project")
    environment: Environment | None = Field(None, description="Only this environment")


class OperationPage(Page):
    """Runs, newest first."""

    data: list[OperationRow]


@operation(effect=Effect.READ, role=Role.VIEWER, reach=Reach.TEAM)
async def operation_get(ctx: Context, request: OperationRequest) -> OperationResult:
    """Show a run: its steps, how far it is, its result or why it failed."""
    return described(await own(ctx, request.operation_id))


@operation(effect=Effect.READ, role=Role.VIEWER, reach=Reach.TEAM)
async def operation_list(ctx: Context, request: OperationListRequest) -> OperationPage:
    """List runs of your team, newest first."""

    def match(header: Any) -> bool:
        return (
            visible(ctx.caller, header)
            and request.project_name in (None, header.project)
            and request.environment in (None, header.environment)
        )

    journals, total = await ctx.services.registry.journals.page(limit=request.limit, offset=request.offset, match=match)
    rows = [_row(await ctx.services.runs.look(journal)) for journal in journals]
    return OperationPage.of(rows, request, total=total)


@operation(effect=Effect.CHANGE, role=Role.MEMBER, reach=Reach.TEAM, long=True)
async def operation_resume(ctx: Context, request: OperationRequest) -> OperationResult:
    """Resume a run that a crash or an unreachable server left open, and wait for its end."""
    await own(ctx, request.operation_id)
    await ctx.services.runs.resume(request.operation_id)
    return described(await ctx.services.runs.wait(request.operation_id, ctx.progress))


@operation(effect=Effect.CHANGE, role=Role.MEMBER, reach=Reach.TEAM)
async def operation_cancel(ctx: Context, request: OperationRequest) -> OperationResult:
    """Cancel a run: it stops at its present step and undoes what it did. A switch that is proven is not taken back."""
    await own(ctx, request.operation_id)
    return described(await ctx.services.runs.cancel(request.operation_id, ctx.caller.key_id))


def visible(caller: Principal, header: Any) -> bool:
    """Whether the run is the caller's team's and within its scopes."""
    return (
        header.team == caller.team
        and in_scope(caller.scopes, "project", header.project)
        and in_scope(caller.scopes, "environment", header.environment)
    )


async def own(ctx: Context, run_id: str) -> RunView:
    """The run, or NotFound when it is another team's: the same answer as for an id that does not exist."""
    try:
        view = await ctx.services.runs.look(run_id)
    except NotFound:
        view = None
    if view is None or not visible(ctx.caller, view.header):
        raise NotFound(f"there is no operation {run_id}", hint="List them with operation_list.")
    return view


def described(view: RunView) -> OperationResult:
    """The run as an answer."""
    failure = (view.finished or {}).get("failure")
    said = failure["message"] if failure else f"{view.header.kind} {view.status}"
    return OperationResult(
        **common(view, said),
        kind=view.header.kind,
        created_at=utc_text(view.header.created_at),
        created_by=view.header.caller["keyId"],
        result=dict(view.result) or None,
        failure={key: failure[key] for key in ("code", "message", "hint")} if failure else None,
    )


def _row(view: RunView) -> OperationRow:
    return OperationRow(
        operation_id=view.header.run_id,
        kind=view.header.kind,
        project_name=view.header.project,
        environment=view.header.environment,
        status=view.status,
        created_at=utc_text(view.header.created_at),
        created_by=view.header.caller["keyId"],
    )
