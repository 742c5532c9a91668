"""Reading and changing the registry's documents in the model's words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from codeb_mcp.model.domains import PENDING, domains_in
from codeb_mcp.model.errors import NotFound, RegistryDamaged
from codeb_mcp.model.names import Environment, Slot, environment_key
from codeb_mcp.model.project import EnvironmentSettings, Project, preview_host, public_host
from codeb_mcp.model.routes import Site
from codeb_mcp.model.server import entries_of
from codeb_mcp.model.slot import Slots
from codeb_mcp.registry.store import Document, Fence, StateStore, update
from codeb_mcp.settings import Settings

REPAIR = "Run `codeb registry check`; `codeb registry rebuild` restores it."


def slots_key(project: str, environment: Environment | str) -> str:
    """The document key of an environment's slots."""
    return f"slots/{environment_key(project, environment)}"


_PARSED: dict[str, tuple[Document, Slots]] = {}
_PARSED_LIMIT = 4096


def parse_slots(key: str, doc: Document) -> Slots:
    """The slots of a document; raises RegistryDamaged with the field that is wrong.

    The store hands out the same object until the file changes, so the same object is parsed once.
    """
    known = _PARSED.get(key)
    if known is not None and known[0] is doc:
        return known[1]
    try:
        slots = Slots.model_validate(dict(doc))
    except ValidationError as error:
        raise _damaged(key, error) from None
    if len(_PARSED) >= _PARSED_LIMIT:
        _PARSED.clear()
    _PARSED[key] = (doc, slots)
    return slots


def parse_project(name: str, entry: Mapping[str, Any]) -> Project:
    """One entry of ssot.json; raises RegistryDamaged with the field that is wrong."""
    try:
        return Project.model_validate(dict(entry))
    except ValidationError as error:
        raise _damaged(f"ssot (project {name})", error) from None


def _damaged(key: str, error: ValidationError) -> RegistryDamaged:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(map(str, first["loc"]))
    return RegistryDamaged(f"{key} is not valid at {where}: {first['msg']}", hint=REPAIR, document=key)


async def load_ssot(store: StateStore) -> Document:
    """The document `ssot`; raises NotFound before `codeb init`."""
    stored = await store.get("ssot")
    if stored is None:
        raise NotFound("the registry is empty", hint="Run `codeb init` first.")
    return stored.doc


async def load_project(store: StateStore, name: str) -> Project:
    """The project; raises NotFound when there certainly is none."""
    entry = (await load_ssot(store)).get("projects", {}).get(name)
    if entry is None:
        raise NotFound(f"there is no project {name}", hint="Create it with project_create.", project=name)
    return parse_project(name, entry)


async def find_slots(store: StateStore, project: str, environment: Environment) -> Slots | None:
    """The environment's slots, or None when it has never been set up."""
    key = slots_key(project, environment)
    stored = await store.get(key)
    return parse_slots(key, stored.doc) if stored else None


async def load_slots(store: StateStore, project: str, environment: Environment) -> Slots:
    """The environment's slots; raises NotFound when it has never been set up."""
    return (await load_slots_as_stored(store, project, environment))[0]


async def load_slots_as_stored(store: StateStore, project: str, environment: Environment) -> tuple[Slots, Document]:
    """The environment's slots and their document as it is, for those who show it; raises NotFound like `load_slots`."""
    key = slots_key(project, environment)
    stored = await store.get(key)
    if stored is None:
        raise NotFound(
            f"{project} has no {environment} environment yet",
            hint=f"Deploy to {environment} once, or add it with project_create.",
            project=project,
            environment=environment.value,
        )
    return parse_slots(key, stored.doc), stored.doc


async def environments(store: StateStore, unreadable: list[str] | None = None) -> list[Slots]:
    """Every environment of the registry. Raises RegistryDamaged when one cannot be read, or, for callers who can do
    without it, adds what is wrong with it to `unreadable`."""
    found = []
    for key in await store.keys("slots/"):
        try:
            stored = await store.get(key)
            if stored is not None:
                found.append(parse_slots(key, stored.doc))
        except RegistryDamaged as error:
            if unreadable is None:
                raise
            unreadable.append(error.message)
    return found


async def change_slots(
    store: StateStore, key: str, change: Callable[[Slots], Slots], fence: Fence | None = None
) -> Slots:
    """Apply the pure change to the slots of `{project}-{environment}` and commit it."""
    document = f"slots/{key}"
    seen: list[Slots] = []

    def apply(doc: Document | None) -> Document | None:
        if doc is None:
            raise NotFound(f"{key} has no slots", hint="Create the environment with project_create.")
        before = parse_slots(document, doc)
        after = change(before)
        seen.append(after)
        return doc if after is before else after.dump()

    await update(store, document, apply, fence=fence)
    return seen[-1]


async def site_of(store: StateStore, settings: Settings, slots: Slots) -> Site:
    """The environment as the proxy should have it: chosen or default host, further domains, preview names, ports."""
    ssot = await load_ssot(store)
    project = await load_project(store, slots.project_name)
    stored = await store.get(f"domains/{slots.project_name}")
    more = [
        one.name
        for one in domains_in(stored.doc if stored else None, slots.project_name)
        if one.environment is slots.environment and one.routed
    ]
    environment = project.settings.of(slots.environment)
    first = public_host(slots.project_name, slots.environment, environment, settings.base_domain)
    preview = settings.preview_domain
    return Site(
        key=slots.key,
        hosts=tuple(dict.fromkeys([first, *more])),
        blue_port=slots.blue.port,
        green_port=slots.green.port,
        blue_preview=preview_host(slots.project_name, slots.environment, Slot.BLUE, preview),
        green_preview=preview_host(slots.project_name, slots.environment, Slot.GREEN, preview),
        security_headers=environment.security_headers,
        addresses=_upstreams(ssot, environment),
    )


def _upstreams(ssot: Document, environment: EnvironmentSettings) -> tuple[str, ...]:
    """Where the proxy finds the slots: beside it, unless it is the edge in front of several app servers."""
    if not environment.edge or not environment.servers:
        return ("127.0.0.1",)
    servers = entries_of(ssot)
    return tuple(str(servers[key]["host"]) for key in environment.servers if key in servers)


async def proven_hosts(store: StateStore, settings: Settings, slots: Slots, site: Site) -> tuple[str, ...]:
    """The site's hosts that a switch has to prove. A domain whose certificate an authority has yet to issue cannot be asked
    for over TLS; it follows the switch like the others."""
    if settings.proxy.tls != "acme":
        return site.hosts
    stored = await store.get(f"domains/{slots.project_name}")
    waiting = {
        one.name for one in domains_in(stored.doc if stored else None, slots.project_name) if one.status == PENDING
    }
    return tuple(host for host in site.hosts if host == site.hosts[0] or host not in waiting)


def url_of(settings: Settings, host: str) -> str:
    """The address a person would open."""
    listen = settings.proxy.listen[0].rpartition(":")[2]
    scheme, usual = ("http", "80") if settings.proxy.tls == "off" else ("https", "443")
    return f"{scheme}://{host}" + ("" if listen == usual else f":{listen}")
