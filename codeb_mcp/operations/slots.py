"""Looking at slots, and emptying those that have no traffic."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from codeb_mcp.model.access import Reach, Role, in_scope
from codeb_mcp.model.errors import Conflict
from codeb_mcp.model.names import Environment, Slot, container_name
from codeb_mcp.model.sequence import retirement
from codeb_mcp.model.slot import SlotRecord, Slots, SlotState
from codeb_mcp.model.times import utc_text
from codeb_mcp.operations.answers import (
    EnvironmentRequest,
    RunAnswer,
    RunRequest,
    common,
    fact,
    header_of,
    run_to_answer,
)
from codeb_mcp.operations.catalog import Effect, Page, PageRequest, Result, operation
from codeb_mcp.operations.context import Context, Services
from codeb_mcp.operations.ownership import callers_projects
from codeb_mcp.operations.routing import require_without_traffic
from codeb_mcp.operations.runs import Planned, planner
from codeb_mcp.operations.state import find_slots, load_project, load_slots, load_slots_as_stored
from codeb_mcp.registry.entries import RunHeader


class SlotStatusResult(Result):
    """The slot document of the infrastructure guide §3, with the end of each grace period."""

    data: dict[str, Any]
    project_name: str
    environment: Environment
    active_slot: Slot | None = None
    version: str | None = None
    summary: str


@operation(effect=Effect.READ, role=Role.VIEWER, reach=Reach.PROJECT)
async def slot_status(ctx: Context, request: EnvironmentRequest) -> SlotStatusResult:
    """Show both slots of an environment: what is live, what waits, what can be rolled back to and until when."""
    slots, document = await load_slots_as_stored(ctx.store, request.project_name, request.environment)
    active = slots.active
    return SlotStatusResult(
        data=dict(document),
        project_name=slots.project_name,
        environment=slots.environment,
        active_slot=slots.active_slot,
        version=active.version if active else None,
        summary="; ".join(_said(record) for record in (slots.blue, slots.green)),
    )


def _said(record: SlotRecord) -> str:
    text = f"{record.name}: {record.state}"
    if record.version and record.state is not SlotState.EMPTY:
        text += f" {record.version} ({record.health_status or 'health unknown'})"
    if record.state is SlotState.GRACE and record.grace_expires_at:
        text += f", rollback possible until {utc_text(record.grace_expires_at, 'seconds')}"
    return text


class SlotRow(Result):
    """One environment in a list."""

    project_name: str
    environment: str
    active_slot: str | None = None
    version: str | None = None
    blue_state: str
    green_state: str
    last_updated: str | None = None


class SlotPage(Page):
    """Environments of the caller's team."""

    data: list[SlotRow]


@operation(effect=Effect.READ, role=Role.VIEWER, reach=Reach.TEAM)
async def slot_list(ctx: Context, request: PageRequest) -> SlotPage:
    """List every environment of your team with the state of its slots."""
    rows = []
    mine = [one for one in Environment if in_scope(ctx.caller.scopes, "environment", one)]
    for name in await callers_projects(ctx.store, ctx.caller):
        for environment in mine:
            slots = await find_slots(ctx.store, name, environment)
            if slots is not None:
                rows.append(_row(slots))
    return SlotPage.of(rows, request)


def _row(slots: Slots) -> SlotRow:
    return SlotRow(
        project_name=slots.project_name,
        environment=slots.environment,
        active_slot=slots.active_slot,
        version=slots.active.version if slots.active else None,
        blue_state=slots.blue.state,
        green_state=slots.green.state,
        last_updated=utc_text(slots.last_updated) if slots.last_updated else None,
    )


class SlotCleanupRequest(RunRequest):
    """Which environment's idle slot to empty."""

    force: bool = Field(False, description="Also a slot whose grace period runs, or that waits to be promoted")


class SlotCleanupResult(RunAnswer):
    """What was emptied."""

    cleaned_slot: Slot | None = None
    drained: bool | None = Field(None, description="Whether every request on the slot had ended before it was stopped")
    in_flight: int | None = Field(None, description="Requests that still ran when the drain's time was over")


@operation(effect=Effect.DESTROY, role=Role.ADMIN, reach=Reach.PROJECT, idempotent=False, long=True)
async def slot_cleanup(ctx: Context, request: SlotCleanupRequest) -> SlotCleanupResult:
    """Empty the idle slot of an environment: drain it, stop and remove its container.

    Refuses a slot that is the way back (grace period) or waits to be promoted, unless force is true. The live slot is
    never touched.
    """
    project = await load_project(ctx.store, request.project_name)
    header = header_of(ctx, "slot_cleanup", request, team=project.team_id, seconds=900)
    view = await run_to_answer(ctx, header, wait=request.wait)
    cleaned = fact(view, "facts", "empty_slot", "slot")
    message = f"slot {cleaned} is empty" if view.status == "succeeded" else f"operation {view.header.run_id} is running"
    return SlotCleanupResult(
        **common(view, message, fact(view, "warnings") or []),
        cleaned_slot=cleaned,
        drained=fact(view, "facts", "drain", "drained"),
        in_flight=fact(view, "facts", "drain", "inFlight"),
    )


@planner("slot_cleanup")
async def plan_cleanup(services: Services, header: RunHeader) -> Planned:
    """Raises Conflict when nothing may be emptied."""
    request = SlotCleanupRequest.model_validate(header.request)
    slots = await load_slots(services.store, request.project_name, request.environment)
    record = _to_clean(slots, services, force=request.force)
    await require_without_traffic(services, slots, record.name)
    project = await load_project(services.store, request.project_name)
    machine = retirement(
        slots.key,
        record.name.value,
        port=record.port,
        container=record.container_name or container_name(slots.project_name, slots.environment, record.name),
        drain_seconds=project.settings.of(slots.environment).drain_seconds,
        stop_timeout=project.settings.limits.stop_timeout_seconds,
    )
    return Planned(machine)


def _to_clean(slots: Slots, services: Services, *, force: bool) -> SlotRecord:
    idle = [record for record in (slots.blue, slots.green) if record.name is not slots.active_slot]
    full = [record for record in idle if record.state is not SlotState.EMPTY]
    if not full:
        raise Conflict(f"{slots.key} has no slot to empty", hint="Nothing to do.")
    now = services.drivers.clock.now()
    record = next((one for one in full if one.grace_is_over(now)), full[0])
    if force or record.grace_is_over(now):
        return record
    why = "is the way back" if record.state is SlotState.GRACE else "waits to be promoted"
    raise Conflict(
        f"slot {record.name} with version {record.version} {why}",
        hint="Repeat with force: true if it may go.",
        wouldLose=record.version,
        slot=record.name.value,
    )
