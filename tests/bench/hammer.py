"""Load that tells the truth: it counts what was served, lost or failed, by kind of request, and repeats nothing.

* served: the whole answer came, with status 200 and, for a POST, with the body that was sent
* lost:   the request was written and no whole answer came, so a client cannot know whether it took effect
* failed: another status, another body, no connection, or no answer within the limit

A client that finds its idle connection closed before it has written anything opens another one, like all clients do. It
never writes the same request twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h11

from tests.bench.http2 import Http2, Trouble

SLOT_HEADER = "x-codeb-slot"
LIMIT_SECONDS = 15.0
READ = 65536


@dataclass(frozen=True)
class Target:
    """Where to shoot: a listener, the host name to ask for, and the root certificate when it speaks TLS."""

    address: str
    port: int
    host: str
    authority: Path | None = None
    http2: bool = False

    def tls(self) -> ssl.SSLContext | None:
        """The context for TLS, or None for plain HTTP."""
        return ssl.create_default_context(cafile=self.authority) if self.authority else None


@dataclass
class Report:
    """What happened to the requests."""

    kinds: dict[str, Counter[str]] = field(default_factory=dict)
    slots: Counter[str] = field(default_factory=Counter)

    def note(self, kind: str, outcome: str, slot: str | None = None) -> None:
        """Count one request."""
        self.kinds.setdefault(kind, Counter())[outcome] += 1
        if slot:
            self.slots[slot] += 1

    @property
    def served(self) -> int:
        """All that were answered right."""
        return sum(counts["served"] for counts in self.kinds.values())

    def total(self, word: str) -> int:
        """All whose outcome begins with the word: `lost` or `failed`."""
        return sum(n for counts in self.kinds.values() for outcome, n in counts.items() if outcome.startswith(word))

    @property
    def troubles(self) -> dict[str, int]:
        """Everything that was not served: `"POST lost: closed"` -> how often."""
        return {
            f"{kind} {outcome}": n
            for kind, counts in sorted(self.kinds.items())
            for outcome, n in sorted(counts.items())
            if outcome != "served"
        }


class Hammer:
    """Clients in tight loops: `clients` alternate GET and POST on kept-alive connections, `slow` ask for answers that take a
    second, and `websocket` keeps one echo socket busy."""

    def __init__(self, target: Target, *, clients: int = 16, slow: int = 0, websocket: bool = False) -> None:
        self.target = target
        self.report = Report()
        self._pool: dict[int, Http2] = {}
        self._clients, self._slow, self._websocket = clients, slow, websocket
        self._stopping = asyncio.Event()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Hammer]:
        """Shoot while the block runs; at its end every request that was begun is waited for and counted."""
        async with asyncio.TaskGroup() as group:
            http1 = not self.target.http2
            for number in range(self._clients):
                lane = number % 4 if self.target.http2 else number
                group.create_task(self._lane(["GET", "POST"], number) if http1 else self._lane2(["GET", "POST"], lane))
            for number in range(self._slow):
                group.create_task(self._lane(["SLOW"], number) if http1 else self._lane2(["SLOW"], number))
            if self._websocket:
                group.create_task(self._echo())
            try:
                yield self
            finally:
                self._stopping.set()
        await self._close_http2()

    async def until_served(self, count: int, *, seconds: float) -> None:
        """Wait until that many requests have been served since the start; fails after the limit."""
        async with asyncio.timeout(seconds):
            while self.report.served < count:
                await asyncio.sleep(0.002)

    async def _lane(self, kinds: list[str], number: int) -> None:
        wire = Wire(self.target)
        turn = number
        while not self._stopping.is_set():
            kind = kinds[turn % len(kinds)]
            turn += 1
            body = f"{number}-{turn}".encode() if kind == "POST" else b""
            await self._shoot(kind, wire.ask("POST" if body else "GET", _path(kind), body), body)
        await wire.close()

    async def _shoot(self, kind: str, asking: Awaitable[tuple[int, str | None, bytes]], body: bytes) -> None:
        slot = None
        try:
            async with asyncio.timeout(LIMIT_SECONDS):
                status, slot, answer = await asking
            outcome = "served" if status == 200 else f"failed: status {status}"
            if outcome == "served" and body and answer != body:
                outcome = "failed: another body"
        except TimeoutError:
            outcome = f"failed: no answer within {LIMIT_SECONDS:g} s"
        except Trouble as trouble:
            outcome = str(trouble)
            await asyncio.sleep(0.01)  # where nothing listens, a tight loop would only count itself
        self.report.note(kind, outcome, slot)

    # HTTP/2: four connections, each shared by several lanes.

    async def _lane2(self, kinds: list[str], lane: int) -> None:
        client = self._http2(lane)
        turn = lane
        while not self._stopping.is_set():
            kind = kinds[turn % len(kinds)]
            turn += 1
            body = f"{lane}-{turn}".encode() if kind == "POST" else b""
            await self._shoot(kind, client.ask("POST" if body else "GET", _path(kind), body), body)

    def _http2(self, lane: int) -> Http2:
        if lane not in self._pool:
            self._pool[lane] = Http2(self.target)
        return self._pool[lane]

    async def _close_http2(self) -> None:
        for client in self._pool.values():
            await client.close()

    async def _echo(self) -> None:
        import websockets

        scheme = "wss" if self.target.authority else "ws"
        tls = self.target.tls()
        options: dict[str, Any] = {"ssl": tls, "server_hostname": self.target.host} if tls else {}
        number = 0
        while not self._stopping.is_set():
            try:
                async with websockets.connect(
                    f"{scheme}://{self.target.host}/ws", host=self.target.address, port=self.target.port,
                    proxy=None, open_timeout=LIMIT_SECONDS, close_timeout=2, **options,
                ) as socket:  # fmt: skip
                    while not self._stopping.is_set():
                        number += 1
                        await socket.send(str(number))
                        async with asyncio.timeout(LIMIT_SECONDS):
                            answer = await socket.recv()
                        right = str(answer).endswith(str(number))
                        self.report.note("WebSocket", "served" if right else "failed: another message")
                        await asyncio.sleep(0.02)
            except websockets.ConnectionClosed:
                self.report.note("WebSocket", "lost: cut")
            except (OSError, TimeoutError, websockets.WebSocketException) as error:
                self.report.note("WebSocket", f"failed: {type(error).__name__}")
                await asyncio.sleep(0.05)


def _path(kind: str) -> str:
    return "/sleep?s=1" if kind == "SLOW" else "/"


class Wire:
    """One kept-alive HTTP/1.1 connection, on the reference parser, opened again only when nothing has been written."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._parser = h11.Connection(h11.CLIENT)

    async def ask(self, method: str, path: str, body: bytes) -> tuple[int, str | None, bytes]:
        """One request, written once: status, slot and body of the answer; raises Trouble."""
        reader, writer = await self._open()
        headers = [("Host", self._target.host), ("Content-Length", str(len(body)))]
        request = h11.Request(method=method, target=path, headers=headers)
        sent = b"".join(self._parser.send(event) or b"" for event in (request, h11.Data(body), h11.EndOfMessage()))
        try:
            writer.write(sent)
            await writer.drain()
            answer = await self._answer(reader)
        except (OSError, h11.RemoteProtocolError) as error:
            await self.close()
            raise Trouble(f"lost: {_word(error)}") from error
        except BaseException:
            await self.close()
            raise
        await self._settle()
        return answer

    async def close(self) -> None:
        """Let go of the connection."""
        writer, self._reader, self._writer = self._writer, None, None
        if writer is not None:
            writer.close()
            with contextlib.suppress(OSError, ssl.SSLError, TimeoutError):
                async with asyncio.timeout(2):
                    await writer.wait_closed()

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._reader is not None and self._writer is not None and not self._reader.at_eof():
            return self._reader, self._writer
        await self.close()
        tls = self._target.tls()
        name = self._target.host if tls else None
        try:
            self._reader, self._writer = await asyncio.open_connection(
                self._target.address, self._target.port, ssl=tls, server_hostname=name
            )
        except OSError as error:
            raise Trouble(f"failed: no connection, {_word(error)}") from error
        self._parser = h11.Connection(h11.CLIENT)
        return self._reader, self._writer

    async def _answer(self, reader: asyncio.StreamReader) -> tuple[int, str | None, bytes]:
        status, slot, body = 0, None, bytearray()
        while True:
            event = self._parser.next_event()
            if event is h11.NEED_DATA:
                self._parser.receive_data(await reader.read(READ))
            elif isinstance(event, h11.Response):
                status = event.status_code
                slot = next((value.decode() for name, value in event.headers if name.decode() == SLOT_HEADER), None)
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                return status, slot, bytes(body)
            elif isinstance(event, h11.ConnectionClosed):
                raise ConnectionResetError("closed before an answer")

    async def _settle(self) -> None:
        if self._parser.our_state is h11.DONE and self._parser.their_state is h11.DONE:
            self._parser.start_next_cycle()
        else:
            await self.close()


def _word(error: Exception) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "refused"
    return "reset" if isinstance(error, ConnectionResetError | BrokenPipeError) and error.errno else "closed"
