"""A unix socket in front of a real Caddy's admin socket that answers errors, or nothing, on order."""

from __future__ import annotations

import contextlib
import re
import socket
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path

_HEAD_END = b"\r\n\r\n"
SECONDS = 60.0


class FaultyAdmin(socketserver.ThreadingUnixStreamServer):
    """`fault`: a status that each request is answered with, or `hang`; None passes everything on, byte for byte."""

    daemon_threads = True

    def __init__(self, path: Path, upstream: Path) -> None:
        self.path = path
        self.upstream = upstream
        self.fault: int | str | None = None
        self.struck = 0
        self.over = threading.Event()
        super().__init__(str(path), _Connection)

    @property
    def admin(self) -> str:
        """The address as our settings want it."""
        return f"unix://{self.path}"


class _Connection(socketserver.BaseRequestHandler):
    server: FaultyAdmin

    def handle(self) -> None:
        """One request; the connection ends with its answer."""
        with contextlib.suppress(OSError):
            request = _request_of(self.request)
            fault = self.server.fault
            self.server.struck += fault is not None
            if fault == "hang":
                self.server.over.wait(SECONDS)
            elif fault is not None:
                body = b'{"error":"ordered"}'
                head = f"HTTP/1.1 {fault} Ordered\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
                self.request.sendall(head.encode() + b"Connection: close" + _HEAD_END + body)
            elif request:
                _relay(request, self.server.upstream, self.request)


def _request_of(connection: socket.socket) -> bytes:
    data = b""
    while _HEAD_END not in data:
        part = connection.recv(1 << 16)
        if not part:
            return b""
        data += part
    head, _, body = data.partition(_HEAD_END)
    length = re.search(rb"content-length: *(\d+)", head, re.I)
    while length and len(body) < int(length[1]):
        body += connection.recv(1 << 16)
    return re.sub(rb"\r\nconnection:[^\r]*", b"", head, flags=re.I) + b"\r\nConnection: close" + _HEAD_END + body


def _relay(request: bytes, upstream: Path, client: socket.socket) -> None:
    with socket.socket(socket.AF_UNIX) as caddy:
        caddy.settimeout(SECONDS)
        caddy.connect(str(upstream))
        caddy.sendall(request)
        while part := caddy.recv(1 << 16):
            client.sendall(part)


@contextlib.contextmanager
def faulty_admin(upstream: Path) -> Iterator[FaultyAdmin]:
    """One next to that socket; gone afterwards."""
    path = upstream.with_name("faulty.sock")
    with FaultyAdmin(path, upstream) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.over.set()
            server.shutdown()
            thread.join(10)
            path.unlink(missing_ok=True)
