"""What plans and steps of data stores look at before they do anything."""

from __future__ import annotations

import contextlib

from codeb_mcp.model.databases import Database, DatabaseKind
from codeb_mcp.model.errors import Conflict, DriverUnavailable, NotFound
from codeb_mcp.model.names import Environment
from codeb_mcp.operations.context import Services
from codeb_mcp.operations.database_state import (
    Way,
    Which,
    admin_door,
    entry_in,
    foreign_in,
)
from codeb_mcp.operations.state import load_ssot
from codeb_mcp.registry.store import Document


async def load_entry(services: Services, which: Which) -> Database:
    """The store's entry; raises NotFound, or Conflict for one that was not made from here."""
    ssot = await load_ssot(services.store)
    entry = entry_in(ssot, which)
    if entry is not None:
        return entry
    if which.kind is DatabaseKind.POSTGRES and which.environment is Environment.PRODUCTION:
        require_no_foreign(ssot, which)
    raise NotFound(f"there is no {which}", hint="List them with database_list, or make one with database_create.")


def require_no_foreign(ssot: Document, which: Which) -> None:
    foreign = foreign_in(ssot, which.project)
    if foreign is not None:
        raise Conflict(
            f"the database {foreign.get('name')} of {which.project} was not made from here and is left alone",
            hint="It goes on as it is; its variables are set with env_set.",
        )


def require_image(services: Services, which: Which) -> None:
    settings = services.settings.databases
    if (settings.postgres_image if which.kind is DatabaseKind.POSTGRES else settings.redis_image) is None:
        raise Conflict(
            f"no image for own {which.kind} instances is set",
            hint=f"Set databases.{which.kind}_image in the settings, with its digest; or use the shared instance.",
        )


async def require_unused(services: Services, which: Which, entry: Database, way: Way) -> None:
    with contextlib.suppress(DriverUnavailable):  # who cannot be reached by us is used by nobody through us
        door = await admin_door(services, which, entry, way)
        count = await way.store.connections(door, way.wish)
        if count:
            raise Conflict(
                f"{count} {'client is' if count == 1 else 'clients are'} connected to {entry.name}",
                hint="Stop the app first, or say force to end its connections.",
                connections=count,
            )
