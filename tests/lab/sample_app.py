"""A small web application for tests and the demo; standard library only, told what to do by its environment.

APP_VERSION      what /version, /health and / answer with
PORT             port to listen on (8080)
START_DELAY      seconds before the port opens
READY_DELAY      seconds during which the health page then still answers 503
HEALTH           ok, fail (503), hang (no answer) or redirect (302 to /login)
HEALTH_PATH      path of the health page (/health)
CRASH_AT_START   exit code to end with before the port opens
CRASH_AFTER      seconds after which the process ends with exit code 1
TERM             drain (finish what is running, then exit), exit (at once) or ignore
WRITE_ROOT       when set, try to write to the root folder at start and print what happened

Pages: /health, /version, / (GET, and POST answers the body), /sleep?s=1, /stream?n=5&every=0.1, /ws (WebSocket echo).
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import os
import signal
import struct
import sys
import time
from urllib.parse import parse_qs, urlsplit

KNOBS = os.environ
VERSION = KNOBS.get("APP_VERSION", "unversioned")
HEALTH_PATH = KNOBS.get("HEALTH_PATH", "/health")
READY_AT = time.monotonic() + float(KNOBS.get("START_DELAY", "0")) + float(KNOBS.get("READY_DELAY", "0"))
WEBSOCKET_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
REASONS = {200: "OK", 302: "Found", 404: "Not Found", 503: "Service Unavailable"}

busy: set[asyncio.StreamWriter] = set()
stopping = asyncio.Event()


class Request:
    """One request: method, path, query, headers with lower-case names, and the whole body."""

    def __init__(self, head: str, body: bytes) -> None:
        first, *rest = head.split("\r\n")
        self.method, target, _ = first.split(" ", 2)
        self.headers = {
            name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in rest)
        }
        parts = urlsplit(target)
        self.path = parts.path
        self.query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        self.body = body

    def number(self, name: str, default: float) -> float:
        """A query parameter as a number."""
        return float(self.query.get(name, default))


async def read_request(reader: asyncio.StreamReader) -> Request:
    """The next request of a connection; raises IncompleteReadError at its end."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").rstrip("\r\n")
    request = Request(head, b"")
    length = int(request.headers.get("content-length", "0"))
    request.body = await reader.readexactly(length) if length else b""
    return request


async def page(request: Request) -> tuple[int, bytes, str]:
    """Status, body and extra header lines of a plain page."""
    if request.path == HEALTH_PATH:
        return await health()
    if request.path == "/sleep":
        await asyncio.sleep(request.number("s", 1))
    elif request.path == "/" and request.method == "POST":
        return 200, request.body, ""
    elif request.path not in ("/", "/version"):
        return 404, b"no such page\n", ""
    return 200, f"{VERSION}\n".encode(), ""


async def health() -> tuple[int, bytes, str]:
    """What the health page answers, as the knobs say."""
    kind = KNOBS.get("HEALTH", "ok")
    if kind == "hang":
        await asyncio.sleep(3600)
    if kind == "redirect":
        return 302, b"", "Location: /login\r\n"
    if kind == "fail":
        return 503, b"unhealthy: the database is not reachable\n", ""
    if time.monotonic() < READY_AT:
        return 503, b"starting\n", ""
    return 200, f"{VERSION}\n".encode(), ""


async def stream(request: Request, writer: asyncio.StreamWriter) -> None:
    """A chunked answer in several parts."""
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: text/plain\r\n\r\n")
    for number in range(int(request.number("n", 5))):
        part = f"{VERSION} {number}\n".encode()
        writer.write(b"%x\r\n%s\r\n" % (len(part), part))
        await writer.drain()
        await asyncio.sleep(request.number("every", 0.1))
    writer.write(b"0\r\n\r\n")


async def websocket(request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """RFC 6455 echo: every text or binary message comes back; pings are answered; ends with the closing handshake."""
    key = request.headers["sec-websocket-key"].encode()
    accept = base64.b64encode(hashlib.sha1(key + WEBSOCKET_GUID).digest())
    head = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
    writer.write(head + accept + b"\r\n\r\n")
    while True:
        opcode, payload = await read_frame(reader)
        answer = {8: 0x88, 9: 0x8A, 1: 0x81, 2: 0x82}.get(opcode)
        if answer is not None:
            writer.write(frame(answer, payload))
            await writer.drain()
        if opcode == 8:
            return


async def read_frame(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Opcode and unmasked payload of the next frame."""
    first, second = await reader.readexactly(2)
    length = second & 127
    if length == 126:
        (length,) = struct.unpack(">H", await reader.readexactly(2))
    elif length == 127:
        (length,) = struct.unpack(">Q", await reader.readexactly(8))
    mask = await reader.readexactly(4) if second & 128 else b"\0\0\0\0"
    payload = await reader.readexactly(length)
    return first & 15, bytes(byte ^ mask[index & 3] for index, byte in enumerate(payload))


def frame(first: int, payload: bytes) -> bytes:
    """A whole unmasked frame."""
    size = len(payload)
    if size < 126:
        return bytes((first, size)) + payload
    if size < 65536:
        return bytes((first, 126)) + struct.pack(">H", size) + payload
    return bytes((first, 127)) + struct.pack(">Q", size) + payload


async def serve_one(request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Answer one request; whether the connection may go on."""
    if request.path == "/ws":
        await websocket(request, reader, writer)
        return False
    if request.path == "/stream":
        await stream(request, writer)
        return not stopping.is_set()
    status, body, extra = await page(request)
    keep = not stopping.is_set() and request.headers.get("connection", "").lower() != "close"
    head = (
        f"HTTP/1.1 {status} {REASONS[status]}\r\nContent-Length: {len(body)}\r\nContent-Type: text/plain\r\n"
        f"X-App-Version: {VERSION}\r\n{extra}Connection: {'keep-alive' if keep else 'close'}\r\n\r\n"
    )
    writer.write(head.encode() + (b"" if request.method == "HEAD" else body))
    return keep


async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """All requests of one connection. It counts as busy from the first byte of a request to the end of its answer."""
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        going_on = True
        while going_on:
            request = await read_request(reader)
            busy.add(writer)
            going_on = await serve_one(request, reader, writer)
            await writer.drain()
            busy.discard(writer)
    busy.discard(writer)
    writer.close()


def on_term(kind: str) -> None:
    """What SIGTERM does. Any other word means drain: outside a container TERM names the terminal."""
    print("SIGTERM", flush=True)
    if kind == "exit":
        os._exit(143)
    if kind != "ignore":
        stopping.set()


async def main() -> None:
    """Start as the knobs say, serve, drain."""
    if "CRASH_AT_START" in KNOBS:
        print(f"fatal: told to end with {KNOBS['CRASH_AT_START']}", file=sys.stderr, flush=True)
        sys.exit(int(KNOBS["CRASH_AT_START"]))
    if "WRITE_ROOT" in KNOBS:
        try:
            with open("/written", "w", encoding="utf-8") as file:
                file.write(VERSION)
            print("root folder: written", flush=True)
        except OSError as error:
            print(f"root folder: {error.strerror}", flush=True)
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, on_term, KNOBS.get("TERM", "drain"))
    await asyncio.sleep(float(KNOBS.get("START_DELAY", "0")))
    server = await asyncio.start_server(connection, "0.0.0.0", int(KNOBS.get("PORT", "8080")), backlog=1024)
    print(f"version {VERSION} listens", flush=True)
    if "CRASH_AFTER" in KNOBS:
        loop.call_later(float(KNOBS["CRASH_AFTER"]), os._exit, 1)
    await stopping.wait()
    server.close()
    while busy:
        await asyncio.sleep(0.02)
    print("drained", flush=True)
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(main())
