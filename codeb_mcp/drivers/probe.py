"""Ask a slot, or the public route, what a user would get."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from codeb_mcp.drivers.protocols import Answer
from codeb_mcp.model.errors import CodebError, InvalidRequest
from codeb_mcp.model.routes import SLOT_HEADER

if TYPE_CHECKING:
    from aiohttp import BaseConnector, ClientResponse, ClientSession

Authority = Callable[[], Awaitable[str | None]]
"""Answers root certificates (PEM), None for those of the system; raises our errors when they are not to be had."""
Locate = Callable[[str], Awaitable[str]]
LOOPBACK = "127.0.0.1"
READ_BYTES = 4096
HEAD_CHARS = 200
_SPEAKING = {"User-Agent": "codeb-probe", "Accept": "*/*", "Accept-Encoding": "identity"}


class HttpProber:
    """Implements `Prober`. Each question has its own connection, follows no redirect, keeps no cookie, reads 4 KiB at most.

    `locate`: for the slots of another machine; answers the path of a socket here that leads to `host:port` there.
    `address` and `port` are the proxy's public listener as seen from here; `tls` is how it serves: off (plain HTTP), internal
    (certificates of the proxy's own authority, whose root certificate is `authority`, a file or asked for) or acme (certificates that any
    client trusts, or those of `authority`). A failure never raises: the answer's `problem` tells it in words.
    """

    def __init__(
        self,
        *,
        address: str = "127.0.0.1",
        port: int = 80,
        tls: Literal["off", "internal", "acme"] = "off",
        authority: Path | Authority | None = None,
        locate: Locate | None = None,
    ) -> None:
        if tls == "internal" and authority is None and not ipaddress.ip_address(address).is_loopback:
            raise ValueError("TLS of an internal authority off this host needs the authority's root certificate")
        literal = f"[{address}]" if ":" in address else address
        self._public = f"{'http' if tls == 'off' else 'https'}://{literal}:{port}"
        self._tls = tls
        self._authority = authority
        self._locate = locate
        self._session: ClientSession | None = None

    async def port(self, port: int, path: str, *, timeout_seconds: float, address: str = LOOPBACK) -> Answer:
        """GET a slot directly on the port and address where it is published."""
        base = f"http://{f'[{address}]' if ':' in address else address}:{port}"
        if self._locate is None:
            return await self._get(self._connected(), base, path, None, timeout_seconds)
        from aiohttp import UnixConnector

        try:
            async with asyncio.timeout(timeout_seconds):
                there = await self._locate(base.removeprefix("http://"))
        except TimeoutError:
            return Answer(None, problem=_late(None, timeout_seconds))
        except CodebError as error:
            return Answer(None, problem=error.message)
        async with _session(UnixConnector(there, force_close=True)) as session:
            return await self._get(session, base, path, None, timeout_seconds)

    async def public(self, host: str, path: str, *, timeout_seconds: float) -> Answer:
        """GET through the proxy's public listener, with that host name in Host and, over TLS, in the handshake."""
        return await self._get(self._connected(), self._public, path, host, timeout_seconds)

    async def close(self) -> None:
        """Let go of connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _get(self, session: ClientSession, base: str, path: str, host: str | None, seconds: float) -> Answer:
        import aiohttp
        from yarl import URL

        if not re.fullmatch(r"/[!-~]*", path) or (host is not None and not re.fullmatch(r"[A-Za-z0-9.-]+", host)):
            raise InvalidRequest(
                "a probe needs a plain path and host name", hint="Correct the health path or the domain."
            )
        headers = {**_SPEAKING, "Host": host} if host else dict(_SPEAKING)
        status: int | None = None
        try:
            async with asyncio.timeout(seconds):
                tls = await self._context() if base.startswith("https") else True
                async with session.get(
                    URL(base + path, encoded=True),
                    headers=headers,
                    allow_redirects=False,
                    ssl=tls,
                    server_hostname=host if base.startswith("https") else None,
                ) as answer:
                    status = answer.status
                    return await _answer(answer)
        except TimeoutError:
            return Answer(None, problem=_late(status, seconds))
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return Answer(None, problem=_words(error, status))
        except CodebError as error:
            return Answer(None, problem=f"TLS cannot be verified: {error.message}")

    def _connected(self) -> ClientSession:
        if self._session is None:
            from aiohttp import TCPConnector

            self._session = _session(TCPConnector(force_close=True, limit=0))
        return self._session

    async def _context(self) -> ssl.SSLContext:
        if self._tls == "acme" and self._authority is None:
            return ssl.create_default_context()
        if isinstance(self._authority, Path):
            return ssl.create_default_context(cafile=self._authority)
        if self._authority is not None:
            return ssl.create_default_context(cadata=await self._authority())
        # Without the root certificate nobody could verify: Caddy made that authority itself. The constructor has made sure
        # that this talks to a loopback address only, where an attacker who could answer instead is root already.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context


def _session(connector: BaseConnector) -> ClientSession:
    from aiohttp import ClientSession, ClientTimeout, DummyCookieJar

    return ClientSession(
        connector=connector,
        cookie_jar=DummyCookieJar(),
        timeout=ClientTimeout(total=None),
        trust_env=False,
        auto_decompress=False,
    )


async def _answer(answer: ClientResponse) -> Answer:
    body = bytearray()
    while len(body) < READ_BYTES and (part := await answer.content.read(READ_BYTES - len(body))):
        body += part
    return Answer(
        answer.status,
        slot=answer.headers.get(SLOT_HEADER),
        body_head=_clean(body.decode("utf-8", "replace"))[:HEAD_CHARS],
        location=_clean(answer.headers["Location"])[:HEAD_CHARS] if "Location" in answer.headers else None,
    )


def _clean(text: str) -> str:
    """Printable characters only: what an application sends must not steer a terminal or hide from a reader."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def _late(status: int | None, seconds: float) -> str:
    if status is None:
        return f"no answer within {seconds:g} s"
    return f"answered {status}, but its body did not arrive within {seconds:g} s"


def _words(error: Exception, status: int | None) -> str:
    import aiohttp

    if isinstance(error, aiohttp.ClientSSLError | ssl.SSLError | aiohttp.ClientConnectorCertificateError):
        return _clean(f"TLS failed: {_tls_words(error)}")[:HEAD_CHARS]
    if status is not None:
        return f"answered {status}, but the connection broke before its body ended"
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(cause, ConnectionRefusedError):
        return "connection refused: nothing listens there"
    if isinstance(cause, aiohttp.ServerDisconnectedError):
        return "the connection was closed before an answer came"
    if isinstance(cause, ConnectionResetError | BrokenPipeError | aiohttp.ClientOSError):
        return "the connection was reset before an answer came"
    if isinstance(cause, aiohttp.ClientResponseError):
        return "what answered does not speak HTTP"
    return _clean(f"cannot connect: {cause}")[:HEAD_CHARS]


def _tls_words(error: Exception) -> str:
    cause = getattr(error, "certificate_error", None) or getattr(error, "os_error", None) or error
    return getattr(cause, "verify_message", "") or getattr(cause, "reason", "") or type(cause).__name__
