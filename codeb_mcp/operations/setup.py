"""The first start: folders, an empty registry and the first owner key. Safe to repeat; never erases anything."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from codeb_mcp.model.access import Role
from codeb_mcp.model.errors import RegistryDamaged
from codeb_mcp.model.times import utc_text
from codeb_mcp.operations.context import Services
from codeb_mcp.operations.flags_seen import hidden_flags
from codeb_mcp.operations.keys import PLATFORM_TEAM, NewKey, issue, with_key
from codeb_mcp.registry.store import Change

SSOT_VERSION = "7.0.0"
FOLDERS = {"registry": 0o700, "keys": 0o700, "env-backup": 0o700, "projects": 0o700, "traffic": 0o755, "run": 0o700}
ROOT_MODE = 0o755
MADE_HERE = ".made-by-init"
"""Name of the file in the root which says that init made the root: only then are its permissions init's to repair."""


@dataclass(frozen=True, slots=True)
class Initialised:
    """What init did: documents it created, folders whose permissions it widened, the first owner key, which exists nowhere
    else, and what an operator should see to."""

    created: tuple[str, ...]
    owner_key: str | None
    repaired: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


async def initialise(services: Services) -> Initialised:
    """Create what is missing. Raises RegistryDamaged when something is there that does not parse: init is no repair."""
    repaired = _make_folders(services.settings.root)
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
    created = tuple(change.key for change in changes)
    return Initialised(created, owner_key, repaired, tuple(hidden_flags(services.settings)))


def _make_folders(root: Path) -> tuple[str, ...]:
    """Have root and folders with their modes, whatever the umask; answers what was too narrow and is not any more."""
    if _make(root, ROOT_MODE):
        (root / MADE_HERE).touch(mode=0o644)
    repaired = [root] if (root / MADE_HERE).exists() and _widened(root, ROOT_MODE) else []
    for name, mode in FOLDERS.items():
        folder = root / name
        if not _make(folder, mode) and name == "traffic" and _widened(folder, mode):
            repaired.append(folder)
    return tuple(map(str, repaired))


def _make(folder: Path, mode: int) -> bool:
    """Make the folder, and those above it for all to pass; False when it was there."""
    if folder.exists():
        return False
    _make(folder.parent, ROOT_MODE)
    folder.mkdir(mode=mode, exist_ok=True)
    folder.chmod(mode)
    return True


def _widened(folder: Path, mode: int) -> bool:
    present = folder.stat().st_mode & 0o777
    if present & mode == mode:
        return False
    folder.chmod(present | mode)
    return True
