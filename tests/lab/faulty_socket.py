"""A unix socket that stands between a client and an engine and misbehaves on order."""

from __future__ import annotations

import asyncio
import contextlib
import re
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

LIMIT = 1024 * 1024


@dataclass
class Order:
    """What happens to requests that match: `lose` (done, no answer), `refuse` (not done, no answer), `cut` (half an
    answer), `hang` (not done, silence) or `hold` (waits until `go` is set). It happens `times` times."""

    kind: str
    pattern: re.Pattern[str]
    times: int
    cut_after: int = 0
    struck: int = 0
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    go: asyncio.Event = field(default_factory=asyncio.Event)


class FaultySocket:
    """Passes requests to the engine's socket except for those that an order names."""

    def __init__(self, path: Path, upstream: str) -> None:
        self.host = f"unix://{path}"
        self._upstream = upstream.removeprefix("unix://")
        self._orders: list[Order] = []

    def order(self, kind: str, request: str, *, times: int = 1, cut_after: int = 0) -> Order:
        """Let the next requests whose "METHOD /path" contains the pattern fail this way."""
        made = Order(kind, re.compile(request), times, cut_after)
        self._orders.append(made)
        return made

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client connection; it carries one request."""
        await self._pass_on(await reader.readuntil(b"\r\n\r\n"), reader, writer)

    async def _pass_on(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        order = self._strike(head.partition(b"\r\n")[0].decode("latin-1"))
        if order is not None and order.kind == "refuse":
            return
        if order is not None and order.kind == "hang":
            await reader.read()
            return
        if order is not None and order.kind == "hold":
            order.reached.set()
            await order.go.wait()
            order = None
        length = re.search(rb"content-length: *(\d+)", head, re.I)
        body = await reader.readexactly(int(length[1])) if length else b""
        answer, upstream = await asyncio.open_unix_connection(self._upstream, limit=LIMIT)
        try:
            upstream.write(head.replace(b"\r\n", b"\r\nConnection: close\r\n", 1) + body)
            await self._relay(order, answer, writer)
        finally:
            upstream.close()

    async def _relay(self, order: Order | None, answer: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sent = 0
        while piece := await answer.read(65536):
            if order is not None and order.kind == "lose":
                continue
            if order is not None and sent + len(piece) > order.cut_after:
                writer.write(piece[: max(0, order.cut_after - sent)])
                await writer.drain()
                return
            sent += len(piece)
            writer.write(piece)
            await writer.drain()

    def _strike(self, request: str) -> Order | None:
        for order in self._orders:
            if order.struck < order.times and order.pattern.search(request):
                order.struck += 1
                return order
        return None


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def _served(handler: Handler, path: str) -> AsyncIterator[None]:
    """The handler behind a unix socket; connections that are still open at the end are ended."""
    running: set[asyncio.Task[None]] = set()

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            running.add(task)
        try:
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
                await handler(reader, writer)
        finally:
            writer.close()
            running.discard(task)

    server = await asyncio.start_unix_server(one, path, limit=LIMIT)
    try:
        yield
    finally:
        server.close()
        ending = list(running)
        for task in ending:
            task.cancel()
        await asyncio.gather(*ending, return_exceptions=True)


@contextlib.asynccontextmanager
async def faulty_socket(upstream: str) -> AsyncIterator[FaultySocket]:
    """A running FaultySocket in front of the engine at `upstream`."""
    with tempfile.TemporaryDirectory(prefix="codeb-") as folder:
        socket = FaultySocket(Path(folder, "docker.sock"), upstream)
        async with _served(socket.serve, socket.host.removeprefix("unix://")):
            yield socket


@contextlib.asynccontextmanager
async def canned_socket(version: bytes, answer: bytes) -> AsyncIterator[str]:
    """The address of a server that answers `version` to questions for its version and `answer` to all others, raw, and
    then closes."""

    async def one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(version if b"/version" in head.partition(b"\r\n")[0] else answer)
        await writer.drain()

    with tempfile.TemporaryDirectory(prefix="codeb-") as folder:
        async with _served(one, f"{folder}/docker.sock"):
            yield f"unix://{folder}/docker.sock"
