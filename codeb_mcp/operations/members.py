"""Members of a team: people who hold a key of it."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any

from pydantic import Field

from codeb_mcp.model.access import KeyRecord, Reach, Role
from codeb_mcp.model.errors import Conflict, NotFound
from codeb_mcp.model.names import DisplayName, Identifier
from codeb_mcp.model.times import utc_text
from codeb_mcp.operations.access import (
    TeamRequest,
    TokenListRequest,
    narrowed,
    require_not_above,
    require_owner_left,
    revoked_keys,
    teams_of,
)
from codeb_mcp.operations.catalog import Effect, Page, Result, operation
from codeb_mcp.operations.context import Context
from codeb_mcp.operations.keys import NewKey, issue, records_of, with_key
from codeb_mcp.operations.ownership import require_unlimited
from codeb_mcp.registry.store import Change, Document

TRIES = 20


class MemberInviteRequest(TeamRequest):
    """Who joins."""

    name: DisplayName = Field(description="The member's name")
    role: Role = Field(Role.MEMBER, description="admin, member or viewer; not above your own")


class MemberRequest(TeamRequest):
    """One member."""

    member_id: Identifier = Field(description="Id of the member (mem_…)")


class MemberAnswer(Result):
    """A member. `api_key` is shown this once."""

    id: str
    name: str
    role: Role
    key_id: str
    joined_at: str
    api_key: str | None = None


class MemberResult(Result):
    """A member who joined or left. `api_key` is the key's text, shown this once."""

    member: MemberAnswer
    api_key: str | None = None


class MemberPage(Page):
    """Members of a team."""

    data: list[MemberAnswer]


def _member(member_id: str, entry: dict[str, Any]) -> MemberAnswer:
    return MemberAnswer(
        id=member_id, name=entry["name"], role=entry["role"], key_id=entry["keyId"], joined_at=entry["joinedAt"]
    )


@operation(effect=Effect.CHANGE, role=Role.ADMIN, reach=Reach.TEAM, idempotent=False)
async def member_invite(ctx: Context, request: MemberInviteRequest) -> MemberResult:
    """Add a member to your team; answers their key, shown once."""
    require_not_above(ctx.caller, request.role)
    team_id, now = request.team_id or ctx.caller.team, ctx.services.drivers.clock.now()
    wanted = NewKey(team_id, request.role, request.name, narrowed(ctx.caller, ()))
    issued = issue(wanted, by=ctx.caller.key_id, now=now)
    member_id = f"mem_{secrets.token_hex(6)}"
    entry = {"name": request.name, "role": request.role.value, "keyId": issued.record.id, "joinedAt": utc_text(now)}
    for _ in range(TRIES):
        teams, keys = await ctx.store.get("teams"), await ctx.store.get("api-keys")
        if teams is None or team_id not in teams.doc.get("teams", {}):
            raise NotFound(f"there is no team {team_id}", hint="List them with team_list.")
        team = teams.doc["teams"][team_id]
        team = {**team, "members": {**team.get("members", {}), member_id: entry}}
        doc = {**teams.doc, "teams": {**teams.doc["teams"], team_id: team}}
        ring = with_key(keys.doc if keys else None, issued.record, now)
        try:
            await ctx.store.commit(
                [Change("teams", doc, teams.version), Change("api-keys", ring, keys.version if keys else 0)]
            )
        except Conflict:
            continue
        return MemberResult(member=_member(member_id, entry), api_key=issued.text)
    raise Conflict("the registry kept changing", hint="Try again.")


def came_of(doc: Document, key_id: str) -> Callable[[KeyRecord], bool]:
    """Tells the key and those that it was rotated into."""
    family, grown = {key_id}, True
    while grown:
        heirs = {record.id for record in records_of(doc) if record.rotated_from in family} - family
        family, grown = family | heirs, bool(heirs)
    return lambda record: record.id in family


@operation(effect=Effect.DESTROY, role=Role.ADMIN, reach=Reach.TEAM)
async def member_remove(ctx: Context, request: MemberRequest) -> MemberResult:
    """Remove a member from your team; their key stops working at once."""
    team_id, now = request.team_id or ctx.caller.team, ctx.services.drivers.clock.now()
    for _ in range(TRIES):
        teams, keys = await ctx.store.get("teams"), await ctx.store.get("api-keys")
        team = teams.doc.get("teams", {}).get(team_id, {}) if teams else {}
        entry = team.get("members", {}).get(request.member_id)
        if teams is None or keys is None or entry is None:
            raise NotFound(f"your team has no member {request.member_id}", hint="List them with member_list.")
        require_not_above(ctx.caller, Role(entry["role"]))
        require_unlimited(ctx.caller)
        left = {name: value for name, value in team["members"].items() if name != request.member_id}
        doc = {**teams.doc, "teams": {**teams.doc["teams"], team_id: {**team, "members": left}}}
        ring = revoked_keys(keys.doc, now, came_of(keys.doc, entry["keyId"]))
        if entry["role"] == Role.OWNER:
            require_owner_left(ring, team_id, now)
        try:
            await ctx.store.commit([Change("teams", doc, teams.version), Change("api-keys", ring, keys.version)])
        except Conflict:
            continue
        return MemberResult(member=_member(request.member_id, entry))
    raise Conflict("the registry kept changing", hint="Try again.")


@operation(effect=Effect.READ, role=Role.VIEWER, reach=Reach.TEAM)
async def member_list(ctx: Context, request: TokenListRequest) -> MemberPage:
    """List the members of your team."""
    team = (await teams_of(ctx)).get(request.team_id or ctx.caller.team, {})
    rows = [_member(name, entry) for name, entry in sorted(team.get("members", {}).items())]
    return MemberPage.of(rows, request)
