"""Continuous deployment: the files that a repository needs for it, and what is wrong with those it has."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, Field, StringConstraints

from codeb_mcp.model.access import Reach, Role
from codeb_mcp.model.dockerfiles import DOCKERFILE, DOCKERIGNORE, SECRETS, AppType, dockerfile, dockerignore
from codeb_mcp.model.errors import DeadlineExceeded, InvalidRequest, ReleaseUnhealthy
from codeb_mcp.model.finding import Finding, Severity
from codeb_mcp.model.names import Domain, Environment, Port, ProjectName
from codeb_mcp.model.preview import LONGEST_NAME
from codeb_mcp.model.project import Project
from codeb_mcp.model.scan import MOST_BYTES, MOST_FILES, scan, shown
from codeb_mcp.model.workflow import (
    DEPLOY_PATH,
    PREVIEW_PATH,
    SELF_HOSTED,
    Pipeline,
    Runner,
    deploy_workflow,
    preview_workflow,
    to_yaml,
)
from codeb_mcp.operations.catalog import CATALOG, Effect, Request, Result, operation
from codeb_mcp.operations.context import Context
from codeb_mcp.operations.invoke import authorise
from codeb_mcp.operations.ownership import require_scope, team_projects
from codeb_mcp.operations.projects import ProjectCreateRequest, ProjectCreateResult, project_create
from codeb_mcp.operations.provisioning import Granted, failures, first_failure
from codeb_mcp.operations.state import load_project

MOST_ISSUES = 40
SCAN_SECONDS = 20.0
BRANCH_PATTERN = r"^[A-Za-z0-9_][A-Za-z0-9._/-]{0,99}$"


def _branch(value: str) -> str:
    if "//" in value or ".." in value or value.endswith(("/", ".", ".lock")):
        raise ValueError("must be the name of a branch")
    return value


Branch = Annotated[str, StringConstraints(pattern=BRANCH_PATTERN), AfterValidator(_branch)]


class WorkflowInitRequest(Request):
    """What the repository holds, and who builds it."""

    project_name: ProjectName = Field(description="Project that the repository is deployed as; need not exist yet")
    type: AppType = Field(description="What the app is written with")
    environment: Environment = Field(
        Environment.STAGING,
        description="Where a push goes: staging (production by tag or by hand), production, or preview: pull requests only",
    )
    runner: Runner = Field(Runner.SELF_HOSTED, description="Who builds and deploys; pull requests never self-hosted")
    branch: Branch = Field("main", description="Branch whose pushes are deployed")
    auto_promote: bool = Field(False, description="A push gets the live traffic as soon as it is healthy")
    previews: bool = Field(True, description="A preview environment for each pull request")
    database: bool = Field(False, description="The app uses PostgreSQL")
    redis: bool = Field(False, description="The app uses Redis")
    streaming: bool = Field(False, description="The app uses Centrifugo")
    domain: Domain | None = Field(None, description="Public host name of production")
    create: bool = Field(False, description="Also make the project with all of these, as project_create")
    container_port: Port | None = Field(None, description="Port the app listens on; the project's, else 8080")


class FileAnswer(Result):
    """One file to put into the repository."""

    path: str
    content: str


class SettingAnswer(Result):
    """Something to set by hand. `where`: the GitHub environment or page, or the environment file on the server."""

    name: str
    kind: str = Field(description="secret, variable, optional secret or environment")
    where: str
    purpose: str


class WorkflowInitResult(Result):
    """Files to put into the repository, and what to do besides. `ports` is empty until the project exists; `provisioned` is
    what became of each wish."""

    project_name: str
    type: AppType
    environment: Environment
    project_exists: bool
    files: list[FileAnswer]
    github_actions_workflow: str = Field(description="The content of the main workflow once more")
    dockerfile: str = Field(description="The content of the Dockerfile once more")
    ports: dict[str, dict[str, int]] = Field(description="blue and green port per environment")
    container_port: int
    secrets: list[SettingAnswer]
    created: bool | None = None
    provisioned: list[Granted] = Field(default_factory=list)
    next_steps: list[str]

    @property
    def exit_code(self) -> int:
        """That of the first wish that failed."""
        return first_failure(self.provisioned)


@operation(effect=Effect.CHANGE, role=Role.MEMBER, reach=Reach.TEAM, long=True)
async def workflow_init(ctx: Context, request: WorkflowInitRequest) -> WorkflowInitResult:
    """Write the GitHub Actions workflows, the Dockerfile and .dockerignore for a repository; with create, make its project.

    Without create it changes nothing. The same request answers the same files. `codeb workflow init` puts them into a checkout
    and overwrites nothing. Pull requests are built on GitHub's machines only.
    """
    made = await _made(ctx, request) if request.create else None
    project = await _own_project(ctx, request.project_name)
    port = request.container_port or (project.settings.container_port if project else 8080)
    pipeline = Pipeline(
        project=request.project_name,
        kind=request.type,
        environment=request.environment,
        runner=request.runner,
        branch=request.branch,
        auto_promote=request.auto_promote,
    )
    workflows = _workflows(pipeline, request)
    image = dockerfile(request.type, port)
    texts = {**workflows, DOCKERFILE: image, DOCKERIGNORE: dockerignore(request.type)}
    return WorkflowInitResult(
        project_name=request.project_name,
        type=request.type,
        environment=request.environment,
        project_exists=project is not None,
        files=[FileAnswer(path=path, content=text) for path, text in texts.items()],
        github_actions_workflow=next(iter(workflows.values())),
        dockerfile=image,
        ports={name.value: {"blue": pair.blue, "green": pair.green} for name, pair in project.ports.items()}
        if project
        else {},
        container_port=port,
        secrets=_settings(request),
        created=made.created if made else None,
        provisioned=made.provisioned if made else [],
        next_steps=[*(failures(made.provisioned) if made else []), *_next_steps(request, project, port)],
    )


async def _made(ctx: Context, request: WorkflowInitRequest) -> ProjectCreateResult:
    """The project with what the app uses. Raises like project_create, and Forbidden for who may not make projects."""
    wanted = ProjectCreateRequest(
        project_name=request.project_name,
        environments=_environments(request),
        container_port=request.container_port,
        database=request.database,
        redis=request.redis,
        streaming=request.streaming,
        domain=request.domain,
    )
    authorise(CATALOG["project_create"], ctx.caller)
    require_scope(ctx.caller, wanted.project_name, wanted.environments, changes=True)
    return await project_create(ctx, wanted)


def _environments(request: WorkflowInitRequest) -> tuple[Environment, ...]:
    only = request.environment is Environment.PRODUCTION
    return (Environment.PRODUCTION,) if only else (Environment.PRODUCTION, Environment.STAGING)


async def _own_project(ctx: Context, name: str) -> Project | None:
    """The project when it is the caller's team's. Somebody else's and none at all are the same here."""
    if name not in await team_projects(ctx.store, ctx.caller.team):
        return None
    return await load_project(ctx.store, name)


def _workflows(pipeline: Pipeline, request: WorkflowInitRequest) -> dict[str, str]:
    texts = {}
    if request.environment is not Environment.PREVIEW:
        texts[DEPLOY_PATH] = to_yaml(deploy_workflow(pipeline))
    if request.previews or not texts:
        texts[PREVIEW_PATH] = to_yaml(preview_workflow(pipeline))
    return texts


def _targets(request: WorkflowInitRequest) -> list[str]:
    """The GitHub environments that the workflows use."""
    first = {Environment.STAGING: ["staging", "production"], Environment.PRODUCTION: ["production"]}
    targets = first.get(request.environment, [])
    return [*targets, "preview"] if request.previews or not targets else targets


def _settings(request: WorkflowInitRequest) -> list[SettingAnswer]:
    build = SECRETS[request.type]
    targets = ", ".join(_targets(request))
    rows = [
        ("CODEB_URL", "variable", "repository", "Address of this server, https://…, as the runner reaches it"),
        ("CODEB_API_KEY", "secret", f"GitHub environment {targets}", "Key for deploying there; one key for each"),
    ]
    if request.environment is not Environment.PREVIEW:
        rows.append((build.name, "optional secret", "repository", f"Text of {build.purpose}; not for pull requests"))
    live = f"environment file of {request.project_name}"
    if request.database:
        rows.append(("DATABASE_URL", "environment", live, "PostgreSQL, read at run time only"))
    if request.redis:
        rows.append(("REDIS_URL", "environment", live, "Redis, read at run time only"))
    if request.streaming:
        rows.append(("CENTRIFUGO_URL", "environment", live, "Centrifugo, read at run time only"))
    return [SettingAnswer(name=name, kind=kind, where=where, purpose=purpose) for name, kind, where, purpose in rows]


def _next_steps(request: WorkflowInitRequest, project: Project | None, port: int) -> list[str]:
    name = request.project_name
    steps = []
    if project is None:
        steps.append(f"Create the project: project_create with projectName {name}{_wishes(request)}.")
    elif project.settings.container_port != port:
        steps.append(f"Tell the project its port: project_update with containerPort {port}.")
    steps += [
        f"Make a key for {target}: token_create with role member and the scopes {_scopes(name, target)}."
        for target in _targets(request)
    ]
    steps.append(
        "Set the secrets; let the GitHub environment production require a review and allow only your tags and branch."
    )
    if request.runner is Runner.SELF_HOSTED and request.environment is not Environment.PREVIEW:
        steps.append(
            f"Register a runner with the labels {', '.join(SELF_HOSTED)}; let forks' workflows wait for approval."
        )
    steps.append(f"Answer GET /health with 200 and listen on 0.0.0.0 at PORT ({port}).")
    if request.type is AppType.NEXTJS:
        steps.append('Set output: "standalone" in next.config.')
    if "preview" in _targets(request) and len(name) > LONGEST_NAME - len("-pr-9999"):
        steps.append(f"Choose a shorter name: previews are called {name}-pr-N, at most {LONGEST_NAME} characters.")
    return steps


def _wishes(request: WorkflowInitRequest) -> str:
    said = [name for name in ("database", "redis", "streaming") if getattr(request, name)]
    said += [f"domain {request.domain}"] if request.domain else []
    return f", {', '.join(said)}; or repeat this call with create" if said else ""


def _scopes(project: str, target: str) -> str:
    own = [f"project:{project}", f"environment:{target}"]
    return ", ".join([*own, f"project:{project}-pr-*"] if target == "preview" else own)


class WorkflowScanRequest(Request):
    """Files of a repository."""

    secret: ClassVar[frozenset[str]] = frozenset({"files"})

    files: dict[str, str] = Field(
        description=f"Path to text: Dockerfile, workflows, sources; at most {MOST_FILES} files, 200 KB in all"
    )
    project_name: ProjectName | None = Field(None, description="Compare with this project's port as well")


class IssueAnswer(Result):
    """One thing to correct."""

    severity: Severity
    rule: str
    file: str
    line: int | None = None
    problem: str
    fix: str


class WorkflowScanResult(Result):
    """What was found, worst first. `total` counts also what is not listed."""

    ok: bool = Field(description="Whether nothing is unsafe and nothing keeps it from working")
    summary: str
    issues: list[IssueAnswer]
    total: int
    errors: int
    warned: int = Field(description="How many of them are warnings")
    files_read: int

    @property
    def exit_code(self) -> int:
        """That of an unhealthy release when something is unsafe or will not work."""
        return 0 if self.ok else ReleaseUnhealthy.exit_code


@operation(effect=Effect.READ, role=Role.VIEWER, reach=Reach.TEAM)
async def workflow_scan(ctx: Context, request: WorkflowScanRequest) -> WorkflowScanResult:
    """Tell what a repository lacks or does wrong before it can be deployed well: Dockerfile, workflows, secrets, contract.

    Reads the files that are sent, runs nothing and keeps nothing of them. `codeb workflow scan` collects them in a checkout.
    """
    _require_fitting(request.files)
    project = await load_project(ctx.store, request.project_name) if request.project_name else None
    port = project.settings.container_port if project else None
    try:
        async with asyncio.timeout(SCAN_SECONDS):
            found = await asyncio.to_thread(scan, request.files, port)
    except TimeoutError:
        hint = "Send fewer and smaller files."
        raise DeadlineExceeded(f"the files could not be read within {SCAN_SECONDS:g} s", hint=hint) from None
    errors = sum(1 for one in found if one.severity is Severity.ERROR)
    warnings = sum(1 for one in found if one.severity is Severity.WARNING)
    return WorkflowScanResult(
        ok=errors == 0,
        summary=f"{errors} errors, {warnings} warnings in {len(request.files)} files"
        if found
        else "nothing to correct",
        issues=[_issue(one) for one in found[:MOST_ISSUES]],
        total=len(found),
        errors=errors,
        warned=warnings,
        files_read=len(request.files),
    )


def _issue(one: Finding) -> IssueAnswer:
    said: dict[str, Any] = {
        "file": shown(one.file, 100),
        "problem": shown(one.problem, 160),
        "fix": shown(one.fix, 160),
    }
    return IssueAnswer(severity=one.severity, rule=one.rule, line=one.line, **said)


def _require_fitting(files: dict[str, str]) -> None:
    """Raise InvalidRequest for more than is read at once, or for a path that is none."""
    problem = ""
    if not files:
        problem = "is empty"
    elif len(files) > MOST_FILES:
        problem = f"has {len(files)} files; at most {MOST_FILES} are read"
    elif sum(len(text.encode()) for text in files.values()) > MOST_BYTES:
        problem = f"holds more than {MOST_BYTES // 1000} KB"
    elif any(not path or len(path) > 200 or not path.isprintable() for path in files):
        problem = "has a path that is empty, too long or not printable"
    if problem:
        hint = "Send the Dockerfile, the workflows and the few sources that start the app."
        raise InvalidRequest(f"files: {problem}", hint=hint, fields=[{"field": "files", "problem": problem}])
