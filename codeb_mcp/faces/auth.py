"""What stands before every route: whose host and page, which id, how large, which key.

`Guard` is a plain ASGI middleware. It rebuilds the caller from the key's record at every request, so a revoked key stops
at its next message on whatever session, and it ends streams within a second.
"""

from __future__ import annotations

import asyncio
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from codeb_mcp.faces import envelope
from codeb_mcp.faces.bodies import misshapen, parse
from codeb_mcp.faces.calls import correlation_id
from codeb_mcp.model.access import Principal
from codeb_mcp.model.errors import (
    Bug,
    CodebError,
    Forbidden,
    InvalidRequest,
    PayloadTooLarge,
    Unauthenticated,
    UnsupportedMediaType,
)
from codeb_mcp.operations.context import Services
from codeb_mcp.operations.invoke import limit
from codeb_mcp.operations.keys import KeyRing

OPEN = frozenset({"/health"})
"""Paths that need no key."""
METRICS = "/metrics"
"""Needs a key unless this machine itself asks."""
LISTED = frozenset({"/api/audit"})
"""A GET of these is an operation, which counts it against the key's budget itself."""
SESSIONS = ("/mcp", "/sse", "/messages")
"""Paths whose sessions the SDK keeps."""
STREAMS = frozenset({"/mcp", "/sse", "/api/logs/stream"})
RUN_STREAM = re.compile(r"/api/operations/[^/]+/stream")
"""A GET of these goes on until somebody ends it."""
LOOK_SECONDS = 0.5
END_SECONDS = 2.0
BODY_SECONDS = 30.0
KNOWN_HOSTS = 64
LOCAL = ("127.0.0.1", "localhost", "[::1]")
LOOPBACK = frozenset({"127.0.0.1", "::1", "::ffff:127.0.0.1"})

CALLER, BODY, CORRELATION = "codeb.caller", "codeb.body", "codeb.correlation"


class Doors:
    """Host and Origin of requests that are let in. This machine's own names always are, with any port."""

    def __init__(self, hosts: Sequence[str], origins: Sequence[str]) -> None:
        self._hosts = frozenset(host.lower() for host in hosts)
        self._seen: set[str] = set()
        self._origins = frozenset(origin.lower().rstrip("/") for origin in origins)

    def host(self, value: str) -> bool:
        """Whether the Host header names us. `name` in the settings allows it without a port, `name:*` with any."""
        if value in self._seen:
            return True
        ours = self._names_us(value.lower())
        if ours and len(self._seen) < KNOWN_HOSTS:
            self._seen.add(value)
        return ours

    def _names_us(self, value: str) -> bool:
        if self.is_local(value):
            return True
        name, port = _split(value)
        return value in self._hosts or (port is not None and port.isdecimal() and f"{name}:*" in self._hosts)

    def is_local(self, value: str) -> bool:
        """Whether the Host header is one of this machine's own names."""
        name, port = _split(value.lower())
        return name in LOCAL and (port is None or port.isdecimal())

    def origin(self, value: str) -> bool:
        """Whether a page of that origin may talk to us."""
        value = value.lower().rstrip("/")
        scheme, _, rest = value.partition("://")
        if scheme in ("http", "https") and _split(rest)[0] in LOCAL:
            return self.host(rest)
        return value in self._origins


def _split(host: str) -> tuple[str, str | None]:
    """Name and port; an IPv6 address keeps its brackets."""
    name, colon, port = host.rpartition(":")
    if colon and not host.endswith("]"):
        return name, port
    return host, None


class Guard:
    """Lets in what may come in, and hands on caller, body and correlation id in the scope."""

    def __init__(
        self, app: ASGIApp, services: Services, ring: KeyRing, busy: Mapping[str, ASGIApp], leaving: asyncio.Event
    ) -> None:
        """`busy`: applications for POST to exactly these paths, which need no router. `leaving` ends all streams."""
        server = services.settings.server
        self._app = app
        self._busy = busy
        self._leaving = leaving
        self._services = services
        self._ring = ring
        self._doors = Doors(server.allowed_hosts, server.allowed_origins)
        self._limit = server.max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = _headers(scope)
        correlation = correlation_id(headers.get(b"x-correlation-id", b"").decode("latin-1"))
        scope[CORRELATION] = correlation
        answering = _Answering(send, correlation)
        try:
            await self._serve(scope, headers, receive, answering)
        except CodebError as error:
            await answering.fail(error, status=400 if isinstance(error, InvalidRequest) else None)
        except Exception:
            self._services.log.exception("request crashed", path=scope["path"], correlation_id=correlation)
            await answering.fail(Bug("the request crashed", hint=f"Look for {correlation} in the server's log."))

    async def _serve(self, scope: Scope, headers: dict[bytes, bytes], receive: Receive, send: _Answering) -> None:
        if (refused := self._stranger(headers)) is not None:
            await send.fail(refused[1], status=refused[0])
            return
        if scope["path"] in OPEN or (scope["path"] == METRICS and self._from_here(scope, headers)):
            await self._app(scope, receive, send)
            return
        await self._admit(scope, headers)
        if scope["method"] == "POST":
            receive = await self._counted_body(scope, headers, receive)
            if (direct := self._busy.get(scope["path"])) is not None:
                await direct(scope, receive, send)
                return
        elif scope["path"] not in LISTED or scope["method"] != "GET":
            await limit(self._services, scope[CALLER])
        if scope["method"] == "GET" and (scope["path"] in STREAMS or RUN_STREAM.fullmatch(scope["path"])):
            await self._while_valid(scope, headers, receive, send)
        else:
            await self._app(scope, receive, send)

    def _stranger(self, headers: dict[bytes, bytes]) -> tuple[int, CodebError] | None:
        host = headers.get(b"host", b"").decode("latin-1")
        if not self._doors.host(host):
            hint = "Use an address that server.allowed_hosts in codeb.toml lists."
            return 421, InvalidRequest("the Host header does not name this server", hint=hint)
        origin = headers.get(b"origin")
        if origin is not None and not self._doors.origin(origin.decode("latin-1")):
            hint = "Add the page's origin to server.allowed_origins in codeb.toml if it is yours."
            return 403, Forbidden("pages of this origin are not allowed here", hint=hint)
        return None

    async def _admit(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        """Find the caller; raises Unauthenticated, and Forbidden for metrics, which name every team's projects."""
        caller = scope[CALLER] = await self.authenticate(scope, headers)
        if scope["path"].startswith(SESSIONS):
            scope["user"] = _user(caller.key_id, caller.role.value)
        if scope["path"] == METRICS and not caller.platform:
            hint = "Use a key of the team that runs this installation."
            raise Forbidden("metrics name every team's projects", hint=hint, permission="metrics.read")

    def _from_here(self, scope: Scope, headers: dict[bytes, bytes]) -> bool:
        """Whether this machine asks itself. Behind a proxy every peer is this machine; then the Host is the public one."""
        client = scope.get("client")
        local = self._doors.is_local(headers.get(b"host", b"").decode("latin-1"))
        return local and client is not None and client[0] in LOOPBACK

    async def _counted_body(self, scope: Scope, headers: dict[bytes, bytes], receive: Receive) -> Receive:
        """The body, counted against the key's budget unless an operation is going to do so. Raises RateLimited."""
        try:
            receive = await self._body(scope, headers, receive)
        except CodebError:
            await limit(self._services, scope[CALLER])
            raise
        if not _calls_an_operation(scope):
            await limit(self._services, scope[CALLER])
        return receive

    async def authenticate(self, scope: Scope, headers: dict[bytes, bytes]) -> Principal:
        """The caller behind the key, from its record as it stands now."""
        text = headers.get(b"x-api-key") or _bearer(headers.get(b"authorization", b""))
        if not text:
            hint = "Send the key as X-API-Key, or as Authorization: Bearer."
            raise Unauthenticated("API key required", hint=hint, reason="missing")
        client = scope.get("client")
        source = client[0] if client else None
        return await self._ring.authenticate(self._services, text.decode("latin-1"), via="http", source=source)

    async def _body(self, scope: Scope, headers: dict[bytes, bytes], receive: Receive) -> Receive:
        """Read the body up to the limit, whatever the request says about its length, and parse it."""
        media = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
        if media != b"application/json":
            raise UnsupportedMediaType("the body must be application/json", hint="Set Content-Type: application/json.")
        try:
            async with asyncio.timeout(BODY_SECONDS):
                raw = await self._read(headers, receive)
        except TimeoutError:
            raise InvalidRequest("the body did not arrive in time", hint="Send it again.") from None
        scope[BODY] = parse(raw)
        return _replay(raw, receive)

    async def _read(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        said = headers.get(b"content-length", b"")
        if said.isdigit() and int(said) > self._limit:
            raise self._too_large()
        raw, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise InvalidRequest("the client went away", hint="Send it again.")
            part = message.get("body", b"")
            size += len(part)
            if size > self._limit:
                raise self._too_large()
            raw.append(part)
            if not message.get("more_body", False):
                return b"".join(raw)

    def _too_large(self) -> PayloadTooLarge:
        return PayloadTooLarge(f"the body is larger than {self._limit} bytes", hint="Send a smaller request.")

    async def _while_valid(self, scope: Scope, headers: dict[bytes, bytes], receive: Receive, send: _Answering) -> None:
        """Serve a stream until it ends, the client or the server goes, or the key is no longer valid. Then the stream is told
        that its client has gone, so that it cleans up as usual."""
        invalid = asyncio.Event()
        stream = asyncio.ensure_future(self._app(scope, _until(invalid, receive), send))
        try:
            while not stream.done():
                await asyncio.wait({stream}, timeout=LOOK_SECONDS)
                if not stream.done() and (self._leaving.is_set() or not await self._still_valid(scope, headers)):
                    self._services.log.info("a stream was ended", path=scope["path"], leaving=self._leaving.is_set())
                    invalid.set()
                    await asyncio.wait({stream}, timeout=END_SECONDS)
                    break
            if stream.done():
                await stream
        finally:
            stream.cancel()
            await asyncio.gather(stream, return_exceptions=True)
        await send.finish()

    async def _still_valid(self, scope: Scope, headers: dict[bytes, bytes]) -> bool:
        try:
            await self.authenticate(scope, headers)
        except CodebError as error:
            return error.http_status not in (401, 403, 429)
        return True


class _Answering:
    """`send` that adds the correlation id and knows whether an answer has begun."""

    def __init__(self, send: Send, correlation: str) -> None:
        self._send = send
        self._correlation = correlation
        self.begun = False
        self.ended = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.begun = True
            own = (envelope.CORRELATION_HEADER, self._correlation.encode())
            message = {**message, "headers": [*message.get("headers", []), own]}
        elif message["type"] == "http.response.body":
            self.ended = not message.get("more_body", False)
        await self._send(message)

    async def finish(self) -> None:
        """End an answer that was left in the middle."""
        if self.begun and not self.ended:
            await self({"type": "http.response.body", "body": b"", "more_body": False})

    async def fail(self, error: CodebError, *, status: int | None = None) -> None:
        """Answer with the error, unless something has been answered already."""
        if not self.begun:
            await reply(self, envelope.failure(error, self._correlation, status=status))


async def reply(send: Send, answer: envelope.Reply) -> None:
    """Send a whole answer."""
    status, headers, body = answer
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})


def _headers(scope: Scope) -> dict[bytes, bytes]:
    """Headers by lower-case name. A name that comes twice is refused where it matters: two hosts or keys are none."""
    given = scope["headers"]
    found = dict(given)
    if len(found) != len(given):
        found = {}
        for name, value in given:
            found[name] = found[name] + b", " + value if name in found else value
    return found


def _bearer(value: bytes) -> bytes:
    scheme, _, key = value.partition(b" ")
    return key.strip() if scheme.lower() == b"bearer" else b""


def _calls_an_operation(scope: Scope) -> bool:
    """Whether the body is going to reach an operation: a call over `/api/tool`, or a tool's over MCP."""
    body = scope[BODY]
    if not isinstance(body, dict):
        return False
    if scope["path"] == "/api/tool":
        return misshapen(body) is None
    params = body.get("params")
    return (
        scope["path"].startswith(SESSIONS)
        and body.get("method") == "tools/call"
        and "id" in body
        and isinstance(params, dict)
        and isinstance(params.get("name"), str)
        and isinstance(params.get("arguments", {}), dict)
    )


def _until(over: asyncio.Event, receive: Receive) -> Receive:
    """`receive` that says that the client has gone as soon as it is over."""

    async def first() -> Message:
        news = asyncio.ensure_future(receive())
        end = asyncio.ensure_future(over.wait())
        try:
            await asyncio.wait({news, end}, return_when=asyncio.FIRST_COMPLETED)
            return news.result() if news.done() else {"type": "http.disconnect"}
        finally:
            for task in (news, end):
                task.cancel()
            await asyncio.gather(news, end, return_exceptions=True)

    return first


def _replay(raw: bytes, receive: Receive) -> Receive:
    """`receive` that answers the body which has been read, then goes on."""
    pending: list[dict[str, Any]] = [{"type": "http.request", "body": raw, "more_body": False}]

    async def again() -> Message:
        return pending.pop() if pending else await receive()

    return again


@functools.lru_cache(4096)
def _user(key: str, role: str) -> AuthenticatedUser:
    """For the SDK, which binds sessions to it: no other key may use this key's session. The key's text is not handed on."""
    return AuthenticatedUser(AccessToken(token=key, client_id=key, scopes=[role], subject=key, claims={}))
