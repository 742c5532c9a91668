"""`codeb registry rebuild`: a damaged registry from its kept versions, the engine's labels, the proxy's routes, the traffic
flags and the journals.

Documents that can be read are never changed. A damaged one is put aside, not thrown away.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from codeb_mcp.model.errors import DeadlineExceeded, DriverUnavailable, RegistryDamaged
from codeb_mcp.model.names import Slot, split_environment_key
from codeb_mcp.model.project import all_ports
from codeb_mcp.model.rebuild import Known, Remains, further_domains, slots_from_remains
from codeb_mcp.model.slot import Slots
from codeb_mcp.operations.context import Services
from codeb_mcp.operations.evidence import Evidence, gather, own_hosts
from codeb_mcp.operations.keys import PLATFORM_TEAM
from codeb_mcp.operations.lost_keys import ended_again
from codeb_mcp.operations.new_owner import KEYS
from codeb_mcp.operations.setup import SSOT_VERSION
from codeb_mcp.operations.state import environments, parse_slots
from codeb_mcp.registry.files import FileStore
from codeb_mcp.registry.repair import Damage
from codeb_mcp.registry.store import Change, Document


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What was (or would be) done with one document. `action`: restored, older (restored, but with changes lost),
    rebuilt, freed or lost."""

    key: str
    action: str
    detail: str


async def rebuild(services: Services, *, apply: bool) -> list[Rebuilt]:
    """Mend everything that is damaged or missing; without `apply` only say how. Empty when all is well."""
    store = services.store
    if not isinstance(store, FileStore):
        raise RegistryDamaged("only a registry in files can be rebuilt", hint="Use the backend's own backups.")
    evidence = await gather(services)
    done = [Rebuilt(who, "lost", why) for who, why in evidence.silent]
    damages = await store.examine()
    await _believe_routes(services, store, evidence, {one.key: one for one in damages})
    for damage in damages:
        done.append(await _mend(services, store, damage, evidence, apply=apply))
    done += await _missing_slots(services, evidence, {one.key for one in done}, apply=apply)
    done += await _missing_entries(services, evidence, apply=apply)
    done += await _missing_domains(services, store, evidence, {one.key for one in done}, apply=apply)
    return done


async def _believe_routes(
    services: Services, store: FileStore, evidence: Evidence, damages: Mapping[str, Damage]
) -> None:
    """A route alone makes no project, unless it is `ssot` that is lost: it may only not have been removed yet."""
    damage = damages.get("ssot")
    if damage is None:
        stored = await services.store.get("ssot")
        doc: Document | None = stored.doc if stored else None
        whole = doc is not None
    else:
        whole = damage.last_good_serial is not None and damage.last_good_serial >= damage.reached
        doc = next(iter(await store.kept("ssot")), None)
    projects = doc.get("projects", {}) if doc else {}
    evidence.known = Known(projects, whole, services.settings.base_domain)
    if whole:
        named = {f"{name}-{one}" for name, entry in projects.items() for one in entry.get("ports", {})}
        evidence.sites = {key: site for key, site in evidence.sites.items() if key in named}


async def _mend(services: Services, store: FileStore, damage: Damage, evidence: Evidence, *, apply: bool) -> Rebuilt:
    key = damage.key
    if key.startswith("leases/"):
        if apply:
            await store.replace_damaged_lease(key.removeprefix("leases/"))
        return Rebuilt(key, "freed", damage.problem)
    if damage.last_good_serial is not None:
        return await _restore(services, store, damage, evidence, apply=apply)
    doc = await _from_world(services, key, evidence)
    if doc is None:
        way = "; `codeb init --new-owner-key` voids all keys and makes one new owner key" if key == KEYS else ""
        said = f"{damage.problem}; no version of it is kept and nothing else tells its content{way}"
        return Rebuilt(key, "lost", said)
    if apply:
        await store.replace_damaged(key, doc)
    untold = "settings of all projects: defaults; " if key == "ssot" else ""
    return Rebuilt(key, "rebuilt", f"{untold}from the engine, the proxy and the flags; was: {damage.problem}")


async def _restore(services: Services, store: FileStore, damage: Damage, evidence: Evidence, *, apply: bool) -> Rebuilt:
    """The newest kept version; when a newer one was known, what is lost with it is said loudly."""
    key, good = damage.key, damage.last_good_serial or 0
    lost, warning = damage.reached > good, ""
    # Also when no newer version is known: of one that is gone with its copy nothing tells.
    ended = await ended_again(services, store, (await store.kept(key))[0]) if key == "api-keys" else None
    if ended is not None and (ended.keys or lost):
        warning = ended.said
    if ended is not None and ended.keys:
        if apply:
            await store.replace_damaged(key, ended.doc)
    elif apply:
        await store.restore(key, good)
        await _correct(services, store, key, evidence)
    if not lost and not warning:
        return Rebuilt(key, "restored", f"version {good}; was: {damage.problem}")
    gone = (
        f"VERSION {damage.reached} IS LOST WITH ITS CHANGES" if lost else "NEWER VERSIONS ARE LOST WITH THEIR CHANGES"
    )
    said = f"{gone}; version {good} restored"
    return Rebuilt(key, "older", "; ".join(part for part in (said, warning, f"was: {damage.problem}") if part))


async def _correct(services: Services, store: FileStore, key: str, evidence: Evidence) -> None:
    """A kept version of slots may be older than what runs: what runs is right."""
    stored = await store.get(key) if key.startswith("slots/") else None
    if stored is None:
        return
    former = parse_slots(key, stored.doc)
    await store.commit([Change(key, (await _slots(services, former.key, evidence, former)).dump(), stored.version)])


async def _from_world(services: Services, key: str, evidence: Evidence) -> dict[str, Any] | None:
    if key == "ssot":
        return await _ssot(services, evidence)
    if key == "teams":
        return await _teams(services, evidence)
    environment = key.removeprefix("slots/")
    if key.startswith("slots/") and (environment in evidence.remains or environment in evidence.sites):
        return (await _slots(services, environment, evidence, None)).dump()
    if key.startswith("domains/"):
        return _domains(evidence).get(key)
    return None


async def _live(evidence: Evidence, key: str) -> Slot | None:
    """The slot that any proxy in front of the environment sends to."""
    for place in evidence.places:
        with contextlib.suppress(DriverUnavailable, DeadlineExceeded):
            if (slot := await place.drivers.traffic.live(key)) is not None:
                return slot
    return None


async def _slots(services: Services, key: str, evidence: Evidence, former: Slots | None) -> Slots:
    live, now, told = (
        await _live(evidence, key),
        services.drivers.clock.now(),
        evidence.told(key),
    )
    remains: list[Remains] = evidence.remains.get(key, [])
    if former is None and not remains and told.ports is not None:
        project, environment = split_environment_key(key)
        return Slots.fresh(project, await _team_of(services, project), environment, told.ports, now)
    return slots_from_remains(remains, live, former, now, told)


async def _team_of(services: Services, project: str) -> str:
    """Whose project it is, by what can still be read."""
    entry = (await _readable(services, "ssot")).get("projects", {}).get(project, {})
    teams = (await _readable(services, "teams")).get("teams", {})
    named = (name for name, team in teams.items() if project in team.get("projects", []))
    return str(entry.get("teamId") or next(named, PLATFORM_TEAM))


async def _ssot(services: Services, evidence: Evidence) -> dict[str, Any]:
    """The document as containers, routes and readable slots tell it."""
    projects: dict[str, Any] = {}
    for slots in await environments(services.store, []):
        entry = projects.setdefault(slots.project_name, {"teamId": slots.team_id, "ports": {}})
        entry["ports"][slots.environment.value] = {"blue": slots.blue.port, "green": slots.green.port}
    for key in sorted({*evidence.remains, *evidence.sites}):
        slots = await _slots(services, key, evidence, None)
        entry = projects.setdefault(slots.project_name, {"teamId": slots.team_id, "ports": {}})
        pair = {"blue": slots.blue.port, "green": slots.green.port}
        entry["ports"].setdefault(slots.environment.value, pair)
        domain = own_hosts(services.settings, evidence.sites[key])[0] if key in evidence.sites else None
        if domain is not None:
            chosen = entry.setdefault("settings", {}).setdefault("environments", {})
            chosen[slots.environment.value] = {"domain": domain}
        if servers := evidence.stands.get(key):
            site = evidence.sites.get(key)
            edge = {"edge": True} if site is not None and site.addresses != ("127.0.0.1",) else {}
            chosen = entry.setdefault("settings", {}).setdefault("environments", {})
            chosen[slots.environment.value] = {**chosen.get(slots.environment.value, {}), "servers": servers, **edge}
    return {"version": SSOT_VERSION, "servers": {}, "projects": projects, "usedPorts": sorted(all_ports(projects))}


def _domains(evidence: Evidence) -> dict[str, dict[str, Any]]:
    """The documents of further domains, as the routes tell them."""
    sites = [evidence.sites[key] for key in sorted(evidence.sites)]
    found = further_domains(sites, evidence.known)
    return {f"domains/{project}": {"domains": entries} for project, entries in found.items()}


async def _teams(services: Services, evidence: Evidence) -> dict[str, Any]:
    """The document as containers, slots, projects and valid keys tell it. Names and members cannot be told."""
    teams: dict[str, Any] = {PLATFORM_TEAM: {"name": "Default", "platform": True, "projects": [], "members": {}}}
    told = [(several[0].team, several[0].project) for several in evidence.remains.values()]
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


async def _missing_slots(services: Services, evidence: Evidence, mended: set[str], *, apply: bool) -> list[Rebuilt]:
    """Environments that run or are routed but have no slot document at all."""
    done = []
    for key in sorted({*evidence.remains, *evidence.sites}):
        document = f"slots/{key}"
        if document in mended or await services.store.get(document) is not None:
            continue
        if apply:
            slots = await _slots(services, key, evidence, None)
            await services.store.commit([Change(document, slots.dump(), 0)])
        done.append(
            Rebuilt(document, "rebuilt", "it was missing; from the engine, the proxy, the flags and the journals")
        )
    return done


async def _missing_entries(services: Services, evidence: Evidence, *, apply: bool) -> list[Rebuilt]:
    """`ssot` and `teams` that are missing or do not name everything there is."""
    done = []
    for key, tell, merge in (("ssot", _ssot, _merged_projects), ("teams", _teams, _merged_teams)):
        whole = await tell(services, evidence)
        try:
            stored = await services.store.get(key)
        except RegistryDamaged:
            continue
        if stored is None and not evidence.remains and not evidence.sites and not await services.store.keys("slots/"):
            continue  # an installation before `codeb init`
        doc = merge(dict(stored.doc), whole) if stored else whole
        if doc is None:
            continue
        if apply:
            await services.store.commit([Change(key, doc, stored.version if stored else 0)])
        done.append(Rebuilt(key, "rebuilt", "it did not name everything there is" if stored else "it was missing"))
        if key == "ssot":
            named = stored.doc.get("projects", {}) if stored else {}
            done += [_untold(name) for name in doc["projects"] if name not in named]
    return done


async def _missing_domains(
    services: Services, store: FileStore, evidence: Evidence, mended: set[str], *, apply: bool
) -> list[Rebuilt]:
    """Documents of further domains that are gone with all their kept versions; one that was deleted still has some."""
    done = []
    for key, doc in _domains(evidence).items():
        if key in mended or await services.store.get(key) is not None or await store.kept(key):
            continue
        if apply:
            await services.store.commit([Change(key, doc, 0)])
        said = ", ".join(f"{entry['domain']} ({entry['environment']})" for entry in doc["domains"])
        done.append(Rebuilt(key, "rebuilt", f"it was missing; from the proxy's routes: {said}"))
    return done


def _untold(project: str) -> Rebuilt:
    detail = "defaults: image, container port, health check, limits and the like are told by nobody"
    return Rebuilt(f"settings of {project}", "lost", f"{detail}; set them with project_update")


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
