"""Looking at variables: names, lengths and keyed hashes, differences, drift, versions, and whether all of it is whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from codeb_mcp.model.access import Reach, Role
from codeb_mcp.model.env import diff, is_protected
from codeb_mcp.model.env_contract import breaches, is_secret
from codeb_mcp.model.errors import CodebError, InvalidRequest, NotFound, RegistryDamaged
from codeb_mcp.model.names import Environment
from codeb_mcp.operations.answers import EnvironmentRequest
from codeb_mcp.operations.catalog import Effect, Page, PageRequest, Result, operation
from codeb_mcp.operations.context import Context
from codeb_mcp.operations.env import require_environment
from codeb_mcp.operations.env_copies import examine_copies
from codeb_mcp.operations.env_state import (
    EnvVersionName,
    containers_with,
    contract_warnings,
    is_known,
    shown,
    stale_slots,
    value_hash,
)
from codeb_mcp.operations.ownership import require_scope
from codeb_mcp.operations.state import load_project
from codeb_mcp.registry.env_history import EnvSnapshot, values_of


class EnvPageRequest(EnvironmentRequest, PageRequest):
    """One environment, and which rows."""


class EnvRow(Result):
    """One variable without its value. `bytes`: the value's length in UTF-8; `hash`: the same value of the same name has the
    same hash in all environments of the project."""

    name: str
    bytes: int
    hash: str
    secret: bool
    protected: bool
    required: bool


class EnvPage(Page):
    """The variables of an environment, by name."""

    data: list[EnvRow]
    version: str | None = Field(None, description="Version that counts; missing when there is no history yet")
    updated_at: str | None = None
    redeploy_needed: bool = False
    warnings: list[str] = Field(default_factory=list)


@operation(effect=Effect.READ, role=Role.VIEWER, reach=Reach.PROJECT)
async def env_get(ctx: Context, request: EnvPageRequest) -> EnvPage:
    """List the variables of an environment: name, length and a keyed hash, never a value.

    Hashes can be compared between environments of the project and between calls; nobody can try out values with them.
    """
    project = await load_project(ctx.store, request.project_name)
    require_environment(project, request.project_name, request.environment)
    state = await _state(ctx, request)
    values = values_of(state.current if state.entries else state.live)
    contract = project.settings.env_contract
    names = sorted(values)[request.offset : request.offset + request.limit]
    rows = [
        EnvRow(
            name=name,
            bytes=len(values[name].encode()),
            hash=value_hash(ctx.services, request.project_name, name, values[name]),
            secret=is_secret(contract, name),
            protected=is_protected(name),
            required=name in contract and contract[name].required and contract[name].is_for(request.environment),
        )
        for name in names
    ]
    stale = await stale_slots(ctx.services, request.project_name, request.environment, state.live)
    return EnvPage.of(rows, request, total=len(values)).model_copy(
        update={
            "version": state.newest.version if state.newest else None,
            "updated_at": state.newest.at if state.newest else None,
            "redeploy_needed": bool(stale),
            "warnings": contract_warnings(contract, values, request.environment),
        }
    )


async def _state(ctx: Context, request: EnvironmentRequest, environment: Environment | None = None) -> EnvSnapshot:
    where = (environment or request.environment).value
    return await ctx.services.registry.env.snapshot(request.project_name, where)


class EnvDiffRequest(EnvPageRequest):
    """What to compare: with another environment, two versions, or the project's contract."""

    against: Environment | None = Field(None, description="Compare with this environment of the project")
    from_version: EnvVersionName | None = Field(None, description="Compare from this version")
    to_version: EnvVersionName = Field("current", description="Compare to this version; current if not given")
    contract: bool = Field(False, description="Compare with the project's contract")


class EnvDiffRow(Result):
    """One name that differs. `change`: added, changed or removed from the first to the second; missing, violates or
    undeclared for a contract."""

    name: str
    change: str
    secret: bool


class EnvDiffPage(Page):
    """Names that differ, by name. `left` and `right` say what was compared."""

    data: list[EnvDiffRow]
    left: str = ""
    right: str = ""


@operation(effect=Effect.READ, role=Role.VIEWER, reach=Reach.PROJECT)
async def env_diff(ctx: Context, request: EnvDiffRequest) -> EnvDiffPage:
    """Compare variables by name with another environment, another version or the contract.

    Say exactly one of against, fromVersion (with toVersion, which is current if not given) and contract. Never shows a value.
    """
    said = [request.against is not None, request.from_version is not None, request.contract]
    if said.count(True) != 1:
        raise InvalidRequest(
            "say exactly one of against, fromVersion and contract",
            hint="For example fromVersion master, to see what changed since the first version.",
            fields=[{"field": "against", "problem": "say exactly one of against, fromVersion and contract"}],
        )
    project = await load_project(ctx.store, request.project_name)
    require_environment(project, request.project_name, request.environment)
    contract, state = project.settings.env_contract, await _state(ctx, request)
    if request.contract:
        values = values_of(state.current if state.entries else state.live)
        changes = {one.name: one.problem for one in breaches(contract, values, request.environment)}
        changes |= {name: "undeclared" for name in values if name not in contract}
        left, right = "contract", request.environment.value
    else:
        left, right, first, second = await _sides(ctx, request, state)
        changes = _changes(first, second)
    rows = [
        EnvDiffRow(name=name, change=change, secret=is_secret(contract, name))
        for name, change in sorted(changes.items())
    ]
    return EnvDiffPage.of(rows, request).model_copy(update={"left": left, "right": right})


async def _sides(
    ctx: Context, request: EnvDiffRequest, state: EnvSnapshot
) -> tuple[str, str, Mapping[str, str], Mapping[str, str]]:
    """Names and variables of what is compared."""
    if request.against is not None:
        require_scope(ctx.caller, request.project_name, [request.against.value], changes=False)
        other = await _state(ctx, request, request.against)
        return request.environment.value, request.against.value, values_of(state.current), values_of(other.current)
    if not state.entries:
        raise NotFound("there are no versions yet", hint="Set variables with env_set.")
    first, second = state.find(request.from_version or "master"), state.find(request.to_version)
    return first.version, second.version, values_of(state.read(first)), values_of(state.read(second))


def _changes(first: Mapping[str, str], second: Mapping[str, str]) -> dict[str, str]:
    found = diff(first, second)
    return {
        **dict.fromkeys(found.added, "added"),
        **dict.fromkeys(found.changed, "changed"),
        **dict.fromkeys(found.removed, "removed"),
    }


class EnvScanResult(Result):
    """Whether history, live file and containers have the same variables. `live`: same, stale (an earlier version), changed
    (by hand), missing, unmanaged (no history yet) or none. `containers`: slots whose container has other variables (stale), is
    not there (missing) or cannot be asked (unknown)."""

    project_name: str
    environment: str
    version: str | None = None
    live: Literal["same", "stale", "changed", "missing", "unmanaged", "none"]
    differing: list[str] = Field(default_factory=list, description="Names that the live file has differently")
    containers: dict[str, str] = Field(default_factory=dict)
    redeploy_needed: bool
    warnings: list[str] = Field(default_factory=list)
    next_step: str = ""

    @property
    def exit_code(self) -> int:
        """That of a damaged registry when the live file is not what it should be."""
        return 0 if self.live in ("same", "none", "unmanaged") else RegistryDamaged.exit_code


@operation(effect=Effect.READ, role=Role.VIEWER, reach=Reach.PROJECT)
async def env_scan(ctx: Context, request: EnvironmentRequest) -> EnvScanResult:
    """Compare the history with the live file and with what the containers were started with. Changes nothing."""
    project = await load_project(ctx.store, request.project_name)
    require_environment(project, request.project_name, request.environment)
    state = await _state(ctx, request)
    where = (ctx.services, request.project_name, request.environment)
    found = await containers_with(*where, values_of(state.live))
    found |= dict.fromkeys(await stale_slots(*where, state.live), "stale")
    stale = [slot for slot, said in found.items() if said == "stale"]
    live = _live(state)
    steps = {
        "unmanaged": "env_sync takes the live file over as the first version.",
        "none": "Set variables with env_set.",
    }
    step = steps.get(live, "" if live == "same" else "env_sync puts the live file in order.")
    differing = diff(values_of(state.current), values_of(state.live)).names if state.entries else ()
    return EnvScanResult(
        project_name=request.project_name,
        environment=request.environment.value,
        version=state.newest.version if state.newest else None,
        live=live,
        differing=shown(differing),
        containers=found,
        redeploy_needed=bool(stale),
        warnings=contract_warnings(project.settings.env_contract, values_of(state.live), request.environment),
        next_step=step or ("Deploy again to start a container with these variables." if stale else ""),
    )


def _live(state: EnvSnapshot) -> Literal["same", "stale", "changed", "missing", "unmanaged", "none"]:
    if not state.entries:
        return "none" if state.live is None else "unmanaged"
    if state.live is None:
        return "missing"
    if values_of(state.live) == values_of(state.current):
        return "same"
    return "stale" if is_known(state, state.live) else "changed"


class EnvVersionRow(Result):
    """One version: who made it how, and how many names it changed."""

    version: str
    at: str
    by: str
    operation: str
    added: list[str]
    changed: list[str]
    removed: list[str]
    bytes: int
    master: bool | None = None
    current: bool | None = None


class EnvVersionPage(Page):
    """Versions, newest first."""

    data: list[EnvVersionRow]


@operation(effect=Effect.READ, role=Role.VIEWER, reach=Reach.PROJECT)
async def env_backup_list(ctx: Context, request: EnvPageRequest) -> EnvVersionPage:
    """List the versions of an environment's variables, newest first: when, by whom, which names."""
    project = await load_project(ctx.store, request.project_name)
    require_environment(project, request.project_name, request.environment)
    state = await _state(ctx, request)
    newest = list(reversed(state.entries))
    rows = [
        EnvVersionRow(
            version=one.version,
            at=one.at,
            by=one.actor,
            operation=one.operation,
            added=shown(one.added),
            changed=shown(one.changed),
            removed=shown(one.removed),
            bytes=one.size,
            master=True if one.number == 1 else None,
            current=True if one.number == len(newest) else None,
        )
        for one in newest[request.offset : request.offset + request.limit]
    ]
    return EnvVersionPage.of(rows, request, total=len(newest))


class EnvVerifyResult(Result):
    """Whether history and copies are whole. `copies`: same, differs, or not_checked with the reason under problems."""

    ok: bool
    versions: int
    copies: Literal["same", "differs", "not_checked"]
    problems: list[str] = Field(default_factory=list)
    problem_count: int = 0

    @property
    def exit_code(self) -> int:
        """That of a damaged registry unless everything is whole."""
        return 0 if self.ok else RegistryDamaged.exit_code


@operation(effect=Effect.READ, role=Role.VIEWER, reach=Reach.PROJECT, long=True)
async def env_verify(ctx: Context, request: EnvironmentRequest) -> EnvVerifyResult:
    """Verify the history of an environment's variables and its encrypted copies.

    Checks the log's chain, every version and the first one; the copies on the Backup server are opened and compared.
    """
    project = await load_project(ctx.store, request.project_name)
    require_environment(project, request.project_name, request.environment)
    env = ctx.services.registry.env
    problems = await env.examine(request.project_name, request.environment.value)
    versions, copies = 0, "not_checked"
    if not problems:
        state = await _state(ctx, request)
        versions = len(state.entries)
        if versions:
            copies, found = await _copies(ctx, request, state)
            problems += found
    said: dict[str, Any] = {"versions": versions, "copies": copies, "problems": problems[:50]}
    return EnvVerifyResult(ok=not problems, problem_count=len(problems), **said)


async def _copies(ctx: Context, request: EnvironmentRequest, state: EnvSnapshot) -> tuple[str, list[str]]:
    """An installation without a Backup server has nothing to compare, which env_set's answers say each time."""
    try:
        found = await examine_copies(ctx.services, request.project_name, request.environment.value, state)
    except CodebError as error:
        return "not_checked", [] if error.code == "conflict" else [f"the copies cannot be checked: {error.message}"]
    return ("differs" if found else "same"), found
