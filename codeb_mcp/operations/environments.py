"""Setting up an environment: its ports, its slots, its place in the registry. All in one commit, or nothing."""

from __future__ import annotations

import asyncio
import copy
import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime
from typing import Any

from codeb_mcp.model.errors import Conflict, LockHeld, NotFound, RegistryDamaged
from codeb_mcp.model.names import Environment
from codeb_mcp.model.ports import QUARANTINE, allocate_pair, quarantined
from codeb_mcp.model.project import all_ports
from codeb_mcp.model.slot import Slots
from codeb_mcp.model.times import utc_text
from codeb_mcp.operations.context import Services
from codeb_mcp.operations.domain_state import further_hosts
from codeb_mcp.operations.places import Place, here, on_all, places
from codeb_mcp.operations.routing import require_free_hosts
from codeb_mcp.operations.state import find_slots, load_ssot, parse_project, slots_key
from codeb_mcp.registry.store import Change, Document, Stored

TRIES = 50
PAUSE_SECONDS = 0.02


async def ports_in_use(services: Services, servers: Iterable[str] = ()) -> set[int]:
    """Ports that the kernel or any container, running or not, holds on the app servers of these names, or on the one beside
    the control plane. A port that our own registry gave away counts there, not here."""
    where = await places(services, servers) or (here(services),)
    return set().union(*await on_all(where, ports_held))


async def ports_held(place: Place) -> set[int]:
    """Ports that something on that app server holds."""
    containers = await place.drivers.containers.list(managed=False)
    return set(await place.drivers.ports.listening()) | {port for one in containers for port in one.host_ports}


async def ensure_environment(services: Services, project: str, environment: Environment) -> Slots:
    """The environment's slots; sets the environment up when it has none yet."""
    slots = await find_slots(services.store, project, environment)
    if slots is not None:
        return slots
    entry = (await load_ssot(services.store)).get("projects", {}).get(project)
    if entry is None:
        raise NotFound(f"there is no project {project}", hint="Create it with project_create.", project=project)
    await add_environments(services, project, entry, [environment])
    found = await find_slots(services.store, project, environment)
    if found is None:
        raise Conflict(f"{project} was deleted meanwhile", hint="Create it again.")
    return found


async def nothing_else() -> list[Change]:
    """No further changes."""
    return []


async def add_environments(
    services: Services,
    project: str,
    entry: dict[str, Any],
    environments: Sequence[Environment],
    also: Callable[[], Awaitable[list[Change]]] = nothing_else,
) -> None:
    """Reserve ports and write project entry and slots in one commit; loses no race. What `also` answers rides along.

    Callers of this process take turns; those of other processes are noticed by the versions. Raises Conflict when no
    port is free.
    """
    await _require_not_leaving(services, project)
    chosen = parse_project(project, entry).settings
    busy = await ports_in_use(services, {server for one in environments for server in chosen.of(one).servers})
    async with services.allocation:
        for _ in range(TRIES):
            stored = await services.store.get("ssot")
            if stored is None:
                raise NotFound("the registry is empty", hint="Run `codeb init` first.")
            changes = await _changes(services, stored, project, entry, environments, busy)
            changes += await also()
            if [change.doc for change in changes] == [stored.doc]:
                return  # nothing is new: no version is written
            try:
                await services.store.commit(changes)
            except Conflict:
                await asyncio.sleep(random.uniform(0, PAUSE_SECONDS))
                continue
            return
    raise Conflict("the registry kept changing", hint="Try again.")


async def _require_not_leaving(services: Services, project: str) -> None:
    """Raise LockHeld while a project of that name is being deleted: the rest of it would be taken for the new one."""
    for run_id in await services.registry.journals.open_runs():
        try:
            header = (await services.registry.journals.open(run_id)).header
        except (NotFound, RegistryDamaged):
            continue
        if header.kind == "project_delete" and header.project == project:
            hint = "It is taken up again by itself; see operation_get, and create it when it has ended."
            raise LockHeld(f"{project} is being deleted", hint=hint, operationId=run_id)


async def _changes(
    services: Services,
    stored: Stored,
    project: str,
    entry: dict[str, Any],
    environments: Sequence[Environment],
    busy: set[int],
) -> list[Change]:
    now = services.drivers.clock.now()
    ssot = copy.copy(dict(stored.doc))
    projects = dict(ssot.get("projects", {}))
    merged = {**entry, **projects.get(project, {})}
    ports = dict(merged.get("ports", {}))
    changes = []
    added = [environment for environment in environments if environment.value not in ports]
    for environment in dict.fromkeys(environments):
        if environment.value not in ports:
            pair = allocate_pair(services.settings.ports.of(environment), busy | known_ports(ssot, projects, now))
            ports[environment.value] = {"blue": pair[0], "green": pair[1]}
            projects[project] = {**merged, "ports": ports}
        changes += await _slots_change(
            services, project, parse_project(project, {**merged, "ports": ports}), environment
        )
    projects[project] = {**merged, "ports": ports}
    further = await further_hosts(services) if added else {}
    require_free_hosts(services.settings, projects, project, added, further)
    ssot["projects"] = projects
    ssot["usedPorts"] = sorted(set(ssot.get("usedPorts", [])) | all_ports({project: projects[project]}))
    ssot["quarantinedPorts"] = list(quarantined(ssot.get("quarantinedPorts", []), now))
    return [Change("ssot", ssot, stored.version), *changes]


async def _slots_change(services: Services, project: str, entry: Any, environment: Environment) -> list[Change]:
    key = slots_key(project, environment)
    if await services.store.get(key) is not None:
        return []
    pair = entry.ports[environment]
    slots = Slots.fresh(project, entry.team_id, environment, (pair.blue, pair.green), services.drivers.clock.now())
    return [Change(key, slots.dump(), 0)]


def known_ports(ssot: Document, projects: dict[str, Any], now: datetime) -> set[int]:
    """Every port that the registry has given away or still holds back, in all spellings of earlier versions."""
    used = set(ssot.get("usedPorts", []))
    older = ssot.get("ports", {})
    if isinstance(older, dict):
        for name in ("used", "allocated"):
            used |= {port for port in older.get(name, []) if isinstance(port, int)}
    held = {int(str(item["port"])) for item in quarantined(ssot.get("quarantinedPorts", []), now)}
    return used | held | all_ports(projects)


def without_project(ssot: Document, project: str, now: datetime) -> dict[str, Any]:
    """The document after the project is gone: its ports are held back for a while."""
    projects = dict(ssot.get("projects", {}))
    gone = all_ports({project: projects.pop(project, {})})
    until = utc_text(now + QUARANTINE)
    held = [
        *quarantined(ssot.get("quarantinedPorts", []), now),
        *({"port": port, "until": until} for port in sorted(gone)),
    ]
    used = sorted(set(ssot.get("usedPorts", [])) - gone)
    return {**ssot, "projects": projects, "usedPorts": used, "quarantinedPorts": held}
