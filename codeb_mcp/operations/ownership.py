"""Whose a project is. The team's list in `teams.json` counts, nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from codeb_mcp.model.access import Principal, in_scope
from codeb_mcp.model.errors import Forbidden, NotFound
from codeb_mcp.registry.store import StateStore


async def team_projects(store: StateStore, team: str) -> list[str]:
    """The names of the team's projects, sorted."""
    return sorted(await _listed(store, team))


async def _listed(store: StateStore, team: str) -> Sequence[str]:
    stored = await store.get("teams")
    projects: Sequence[str] = stored.doc.get("teams", {}).get(team, {}).get("projects", ()) if stored else ()
    return projects


async def callers_projects(store: StateStore, caller: Principal) -> list[str]:
    """The names of those projects of the caller's team that are within the caller's scopes, sorted."""
    return [name for name in await team_projects(store, caller.team) if in_scope(caller.scopes, "project", name)]


def require_scope(caller: Principal, project: str, environments: Sequence[str], *, changes: bool) -> None:
    """Raise Forbidden unless the caller's scopes cover the project and these environments. Without an environment, the
    whole project is meant: a key that is limited to some environments may look at it, but not change it."""
    hint = "Use a key whose scopes include it."
    if not in_scope(caller.scopes, "project", project):
        raise Forbidden(f"this key may not touch project {project}", hint=hint)
    for environment in environments:
        if not in_scope(caller.scopes, "environment", environment):
            raise Forbidden(f"this key may not touch {environment}", hint=hint)
    if changes and not environments:
        require_all_environments(caller)


def require_all_environments(caller: Principal) -> None:
    """Raise Forbidden for a key that is limited to some environments."""
    if not in_scope(caller.scopes, "environment", None):
        raise Forbidden(
            "this key is limited to some environments, and this concerns all of the project",
            hint="Use a key without environment scopes.",
        )


def require_unlimited(caller: Principal) -> None:
    """Raise Forbidden for a key that is limited to some projects or environments: a team is more than those."""
    if not in_scope(caller.scopes, "project", None) or not in_scope(caller.scopes, "environment", None):
        raise Forbidden(
            "this key is limited to some projects or environments, and this concerns the whole team",
            hint="Use a key without such scopes.",
        )


async def require_project(store: StateStore, caller: Principal, project: str) -> None:
    """Raise NotFound unless the caller's team owns the project. A stranger's project and none at all get the same answer,
    so that names cannot be fished for."""
    if project not in await _listed(store, caller.team):
        raise NotFound(
            f"your team {caller.team} has no project {project}",
            hint="List your projects with project_list, or create it with project_create.",
            project=project,
        )


def require_team(caller: Principal, team: str) -> None:
    """Raise Forbidden unless the caller belongs to the team, whatever role it has in its own."""
    if caller.team != team:
        raise Forbidden(f"this key belongs to team {caller.team}", hint="Use a key of that team.", team=team)
