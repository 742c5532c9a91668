"""The first start: folders, an empty registry and the first owner key. Safe to repeat; never erases anything."""

from __future__ import annotations

from dataclasses import dataclass

from codeb_mcp.model.access import Role
from codeb_mcp.model.errors import RegistryDamaged
from codeb_mcp.model.times import utc_text
from codeb_mcp.operations.context import Services
from codeb_mcp.operations.keys import PLATFORM_TEAM, NewKey, issue, with_key
from codeb_mcp.registry.store import Change

SSOT_VERSION = "7.0.0"
FOLDERS = {"registry": 0o700, "keys": 0o700, "env-backup": 0o700, "projects": 0o700, "traffic": 0o755, "run": 0o700}


@dataclass(frozen=True, slots=True)
class Initialised:
    """What init did: documents it created, and the first owner key, which exists nowhere else."""

    created: tuple[str, ...]
    owner_key: str | None


async def initialise(services: Services) -> Initialised:
    """Create what is missing. Raises RegistryDamaged when something is there that does not parse: init is no repair."""
    root = services.settings.root
    root.mkdir(mode=0o755, parents=True, exist_ok=True)
    for name, mode in FOLDERS.items():
        folder = root / name
        if not folder.exists():
            folder.mkdir(mode=mode)
            folder.chmod(mode)
    now = services.drivers.clock.now()
    ssot, teams, keys = [await services.store.get(key) for key in ("ssot", "teams", "api-keys")]
    changes: list[Change] = []
    if ssot is None:
        if await services.store.keys("slots/"):
            raise RegistryDamaged(
                "ssot.json is missing although there are slots", hint="Run `codeb registry rebuild`; init never erases."
            )
        changes.append(Change("ssot", {"version": SSOT_VERSION, "servers": {}, "projects": {}, "usedPorts": []}, 0))
    if teams is None:
        projects = sorted(
            name
            for name, entry in (ssot.doc.get("projects", {}) if ssot else {}).items()
            if entry.get("teamId", PLATFORM_TEAM) == PLATFORM_TEAM
        )
        team = {"name": "Default", "platform": True, "projects": projects, "members": {}, "createdAt": utc_text(now)}
        changes.append(Change("teams", {"version": "1.0", "teams": {PLATFORM_TEAM: team}}, 0))
    owner_key = None
    if keys is None:
        issued = issue(NewKey(PLATFORM_TEAM, Role.OWNER, "first owner", life=None), by="init", now=now)
        changes.append(Change("api-keys", with_key(None, issued.record, now), 0))
        owner_key = issued.text
    if changes:
        await services.store.commit(changes)
    return Initialised(tuple(change.key for change in changes), owner_key)
