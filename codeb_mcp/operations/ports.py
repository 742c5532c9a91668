"""Which ports the projects have, and how many are left."""

from __future__ import annotations

from pydantic import Field

from codeb_mcp.model.access import Reach, Role, in_scope
from codeb_mcp.model.names import Environment, ProjectName
from codeb_mcp.model.ports import free_pairs, overlaps
from codeb_mcp.operations.catalog import Effect, Page, PageRequest, Result, operation
from codeb_mcp.operations.context import Context
from codeb_mcp.operations.environments import known_ports
from codeb_mcp.operations.ownership import callers_projects
from codeb_mcp.operations.state import load_ssot, parse_project


class PortListRequest(PageRequest):
    """Whose ports to list."""

    project_name: ProjectName | None = Field(None, description="Only this project")
    environment: Environment | None = Field(None, description="Only this environment")


class PortRow(Result):
    """The two ports of one environment."""

    project_name: str
    environment: Environment
    blue: int
    green: int


class RangeAnswer(Result):
    """The ranges of one kind of environment. `free_pairs`: how many environments it still has room for."""

    environment: Environment
    ranges: list[str]
    free_pairs: int


class PortPage(Page):
    """Ports of the caller's projects, in the order of the projects."""

    data: list[PortRow]
    ranges: list[RangeAnswer] = Field(default_factory=list)
    overlaps: list[str] = Field(default_factory=list, description="Configured ranges that reach into reserved ones")


@operation(effect=Effect.READ, role=Role.VIEWER, reach=Reach.TEAM)
async def port_list(ctx: Context, request: PortListRequest) -> PortPage:
    """List the ports of your team's environments, the ranges they come from and how many pairs are free in each."""
    ssot = await load_ssot(ctx.store)
    projects = ssot.get("projects", {})
    rows = [
        PortRow(project_name=name, environment=environment, blue=pair.blue, green=pair.green)
        for name in await callers_projects(ctx.store, ctx.caller)
        if name in projects and request.project_name in (None, name)
        for environment, pair in parse_project(name, projects[name]).ports.items()
        if request.environment in (None, environment) and in_scope(ctx.caller.scopes, "environment", environment)
    ]
    ranges = {environment: ctx.services.settings.ports.of(environment) for environment in Environment}
    taken = known_ports(ssot, projects, ctx.services.drivers.clock.now())
    shown = [
        RangeAnswer(
            environment=environment,
            ranges=[f"{first}-{last}" for first, last in spans],
            free_pairs=free_pairs(spans, taken),
        )
        for environment, spans in ranges.items()
    ]
    page = PortPage.of(rows, request)
    return page.model_copy(
        update={"ranges": shown, "overlaps": overlaps({one.value: spans for one, spans in ranges.items()})}
    )
