"""Data stores of environments: make one, list them, change its password, take it away."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from codeb_mcp.model.access import Reach, Role, in_scope
from codeb_mcp.model.databases import Database, DatabaseKind, Placement, redis_prefix
from codeb_mcp.model.errors import InvalidRequest
from codeb_mcp.model.names import Environment, Port, ProjectName
from codeb_mcp.model.server import ServerKey, ServerRole
from codeb_mcp.operations import database_plans, database_work
from codeb_mcp.operations.answers import RunAnswer, RunRequest, common, fact, header_of, run_to_answer
from codeb_mcp.operations.catalog import Effect, Page, PageRequest, Request, Result, operation
from codeb_mcp.operations.context import Context
from codeb_mcp.operations.database_state import Which, entries_in, foreign_in
from codeb_mcp.operations.ownership import callers_projects
from codeb_mcp.operations.runs import RunView
from codeb_mcp.operations.servers import load_servers
from codeb_mcp.operations.state import load_project, load_ssot

RUN_SECONDS = 600.0
__all__ = ["database_create", "database_delete", "database_list", "database_plans", "database_rotate", "database_work"]


class DatabaseRequest(RunRequest):
    """A request about one data store."""

    environment: Environment = Field(description="Environment")
    kind: DatabaseKind = Field(description="postgres or redis")


class StoreChoice(Request):
    """How a data store is to be."""

    placement: Placement = Field(
        Placement.SHARED, description="shared: on the server's instance; own: an instance for this environment alone"
    )
    server: ServerKey | None = Field(
        None, description="Server of the inventory with the role database; the only one if not given"
    )
    port: Port | None = Field(None, description="Port of an own instance; the next free one if not given")


class DatabaseCreateRequest(StoreChoice, DatabaseRequest):
    """A data store to be."""

    overwrite_variables: bool = Field(
        False, description="Also when DATABASE_URL or REDIS_URL already lead somewhere else"
    )


class DatabaseRotateRequest(DatabaseRequest):
    """Whose password to change."""

    overwrite_variables: bool = Field(
        False, description="Also when DATABASE_URL or REDIS_URL already lead somewhere else"
    )


class DatabaseDeleteRequest(DatabaseRequest):
    """A data store to take away; `confirm` repeats the project's name."""

    confirm: str = Field(max_length=40, description="The project's name once more: its apps lose their data store")
    force: bool = Field(False, description="Also while clients are connected; their connections are ended")


class DatabaseResult(RunAnswer):
    """A data store after a run. Its password is in the environment's variables and nowhere else."""

    kind: DatabaseKind
    name: str | None = None
    server: str | None = None
    host: str | None = Field(None, description="Where apps reach it")
    port: int | None = None
    unchanged: bool | None = Field(None, description="true: it was there already, and nothing was changed")
    variables: list[str] = Field(
        default_factory=list, description="Names of the variables that were written or removed"
    )
    version: str | None = Field(None, description="Version of the variables that counts now")
    aside: str | None = Field(None, description="What the data is called now, for an operator to drop")


class DatabaseRow(Result):
    """A data store. `state`: reserved, ready, leaving, or foreign for one that was not made from here."""

    project_name: str
    environment: Environment
    kind: DatabaseKind
    placement: str | None = None
    state: str
    name: str
    server: str
    port: int | None = None
    key_prefix: str | None = None


class DatabaseListRequest(PageRequest):
    """Whose data stores to list."""

    project_name: ProjectName | None = Field(None, description="Only this project")
    environment: Environment | None = Field(None, description="Only this environment")


class DatabasePage(Page):
    """Data stores of the caller's projects, in the order of the projects."""

    data: list[DatabaseRow]
    servers: list[str] = Field(default_factory=list, description="Servers that data stores can be made on")


@operation(effect=Effect.CHANGE, role=Role.MEMBER, reach=Reach.PROJECT, long=True)
async def database_create(ctx: Context, request: DatabaseCreateRequest) -> DatabaseResult:
    """Give an environment a PostgreSQL database or a Redis user, and write how to reach it into its variables.

    shared is a database and role (or a key prefix and ACL user) on the server's instance, own an instance with a port of its
    own. DATABASE_URL and POSTGRES_*, or REDIS_URL, are one new version of the variables; deploy again for the app to see them.
    What exists is not changed; what was begun and did not end is taken up where it stood.
    """
    view = await _run(ctx, "database_create", request)
    unchanged = view.status == "succeeded" and fact(view, "facts", "confirm_database") is None
    done = (
        f"{request.kind} of {request.project_name} {request.environment} is {'there already' if unchanged else 'ready'}"
    )
    return _result(view, request, done, {"unchanged": True if unchanged else None})


@operation(effect=Effect.CHANGE, role=Role.ADMIN, reach=Reach.PROJECT, idempotent=False, long=True)
async def database_rotate(ctx: Context, request: DatabaseRotateRequest) -> DatabaseResult:
    """Change the password of a data store: on the server and in the environment's variables; the old one is invalid then.

    Connections that are open go on. Deploy again at once: until then the running app cannot open new ones.
    """
    view = await _run(ctx, "database_rotate", request)
    return _result(view, request, "the password is changed; deploy again now", {})


@operation(effect=Effect.DESTROY, role=Role.ADMIN, reach=Reach.PROJECT, long=True)
async def database_delete(ctx: Context, request: DatabaseDeleteRequest) -> DatabaseResult:
    """Take a data store away from an environment: lock it, put its data aside under another name, remove its variables.

    Refused while clients are connected, unless force. Nothing is dropped: an operator does that on the server, see
    docs/DATABASES.md.
    """
    if request.confirm != request.project_name:
        raise InvalidRequest(
            "confirm: must repeat the project's name",
            hint="The environment's apps lose their data store; be sure.",
            fields=[{"field": "confirm", "problem": "must repeat the project's name"}],
        )
    view = await _run(ctx, "database_delete", request)
    removed = {"variables": fact(view, "facts", "withdraw_variables", "variables") or []}
    return _result(view, request, "it is taken away; its data is kept aside", removed)


@operation(effect=Effect.READ, role=Role.VIEWER, reach=Reach.TEAM)
async def database_list(ctx: Context, request: DatabaseListRequest) -> DatabasePage:
    """List the data stores of your team's environments, and the servers that more can be made on."""
    ssot = await load_ssot(ctx.store)
    rows: list[DatabaseRow] = []
    for project in await callers_projects(ctx.store, ctx.caller):
        if request.project_name not in (None, project):
            continue
        rows += [_row(which, entry) for which, entry in entries_in(ssot, project)]
        foreign = foreign_in(ssot, project)
        if foreign is not None:
            rows.append(
                DatabaseRow(
                    project_name=project, environment=Environment.PRODUCTION, kind=DatabaseKind.POSTGRES,
                    state="foreign", name=str(foreign.get("name", "")), server=str(foreign.get("server", "")),
                )
            )  # fmt: skip
    rows = [row for row in rows if request.environment in (None, row.environment)]
    rows = [row for row in rows if in_scope(ctx.caller.scopes, "environment", row.environment)]
    servers = [key for key, one in (await load_servers(ctx.store)).items() if one.role is ServerRole.DATABASE]
    return DatabasePage.of(rows, request).model_copy(update={"servers": servers})


def _row(which: Which, entry: Database) -> DatabaseRow:
    shared_redis = which.kind is DatabaseKind.REDIS and entry.placement is Placement.SHARED
    return DatabaseRow(
        project_name=which.project,
        environment=which.environment,
        kind=which.kind,
        placement=entry.placement,
        state=entry.state,
        name=entry.name,
        server=entry.server,
        port=entry.port,
        key_prefix=redis_prefix(which.project, which.environment) if shared_redis else None,
    )


async def prospect(ctx: Context, request: DatabaseCreateRequest) -> Database:
    """The store as it is or would become, with nothing done and no server asked; also for a project that is not there yet.
    Raises whatever the registry and the settings have against it."""
    header = header_of(ctx, "database_create", request, team=ctx.caller.team, seconds=RUN_SECONDS)
    return await database_plans.wanted_entry(ctx.services, header)


async def _run(ctx: Context, kind: str, request: DatabaseRequest) -> RunView:
    project = await load_project(ctx.store, request.project_name)
    header = header_of(ctx, kind, request, team=project.team_id, seconds=RUN_SECONDS)
    return await run_to_answer(ctx, header, wait=request.wait)


def _result(view: RunView, request: DatabaseRequest, done: str, said: dict[str, Any]) -> DatabaseResult:
    facts: dict[str, Any] = {}
    for told in (fact(view, "facts") or {}).values():
        facts.update({name: value for name, value in told.items() if value is not None})
    warnings = list(fact(view, "warnings") or [])
    if facts.get("backupProblem"):
        warnings.append(f"the Backup server does not have the variables yet: {facts['backupProblem']}")
    message = done if view.status == "succeeded" else "it is under way; look with operation_get"
    names = ("name", "server", "host", "port", "variables", "version", "aside")
    fields = {name: facts[name] for name in names if name in facts}
    return DatabaseResult.model_validate({**common(view, message, warnings), "kind": request.kind, **fields, **said})
