"""Preview environments per pull request: made, listed, ended, and ended by themselves."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, ClassVar

from pydantic import Field, ValidationError

from codeb_mcp.model.access import Reach, Role
from codeb_mcp.model.errors import CodebError, Conflict, InvalidRequest, LockHeld, NotFound, RegistryDamaged
from codeb_mcp.model.names import Environment, ProjectName, environment_key
from codeb_mcp.model.preview import Preview, PullRequest, preview_project, previews_of
from codeb_mcp.model.project import EnvironmentSettings, Project
from codeb_mcp.model.times import utc_text
from codeb_mcp.operations.answers import new_run_id
from codeb_mcp.operations.catalog import Effect, Page, PageRequest, Request, Result, operation
from codeb_mcp.operations.context import Context, Services
from codeb_mcp.operations.env_state import author_of
from codeb_mcp.operations.environments import add_environments
from codeb_mcp.operations.ownership import callers_projects, require_scope
from codeb_mcp.operations.projects import team_change
from codeb_mcp.operations.removal import DELETE_SECONDS, delete_project
from codeb_mcp.operations.routing import publish_routes
from codeb_mcp.operations.state import REPAIR, find_slots, load_project, load_ssot, site_of, url_of
from codeb_mcp.registry.entries import RunHeader
from codeb_mcp.registry.env_history import Draft, EnvSnapshot
from codeb_mcp.registry.store import Change, Document, update

HOUR_LIMIT = 24 * 90


class PreviewRequest(Request):
    """The preview of one pull request."""

    about: ClassVar[tuple[str, ...]] = (Environment.PREVIEW,)

    project_name: ProjectName = Field(description="Project that the pull request is of")
    pull_request: PullRequest


class PreviewCreateRequest(PreviewRequest):
    """A preview to make, or to keep for longer."""

    ttl_hours: float | None = Field(None, gt=0, le=HOUR_LIMIT, description="How long it stays; each call counts anew")


class PreviewResult(Result):
    """A preview. `preview_project` is the project to deploy, with environment preview."""

    preview_project: str
    project_name: str
    pull_request: int
    url: str
    ports: dict[str, int]
    expires_at: str
    active_slot: str | None = None
    version: str | None = None
    created: bool | None = None
    warnings: list[str] = Field(default_factory=list)
    next_step: str | None = None


class PreviewPage(Page):
    """Previews of the caller's team."""

    data: list[PreviewResult]


class PreviewListRequest(PageRequest):
    """Whose previews."""

    project_name: ProjectName | None = Field(None, description="Only those of this project")


class PreviewDeleteRequest(PreviewRequest):
    """A preview to end."""

    wait: bool = Field(True, description="Wait for the end; false answers an operation id at once")


class PreviewDeleteResult(Result):
    """`deleted` is false when there was none, which is as good."""

    preview_project: str
    deleted: bool
    operation_id: str | None = None
    status: str
    summary: str


@operation(effect=Effect.CHANGE, role=Role.MEMBER, reach=Reach.PROJECT)
async def preview_create(ctx: Context, request: PreviewCreateRequest) -> PreviewResult:
    """Make the preview environment of a pull request: own slots, ports, address, variables and an end.

    Repeating the call keeps it for longer and changes nothing else. Deploy to it with projectName of the answer's
    previewProject and environment preview.
    """
    parent, name = request.project_name, _name_of(request)
    require_scope(ctx.caller, parent, [Environment.PREVIEW], changes=True)
    project = await load_project(ctx.store, parent)
    projects = (await load_ssot(ctx.store)).get("projects", {})
    if parent in _previews(projects):
        raise InvalidRequest(f"{parent} is a preview itself", hint="Name the project that the pull request is of.")
    settings = ctx.services.settings.previews
    hours = request.ttl_hours if request.ttl_hours is not None else settings.ttl_hours
    preview = Preview(
        of=parent,
        pull_request=request.pull_request,
        expires_at=ctx.services.drivers.clock.now() + timedelta(hours=hours),
    )
    created = name not in projects
    entry = _entry(ctx, project, preview)

    async def also() -> list[Change]:
        present = (await load_ssot(ctx.store)).get("projects", {})
        _require_ours(present, name, parent)
        _require_quota(present, name, parent, settings.per_project)
        return await team_change(ctx, project.team_id, name)

    await add_environments(ctx.services, name, entry, [Environment.PREVIEW], also)
    if created:
        await _fill_variables(ctx, name, parent)
    else:
        await _keep_until(ctx, name, preview)
    warnings = await publish_routes(ctx.services, name, [Environment.PREVIEW])
    answer = await _answer(ctx.services, name, preview)
    said = f"deploy with projectName {name} and environment preview, then promote."
    return answer.model_copy(update={"created": created, "warnings": warnings, "next_step": said})


def _name_of(request: PreviewRequest) -> str:
    try:
        return preview_project(request.project_name, request.pull_request)
    except ValueError as error:
        raise InvalidRequest(
            f"projectName: {error}",
            hint="Previews need a shorter project name.",
            fields=[{"field": "projectName", "problem": str(error)}],
        ) from None


def _previews(projects: Mapping[str, Any], parent: str | None = None) -> dict[str, Preview]:
    try:
        return previews_of(projects, parent)
    except ValidationError:
        raise RegistryDamaged("ssot has a preview that is not valid", hint=REPAIR, document="ssot") from None


def _require_ours(projects: Mapping[str, Any], name: str, parent: str) -> None:
    if name in projects and name not in _previews(projects, parent):
        raise Conflict(f"the name {name} is taken", hint="Delete or rename that project.", project=name)


def _require_quota(projects: Mapping[str, Any], name: str, parent: str, most: int) -> None:
    others = {one: preview for one, preview in _previews(projects, parent).items() if one != name}
    if len(others) < most:
        return
    oldest = sorted(others, key=lambda one: others[one].expires_at)[:5]
    raise Conflict(
        f"{parent} has {len(others)} previews, and {most} are allowed",
        hint=f"End one with preview_delete; first to expire: {', '.join(oldest)}.",
        limit=most,
    )


def _entry(ctx: Context, parent: Project, preview: Preview) -> dict[str, Any]:
    """The child's entry: the parent's settings, without what belongs to the parent's own environments."""
    of_preview = parent.settings.of(Environment.PREVIEW)
    kept = EnvironmentSettings(
        grace_hours=0, drain_seconds=of_preview.drain_seconds, servers=of_preview.servers, edge=of_preview.edge
    )
    settings = parent.settings.model_copy(update={"environments": {Environment.PREVIEW: kept}})
    project = Project(
        team_id=parent.team_id,
        ports={},
        settings=settings,
        created_at=ctx.services.drivers.clock.now(),
        created_by=ctx.caller.key_id,
    )
    return {**project.dump(), "preview": preview.dump()}


async def _fill_variables(ctx: Context, name: str, parent: str) -> None:
    """The parent's variables of environment preview are the template: never those of production or staging."""
    histories = ctx.services.registry.env
    template = (await histories.snapshot(parent, Environment.PREVIEW.value)).current
    if template is None:
        return

    def decide(state: EnvSnapshot) -> list[Draft]:
        return [] if state.current == template else [Draft("preview", template)]

    now = ctx.services.drivers.clock.now()
    await histories.change(name, Environment.PREVIEW.value, author_of(ctx), now, decide)


async def _keep_until(ctx: Context, name: str, preview: Preview) -> None:
    def apply(doc: Document | None) -> Document:
        projects = dict((doc or {}).get("projects", {}))
        if name not in projects:
            raise Conflict(f"{name} was deleted meanwhile", hint="Create it again.", project=name)
        former = projects[name].get("preview", {})
        projects[name] = {**projects[name], "preview": {**former, **preview.dump()}}
        return {**(doc or {}), "projects": projects}

    await update(ctx.store, "ssot", apply)


async def _answer(services: Services, name: str, preview: Preview) -> PreviewResult:
    slots = await find_slots(services.store, name, Environment.PREVIEW)
    if slots is None:
        raise NotFound(f"{name} has no preview environment", hint=REPAIR, project=name)
    site = await site_of(services.store, services.settings, slots)
    return PreviewResult(
        preview_project=name,
        project_name=preview.of,
        pull_request=preview.pull_request,
        url=url_of(services.settings, site.hosts[0]),
        ports={"blue": slots.blue.port, "green": slots.green.port},
        expires_at=utc_text(preview.expires_at, "seconds"),
        active_slot=slots.active_slot,
        version=slots.active.version if slots.active else None,
    )


@operation(effect=Effect.READ, role=Role.VIEWER, reach=Reach.TEAM)
async def preview_list(ctx: Context, request: PreviewListRequest) -> PreviewPage:
    """List the preview environments of your team with address, version and when they end."""
    mine = set(await callers_projects(ctx.store, ctx.caller))
    found = _previews((await load_ssot(ctx.store)).get("projects", {}), request.project_name)
    rows = [
        await _answer(ctx.services, name, preview)
        for name, preview in sorted(found.items(), key=lambda one: (one[1].of, one[1].pull_request))
        if name in mine
    ]
    return PreviewPage.of(rows, request)


@operation(effect=Effect.DESTROY, role=Role.MEMBER, reach=Reach.PROJECT, long=True)
async def preview_delete(ctx: Context, request: PreviewDeleteRequest) -> PreviewDeleteResult:
    """End the preview environment of a pull request: its containers, address and ports go.

    Harmless when there is none.
    """
    name = _name_of(request)
    require_scope(ctx.caller, request.project_name, [Environment.PREVIEW], changes=True)
    projects = (await load_ssot(ctx.store)).get("projects", {})
    if name not in _previews(projects, request.project_name):
        said = f"there is no preview of pull request {request.pull_request}"
        return PreviewDeleteResult(preview_project=name, deleted=False, status="succeeded", summary=said)
    view = await delete_project(ctx, name, wait=request.wait)
    done = view.status == "succeeded"
    return PreviewDeleteResult(
        preview_project=name,
        deleted=done,
        operation_id=view.header.run_id,
        status=view.status,
        summary=f"{name} is deleted" if done else f"{name} is being deleted",
    )


async def expire_previews(services: Services, now: datetime, problems: list[str]) -> list[str]:
    """End the previews whose time has come or whose project is gone; answers their names. What cannot be ended now is tried
    again."""
    stored = await services.store.get("ssot")
    projects = stored.doc.get("projects", {}) if stored else {}
    over = [name for name, one in _previews(projects).items() if one.is_over(now) or one.of not in projects]
    return await _end(services, sorted(over), now, problems)


async def end_closed_previews(services: Services, now: datetime, problems: list[str]) -> list[str]:
    """End the previews whose pull request is closed, as far as GitHub may be asked; answers their names. Only a clear
    `closed` ends one: a pull request that cannot be asked about keeps its preview until its time is over."""
    asked = services.drivers.pull_requests
    if not asked.configured:
        return []
    closed = []
    stored = await services.store.get("ssot")
    for name, preview in _previews(stored.doc.get("projects", {}) if stored else {}).items():
        try:
            repository = (await load_project(services.store, preview.of)).settings.repository
            if repository and await asked.state(repository, preview.pull_request) == "closed":
                closed.append(name)
        except CodebError as error:
            problems.append(f"pull request of {name}: {error.message}")
    return await _end(services, closed, now, problems)


async def _end(services: Services, names: list[str], now: datetime, problems: list[str]) -> list[str]:
    ended = []
    for name in names:
        try:
            header = await _expiry(services, name, now)
            await services.runs.start(header)
            await services.runs.wait(header.run_id)
        except LockHeld:
            continue
        except CodebError as error:
            problems.append(f"preview {name} could not be ended: {error.message}")
            continue
        ended.append(name)
    return ended


async def _expiry(services: Services, name: str, now: datetime) -> RunHeader:
    project = await load_project(services.store, name)
    caller = {"keyId": "housekeeper", "name": "housekeeper", "team": project.team_id, "role": "admin", "via": "timer"}
    return RunHeader(
        run_id=new_run_id(now),
        kind="project_delete",
        request={"projectName": name, "environment": Environment.PREVIEW.value},
        caller=caller,
        team=project.team_id,
        project=name,
        environment=None,
        created_at=now,
        correlation_id=environment_key(name, "preview"),
        dedupe=(),
        deadline_seconds=DELETE_SECONDS,
    )
