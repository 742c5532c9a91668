"""Adoption: what an earlier installation left running comes into the registry as it is, and goes on running."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import Field

from codeb_mcp.model.access import Reach, Role
from codeb_mcp.model.adoption import Adoptable, Running, Seen, Unfit, adoptable, place_of
from codeb_mcp.model.domains import with_entry
from codeb_mcp.model.errors import CodebError, Conflict, LockHeld
from codeb_mcp.model.names import ProjectName, Slot, TeamId, image_parts, split_environment_key
from codeb_mcp.model.project import EnvironmentSettings, all_ports, public_host
from codeb_mcp.model.slot import SlotRecord, Slots, SlotState
from codeb_mcp.model.times import utc_text
from codeb_mcp.operations.catalog import Effect, Page, PageRequest, Result, operation
from codeb_mcp.operations.context import Context, Services
from codeb_mcp.operations.domain_state import document_of, further_hosts
from codeb_mcp.operations.environments import PAUSE_SECONDS, TRIES
from codeb_mcp.operations.old_files import OldRegistry, read_old
from codeb_mcp.operations.ownership import require_unlimited
from codeb_mcp.operations.projects import team_change
from codeb_mcp.operations.routing import ensure_flag, require_free_hosts
from codeb_mcp.operations.state import REPAIR, find_slots, load_ssot, parse_project
from codeb_mcp.registry.store import Change, Document

PROBE_SECONDS = 3.0
PATHS = ("/health", "/api/health", "/")
WELL = frozenset({200, 204})
FOLDER_PATTERN = r"^(/[A-Za-z0-9._-]+)+$"


class AdoptRequest(PageRequest):
    """What to adopt. Without `apply` nothing is written."""

    apply: bool = Field(False, description="Write it; without this only say what would be written")
    from_folder: str | None = Field(
        None,
        pattern=FOLDER_PATTERN,
        max_length=200,
        description="Folder of an earlier registry on this machine (with ssot.json and slots/), read and not changed",
    )
    projects: tuple[ProjectName, ...] = Field((), max_length=200, description="Only these projects; all if not given")
    team: TeamId | None = Field(None, description="Team of what names none; default: the caller's")


class AdoptRow(Result):
    """One environment. `status`: new (apply would write it), written, present (the registry has it already), or left_out."""

    project_name: str
    environment: str
    status: str
    team_id: str | None = None
    active_slot: str | None = None
    slots: dict[str, str] = Field(default_factory=dict, description="Port, state and version of each slot")
    hosts: list[str] = Field(default_factory=list)
    reasons: list[str] = Field(default_factory=list, description="Why it is left out")
    notes: list[str] = Field(default_factory=list)


class AdoptPage(Page):
    """The environments that were found, those that are left out first."""

    data: list[AdoptRow]
    applied: bool
    summary: str
    next_step: str | None = None


@operation(effect=Effect.CHANGE, role=Role.ADMIN, reach=Reach.PLATFORM, long=True)
async def adopt(ctx: Context, request: AdoptRequest) -> AdoptPage:
    """Take what an earlier installation left running into the registry as it is; without apply, only show the plan.

    Found are containers named project-environment-slot, the proxy's routes to them, and old registry files. Nothing is
    restarted, replaced or reconfigured: apply only writes the registry, one commit for each environment. Which slot is live
    is told by the proxy's routes. The first promote or rollback puts our route in the place of the former one. What does not
    fit together is left out and named; old files that are not valid refuse the whole call.
    """
    require_unlimited(ctx.caller)
    world = await _look(ctx, request)
    keys = [key for key in sorted(world.seen) if not request.projects or world.seen[key].project in request.projects]
    rows = [await _row(ctx, request, world, key) for key in keys]
    rows.sort(key=lambda row: row.status != "left_out")
    counts: dict[str, int] = defaultdict(int)
    for row in rows:
        counts[row.status] += 1
    said = ", ".join(f"{count} {status.replace('_', ' ')}" for status, count in sorted(counts.items()))
    page = Page.of(rows, request)
    return AdoptPage(
        **page.model_dump(exclude={"data"}),
        data=page.data,
        applied=request.apply,
        summary=f"{len(rows)} environments: {said}" if rows else "nothing was found that could be adopted",
        next_step="Repeat with apply: true to write it." if counts["new"] else None,
    )


@dataclass(frozen=True, slots=True)
class _World:
    """What was found, once."""

    seen: Mapping[str, Seen]
    old: OldRegistry
    holders: dict[int, str] = field(default_factory=dict)


async def _look(ctx: Context, request: AdoptRequest) -> _World:
    old = await read_old(ctx.services, request.from_folder)
    containers: dict[str, dict[Slot, Running]] = defaultdict(dict)
    holders: dict[int, str] = {}
    for one in await ctx.services.drivers.containers.list(managed=False):
        found = place_of(one.name)
        if one.running:
            holders |= dict.fromkeys(one.host_ports, one.name)
        if found is not None and "codeb.run" not in one.labels:
            running = Running(
                one.name, one.container_id, one.image_reference, one.image_id, one.labels, one.state, one.ports
            )
            containers[found[0]][found[1]] = running
    listening = await ctx.services.drivers.ports.listening()
    holders = {**dict.fromkeys(listening, "another program"), **holders}
    sites = await ctx.services.drivers.proxy.others()
    keys = {key for key in {*containers, *old.keys()} if place_of(f"{key}-blue") is not None}
    seen = {key: Seen(key, containers.get(key, {}), old.slots.get(key), old.ports(key), tuple(sites)) for key in keys}
    return _World(seen, old, holders)


async def _row(ctx: Context, request: AdoptRequest, world: _World, key: str) -> AdoptRow:
    """Decide about one environment, and with `apply` write it."""
    project, environment = split_environment_key(key)
    row = AdoptRow(project_name=project, environment=environment.value, status="present")
    present = await find_slots(ctx.store, project, environment)
    if present is not None:
        return _told(row, present)
    seen = world.seen[key]
    try:
        team = await _team(ctx, request, world, seen)
        found = adoptable(seen, team, ctx.services.drivers.clock.now(), await _holders(ctx, world, key))
        found = await _probed(ctx.services, found)
        await _commit(ctx, world, found, really=request.apply)
    except (Unfit, CodebError) as why:
        reasons = list(why.reasons) if isinstance(why, Unfit) else [why.message]
        return row.model_copy(update={"status": "left_out", "reasons": reasons})
    status = "written" if request.apply else "new"
    return _told(row, found.slots).model_copy(
        update={"status": status, "hosts": list(found.hosts), "notes": list(found.notes)}
    )


def _told(row: AdoptRow, slots: Slots) -> AdoptRow:
    said = {one.name.value: _said(one) for one in (slots.blue, slots.green)}
    return row.model_copy(update={"team_id": slots.team_id, "active_slot": slots.active_slot, "slots": said})


def _said(record: SlotRecord) -> str:
    version = f" {record.version}" if record.version and record.state is not SlotState.EMPTY else ""
    return f"{record.port} {record.state}{version}"


async def _team(ctx: Context, request: AdoptRequest, world: _World, seen: Seen) -> str:
    """Whose it is, by labels, files, the request or the caller; raises Unfit for a team that is not there."""
    labels = [one.labels.get("codeb.team") for one in seen.containers.values()]
    entry = world.old.projects.get(seen.project, {})
    said = [*labels, seen.document.team_id if seen.document else None, entry.get("teamId"), request.team]
    named = {name for name in labels if name}
    if len(named) > 1:
        raise Unfit(f"its containers are labelled with several teams: {', '.join(sorted(named))}")
    team = next((str(name) for name in said if name), ctx.caller.team)
    stored = await ctx.store.get("teams")
    if team not in (stored.doc.get("teams", {}) if stored else {}):
        raise Unfit(f"there is no team {team[:60]}: create it with team_create")
    ours = (await load_ssot(ctx.store)).get("projects", {}).get(seen.project)
    if ours is not None and parse_project(seen.project, ours).team_id != team:
        raise Unfit(f"a project {seen.project} of another team is in the registry")
    return team


async def _holders(ctx: Context, world: _World, key: str) -> dict[int, str]:
    """Who holds which port, the registry's own environments and others' old files included."""
    held = dict(world.holders)
    for other, slots in world.old.slots.items():
        held.update({one.port: other for one in (slots.blue, slots.green) if one.port not in held})
    for name, entry in (await load_ssot(ctx.store)).get("projects", {}).items():
        for environment, pair in entry.get("ports", {}).items():
            held |= {port: f"{name}-{environment}" for port in all_ports({name: {"ports": {environment: pair}}})}
    return held


async def _probed(services: Services, found: Adoptable) -> Adoptable:
    """Each slot that runs with the path on which it is healthy, so that a rollback to it can be proven."""
    notes, records = list(found.notes), {}
    for record in (found.slots.blue, found.slots.green):
        if record.state is SlotState.EMPTY:
            continue
        for path in PATHS:
            answer = await services.drivers.prober.port(record.port, path, timeout_seconds=PROBE_SECONDS)
            if answer.status in WELL:
                update = {"health_path": path, "health_status": "healthy"}
                records[record.name.value] = record.model_copy(update=update)
                break
        else:
            notes.append(
                f"slot {record.name} answers on none of {', '.join(PATHS)}: set the project's healthCheck.path"
            )
    return replace(found, slots=found.slots.model_copy(update=records), notes=tuple(notes))


async def _commit(ctx: Context, world: _World, found: Adoptable, *, really: bool) -> None:
    """All documents of the environment in one commit, and its traffic flag; without `really` only see that they fit."""
    for _ in range(TRIES):
        changes = await _changes(ctx, world, found)
        if not really:
            return
        try:
            await ctx.store.commit(changes)
        except Conflict:
            await asyncio.sleep(random.uniform(0, PAUSE_SECONDS))
            continue
        break
    else:
        raise Conflict("the registry kept changing", hint="Try again.")
    try:
        await ensure_flag(ctx.services, found.slots)
    except LockHeld:
        ctx.services.log.info("the flag is set by the run that holds the environment", environment=found.slots.key)


async def _changes(ctx: Context, world: _World, found: Adoptable) -> list[Change]:
    slots, project = found.slots, found.slots.project_name
    stored = await ctx.store.get("ssot")
    ssot: dict[str, Any] = dict(stored.doc) if stored else {}
    projects = dict(ssot.get("projects", {}))
    projects[project] = _entry(ctx, world, found, projects.get(project))
    parse_project(project, projects[project])
    further = await further_hosts(ctx.services)
    require_free_hosts(ctx.services.settings, projects, project, [slots.environment], further)
    ssot["projects"] = projects
    used = set(ssot.get("usedPorts", [])) | world.old.used | all_ports({project: projects[project]})
    ssot["usedPorts"] = sorted(used)
    changes = [Change("ssot", ssot, stored.version if stored else 0), Change(f"slots/{slots.key}", slots.dump(), 0)]
    changes += await team_change(ctx, slots.team_id, project)
    return [*changes, *await _domains(ctx, found, further)]


def _entry(ctx: Context, world: _World, found: Adoptable, ours: Mapping[str, Any] | None) -> dict[str, Any]:
    """The project's entry with this environment: ours, else the old one without environments that are not adopted."""
    slots = found.slots
    old = world.old.projects.get(slots.project_name, {})
    base = dict(ours) if ours is not None else {**old, "ports": {}, "teamId": slots.team_id}
    ports = {**base["ports"], slots.environment.value: {"blue": slots.blue.port, "green": slots.green.port}}
    settings = dict(base.get("settings", {}))
    if ours is None:
        base |= {"createdAt": utc_text(ctx.services.drivers.clock.now()), "createdBy": ctx.caller.key_id}
        if found.container_port is not None:
            settings.setdefault("containerPort", found.container_port)
        if found.image is not None:
            settings.setdefault("image", image_parts(found.image)[0])
        if slots.active is not None and slots.active.health_path == PATHS[-1]:
            settings.setdefault("healthCheck", {"path": PATHS[-1]})
    own = dict(settings.get("environments", {}))
    own[slots.environment.value] = {**own.get(slots.environment.value, {}), **_said_of(ctx, found)}
    return {**base, "ports": ports, "settings": {**settings, "environments": own}}


def _said_of(ctx: Context, found: Adoptable) -> dict[str, Any]:
    """A site goes on as it is: its own first host, and no headers that it has not had."""
    slots, said = found.slots, {"securityHeaders": False}
    usual = public_host(slots.project_name, slots.environment, EnvironmentSettings(), ctx.services.settings.base_domain)
    chosen = found.hosts[0] if found.hosts and usual not in found.hosts else None
    return {**said, "domain": chosen} if chosen else dict(said)


async def _domains(ctx: Context, found: Adoptable, further: Mapping[str, Any]) -> list[Change]:
    """Hosts beyond the first, as further domains of the environment."""
    slots = found.slots
    usual = public_host(slots.project_name, slots.environment, EnvironmentSettings(), ctx.services.settings.base_domain)
    first = usual if usual in found.hosts or not found.hosts else found.hosts[0]
    more = [host for host in found.hosts if host != first]
    for host in more:
        if host in further and not further[host].covers(slots.project_name, slots.environment):
            raise Conflict(f"{host} is taken by {further[host].named(slots.project_name)}", hint=REPAIR)
    if not more:
        return []
    key = document_of(slots.project_name)
    stored = await ctx.store.get(key)
    doc: Document = stored.doc if stored else {}
    for host in more:
        doc = with_entry(doc, host, {"environment": slots.environment.value})
    return [Change(key, doc, stored.version if stored else 0)]
