"""Namespaces of environments in the registry, and the way to the Centrifugo that has them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from codeb_mcp.drivers.centrifugo import Centrifugo, Installed, Place
from codeb_mcp.drivers.hosts import Host
from codeb_mcp.model.centrifugo import Namespace, StreamingAccess, namespaces_in
from codeb_mcp.model.errors import Conflict, DriverRefused, InvalidRequest, NotFound, RegistryDamaged
from codeb_mcp.model.names import Environment
from codeb_mcp.model.project import Project
from codeb_mcp.model.server import Server, ServerRole
from codeb_mcp.operations.context import Services
from codeb_mcp.operations.env_state import require_known_live, require_readable
from codeb_mcp.operations.servers import load_server, load_servers
from codeb_mcp.operations.state import REPAIR, find_slots, parse_project, site_of, url_of
from codeb_mcp.registry.env_history import EnvSnapshot, values_of
from codeb_mcp.registry.store import Document, Fence, update

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Which:
    """One environment's streaming."""

    project: str
    environment: Environment

    @classmethod
    def of(cls, detail: Mapping[str, Any]) -> Which:
        """The one that a step's details name."""
        return cls(detail["project"], Environment(detail["environment"]))

    def __str__(self) -> str:
        return f"streaming of {self.project} {self.environment}"


def _parsed(which: Which, entry: Any) -> Namespace:
    try:
        return Namespace.model_validate(dict(entry))
    except (ValidationError, TypeError, ValueError):
        raise RegistryDamaged(f"ssot ({which}) is not valid", hint=REPAIR, document="ssot") from None


def namespaces_of(ssot: Mapping[str, Any], project: str) -> Iterator[tuple[Which, Namespace]]:
    """The project's namespaces; raises RegistryDamaged when one cannot be read."""
    found = ssot.get("projects", {}).get(project, {}).get("streaming", {})
    for environment in Environment:
        if environment.value in found:
            which = Which(project, environment)
            yield which, _parsed(which, found[environment.value])


def namespace_in(ssot: Mapping[str, Any], which: Which) -> Namespace | None:
    """The environment's namespace, if it has one."""
    return next((entry for one, entry in namespaces_of(ssot, which.project) if one == which), None)


def on_server(ssot: Mapping[str, Any], server: str) -> dict[str, Which]:
    """All namespaces of the registry on that server: whose they are by name."""
    return {
        entry.name: which
        for project in ssot.get("projects", {})
        for which, entry in namespaces_of(ssot, project)
        if entry.server == server
    }


def require_own_team(services: Services, ssot: Mapping[str, Any], which: Which, server: str) -> None:
    """Raise Conflict when projects of other teams are on the server: all of them would have the same secret."""
    if services.settings.streaming.share_between_teams:
        return
    projects = ssot["projects"]
    mine = parse_project(which.project, projects[which.project]).team_id
    others = (parse_project(one.project, projects[one.project]).team_id for one in on_server(ssot, server).values())
    if any(team != mine for team in others):
        raise Conflict(
            f"Centrifugo on {server} serves another team, and its one secret opens all of its namespaces",
            hint="Give this team a streaming server of its own, or set streaming.share_between_teams if the teams trust each "
            "other.",
            server=server,
        )


async def change_namespace(
    services: Services, which: Which, change: Callable[[Document, Namespace | None], Namespace | None], fence: Fence
) -> Namespace | None:
    """Apply the pure change to the environment's entry and commit it; answers the new entry."""
    seen: list[Namespace | None] = []

    def apply(doc: Document | None) -> Document:
        if doc is None or which.project not in doc.get("projects", {}):
            raise Conflict(f"{which.project} was deleted meanwhile", hint="Create it again.")
        before = namespace_in(doc, which)
        after = change(doc, before)
        seen.append(after)
        return doc if after == before else _with_entry(doc, which, after)

    await update(services.store, "ssot", apply, fence=fence)
    return seen[-1]


def _with_entry(ssot: Document, which: Which, after: Namespace | None) -> dict[str, Any]:
    project = dict(ssot["projects"][which.project])
    entries = {name: entry for name, entry in project.get("streaming", {}).items() if name != which.environment.value}
    if after is not None:
        entries[which.environment.value] = after.dump()
    project["streaming"] = entries
    if not entries:
        del project["streaming"]
    return {**ssot, "projects": {**ssot["projects"], which.project: project}}


# ── servers and ways ────────────────────────────────────────────────────────────────────────────────────────────


async def choose_server(services: Services, wanted: str | None) -> str:
    """The server of that name, else the only one with the role streaming; raises NotFound, Conflict or InvalidRequest."""
    servers = await load_servers(services.store)
    fitting = [key for key, server in servers.items() if server.role is ServerRole.STREAMING]
    if wanted is not None and wanted in fitting:
        return wanted
    known = ", ".join(fitting) or "none"
    if wanted is not None:
        hint = f"Servers for streaming: {known}. Add one with server_add and role streaming."
        raise NotFound(f"there is no server {wanted} with the role streaming", hint=hint, server=wanted)
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        raise Conflict("the inventory has no server with the role streaming", hint="Add one with server_add.")
    problem = "must be given, since there are several"
    raise InvalidRequest(
        f"server: {problem}", hint=f"Say one of {known}.", fields=[{"field": "server", "problem": problem}]
    )


def centrifugo_on(services: Services, host: Host) -> Centrifugo:
    """The Centrifugo of a server; nothing is connected yet."""
    at = services.settings.streaming
    return Centrifugo(host, Place(at.config, at.secrets, at.program, f"{LOOPBACK}:{at.port}"))


async def way_to(services: Services, server: str) -> Centrifugo:
    """The same, by the server's name."""
    return centrifugo_on(services, services.drivers.hosts.at(server, await load_server(services.store, server)))


async def access_to(services: Services, entry: Namespace) -> StreamingAccess:
    """How apps and browsers reach the namespace."""
    server = await load_server(services.store, entry.server)
    at = services.settings.streaming
    local = LOOPBACK if server.connection == "local" else server.host
    inner = _bracketed(at.addresses.get(entry.server) or local)
    public = at.urls.get(entry.server) or f"{_public(server, f'{inner}:{at.port}')}/connection/websocket"
    return StreamingAccess(entry.name, public, f"http://{inner}:{at.port}/api")


def _public(server: Server, otherwise: str) -> str:
    return f"wss://{server.domain}" if server.domain else f"ws://{otherwise}"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


async def origins_of(services: Services, which: Which, project: Project) -> tuple[str, ...]:
    """The pages of the environment's app, as browsers name them; none for a template of previews."""
    if which.environment not in project.ports:
        return ()
    slots = await find_slots(services.store, which.project, which.environment)
    if slots is None:
        return ()
    site = await site_of(services.store, services.settings, slots)
    return tuple(url_of(services.settings, host) for host in site.hosts)


def names_there(installed: Installed, server: str) -> list[str]:
    """The namespaces that its configuration has; raises DriverRefused when that cannot be told."""
    try:
        return namespaces_in(installed.config, installed.major)
    except ValueError as error:
        raise unusable(server, error) from None


def unusable(server: str, error: ValueError) -> DriverRefused:
    """The refusal of a configuration that is not to be changed by a program."""
    return DriverRefused(
        f"server {server}: Centrifugo's configuration {error}",
        hint="Correct it on the server; nothing was changed.",
        server=server,
        reason="config",
    )


def require_variables_free(state: EnvSnapshot, names: Sequence[str], *, overwrite: bool) -> None:
    """Raise Conflict when the variables cannot be written, or are there and not to be replaced."""
    require_known_live(state)
    if not state.entries and state.live is not None:
        require_readable(state.live)
    values = values_of(state.current if state.entries else state.live)
    taken = [name for name in names if name in values]
    if taken and not overwrite:
        raise Conflict(
            f"the environment has {', '.join(taken)} already, and they lead somewhere else",
            hint="Say overwriteVariables to replace them; what was there stays in the history (env_backup_list).",
            names=taken,
        )
