"""Projects and the settings of their environments, as they stand in `ssot.json`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from codeb_mcp.model.env_contract import EnvContract
from codeb_mcp.model.names import Domain, Environment, HttpPath, ImageRef, Port, Repository, Slot
from codeb_mcp.model.server import ServerKey
from codeb_mcp.model.times import Moment

PullPolicy = Literal["always", "missing", "never"]
Capability = Literal["NET_BIND_SERVICE", "CHOWN", "SETUID", "SETGID", "DAC_OVERRIDE", "FOWNER"]
StatusCode = Annotated[int, Field(ge=100, le=599)]


class _Settings(BaseModel):
    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True, defer_build=True
    )


_SYSTEM_FOLDERS = ("/proc", "/sys", "/dev", "/etc", "/bin", "/sbin", "/usr", "/run/secrets", "/var/run/secrets")
_LIBRARIES = re.compile(r"/lib(x?32|64)?")


def folder_problem(path: str) -> str | None:
    """Why an app cannot have a folder in memory there; None when it can."""
    parts = path.split("/")
    if parts[0] or len(parts) < 2 or not all(part.strip(".") for part in parts[1:]):
        return f"{path}: must be an absolute path of a folder, without //, dots alone or a / at its end"
    if any(path == taken or path.startswith(taken + "/") for taken in _SYSTEM_FOLDERS) or _LIBRARIES.fullmatch(
        "/" + parts[1]
    ):
        return f"{path}: belongs to the system; programs, settings and secrets there would be hidden"
    return None


class HealthCheck(_Settings):
    """How a release proves itself. Without a path both `/health` and `/api/health` are tried, and the one that passes is
    stored with the slot and used from then on."""

    path: HttpPath | None = Field(None, description="Path to GET; without it /health and /api/health are tried")
    expected_statuses: tuple[StatusCode, ...] = Field(
        (200, 204), min_length=1, max_length=10, description="Statuses that count as healthy"
    )
    interval_seconds: float = Field(1.0, ge=0.05, le=60, description="Longest pause between two questions")
    timeout_seconds: float = Field(5.0, ge=0.1, le=60, description="How long one answer may take")
    deadline_seconds: float = Field(60.0, ge=1, le=600, description="How long a release may take to get healthy")

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths to try, in order."""
        return (self.path,) if self.path else ("/health", "/api/health")


class Limits(_Settings):
    """What a container may use."""

    memory_mb: int = Field(512, ge=16, le=1_048_576, description="Memory in MiB; no swap beyond it")
    cpus: float = Field(1.0, ge=0.05, le=512, description="Processor time, in cores")
    pids: int = Field(256, ge=8, le=32_768, description="Processes and threads")
    read_only_root: bool = Field(True, description="Mount the image read-only; /tmp stays writable")
    tmpfs: tuple[Annotated[str, Field(pattern=r"^/[A-Za-z0-9._/-]{1,100}$")], ...] = Field(
        ("/tmp",), max_length=8, description="Folders in memory that the app may write to"
    )
    capabilities: tuple[Capability, ...] = Field((), description="Kernel rights beyond none at all")
    stop_timeout_seconds: int = Field(15, ge=1, le=300, description="Time between SIGTERM and SIGKILL")


def mountable(limits: Limits) -> Limits:
    """The limits; raises ValueError when a folder of `tmpfs` cannot be one. What was stored before this was checked still
    loads, and is refused when it is to be used."""
    for path in limits.tmpfs:
        if (problem := folder_problem(path)) is not None:
            raise ValueError(f"tmpfs: {problem}")
    return limits


class EnvironmentSettings(_Settings):
    """What may differ between the environments of one project."""

    domain: Domain | None = Field(None, description="Public host name")
    grace_hours: float = Field(48.0, ge=0, le=24 * 30, description="How long the former slot stays warm")
    drain_seconds: float = Field(30.0, ge=0, le=600, description="How long a slot may finish requests before it stops")
    security_headers: bool = Field(True, description="Add HSTS and other security headers that the app does not set")
    servers: tuple[ServerKey, ...] = Field(
        (), max_length=16, description="App servers that run it; the one beside the control plane if not given"
    )
    edge: bool = Field(False, description="The proxy beside the control plane stands in front of all its app servers")

    @property
    def grace(self) -> timedelta:
        """The grace period."""
        return timedelta(hours=self.grace_hours)


class ProjectSettings(_Settings):
    """What an owner of a project may decide."""

    image: ImageRef | None = Field(None, description="Repository to deploy from when a deploy names only a version")
    repository: Repository | None = Field(None, description="owner/name on GitHub, for pull requests")
    container_port: Port = 8080
    pull_policy: PullPolicy = "always"
    keep: int = Field(3, ge=1, le=50, description="Images kept besides those in slots")
    health_check: HealthCheck = HealthCheck()
    limits: Limits = Limits()
    environments: dict[Environment, EnvironmentSettings] = Field(default_factory=dict)
    env_contract: EnvContract = Field(default_factory=dict)

    def of(self, environment: Environment) -> EnvironmentSettings:
        """The environment's settings, defaults where nothing was said."""
        return self.environments.get(environment, EnvironmentSettings())


class PortPair(BaseModel):
    """The two fixed ports of an environment."""

    model_config = ConfigDict(frozen=True, extra="allow", defer_build=True)

    blue: Port
    green: Port

    def of(self, slot: Slot) -> int:
        """The port of one slot."""
        return self.blue if slot is Slot.BLUE else self.green


class Project(BaseModel):
    """One entry of `ssot.json`'s `projects`. Entries of earlier versions, with ports and database only, load as well."""

    model_config = ConfigDict(
        frozen=True, extra="allow", alias_generator=to_camel, populate_by_name=True, defer_build=True
    )

    team_id: str = "default"
    ports: dict[Environment, PortPair] = Field(default_factory=dict)
    settings: ProjectSettings = ProjectSettings()
    created_at: Moment | None = None
    created_by: str | None = None

    def dump(self) -> dict[str, Any]:
        """The JSON form, without values that are defaults nobody chose."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_unset=True)


def public_host(project: str, environment: Environment, settings: EnvironmentSettings, base_domain: str) -> str:
    """The public name: the chosen domain, else `{project}.{base}` (production) or `{project}-{environment}.{base}`."""
    if settings.domain:
        return settings.domain
    label = project if environment is Environment.PRODUCTION else f"{project}-{environment}"
    return f"{label}.{base_domain}"


def preview_host(project: str, environment: Environment, slot: Slot, preview_domain: str) -> str:
    """`{project}-{environment}-{slot}.{preview domain}`: always reaches that slot, whichever is live."""
    return f"{project}-{environment}-{slot}.{preview_domain}"


def all_ports(projects: Mapping[str, Any]) -> set[int]:
    """Every port that `ssot.json` projects hold."""
    return {
        int(port)
        for project in projects.values()
        for pair in project.get("ports", {}).values()
        if isinstance(pair, Mapping)
        for port in pair.values()
        if isinstance(port, int)
    }
