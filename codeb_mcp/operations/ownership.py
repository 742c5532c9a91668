"""Whose a project is. The team's list in `teams.json` counts, nothing else."""

from __future__ import annotations

from codeb_mcp.model.access import Principal
from codeb_mcp.model.errors import Forbidden, NotFound
from codeb_mcp.registry.store import StateStore


async def team_projects(store: StateStore, team: str) -> list[str]:
    """The names of the team's projects, sorted."""
    stored = await store.get("teams")
    teams = stored.doc.get("teams", {}) if stored else {}
    return sorted(teams.get(team, {}).get("projects", []))


async def require_project(store: StateStore, caller: Principal, project: str) -> None:
    """Raise NotFound unless the caller's team owns the project. A stranger's project and none at all get the same answer,
    so that names cannot be fished for."""
    if project not in await team_projects(store, caller.team):
        raise NotFound(
            f"your team {caller.team} has no project {project}",
            hint="List your projects with project_list, or create it with project_create.",
            project=project,
        )


def require_team(caller: Principal, team: str) -> None:
    """Raise Forbidden unless the caller belongs to the team, whatever role it has in its own."""
    if caller.team != team:
        raise Forbidden(f"this key belongs to team {caller.team}", hint="Use a key of that team.", team=team)
