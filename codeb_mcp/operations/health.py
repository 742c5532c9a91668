"""Is it well? One environment, or the installation."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from pydantic import Field

from codeb_mcp.drivers.protocols import Answer
from codeb_mcp.model.access import Reach, Role
from codeb_mcp.model.errors import CodebError, NotFound, ReleaseUnhealthy
from codeb_mcp.model.names import Environment, ProjectName, Slot
from codeb_mcp.model.project import HealthCheck
from codeb_mcp.model.slot import SlotRecord, Slots, SlotState
from codeb_mcp.operations.catalog import Effect, Request, Result, operation
from codeb_mcp.operations.context import Context, Services
from codeb_mcp.operations.flags_seen import UNSEEN, advice, hidden_flags, require_flags_seen
from codeb_mcp.operations.places import Place, Placement, every_place, here, placement_of
from codeb_mcp.operations.state import environments, load_project, load_slots, site_of

Check = Callable[[], Awaitable[str]]
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
    async def registry() -> str:
        stored = await services.store.get("ssot")
        return f"{len(stored.doc.get('projects', {}))} projects" if stored else "not initialised"

    parts = [_part(name, check) for place in await _app_servers(services) for name, check in _checks(place)]
    return list(await asyncio.gather(*parts, _part("registry", registry), _flags(services)))


async def _app_servers(services: Services) -> tuple[Place, ...]:
    """All of them; only the one beside the control plane before there is an inventory."""
    try:
        return await every_place(services)
    except NotFound:
        return (here(services),)


def _checks(place: Place) -> tuple[tuple[str, Check], ...]:
    async def engine() -> str:
        found = await place.drivers.containers.engine()
        free = "" if found.free_bytes is None else f", {found.free_bytes >> 20} MiB free"
        return f"engine {found.version}{free}"

    async def proxy() -> str:
        return f"{len(await place.drivers.proxy.sites())} sites"

    return (_at(place, "engine"), engine), (_at(place, "proxy"), proxy)


def _at(place: Place, name: str) -> str:
    return f"{name} on {place.key}" if place.key else name


async def _flags(services: Services) -> HealthPart:
    """Whether the proxies see the traffic flags: a few environments that they would answer wrongly if they did not are
    asked."""
    warning = next(hidden_flags(services.settings), "")
    try:
        every = await environments(services.store)
        telling = [one for one in every if one.active_slot is not Slot.BLUE and not one.adopted_route]
        for slots in telling[:FLAGS_ASKED]:
            site = await site_of(services.store, services.settings, slots)
            for place in (await placement_of(services, slots.key)).fronts:
                await require_flags_seen(services, place, slots.key, site.hosts[0], "/")
    except CodebError as error:
        if error.detail.get("reason") == UNSEEN:
            return HealthPart(name=FLAGS, status="unhealthy", message=error.message, hint=error.hint)
        return HealthPart(name=FLAGS, status="unknown", message=error.message, hint=error.hint)
    return HealthPart(name=FLAGS, status="healthy", message=warning)


async def _part(name: str, check: Check) -> HealthPart:
    try:
        return HealthPart(name=name, status="healthy", message=await check())
    except CodebError as error:
        return HealthPart(name=name, status="unhealthy", message=error.message, hint=error.hint)


async def _environment(services: Services, slots: Slots) -> list[HealthPart]:
    project = await load_project(services.store, slots.project_name)
    health, placement = project.settings.health_check, await placement_of(services, slots.key)
    asked = [(place, record) for record in (slots.blue, slots.green) for place in placement.apps]
    parts = list(await asyncio.gather(*(_slot(placement, place, record, health) for place, record in asked)))
    ask = _public if slots.active is not None else _off
    if slots.active is not None or not slots.adopted_route:
        found = await asyncio.gather(*(ask(services, place, slots, health) for place in placement.fronts))
        parts += [part for some in found for part in some]
    return parts


async def _public(services: Services, place: Place, slots: Slots, health: HealthCheck) -> list[HealthPart]:
    site = await site_of(services.store, services.settings, slots)
    path = (slots.active.health_path if slots.active else None) or health.paths[0]
    answer = await place.drivers.prober.public(site.hosts[0], path, timeout_seconds=health.timeout_seconds)
    known = answer.slot == slots.active_slot or slots.adopted_route  # a former route does not tell its slot
    right = known and answer.status in health.expected_statuses
    hint = None if right else "Run registry_check to see what differs."
    if not right and answer.slot and not known:
        hint = advice(services.settings)
    status = "healthy" if right else "unhealthy"
    return [HealthPart(name=_at(place, site.hosts[0]), status=status, message=_said(answer), hint=hint)]


async def _off(services: Services, place: Place, slots: Slots, _: HealthCheck) -> list[HealthPart]:
    """An environment without traffic is worth a word only when a slot of it answers all the same."""
    site = await site_of(services.store, services.settings, slots)
    try:
        await require_flags_seen(services, place, slots.key, site.hosts[0], "/")
    except CodebError as error:
        if error.detail.get("reason") == UNSEEN:
            name = _at(place, site.hosts[0])
            return [HealthPart(name=name, status="unhealthy", message=error.message, hint=error.hint)]
    return []


async def _slot(placement: Placement, place: Place, record: SlotRecord, health: HealthCheck) -> HealthPart:
    status, answer = await probe_slot(placement, place, record, health)
    return HealthPart(name=_at(place, record.name), status=status, message=_said(answer) if answer else "empty")


async def probe_slot(
    placement: Placement, place: Place, record: SlotRecord, health: HealthCheck
) -> tuple[str, Answer | None]:
    """`healthy`, `unhealthy` or `empty` on that app server, and the answer behind it."""
    if record.state is SlotState.EMPTY:
        return "empty", None
    answer = Answer(None, problem="was not asked")
    for path in (record.health_path,) if record.health_path else health.paths:
        answer = await place.drivers.prober.port(
            record.port, path, timeout_seconds=health.timeout_seconds, address=placement.published_at(place)
        )
        if answer.status in health.expected_statuses:
            return "healthy", answer
    return "unhealthy", answer


def _said(answer: Answer) -> str:
    return f"status {answer.status}" if answer.status is not None else answer.problem
