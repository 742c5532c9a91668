"""What a project may want besides ports and slots: data stores, first variables, a domain.

Each wish is granted by the operation that grants it to everybody else, with its checks, its rights and its journal. Here is
only the order of things: all that the registry, the settings and the caller's rights have against any wish is found before
anything is made; then the stores of an environment get their names, its first variables are written as one version (so that
its master is whole), and each store is made and opened with what stands there. Whatever broke off is begun again by the same
call, which changes nothing that exists.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, Literal

from pydantic import Field

from codeb_mcp.model.databases import Access, Database, DatabaseKind
from codeb_mcp.model.env import is_protected
from codeb_mcp.model.errors import ERRORS, CodebError, InvalidRequest
from codeb_mcp.model.names import Domain, Environment, ProjectName
from codeb_mcp.operations.catalog import CATALOG, Request, Result
from codeb_mcp.operations.context import Context, Event, Progress
from codeb_mcp.operations.database_plans import require_able
from codeb_mcp.operations.database_state import Which, entry_in, way_to
from codeb_mcp.operations.database_work import new_password, reserve
from codeb_mcp.operations.databases import DatabaseCreateRequest, StoreChoice, database_create, prospect
from codeb_mcp.operations.domains import DomainSetupRequest, domain_setup, require_settable
from codeb_mcp.operations.env import EnvValues, add_variables, refuse_placeholders
from codeb_mcp.operations.env_state import EnvChangeRequest
from codeb_mcp.operations.invoke import authorise
from codeb_mcp.operations.ownership import require_scope
from codeb_mcp.operations.state import load_ssot
from codeb_mcp.operations.streaming import provision_streaming
from codeb_mcp.operations.streaming_state import Which as Streaming
from codeb_mcp.operations.streaming_state import choose_server as choose_streaming
from codeb_mcp.operations.streaming_state import namespace_in, require_own_team

AGAIN = "Then make the same call again: it goes on where this one stopped."


class StoreWish(StoreChoice):
    """A data store, in each environment."""

    environments: tuple[Environment, ...] = Field((), description="Only in these; all of the call if not given")


class ProvisionRequest(Request):
    """A project, its environments, and what they are to have."""

    secret: ClassVar[frozenset[str]] = frozenset({"env"})

    project_name: ProjectName = Field(description="Name: lower-case letters, digits and hyphens")
    environments: tuple[Environment, ...] = Field(
        (Environment.PRODUCTION, Environment.STAGING), min_length=1, description="Environments to set up"
    )
    database: bool | StoreWish | None = Field(None, description="PostgreSQL in each environment, as database_create")
    redis: bool | StoreWish | None = Field(None, description="Redis in each environment, as database_create")
    streaming: bool = Field(False, description="A Centrifugo namespace in each environment, as streaming_setup")
    domain: Domain | None = Field(None, description="Public host name of production, with its DNS, as domain_setup")
    env: EnvValues | None = Field(None, description="variables that each environment begins with; what is there stays")


class Granted(Result):
    """What became of one wish. A failed one has `code` and `next_step`; `server` and `step` say where."""

    wish: str
    environment: Environment
    outcome: Literal["made", "present", "failed"]
    message: str
    code: str | None = None
    next_step: str | None = None
    server: str | None = None
    step: str | None = None
    operation_id: str | None = None


# ── before anything is made ─────────────────────────────────────────────────────────────────────────────────────


async def require_possible(ctx: Context, request: ProvisionRequest, present: Collection[Environment]) -> None:
    """Raise what is known to be in the way of any wish: rights, servers that are not in the inventory, ports, names.
    `present` are the environments that the project has already."""
    _require_rights(ctx, request)
    _require_environments(request, present)
    _require_fitting(request)
    for store in await _as_they_are(ctx, stores_of(request)):
        await prospect(ctx, store)
    if request.streaming:
        await _require_streaming(ctx, request)
    if request.domain is not None:
        await require_settable(ctx.services, _domain_request(request, request.domain), ctx.caller.team)


def stores_of(request: ProvisionRequest) -> list[DatabaseCreateRequest]:
    """The stores that are wanted, environment by environment."""
    found = []
    for environment in dict.fromkeys(request.environments):
        for kind, wish in ((DatabaseKind.POSTGRES, request.database), (DatabaseKind.REDIS, request.redis)):
            choice = StoreWish() if wish is True else wish
            if not isinstance(choice, StoreWish) or environment not in (choice.environments or request.environments):
                continue
            said = choice.model_dump(exclude={"environments"}, exclude_unset=True)
            found.append(
                DatabaseCreateRequest(project_name=request.project_name, environment=environment, kind=kind, **said)
            )
    return found


async def _as_they_are(ctx: Context, stores: Sequence[DatabaseCreateRequest]) -> list[DatabaseCreateRequest]:
    """The wishes with the placement of stores that are there, where none was asked for: just to have one is no wish for
    another one."""
    ssot, found = await load_ssot(ctx.store), []
    for store in stores:
        entry = entry_in(ssot, Which(store.project_name, store.environment, store.kind))
        if entry is not None and "placement" not in store.model_fields_set:
            store = store.model_copy(update={"placement": entry.placement})
        found.append(store)
    return found


def _require_rights(ctx: Context, request: ProvisionRequest) -> None:
    """Raise Forbidden unless the caller may do by itself what each wish does."""
    needed = {
        "database_create": {one.environment for one in stores_of(request)},
        "streaming_setup": set(request.environments if request.streaming else ()),
        "env_set": set(request.environments if request.env else ()),
        "domain_setup": {Environment.PRODUCTION} if request.domain else set(),
    }
    for name, environments in needed.items():
        if environments:
            authorise(CATALOG[name], ctx.caller)
            require_scope(ctx.caller, request.project_name, sorted(environments), changes=True)


def _require_environments(request: ProvisionRequest, present: Collection[Environment]) -> None:
    for field, wish in (("database", request.database), ("redis", request.redis)):
        if not isinstance(wish, StoreWish):
            continue
        others = [one.value for one in wish.environments if one not in request.environments]
        if others:
            raise _wrong(f"{field}.environments", f"{', '.join(others)} is not among the environments of this call")
        if wish.port is not None and len(wish.environments or dict.fromkeys(request.environments)) > 1:
            raise _wrong(f"{field}.port", "is for one environment only; name it under environments")
    if request.domain is not None and Environment.PRODUCTION not in {*request.environments, *present}:
        raise _wrong("domain", "is for production, which this project does not have")


async def _require_streaming(ctx: Context, request: ProvisionRequest) -> None:
    """Raise when no server can have the namespaces, or one serves another team."""
    ssot = await load_ssot(ctx.store)
    mine = {"teamId": ctx.caller.team, "ports": {}}
    ssot = {**ssot, "projects": {request.project_name: mine, **ssot.get("projects", {})}}
    for environment in request.environments:
        which = Streaming(request.project_name, environment)
        entry = namespace_in(ssot, which)
        server = entry.server if entry else await choose_streaming(ctx.services, None)
        require_own_team(ctx.services, ssot, which, server)


def _require_fitting(request: ProvisionRequest) -> None:
    refuse_placeholders(request.env or {}, "env")
    made = {"DATABASE_URL": request.database, "POSTGRES_": request.database, "REDIS_": request.redis}
    for name in request.env or {}:
        if any(wish and name.startswith(start) for start, wish in made.items()) and is_protected(name):
            raise _wrong(f"env.{name}", "comes with the data store that is asked for")


def _wrong(field: str, problem: str) -> InvalidRequest:
    return InvalidRequest(
        f"{field}: {problem}", hint="Nothing was made; correct it.", fields=[{"field": field, "problem": problem}]
    )


def _domain_request(request: ProvisionRequest, domain: str) -> DomainSetupRequest:
    return DomainSetupRequest(project_name=request.project_name, environment=Environment.PRODUCTION, domain=domain)


# ── granting ────────────────────────────────────────────────────────────────────────────────────────────────────


async def grant(ctx: Context, request: ProvisionRequest) -> list[Granted]:
    """Make what is wanted and not there yet. What fails is told in its row; the other wishes are granted all the same."""
    ctx = replace(ctx, progress=in_a_row(ctx.progress))
    rows: list[Granted] = []
    stores = await _as_they_are(ctx, stores_of(request))
    for environment in dict.fromkeys(request.environments):
        rows += await _grant_in(ctx, request, environment, [one for one in stores if one.environment is environment])
    if request.domain is not None:
        rows.append(await _domain(ctx, _domain_request(request, request.domain)))
    return rows


def in_a_row(tell: Progress) -> Progress:
    """News of runs that follow each other as those of one: the steps of each are counted on from the former one's."""
    totals: dict[str, int] = {}

    def hear(event: Event) -> None:
        totals[event.operation_id] = event.total
        before = sum(total for run_id, total in totals.items() if run_id != event.operation_id)
        tell(replace(event, position=before + event.position, total=before + event.total))

    return hear


def first_failure(rows: Sequence[Granted]) -> int:
    """The exit code that the rows stand for: that of the first failure, or 0."""
    return next((ERRORS[row.code].exit_code for row in rows if row.code in ERRORS), 0)


def failures(rows: Sequence[Granted]) -> list[str]:
    """What to do about each wish that failed."""
    return [f"{row.wish} of {row.environment}: {row.next_step}" for row in rows if row.next_step]


def next_steps(request: ProvisionRequest, rows: Sequence[Granted]) -> list[str]:
    """What is usually done next."""
    steps = failures(rows)
    if not (request.database or request.redis):
        steps.append("database_create gives an environment a PostgreSQL database or Redis")
    return [*steps, "env_set sets its variables", "deploy, then promote"]


async def _grant_in(
    ctx: Context, request: ProvisionRequest, environment: Environment, stores: Sequence[DatabaseCreateRequest]
) -> list[Granted]:
    failed: dict[DatabaseKind, Granted] = {}
    begun: list[Access] = []
    for store in stores:
        try:
            begun += await _begin(ctx, store)
        except CodebError as error:
            failed[store.kind] = await _failed_store(ctx, store, error)
    rows: list[Granted] = []
    if request.env or begun:
        try:
            rows += await _variables(ctx, request, environment, begun)
        except CodebError as error:
            rows += [_failed("env", environment, error)] if request.env else []
            failed |= {one.kind: await _failed_store(ctx, one, error) for one in stores if one.kind not in failed}
    rows += [failed.get(store.kind) or await _store(ctx, store) for store in stores]
    return rows + ([await _streaming(ctx, request.project_name, environment)] if request.streaming else [])


async def _begin(ctx: Context, store: DatabaseCreateRequest) -> list[Access]:
    """Give the store its name and see that its server will have it; answers how to reach it, nothing for one that is ready."""
    which = Which(store.project_name, store.environment, store.kind)
    wanted: Database = await prospect(ctx, store)
    if wanted.state == "ready":
        return []
    await require_able(ctx.services, which, wanted)
    entry = await reserve(ctx.services, which, wanted, store.port)
    return [(await way_to(ctx.services, which, entry)).access]


async def _variables(
    ctx: Context, request: ProvisionRequest, environment: Environment, begun: Sequence[Access]
) -> list[Granted]:
    """The first variables, those of the stores among them; names that are there stay as they are."""
    wanted = request.env or {}

    def missing(present: Mapping[str, str]) -> dict[str, str]:
        added = dict(wanted)
        for access in begun:
            if not any(name in present for name in access.names):
                added |= access.variables(new_password())
        return added

    change = EnvChangeRequest(project_name=request.project_name, environment=environment)
    result = await add_variables(ctx, change, missing)
    if not wanted:
        return []
    count = len(set(result.added) & set(wanted))
    said = [f"{count} of {len(wanted)} names added; the others were there" if count else "all names were there"]
    return [_made("env", environment, "; ".join([*said, *result.warnings]), new=bool(count))]


async def _store(ctx: Context, store: DatabaseCreateRequest) -> Granted:
    try:
        result = await database_create(ctx, store)
    except CodebError as error:
        return await _failed_store(ctx, store, error)
    said = "; ".join([f"{result.name} on {result.server}, {result.host}:{result.port}", *result.warnings])
    row = _made(_name_of(store), store.environment, said, new=not result.unchanged)
    return row.model_copy(update={"server": result.server, "operation_id": result.operation_id})


async def _failed_store(ctx: Context, store: DatabaseCreateRequest, error: CodebError) -> Granted:
    """The row of a store that could not be made; its server is named also when the error does not, and what was refused or
    could not be reached before any step is the check."""
    row = _failed(_name_of(store), store.environment, error)
    row = row if row.step else row.model_copy(update={"step": "check"})
    if row.server is not None:
        return row
    with contextlib.suppress(CodebError):
        return row.model_copy(update={"server": (await prospect(ctx, store)).server})
    return row


async def _streaming(ctx: Context, project: str, environment: Environment) -> Granted:
    try:
        result = await provision_streaming(ctx, project, environment)
    except CodebError as error:
        row = _failed("streaming", environment, error)
        return row if row.step else row.model_copy(update={"step": "check"})
    said = "; ".join([f"namespace {result.namespace} on {result.server}", *result.warnings])
    row = _made("streaming", environment, said, new=not result.unchanged)
    return row.model_copy(update={"server": result.server, "operation_id": result.operation_id})


async def _domain(ctx: Context, wanted: DomainSetupRequest) -> Granted:
    try:
        result = await domain_setup(ctx, wanted)
    except CodebError as error:
        return _failed("domain", wanted.environment, error)
    said = "; ".join([result.message, *(f"enter {record}" for record in result.to_enter)])
    return _made("domain", wanted.environment, said, new=bool(result.created))


def _name_of(store: DatabaseCreateRequest) -> str:
    return "database" if store.kind is DatabaseKind.POSTGRES else "redis"


def _made(wish: str, environment: Environment, message: str, *, new: bool) -> Granted:
    return Granted(wish=wish, environment=environment, outcome="made" if new else "present", message=message)


def _failed(wish: str, environment: Environment, error: CodebError) -> Granted:
    steps = error.detail.get("steps") or []
    return Granted(
        wish=wish,
        environment=environment,
        outcome="failed",
        message=error.message,
        code=error.code,
        next_step=f"{error.hint} {AGAIN}".strip(),
        server=error.detail.get("server"),
        step=next((str(one["name"]) for one in steps if one.get("status") == "failed"), None),
        operation_id=error.detail.get("operationId"),
    )
