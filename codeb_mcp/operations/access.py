"""Teams, members and tokens."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from codeb_mcp.model.access import SCOPE_KINDS, KeyRecord, Principal, Reach, Role, scope_problem
from codeb_mcp.model.errors import Conflict, Forbidden, InvalidRequest, NotFound
from codeb_mcp.model.names import DisplayName, Identifier, TeamId
from codeb_mcp.model.times import utc_text
from codeb_mcp.operations.catalog import Effect, Page, PageRequest, Request, Result, operation
from codeb_mcp.operations.context import Context
from codeb_mcp.operations.keys import KEY_USE, Issued, NewKey, issue, parse_key, records_of, with_key
from codeb_mcp.operations.ownership import require_unlimited
from codeb_mcp.registry.store import Change, Document, update

MAX_LIFE = timedelta(days=730)
OVERLAP = timedelta(days=7)
PROJECTS_SHOWN = 100


def _life(value: object) -> timedelta:
    """`90d` or `12h` (a bare number means days)."""
    found = re.fullmatch(r"([0-9]{1,4})([dh]?)", str(value))
    life = timedelta(**{"hours" if found[2] == "h" else "days": int(found[1])}) if found else timedelta(0)
    if not timedelta(0) < life <= MAX_LIFE:
        raise ValueError("must be like 90d or 12h, at most 730d")
    return life


def _scope(value: str) -> str:
    if problem := scope_problem(value):
        raise ValueError(problem)
    return value


Life = Annotated[
    timedelta,
    BeforeValidator(_life, json_schema_input_type=str),
    Field(json_schema_extra={"type": "string", "format": ""}),
]
Scope = Annotated[str, AfterValidator(_scope)]


class TeamRequest(Request):
    """A team; your own if not given."""

    team_id: TeamId | None = Field(None, description="Team; your own if not given")


class TeamCreateRequest(Request):
    """A new team."""

    new_team_id: TeamId = Field(alias="teamId", description="Id of the new team")
    name: DisplayName = Field(description="Name for people")


class TeamSettingsRequest(TeamRequest):
    """Changes to a team."""

    name: DisplayName | None = Field(None, description="New name for people")


class TeamDeleteRequest(TeamRequest):
    """A team to delete; `confirm` repeats its id."""

    confirm: str = Field(max_length=40, description="The team's id once more")


class TeamResult(Result):
    """A team. `owner_key` is shown this once."""

    team_id: str
    name: str
    projects: list[str] = Field(default_factory=list, description="The first hundred; all of them with project_list")
    project_count: int = 0
    members: int = 0
    platform: bool = False
    owner_key: str | None = None


class TeamPage(Page):
    """Teams that the caller may see."""

    data: list[TeamResult]


async def teams_of(ctx: Context) -> Mapping[str, Any]:
    stored = await ctx.store.get("teams")
    return stored.doc.get("teams", {}) if stored else {}


def _team(team_id: str, entry: Mapping[str, Any]) -> TeamResult:
    return TeamResult(
        team_id=team_id,
        name=entry.get("name", team_id),
        projects=list(entry.get("projects", []))[:PROJECTS_SHOWN],
        project_count=len(entry.get("projects", [])),
        members=len(entry.get("members", {})),
        platform=bool(entry.get("platform", False)),
    )


async def change_team(ctx: Context, team_id: str, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    def apply(doc: Document | None) -> Document:
        teams = dict((doc or {}).get("teams", {}))
        if team_id not in teams:
            raise NotFound(f"there is no team {team_id}", hint="List them with team_list.")
        teams[team_id] = change(dict(teams[team_id]))
        return {**(doc or {}), "teams": teams}

    await update(ctx.store, "teams", apply)


@operation(effect=Effect.CHANGE, role=Role.OWNER, reach=Reach.PLATFORM, idempotent=False)
async def team_create(ctx: Context, request: TeamCreateRequest) -> TeamResult:
    """Create a team and its first owner key, which is shown once. Only owners of the platform's own team may."""
    require_unlimited(ctx.caller)
    now, team_id = ctx.services.drivers.clock.now(), request.new_team_id
    issued = issue(NewKey(team_id, Role.OWNER, "owner"), by=ctx.caller.key_id, now=now)
    for _ in range(20):
        teams, keys = await ctx.store.get("teams"), await ctx.store.get("api-keys")
        doc: dict[str, Any] = dict(teams.doc) if teams else {}
        if team_id in doc.get("teams", {}):
            raise Conflict(f"team {team_id} exists", hint="Choose another id.")
        entry = {
            "name": request.name,
            "projects": [],
            "members": {},
            "createdAt": utc_text(now),
            "createdBy": ctx.caller.key_id,
        }
        try:
            await ctx.store.commit(
                [
                    Change(
                        "teams",
                        {**doc, "teams": {**doc.get("teams", {}), team_id: entry}},
                        teams.version if teams else 0,
                    ),
                    Change(
                        "api-keys",
                        with_key(keys.doc if keys else None, issued.record, now),
                        keys.version if keys else 0,
                    ),
                ]
            )
        except Conflict:
            continue
        return _team(team_id, entry).model_copy(update={"owner_key": issued.text})
    raise Conflict("the registry kept changing", hint="Try again.")


@operation(effect=Effect.READ, role=Role.VIEWER, reach=Reach.TEAM)
async def team_list(ctx: Context, request: PageRequest) -> TeamPage:
    """List the teams you may see: your own; the platform's team sees the names of all."""
    teams = await teams_of(ctx)
    rows = [
        _team(name, entry) if name == ctx.caller.team else TeamResult(team_id=name, name=entry.get("name", name))
        for name, entry in sorted(teams.items())
        if name == ctx.caller.team or ctx.caller.platform
    ]
    return TeamPage.of(rows, request)


@operation(effect=Effect.READ, role=Role.VIEWER, reach=Reach.TEAM)
async def team_get(ctx: Context, request: TeamRequest) -> TeamResult:
    """Show your team: its name, projects and number of members."""
    team_id = request.team_id or ctx.caller.team
    entry = (await teams_of(ctx)).get(team_id)
    if entry is None:
        raise NotFound(f"there is no team {team_id}", hint="List them with team_list.")
    return _team(team_id, entry)


@operation(effect=Effect.CHANGE, role=Role.ADMIN, reach=Reach.TEAM)
async def team_settings(ctx: Context, request: TeamSettingsRequest) -> TeamResult:
    """Change your team's settings: its name."""
    require_unlimited(ctx.caller)
    team_id = request.team_id or ctx.caller.team
    if request.name is not None:
        await change_team(ctx, team_id, lambda entry: {**entry, "name": request.name})
    return _team(team_id, (await teams_of(ctx))[team_id])


@operation(effect=Effect.DESTROY, role=Role.OWNER, reach=Reach.TEAM)
async def team_delete(ctx: Context, request: TeamDeleteRequest) -> TeamResult:
    """Delete your team and revoke all its keys. Refused while it has projects, and for the platform's own team."""
    require_unlimited(ctx.caller)
    team_id, now = request.team_id or ctx.caller.team, ctx.services.drivers.clock.now()
    if request.confirm != team_id:
        problem = {"field": "confirm", "problem": "must repeat the team's id"}
        raise InvalidRequest("confirm: must repeat the team's id", hint="All its keys stop working.", fields=[problem])
    teams, keys = await ctx.store.get("teams"), await ctx.store.get("api-keys")
    entry = teams.doc.get("teams", {}).get(team_id) if teams else None
    if teams is None or keys is None or entry is None:
        raise NotFound(f"there is no team {team_id}", hint="List them with team_list.")
    if entry.get("projects") or entry.get("platform"):
        what = "runs this installation" if entry.get("platform") else "still has projects"
        raise Conflict(f"team {team_id} {what}", hint="Delete its projects first with project_delete.")
    left = {name: value for name, value in teams.doc["teams"].items() if name != team_id}
    revoked = revoked_keys(keys.doc, now, lambda record: record.team_id == team_id)
    await ctx.store.commit(
        [Change("teams", {**teams.doc, "teams": left}, teams.version), Change("api-keys", revoked, keys.version)]
    )
    return _team(team_id, entry)


def revoked_keys(doc: Document, now: datetime, which: Callable[[KeyRecord], bool]) -> dict[str, Any]:
    keys = {}
    for key_id, entry in doc.get("keys", {}).items():
        gone = which(parse_key(key_id, entry)) and "revokedAt" not in entry
        keys[key_id] = {**entry, "revokedAt": utc_text(now)} if gone else entry
    return {**doc, "keys": keys, "updatedAt": utc_text(now)}


# ── tokens ──────────────────────────────────────────────────────────────────────────────────────────────────────


class TokenCreateRequest(TeamRequest):
    """A new key."""

    name: DisplayName = Field(description="What the key is for")
    role: Role = Field(description="owner, admin, member or viewer; not above your own")
    expires_in: Life = Field(timedelta(days=90), description="How long it lives, like 90d or 12h")
    scopes: tuple[Scope, ...] = Field(
        (), max_length=20, description="Limits, like project:shop, environment:staging, tool:slot_*"
    )


class TokenRequest(TeamRequest):
    """One key, by its id."""

    token_id: Identifier = Field(description="Id of the key (key_…)")


class TokenAnswer(Result):
    """A key. `key` is its text, shown this once; `last_used_at` is noted by the server, within a minute."""

    id: str
    name: str
    role: Role
    team_id: str
    scopes: list[str] = Field(default_factory=list)
    created_at: str
    expires_at: str | None = None
    revoked_at: str | None = None
    last_used_at: str | None = None
    last4: str | None = None
    key: str | None = None


class TokenResult(Result):
    """A key that was made or changed."""

    token: TokenAnswer


class TokenPage(Page):
    """Keys of a team, without their text."""

    data: list[TokenAnswer]


class TokenListRequest(PageRequest):
    """Whose keys."""

    team_id: TeamId | None = Field(None, description="Team; your own if not given")


def _answer(record: KeyRecord, text: str | None = None) -> TokenAnswer:
    return TokenAnswer(
        id=record.id,
        name=record.name,
        role=record.role,
        team_id=record.team_id,
        scopes=list(record.scopes),
        created_at=utc_text(record.created_at),
        expires_at=utc_text(record.expires_at) if record.expires_at else None,
        revoked_at=utc_text(record.revoked_at) if record.revoked_at else None,
        last4=record.last4,
        key=text,
    )


def require_not_above(caller: Principal, role: Role) -> None:
    """Nobody makes or ends a key with more rights than their own."""
    if not caller.role.covers(role):
        raise Forbidden(f"a key with role {caller.role} cannot do this to one with role {role}", hint="Ask an owner.")


def narrowed(caller: Principal, wanted: tuple[str, ...]) -> tuple[str, ...]:
    """The new key's scopes: what is asked for, never wider than the caller's own."""
    scopes = list(wanted)
    for kind in SCOPE_KINDS:
        own = [scope for scope in caller.scopes if scope.startswith(kind + ":")]
        asked = [scope for scope in wanted if scope.startswith(kind + ":")]
        if own and not asked:
            scopes += own
        elif own and not set(asked) <= set(own):
            raise Forbidden(f"your own key is limited to {', '.join(own)}", hint="Ask for scopes within your own.")
    return tuple(scopes)


async def _store_key(ctx: Context, issued: Issued) -> None:
    now = ctx.services.drivers.clock.now()
    await update(ctx.store, "api-keys", lambda doc: with_key(doc, issued.record, now))


@operation(effect=Effect.CHANGE, role=Role.ADMIN, reach=Reach.TEAM, idempotent=False)
async def token_create(ctx: Context, request: TokenCreateRequest) -> TokenResult:
    """Create a key for CI, an agent or a person. Its text is shown once; only its hash is kept."""
    require_not_above(ctx.caller, request.role)
    team_id, scopes = request.team_id or ctx.caller.team, narrowed(ctx.caller, request.scopes)
    wanted = NewKey(team_id, request.role, request.name, scopes, request.expires_in)
    issued = issue(wanted, by=ctx.caller.key_id, now=ctx.services.drivers.clock.now())
    await _store_key(ctx, issued)
    return TokenResult(token=_answer(issued.record, issued.text))


async def _own_key(ctx: Context, team_id: str, key_id: str) -> KeyRecord:
    stored = await ctx.store.get("api-keys")
    entry = stored.doc.get("keys", {}).get(key_id) if stored else None
    if entry is None or entry.get("teamId") != team_id:
        raise NotFound(f"your team has no key {key_id}", hint="List them with token_list.")
    return parse_key(key_id, entry)


def require_not_wider(caller: Principal, record: KeyRecord) -> None:
    """Raise Forbidden for a key with a higher role or wider scopes than the caller's own."""
    require_not_above(caller, record.role)
    if set(narrowed(caller, record.scopes)) != set(record.scopes):
        raise Forbidden("that key reaches further than your own", hint="Use a key without scopes.")


@operation(effect=Effect.DESTROY, role=Role.ADMIN, reach=Reach.TEAM)
async def token_revoke(ctx: Context, request: TokenRequest) -> TokenResult:
    """Revoke a key: it stops working at once, everywhere. Refused for the team's last usable owner key."""
    now, team_id = ctx.services.drivers.clock.now(), request.team_id or ctx.caller.team
    record = await _own_key(ctx, team_id, request.token_id)
    require_not_wider(ctx.caller, record)

    def revoke(doc: Document | None) -> Document:
        changed = revoked_keys(doc or {}, now, lambda one: one.id == record.id)
        if record.role is Role.OWNER:
            require_owner_left(changed, team_id, now)
        return changed

    await update(ctx.store, "api-keys", revoke)
    return TokenResult(token=_answer(await _own_key(ctx, team_id, request.token_id)))


def require_owner_left(doc: Mapping[str, Any], team_id: str, now: datetime) -> None:
    """Raise Conflict when the keys of this document leave the team without a usable owner key."""
    if not any(one.team_id == team_id and one.role is Role.OWNER and one.usable(now) for one in records_of(doc)):
        raise Conflict("the team would be left without an owner key", hint="Create another owner key first.")


@operation(effect=Effect.CHANGE, role=Role.ADMIN, reach=Reach.TEAM, idempotent=False)
async def token_rotate(ctx: Context, request: TokenRequest) -> TokenResult:
    """Rotate a key: a new one with the same rights, shown once; the old one works for 7 more days at most."""
    now, team_id = ctx.services.drivers.clock.now(), request.team_id or ctx.caller.team
    old = await _own_key(ctx, team_id, request.token_id)
    require_not_wider(ctx.caller, old)
    life = old.expires_at - old.created_at if old.expires_at else None
    issued = issue(NewKey(team_id, old.role, old.name, old.scopes, life), by=ctx.caller.key_id, now=now)
    new = issued.record.model_copy(update={"rotated_from": old.id})

    def rotate(doc: Document | None) -> Document:
        present = parse_key(old.id, (doc or {})["keys"][old.id])
        if not present.usable(now):
            raise Conflict(f"key {old.id} is no longer valid", hint="Create a new one with token_create.")
        ends = min(present.expires_at or now + OVERLAP, now + OVERLAP)
        return with_key(with_key(doc, present.model_copy(update={"expires_at": ends}), now), new, now)

    await update(ctx.store, "api-keys", rotate)
    return TokenResult(token=_answer(new, issued.text))


@operation(effect=Effect.READ, role=Role.ADMIN, reach=Reach.TEAM)
async def token_list(ctx: Context, request: TokenListRequest) -> TokenPage:
    """List the keys of your team: role, scopes, expiry; never their text."""
    team_id = request.team_id or ctx.caller.team
    stored = await ctx.store.get("api-keys")
    records = [record for record in records_of(stored.doc if stored else None) if record.team_id == team_id]
    used = await ctx.store.get(KEY_USE)
    last = used.doc if used else {}
    rows = [
        _answer(record).model_copy(update={"last_used_at": last.get(record.id)})
        for record in sorted(records, key=lambda record: record.created_at)
    ]
    return TokenPage.of(rows, request)
