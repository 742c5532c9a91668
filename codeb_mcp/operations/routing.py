"""Addresses: which hosts belong to whom, and getting them into the proxy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from codeb_mcp.model.errors import CodebError, Conflict
from codeb_mcp.model.names import Environment, Slot, lease_name
from codeb_mcp.model.project import EnvironmentSettings, public_host
from codeb_mcp.model.routes import Site
from codeb_mcp.model.slot import Slots
from codeb_mcp.operations.context import Services
from codeb_mcp.operations.places import Place, on_all, placement_of
from codeb_mcp.operations.state import find_slots, site_of
from codeb_mcp.settings import Settings


def require_free_hosts(
    settings: Settings,
    projects: Mapping[str, Any],
    project: str,
    environments: Sequence[Environment],
    further: Mapping[str, Owner],
) -> None:
    """Raise Conflict when the public host of one of these environments lies in the preview domain or is the host of any
    other environment. `projects` is that part of `ssot` as it is about to be written; `further` names the hosts beyond
    that, and whose they are."""
    preview = settings.preview_domain
    taken = {
        host: "another project" if name != project else f"the {environment} environment of this project"
        for name, entry in projects.items()
        for environment, host in _hosts(settings, name, entry)
        if name != project or environment not in environments
    }
    for environment, host in _hosts(settings, project, projects[project]):
        if environment not in environments:
            continue
        if host == preview or host.endswith("." + preview):
            raise Conflict(f"{host} lies in the preview domain", hint="Choose another name or domain.", host=host)
        if host in taken:
            raise Conflict(f"{host} is taken by {taken[host]}", hint="Choose another name or domain.", host=host)
        if host in further and not further[host].covers(project, environment):
            who = further[host].named(project)
            raise Conflict(f"{host} is taken by {who}", hint="Choose another name or domain.", host=host)
        taken[host] = f"the {environment} environment of this project"


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose a further domain is: an environment's; any environment's of the project when it is just leaving; the control
    plane's without a project."""

    project: str
    environment: Environment | None = None

    def covers(self, project: str, environment: Environment) -> bool:
        """Whether that environment may have it."""
        return self.project == project and self.environment in (None, environment)

    def named(self, project: str) -> str:
        """Whose it is, in words for somebody of `project`, who learns nothing about other projects."""
        if self.project == project:
            return f"the {self.environment} environment of this project"
        return "another project" if self.project else "the control plane"


def require_free_domain(
    settings: Settings, projects: Mapping[str, Any], domain: str, owner: Owner, further: Mapping[str, Owner]
) -> None:
    """Raise Conflict unless a further domain may be that environment's: nobody else has it, and it is no preview name."""
    preview, project, wanted = settings.preview_domain, owner.project, owner.environment
    if domain == preview or domain.endswith("." + preview):
        raise Conflict(f"{domain} lies in the preview domain", hint="Choose another domain.", host=domain)
    hosts = (
        (Owner(name, environment), host)
        for name, entry in projects.items()
        for environment, host in _hosts(settings, name, entry)
    )
    holder = next((one for one, host in hosts if host == domain and one != owner), further.get(domain))
    if holder is not None and (wanted is None or not holder.covers(project, wanted)):
        raise Conflict(
            f"{domain} is taken by {holder.named(project)}",
            hint="Choose another domain, or delete it there first.",
            host=domain,
        )


def _hosts(settings: Settings, name: str, entry: Mapping[str, Any]) -> Iterator[tuple[Environment, str]]:
    """Environment and public host of one entry of `ssot`; straight from its JSON, since there may be thousands."""
    chosen = entry.get("settings", {}).get("environments", {})
    for environment in (one for one in Environment if one.value in {*entry.get("ports", {}), *chosen}):
        own = EnvironmentSettings.model_construct(domain=chosen.get(environment.value, {}).get("domain"))
        yield environment, public_host(name, environment, own, settings.base_domain)


async def require_without_traffic(services: Services, slots: Slots, slot: Slot) -> None:
    """Raise Conflict when traffic goes to the slot although the registry says otherwise: what serves is never replaced or
    removed on the word of a record alone."""
    fronts = (await placement_of(services, slots.key)).fronts
    live = await on_all(fronts, lambda place: place.drivers.traffic.live(slots.key))
    if slot in live and slots.active_slot is not slot:
        where = fronts[live.index(slot)]
        on = f" on {where.named}" if where.key else ""
        raise Conflict(
            f"traffic of {slots.key} goes to slot {slot}{on}, which the registry does not know as active",
            hint="Run registry_check and mend the difference with registry_repair first.",
            slot=slot.value,
        )


async def publish_routes(services: Services, project: str, environments: Sequence[Environment]) -> list[str]:
    """Get the environments into the proxy now; answers warnings when that has to wait. Housekeeping, deploy and promote
    see to it again, so an unreachable proxy does not undo what the registry has."""
    sites: dict[str, tuple[Place, list[Site]]] = {}
    try:
        for environment in environments:
            slots = await find_slots(services.store, project, environment)
            if slots is None:
                continue
            await ensure_flag(services, slots)
            site = await site_of(services.store, services.settings, slots)
            for place in (await placement_of(services, slots.key)).fronts:
                sites.setdefault(place.key, (place, []))[1].append(site)
        await on_all(
            [place for place, _ in sites.values()],
            lambda place: place.drivers.proxy.apply(upsert=sites[place.key][1]),
        )
    except CodebError as error:
        return [f"the proxy does not serve the addresses yet ({error.message}); it is tried again by itself"]
    return []


async def ensure_flag(services: Services, slots: Slots, fronts: Sequence[Place] | None = None) -> None:
    """See that the environment has a traffic flag before its route exists: a route without one sends to blue.

    `fronts`: only there. Takes the environment's lease for it, since flags believe only the newest fence; raises LockHeld while a run has it
    (which sees to the flag itself).
    """
    fronts = (await placement_of(services, slots.key)).fronts if fronts is None else fronts
    known = await on_all(fronts, lambda place: _knows(place, slots.key))
    if all(known):
        return
    lease = await services.store.acquire(lease_name(slots.project_name, slots.environment), "routes")
    try:
        if (
            await find_slots(services.store, slots.project_name, slots.environment) is not None
        ):  # else deleted meanwhile
            new = [place for place, there in zip(fronts, known, strict=True) if not there]
            await on_all(
                new, lambda place: place.drivers.traffic.switch(slots.key, slots.active_slot, fence=lease.token)
            )
    finally:
        await services.store.release(lease)


async def _knows(place: Place, key: str) -> bool:
    return await place.drivers.traffic.live(key) is not None or key in await place.drivers.traffic.keys()


async def ensure_site(place: Place, site: Site, *, take_over: bool = False) -> bool:
    """Have the site in the place's proxy; True when that took a change. `take_over`: see `Proxy.apply`."""
    if await place.drivers.proxy.has(site):
        return False
    return await place.drivers.proxy.apply(upsert=[site], take_over=take_over)
