"""Looking at the world once, for drift and for the housekeeper."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import replace

from codeb_mcp.drivers.protocols import Container
from codeb_mcp.model.drift import Drift, PublicAnswer, Repair, SeenContainer, World, drift_of
from codeb_mcp.model.errors import CodebError, Conflict, NotFound, RegistryDamaged
from codeb_mcp.model.names import Slot, lease_name
from codeb_mcp.model.routes import RivalRoute
from codeb_mcp.model.slot import SlotRecord, Slots, SlotState
from codeb_mcp.operations.context import Services
from codeb_mcp.operations.perform import INSTALLATION
from codeb_mcp.operations.places import Place, every_place, placement_left, placement_of
from codeb_mcp.operations.state import environments, find_slots, site_of

PUBLIC_SECONDS = 3.0
PUBLIC_AT_ONCE = 16


async def observe(services: Services, place: Place, slots: list[Slots]) -> World:
    """One app server's engine, flags, kernel ports and proxy, as they are now. Raises the engine's error; a proxy that
    cannot be asked is left open, so that an outage is not taken for missing routes."""
    every = await place.drivers.containers.list(managed=False)
    installation = await services.store.identity()
    adopted = {
        record.adopted_id: (one, record) for one in slots for record in (one.blue, one.green) if record.adopted_id
    }
    ours = {one.name: _seen(one) for one in every if is_ours(one, installation)}
    ours |= {one.name: _seen_as(one, *adopted[one.container_id]) for one in every if one.container_id in adopted}
    container_ports = {port for one in every if one.running for port in one.host_ports}
    own_ports = {port for seen in ours.values() for port in seen.host_ports}
    placed = {one.key: await placement_left(services, one.key) for one in slots}
    apps = frozenset(key for key, one in placed.items() if place.key in {app.key for app in one.apps})
    fronts = frozenset(key for key, one in placed.items() if place.key in {front.key for front in one.fronts})
    return World(
        containers=ours,
        images=await _images(place, [one for one in slots if one.key in apps], ours),
        live=await _live(place, fronts),
        routes=await _routes(services, place, [one for one in slots if one.key in fronts]),
        foreign_ports=frozenset((await place.drivers.ports.listening() | container_ports) - own_ports),
        apps=apps,
        fronts=fronts,
    )


def is_ours(one: Container, installation: str) -> bool:
    """Whether the container is of this installation; one without the installation's label is of an earlier version."""
    whole = all(one.labels.get(f"codeb.{name}") for name in ("project", "environment", "slot"))
    return whole and one.labels.get(INSTALLATION, installation) == installation


def _seen(one: Container) -> SeenContainer:
    return SeenContainer(
        name=one.name,
        project=one.labels.get("codeb.project", ""),
        environment=one.labels.get("codeb.environment", ""),
        slot=one.labels.get("codeb.slot", ""),
        team=one.labels.get("codeb.team", ""),
        version=one.labels.get("codeb.version", ""),
        image_id=one.image_id,
        running=one.running,
        state=one.state,
        host_ports=one.host_ports,
    )


def _seen_as(one: Container, slots: Slots, record: SlotRecord) -> SeenContainer:
    """A container that was adopted: whose it is says the registry, since it may carry no labels."""
    return replace(
        _seen(one),
        project=slots.project_name,
        environment=slots.environment.value,
        slot=record.name.value,
        team=slots.team_id,
        version=record.version or "",
    )


async def _images(place: Place, slots: list[Slots], ours: dict[str, SeenContainer]) -> frozenset[str]:
    """Which images of slots without a right container are still here; the others need not be asked for."""
    wanted = {
        record.image_id
        for one in slots
        for record in (one.blue, one.green)
        if record.state is not SlotState.EMPTY and record.image_id
    }
    present = {seen.image_id for seen in ours.values()}
    here = wanted & present
    for image_id in wanted - present:
        if await place.drivers.images.find(image_id) is not None:
            here.add(image_id)
    return frozenset(here)


async def _live(place: Place, keys: Iterable[str]) -> dict[str, Slot | None]:
    known = set(await place.drivers.traffic.keys())
    return {key: await place.drivers.traffic.live(key) for key in keys if key in known}


async def _routes(services: Services, place: Place, slots: list[Slots]) -> dict[str, bool] | None:
    try:
        present = await place.drivers.proxy.sites()
        routes = dict.fromkeys(present, True)
        for one in slots:
            if one.adopted_route:
                routes.setdefault(one.key, True)  # served by the former route until the first switch
            elif one.key in routes:
                routes[one.key] = await place.drivers.proxy.has(await site_of(services.store, services.settings, one))
    except CodebError as error:
        services.log.warning("the proxy cannot be asked for its routes", problem=error.message, server=place.key)
        return None
    return routes


async def _rivals(place: Place) -> tuple[RivalRoute, ...]:
    try:
        return tuple(await place.drivers.proxy.rivals())
    except CodebError:
        return ()  # said already: the proxy cannot be asked


async def _public(services: Services, place: Place, slots: list[Slots]) -> dict[str, PublicAnswer]:
    """What users get from each environment, a few asked at a time."""
    turns = asyncio.Semaphore(PUBLIC_AT_ONCE)

    async def ask(one: Slots) -> PublicAnswer | None:
        async with turns:
            return await _answer(services, place, one)

    answers = await asyncio.gather(*(ask(one) for one in slots))
    return {one.key: answer for one, answer in zip(slots, answers, strict=True) if answer is not None}


async def _answer(services: Services, place: Place, slots: Slots) -> PublicAnswer | None:
    """What the public address answers; None when nothing does, or when a switch came in between."""
    host = (await site_of(services.store, services.settings, slots)).hosts[0]
    path = slots.active.health_path if slots.active else None
    answer = await place.drivers.prober.public(host, path or "/", timeout_seconds=PUBLIC_SECONDS)
    if answer.status is None:
        return None
    if answer.slot != slots.active_slot:
        now = await find_slots(services.store, slots.project_name, slots.environment)
        if now is None or now.active_slot is not slots.active_slot or await _is_busy(services, slots):
            return None
    return PublicAnswer(host, answer.status, answer.slot)


async def _is_busy(services: Services, slots: Slots) -> bool:
    for environment in (slots.environment.value, None):
        if await services.store.lease(lease_name(slots.project_name, environment)) is not None:
            return True
    return False


async def drift(services: Services) -> list[Drift]:
    """Everything that differs now, on all app servers. Environments in which a run is under way are left alone. Raises the
    error of the engine beside the control plane; another app server that cannot be asked is a difference itself."""
    slots = await environments(services.store)
    busy = [one.key for one in slots if await _is_busy(services, one)]
    every = await every_place(services)
    found = await asyncio.gather(*(_drift_at(services, place, slots, busy) for place in every))
    lost = [await _without_server(services, one) for one in slots]
    return sorted(
        (one for part in [*found, *lost] for one in part),
        key=lambda one: (one.key, one.kind, one.slot or "", one.server),
    )


async def _drift_at(services: Services, place: Place, slots: list[Slots], busy: Sequence[str]) -> list[Drift]:
    try:
        world = await observe(services, place, slots)
    except CodebError as error:
        if not place.key:
            raise
        return await _out_of_reach(services, place, slots, error)
    asked = [one for one in slots if world.leads(one.key) and one.key not in busy and not one.adopted_route]
    world = replace(world, rivals=await _rivals(place), public=await _public(services, place, asked))
    return [replace(one, server=place.key) for one in drift_of(slots, world, busy)]


async def _without_server(services: Services, slots: Slots) -> list[Drift]:
    """A difference when the environment is placed on something that is no app server of the inventory (any more)."""
    try:
        await placement_of(services, slots.key)
    except (NotFound, Conflict, RegistryDamaged) as error:
        proposal = "add the server again, or place it elsewhere with project_place"
        return [Drift("server_unknown", slots.key, f"{slots.key}: {error.message}", Repair.NONE, proposal)]
    return []


async def _out_of_reach(services: Services, place: Place, slots: list[Slots], error: CodebError) -> list[Drift]:
    """One difference for each environment that stands there."""
    said, proposal = (
        f"{place.named} cannot be asked: {error.message}",
        "see that the server is up, or place it elsewhere",
    )
    return [
        Drift("server_unreachable", one.key, said, Repair.NONE, proposal, server=place.key)
        for one in slots
        if place.key in {each.key for each in (await placement_left(services, one.key)).all}
    ]
