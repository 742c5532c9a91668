"""A bridge: whatever an MCP client says over stdio goes to a server's `/mcp`, and the answers come back.

Messages are passed on as they are, so both protocol eras work and nothing has to be known about tools, resources or
progress. Only what streamable HTTP says in headers is taken from the message: the era's version, the method, the name.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import anyio
import httpx2
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.inbound import (
    MCP_METHOD_HEADER,
    MCP_NAME_HEADER,
    MCP_PROTOCOL_VERSION_HEADER,
    NAME_BEARING_METHODS,
    encode_header_value,
)
from mcp.shared.message import ClientMessageMetadata, SessionMessage
from mcp.types import (
    PROTOCOL_VERSION_META_KEY,
    JSONRPCNotification,
    JSONRPCRequest,
    JSONRPCResponse,
)

Streams = tuple[Any, Any]
CONNECT_SECONDS = 10.0
READ_SECONDS = 1800.0
REFUSED = -32000
"""JSON-RPC code of what HTTP refused; the reason is in the message."""


@contextlib.asynccontextmanager
async def connected(url: str, key: str) -> AsyncIterator[Streams]:
    """Streams to and from the server at `url` (its `/mcp`, or only host and port)."""
    timeout = httpx2.Timeout(CONNECT_SECONDS, read=READ_SECONDS)
    headers = {"X-API-Key": key}
    network = _Explaining(httpx2.AsyncHTTPTransport())
    async with (
        httpx2.AsyncClient(headers=headers, timeout=timeout, trust_env=False, transport=network) as http,
        streamable_http_client(address(url), http_client=http) as streams,
    ):
        yield streams


def address(url: str) -> str:
    """The full address of the server's MCP endpoint."""
    plain = url.rstrip("/")
    return plain if plain.endswith("/mcp") else f"{plain}/mcp"


class _Explaining(httpx2.AsyncBaseTransport):
    """Turns what is no JSON-RPC answer (a server that is away, a key that is refused) into one that a client can show, so
    that one failed request does not end the bridge."""

    def __init__(self, inner: httpx2.AsyncBaseTransport) -> None:
        self._inner = inner

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """One request."""
        try:
            response = await self._inner.handle_async_request(request)
        except httpx2.TransportError as error:
            where = f"{request.url.scheme}://{request.url.netloc.decode()}"
            return _problem(503, f"driver_unavailable: {where} cannot be reached ({type(error).__name__})", {})
        if response.status_code < 400 or not response.headers.get("content-type", "").startswith("application/json"):
            return response
        body = await response.aread()
        await response.aclose()
        try:
            said = json.loads(body)
        except ValueError:
            said = None
        if isinstance(said, dict) and said.get("success") is False:
            return _problem(response.status_code, f"{said.get('code')}: {said.get('error')}", said)
        return httpx2.Response(response.status_code, headers={"content-type": "application/json"}, content=body)

    async def aclose(self) -> None:
        """Let go of connections."""
        await self._inner.aclose()


def _problem(status: int, message: str, data: Mapping[str, Any]) -> httpx2.Response:
    error = {"code": REFUSED, "message": message, "data": dict(data)}
    return httpx2.Response(status, json={"jsonrpc": "2.0", "id": None, "error": error})


async def relay(client: Streams, server: Streams) -> None:
    """Pass messages on in both directions until the client closes its side."""
    era = _Era()
    read, write = client
    async with read, write, anyio.create_task_group() as group:
        group.start_soon(_from_server, server[0], write, era)
        await _from_client(read, server[1], era)
        group.cancel_scope.cancel()


async def _from_client(read: Any, write: Any, era: _Era) -> None:
    async with write:
        async for item in read:
            if isinstance(item, SessionMessage):
                await write.send(SessionMessage(item.message, metadata=era.outgoing(item.message)))


async def _from_server(read: Any, write: Any, era: _Era) -> None:
    async for item in read:
        if isinstance(item, SessionMessage):
            era.incoming(item.message)
            await write.send(SessionMessage(item.message))


class _Era:
    """Remembers what the handshake of the older protocol agreed on, since its later requests do not say it."""

    def __init__(self) -> None:
        self._initialize: Any = None
        self._version: str | None = None

    def outgoing(self, message: Any) -> ClientMessageMetadata | None:
        """The headers for a message of the client."""
        if not isinstance(message, JSONRPCRequest | JSONRPCNotification):
            return self._agreed()
        if message.method == "initialize" and isinstance(message, JSONRPCRequest):
            self._initialize = message.id
            return None
        params = message.params or {}
        version = (params.get("_meta") or {}).get(PROTOCOL_VERSION_META_KEY)
        if version is None:
            return self._agreed()
        headers = {MCP_PROTOCOL_VERSION_HEADER: str(version), MCP_METHOD_HEADER: message.method}
        name = _name(message.method, params)
        if name is not None:
            headers[MCP_NAME_HEADER] = encode_header_value(name)
        return ClientMessageMetadata(headers=headers)

    def incoming(self, message: Any) -> None:
        """Take note of the version in the answer to `initialize`."""
        if isinstance(message, JSONRPCResponse) and self._initialize is not None and message.id == self._initialize:
            self._version = message.result.get("protocolVersion")

    def _agreed(self) -> ClientMessageMetadata | None:
        if self._version is None:
            return None
        return ClientMessageMetadata(headers={MCP_PROTOCOL_VERSION_HEADER: self._version})


def _name(method: str, params: Mapping[str, Any]) -> str | None:
    field = NAME_BEARING_METHODS.get(method)
    value = params.get(field) if field else None
    return value if isinstance(value, str) else None
