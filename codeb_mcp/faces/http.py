"""`codeb serve`: one application on one port, for MCP clients, for `curl`, for Prometheus.

`/mcp` streamable HTTP · `/sse` and `/messages/` · `POST /api/tool` · `GET /api`, `/api/tools`, `/api/audit`,
`/api/logs/stream`, `/api/operations/{operationId}/stream` · `/health` · `/metrics`
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

import uvicorn
from mcp.server.context import ServerRequestContext
from mcp.server.sse import SseServerTransport
from mcp.server.streamable_http_manager import StreamableHTTPASGIApp, StreamableHTTPSessionManager
from starlette.applications import Starlette
from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.types import Receive, Scope, Send

from codeb_mcp import __version__
from codeb_mcp.app import opened
from codeb_mcp.faces import envelope
from codeb_mcp.faces.auth import BODY, CALLER, CORRELATION, Guard, reply
from codeb_mcp.faces.bodies import misshapen
from codeb_mcp.faces.calls import Caller
from codeb_mcp.faces.logs import forward_library_logs
from codeb_mcp.faces.mcp import Face, parts_of
from codeb_mcp.faces.metrics import Metrics
from codeb_mcp.faces.run_streams import RunStreams
from codeb_mcp.faces.streams import LogStreams
from codeb_mcp.model.access import Principal
from codeb_mcp.model.errors import (
    CodebError,
    DriverUnavailable,
    NotFound,
    Unauthenticated,
    UnknownTool,
)
from codeb_mcp.operations.catalog import CATALOG
from codeb_mcp.operations.context import Services
from codeb_mcp.operations.housekeeping import Housekeeper
from codeb_mcp.operations.invoke import Call, may
from codeb_mcp.operations.keys import KeyRing
from codeb_mcp.settings import Settings

GRACEFUL_SECONDS = 10
LET_GO_SECONDS = 0.1
BACKLOG = 2048
SESSION_IDLE_SECONDS = 1800.0
MAX_SESSIONS = 1000
LISTS: Mapping[str, str] = {"/api/audit": "audit_list"}
"""GET routes that are an operation with its parameters in the query."""


async def message_sender(ctx: ServerRequestContext[Any, Any]) -> Principal:
    """Who sent this message: the guard has looked it up for the very request that carried it."""
    caller = ctx.request.scope.get(CALLER) if ctx.request is not None else None
    if not isinstance(caller, Principal):
        raise Unauthenticated("API key required", hint="Send the key as X-API-Key.")
    return caller


class Api:
    """The routes beside MCP."""

    def __init__(self, services: Services, caller: Caller, metrics: Metrics, leaving: asyncio.Event) -> None:
        self._services = services
        self._caller = caller
        self._leaving = leaving
        self._metrics = metrics
        self._streams = LogStreams(caller)
        self._run_streams = RunStreams(caller)
        self._started = time.monotonic()

    async def tool(self, scope: Scope, receive: Receive, send: Send) -> None:
        """`POST /api/tool`."""
        caller, correlation, body = scope[CALLER], scope[CORRELATION], scope[BODY]
        if (wrong := misshapen(body)) is not None:
            named = "fields" in wrong.detail
            status, tool = (None, body["tool"]) if named else (400, None)
            return await reply(send, envelope.failure(wrong, correlation, status=status, tool=tool))
        call = Call(body["tool"], body.get("params") or {}, caller, correlation)
        return await reply(send, await self._answer(call))

    async def _answer(self, call: Call) -> envelope.Reply:
        started = time.perf_counter()
        try:
            return envelope.success(await self._caller(call), call.tool, call.correlation_id)
        except UnknownTool as unknown:
            return envelope.unknown_tool(unknown, call.tool, _allowed(call.caller), call.correlation_id)
        except CodebError as error:
            took = (time.perf_counter() - started) * 1000
            return envelope.failure(error, call.correlation_id, tool=call.tool, duration_ms=took)
        except asyncio.CancelledError:
            if not self._leaving.is_set():
                raise
            # The time for requests to end is over. The caller still is there and gets an answer it can read.
            ending = DriverUnavailable(
                "the server is ending",
                hint="Its run stays open: repeat the call when it is back, or look with operation_list how it ended.",
            )
            return envelope.failure(ending, call.correlation_id, tool=call.tool)

    async def listed(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A GET route that is an operation."""
        arguments = _numbers(_query(scope))
        await reply(send, await self._answer(Call(LISTS[scope["path"]], arguments, scope[CALLER], scope[CORRELATION])))

    async def stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        """`GET /api/logs/stream`."""
        try:
            stream = await self._streams.open(scope[CALLER], _query(scope), scope[CORRELATION])
        except CodebError as error:
            return await reply(send, envelope.failure(error, scope[CORRELATION]))
        return await stream(scope, receive, send)

    async def run_stream(self, scope: Scope, receive: Receive, send: Send) -> None:
        """`GET /api/operations/{operationId}/stream`."""
        try:
            run_id = scope["path_params"]["operation_id"]
            stream = await self._run_streams.open(scope[CALLER], run_id, scope[CORRELATION])
        except CodebError as error:
            return await reply(send, envelope.failure(error, scope[CORRELATION]))
        return await stream(scope, receive, send)

    async def index(self, request: Request) -> Response:
        """`GET /api`."""
        tools = _allowed(request.scope[CALLER])
        doc = {"name": "CodeB", "version": __version__, "tools": tools, "mcp": "/mcp", "success": True}
        return _response(envelope.plain(doc))

    async def tools(self, request: Request) -> Response:
        """`GET /api/tools`: the caller's role and, per tool, whether it may."""
        caller = request.scope[CALLER]
        rows = [
            {
                "name": name,
                "description": CATALOG[name].summary,
                "requiredRole": CATALOG[name].role.value,
                "permission": CATALOG[name].permission,
                "allowed": may(CATALOG[name], caller),
                "aliases": list(CATALOG[name].aliases),
            }
            for name in CATALOG
        ]
        return _response(
            envelope.plain({"success": True, "role": caller.role.value, "team": caller.team, "tools": rows})
        )

    async def health(self, request: Request) -> Response:
        """`GET /health`: this process is up; `health_check` looks further."""
        doc = {
            "success": True,
            "status": "healthy",
            "version": __version__,
            "timestamp": envelope.timestamp(),
            "uptime": round(time.monotonic() - self._started, 1),
        }
        return _response(envelope.plain(doc))

    async def metrics(self, request: Request) -> Response:
        """`GET /metrics`."""
        text = await self._metrics.text(self._services)
        return Response(text, headers={"content-type": self._metrics.content_type})


def _allowed(caller: Principal) -> list[str]:
    return [name for name in CATALOG if may(CATALOG[name], caller)]


def _query(scope: Scope) -> dict[str, str]:
    return dict(QueryParams(scope["query_string"]))


def _numbers(query: Mapping[str, str]) -> dict[str, Any]:
    """A query has only texts; digits are meant as numbers."""
    return {
        key: int(value) if value.isascii() and value.isdigit() and len(value) < 10 else value
        for key, value in query.items()
    }


def _response(answer: envelope.Reply) -> Response:
    status, headers, body = answer
    return Response(body, status_code=status, headers={name.decode(): value.decode() for name, value in headers})


class _Endpoint:
    """Lets Starlette treat a method as an ASGI application: no request and response objects on the busy route."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


async def _not_served(request: Request, error: Exception) -> Response:
    """404 and 405 in our envelope."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    what = "there is no such address" if status == 404 else "this address does not take that method"
    known = NotFound(what, hint="GET /api tells what there is; tools are called by POST /api/tool.")
    return _response(envelope.failure(known, request.scope.get(CORRELATION, ""), status=status))


class SseEndpoint:
    """`GET /sse`: one MCP connection; its messages come by POST to `/messages/`."""

    def __init__(self, face: Face, transport: SseServerTransport) -> None:
        self._server = face.server()
        self._transport = transport

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._transport.connect_sse(scope, receive, send) as (read, write):
            await self._server.run(read, write, self._server.create_initialization_options())


def build_app(
    services: Services,
    *,
    background: Sequence[Any] = (),
    ring: KeyRing | None = None,
    leaving: asyncio.Event | None = None,
) -> Starlette:
    """The application on open services. `background`: coroutine functions that run as long as it does; `ring` finds the
    callers and notes which keys were used; `leaving` ends streams that nobody else would end."""
    metrics, leaving = Metrics(services), leaving or asyncio.Event()
    caller = Caller(services, metrics.observe)
    face = Face(parts_of(services, caller), message_sender)
    limit = services.settings.server.max_body_bytes
    manager = StreamableHTTPSessionManager(
        face.server(),
        max_request_body_size=limit,
        session_idle_timeout=SESSION_IDLE_SECONDS,
        max_sessions=MAX_SESSIONS,
    )
    sse = SseServerTransport("/messages/", max_request_body_size=limit)
    api, mcp = Api(services, caller, metrics, leaving), StreamableHTTPASGIApp(manager)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(work()) for work in background]
        try:
            async with manager.run():
                yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    return Starlette(
        lifespan=lifespan,
        middleware=[
            Middleware(
                Guard,
                services=services,
                ring=ring or KeyRing(),
                busy={"/api/tool": api.tool, "/mcp": mcp},
                leaving=leaving,
            )
        ],
        exception_handlers={HTTPException: _not_served},
        routes=[
            Route("/api/tool", _Endpoint(api.tool), methods=["POST"]),
            Route("/mcp", mcp),
            Route("/sse", SseEndpoint(face, sse), methods=["GET"]),
            Mount("/messages/", sse.handle_post_message),
            Route("/api", api.index),
            Route("/api/tools", api.tools),
            *(Route(path, _Endpoint(api.listed), methods=["GET"]) for path in LISTS),
            Route("/api/logs/stream", _Endpoint(api.stream), methods=["GET"]),
            Route("/api/operations/{operation_id}/stream", _Endpoint(api.run_stream), methods=["GET"]),
            Route("/health", api.health),
            Route("/metrics", api.metrics),
        ],
    )


class Server(uvicorn.Server):
    """Ends by returning, so that what was opened around it is closed in order. uvicorn itself raises the signal again,
    which would end the process at once. A second SIGINT does not wait for requests."""

    def __init__(self, config: uvicorn.Config, leaving: asyncio.Event) -> None:
        super().__init__(config)
        self._leaving = leaving

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Listen to SIGTERM and SIGINT for the time of the block."""
        loop, numbers = asyncio.get_running_loop(), (signal.SIGTERM, signal.SIGINT)

        def asked(number: int) -> None:
            self._leaving.set()
            self.handle_exit(number, None)

        for number in numbers:
            loop.add_signal_handler(number, asked, number)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)


def server_config(app: Starlette, settings: Settings) -> uvicorn.Config:
    """How uvicorn serves the application."""
    return uvicorn.Config(
        app,
        host=settings.server.host,
        port=settings.server.port,
        log_config=None,
        access_log=False,
        server_header=False,
        # Nobody's word is taken for where a request comes from: source scopes and login limits go by the peer.
        proxy_headers=False,
        timeout_graceful_shutdown=GRACEFUL_SECONDS,
        timeout_keep_alive=75,
        ws="none",
    )


def listening(host: str, port: int) -> list[socket.socket]:
    """Sockets that take connections on every address of the host; raises DriverUnavailable when one is taken."""
    found: list[socket.socket] = []
    try:
        flags = socket.AI_PASSIVE
        for family, kind, protocol, _, address in dict.fromkeys(
            socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=flags)
        ):
            found.append(socket.socket(family, kind, protocol))
            found[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                found[-1].setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            found[-1].bind(address)
            found[-1].listen(BACKLOG)  # at once: a port that is only bound can be bound twice
    except OSError as error:
        for listener in found:
            listener.close()
        raise DriverUnavailable(
            f"port {port} of {host} cannot be listened on: {error.strerror}",
            hint="End what listens there, or choose another port with --port or server.port in codeb.toml.",
            host=host,
            port=port,
        ) from None
    return found


async def let_go(services: Services, leaving: asyncio.Event) -> None:
    """Once the server is leaving, stop driving its runs, so that calls that wait for them are answered: the runs stay open in
    their journals. Again and again, because calls that are under way may still begin one."""
    await leaving.wait()
    while True:
        await services.runs.close()
        await asyncio.sleep(LET_GO_SECONDS)


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT. Runs that are open then stay open in their journals; the next start takes them up.

    Raises DriverUnavailable, before anything is done, when the address cannot be listened on.
    """
    async with contextlib.AsyncExitStack() as stack:
        listeners = listening(settings.server.host, settings.server.port)
        for listener in listeners:
            stack.callback(listener.close)
        services = await stack.enter_async_context(opened(settings))
        forward_library_logs(services.log)
        ring, leaving = KeyRing(), asyncio.Event()
        letting_go = functools.partial(let_go, services, leaving)
        app = build_app(services, background=[Housekeeper(services, ring).run, letting_go], ring=ring, leaving=leaving)
        resumed = await services.runs.resume_all()
        where = {"host": settings.server.host, "port": settings.server.port}
        services.log.info("codeb serves", **where, version=__version__, resumed=resumed)
        gc.collect()
        gc.freeze()  # what is there by now stays: the collector need not look at it again and again
        await Server(server_config(app, settings), leaving).serve(listeners)
