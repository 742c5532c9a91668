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
from codeb_mcp.model.rebuild import Remains, slots_from_remains
from codeb_mcp.model.slot import Slots
from codeb_mcp.operations.context import Services
from codeb_mcp.operations.observe import is_ours
from codeb_mcp.operations.setup import SSOT_VERSION
from codeb_mcp.operations.state import parse_slots
from codeb_mcp.registry.files import FileStore
from codeb_mcp.registry.store import Change


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
    doc = _from_world(services, key, remains)
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


def _from_world(services: Services, key: str, remains: dict[str, list[Remains]]) -> dict[str, Any] | None:
    if key == "ssot":
        return _ssot(remains)
    if key == "teams":
        return _teams(remains)
    if key.startswith("slots/"):
        slots = _slots(services, key.removeprefix("slots/"), remains)
        return slots.dump() if slots else None
    return None


def _slots(services: Services, key: str, remains: dict[str, list[Remains]]) -> Slots | None:
    if key not in remains:
        return None
    return slots_from_remains(remains[key], services.drivers.traffic.live(key), None, services.drivers.clock.now())


def _ssot(remains: dict[str, list[Remains]]) -> dict[str, Any]:
    projects: dict[str, Any] = {}
    for several in remains.values():
        one = several[0]
        blue = one.port if one.slot is Slot.BLUE else one.port - 1
        entry = projects.setdefault(one.project, {"teamId": one.team, "ports": {}})
        entry["ports"][one.environment.value] = {"blue": blue, "green": blue + 1}
    used = sorted(port for entry in projects.values() for pair in entry["ports"].values() for port in pair.values())
    return {"version": SSOT_VERSION, "servers": {}, "projects": projects, "usedPorts": used}


def _teams(remains: dict[str, list[Remains]]) -> dict[str, Any]:
    teams: dict[str, Any] = {"default": {"name": "Default", "platform": True, "projects": [], "members": {}}}
    for several in remains.values():
        team = teams.setdefault(several[0].team, {"name": several[0].team, "projects": [], "members": {}})
        team["projects"] = sorted({*team["projects"], several[0].project})
    return {"version": "1.0", "teams": teams}


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
    """`ssot` and `teams` that are missing or do not name what runs."""
    done = []
    for key, whole in (("ssot", _ssot(remains)), ("teams", _teams(remains))):
        try:
            stored = await services.store.get(key)
        except RegistryDamaged:
            continue
        doc = _merged(key, dict(stored.doc) if stored else None, whole)
        if doc is None:
            continue
        if apply:
            await services.store.commit([Change(key, doc, stored.version if stored else 0)])
        done.append(Rebuilt(key, "rebuilt", "it did not name everything that runs"))
    return done


def _merged(key: str, doc: dict[str, Any] | None, whole: dict[str, Any]) -> dict[str, Any] | None:
    """The document with what is missing in it, or None when nothing is."""
    if doc is None:
        return whole if key == "ssot" and whole["projects"] else None
    if key == "teams":
        return _merged_teams(doc, whole)
    projects = dict(doc.get("projects", {}))
    lost = {name: entry for name, entry in whole["projects"].items() if name not in projects}
    if not lost:
        return None
    used = sorted({*doc.get("usedPorts", []), *whole["usedPorts"]})
    return {**doc, "projects": {**projects, **lost}, "usedPorts": used}


def _merged_teams(doc: dict[str, Any], whole: dict[str, Any]) -> dict[str, Any] | None:
    teams = dict(doc.get("teams", {}))
    changed = False
    for name, entry in whole["teams"].items():
        own = teams.get(name, entry)
        projects = sorted({*own.get("projects", []), *entry["projects"]})
        if (name in teams and projects != sorted(own.get("projects", []))) or (name not in teams and entry["projects"]):
            teams[name] = {**own, "projects": projects}
            changed = True
    return {**doc, "teams": teams} if changed else None
