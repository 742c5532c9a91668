"""Giving an environment a namespace and taking it away: what each step of the runs does.

The registry knows of a namespace before Centrifugo does (`reserved`) and until after it is gone there (`leaving`). Secrets are
read from the server and written into the variables within one step, so that no journal ever sees them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from codeb_mcp.drivers.centrifugo import Centrifugo, Installed
from codeb_mcp.model.centrifugo import (
    Namespace,
    namespace_name,
    parse_config,
    rendered,
    with_namespace,
    without_namespace,
)
from codeb_mcp.model.env import diff, render
from codeb_mcp.model.errors import CodebError, Conflict, DriverRefused, NotFound
from codeb_mcp.model.machine import Action
from codeb_mcp.operations.env_state import require_known_live
from codeb_mcp.operations.perform import Performer, step
from codeb_mcp.operations.servers import load_server
from codeb_mcp.operations.state import load_ssot
from codeb_mcp.operations.streaming_state import (
    Which,
    access_to,
    change_namespace,
    names_there,
    namespace_in,
    on_server,
    require_own_team,
    require_variables_free,
    unusable,
    way_to,
)
from codeb_mcp.registry.env_history import Draft, EnvSnapshot, values_of
from codeb_mcp.registry.env_log import EnvAuthor
from codeb_mcp.registry.store import Document

TRIES = 8


@step("reserve_namespace")
async def reserve_namespace(run: Performer, action: Action) -> Mapping[str, Any]:
    """The name is this environment's from now on; what is there already stays."""
    which, wanted = Which.of(action.detail), Namespace.model_validate(action.detail["entry"])
    added = tuple(action.detail["origins"])

    def reserve(ssot: Document, entry: Namespace | None) -> Namespace:
        if entry is None:
            require_own_team(run.services, ssot, which, wanted.server)
            taken = on_server(ssot, wanted.server)
            name = namespace_name(which.project, which.environment, taken)
            entry = wanted if name == wanted.name else wanted.model_copy(update={"name": name, "found": False})
        new = [one for one in added if one not in entry.origins]
        return entry.model_copy(update={"origins": (*entry.origins, *new)}) if new else entry

    await change_namespace(run.services, which, reserve, run.fence)
    return {}


@step("configure_namespace")
async def configure_namespace(run: Performer, action: Action) -> Mapping[str, Any]:
    """The running Centrifugo has the namespace, and so has its configuration."""
    _, entry = await _entry(run, action)
    origins = tuple(action.detail["origins"])
    way = await way_to(run.services, entry.server)

    def change(before: Installed) -> dict[str, Any]:
        return with_namespace(before.config, before.major, entry.name, origins)

    after, changed = await _reconfigured(way, entry, change, there=True)
    ssot = await load_ssot(run.store)
    known = on_server(ssot, entry.server)
    others = sorted(set(names_there(after, entry.server)) - {entry.name})
    return {
        "changed": changed or None,
        "centrifugo": after.version,
        "others": len(others),
        "strangers": len([name for name in others if name not in known]),
        "restart": list(origins),
    }


@step("write_streaming")
async def write_streaming(run: Performer, action: Action) -> Mapping[str, Any]:
    """The variables say where the namespace is and what opens it."""
    which, entry = await _entry(run, action)
    way = await way_to(run.services, entry.server)
    installed = await way.read()
    access = await access_to(run.services, entry)
    wanted, overwrite = access.variables(installed.secrets), action.detail["overwrite"]

    def decide(state: EnvSnapshot) -> Sequence[Draft]:
        values = values_of(state.current if state.entries else state.live)
        require_variables_free(state, access.names, overwrite=overwrite or access.is_ours(values))
        adopted = [Draft("adopted", state.live)] if not state.entries and state.live is not None else []
        after = {**values, **wanted}
        return [*adopted, Draft("streaming", render(after).encode())] if diff(values, after) else adopted

    changed = await run.services.registry.env.change(
        which.project, which.environment.value, _author(action.detail), run.drivers.clock.now(), decide
    )
    copied = await run.services.copies.copy(run.services, which.project, which.environment.value)
    return {
        "version": changed.after.newest.version if changed.after.newest else None,
        "variables": list(access.names),
        "wrote": changed.before.newest != changed.after.newest or None,
        "url": access.url,
        "apiUrl": access.api_url,
        "namespace": entry.name,
        "server": entry.server,
        "backupProblem": copied.problem,
    }


@step("try_streaming")
async def try_streaming(run: Performer, action: Action) -> Mapping[str, Any]:
    """A token that is signed with what stands in the variables is let in."""
    _, entry = await _entry(run, action)
    way = await way_to(run.services, entry.server)
    if not await way.lets_in((await way.read()).secrets):
        raise DriverRefused(
            f"Centrifugo on {entry.server} does not take a token that is signed with its own secret: it was started with "
            "another one, so restart it",
            hint="Restart it on the server after its secrets were changed.",
            server=entry.server,
        )
    return {}


@step("confirm_namespace")
async def confirm_namespace(run: Performer, action: Action) -> Mapping[str, Any]:
    """It is ready."""
    return await _marked(run, action, "ready")


@step("leave_namespace")
async def leave_namespace(run: Performer, action: Action) -> Mapping[str, Any]:
    """From now on it can only be taken away."""
    return await _marked(run, action, "leaving")


@step("drop_namespace")
async def drop_namespace(run: Performer, action: Action) -> Mapping[str, Any]:
    """Neither Centrifugo nor its configuration has the namespace, unless it was there before us. A server that is not in the
    inventory any more is nobody's to be asked."""
    which = Which.of(action.detail)
    entry = namespace_in(await load_ssot(run.store), which)
    if entry is None or entry.found:
        return {"left": entry is not None}
    try:
        await load_server(run.store, entry.server)
    except NotFound:
        return {"left": True}
    way = await way_to(run.services, entry.server)

    def change(before: Installed) -> dict[str, Any]:
        return without_namespace(before.config, before.major, entry.name, entry.origins)

    _, changed = await _reconfigured(way, entry, change, there=False)
    return {"changed": changed or None}


@step("withdraw_streaming")
async def withdraw_streaming(run: Performer, action: Action) -> Mapping[str, Any]:
    """Its variables are gone, where they are still its own."""
    which, entry = await _entry(run, action)
    access = await access_to(run.services, entry)
    environment = which.environment.value
    if not (await run.services.registry.env.snapshot(which.project, environment)).entries:
        return {"variables": []}

    def decide(state: EnvSnapshot) -> Sequence[Draft]:
        require_known_live(state)
        values = values_of(state.current)
        if not access.is_ours(values):
            return []
        left = {name: value for name, value in values.items() if name not in access.names}
        return [Draft("streaming", render(left).encode())]

    changed = await run.services.registry.env.change(
        which.project, environment, _author(action.detail), run.drivers.clock.now(), decide
    )
    copied = await run.services.copies.copy(run.services, which.project, environment)
    return {"variables": list(changed.diff.removed), "backupProblem": copied.problem}


@step("forget_namespace")
async def forget_namespace(run: Performer, action: Action) -> Mapping[str, Any]:
    """Out of the registry."""
    await change_namespace(run.services, Which.of(action.detail), lambda ssot, entry: None, run.fence)
    return {}


async def _entry(run: Performer, action: Action) -> tuple[Which, Namespace]:
    which = Which.of(action.detail)
    entry = namespace_in(await load_ssot(run.store), which)
    if entry is None:
        raise Conflict(f"the {which} is gone", hint="Make it with streaming_setup.")
    return which, entry


async def _marked(run: Performer, action: Action, state: str) -> Mapping[str, Any]:
    which = Which.of(action.detail)

    def mark(ssot: Document, entry: Namespace | None) -> Namespace | None:
        return entry if entry is None or entry.state == state else entry.model_copy(update={"state": state})

    await change_namespace(run.services, which, mark, run.fence)
    return {}


def _author(detail: Mapping[str, Any]) -> EnvAuthor:
    by = detail["by"]
    return EnvAuthor(by["name"], by["keyId"], by["team"])


async def _reconfigured(
    way: Centrifugo, entry: Namespace, change: Callable[[Installed], dict[str, Any]], *, there: bool
) -> tuple[Installed, bool]:
    """Have the change in the configuration and in the running Centrifugo; answers what is there now, and whether anything was
    changed. What Centrifugo does not take is put back."""
    before, after = await _written(way, entry, change)
    changed = after.text != before.text
    if not changed and await way.has_namespace(entry.name, before.secrets) is there:
        return after, False
    try:
        await way.reload(after.config)
        if await way.taken(entry.name, after.secrets, there=there):
            return after, True
        raise DriverRefused(
            f"server {entry.server}: the running Centrifugo did not take its new configuration"
            + ("; the former one was put back" if changed else ""),
            hint="Read its log, and see that it was started with this very file.",
            server=entry.server,
            reason="not_taken",
        )
    except CodebError:
        if changed:
            with contextlib.suppress(CodebError):
                await way.replace(after, before.text)
                await way.reload(before.config)
        raise


async def _written(
    way: Centrifugo, entry: Namespace, change: Callable[[Installed], dict[str, Any]]
) -> tuple[Installed, Installed]:
    """The file before and after; somebody else's change in between is kept."""
    for left in reversed(range(TRIES)):
        before = await way.read()
        await way.info(before.secrets)
        try:
            config = change(before)
        except ValueError as error:
            raise unusable(entry.server, error) from None
        if config == before.config:
            return before, before
        text = rendered(config)
        try:
            await way.replace(before, text)
        except Conflict:
            if left == 0:
                raise
            continue
        return before, replace(before, text=text, config=parse_config(text))
    raise Conflict("the configuration kept changing", hint="Try again.")
