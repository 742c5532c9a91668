"""What the world tells of a registry that is damaged: containers' labels, the proxy's routes, the journals of switches."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from codeb_mcp.drivers.protocols import Container
from codeb_mcp.model.errors import CodebError
from codeb_mcp.model.names import Environment, Slot, environment_key, split_environment_key
from codeb_mcp.model.project import EnvironmentSettings, public_host
from codeb_mcp.model.rebuild import Known, LastSwitch, Remains, Told
from codeb_mcp.model.routes import Site
from codeb_mcp.operations.context import Services
from codeb_mcp.operations.observe import is_ours
from codeb_mcp.operations.places import Place, every_place, places_in
from codeb_mcp.registry.files import FileStore
from codeb_mcp.settings import Settings

RUNS_LOOKED_AT = 10_000


@dataclass(slots=True)
class Evidence:
    """By environment key. `places`: the app servers that were asked; `stands`: the servers of
    the inventory that have containers of it; `silent`: who could not be asked, and why; `known`: what `ssot` itself can still tell."""

    remains: dict[str, list[Remains]] = field(default_factory=dict)
    sites: dict[str, Site] = field(default_factory=dict)
    switches: Mapping[str, LastSwitch] = field(default_factory=dict)
    places: tuple[Place, ...] = ()
    stands: dict[str, list[str]] = field(default_factory=dict)
    silent: list[tuple[str, str]] = field(default_factory=list)
    known: Known = field(default_factory=lambda: Known({}, False, ""))

    def told(self, key: str) -> Told:
        """What proxy and journals tell of one environment."""
        site = self.sites.get(key)
        return Told((site.blue_port, site.green_port) if site else None, self.switches.get(key))


async def gather(services: Services) -> Evidence:
    """Ask everybody; who does not answer is noted, and the others are believed."""
    found = Evidence()
    found.places = await _places(services)
    for place in found.places:
        at = f" on {place.key}" if place.key else ""
        try:
            for key, remains in (await _remains(services, place)).items():
                if place.key:
                    found.stands.setdefault(key, []).append(place.key)
                known = found.remains.setdefault(key, [])
                known += [one for one in remains if one not in known]  # the same release on several servers counts once
        except CodebError as error:
            found.silent.append((f"engine{at}", f"{error.message}: its containers are not used"))
        try:
            sites = [site for site in await place.drivers.proxy.routes() if _is_environment(site.key)]
            found.sites |= {site.key: site for site in sites if site.key not in found.sites}
        except CodebError as error:
            found.silent.append((f"proxy{at}", f"{error.message}: its routes are not used"))
    found.switches = await _switches(services)
    return found


async def _places(services: Services) -> tuple[Place, ...]:
    """All app servers, by the inventory as it is or, when that cannot be read, as it was kept last."""
    try:
        return await every_place(services)
    except CodebError:
        kept = next(iter(await services.store.kept("ssot")), None) if isinstance(services.store, FileStore) else None
        return await places_in(services, kept or {})


async def _remains(services: Services, place: Place) -> dict[str, list[Remains]]:
    found: dict[str, list[Remains]] = defaultdict(list)
    installation = await services.store.identity()
    for one in await place.drivers.containers.list():
        remains = read_labels(one) if is_ours(one, installation) else None
        if remains is not None:
            found[environment_key(remains.project, remains.environment)].append(remains)
    return found


def read_labels(one: Container) -> Remains | None:
    """What a container's labels tell; None when they are not whole."""
    labels = one.labels
    try:
        environment, slot = Environment(labels["codeb.environment"]), Slot(labels["codeb.slot"])
        project, port = labels["codeb.project"], one.host_ports[0]
    except (KeyError, ValueError, IndexError):
        return None
    try:
        deployed = datetime.fromisoformat(labels.get("codeb.deployed_at", ""))
    except ValueError:
        deployed = None
    return Remains(
        name=one.name,
        project=project,
        environment=environment,
        slot=slot,
        team=labels.get("codeb.team", "default"),
        version=labels.get("codeb.version", ""),
        image=one.image_reference,
        image_id=one.image_id,
        digest=labels.get("codeb.digest", ""),
        run_id=labels.get("codeb.run", ""),
        port=port,
        deployed_at=deployed,
    )


def _is_environment(key: str) -> bool:
    try:
        split_environment_key(key)
    except ValueError:
        return False
    return True


async def _switches(services: Services) -> dict[str, LastSwitch]:
    """The latest switch of each environment that succeeded."""
    found: dict[str, LastSwitch] = {}
    page, _ = await services.registry.journals.page(
        limit=RUNS_LOOKED_AT, offset=0, match=lambda header: header.kind in ("promote", "rollback")
    )
    for journal in page:  # newest first
        end, header = journal.finished(), journal.header
        key = environment_key(header.project, header.environment or "")
        if key in found or journal.damage or not end or not end.get("ok"):
            continue
        result = end.get("result", {})
        try:
            slot, until = result.get("fromSlot"), result.get("graceExpiresAt")
            found[key] = LastSwitch(
                Slot(slot) if slot else None, header.created_at, datetime.fromisoformat(until) if until else None
            )
        except (ValueError, TypeError):
            continue
    return found


def own_hosts(settings: Settings, site: Site) -> tuple[str | None, tuple[str, ...]]:
    """`(chosen domain, further domains)` of a site; None when its first name is the default one."""
    project, environment = split_environment_key(site.key)
    usual = public_host(project, environment, EnvironmentSettings(), settings.base_domain)
    first, *more = site.hosts or (usual,)
    return (None if first == usual else first), tuple(more)
