"""Making, rotating and taking away data stores: what the runs are going to do. Whatever can be refused is refused here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from codeb_mcp.model.databases import Database, DatabaseKind, Placement, allocate_port, database_name
from codeb_mcp.model.errors import Conflict
from codeb_mcp.model.machine import Action
from codeb_mcp.model.names import Environment
from codeb_mcp.model.sequence import Sequence as Machine
from codeb_mcp.model.sequence import Step
from codeb_mcp.operations.context import Services
from codeb_mcp.operations.database_checks import load_entry, require_image, require_no_foreign, require_unused
from codeb_mcp.operations.database_env import require_variables_free
from codeb_mcp.operations.database_state import (
    Which,
    admin_door,
    choose_server,
    entry_in,
    names_on,
    way_to,
)
from codeb_mcp.operations.env import require_environment
from codeb_mcp.operations.environments import known_ports
from codeb_mcp.operations.runs import Planned, planner
from codeb_mcp.operations.state import load_project, load_ssot
from codeb_mcp.registry.entries import RunHeader
from codeb_mcp.registry.store import Document

STEP_SECONDS = 60.0
OWN_SECONDS = 300.0
STAMP = "%Y%m%dt%H%M%S"


@planner("database_create")
async def plan_create(services: Services, header: RunHeader) -> Planned:
    """Reserve, make, hand out the password, try it, done. Whatever can be refused is refused here, before anything is there."""
    which, request = which_of(header), header.request
    project = await load_project(services.store, which.project)
    require_environment(project, which.project, which.environment)
    entry = await wanted_entry(services, header)
    detail = {**which.detail(), "entry": entry.dump(), "port": request.get("port"), "fresh": True, **_common(header)}
    reserve = _action("reserve_database", detail, f"reserve {entry.name} on {entry.server}")
    if entry.state == "ready":
        return Planned(Machine((Step(reserve),)))
    await require_able(services, which, entry)
    await _require_writable(services, which, entry, overwrite=bool(request.get("overwriteVariables")))
    seconds = OWN_SECONDS if entry.placement is Placement.OWN else STEP_SECONDS
    make = _action("make_database", detail, f"make {entry.name} on {entry.server}", seconds=seconds)
    return Planned(
        Machine(
            (
                Step(reserve),
                Step(make),
                Step(_action("hand_out_password", detail, "set a password and write the variables")),
                Step(_action("try_database", detail, "log in as the app will"), soft=True),
                Step(_action("confirm_database", detail, "write it into the registry")),
            )
        )
    )


@planner("database_rotate")
async def plan_rotate(services: Services, header: RunHeader) -> Planned:
    """A new password on the server and in the variables, then a login with it."""
    which = which_of(header)
    entry = await load_entry(services, which)
    if entry.state != "ready":
        raise Conflict(f"the {which} is not ready", hint="Finish it with database_create or database_delete first.")
    await require_able(services, which, entry)
    await _require_writable(services, which, entry, overwrite=bool(header.request.get("overwriteVariables")))
    detail = {**which.detail(), **_common(header)}
    return Planned(
        Machine(
            (
                Step(_action("hand_out_password", detail, "set a new password and write the variables")),
                Step(_action("try_database", detail, "log in as the app will"), soft=True),
            )
        )
    )


@planner("database_delete")
async def plan_delete(services: Services, header: RunHeader) -> Planned:
    """Lock it and put it aside, take its variables away, strike it from the registry."""
    which = which_of(header)
    entry = await load_entry(services, which)
    force = bool(header.request.get("force"))
    way = await way_to(services, which, entry)
    if entry.state == "ready" and not force:
        await require_unused(services, which, entry, way)
    stamp = header.created_at.strftime(STAMP)
    detail = {**which.detail(), **_common(header), "force": force, "stamp": stamp}
    return Planned(
        Machine(
            (
                Step(_action("mark_leaving", detail, f"mark {entry.name} as leaving")),
                Step(_action("put_aside", detail, f"lock {entry.name} and put it aside", seconds=OWN_SECONDS)),
                Step(_action("withdraw_variables", detail, "take its variables away")),
                Step(_action("forget_database", detail, "strike it from the registry")),
            )
        )
    )


async def wanted_entry(services: Services, header: RunHeader) -> Database:
    """The store's entry as it is, else as it would be made. Looks at the registry and the settings only; raises Conflict,
    NotFound or InvalidRequest for what cannot be."""
    which, request = which_of(header), header.request
    entry = entry_in(await load_ssot(services.store), which)
    placement = Placement(request.get("placement", Placement.SHARED))
    if entry is None:
        entry = await _fresh(services, header, which, placement)
    _require_same(entry, which, placement, request)
    return entry


def which_of(header: RunHeader) -> Which:
    """The store that the run is about."""
    kind = DatabaseKind(header.request["kind"])
    return Which(header.project, Environment(header.environment or ""), kind)


async def _fresh(services: Services, header: RunHeader, which: Which, placement: Placement) -> Database:
    ssot = await load_ssot(services.store)
    if which.kind is DatabaseKind.POSTGRES and which.environment is Environment.PRODUCTION:
        require_no_foreign(ssot, which)
    server = await choose_server(services, header.request.get("server"))
    taken = names_on(ssot, server) | {services.settings.databases.postgres_role or ""}
    fields: dict[str, Any] = {
        "name": database_name(which.project, which.environment, taken),
        "server": server,
        "placement": placement,
        "state": "reserved",
        "created_at": header.created_at,
        "created_by": header.caller.get("keyId"),
    }
    if placement is Placement.OWN:
        require_image(services, which)
        fields["volume"] = f"codeb-{which.project}-{which.environment}-{which.kind}-{header.run_id[-12:]}"
        fields["port"] = allocate_port(which.kind, _taken_ports(ssot, header), header.request.get("port"))
    elif header.request.get("port"):
        raise Conflict("a shared instance has its port already", hint="Leave port out, or say placement own.")
    return Database.model_validate(fields)


def _taken_ports(ssot: Document, header: RunHeader) -> set[int]:
    return known_ports(ssot, dict(ssot.get("projects", {})), header.created_at)


def _require_same(entry: Database, which: Which, placement: Placement, request: Mapping[str, Any]) -> None:
    if entry.state == "leaving":
        raise Conflict(f"the {which} is being taken away", hint="Finish that with database_delete first.")
    asked = {"server": request.get("server"), "port": request.get("port"), "placement": placement.value}
    has = {"server": entry.server, "port": entry.port, "placement": entry.placement.value}
    other = [name for name, value in asked.items() if value is not None and value != has[name]]
    if other:
        raise Conflict(
            f"the {which} is there already, with {', '.join(f'{name} {has[name]}' for name in other)}",
            hint="Leave these out to go on with it, or take it away with database_delete first.",
        )


async def require_able(services: Services, which: Which, entry: Database) -> None:
    """Raise what is in the way on a shared instance: it cannot be reached, our rights there, a stranger's data."""
    way = await way_to(services, which, entry)
    if way.instance is None:
        door = await admin_door(services, which, entry, way)
        await way.store.check(door)
        await way.store.look(door, way.wish)


async def _require_writable(services: Services, which: Which, entry: Database, *, overwrite: bool) -> None:
    """Raise when the variables cannot be written, here or on the Backup server."""
    access = (await way_to(services, which, entry)).access
    state = await services.registry.env.snapshot(which.project, which.environment.value)
    require_variables_free(state, access, overwrite=overwrite)
    await services.copies.require(services, which.project, which.environment.value)


def _common(header: RunHeader) -> dict[str, Any]:
    by = {name: str(header.caller.get(name, "")) for name in ("name", "keyId", "team")}
    return {"by": by, "overwrite": bool(header.request.get("overwriteVariables"))}


def _action(name: str, detail: Mapping[str, Any], says: str, *, seconds: float = STEP_SECONDS) -> Action:
    return Action(name, name, detail, deadline_seconds=seconds, cancellable=False, says=says)
