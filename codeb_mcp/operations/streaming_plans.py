"""Giving an environment a namespace and taking it away: what the runs are going to do. Whatever can be refused is refused here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from codeb_mcp.drivers.centrifugo import Installed
from codeb_mcp.model.centrifugo import Namespace, missing_origins, namespace_name
from codeb_mcp.model.errors import Conflict, NotFound
from codeb_mcp.model.machine import Action
from codeb_mcp.model.names import Environment
from codeb_mcp.model.sequence import Sequence as Machine
from codeb_mcp.model.sequence import Step
from codeb_mcp.operations.context import Services
from codeb_mcp.operations.env import require_environment
from codeb_mcp.operations.runs import Planned, planner
from codeb_mcp.operations.state import load_project, load_ssot
from codeb_mcp.operations.streaming_state import (
    Which,
    access_to,
    choose_server,
    names_there,
    namespace_in,
    namespaces_of,
    on_server,
    origins_of,
    require_own_team,
    require_variables_free,
    unusable,
    way_to,
)
from codeb_mcp.registry.entries import RunHeader
from codeb_mcp.registry.env_history import values_of
from codeb_mcp.registry.store import Document

STEP_SECONDS = 90.0


@planner("streaming_setup")
async def plan_setup(services: Services, header: RunHeader) -> Planned:
    """Reserve, configure, write the variables, done. Whatever can be refused is refused here, before anything is there."""
    which, request = which_of(header), header.request
    project = await load_project(services.store, which.project)
    require_environment(project, which.project, which.environment)
    ssot = await load_ssot(services.store)
    entry = namespace_in(ssot, which)
    server = entry.server if entry else await choose_server(services, request.get("server"))
    _require_same(which, entry, request)
    require_own_team(services, ssot, which, server)
    way = await way_to(services, server)
    installed = await way.read()
    await way.info(installed.secrets)
    if entry is None:
        entry = _fresh(header, which, server, ssot, names_there(installed, server))
    origins = _missing(installed, server, await origins_of(services, which, project))
    overwrite = bool(request.get("overwriteVariables"))
    await _require_variables(services, which, entry, overwrite=overwrite)
    detail = {
        **_common(header), "entry": entry.dump(), "origins": list(origins), "overwrite": overwrite, "server": server,
    }  # fmt: skip
    actions = (
        ("reserve_namespace", f"reserve {entry.name} on {server}"),
        ("configure_namespace", f"have {entry.name} in Centrifugo on {server}"),
        ("write_streaming", "write the variables"),
        ("try_streaming", "connect as a client will"),
        ("confirm_namespace", "write it into the registry"),
    )
    return Planned(Machine(tuple(Step(_action(name, detail, says), name == "try_streaming") for name, says in actions)))


@planner("streaming_remove")
async def plan_remove(services: Services, header: RunHeader) -> Planned:
    """Out of Centrifugo, out of the variables, out of the registry."""
    which = which_of(header)
    entry = namespace_in(await load_ssot(services.store), which)
    if entry is None:
        raise NotFound(f"there is no {which}", hint="Make it with streaming_setup.")
    detail = _common(header)
    return Planned(
        Machine(
            (
                Step(_action("leave_namespace", detail, f"mark {entry.name} as leaving")),
                Step(_action("drop_namespace", detail, f"take {entry.name} out of Centrifugo on {entry.server}")),
                Step(_action("withdraw_streaming", detail, "take its variables away")),
                Step(_action("forget_namespace", detail, "strike it from the registry")),
            )
        )
    )


def leaving_actions(ssot: Document, project: str) -> list[Action]:
    """What a run that deletes the project does about its namespaces; to be done while the registry still has them."""
    return [
        _action(
            "drop_namespace",
            {"project": which.project, "environment": which.environment.value},
            f"take {entry.name} out of Centrifugo on {entry.server}",
            step=f"drop_namespace_{which.environment}",
        )
        for which, entry in namespaces_of(ssot, project)
    ]


def which_of(header: RunHeader) -> Which:
    """What the run is about."""
    return Which(header.project, Environment(header.environment or ""))


def _require_same(which: Which, entry: Namespace | None, request: Mapping[str, Any]) -> None:
    if entry is None:
        return
    if entry.state == "leaving":
        raise Conflict(f"the {which} is being taken away", hint="Finish that with streaming_remove first.")
    if request.get("server") not in (None, entry.server):
        raise Conflict(
            f"the {which} is there already, on server {entry.server}",
            hint="Leave server out to go on with it, or take it away with streaming_remove first.",
        )


def _fresh(header: RunHeader, which: Which, server: str, ssot: Document, there: Sequence[str]) -> Namespace:
    name = namespace_name(which.project, which.environment, on_server(ssot, server))
    fields: dict[str, Any] = {
        "name": name,
        "server": server,
        "state": "reserved",
        "created_at": header.created_at,
        "created_by": header.caller.get("keyId"),
    }
    return Namespace.model_validate(fields | ({"found": True} if name in there else {}))


def _missing(installed: Installed, server: str, origins: Sequence[str]) -> tuple[str, ...]:
    try:
        return tuple(missing_origins(installed.config, installed.major, origins))
    except ValueError as error:
        raise unusable(server, error) from None


async def _require_variables(services: Services, which: Which, entry: Namespace, *, overwrite: bool) -> None:
    state = await services.registry.env.snapshot(which.project, which.environment.value)
    access = await access_to(services, entry)
    require_variables_free(
        state, access.names, overwrite=overwrite or access.is_ours(values_of(state.current or state.live))
    )
    await services.copies.require(services, which.project, which.environment.value)


def _common(header: RunHeader) -> dict[str, Any]:
    by = {name: str(header.caller.get(name, "")) for name in ("name", "keyId", "team")}
    return {"by": by, "project": header.project, "environment": header.environment}


def _action(name: str, detail: Mapping[str, Any], says: str, *, step: str = "") -> Action:
    return Action(name, step or name, detail, deadline_seconds=STEP_SECONDS, cancellable=False, says=says)
