"""Making, rotating and taking away data stores: what each step of the runs does.

The registry knows of a store before the server does (`reserved`) and until after it is gone there (`leaving`). A password is
made, set and written into the variables within one step, so that no journal ever sees it; a crash in between means that the
repeated step simply sets a new one.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from codeb_mcp.model.databases import Database, DatabaseKind, allocate_port, database_name
from codeb_mcp.model.env import render
from codeb_mcp.model.errors import CodebError, DriverRefused, DriverUnavailable
from codeb_mcp.model.machine import Action
from codeb_mcp.operations.context import Services
from codeb_mcp.operations.database_checks import load_entry, require_image, require_unused
from codeb_mcp.operations.database_env import change_variables, password_in, require_variables_free, write_variables
from codeb_mcp.operations.database_state import (
    Way,
    Which,
    address_of,
    admin_door,
    admin_password,
    app_door,
    change_entry,
    names_on,
    way_to,
)
from codeb_mcp.operations.env_state import require_known_live
from codeb_mcp.operations.environments import known_ports
from codeb_mcp.operations.perform import Performer, step
from codeb_mcp.operations.servers import load_server
from codeb_mcp.registry.env_history import Draft, EnvSnapshot, values_of
from codeb_mcp.registry.store import Document, Fence

PASSWORD_BYTES = 32
HEALTHY_SECONDS = 90.0
HEALTHY_PAUSE_SECONDS = 0.2
LOGIN_TRIES = 3
GENERATED = re.compile(r"[A-Za-z0-9_-]{43}")
"""A password of ours. Whatever else stands in a variable is somebody's own choice, and no store is opened with it."""


def new_password() -> str:
    """One that nobody can guess, of characters that no URL needs to encode."""
    return secrets.token_urlsafe(PASSWORD_BYTES)


@step("reserve_database")
async def reserve_database(run: Performer, action: Action) -> Mapping[str, Any]:
    """Name, server and port are this store's from now on; what is there already stays."""
    which, wanted = Which.of(action.detail), Database.model_validate(action.detail["entry"])
    entry = await reserve(run.services, which, wanted, action.detail["port"], run.fence)
    return await _facts(run, which, entry)


async def reserve(
    services: Services, which: Which, wanted: Database, port: int | None, fence: Fence | None = None
) -> Database:
    """The store's entry, written as `wanted` if there is none; a name or port that is taken by now becomes another one,
    unless `port` was asked for. Raises Conflict."""

    def decide(ssot: Document, entry: Database | None) -> Database:
        if entry is not None:
            return entry
        name = database_name(which.project, which.environment, names_on(ssot, wanted.server))
        if wanted.port is None:
            return wanted.model_copy(update={"name": name})
        taken = known_ports(ssot, dict(ssot.get("projects", {})), services.drivers.clock.now())
        own = allocate_port(which.kind, taken, port) if wanted.port in taken else wanted.port
        return wanted.model_copy(update={"name": name, "port": own})

    return await change_entry(services, which, decide, fence) or wanted


@step("make_database")
async def make_database(run: Performer, action: Action) -> Mapping[str, Any]:
    """Have the instance, if it is an own one, and in it role and database, or a user; nobody can log in yet."""
    which = Which.of(action.detail)
    entry = await load_entry(run.services, which)
    way = await way_to(run.services, which, entry)
    if way.instance is not None:
        require_image(run.services, which)
        socket = await way.host.socket(run.services.settings.databases.engine_socket)
        password = admin_password(run.services, way.instance)
        await run.drivers.stores.own.ensure(socket, way.instance, password, fence=run.fence.token)
        await _healthy(run, action, which, entry, way)
    door = await admin_door(run.services, which, entry, way)
    return {"made": await way.store.ensure(door, way.wish)}


async def _healthy(run: Performer, action: Action, which: Which, entry: Database, way: Way) -> None:
    """Wait until the administrator gets in."""
    loop = asyncio.get_running_loop()
    end = loop.time() + HEALTHY_SECONDS
    while True:
        try:
            door = await admin_door(run.services, which, entry, way)
            await way.store.check(door)
            return
        except (DriverUnavailable, DriverRefused) as error:
            if loop.time() >= end:
                raise
            run.report(action, None, f"the instance is not ready yet: {error.message}")
        await asyncio.sleep(HEALTHY_PAUSE_SECONDS)


@step("hand_out_password")
async def hand_out_password(run: Performer, action: Action) -> Mapping[str, Any]:
    """Set a new password on the server and write it into the variables. When they cannot be written, the former password
    counts again. A store in the making gets the one that we made for it, if the variables have it already."""
    which, detail = Which.of(action.detail), action.detail
    entry = await load_entry(run.services, which)
    way = await way_to(run.services, which, entry)
    history = run.services.registry.env
    state = await history.snapshot(which.project, which.environment.value)
    require_variables_free(state, way.access, overwrite=detail["overwrite"])
    await run.services.copies.require(run.services, which.project, which.environment.value)
    former = password_in(values_of(state.current), way.access)
    door = await admin_door(run.services, which, entry, way)
    password = former if detail.get("fresh") and GENERATED.fullmatch(former) else new_password()
    try:
        await way.store.set_password(door, way.wish, password)
        version = await write_variables(run, which, way.access, password, detail)
    except CodebError:
        if former:
            with contextlib.suppress(CodebError):
                await way.store.set_password(door, way.wish, former)
        raise
    copied = await run.services.copies.copy(run.services, which.project, which.environment.value)
    facts = {"version": version, "variables": list(way.access.names), "backupProblem": copied.problem}
    return {**await _facts(run, which, entry), **facts}


@step("try_database")
async def try_database(run: Performer, action: Action) -> Mapping[str, Any]:
    """Log in with what stands in the variables."""
    which = Which.of(action.detail)
    entry = await load_entry(run.services, which)
    way = await way_to(run.services, which, entry)
    state = await run.services.registry.env.snapshot(which.project, which.environment.value)
    password = password_in(values_of(state.current), way.access)
    for left in reversed(range(LOGIN_TRIES)):
        try:
            await way.store.login(await app_door(entry, way, password))
            break
        except CodebError as error:
            if left == 0:
                where = f"{way.access.host}:{way.access.port}"
                hint = "See that it listens there and lets password logins in (pg_hba.conf, bind)."
                said = f"a login at {where} does not work yet: {error.message}"
                raise DriverRefused(said, hint=hint, server=entry.server) from None
            await asyncio.sleep(HEALTHY_PAUSE_SECONDS)
    return {}


@step("confirm_database")
async def confirm_database(run: Performer, action: Action) -> Mapping[str, Any]:
    """It is ready."""
    which = Which.of(action.detail)

    def ready(ssot: Document, entry: Database | None) -> Database | None:
        return entry.model_copy(update={"state": "ready"}) if entry is not None else None

    return await _facts(run, which, await change_entry(run.services, which, ready, run.fence))


@step("mark_leaving")
async def mark_leaving(run: Performer, action: Action) -> Mapping[str, Any]:
    """From now on it can only be taken away."""
    which = Which.of(action.detail)

    def leave(ssot: Document, entry: Database | None) -> Database | None:
        return entry.model_copy(update={"state": "leaving"}) if entry is not None else None

    return await _facts(run, which, await change_entry(run.services, which, leave, run.fence))


@step("put_aside")
async def put_aside(run: Performer, action: Action) -> Mapping[str, Any]:
    """Nobody can log in any more, and the data is under another name, or in a volume without a container."""
    which, detail = Which.of(action.detail), action.detail
    entry = await load_entry(run.services, which)
    way = await way_to(run.services, which, entry)
    if way.instance is not None:
        socket = await way.host.socket(run.services.settings.databases.engine_socket)
        own = run.drivers.stores.own
        if not detail["force"] and await own.running(socket, way.instance):
            await require_unused(run.services, which, entry, way)
        await own.remove(socket, way.instance, fence=run.fence.token)
        return {"aside": way.instance.volume}
    door = await admin_door(run.services, which, entry, way)
    return {"aside": await way.store.put_aside(door, way.wish, detail["stamp"], force=detail["force"])}


@step("withdraw_variables")
async def withdraw_variables(run: Performer, action: Action) -> Mapping[str, Any]:
    """Its variables are gone, where they are still its own."""
    which = Which.of(action.detail)
    entry = await load_entry(run.services, which)
    access = (await way_to(run.services, which, entry)).access

    def decide(state: EnvSnapshot) -> Sequence[Draft]:
        require_known_live(state)
        values = values_of(state.current)
        if not access.is_ours(values):
            return []
        left = {name: value for name, value in values.items() if name not in access.names}
        return [Draft("database", render(left).encode())]

    changed = await change_variables(run, which, action.detail, decide)
    return {"variables": list(changed)}


@step("forget_database")
async def forget_database(run: Performer, action: Action) -> Mapping[str, Any]:
    """Out of the registry; an own port is held back for a while."""
    await change_entry(run.services, Which.of(action.detail), lambda ssot, entry: None, run.fence)
    return {}


async def _facts(run: Performer, which: Which, entry: Database | None) -> Mapping[str, Any]:
    """What callers are told of the store; nothing of it is secret."""
    if entry is None:
        return {}
    server = await load_server(run.store, entry.server)
    settings = run.services.settings.databases
    shared = settings.postgres_port if which.kind is DatabaseKind.POSTGRES else settings.redis_port
    return {
        "name": entry.name,
        "server": entry.server,
        "state": entry.state,
        "host": address_of(run.services, entry, server),
        "port": entry.port or shared,
    }
