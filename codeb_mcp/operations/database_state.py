"""Data stores in the registry: their entries, their ports, and the ways that lead to them."""

from __future__ import annotations

import asyncio
import getpass
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from codeb_mcp.drivers.hosts import Host
from codeb_mcp.drivers.own_stores import ADMIN, Instance
from codeb_mcp.drivers.stores import Door, Store, Wish
from codeb_mcp.model.databases import Access, Database, DatabaseKind, Placement, redis_prefix
from codeb_mcp.model.errors import Conflict, InvalidRequest, NotFound, RegistryDamaged
from codeb_mcp.model.names import Environment
from codeb_mcp.model.ports import QUARANTINE, quarantined
from codeb_mcp.model.server import Server, ServerRole
from codeb_mcp.model.times import utc_text
from codeb_mcp.operations.context import Services
from codeb_mcp.operations.servers import load_server, load_servers
from codeb_mcp.operations.state import REPAIR
from codeb_mcp.registry.store import Document, Fence, update

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Which:
    """One data store: of which project and environment, and of what kind."""

    project: str
    environment: Environment
    kind: DatabaseKind

    @classmethod
    def of(cls, detail: Mapping[str, Any]) -> Which:
        """The one that a request or a step's details name."""
        return cls(detail["project"], Environment(detail["environment"]), DatabaseKind(detail["kind"]))

    def detail(self) -> dict[str, Any]:
        """The inverse of `of`."""
        return {"project": self.project, "environment": self.environment.value, "kind": self.kind.value}

    def __str__(self) -> str:
        return f"{self.kind} of {self.project} {self.environment}"


def entry_in(ssot: Mapping[str, Any], which: Which) -> Database | None:
    """The store's entry; raises RegistryDamaged when it cannot be read."""
    project = ssot.get("projects", {}).get(which.project, {})
    found = project.get("databases", {}).get(which.environment.value, {}).get(which.kind.value)
    return None if found is None else _parsed(which, found)


def _parsed(which: Which, entry: Any) -> Database:
    try:
        return Database.model_validate(dict(entry))
    except (ValidationError, TypeError, ValueError):
        raise RegistryDamaged(f"ssot ({which}) is not valid", hint=REPAIR, document="ssot") from None


def entries_in(ssot: Mapping[str, Any], project: str) -> Iterator[tuple[Which, Database]]:
    """The project's stores."""
    environments = ssot.get("projects", {}).get(project, {}).get("databases", {})
    for environment in Environment:
        for kind in DatabaseKind:
            if (entry := environments.get(environment.value, {}).get(kind.value)) is not None:
                which = Which(project, environment, kind)
                yield which, _parsed(which, entry)


def foreign_in(ssot: Mapping[str, Any], project: str) -> Mapping[str, Any] | None:
    """Production's database that the registry names and that was not made from here."""
    entry = ssot.get("projects", {}).get(project, {})
    named = entry.get("database")
    ours = entry_in(ssot, Which(project, Environment.PRODUCTION, DatabaseKind.POSTGRES))
    return named if isinstance(named, Mapping) and ours is None else None


def names_on(ssot: Mapping[str, Any], server: str) -> set[str]:
    """The names that stores on the server have, whoever made them."""
    found = set()
    for project in ssot.get("projects", {}):
        found |= {entry.name for _, entry in entries_in(ssot, project) if entry.server == server}
        foreign = foreign_in(ssot, project)
        if foreign is not None and foreign.get("server") == server:
            found.add(str(foreign.get("name")))
    return found


async def change_entry(
    services: Services,
    which: Which,
    change: Callable[[Document, Database | None], Database | None],
    fence: Fence | None,
) -> Database | None:
    """Apply the pure change to the store's entry and commit it with its port; answers the new entry."""
    seen: list[Database | None] = []
    now = services.drivers.clock.now()

    def apply(doc: Document | None) -> Document:
        if doc is None or which.project not in doc.get("projects", {}):
            raise Conflict(f"{which.project} was deleted meanwhile", hint="Create it again.")
        before = entry_in(doc, which)
        after = change(doc, before)
        seen.append(after)
        return doc if after == before else _with_entry(doc, which, before, after, now)

    await update(services.store, "ssot", apply, fence=fence)
    return seen[-1]


def _with_entry(
    ssot: Document, which: Which, before: Database | None, after: Database | None, now: datetime
) -> dict[str, Any]:
    projects = dict(ssot["projects"])
    project = dict(projects[which.project])
    environments = dict(project.get("databases", {}))
    kinds = dict(environments.get(which.environment.value, {}))
    kinds.pop(which.kind.value, None)
    if after is not None:
        kinds[which.kind.value] = after.dump()
    environments[which.environment.value] = kinds
    project["databases"] = {name: value for name, value in environments.items() if value}
    if not project["databases"]:
        del project["databases"]
    if which.environment is Environment.PRODUCTION and which.kind is DatabaseKind.POSTGRES:
        _name_it(project, before, after)
    projects[which.project] = project
    return {**ssot, "projects": projects, **_ports(ssot, before, after, now)}


def _name_it(project: dict[str, Any], before: Database | None, after: Database | None) -> None:
    """The guide's `database` names production's, once it is there."""
    named = project.get("database")
    if after is not None and after.state == "ready":
        kept = dict(named) if isinstance(named, Mapping) else {}
        more = {"port": after.port} if after.port else {}
        project["database"] = {**kept, "name": after.name, "server": after.server, **more}
    elif before is not None and isinstance(named, Mapping) and named.get("name") == before.name:
        del project["database"]


def _ports(ssot: Document, before: Database | None, after: Database | None, now: datetime) -> dict[str, Any]:
    had = {before.port} if before and before.port else set()
    has = {after.port} if after and after.port else set()
    until = utc_text(now + QUARANTINE)
    held = [*quarantined(ssot.get("quarantinedPorts", []), now), *({"port": one, "until": until} for one in had - has)]
    used = sorted((set(ssot.get("usedPorts", [])) - (had - has)) | has)
    return {"usedPorts": used, "quarantinedPorts": held}


# ── servers and ways ────────────────────────────────────────────────────────────────────────────────────────────


async def choose_server(services: Services, wanted: str | None) -> str:
    """The server of that name, else the only one with the role database; raises NotFound, Conflict or InvalidRequest."""
    servers = await load_servers(services.store)
    fitting = [key for key, server in servers.items() if server.role is ServerRole.DATABASE]
    if wanted is not None and wanted in fitting:
        return wanted
    known = ", ".join(fitting) or "none"
    if wanted is not None:
        hint = f"Servers for databases: {known}. Add one with server_add and role database."
        raise NotFound(f"there is no server {wanted} with the role database", hint=hint, server=wanted)
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        raise Conflict("the inventory has no server with the role database", hint="Add one with server_add.")
    problem = "must be given, since there are several"
    raise InvalidRequest(
        f"server: {problem}", hint=f"Say one of {known}.", fields=[{"field": "server", "problem": problem}]
    )


@dataclass(frozen=True, slots=True)
class Way:
    """All that is needed to work on one store."""

    store: Store
    host: Host
    wish: Wish
    access: Access
    instance: Instance | None


async def way_to(services: Services, which: Which, entry: Database) -> Way:
    """How the store is reached; nothing is connected yet."""
    server = await load_server(services.store, entry.server)
    settings, own = services.settings.databases, entry.placement is Placement.OWN
    postgres = which.kind is DatabaseKind.POSTGRES
    prefix = "" if own or postgres else redis_prefix(which.project, which.environment)
    lineage = await services.store.identity()
    mark = f"codeb:{lineage}/{which.project}/{which.environment}"
    shared = settings.postgres_port if postgres else settings.redis_port
    address = address_of(services, entry, server)
    access = Access(kind=which.kind, host=address, port=entry.port or shared, name=entry.name, prefix=prefix)
    return Way(
        store=services.drivers.stores.of(which.kind),
        host=services.drivers.hosts.at(entry.server, server),
        wish=Wish(entry.name, mark, settings.postgres_connections, prefix),
        access=access,
        instance=_instance(services, which, entry, address, lineage) if own else None,
    )


def address_of(services: Services, entry: Database, server: Server) -> str:
    """Where apps reach the store. An own instance is published there and nowhere else."""
    chosen = services.settings.databases.addresses.get(entry.server)
    local = entry.placement is Placement.OWN or server.connection == "local"
    return chosen or (LOOPBACK if local else server.host)


def _instance(services: Services, which: Which, entry: Database, address: str, lineage: str) -> Instance:
    settings = services.settings.databases
    image = settings.postgres_image if which.kind is DatabaseKind.POSTGRES else settings.redis_image
    return Instance(
        kind=which.kind,
        container=f"codeb-store-{which.project}-{which.environment}-{which.kind}",
        image=image or "",
        volume=entry.volume or "",
        address=address,
        port=entry.port or 0,
        memory_bytes=settings.own_memory_mb << 20,
        cpus=settings.own_cpus,
        owner=f"{which.project}/{which.environment}/{which.kind}",
        installation=lineage,
    )


async def admin_door(services: Services, which: Which, entry: Database, way: Way) -> Door:
    """The administrator's way in."""
    settings = services.settings.databases
    if way.instance is not None:
        socket = await way.host.socket(f"{way.access.host}:{way.access.port}")
        return Door(entry.server, socket, ADMIN, admin_password(services, way.instance))
    if which.kind is DatabaseKind.REDIS:
        password = await asyncio.to_thread(_secret, settings.redis_password_file)
        return Door(entry.server, await way.host.socket(settings.redis_address), settings.redis_user, password)
    server = await load_server(services.store, entry.server)
    user = server.user if server.connection == "ssh" else getpass.getuser()
    socket = await way.host.socket(settings.postgres_socket)
    return Door(entry.server, socket, settings.postgres_role or user)


def admin_password(services: Services, instance: Instance) -> str:
    """The administrator's password of an own instance: made from this installation's key, kept nowhere."""
    return services.registry.env.keys.fingerprint(b"store", instance.owner.encode(), instance.volume.encode())


async def app_door(entry: Database, way: Way, password: str) -> Door:
    """The way in that the app takes, as the store's own server sees it."""
    socket = await way.host.socket(f"{way.access.host}:{way.access.port}")
    return Door(entry.server, socket, entry.name, password, database=entry.name)


def _secret(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        raise RegistryDamaged(
            "the file of databases.redis_password_file cannot be read", hint="Correct the setting or the file."
        ) from None
