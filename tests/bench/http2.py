"""An HTTP/2 client that leaves a connection the way the standard asks for.

After a GOAWAY it opens another connection for new requests and still waits for the answers of those that run. The usual
client libraries fail the running ones at once, which would charge their own weakness to the proxy; the `h2` protocol
engine closes its state machine too, so the GOAWAY frames are taken out of the stream before it sees them.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import h2.config
import h2.connection
import h2.events
import h2.exceptions

if TYPE_CHECKING:
    from tests.bench.hammer import Target

FRAME_HEAD, GOAWAY = 9, 7


class Trouble(Exception):
    """A request that was not served; the text is its outcome."""


@dataclass
class _Exchange:
    done: asyncio.Future[tuple[int, str | None, bytes]]
    status: int = 0
    slot: str | None = None
    body: bytearray = field(default_factory=bytearray)


class Http2:
    """One HTTP/2 connection at a time, shared by several lanes. A request is written once and never again."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._connection: _Connection | None = None
        self._former: list[_Connection] = []
        self._opening = asyncio.Lock()

    async def ask(self, method: str, path: str, body: bytes) -> tuple[int, str | None, bytes]:
        """One request: status, slot and body of the answer; raises Trouble."""
        async with self._opening:
            if self._connection is None or self._connection.leaving:
                if self._connection is not None:
                    self._former.append(self._connection)
                self._connection = await _open(self._target)
        return await self._connection.ask(method, path, body)

    async def close(self) -> None:
        """Let go of all connections."""
        for connection in (*self._former, *([self._connection] if self._connection else [])):
            await connection.close()


async def _open(target: Target) -> _Connection:
    tls = target.tls()
    if tls is None:
        raise ValueError("HTTP/2 is spoken over TLS here")
    tls.set_alpn_protocols(["h2"])
    try:
        reader, writer = await asyncio.open_connection(
            target.address, target.port, ssl=tls, server_hostname=target.host, happy_eyeballs_delay=None
        )
    except OSError as error:
        raise Trouble(f"failed: no connection, {type(error).__name__}") from error
    if writer.get_extra_info("ssl_object").selected_alpn_protocol() != "h2":
        writer.close()
        raise Trouble("failed: the proxy does not speak HTTP/2")
    return _Connection(target.host, reader, writer)


class _Connection:
    def __init__(self, host: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.leaving = False
        self._host, self._reader, self._writer = host, reader, writer
        self._engine = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self._engine.initiate_connection()
        self._writer.write(self._engine.data_to_send())
        self._running: dict[int, _Exchange] = {}
        self._rest = b""
        self._task = asyncio.create_task(self._read())

    async def ask(self, method: str, path: str, body: bytes) -> tuple[int, str | None, bytes]:
        number = self._engine.get_next_available_stream_id()
        head = [(":method", method), (":scheme", "https"), (":authority", self._host), (":path", path)]
        if body:
            head.append(("content-length", str(len(body))))
        self._engine.send_headers(number, head, end_stream=not body)
        if body:
            self._engine.send_data(number, body, end_stream=True)
        exchange = self._running[number] = _Exchange(asyncio.get_running_loop().create_future())
        try:
            self._writer.write(self._engine.data_to_send())
            return await exchange.done
        finally:
            self._running.pop(number, None)

    async def close(self) -> None:
        self.leaving = True
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        self._writer.close()
        with contextlib.suppress(OSError, ssl.SSLError, TimeoutError):
            async with asyncio.timeout(2):
                await self._writer.wait_closed()

    async def _read(self) -> None:
        words = "closed"
        try:
            while data := await self._reader.read(65536):
                for event in self._engine.receive_data(self._without_goaway(data)):
                    self._note(event)
                self._writer.write(self._engine.data_to_send())
        except (OSError, h2.exceptions.ProtocolError) as error:
            words = type(error).__name__
        finally:
            self.leaving = True
            for exchange in self._running.values():
                _fail(exchange, f"lost: {words}")

    def _note(self, event: h2.events.Event) -> None:
        exchange = self._running.get(getattr(event, "stream_id", None) or 0)
        if isinstance(event, h2.events.DataReceived):
            self._engine.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id)
        if exchange is None:
            return
        if isinstance(event, h2.events.ResponseReceived):
            head = dict(event.headers or [])
            exchange.status = int(head[b":status"])
            exchange.slot = head[b"x-codeb-slot"].decode() if b"x-codeb-slot" in head else None
        elif isinstance(event, h2.events.DataReceived):
            exchange.body += event.data or b""
        elif isinstance(event, h2.events.StreamEnded) and not exchange.done.done():
            exchange.done.set_result((exchange.status, exchange.slot, bytes(exchange.body)))
        elif isinstance(event, h2.events.StreamReset):
            _fail(exchange, f"lost: stream reset, code {int(event.error_code or 0)}")

    def _without_goaway(self, data: bytes) -> bytes:
        """Whole frames only, without GOAWAY; requests that the server says it will not look at fail here."""
        data, passed = self._rest + data, bytearray()
        while len(data) >= FRAME_HEAD and len(data) >= (size := FRAME_HEAD + int.from_bytes(data[:3], "big")):
            frame, data = data[:size], data[size:]
            if frame[3] != GOAWAY:
                passed += frame
                continue
            self.leaving = True
            last = int.from_bytes(frame[FRAME_HEAD : FRAME_HEAD + 4], "big") & 0x7FFFFFFF
            for number, exchange in self._running.items():
                if number > last:
                    _fail(exchange, "failed: turned away by GOAWAY")
        self._rest = data
        return bytes(passed)


def _fail(exchange: _Exchange, words: str) -> None:
    if not exchange.done.done():
        exchange.done.set_exception(Trouble(words))
