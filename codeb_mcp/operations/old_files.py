"""The registry of an earlier installation, read from its folder: extra keys are kept, what does not parse is refused by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from codeb_mcp.drivers.hosts import Host
from codeb_mcp.model.errors import InvalidRequest, RegistryDamaged
from codeb_mcp.model.names import split_environment_key
from codeb_mcp.model.project import Project
from codeb_mcp.model.server import Server, ServerRole
from codeb_mcp.model.slot import Slots
from codeb_mcp.operations.context import Services

MAX_BYTES = 8 * 1_048_576
OWN = ("lineage", "serial")


@dataclass(frozen=True, slots=True)
class OldRegistry:
    """What its files say. `slots`: by environment key; `projects`: entries of `ssot.json`; `used`: every port they name."""

    slots: Mapping[str, Slots] = field(default_factory=dict)
    projects: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    used: frozenset[int] = frozenset()

    def ports(self, key: str) -> dict[str, int]:
        """The ports that `ssot.json` gives the environment."""
        project, environment = split_environment_key(key)
        found: dict[str, int] = dict(self.projects.get(project, {}).get("ports", {}).get(environment.value, {}))
        return found

    def keys(self) -> set[str]:
        """Every environment that some file names."""
        named = {f"{name}-{one}" for name, entry in self.projects.items() for one in entry.get("ports", {})}
        return named | set(self.slots)


async def read_old(services: Services, folder: str | None) -> OldRegistry:
    """All of the folder, or nothing: raises RegistryDamaged with every file that is not valid, and InvalidRequest when there
    is no registry."""
    if folder is None:
        return OldRegistry()
    host = services.drivers.hosts.at("here", Server(host="127.0.0.1", role=ServerRole.APPLICATION, connection="local"))
    names = await host.list(folder)
    if names is None or not {"ssot.json", "slots"} & set(names):
        raise InvalidRequest(
            f"fromFolder: {folder} holds no registry", hint="Name the folder that has ssot.json and slots/ in it."
        )
    reader = _Reader(host)
    ssot = await reader.document(f"{folder}/ssot.json") if "ssot.json" in names else {}
    projects = reader.projects(f"{folder}/ssot.json", ssot)
    used = reader.used(f"{folder}/ssot.json", ssot)
    slots = {}
    for name in await host.list(f"{folder}/slots") or []:
        if name.endswith(".json") and not name.startswith("."):
            path = f"{folder}/slots/{name}"
            found = reader.slots(path, name.removesuffix(".json"), await reader.document(path))
            if found is not None:
                slots[found.key] = found
    if reader.broken:
        raise RegistryDamaged(
            f"{len(reader.broken)} old files are not valid: {'; '.join(reader.broken[:10])}",
            hint="Correct or move away what is named; nothing was written.",
            files=reader.broken[:50],
        )
    return OldRegistry(slots, projects, used | {one.port for s in slots.values() for one in (s.blue, s.green)})


class _Reader:
    """Reads files and remembers what is wrong with them."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.broken: list[str] = []

    async def document(self, path: str) -> dict[str, Any]:
        """The JSON object in the file."""
        data = await self.host.read(path, max_bytes=MAX_BYTES)
        try:
            found = json.loads(data or b"")
        except (ValueError, RecursionError) as error:
            self._bad(path, f"no JSON ({error})"[:120])
            return {}
        if not isinstance(found, dict):
            self._bad(path, "no JSON object")
            return {}
        return {name: value for name, value in found.items() if name not in OWN}

    def slots(self, path: str, key: str, doc: Mapping[str, Any]) -> Slots | None:
        """A slot file."""
        if not doc:
            return None
        try:
            found = Slots.model_validate(dict(doc))
        except ValidationError as error:
            self._bad(path, _first(error))
            return None
        if found.key != key:
            self._bad(path, f"it is about {found.key}")
            return None
        return found

    def projects(self, path: str, ssot: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
        """The entries of `ssot.json`."""
        found = ssot.get("projects", {})
        if not isinstance(found, dict):
            self._bad(path, "projects is no object")
            return {}
        for name, entry in found.items():
            try:
                Project.model_validate(entry)
            except ValidationError as error:
                self._bad(path, f"project {name[:40]}: {_first(error)}")
        return {name: entry for name, entry in found.items() if isinstance(entry, dict)}

    def used(self, path: str, ssot: Mapping[str, Any]) -> frozenset[int]:
        """Ports in all spellings of earlier versions."""
        older = ssot.get("ports", {})
        lists = [ssot.get("usedPorts", [])]
        lists += [older.get(name, []) for name in ("used", "allocated")] if isinstance(older, dict) else [older]
        for one in lists:
            if not isinstance(one, list) or any(type(port) is not int for port in one):
                self._bad(path, "its used ports are no list of numbers")
                return frozenset()
        return frozenset(port for one in lists for port in one)

    def _bad(self, path: str, why: str) -> None:
        self.broken.append(f"{path}: {why}")


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
