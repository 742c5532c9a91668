"""Projects: create, look at, change."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from codeb_mcp.model.access import Reach, Role
from codeb_mcp.model.env_contract import EnvContract, EnvRule
from codeb_mcp.model.errors import Conflict, InvalidRequest, NotFound
from codeb_mcp.model.names import Domain, Environment, ImageRef, Port, ProjectName, Repository, derived_name
from codeb_mcp.model.preview import parent_of
from codeb_mcp.model.project import (
    EnvironmentSettings,
    HealthCheck,
    Limits,
    Project,
    ProjectSettings,
    PullPolicy,
    mountable,
)
from codeb_mcp.model.slot import Slots
from codeb_mcp.operations.catalog import Effect, Page, PageRequest, Request, Result, operation
from codeb_mcp.operations.context import Context, Services
from codeb_mcp.operations.domain_state import further_hosts
from codeb_mcp.operations.domain_work import require_certifiable
from codeb_mcp.operations.environments import PAUSE_SECONDS, TRIES, add_environments
from codeb_mcp.operations.ownership import callers_projects, require_all_environments, team_projects
from codeb_mcp.operations.provisioning import (
    Granted,
    ProvisionRequest,
    first_failure,
    grant,
    next_steps,
    require_possible,
)
from codeb_mcp.operations.routing import publish_routes, require_free_hosts
from codeb_mcp.operations.state import find_slots, load_project, load_ssot, parse_project, site_of, url_of
from codeb_mcp.registry.store import Change, Document


class SettingsRequest(Request):
    """Settings of a project; what is not given stays as it is."""

    image: ImageRef | None = Field(None, description="Repository to deploy from when a deploy names only a version")
    repository: Repository | None = Field(None, description="owner/name on GitHub, for pull requests")
    container_port: Port | None = Field(None, description="Port the app listens on inside its container (8080)")
    pull_policy: PullPolicy | None = Field(None, description="always, missing or never")
    keep: int | None = Field(None, ge=1, le=50, description="Images kept besides those in slots")
    health_check: HealthCheck | None = Field(None, description="How a release proves itself")
    limits: Annotated[Limits, AfterValidator(mountable)] | None = Field(None, description="What a container may use")
    env_contract: EnvContract | None = Field(
        None, description="What the app wants of its variables: name to rule; replaces the former contract"
    )


class ProjectCreateRequest(SettingsRequest, ProvisionRequest):
    """A new project, or what one is still to have."""


class ProjectUpdateRequest(SettingsRequest):
    """Changes to a project; a domain or grace period belongs to one environment."""

    project_name: ProjectName = Field(description="Project")
    environment: Environment | None = Field(
        None, description="Environment that domain, graceHours, drainSeconds and securityHeaders are for"
    )
    domain: Domain | None = Field(
        None, description="Public host name of that environment; null goes back to the default one"
    )
    grace_hours: float | None = Field(None, ge=0, le=720, description="How long its former slot stays warm")
    drain_seconds: float | None = Field(None, ge=0, le=600, description="How long its slot may finish requests")
    security_headers: bool | None = Field(
        None, description="Add HSTS, nosniff, Referrer-Policy and X-Frame-Options where the app does not set them"
    )


class ProjectRequest(Request):
    """One project."""

    project_name: ProjectName = Field(description="Project")


class EnvironmentAnswer(Result):
    """One environment of a project."""

    environment: Environment
    url: str
    ports: dict[str, int]
    active_slot: str | None = None
    version: str | None = None
    grace_hours: float
    drain_seconds: float
    servers: list[str] = Field(default_factory=list, description="App servers; none: the one beside the control plane")
    edge: bool | None = None


class ProjectResult(Result):
    """A project and its environments."""

    project_name: str
    team_id: str
    image: str | None = None
    repository: str | None = None
    container_port: int
    pull_policy: str
    keep: int
    health_check: HealthCheck
    limits: Limits
    env_contract: dict[str, EnvRule] | None = None
    environments: list[EnvironmentAnswer]
    warnings: list[str] = Field(default_factory=list)


class ProjectCreateResult(ProjectResult):
    """A project, and what became of each wish: the project stays also when one failed."""

    created: bool
    provisioned: list[Granted] = Field(default_factory=list)
    next_steps: list[str] = Field(default_factory=list, description="What is usually done next")

    @property
    def exit_code(self) -> int:
        """That of the first wish that failed."""
        return first_failure(self.provisioned)


class ProjectRow(Result):
    """A project in a list."""

    project_name: str
    environments: list[str]
    image: str | None = None


class ProjectPage(Page):
    """Projects of the caller's team."""

    data: list[ProjectRow]


@operation(effect=Effect.CHANGE, role=Role.MEMBER, reach=Reach.TEAM, long=True)
async def project_create(ctx: Context, request: ProjectCreateRequest) -> ProjectCreateResult:
    """Create a project: its ports, slots and addresses, and on wish databases, Redis, variables and a domain.

    Each environment gets a fixed even/odd pair of ports. A wish that cannot be is refused before anything is made; one
    that fails later is told in provisioned, and the project stays. The same call again goes on where it stopped, adds
    what is missing and changes nothing that exists. The project belongs to the caller's team.
    """
    name, team = request.project_name, ctx.caller.team
    existing = await _require_own(ctx, request)
    present = parse_project(name, existing).ports if existing else ()
    await require_possible(ctx, request, tuple(present))
    entry = existing or _new_entry(ctx, request)
    await add_environments(ctx.services, name, entry, request.environments, lambda: team_change(ctx, team, name))
    warnings = await publish_routes(ctx.services, name, request.environments)
    granted = await grant(ctx, request)
    result = await describe(ctx.services, name)
    return ProjectCreateResult(
        **vars(result) | {"warnings": warnings},
        created=existing is None,
        provisioned=granted,
        next_steps=next_steps(request, granted),
    )


async def _require_own(ctx: Context, request: ProjectCreateRequest) -> dict[str, Any] | None:
    """The entry of the team's project of that name; None when the name is free. Raises Conflict for another team's, and
    InvalidRequest for a name that cannot be chosen."""
    name = request.project_name
    existing: dict[str, Any] | None = (await load_ssot(ctx.store)).get("projects", {}).get(name)
    if existing is not None:
        if name not in await team_projects(ctx.store, ctx.caller.team):
            raise Conflict(f"the name {name} is taken", hint="Choose another name.", project=name)
        return existing
    if parent_of(name) is not None:
        problem = "names that end in -pr- and a number belong to preview environments"
        raise InvalidRequest(
            f"projectName: {problem}",
            hint="Make previews with preview_create, or choose another name.",
            fields=[{"field": "projectName", "problem": problem}],
        )
    _require_own_name(name)
    return None


def _require_own_name(name: str) -> None:
    """Raise InvalidRequest for a name that is that of another project's environment. Projects that have one go on."""
    derived = derived_name(name)
    if derived is None:
        return
    other, end = derived
    problem = f"must not end with -{end}: {other}'s own {end.replace('-', ' ')} is called {name}"
    raise InvalidRequest(
        f"projectName: {problem}",
        hint="Choose another name; to get one more environment, call project_create with that project and environments.",
        fields=[{"field": "projectName", "problem": problem}],
    )


def _new_entry(ctx: Context, request: ProjectCreateRequest) -> dict[str, Any]:
    project = Project(
        team_id=ctx.caller.team,
        ports={},
        settings=_merged(ProjectSettings(), request),
        created_at=ctx.services.drivers.clock.now(),
        created_by=ctx.caller.key_id,
    )
    return project.dump()


async def team_change(ctx: Context, team: str, name: str) -> list[Change]:
    """The project joins its team's list in the same commit, so that the key that made it may use it."""
    stored = await ctx.store.get("teams")
    doc: dict[str, Any] = dict(stored.doc) if stored else {}
    teams = dict(doc.get("teams", {}))
    own = dict(teams.get(team, {}))
    if name in own.get("projects", []):
        return []
    own["projects"] = sorted([*own.get("projects", []), name])
    return [Change("teams", {**doc, "teams": {**teams, team: own}}, stored.version if stored else 0)]


def _merged(settings: ProjectSettings, request: SettingsRequest) -> ProjectSettings:
    """The settings with what the request names; nested groups keep the fields that it leaves out."""
    update: dict[str, Any] = {}
    for field in (
        "image",
        "repository",
        "container_port",
        "pull_policy",
        "keep",
        "health_check",
        "limits",
        "env_contract",
    ):
        value = getattr(request, field)
        if value is None:
            continue
        if isinstance(value, HealthCheck | Limits):
            said = {name: getattr(value, name) for name in value.model_fields_set}
            value = type(value).model_validate({**getattr(settings, field).model_dump(), **said})
        update[field] = value
    return settings.model_copy(update=update)


def _with_environment(settings: ProjectSettings, environment: Environment, said: Mapping[str, Any]) -> ProjectSettings:
    merged = EnvironmentSettings.model_validate({**settings.of(environment).model_dump(), **said})
    return settings.model_copy(update={"environments": {**settings.environments, environment: merged}})


@operation(effect=Effect.CHANGE, role=Role.MEMBER, reach=Reach.PROJECT)
async def project_update(ctx: Context, request: ProjectUpdateRequest) -> ProjectResult:
    """Change a project's settings: image, container port, health check, limits, domain, grace period, security headers.

    What is not given stays as it is. Running containers keep the settings they were deployed with; the next deploy uses
    the new ones. A new domain is served at once.
    """
    if request.model_fields_set & set(SettingsRequest.model_fields):
        require_all_environments(ctx.caller)
    said = _said_of_environment(request)

    chosen = said.get("domain")
    if request.environment and chosen:
        present = (await load_project(ctx.store, request.project_name)).settings.of(request.environment).domain
        await require_certifiable(ctx.services, None if chosen == present else chosen)
    await _commit(ctx, request, said)
    routed = {"domain", "security_headers"} & set(said)
    environments = [request.environment] if routed and request.environment else []
    warnings = await publish_routes(ctx.services, request.project_name, environments)
    result = await describe(ctx.services, request.project_name)
    return result.model_copy(update={"warnings": warnings})


async def _commit(ctx: Context, request: ProjectUpdateRequest, said: Mapping[str, Any]) -> None:
    for _ in range(TRIES):
        stored = await ctx.store.get("ssot")
        changed = _changed(stored.doc if stored else None, request, said)
        if "domain" in said and request.environment:
            further = await further_hosts(ctx.services)
            environments = [request.environment]
            require_free_hosts(ctx.services.settings, changed["projects"], request.project_name, environments, further)
        if stored is not None and changed == dict(stored.doc):
            return
        try:
            await ctx.store.commit([Change("ssot", changed, stored.version if stored else 0)])
        except Conflict:
            await asyncio.sleep(random.uniform(0, PAUSE_SECONDS))
            continue
        return
    raise Conflict("the registry kept changing", hint="Try again.")


def _said_of_environment(request: ProjectUpdateRequest) -> dict[str, Any]:
    """What the request says of its environment; a domain of null takes the chosen one back. Raises InvalidRequest when it
    says nothing at all, or does not say of which environment."""
    said: dict[str, Any] = {
        name: getattr(request, name)
        for name in ("domain", "grace_hours", "drain_seconds", "security_headers")
        if name in request.model_fields_set and (name == "domain" or getattr(request, name) is not None)
    }
    if said and request.environment is None:
        raise InvalidRequest(
            "environment: is needed for domain, graceHours, drainSeconds and securityHeaders",
            hint="Say which environment.",
            fields=[{"field": "environment", "problem": "is missing"}],
        )
    if not said and not request.model_fields_set & set(SettingsRequest.model_fields):
        raise InvalidRequest("nothing to change was given", hint="Give at least one setting.", fields=[])
    return said


def _changed(doc: Document | None, request: ProjectUpdateRequest, said: Mapping[str, Any]) -> dict[str, Any]:
    projects = dict((doc or {}).get("projects", {}))
    entry = projects.get(request.project_name)
    if doc is None or entry is None:
        raise Conflict("the project was deleted meanwhile", hint="Create it again.")
    project = parse_project(request.project_name, entry)
    settings = _merged(project.settings, request)
    if request.environment is not None and request.environment not in project.ports:
        raise NotFound(
            f"{request.project_name} has no {request.environment} environment",
            hint="Add it with project_create and environments.",
            environment=request.environment.value,
        )
    if said and request.environment is not None:
        settings = _with_environment(settings, request.environment, said)
    changed = settings.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_unset=True)
    projects[request.project_name] = {**entry, "settings": changed}
    return {**doc, "projects": projects}


@operation(effect=Effect.READ, role=Role.VIEWER, reach=Reach.PROJECT)
async def project_get(ctx: Context, request: ProjectRequest) -> ProjectResult:
    """Show a project: its settings, environments, ports and addresses."""
    return await describe(ctx.services, request.project_name)


async def describe(services: Services, name: str) -> ProjectResult:
    """The project as callers see it."""
    project = await load_project(services.store, name)
    settings = project.settings
    return ProjectResult(
        project_name=name,
        team_id=project.team_id,
        image=settings.image,
        repository=settings.repository,
        container_port=settings.container_port,
        pull_policy=settings.pull_policy,
        keep=settings.keep,
        health_check=settings.health_check,
        limits=settings.limits,
        env_contract=settings.env_contract or None,
        environments=[await _environment(services, name, project, one) for one in project.ports],
    )


async def _environment(services: Services, name: str, project: Project, environment: Environment) -> EnvironmentAnswer:
    pair, settings = project.ports[environment], project.settings.of(environment)
    slots = await find_slots(services.store, name, environment)
    ports = (pair.blue, pair.green)
    slots = slots or Slots.fresh(name, project.team_id, environment, ports, services.drivers.clock.now())
    site = await site_of(services.store, services.settings, slots)
    return EnvironmentAnswer(
        environment=environment,
        url=url_of(services.settings, site.hosts[0]),
        ports={"blue": pair.blue, "green": pair.green},
        active_slot=slots.active_slot,
        version=slots.active.version if slots.active else None,
        grace_hours=settings.grace_hours,
        drain_seconds=settings.drain_seconds,
        servers=list(settings.servers),
        edge=settings.edge or None,
    )


@operation(effect=Effect.READ, role=Role.VIEWER, reach=Reach.TEAM)
async def project_list(ctx: Context, request: PageRequest) -> ProjectPage:
    """List the projects of your team."""
    names = await callers_projects(ctx.store, ctx.caller)
    projects = (await load_ssot(ctx.store)).get("projects", {})
    shown = names[request.offset : request.offset + request.limit]
    rows = [
        ProjectRow(
            project_name=name,
            environments=list(projects.get(name, {}).get("ports", {})),
            image=projects.get(name, {}).get("settings", {}).get("image"),
        )
        for name in shown
    ]
    return ProjectPage.of(rows, request, total=len(names))
