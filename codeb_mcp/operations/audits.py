"""The audit trail: who did what, when, with which outcome."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from codeb_mcp.model.access import Reach, Role, in_scope
from codeb_mcp.model.errors import Forbidden, RegistryDamaged
from codeb_mcp.model.names import Identifier, ProjectName
from codeb_mcp.operations.catalog import Effect, Page, PageRequest, Request, Result, operation
from codeb_mcp.operations.context import Context


class AuditListRequest(PageRequest):
    """Which records."""

    project_name: ProjectName | None = Field(None, description="Only this project")
    tool: Identifier | None = Field(None, description="Only this tool")


class AuditPage(Page):
    """Records of the caller's team, newest first. Arguments are redacted."""

    data: list[dict[str, Any]]


@operation(effect=Effect.READ, role=Role.VIEWER, reach=Reach.TEAM)
async def audit_list(ctx: Context, request: AuditListRequest) -> AuditPage:
    """List what your team did: who, which tool, with which arguments and outcome. Newest first."""
    if request.project_name is None and not in_scope(ctx.caller.scopes, "project", None):
        raise Forbidden("this key is limited to some projects", hint="Say projectName.")
    await ctx.services.trail.flush()
    rows, total = await ctx.services.registry.audit.page(
        team=ctx.caller.team,
        limit=request.limit,
        offset=request.offset,
        project=request.project_name,
        tool=request.tool,
    )
    return AuditPage.of(rows, request, total=total)


class AuditVerifyResult(Result):
    """Whether the trail is whole."""

    ok: bool
    records: int
    problem: str | None = None
    file: str | None = None
    line: int | None = None

    @property
    def exit_code(self) -> int:
        """That of a damaged registry unless the trail is whole."""
        return 0 if self.ok else RegistryDamaged.exit_code


@operation(effect=Effect.READ, role=Role.ADMIN, reach=Reach.TEAM)
async def audit_verify(ctx: Context, request: Request) -> AuditVerifyResult:
    """Verify the audit trail: finds any record that was changed, removed, moved or cut off."""
    await ctx.services.trail.flush()
    report = await ctx.services.registry.audit.verify()
    return AuditVerifyResult(
        ok=report.ok,
        records=report.records,
        problem=report.first_problem,
        file=report.path,
        line=report.line,
    )
