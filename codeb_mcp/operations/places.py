"""Where an environment stands: the app servers that run its slots, and the proxies in front of them.

Without a word in the settings that is the app server beside the control plane. Several app servers each have a proxy of
their own, or share the one beside the control plane as their edge. What a step does, it does on all of them at once; it is
done when all have done it, and its failure names the server.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from codeb_mcp.model.errors import CodebError, Conflict, NotFound, RegistryDamaged, from_code
from codeb_mcp.model.names import split_environment_key
from codeb_mcp.model.project import EnvironmentSettings
from codeb_mcp.model.server import Server, ServerRole, entries_of, plain_addresses
from codeb_mcp.operations.context import AppServer, Services
from codeb_mcp.operations.servers import load_servers, parse_server
from codeb_mcp.operations.state import load_project, load_ssot
from codeb_mcp.registry.store import Document
from codeb_mcp.settings import AppServerSettings

T = TypeVar("T")
HERE = ""
"""The name of the app server beside the control plane, where one is needed."""
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Place:
    """One app server. `key` tells places apart and is `HERE` for the one beside the control plane; `name` is that in the inventory,
    if it has one; `address` is where it
    publishes slots for an edge in front of it, `public` are the addresses at which visitors reach its proxy."""

    key: str
    drivers: AppServer
    address: str = LOOPBACK
    public: tuple[str, ...] = ()
    name: str = ""

    @property
    def named(self) -> str:
        """For messages."""
        return f"server {self.name}" if self.name else "this machine"


@dataclass(frozen=True, slots=True)
class Placement:
    """`apps` run the slots, `fronts` have the proxies that send requests to them."""

    apps: tuple[Place, ...]
    fronts: tuple[Place, ...]
    edge: bool = False

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where the proxies find the slots."""
        return tuple(place.address for place in self.apps) if self.edge else (LOOPBACK,)

    def published_at(self, place: Place) -> str:
        """The address on which a place publishes its slots."""
        return place.address if self.edge else LOOPBACK

    @property
    def public(self) -> tuple[str, ...]:
        """Where visitors reach the proxies: what names have to lead to."""
        return tuple(dict.fromkeys(address for place in self.fronts for address in place.public))

    @property
    def all(self) -> tuple[Place, ...]:
        """Every place once."""
        return tuple({place.key: place for place in (*self.apps, *self.fronts)}.values())


def here(services: Services) -> Place:
    """The app server beside the control plane."""
    return Place(HERE, services.drivers, public=services.settings.dns.addresses)


async def placement_of(services: Services, key: str) -> Placement:
    """Where the environment `{project}-{environment}` stands. Raises NotFound for a project or server that is not there."""
    project, environment = split_environment_key(key)
    return await placement_for(services, (await load_project(services.store, project)).settings.of(environment))


async def placement_left(services: Services, key: str) -> Placement:
    """Where the environment stands, as far as its servers are still in the inventory as app servers: for taking it away."""
    project, environment = split_environment_key(key)
    settings = (await load_project(services.store, project)).settings.of(environment)
    found: list[Place] = []
    for server in settings.servers:
        with contextlib.suppress(NotFound, Conflict, RegistryDamaged):
            found += await places(services, [server])
    beside = (here(services),)
    if not settings.servers:
        return Placement(beside, beside)
    return Placement(tuple(found), beside if settings.edge else tuple(found), settings.edge)


async def placement_for(services: Services, settings: EnvironmentSettings) -> Placement:
    """Where an environment with these settings stands."""
    beside = here(services)
    if not settings.servers:
        return Placement((beside,), (beside,))
    apps = await places(services, settings.servers)
    return Placement(apps, (beside,) if settings.edge else apps, settings.edge)


async def places(services: Services, keys: Iterable[str]) -> tuple[Place, ...]:
    """The app servers of these names; raises NotFound or Conflict for one that cannot run releases."""
    servers = await load_servers(services.store)
    return tuple(_place(services, key, servers) for key in keys)


async def every_place(services: Services) -> tuple[Place, ...]:
    """The one beside the control plane and all application servers of the inventory that can be reached over SSH."""
    return await places_in(services, await load_ssot(services.store))


async def places_in(services: Services, ssot: Document) -> tuple[Place, ...]:
    """See `every_place`, by that document."""
    servers: dict[str, Server] = {}
    for key, entry in sorted(entries_of(ssot).items()):
        with contextlib.suppress(RegistryDamaged):  # server_list says so; the others are there all the same
            servers[key] = parse_server(key, entry)
    usable = [key for key, one in servers.items() if one.role is ServerRole.APPLICATION and one.usable]
    found = [here(services), *(_place(services, key, servers) for key in usable)]
    # What the inventory calls this machine comes last, and wins: it has a name.
    return tuple({place.key: place for place in found}.values())


def _place(services: Services, key: str, servers: dict[str, Server]) -> Place:
    server = servers.get(key)
    if server is None:
        known = ", ".join(servers) or "none"
        hint = f"The inventory has: {known}. Add it with server_add."
        raise NotFound(f"there is no server {key}", hint=hint, server=key)
    if server.role is not ServerRole.APPLICATION:
        raise Conflict(
            f"server {key} has the role {server.role}, not application",
            hint="Place environments on app servers only; server_list shows them.",
            server=key,
        )
    if server.connection == "local":
        return replace(here(services), address=server.host, name=key)
    own = services.settings.app_servers.get(key, AppServerSettings()).addresses
    drivers = services.drivers.app_servers.at(key, server)
    return Place(key, drivers, server.host, own or plain_addresses(server.host), key)


async def on_all(where: Sequence[Place], work: Callable[[Place], Awaitable[T]]) -> list[T]:
    """`work` done on all places at once, answers in their order. One that fails does not keep the others from ending; then
    the first failure is raised, naming its server and how many others failed."""
    if len(where) == 1 and not where[0].key:
        return [await work(where[0])]
    done = await asyncio.gather(*(work(place) for place in where), return_exceptions=True)
    failed = [(place, one) for place, one in zip(where, done, strict=True) if isinstance(one, BaseException)]
    strange = next((one for _, one in failed if not isinstance(one, CodebError)), None)
    if strange is not None:
        raise strange
    if failed:
        place, error = failed[0]
        raise _told(place, error, [other.named for other, _ in failed[1:]])
    return [one for one in done if not isinstance(one, BaseException)]


def _told(place: Place, error: BaseException, others: list[str]) -> BaseException:
    """The same error with the server's name in its words."""
    if not isinstance(error, CodebError):
        return error
    known = place.name and place.name in error.message
    said = error.message if known else f"{place.named}: {error.message}"
    more = {"alsoFailed": others} if others else {}
    told = from_code(error.code, said, hint=error.hint, **{**error.detail, "server": place.name or "here", **more})
    told.__cause__ = error
    return told
