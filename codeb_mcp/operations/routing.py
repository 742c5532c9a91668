"""Addresses: which hosts belong to whom, and getting them into the proxy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from codeb_mcp.model.errors import CodebError, Conflict
from codeb_mcp.model.names import Environment
from codeb_mcp.model.project import public_host
from codeb_mcp.operations.context import Services
from codeb_mcp.operations.state import find_slots, load_ssot, parse_project, site_of


async def require_free_hosts(services: Services, project: str, hosts: Iterable[str]) -> None:
    """Raise Conflict when another project already serves one of the hosts, or it lies in the preview domain."""
    wanted = set(hosts)
    preview = services.settings.preview_domain
    for host in wanted:
        if host == preview or host.endswith("." + preview):
            raise Conflict(f"{host} lies in the preview domain", hint="Choose another domain.", host=host)
    for name, entry in (await load_ssot(services.store)).get("projects", {}).items():
        if name == project:
            continue
        other = parse_project(name, entry)
        for environment in other.ports:
            host = public_host(name, environment, other.settings.of(environment), services.settings.base_domain)
            if host in wanted:
                raise Conflict(f"{host} is taken by another project", hint="Choose another domain.", host=host)


async def publish_routes(services: Services, project: str, environments: Sequence[Environment]) -> list[str]:
    """Get the environments into the proxy now; answers warnings when that has to wait. Housekeeping, deploy and promote
    see to it again, so an unreachable proxy does not undo what the registry has."""
    sites = []
    for environment in environments:
        slots = await find_slots(services.store, project, environment)
        if slots is None:
            continue
        if services.drivers.traffic.live(slots.key) is None:
            services.drivers.traffic.switch(slots.key, slots.active_slot, fence=0)
        sites.append(await site_of(services.store, services.settings, slots))
    try:
        if sites:
            await services.drivers.proxy.apply(upsert=sites)
    except CodebError as error:
        return [f"the proxy does not serve the addresses yet ({error.message}); it is tried again by itself"]
    return []
