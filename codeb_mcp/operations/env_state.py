"""What operations on variables share: requests, facts about one environment, and names that fit into an answer."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field, StringConstraints

from codeb_mcp.model.env import EnvDiff, diff, parse, render
from codeb_mcp.model.env_contract import EnvRule, breaches
from codeb_mcp.model.errors import CodebError, Conflict
from codeb_mcp.model.names import PATTERNS, Environment, environment_key
from codeb_mcp.model.slot import Slots, SlotState
from codeb_mcp.operations.answers import EnvironmentRequest
from codeb_mcp.operations.catalog import Result
from codeb_mcp.operations.context import Context, Services
from codeb_mcp.operations.env_copies import Copied
from codeb_mcp.operations.envfile import fingerprint
from codeb_mcp.operations.places import Place, placement_left
from codeb_mcp.operations.state import find_slots
from codeb_mcp.registry.env_history import EnvSnapshot, values_of
from codeb_mcp.registry.env_log import EnvAuthor

VERSION_OF_ENV = r"^(master|current|[0-9]{8}T[0-9]{6}\.[0-9]{6}Z)$"
PATTERNS[VERSION_OF_ENV] = "must be master, current or a version like 20261123T171521.590007Z"
SEEN_VERSION = r"^(none|[0-9]{8}T[0-9]{6}\.[0-9]{6}Z)$"
PATTERNS[SEEN_VERSION] = "must be a version like 20261123T171521.590007Z, or none"
EnvVersionName = Annotated[str, StringConstraints(pattern=VERSION_OF_ENV, max_length=24)]
SeenVersion = Annotated[str, StringConstraints(pattern=SEEN_VERSION, max_length=24)]
NAMES_SHOWN = 60
HASH_DIGITS = 32


class EnvChangeRequest(EnvironmentRequest):
    """A request that changes variables."""

    if_version: SeenVersion | None = Field(
        None, description="Only if this is still the version that counts (none: only if there is none yet)"
    )


class EnvChangeResult(Result):
    """What a change of variables did: names only. `backed_up`: the Backup server has it; if not, `backup_problem` says
    why."""

    project_name: str
    environment: str
    version: str = Field(description="Version that counts now")
    previous_version: str | None = None
    unchanged: bool | None = Field(None, description="true: everything was like that already")
    added: list[str] = Field(default_factory=list)
    changed: list[str] = Field(default_factory=list)
    removed: list[str] = Field(default_factory=list)
    kept: list[str] = Field(default_factory=list, description="Protected names that stay as they are")
    redeploy_needed: bool = Field(description="A container runs with other variables than these")
    backed_up: bool
    backup_problem: str | None = None
    warnings: list[str] = Field(default_factory=list)
    message: str = ""


def author_of(ctx: Context) -> EnvAuthor:
    """The caller as the log names it."""
    return EnvAuthor(ctx.caller.name, ctx.caller.key_id, ctx.caller.team)


def shown(names: Sequence[str]) -> list[str]:
    """The names, as many as an answer can carry; the last one says how many are left out."""
    return list(names) if len(names) <= NAMES_SHOWN else [*names[:NAMES_SHOWN], f"and {len(names) - NAMES_SHOWN} more"]


def shown_diff(diff: EnvDiff) -> dict[str, list[str]]:
    """The fields `added`, `changed` and `removed`."""
    return {"added": shown(diff.added), "changed": shown(diff.changed), "removed": shown(diff.removed)}


def value_hash(services: Services, project: str, name: str, value: str) -> str:
    """A keyed hash of a value: the same in all environments of a project, different for every name and project."""
    parts = (b"value", project.encode(), name.encode(), value.encode())
    return services.registry.env.keys.fingerprint(*parts)[:HASH_DIGITS]


def require_version(state: EnvSnapshot, seen: str | None) -> None:
    """Raise Conflict when the caller has seen another version than the one that counts."""
    present = state.newest.version if state.newest else "none"
    if seen is not None and seen != present:
        raise Conflict(
            f"the version that counts is {present}, not {seen}",
            hint="Look at what changed with env_diff, then repeat with the present version.",
            version=present,
        )


def require_known_live(state: EnvSnapshot) -> None:
    """Raise Conflict when somebody changed the live file by hand: nothing of that is lost without being asked. A file of an
    earlier version is only stale."""
    if not state.entries or state.live is None or is_known(state, state.live):
        return
    names = diff(values_of(state.current), values_of(state.live)).names
    raise Conflict(
        f"the live file was changed by hand: {', '.join(shown(names)) or 'its form'}",
        hint="Look with env_scan; then env_sync writes the history's version over it (what was found is kept as a version), or "
        "takes it over with keepLive.",
        names=list(names[:NAMES_SHOWN]),
    )


def is_known(state: EnvSnapshot, live: bytes) -> bool:
    """Whether the content is that of a version, or has the same variables as the newest one."""
    digest = hashlib.sha256(live).hexdigest()
    return any(entry.sha256 == digest for entry in state.entries) or values_of(live) == values_of(state.current)


def require_readable(live: bytes) -> None:
    """Raise Conflict with the line numbers when the live file has lines that are no assignments, and with the number of
    variables that no file of ours and no container can hold."""
    try:
        found = parse(live.decode("utf-8"))
    except UnicodeDecodeError:
        raise Conflict("the live env file is not UTF-8", hint="Convert the file to UTF-8.") from None
    if found.unread:
        lines = ", ".join(map(str, found.unread[:20]))
        raise Conflict(f"the live env file has lines that are no assignments: {lines}", hint="Correct the file.")
    one_by_one = ({name: value} for name, value in found.values.items())
    odd = sum(1 for one in one_by_one if parse(render(one)).values != one or any("\0" in text for text in one.values()))
    if odd:
        raise Conflict(
            f"the live env file has {odd} variables whose names have blanks or signs, or whose values hold NUL",
            hint="Use names of letters, digits and underscores.",
        )


async def stale_slots(services: Services, project: str, environment: Environment, live: bytes | None) -> list[str]:
    """Slots whose container was started with other variables than the live file has; empty ones do not count."""
    slots: Slots | None = await find_slots(services.store, project, environment)
    if slots is None:
        return []
    now = set() if live is None else {fingerprint(services.settings, live), hashlib.sha256(live).hexdigest()}
    return [
        record.name.value
        for record in (slots.blue, slots.green)
        if record.state is not SlotState.EMPTY and (record.env_hash not in now if live else record.env_hash is not None)
    ]


async def containers_with(
    services: Services, project: str, environment: Environment, values: Mapping[str, str]
) -> dict[str, str]:
    """Slots whose containers do not have these variables, by what the engines say: stale, missing or unknown. A container that
    was adopted was started by somebody else, and is left out."""
    slots: Slots | None = await find_slots(services.store, project, environment)
    found: dict[str, str] = {}
    for record in (slots.blue, slots.green) if slots else ():
        if record.state is SlotState.EMPTY or record.adopted_id or not record.container_name:
            continue
        for place in (await placement_left(services, environment_key(project, environment))).apps:
            if (said := await _container_with(place, record.container_name, values)) is not None:
                found[record.name.value] = said
    return found


async def _container_with(place: Place, name: str, values: Mapping[str, str]) -> str | None:
    try:
        container = await place.drivers.containers.inspect(name)
    except CodebError:
        return "unknown"
    if container is None:
        return "missing"
    return None if all(container.environment.get(one) == value for one, value in values.items()) else "stale"


async def change_result(
    ctx: Context, request: EnvironmentRequest, before: EnvSnapshot, after: EnvSnapshot, said: Mapping[str, Any]
) -> EnvChangeResult:
    """The answer to a change; `said` are its own fields."""
    if after.newest is None:
        raise Conflict("there are no variables yet", hint="Set some with env_set.")
    project, environment = request.project_name, request.environment
    copied: Copied = await ctx.services.copies.copy(ctx.services, project, environment.value)
    unchanged = before.newest == after.newest
    fields = {
        "project_name": project,
        "environment": environment.value,
        "version": after.newest.version,
        "previous_version": before.newest.version if before.newest and not unchanged else None,
        "unchanged": True if unchanged else None,
        "redeploy_needed": bool(await stale_slots(ctx.services, project, environment, after.live)),
        "backed_up": copied.complete,
        "backup_problem": copied.problem,
    }
    return EnvChangeResult.model_validate({**fields, **said})


def contract_warnings(
    contract: Mapping[str, EnvRule], values: Mapping[str, str], environment: Environment
) -> list[str]:
    """What would keep these variables from being deployed, in words."""
    found = breaches(contract, values, environment)
    said = {"missing": "is missing", "violates": "does not match its pattern"}
    lines = [f"{one.name} {said[one.problem]}: deploy and promote are refused until it is set" for one in found[:10]]
    return lines + ([f"{len(found) - 10} more are not as the contract wants them"] if len(found) > 10 else [])
