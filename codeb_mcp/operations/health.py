"""Is it well? One environment, or the installation."""

from __future__ import annotations

import asyncio
from typing import Any

from pydantic import Field

from codeb_mcp.drivers.protocols import Answer
from codeb_mcp.model.access import Reach, Role
from codeb_mcp.model.errors import CodebError, ReleaseUnhealthy
from codeb_mcp.model.names import Environment, ProjectName, Slot
from codeb_mcp.model.project import HealthCheck
from codeb_mcp.model.slot import SlotRecord, Slots, SlotState
from codeb_mcp.operations.catalog import Effect, Request, Result, operation
from codeb_mcp.operations.context import Context, Services
from codeb_mcp.operations.flags_seen import UNSEEN, advice, hidden_flags, require_flags_seen
from codeb_mcp.operations.state import environments, load_project, load_slots, site_of

FLAGS = "traffic flags"
FLAGS_ASKED = 5


class HealthRequest(Request):
    """What to ask; without a project, the installation itself."""

    project_name: ProjectName | None = Field(None, description="Project; without it the installation is checked")
    environment: Environment = Field(Environment.STAGING, description="Environment; staging if not given")


class HealthPart(Result):
    """One thing that was asked."""

    name: str
    status: str = Field(description="healthy, unhealthy, empty or unknown")
    message: str = ""
    hint: str | None = None


class HealthResult(Result):
    """`status` is healthy only when every part is."""

    status: str
    parts: list[HealthPart]

    @property
    def exit_code(self) -> int:
        """That of an unhealthy release unless everything is well."""
        return 0 if self.status == "healthy" else ReleaseUnhealthy.exit_code


@operation(effect=Effect.READ, role=Role.VIEWER, reach=Reach.TEAM)
async def health_check(ctx: Context, request: HealthRequest) -> HealthResult:
    """Check health: both slots and the public address of an environment, or engine, proxy and registry."""
    if request.project_name is None:
        parts = await _installation(ctx.services)
    else:
        slots = await load_slots(ctx.store, request.project_name, request.environment)
        parts = await _environment(ctx.services, slots)
    bad = any(part.status not in ("healthy", "empty") for part in parts)
    return HealthResult(status="unhealthy" if bad else "healthy", parts=parts)


async def _installation(services: Services) -> list[HealthPart]:
    async def engine() -> str:
        found = await services.drivers.containers.engine()
        free = "" if found.free_bytes is None else f", {found.free_bytes >> 20} MiB free"
        return f"engine {found.version}{free}"

    async def proxy() -> str:
        return f"{len(await services.drivers.proxy.sites())} sites"

    async def registry() -> str:
        stored = await services.store.get("ssot")
        return f"{len(stored.doc.get('projects', {}))} projects" if stored else "not initialised"

    checks: tuple[tuple[str, Any], ...] = (("engine", engine), ("proxy", proxy), ("registry", registry))
    parts = [_part(name, check) for name, check in checks]
    return list(await asyncio.gather(*parts, _flags(services)))


async def _flags(services: Services) -> HealthPart:
    """Whether the proxy sees the traffic flags: a few environments that it would answer wrongly if it did not are asked."""
    warning = next(hidden_flags(services.settings), "")
    try:
        every = await environments(services.store)
        telling = [one for one in every if one.active_slot is not Slot.BLUE and not one.adopted_route]
        for slots in telling[:FLAGS_ASKED]:
            site = await site_of(services.store, services.settings, slots)
            await require_flags_seen(services, slots.key, site.hosts[0], "/")
    except CodebError as error:
        if error.detail.get("reason") == UNSEEN:
            return HealthPart(name=FLAGS, status="unhealthy", message=error.message, hint=error.hint)
        return HealthPart(name=FLAGS, status="unknown", message=error.message, hint=error.hint)
    return HealthPart(name=FLAGS, status="healthy", message=warning)


async def _part(name: str, check: Any) -> HealthPart:
    try:
        return HealthPart(name=name, status="healthy", message=await check())
    except CodebError as error:
        return HealthPart(name=name, status="unhealthy", message=error.message, hint=error.hint)


async def _environment(services: Services, slots: Slots) -> list[HealthPart]:
    project = await load_project(services.store, slots.project_name)
    health = project.settings.health_check
    records = (slots.blue, slots.green)
    parts = list(await asyncio.gather(*(_slot(services, record, health) for record in records)))
    if slots.active is not None:
        site = await site_of(services.store, services.settings, slots)
        path = (slots.active.health_path or health.paths[0],)
        answer = await services.drivers.prober.public(site.hosts[0], path[0], timeout_seconds=health.timeout_seconds)
        known = answer.slot == slots.active_slot or slots.adopted_route  # a former route does not tell its slot
        right = known and answer.status in health.expected_statuses
        hint = None if right else "Run registry_check to see what differs."
        if not right and answer.slot and not known:
            hint = advice(services.settings)
        status = "healthy" if right else "unhealthy"
        parts.append(HealthPart(name=site.hosts[0], status=status, message=_said(answer), hint=hint))
    elif not slots.adopted_route:
        parts += await _off(services, slots)
    return parts


async def _off(services: Services, slots: Slots) -> list[HealthPart]:
    """An environment without traffic is worth a word only when a slot of it answers all the same."""
    site = await site_of(services.store, services.settings, slots)
    try:
        await require_flags_seen(services, slots.key, site.hosts[0], "/")
    except CodebError as error:
        if error.detail.get("reason") == UNSEEN:
            return [HealthPart(name=site.hosts[0], status="unhealthy", message=error.message, hint=error.hint)]
    return []


async def _slot(services: Services, record: SlotRecord, health: HealthCheck) -> HealthPart:
    status, answer = await probe_slot(services, record, health)
    return HealthPart(name=record.name, status=status, message=_said(answer) if answer else "empty")


async def probe_slot(services: Services, record: SlotRecord, health: HealthCheck) -> tuple[str, Answer | None]:
    """`healthy`, `unhealthy` or `empty`, and the answer behind it."""
    if record.state is SlotState.EMPTY:
        return "empty", None
    answer = Answer(None, problem="was not asked")
    for path in (record.health_path,) if record.health_path else health.paths:
        answer = await services.drivers.prober.port(record.port, path, timeout_seconds=health.timeout_seconds)
        if answer.status in health.expected_statuses:
            return "healthy", answer
    return "unhealthy", answer


def _said(answer: Answer) -> str:
    return f"status {answer.status}" if answer.status is not None else answer.problem
