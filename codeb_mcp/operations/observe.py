"""Looking at the world once, for drift and for the housekeeper."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from codeb_mcp.drivers.protocols import Container
from codeb_mcp.model.drift import Drift, PublicAnswer, SeenContainer, World, drift_of
from codeb_mcp.model.errors import CodebError
from codeb_mcp.model.names import Slot, lease_name
from codeb_mcp.model.routes import RivalRoute
from codeb_mcp.model.slot import SlotRecord, Slots, SlotState
from codeb_mcp.operations.context import Services
from codeb_mcp.operations.perform import INSTALLATION
from codeb_mcp.operations.state import environments, find_slots, site_of

PUBLIC_SECONDS = 3.0
PUBLIC_AT_ONCE = 16


async def observe(services: Services, slots: list[Slots]) -> World:
    """The engine, the flags, the kernel's ports and the proxy, as they are now. Raises the engine's error; a proxy that
    cannot be asked is left open, so that an outage is not taken for missing routes."""
    every = await services.drivers.containers.list(managed=False)
    installation = await services.store.identity()
    adopted = {
        record.adopted_id: (one, record) for one in slots for record in (one.blue, one.green) if record.adopted_id
    }
    ours = {one.name: _seen(one) for one in every if is_ours(one, installation)}
    ours |= {one.name: _seen_as(one, *adopted[one.container_id]) for one in every if one.container_id in adopted}
    container_ports = {port for one in every if one.running for port in one.host_ports}
    own_ports = {port for seen in ours.values() for port in seen.host_ports}
    keys = [one.key for one in slots]
    return World(
        containers=ours,
        images=await _images(services, slots, ours),
        live=await asyncio.to_thread(_live, services, keys),
        routes=await _routes(services, slots),
        foreign_ports=frozenset((services.drivers.ports.listening() | container_ports) - own_ports),
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


async def _images(services: Services, slots: list[Slots], ours: dict[str, SeenContainer]) -> frozenset[str]:
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
        if await services.drivers.images.find(image_id) is not None:
            here.add(image_id)
    return frozenset(here)


def _live(services: Services, keys: list[str]) -> dict[str, Slot | None]:
    known = set(services.drivers.traffic.keys())
    return {key: services.drivers.traffic.live(key) for key in keys if key in known}


async def _routes(services: Services, slots: list[Slots]) -> dict[str, bool] | None:
    try:
        present = await services.drivers.proxy.sites()
        routes = dict.fromkeys(present, True)
        for one in slots:
            if one.adopted_route:
                routes.setdefault(one.key, True)  # served by the former route until the first switch
            elif one.key in routes:
                routes[one.key] = await services.drivers.proxy.has(
                    await site_of(services.store, services.settings, one)
                )
    except CodebError as error:
        services.log.warning("the proxy cannot be asked for its routes", problem=error.message)
        return None
    return routes


async def _rivals(services: Services) -> tuple[RivalRoute, ...]:
    try:
        return tuple(await services.drivers.proxy.rivals())
    except CodebError:
        return ()  # said already: the proxy cannot be asked


async def _public(services: Services, slots: list[Slots]) -> dict[str, PublicAnswer]:
    """What users get from each environment, a few asked at a time."""
    turns = asyncio.Semaphore(PUBLIC_AT_ONCE)

    async def ask(one: Slots) -> PublicAnswer | None:
        async with turns:
            return await _answer(services, one)

    answers = await asyncio.gather(*(ask(one) for one in slots))
    return {one.key: answer for one, answer in zip(slots, answers, strict=True) if answer is not None}


async def _answer(services: Services, slots: Slots) -> PublicAnswer | None:
    """What the public address answers; None when nothing does, or when a switch came in between."""
    host = (await site_of(services.store, services.settings, slots)).hosts[0]
    path = slots.active.health_path if slots.active else None
    answer = await services.drivers.prober.public(host, path or "/", timeout_seconds=PUBLIC_SECONDS)
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
    """Everything that differs now. Environments in which a run is under way are left alone."""
    slots = await environments(services.store)
    busy = [one.key for one in slots if await _is_busy(services, one)]
    world = await observe(services, slots)
    asked = [one for one in slots if one.key not in busy and not one.adopted_route]
    world = replace(world, rivals=await _rivals(services), public=await _public(services, asked))
    return drift_of(slots, world, busy)
