"""Caddy's admin API as two calls: read with a tag, write guarded by that tag.

Three traps are closed here. Caddy before 2.8 sends the ETag as an HTTP trailer, which clients drop, so that a change would go
out unguarded; it is computed instead. And Caddy 2.6 on a unix socket answers only a request with an empty Host, unless its
configuration names `origins`; the one that works is found out once and remembered. And each change replaces the admin
server itself, which drops requests that came to the old one, whoever made the change: a read is repeated, a write is
`Dropped`, and may have been done.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from codeb_mcp.model.errors import CodebError, DeadlineExceeded, DriverRefused, DriverUnavailable

if TYPE_CHECKING:
    from aiohttp import ClientSession

Locate = Callable[[], Awaitable[str]]
READ_SECONDS = 10.0
WRITE_SECONDS = 60.0  # at 1,000 sites with TLS a reload takes seconds
_HOSTS = ("127.0.0.1", "")
_WORDS = 300
_PAUSES = (0.01, 0.04, 0.16)  # before a dropped read is repeated


class Dropped(DriverUnavailable):
    """The connection ended without an answer: what was asked for may have been done, so look."""


@dataclass(frozen=True, slots=True)
class Read:
    """A part of the running configuration and the tag that guards a change based on it."""

    value: Any
    etag: str


def body_tag(path: str, body: bytes) -> str:
    """The ETag that Caddy before 2.8 gives this body: FNV-1a, 32 bits, over its exact bytes."""
    digest = 0x811C9DC5
    for byte in body:
        digest = (digest ^ byte) * 0x01000193 & 0xFFFFFFFF
    return f'"{path} {digest:08x}"'


class CaddyAdmin:
    """A client of one Caddy's admin endpoint, `unix:///path/to.sock` or `http://127.0.0.1:2019`. `locate`: for a Caddy on
    another machine; answers the path of the socket here that leads to that address, at this moment."""

    def __init__(self, address: str, *, read_seconds: float = READ_SECONDS, locate: Locate | None = None) -> None:
        if not address.startswith(("unix://", "http://")):
            raise ValueError("the admin address must start with unix:// or http://")
        self._address = address
        self._locate = locate
        self._socket = address.removeprefix("unix://") if address.startswith("unix://") else None
        self._base = "http://127.0.0.1" if self._socket else address.rstrip("/")
        self._host: str | None = _HOSTS[0] if self._socket else None
        self._there: str | None = None
        self._session: ClientSession | None = None
        self._read_seconds = read_seconds

    async def get(self, path: str) -> Read | None:
        """What stands at the path; None when Caddy knows no such object id."""
        status, body, tag = await self._look(path)
        if status == 404:
            return None
        if status != 200:
            raise _refused(status, body)
        try:
            value = json.loads(body)
        except ValueError:
            raise DriverRefused(
                f"what answers at {self._address} is no caddy admin endpoint", hint="Check the proxy's admin address."
            ) from None
        if tag is None:  # in a thread: at 1,000 sites this takes a tenth of a second
            tag = await asyncio.to_thread(body_tag, path, body)
        return Read(value, tag)

    async def post(self, path: str, value: Any, *, etag: str) -> bool:
        """Put the value there if what the tag stands for is still so; False when it is not. Raises Dropped."""
        body = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
        status, answer, _ = await self._ask("POST", path, WRITE_SECONDS, body=body, etag=etag)
        if status == 412:
            return False
        if status != 200:
            raise _refused(status, answer)
        return True

    async def close(self) -> None:
        """Let go of connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _look(self, path: str) -> tuple[int, bytes, str | None]:
        for pause in _PAUSES:
            try:
                return await self._ask("GET", path, self._read_seconds)
            except Dropped:
                await asyncio.sleep(random.uniform(pause / 2, pause))
        return await self._ask("GET", path, self._read_seconds)

    async def _ask(
        self, method: str, path: str, seconds: float, *, body: bytes | None = None, etag: str = ""
    ) -> tuple[int, bytes, str | None]:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        if etag:
            headers["If-Match"] = etag
        async with self._errors(seconds):
            # The third try is for a configuration that changes between the first two.
            for host in (self._host, _other(self._host), self._host):
                answer = await self._once(method, path, {**headers, **({} if host is None else {"Host": host})}, body)
                if answer[0] != 403 or host is None:
                    self._host = host
                    break
            return answer

    async def _once(
        self, method: str, path: str, headers: dict[str, str], body: bytes | None
    ) -> tuple[int, bytes, str | None]:
        session = await self._connected()
        async with session.request(
            method, self._base + path, headers=headers, data=body, allow_redirects=False
        ) as answer:
            return answer.status, await answer.read(), answer.headers.get("Etag")

    async def _connected(self) -> ClientSession:
        there = None if self._locate is None else await self._locate()
        if there != self._there:
            await self.close()
            self._there = there
        if self._session is None:
            from aiohttp import ClientSession, ClientTimeout, DummyCookieJar, TCPConnector, UnixConnector

            # Each call has its own connection: a reload closes the admin endpoint's idle ones, and a change that was
            # just written on one of them would be lost.
            connector = (
                UnixConnector(path, force_close=True)
                if (path := there or self._socket)
                else TCPConnector(force_close=True)
            )
            self._session = ClientSession(
                connector=connector, cookie_jar=DummyCookieJar(), timeout=ClientTimeout(total=None), trust_env=False
            )
        return self._session

    @asynccontextmanager
    async def _errors(self, seconds: float) -> AsyncIterator[None]:
        from aiohttp import ClientConnectorError, ClientError

        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError:
            raise DeadlineExceeded(
                f"caddy did not answer at {self._address} within {seconds:g} s",
                hint="Look at the proxy's log and load.",
            ) from None
        except (ClientError, OSError) as error:
            kind = DriverUnavailable if isinstance(error, ClientConnectorError) else Dropped
            raise kind(
                f"caddy cannot be reached at {self._address}: {type(error).__name__}",
                hint="Start the proxy, or correct the admin address; then repeat the call.",
            ) from error


def _other(host: str | None) -> str | None:
    return None if host is None else _HOSTS[1 - _HOSTS.index(host)]


def _refused(status: int, body: bytes) -> CodebError:
    try:
        words = str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        words = body[: 4 * _WORDS].decode("utf-8", "replace")
    words = " ".join("".join(char if char.isprintable() else " " for char in words).split())[:_WORDS]
    hint = "Read the proxy's words; the configuration that ran before still runs."
    if status == 403:
        hint = "Let Caddy's admin endpoint accept the host 127.0.0.1 (admin.origins)."
    return DriverRefused(f"caddy answered {status}: {words or 'nothing'}", hint=hint, status=status)
