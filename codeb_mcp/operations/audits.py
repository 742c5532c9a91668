"""The audit trail: who did what, when, with which outcome."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from codeb_mcp.model.access import Reach, Role, in_scope
from codeb_mcp.model.errors import Forbidden, RegistryDamaged
from codeb_mcp.model.names import Identifier, ProjectName
from codeb_mcp.model.redaction import clean_text
from codeb_mcp.operations.catalog import Effect, Page, PageRequest, Request, Result, operation
from codeb_mcp.operations.context import Context, Services
from codeb_mcp.operations.keys import PLATFORM_TEAM
from codeb_mcp.registry.audit import AuditRecord, AuditReport
from codeb_mcp.registry.chain_tail import SEAL_IT
from codeb_mcp.registry.chain_walk import Seal

SEALED_SHOWN = 50


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


class SealedDamage(Result):
    """Damage to the trail that the owner of the machine has acknowledged."""

    sealed_at: str
    sealed_by: str | None = None
    record: int = Field(description="Number of the record that seals it")
    kind: str = Field(description="changed, missing, displaced, unlinked, head, key, seal, or more (of any kind)")
    problem: str
    file: str | None = None
    line: int | None = None
    last_line: int | None = None
    first_record: int | None = None
    last_record: int | None = None


class AuditVerifyResult(Result):
    """Whether the trail is whole, but for damage that was sealed."""

    ok: bool
    records: int
    problem: str | None = None
    file: str | None = None
    line: int | None = None
    sealed: list[SealedDamage] = Field(default_factory=list, description="Known damage, newest first; never forgotten")
    sealed_total: int = 0
    summary: str = ""

    @property
    def exit_code(self) -> int:
        """That of a damaged registry unless the trail is whole."""
        return 0 if self.ok else RegistryDamaged.exit_code


@operation(effect=Effect.READ, role=Role.ADMIN, reach=Reach.TEAM)
async def audit_verify(ctx: Context, request: Request) -> AuditVerifyResult:
    """Verify the audit trail: finds any record that was changed, removed, moved or cut off.

    Damage that the owner of the machine has sealed with `codeb audit seal` is listed, and all after it is verified anew.
    """
    await ctx.services.trail.flush()
    report = await ctx.services.registry.audit.verify()
    damage = [one for seal in reversed(report.seals) for one in _of_seal(seal)]
    return AuditVerifyResult(
        ok=report.ok,
        records=report.records,
        problem=report.first_problem,
        file=report.path,
        line=report.line,
        sealed=damage[:SEALED_SHOWN],
        sealed_total=len(damage),
        summary=_summary(report),
    )


def _of_seal(seal: Seal) -> list[SealedDamage]:
    told = {"sealed_at": seal.at, "sealed_by": seal.by, "record": seal.record}
    return [SealedDamage(**told, **dataclasses.asdict(flaw)) for flaw in seal.flaws]


def _summary(report: AuditReport) -> str:
    if not report.ok:
        return f"the trail is damaged; find out who changed it, then {SEAL_IT} (on the machine, as its owner)"
    if not report.seals:
        return "the trail is whole"
    return f"the trail is whole from record {report.seals[-1].record} on; the damage before it is known and sealed"


@dataclass(frozen=True, slots=True)
class Sealing:
    """What `seal_trail` did. `seal` is None when there was nothing to seal."""

    seal: Seal | None
    report: AuditReport


async def seal_trail(services: Services, *, by: str, reason: str = "") -> Sealing:
    """Acknowledge whatever is broken in the audit trail: a record says what that is, and the chain begins anew with it.

    For whoever owns the machine, not for callers. Raises RegistryDamaged for a key that is there but damaged.
    """
    record = AuditRecord(
        at=services.drivers.clock.now(),
        actor=by,
        key_id=None,
        team=PLATFORM_TEAM,
        role=None,
        tool="audit_seal",
        outcome="ok",
        arguments={"reason": clean_text(reason, limit=500)} if reason else {},
    )
    seal = await services.registry.audit.seal(record)
    return Sealing(seal, await services.registry.audit.verify())
