"""Drift as callers see it, and mending it: each repair is a journalled run under the environment's lease."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic import Field

from codeb_mcp.drivers.protocols import ContainerSpec
from codeb_mcp.model.access import Principal, Reach, Role, in_scope
from codeb_mcp.model.drift import Drift, Repair
from codeb_mcp.model.errors import CodebError, Conflict, NotFound, ReleaseUnhealthy
from codeb_mcp.model.machine import Action
from codeb_mcp.model.names import Environment, Identifier, ProjectName, Slot, container_name, split_environment_key
from codeb_mcp.model.sequence import Sequence, Step
from codeb_mcp.model.slot import SlotState
from codeb_mcp.operations.answers import RunRequest, header_of
from codeb_mcp.operations.catalog import Effect, Page, PageRequest, Request, Result, operation
from codeb_mcp.operations.context import Context, Services
from codeb_mcp.operations.observe import drift
from codeb_mcp.operations.ownership import callers_projects
from codeb_mcp.operations.perform import Performer, container_spec, step
from codeb_mcp.operations.places import HERE, Place, here, on_all, placement_of, places
from codeb_mcp.operations.routing import ensure_site
from codeb_mcp.operations.runs import Planned, planner
from codeb_mcp.operations.state import load_project, site_of
from codeb_mcp.registry.entries import RunHeader

REPAIR_SECONDS = 300.0


class CheckRequest(PageRequest):
    """Which differences to list."""

    project_name: ProjectName | None = Field(None, description="Only this project")


class DriftRow(Result):
    """One difference between the registry and the world."""

    id: str
    kind: str
    environment: str = Field(description="Environment key, {project}-{environment}")
    slot: str | None = None
    server: str | None = Field(None, description="App server, where it is not the one beside the control plane")
    message: str
    repair: str = Field(description="What registry_repair would do; none: a person has to look")
    proposal: str


class DriftPage(Page):
    """Differences, each with a proposed repair; empty when all is as it should be."""

    data: list[DriftRow]
    summary: str = ""


@operation(effect=Effect.READ, role=Role.VIEWER, reach=Reach.TEAM)
async def registry_check(ctx: Context, request: CheckRequest) -> DriftPage:
    """Check for drift: compare the registry with the engine, the proxy, the traffic flags and the kernel's ports.

    Answers every difference with the repair that registry_repair would make.
    """
    found = await _visible(ctx, request.project_name)
    rows = [_row(one) for one in found]
    summary = "no drift" if not rows else f"{len(rows)} differences"
    return DriftPage.of(rows, request).model_copy(update={"summary": summary})


async def _visible(ctx: Context, project: str | None) -> list[Drift]:
    mine = set(await callers_projects(ctx.store, ctx.caller))
    found = await drift(ctx.services)
    return [one for one in found if _may_see(ctx.caller, one, mine) and project in (None, _project(one.key))]


def _may_see(caller: Principal, one: Drift, mine: set[str]) -> bool:
    project, _, environment = one.key.rpartition("-")
    within = in_scope(caller.scopes, "project", project) and in_scope(caller.scopes, "environment", environment)
    nobodys = caller.platform and one.kind in ("container_unknown", "route_unknown")
    return within and (project in mine or nobodys)


def _project(key: str) -> str:
    return key.rpartition("-")[0]


def _row(one: Drift) -> DriftRow:
    return DriftRow(
        id=one.id,
        kind=one.kind,
        environment=one.key,
        slot=one.slot,
        server=one.server or None,
        message=one.message,
        repair=one.repair.value,
        proposal=one.proposal,
    )


class RepairRequest(Request):
    """Which differences to mend."""

    drift_ids: tuple[Identifier, ...] = Field(
        min_length=1, max_length=100, description="Ids that registry_check answered"
    )


class RepairRow(Result):
    """What became of one difference."""

    id: str
    repaired: bool
    message: str
    operation_id: str | None = None


class RepairResult(Result):
    """What was mended and what was not."""

    data: list[RepairRow]
    repaired: int

    @property
    def exit_code(self) -> int:
        """That of a release that is not healthy unless everything was mended."""
        return 0 if self.repaired == len(self.data) else ReleaseUnhealthy.exit_code


@operation(effect=Effect.DESTROY, role=Role.ADMIN, reach=Reach.TEAM, long=True)
async def registry_repair(ctx: Context, request: RepairRequest) -> RepairResult:
    """Repair drift that registry_check found, by its ids. Each repair is checked against the world once more first."""
    found = {one.id: one for one in await _visible(ctx, None)}
    rows = []
    for drift_id in dict.fromkeys(request.drift_ids):
        one = found.get(drift_id)
        if one is None:
            rows.append(RepairRow(id=drift_id, repaired=False, message="there is no such difference any more"))
        elif one.repair is Repair.NONE:
            rows.append(RepairRow(id=drift_id, repaired=False, message=f"a person has to look: {one.proposal}"))
        else:
            rows.append(await _mend(ctx, one))
    return RepairResult(data=rows, repaired=sum(row.repaired for row in rows))


class _RepairRun(RunRequest):
    """One repair as the journal keeps it."""

    drift_id: str
    repair: Repair
    slot: str | None = None
    subject: str = ""
    server: str = ""


async def _mend(ctx: Context, one: Drift) -> RepairRow:
    try:
        project, environment = split_environment_key(one.key)
        run = _RepairRun(
            project_name=project,
            environment=environment,
            drift_id=one.id,
            repair=one.repair,
            slot=one.slot,
            subject=one.subject,
            server=one.server,
        )
        header = header_of(ctx, "repair", run, team=ctx.caller.team, seconds=REPAIR_SECONDS)
        view = await ctx.services.runs.start(header)
        await ctx.services.runs.wait(view.header.run_id, ctx.progress)
    except CodebError as error:
        return RepairRow(id=one.id, repaired=False, message=error.message, operation_id=error.detail.get("operationId"))
    except ValueError:
        return RepairRow(id=one.id, repaired=False, message=f"{one.key} is no environment of ours")
    return RepairRow(id=one.id, repaired=True, message=one.proposal, operation_id=header.run_id)


@planner("repair")
async def plan_repair(services: Services, header: RunHeader) -> Planned:
    """One step, of the kind that the difference proposed; raises Conflict when the difference is gone by now."""
    request = _RepairRun.model_validate(header.request)
    key = f"{header.project}-{header.environment}"
    detail: dict[str, Any] = {
        "key": key, "slot": request.slot, "name": request.subject, "stopTimeout": 15, "server": request.server
    }  # fmt: skip
    return Planned(Sequence((Step(Action("repair_" + request.repair, request.repair, detail, says=f"repair {key}")),)))


@step("repair_start_container")
@step("repair_recreate_container")
async def recreate(run: Performer, action: Action) -> Mapping[str, Any]:
    """Have the slot's container running from the image that the registry names."""
    slots = await run.slots(action.detail["key"])
    record = slots.record(Slot(action.detail["slot"]))
    if record.state is SlotState.EMPTY or record.image_id is None:
        raise Conflict(f"slot {record.name} names no image", hint="Deploy again.")
    spec = await _spec_of(run, slots.project_name, slots.environment, record)
    place = await _place(run, action)
    containers = place.drivers.containers
    spec = replace(spec, host_address=(await placement_of(run.services, slots.key)).published_at(place))
    there = await containers.inspect(spec.name)
    if there is not None and there.host_ports and spec.host_port not in there.host_ports:
        await containers.remove(spec.name, fence=run.fence.token)
    await containers.ensure(spec)
    return {}


async def _place(run: Performer, action: Action) -> Place:
    """The app server that the difference is on."""
    key = action.detail.get("server") or HERE
    return here(run.services) if key == HERE else (await places(run.services, [key]))[0]


async def _spec_of(run: Performer, name: str, environment: Environment, record: Any) -> ContainerSpec:
    project = await load_project(run.store, name)
    detail = {
        "name": record.container_name or container_name(name, environment, record.name), "project": name,
        "environment": environment.value, "slot": record.name.value, "team": project.team_id,
        "version": record.version or "", "run": record.run_id or "repair", "imageId": record.image_id,
        "reference": record.image or record.image_id, "digest": record.digest, "hostPort": record.port,
        "containerPort": project.settings.container_port, "limits": project.settings.limits.model_dump(mode="json"),
    }  # fmt: skip
    return container_spec(run, detail)[0]


@step("repair_remove_container")
async def remove_stray(run: Performer, action: Action) -> Mapping[str, Any]:
    """Remove a container that the registry does not want; refuses one that by now is in a slot."""
    name, key, place = action.detail["name"], action.detail["key"], await _place(run, action)
    try:
        slots = await run.slots(key)
    except NotFound:
        slots = None
    for record in (slots.blue, slots.green) if slots else ():
        if record.container_name == name and record.state is not SlotState.EMPTY and await _belongs(run, key, place):
            raise Conflict(f"{name} is in slot {record.name} by now", hint="Run registry_check again.")
    live = await place.drivers.traffic.live(key)
    if live is not None and name == container_name(*split_environment_key(key), live):
        raise _serves(name, place)
    return {"removed": await place.drivers.containers.remove(name, fence=run.fence.token)}


def _serves(what: str, place: Place) -> Conflict:
    """What visitors may be using is never removed by itself: the registry may be the one that is wrong."""
    return Conflict(
        f"{what} has live traffic on {place.named}",
        hint="See whether that machine is in the inventory twice, or whether the registry lost the environment; to give it "
        "up, take the traffic away there first.",
    )


async def _belongs(run: Performer, key: str, place: Place) -> bool:
    return place.key in {one.key for one in (await placement_of(run.services, key)).apps}


@step("repair_empty_slot")
async def empty_missing(run: Performer, action: Action) -> Mapping[str, Any]:
    """Mark a slot empty whose container is gone; refuses when the container is back or the slot is live."""
    slot, now = Slot(action.detail["slot"]), run.drivers.clock.now()
    apps = (await placement_of(run.services, action.detail["key"])).apps
    if any(await on_all(apps, lambda place: place.drivers.containers.inspect(action.detail["name"]))):
        raise Conflict(f"{action.detail['name']} is there again", hint="Run registry_check again.")
    await run.change(action.detail["key"], lambda slots: slots.cleaned(slot, now))
    return {}


@step("repair_switch_traffic")
async def switch_back(run: Performer, action: Action) -> Mapping[str, Any]:
    """Send traffic where the registry says."""
    slots = await run.slots(action.detail["key"])
    traffic = (await _place(run, action)).drivers.traffic
    return {"moved": await traffic.switch(slots.key, slots.active_slot, fence=run.fence.token)}


@step("repair_apply_route")
async def apply_route(run: Performer, action: Action) -> Mapping[str, Any]:
    """Write the site into the proxy."""
    slots = await run.slots(action.detail["key"])
    place = await _place(run, action)
    if await place.drivers.traffic.live(slots.key) is None:
        await place.drivers.traffic.switch(slots.key, slots.active_slot, fence=run.fence.token)
    return {"changed": await ensure_site(place, await site_of(run.store, run.services.settings, slots))}


@step("repair_remove_route")
async def remove_route(run: Performer, action: Action) -> Mapping[str, Any]:
    """Take a site out of the proxy that the registry does not know."""
    place, key = await _place(run, action), action.detail["key"]
    if await place.drivers.traffic.live(key) is not None:
        raise _serves(f"the route of {key}", place)
    return {"changed": await place.drivers.proxy.apply(remove=[key])}
