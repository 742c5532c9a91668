"""Variables of an environment: set, unset, bring back, put into place. Values go in and never come out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field

from codeb_mcp.model.access import Reach, Role
from codeb_mcp.model.env import (
    LARGEST_ENVIRONMENT,
    MOST_NAMES,
    EnvName,
    EnvText,
    diff,
    is_protected,
    merged,
    placeholder,
    render,
    size_of,
)
from codeb_mcp.model.errors import CodebError, Conflict, InvalidRequest, NotFound
from codeb_mcp.model.names import Environment
from codeb_mcp.model.project import Project
from codeb_mcp.operations.catalog import Effect, operation
from codeb_mcp.operations.context import Context
from codeb_mcp.operations.env_copies import examine_copies
from codeb_mcp.operations.env_state import (
    EnvChangeRequest,
    EnvChangeResult,
    EnvVersionName,
    author_of,
    change_result,
    contract_warnings,
    is_known,
    require_known_live,
    require_readable,
    require_version,
    shown,
    shown_diff,
)
from codeb_mcp.operations.ownership import require_project
from codeb_mcp.operations.state import load_project
from codeb_mcp.registry.env_copied import EnvCopied
from codeb_mcp.registry.env_history import Changed, Decide, Draft, EnvSnapshot, values_of

HANDED_OUT = ("database", "provisioned")
"""Versions that brought the variables of data stores."""


def _not_too_much(values: dict[str, str]) -> dict[str, str]:
    if size_of(values) > LARGEST_ENVIRONMENT:
        raise ValueError(f"must not be larger than {LARGEST_ENVIRONMENT} bytes in all")
    return values


EnvValues = Annotated[dict[EnvName, EnvText], Field(min_length=1, max_length=MOST_NAMES), AfterValidator(_not_too_much)]


class EnvSetRequest(EnvChangeRequest):
    """Variables to set; the others stay as they are."""

    secret: ClassVar[frozenset[str]] = frozenset({"values"})

    values: EnvValues = Field(description="Name to value, as text; values are never shown again")
    overwrite_protected: bool = Field(
        False, description="Also change DATABASE_URL, REDIS_URL and POSTGRES_* of a data store or of the first version"
    )
    allow_placeholders: bool = Field(False, description="Take values that look as if nobody had filled them in")


@operation(effect=Effect.CHANGE, role=Role.MEMBER, reach=Reach.PROJECT)
async def env_set(ctx: Context, request: EnvSetRequest) -> EnvChangeResult:
    """Set variables of an environment; the ones that are not named stay as they are.

    Each change is a version that env_restore can bring back. Running containers keep what they were started with:
    redeployNeeded says so. The answer has names only. Setting the same values again changes nothing.
    """
    project = await _ready(ctx, request)
    if not request.allow_placeholders:
        refuse_placeholders(request.values, "values")
    kept: list[str] = []

    def decide(state: EnvSnapshot) -> Sequence[Draft]:
        require_version(state, request.if_version)
        adopted = _adopted(state)
        start = adopted[-1].data if adopted else state.current
        master = values_of(adopted[0].data if adopted else state.master)
        handed_out = {**_handed_out(state), **master}
        after = merged(values_of(start), handed_out, request.values, overwrite_protected=request.overwrite_protected)
        kept[:] = after.kept
        return _drafts(adopted, "set", start, after.values)

    changed = await _change(ctx, request, decide)
    return await _answer(ctx, request, changed, project, kept)


def refuse_placeholders(values: Mapping[str, str], where: str) -> None:
    """Raise InvalidRequest for values that nobody filled in; `where` is the parameter that they came in."""
    found = [(name, reason) for name, value in values.items() if (reason := placeholder(value)) is not None]
    if found:
        fields = [{"field": f"{where}.{name}", "problem": f"looks like {reason}"} for name, reason in found[:20]]
        raise InvalidRequest(
            "; ".join(f"{one['field']}: {one['problem']}" for one in fields[:5]),
            hint="Give the real values, or say allowPlaceholders if they are meant like that.",
            fields=fields,
        )


async def add_variables(
    ctx: Context, request: EnvChangeRequest, found: Callable[[Mapping[str, str]], Mapping[str, str]]
) -> EnvChangeResult:
    """Add the variables that `found` answers for the present ones, as one version; what is there stays as it is.

    The first version of an environment is its master. Raises like env_set.
    """
    project = await _ready(ctx, request)

    def decide(state: EnvSnapshot) -> Sequence[Draft]:
        adopted = _adopted(state)
        start = adopted[-1].data if adopted else state.current
        present = values_of(start)
        return _drafts(adopted, "provisioned", start, {**found(present), **present})

    changed = await _change(ctx, request, decide)
    return await _answer(ctx, request, changed, project, [])


class EnvUnsetRequest(EnvChangeRequest):
    """Variables to take away."""

    names: tuple[EnvName, ...] = Field(min_length=1, max_length=MOST_NAMES, description="Names to take away")
    overwrite_protected: bool = Field(False, description="Also DATABASE_URL, REDIS_URL and POSTGRES_*")


@operation(effect=Effect.CHANGE, role=Role.MEMBER, reach=Reach.PROJECT)
async def env_unset(ctx: Context, request: EnvUnsetRequest) -> EnvChangeResult:
    """Take variables of an environment away. Names that are not there are no mistake; earlier versions keep them."""
    project = await _ready(ctx, request)

    def decide(state: EnvSnapshot) -> Sequence[Draft]:
        require_version(state, request.if_version)
        adopted = _adopted(state)
        start = adopted[-1].data if adopted else state.current
        if start is None:
            raise NotFound("there are no variables yet", hint="Set some with env_set.")
        values = values_of(start)
        protected = sorted(name for name in request.names if name in values and is_protected(name))
        if protected and not request.overwrite_protected:
            raise Conflict(
                f"protected: {', '.join(shown(protected))}",
                hint="They came with the database or cache; say overwriteProtected to take them away.",
                names=shown(protected),
            )
        left = {name: value for name, value in values.items() if name not in request.names}
        return _drafts(adopted, "unset", start, left)

    changed = await _change(ctx, request, decide)
    return await _answer(ctx, request, changed, project, [])


class EnvSyncRequest(EnvChangeRequest):
    """Which environment to put in order."""

    keep_live: bool = Field(False, description="Take what stands in the live file over as the newest version")


@operation(effect=Effect.CHANGE, role=Role.MEMBER, reach=Reach.PROJECT, long=True)
async def env_sync(ctx: Context, request: EnvSyncRequest) -> EnvChangeResult:
    """Put the live file and the copies on the Backup server in order.

    The live file gets the content of the newest version; if somebody changed it by hand, what was found is kept as a
    version first. With keepLive it is taken over instead. Copies that are missing or damaged are made again.
    """
    project = await _ready(ctx, request)

    def decide(state: EnvSnapshot) -> Sequence[Draft]:
        require_version(state, request.if_version)
        if not state.entries:
            return _adopted(state)
        if state.live is None or (is_known(state, state.live) and not request.keep_live):
            return []
        require_readable(state.live)
        if values_of(state.live) == values_of(state.current):
            return []
        found = Draft("found", state.live)
        return [found] if request.keep_live else [found, Draft("sync", state.current or b"")]

    changed = await _write(ctx, request, decide)
    await _renew_copies(ctx, request, changed.after)
    return await _answer(ctx, request, changed, project, [])


async def _renew_copies(ctx: Context, request: EnvSyncRequest, state: EnvSnapshot) -> None:
    """Forget what is believed to be on the Backup servers when it is not; the answer's copy brings it all again."""
    if not state.entries:
        return
    try:
        whole = not await examine_copies(ctx.services, request.project_name, request.environment.value, state)
    except CodebError:
        return  # the answer's own copy meets the same problem and names it
    if not whole:
        EnvCopied(ctx.services.registry.env.of(request.project_name, request.environment.value)).forget()


class EnvRestoreRequest(EnvChangeRequest):
    """Which version to bring back."""

    to: EnvVersionName = Field(description="master (the first one), current, or a version of env_backup_list")


@operation(effect=Effect.CHANGE, role=Role.ADMIN, reach=Reach.PROJECT)
async def env_restore(ctx: Context, request: EnvRestoreRequest) -> EnvChangeResult:
    """Bring an earlier version of all variables back, byte for byte; it becomes a new version, and nothing is lost.

    Also protected ones are what they were then: the warnings name them. Running containers need a redeploy.
    """
    project = await _ready(ctx, request)

    def decide(state: EnvSnapshot) -> Sequence[Draft]:
        require_version(state, request.if_version)
        if not state.entries:
            raise NotFound("there are no versions yet", hint="Set variables with env_set.")
        data = state.read(state.find(request.to))
        return [] if data == state.current else [Draft("restore", data)]

    changed = await _change(ctx, request, decide)
    result = await _answer(ctx, request, changed, project, [])
    touched = [name for name in changed.diff.names if is_protected(name)]
    if touched:
        warning = f"protected names are as they were then: {', '.join(shown(touched))}; check that they still work"
        result = result.model_copy(update={"warnings": [*result.warnings, warning]})
    return result


# ── shared ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def _ready(ctx: Context, request: EnvChangeRequest) -> Project:
    """The project, once its environment exists and the Backup server, where it must, can take the change."""
    project = await load_project(ctx.store, request.project_name)
    require_environment(project, request.project_name, request.environment)
    await ctx.services.copies.require(ctx.services, request.project_name, request.environment.value)
    return project


def require_environment(project: Project, name: str, environment: Environment) -> None:
    """Raise NotFound when the project has no such environment: a slip of the pen makes no history. `preview` may always
    have variables: they are the template for the previews of pull requests."""
    if environment not in project.ports and environment is not Environment.PREVIEW:
        raise NotFound(
            f"{name} has no {environment} environment",
            hint="Add it with project_create and environments, or say another environment.",
            environment=environment.value,
        )


async def _change(ctx: Context, request: EnvChangeRequest, decide: Decide) -> Changed:
    def checked(state: EnvSnapshot) -> Sequence[Draft]:
        require_known_live(state)
        return decide(state)

    return await _write(ctx, request, checked)


async def _write(ctx: Context, request: EnvChangeRequest, decide: Decide) -> Changed:
    """The change, unless the project was deleted meanwhile: then nothing of it stays for whoever takes the name next."""
    env, now = ctx.services.registry.env, ctx.services.drivers.clock.now()
    changed = await env.change(request.project_name, request.environment.value, author_of(ctx), now, decide)
    try:
        await require_project(ctx.store, ctx.caller, request.project_name)
    except NotFound:
        await env.retire(request.project_name, now)
        raise
    return changed


def _handed_out(state: EnvSnapshot) -> dict[str, str]:
    """The variables that came with a data store after the first version: as protected as those that the master has."""
    given = {
        name for one in state.entries if one.operation in HANDED_OUT for name in (*one.added, *one.changed)
    }  # fmt: skip
    return {name: value for name, value in values_of(state.current).items() if name in given}


def _adopted(state: EnvSnapshot) -> list[Draft]:
    """A live file from before there was a history becomes its first version, as it is."""
    if state.entries or state.live is None:
        return []
    require_readable(state.live)
    return [Draft("adopted", state.live)]


def _drafts(adopted: list[Draft], operation: str, start: bytes | None, values: Mapping[str, str]) -> list[Draft]:
    if size_of(values) > LARGEST_ENVIRONMENT:
        raise Conflict(
            f"all variables together would be larger than {LARGEST_ENVIRONMENT} bytes",
            hint="Put large content into a file or a volume, not into variables.",
        )
    same = start is not None and not diff(values_of(start), values)
    return adopted if same else [*adopted, Draft(operation, render(values).encode())]


async def _answer(
    ctx: Context, request: EnvChangeRequest, changed: Changed, project: Project, kept: Sequence[str]
) -> EnvChangeResult:
    values = values_of(changed.after.current)
    warnings = contract_warnings(project.settings.env_contract, values, request.environment)
    if kept:
        warnings.append(f"kept as they are: {', '.join(shown(kept))}; overwriteProtected changes them")
    where = f"{request.project_name} {request.environment}"
    count = len(changed.diff.names)
    said = f"{count} {'name' if count == 1 else 'names'} of {where} changed" if count else f"nothing of {where} changed"
    return await change_result(
        ctx,
        request,
        changed.before,
        changed.after,
        {**shown_diff(changed.diff), "kept": shown(kept), "warnings": warnings, "message": said},
    )
