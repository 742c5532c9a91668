"""`codeb registry rebuild`: a damaged registry from its kept versions, the engine's labels and the traffic flags.

Documents that can be read are never changed. A damaged one is put aside, not thrown away.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from codeb_mcp.drivers.protocols import Container
from codeb_mcp.model.errors import CodebError, RegistryDamaged
from codeb_mcp.model.names import Environment, Slot, environment_key
from codeb_mcp.model.project import all_ports
from codeb_mcp.model.rebuild import Remains, slots_from_remains
from codeb_mcp.model.slot import Slots
from codeb_mcp.operations.context import Services
from codeb_mcp.operations.keys import PLATFORM_TEAM
from codeb_mcp.operations.observe import is_ours
from codeb_mcp.operations.setup import SSOT_VERSION
from codeb_mcp.operations.state import environments, parse_slots
from codeb_mcp.registry.files import FileStore
from codeb_mcp.registry.store import Change, Document


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What was (or would be) done with one document. `action`: restored, rebuilt, freed or lost."""

    key: str
    action: str
    detail: str


async def rebuild(services: Services, *, apply: bool) -> list[Rebuilt]:
    """Mend everything that is damaged or missing; without `apply` only say how. Empty when all is well."""
    store = services.store
    if not isinstance(store, FileStore):
        raise RegistryDamaged("only a registry in files can be rebuilt", hint="Use the backend's own backups.")
    done: list[Rebuilt] = []
    remains = await _remains(services, done)
    for damage in await store.examine():
        done.append(await _mend(services, store, damage, remains, apply=apply))
    done += await _missing_slots(services, remains, {one.key for one in done}, apply=apply)
    done += await _missing_entries(services, remains, apply=apply)
    return done


async def _remains(services: Services, done: list[Rebuilt]) -> dict[str, list[Remains]]:
    """Our containers by environment key; without an engine only kept versions can help, and the answer says so."""
    found: dict[str, list[Remains]] = defaultdict(list)
    try:
        containers = await services.drivers.containers.list()
    except CodebError as error:
        done.append(Rebuilt("engine", "lost", f"{error.message}: only kept versions are used"))
        return found
    installation = await services.store.identity()
    for one in containers:
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


async def _mend(
    services: Services, store: FileStore, damage: Any, remains: dict[str, list[Remains]], *, apply: bool
) -> Rebuilt:
    key = damage.key
    if key.startswith("leases/"):
        if apply:
            await store.replace_damaged_lease(key.removeprefix("leases/"))
        return Rebuilt(key, "freed", damage.problem)
    if damage.last_good_serial is not None:
        if apply:
            await store.restore(key, damage.last_good_serial)
            await _correct(services, store, key, remains)
        return Rebuilt(key, "restored", f"version {damage.last_good_serial}; was: {damage.problem}")
    doc = await _from_world(services, key, remains)
    if doc is None:
        return Rebuilt(key, "lost", f"{damage.problem}; no version of it is kept and nothing else tells its content")
    if apply:
        await store.replace_damaged(key, doc)
    return Rebuilt(key, "rebuilt", f"from the engine and the flags; was: {damage.problem}")


async def _correct(services: Services, store: FileStore, key: str, remains: dict[str, list[Remains]]) -> None:
    """A kept version of slots may be older than what runs: what runs is right."""
    if not key.startswith("slots/"):
        return
    stored = await store.get(key)
    if stored is None:
        return
    former = parse_slots(key, stored.doc)
    found = remains.get(former.key, [])
    live = services.drivers.traffic.live(former.key)
    slots = slots_from_remains(found, live, former, services.drivers.clock.now())
    await store.commit([Change(key, slots.dump(), stored.version)])


async def _from_world(services: Services, key: str, remains: dict[str, list[Remains]]) -> dict[str, Any] | None:
    if key == "ssot":
        return await _ssot(services, remains)
    if key == "teams":
        return await _teams(services, remains)
    if key.startswith("slots/"):
        slots = _slots(services, key.removeprefix("slots/"), remains)
        return slots.dump() if slots else None
    return None


def _slots(services: Services, key: str, remains: dict[str, list[Remains]]) -> Slots | None:
    if key not in remains:
        return None
    return slots_from_remains(remains[key], services.drivers.traffic.live(key), None, services.drivers.clock.now())


async def _ssot(services: Services, remains: dict[str, list[Remains]]) -> dict[str, Any]:
    """The document as containers and readable slots tell it."""
    projects: dict[str, Any] = {}
    for slots in await environments(services.store, []):
        entry = projects.setdefault(slots.project_name, {"teamId": slots.team_id, "ports": {}})
        entry["ports"][slots.environment.value] = {"blue": slots.blue.port, "green": slots.green.port}
    for several in remains.values():
        one = several[0]
        blue = one.port if one.slot is Slot.BLUE else one.port - 1
        entry = projects.setdefault(one.project, {"teamId": one.team, "ports": {}})
        entry["ports"].setdefault(one.environment.value, {"blue": blue, "green": blue + 1})
    return {"version": SSOT_VERSION, "servers": {}, "projects": projects, "usedPorts": sorted(all_ports(projects))}


async def _teams(services: Services, remains: dict[str, list[Remains]]) -> dict[str, Any]:
    """The document as containers, slots, projects and valid keys tell it. Names and members cannot be told."""
    teams: dict[str, Any] = {PLATFORM_TEAM: {"name": "Default", "platform": True, "projects": [], "members": {}}}
    told = [(several[0].team, several[0].project) for several in remains.values()]
    told += [(slots.team_id, slots.project_name) for slots in await environments(services.store, [])]
    ssot, keys = await _readable(services, "ssot"), await _readable(services, "api-keys")
    told += [(entry.get("teamId", PLATFORM_TEAM), name) for name, entry in ssot.get("projects", {}).items()]
    told += [(entry["teamId"], "") for entry in keys.get("keys", {}).values() if "revokedAt" not in entry]
    for name, project in told:
        team = teams.setdefault(name, {"name": name, "projects": [], "members": {}})
        team["projects"] = sorted({*team["projects"], project} - {""})
    return {"version": "1.0", "teams": teams}


async def _readable(services: Services, key: str) -> Document:
    """The document; an empty one when it is missing or damaged."""
    try:
        stored = await services.store.get(key)
    except RegistryDamaged:
        return {}
    return stored.doc if stored else {}


async def _missing_slots(
    services: Services, remains: dict[str, list[Remains]], mended: set[str], *, apply: bool
) -> list[Rebuilt]:
    """Environments that run but have no slot document at all."""
    done = []
    for key in sorted(remains):
        document = f"slots/{key}"
        if document in mended or await services.store.get(document) is not None:
            continue
        slots = _slots(services, key, remains)
        if slots is not None:
            if apply:
                await services.store.commit([Change(document, slots.dump(), 0)])
            done.append(Rebuilt(document, "rebuilt", "it was missing; from the engine and the flags"))
    return done


async def _missing_entries(services: Services, remains: dict[str, list[Remains]], *, apply: bool) -> list[Rebuilt]:
    """`ssot` and `teams` that are missing or do not name everything there is."""
    done = []
    for key, tell, merge in (("ssot", _ssot, _merged_projects), ("teams", _teams, _merged_teams)):
        whole = await tell(services, remains)
        try:
            stored = await services.store.get(key)
        except RegistryDamaged:
            continue
        if stored is None and not remains and not await services.store.keys("slots/"):
            continue  # an installation before `codeb init`
        doc = merge(dict(stored.doc), whole) if stored else whole
        if doc is None:
            continue
        if apply:
            await services.store.commit([Change(key, doc, stored.version if stored else 0)])
        done.append(Rebuilt(key, "rebuilt", "it did not name everything there is" if stored else "it was missing"))
    return done


def _merged_projects(doc: dict[str, Any], whole: dict[str, Any]) -> dict[str, Any] | None:
    """The document with the projects and environments that it does not name, or None when it names all."""
    projects = dict(doc.get("projects", {}))
    for name, entry in whole["projects"].items():
        own = projects.get(name, entry)
        projects[name] = {**own, "ports": {**entry["ports"], **own.get("ports", {})}}
    if projects == doc.get("projects", {}):
        return None
    used = sorted({*doc.get("usedPorts", []), *all_ports(projects)})
    return {**doc, "projects": projects, "usedPorts": used}


def _merged_teams(doc: dict[str, Any], whole: dict[str, Any]) -> dict[str, Any] | None:
    """The document with the teams and projects that it does not name, or None when it names all."""
    teams = dict(doc.get("teams", {}))
    for name, entry in whole["teams"].items():
        own = teams.get(name, entry)
        missing = set(entry["projects"]) - set(own.get("projects", []))
        teams[name] = {**own, "projects": sorted({*own.get("projects", []), *missing})} if missing else own
    return {**doc, "teams": teams} if teams != doc.get("teams", {}) else None
