"""Placing an environment on app servers of the inventory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from codeb_mcp.model.access import Reach, Role
from codeb_mcp.model.errors import CodebError, Conflict
from codeb_mcp.model.names import Environment, ProjectName, Slot, container_name, lease_name
from codeb_mcp.model.project import EnvironmentSettings
from codeb_mcp.model.server import ServerKey
from codeb_mcp.model.slot import Slots, SlotState
from codeb_mcp.operations.catalog import Effect, Request, Result, operation
from codeb_mcp.operations.context import Context, Services
from codeb_mcp.operations.environments import ports_held
from codeb_mcp.operations.places import Place, Placement, on_all, placement_for, placement_left
from codeb_mcp.operations.routing import publish_routes
from codeb_mcp.operations.state import load_project, load_slots, parse_project
from codeb_mcp.registry.store import Document, Fence, Lease, update


def _each_once(servers: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(servers)) != len(servers):
        raise ValueError("must name each server once")
    return servers


class PlaceRequest(Request):
    """Where an environment is to stand."""

    project_name: ProjectName = Field(description="Project")
    environment: Environment = Field(Environment.STAGING, description="Environment; staging if not given")
    servers: Annotated[tuple[ServerKey, ...], AfterValidator(_each_once)] = Field(
        max_length=16, description="App servers of the inventory; none: the one beside the control plane"
    )
    edge: bool = Field(
        False, description="The proxy beside the control plane stands in front of them; else each has its own"
    )


class PlaceResult(Result):
    """Where the environment stands."""

    project_name: str
    environment: Environment
    servers: list[str]
    edge: bool
    changed: bool
    warnings: list[str] = Field(default_factory=list)
    summary: str


@operation(effect=Effect.CHANGE, role=Role.ADMIN, reach=Reach.PROJECT)
async def project_place(ctx: Context, request: PlaceRequest) -> PlaceResult:
    """Place an environment on one or several app servers: a deploy then goes to all of them.

    Servers are added, and an edge is changed, only while both slots are empty; a server is taken away at any time as long
    as another one stays. Each new server has to answer, and must have the environment's ports free.
    """
    services, key = ctx.services, (request.project_name, request.environment)
    lease = await services.store.acquire(lease_name(*key), f"place:{ctx.correlation_id}")
    try:
        former, after, changed = await _change(services, request, lease)
        warnings = await _settle(services, request, former, after, lease.fence) if changed else []
    finally:
        await services.store.release(lease)
    if changed:
        warnings += await publish_routes(services, request.project_name, [request.environment])
    where = ", ".join(request.servers) or "the app server beside the control plane"
    return PlaceResult(
        project_name=request.project_name,
        environment=request.environment,
        servers=list(request.servers),
        edge=request.edge,
        changed=changed,
        warnings=warnings,
        summary=f"{request.project_name} {request.environment} stands on {where}",
    )


async def _change(services: Services, request: PlaceRequest, lease: Lease) -> tuple[Placement, Placement, bool]:
    """The placements before and after, and whether they differ; written under the environment's lease."""
    project = await load_project(services.store, request.project_name)
    slots = await load_slots(services.store, request.project_name, request.environment)
    present = project.settings.of(request.environment)
    wanted = present.model_copy(update={"servers": request.servers, "edge": request.edge and bool(request.servers)})
    after = await placement_for(services, wanted)
    if len({place.key for place in after.apps}) < len(after.apps):
        raise Conflict("two of these servers are the same machine", hint="Name each machine once.")
    former = await placement_left(services, slots.key)
    if (present.servers, present.edge) == (wanted.servers, wanted.edge):
        return former, after, False
    _require_possible(slots, former, after)
    known = {place.key for place in former.apps}
    await _require_ready([place for place in after.apps if place.key not in known], after, slots)

    def write(doc: Document | None) -> Document:
        return _with_placement(doc or {}, request, wanted)

    await update(services.store, "ssot", write, fence=lease.fence)
    return former, after, True


def _require_possible(slots: Slots, former: Placement, after: Placement) -> None:
    """Raise Conflict for a change that releases in the slots would not live through."""
    full = [record.name for record in (slots.blue, slots.green) if record.state is not SlotState.EMPTY]
    known = {place.key for place in former.apps}
    fewer = {place.key for place in after.apps} <= known and after.edge == former.edge
    full = full if known else []  # all its servers are gone from the inventory, and the releases with them
    if full and not fewer:
        raise Conflict(
            f"{slots.key} has a release in slot {' and '.join(full)}, which new servers would not have",
            hint="Place it while both slots are empty, for example a new environment before its first deploy. Taking a "
            "server away is possible at any time.",
            slots=[str(one) for one in full],
        )


async def _require_ready(new: Sequence[Place], after: Placement, slots: Slots) -> None:
    """Raise the error of a server that cannot be used, or Conflict for one where the environment's ports are taken."""

    async def look(place: Place) -> set[int]:
        await place.drivers.containers.engine()
        if place.key in {front.key for front in after.fronts}:
            await place.drivers.proxy.sites()
        return await ports_held(place)

    held = await on_all(new, look)
    for place, ports in zip(new, held, strict=True):
        taken = sorted(ports & {slots.blue.port, slots.green.port})
        if taken:
            raise Conflict(
                f"port {taken[0]} of {slots.key} is taken on {place.named}",
                hint="End what listens there, or choose another server.",
                server=place.key,
                ports=taken,
            )


def _with_placement(ssot: Document, request: PlaceRequest, wanted: EnvironmentSettings) -> dict[str, Any]:
    projects = dict(ssot.get("projects", {}))
    entry = projects.get(request.project_name)
    if entry is None:
        raise Conflict("the project was deleted meanwhile", hint="Create it again.")
    settings = parse_project(request.project_name, entry).settings
    own = settings.of(request.environment).model_copy(update={"servers": wanted.servers, "edge": wanted.edge})
    # What was never chosen stays unsaid, but these two are chosen now.
    own = EnvironmentSettings.model_validate(
        {**own.model_dump(exclude_unset=True), "servers": own.servers, "edge": own.edge}
    )
    settings = settings.model_copy(update={"environments": {**settings.environments, request.environment: own}})
    dumped = settings.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_unset=True)
    dumped.setdefault("environments", {})[request.environment.value] = own.model_dump(
        mode="json", by_alias=True, exclude_none=True, exclude_unset=True
    )
    projects[request.project_name] = {**entry, "settings": dumped}
    return {**ssot, "projects": projects}


async def _settle(
    services: Services, request: PlaceRequest, former: Placement, after: Placement, fence: Fence
) -> list[str]:
    """Take the environment away from servers that it has left; what cannot be reached now is a difference that
    registry_check shows."""
    key = f"{request.project_name}-{request.environment}"
    seconds = (await load_project(services.store, request.project_name)).settings.limits.stop_timeout_seconds
    fronts, apps = {place.key for place in after.fronts}, {place.key for place in after.apps}
    warnings = []
    for place in former.all:
        try:
            if place.key not in fronts:
                await _unfront(place, key, fence)
            if place.key not in apps:
                await _clear(place, request, seconds, fence)
        except CodebError as error:
            warnings.append(f"{place.named} still has something of {key}: {error.message}; see registry_check")
    return warnings


async def _unfront(place: Place, key: str, fence: Fence) -> None:
    await place.drivers.proxy.apply(remove=[key])
    await place.drivers.traffic.forget(key, fence=fence.token)


async def _clear(place: Place, request: PlaceRequest, seconds: int, fence: Fence) -> None:
    for slot in Slot:
        name = container_name(request.project_name, request.environment, slot)
        await place.drivers.containers.remove(name, fence=fence.token, stop_timeout_seconds=seconds)
