"""The inventory: which servers there are, and by which host key each is known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, ValidationError

from codeb_mcp.model.access import Reach, Role
from codeb_mcp.model.errors import Conflict, HostKeyChanged, InvalidRequest, NotFound, RegistryDamaged
from codeb_mcp.model.names import Domain, Port
from codeb_mcp.model.server import (
    Address,
    EngineAddress,
    Fingerprint,
    Server,
    ServerKey,
    ServerRole,
    UserName,
    entries_of,
    fingerprint,
)
from codeb_mcp.model.times import utc_text
from codeb_mcp.operations.catalog import Effect, Page, PageRequest, Request, Result, operation
from codeb_mcp.operations.context import Context
from codeb_mcp.operations.ownership import require_unlimited
from codeb_mcp.operations.state import REPAIR, load_ssot
from codeb_mcp.registry.store import Document, StateStore, update


class ServerAddRequest(Request):
    """A server as it is to stand in the inventory."""

    server_key: ServerKey = Field(description="Its name in the inventory, like app or storage")
    host: Address = Field(description="IP address or host name")
    role: ServerRole = Field(description="application, streaming, database or backup")
    connection: str = Field("ssh", pattern="^(ssh|local)$", description="ssh, or local for this very machine")
    port: Port = Field(22, description="Port of its sshd")
    user: UserName = Field("codeb", description="User to log in as")
    domain: Domain | None = Field(None, description="Its public name")
    engine: EngineAddress | None = Field(None, description="Container engine; without it, that of its role")
    accept_fingerprint: Fingerprint | None = Field(
        None,
        description="SHA256 fingerprint of the host key that you have compared; without it the keys are only shown",
    )
    replace: bool = Field(False, description="Change a server that is in the inventory")


class HostKeyAnswer(Result):
    """A host key that the server shows."""

    type: str
    fingerprint: str


class ServerAnswer(Result):
    """One server. `pinned`: its host key was accepted, so it can be used."""

    server_key: str
    host: str
    role: ServerRole
    connection: str
    port: int
    user: str
    domain: str | None = None
    engine: str | None = None
    pinned: bool
    fingerprint: str | None = None
    added_at: str | None = None
    added_by: str | None = None


class ServerAddResult(Result):
    """`added` is false when nothing was stored yet, because a fingerprint has to be accepted first."""

    added: bool
    changed: bool
    server: ServerAnswer
    host_keys: list[HostKeyAnswer] = Field(default_factory=list)
    summary: str
    next_step: str | None = None


class ServerPage(Page):
    """The inventory."""

    data: list[ServerAnswer]


class ServerRemoveRequest(Request):
    """Which server to forget; `confirm` repeats its name."""

    server_key: ServerKey = Field(description="Its name in the inventory")
    confirm: str = Field(max_length=40, description="The name once more")


class ServerRemoveResult(Result):
    """What was forgotten."""

    removed: str
    summary: str


def parse_server(key: str, entry: Any) -> Server:
    """One entry of the inventory; raises RegistryDamaged with the field that is wrong."""
    try:
        return Server.model_validate(dict(entry))
    except (ValidationError, TypeError, ValueError) as error:
        where = ".".join(map(str, error.errors()[0]["loc"])) if isinstance(error, ValidationError) else "its entry"
        raise RegistryDamaged(f"ssot (server {key}) is not valid at {where}", hint=REPAIR, document="ssot") from None


async def load_servers(store: StateStore) -> dict[str, Server]:
    """The inventory by name, sorted."""
    entries = entries_of(await load_ssot(store))
    return {key: parse_server(key, entries[key]) for key in sorted(entries)}


async def load_server(store: StateStore, key: str) -> Server:
    """The server; raises NotFound when there certainly is none."""
    entries = entries_of(await load_ssot(store))
    if key not in entries:
        known = ", ".join(sorted(entries)) or "none"
        raise NotFound(
            f"there is no server {key}", hint=f"The inventory has: {known}. Add it with server_add.", server=key
        )
    return parse_server(key, entries[key])


@operation(effect=Effect.CHANGE, role=Role.ADMIN, reach=Reach.PLATFORM)
async def server_add(ctx: Context, request: ServerAddRequest) -> ServerAddResult:
    """Add a server to the inventory, once the fingerprint of its SSH host key was accepted.

    The first call shows the fingerprints of its host keys and stores nothing; the second one, with acceptFingerprint, pins
    that key: from then on only the server that has it is talked to.
    """
    require_unlimited(ctx.caller)
    present = entries_of(await load_ssot(ctx.store)).get(request.server_key)
    if present is not None and not request.replace and _differs(parse_server(request.server_key, present), request):
        raise Conflict(
            f"server {request.server_key} is in the inventory with other values",
            hint="Look at it with server_list; repeat with replace: true to change it.",
            server=request.server_key,
        )
    _require_still_fit(request, present, users_of(await load_ssot(ctx.store), request.server_key))
    if request.connection == "local":
        return await _store(ctx, request, None, [])
    if request.accept_fingerprint is None and present is not None and not request.replace:
        kept = parse_server(request.server_key, present)
        if kept.host_key is not None:
            return _unchanged(request.server_key, kept)
    shown = await ctx.services.drivers.hosts.host_keys(request.host, request.port)
    answers = [HostKeyAnswer(type=one.split()[0], fingerprint=fingerprint(one)) for one in shown]
    if request.accept_fingerprint is None:
        return _to_be_accepted(request, answers)
    accepted = next((one for one in shown if fingerprint(one) == request.accept_fingerprint), None)
    if accepted is None:
        raise HostKeyChanged(
            f"{request.host}:{request.port} does not show a host key with that fingerprint",
            hint="Compare with `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` on the server itself. If the server was "
            "not set up anew, somebody may be in between.",
            server=request.server_key,
            shown=[one.fingerprint for one in answers],
        )
    return await _store(ctx, request, accepted, answers)


def _require_still_fit(request: ServerAddRequest, present: Any, users: list[str]) -> None:
    """Raise Conflict for another role of a server that projects use in its present one."""
    former = parse_server(request.server_key, present).role if present is not None else request.role
    if users and former is not request.role:
        raise Conflict(
            f"server {request.server_key} is used as {former} by {', '.join(users[:10])}",
            hint="Move or delete what uses it first, or add the server under another name.",
            server=request.server_key,
            usedBy=users[:50],
        )


def _differs(server: Server, request: ServerAddRequest) -> bool:
    wanted = _wanted(request)
    have = server.dump()
    named = {key: value for key, value in wanted.items() if key not in ("addedAt", "addedBy", "hostKey")}
    defaults = Server(host=server.host, role=server.role).model_dump(mode="json", by_alias=True)
    return any(have.get(key, defaults.get(key)) != value for key, value in named.items())


def _wanted(request: ServerAddRequest) -> dict[str, Any]:
    given = request.model_dump(mode="json", by_alias=True, exclude_none=True)
    return {key: value for key, value in given.items() if key not in ("serverKey", "acceptFingerprint", "replace")}


def _to_be_accepted(request: ServerAddRequest, keys: list[HostKeyAnswer]) -> ServerAddResult:
    if not keys:
        raise InvalidRequest(
            f"{request.host}:{request.port} shows no host key that can be pinned",
            hint="It needs an ed25519, ECDSA or RSA host key.",
        )
    server = Server(host=request.host, role=request.role, port=request.port, user=request.user)
    return ServerAddResult(
        added=False,
        changed=False,
        server=answer_of(request.server_key, server),
        host_keys=keys,
        summary=f"{request.host} shows {keys[0].fingerprint}; nothing was stored",
        next_step="Compare with `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` on the server itself, then repeat the call "
        "with acceptFingerprint.",
    )


def _unchanged(key: str, server: Server) -> ServerAddResult:
    said = f"{key} is in the inventory already"
    return ServerAddResult(added=True, changed=False, server=answer_of(key, server), summary=said)


async def _store(
    ctx: Context, request: ServerAddRequest, host_key: str | None, keys: list[HostKeyAnswer]
) -> ServerAddResult:
    now = utc_text(ctx.services.drivers.clock.now())
    key, changed = request.server_key, False
    stored: dict[str, Any] = {}

    def apply(doc: Document | None) -> Document:
        nonlocal changed, stored
        servers = dict(entries_of(doc or {}))
        former = servers.get(key) or {}
        stored = {**former, **_wanted(request)}
        if host_key is not None:
            stored["hostKey"] = host_key
        changed = stored != former
        if not changed:
            return doc or {}
        stored = {"addedAt": now, "addedBy": ctx.caller.key_id, **stored}
        return {**(doc or {}), "servers": {**servers, key: stored}}

    await update(ctx.store, "ssot", apply)
    done = "added" if changed else "is in the inventory already"
    return ServerAddResult(
        added=True,
        changed=changed,
        server=answer_of(key, parse_server(key, stored)),
        host_keys=keys,
        summary=f"{key} {done}",
        next_step="server_check tells whether it is ready for its role.",
    )


@operation(effect=Effect.READ, role=Role.VIEWER, reach=Reach.PLATFORM)
async def server_list(ctx: Context, request: PageRequest) -> ServerPage:
    """List the servers of the inventory with role, address and the fingerprint of the accepted host key."""
    servers = await load_servers(ctx.store)
    return ServerPage.of([answer_of(key, server) for key, server in servers.items()], request)


def answer_of(key: str, server: Server) -> ServerAnswer:
    """A server as callers see it."""
    return ServerAnswer(
        server_key=key,
        host=server.host,
        role=server.role,
        connection=server.connection,
        port=server.port,
        user=server.user,
        domain=server.domain,
        engine=server.engine,
        pinned=server.connection == "local" or server.host_key is not None,
        fingerprint=fingerprint(server.host_key) if server.host_key else None,
        added_at=utc_text(server.added_at) if server.added_at else None,
        added_by=server.added_by,
    )


@operation(effect=Effect.DESTROY, role=Role.ADMIN, reach=Reach.PLATFORM)
async def server_remove(ctx: Context, request: ServerRemoveRequest) -> ServerRemoveResult:
    """Forget a server: its entry in the inventory and its pinned host key.

    Nothing on the server itself is changed. Refused while a project uses it.
    """
    require_unlimited(ctx.caller)
    key = request.server_key
    if request.confirm != key:
        raise InvalidRequest("confirm: must repeat the server's name", hint=f"Send confirm: {key}.")

    def apply(doc: Document | None) -> Document:
        servers = dict(entries_of(doc or {}))
        if key not in servers:
            raise NotFound(f"there is no server {key}", hint="List them with server_list.", server=key)
        if users := users_of(doc or {}, key):
            raise Conflict(
                f"server {key} is used by {', '.join(users[:10])}",
                hint="Move or delete what uses it first.",
                server=key,
                usedBy=users[:50],
            )
        del servers[key]
        return {**(doc or {}), "servers": servers}

    await update(ctx.store, "ssot", apply)
    return ServerRemoveResult(removed=key, summary=f"{key} is no longer in the inventory")


def users_of(ssot: Mapping[str, Any], key: str) -> list[str]:
    """The projects that name the server, anywhere under a key `server` or `servers` of their entry."""
    projects = ssot.get("projects", {})
    return sorted(name for name, entry in projects.items() if _names(entry, key))


def _names(value: Any, key: str) -> bool:
    if isinstance(value, Mapping):
        named = [value.get("server"), *_listed(value.get("servers"))]
        return key in named or any(_names(item, key) for item in value.values())
    return isinstance(value, list) and any(_names(item, key) for item in value)


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else []
