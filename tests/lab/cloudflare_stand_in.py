"""A stand-in for Cloudflare's DNS API, after its published description: no real part, since that one is not to be had here.

Zones, listing by exact name with pages, and batches that are stored whole or not at all, deletes before posts. What the real
one refuses is refused: wrong tokens, unknown ids, addresses beside an alias, the same record twice.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit


class CloudflareStandIn:
    """The state of the stand-in: zones and their records."""

    def __init__(self) -> None:
        self.token = secrets.token_hex(20)
        self.zones = {name: secrets.token_hex(16) for name in ("lab.test", "other.test")}
        self.records: dict[str, dict[str, Any]] = {}
        self.lock = threading.Lock()
        self.requests: list[str] = []
        self.delay = threading.Event()
        self.delay.set()
        self.url = ""

    def change(self, zone: str, *lines: tuple[str, str, str], delete: bool = False) -> None:
        """Add or delete records as the person who keeps the zone would."""
        with self.lock:
            for name, kind, value in lines:
                if delete:
                    self.records = {
                        key: row
                        for key, row in self.records.items()
                        if (row["name"], row["type"], row["content"]) != (name, kind, value)
                    }
                else:
                    self._add(zone, {"name": name, "type": kind, "content": value, "ttl": 60})

    def ask(self, name: str, kind: str) -> list[str]:
        """Values, sorted, in zone file format."""
        return sorted(row["content"] for row in self.records.values() if (row["name"], row["type"]) == (name, kind))

    def answer(self, method: str, target: str, token: str, body: Any) -> tuple[int, Any]:
        """Status and parsed body for a request."""
        parts = urlsplit(target)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        path = parts.path.removeprefix("/client/v4").strip("/").split("/")
        with self.lock:
            self.requests.append(f"{method} {parts.path}")
            if token != f"Bearer {self.token}":
                return 403, _failed(9109, "Invalid access token")
            if method == "GET" and path == ["zones"]:
                rows = [
                    {"id": key, "name": name} for name, key in self.zones.items() if query.get("name") in (None, name)
                ]
                return 200, _done(rows)
            zone = next((name for name, key in self.zones.items() if len(path) > 1 and path[1] == key), None)
            if zone is None or path[2:3] != ["dns_records"]:
                return 404, _failed(7003, "Could not route to the request")
            if method == "GET" and len(path) == 3:
                return 200, _done(self._listed(zone, query))
            if method == "POST" and path[3:] == ["batch"]:
                return self._batch(zone, body)
            return 405, _failed(10405, "Method not allowed")

    def _listed(self, zone: str, query: dict[str, str]) -> list[dict[str, Any]]:
        rows = [row for row in self.records.values() if row["zone"] == zone and row["name"] == query["name.exact"]]
        size, page = int(query.get("per_page", "100")), int(query.get("page", "1"))
        return [{key: row[key] for key in row if key != "zone"} for row in rows[size * (page - 1) : size * page]]

    def _batch(self, zone: str, body: dict[str, Any]) -> tuple[int, Any]:
        before = dict(self.records)
        try:
            for one in body.get("deletes", []):
                del self.records[one["id"]]
            posted = [self._add(zone, one) for one in body.get("posts", [])]
        except (KeyError, ValueError) as error:
            self.records = before
            return 400, _failed(81058, f"batch refused: {error}")
        return 200, _done({"deletes": [], "patches": [], "puts": [], "posts": posted})

    def _add(self, zone: str, row: dict[str, Any]) -> dict[str, Any]:
        if not row["name"].endswith(zone) or not 60 <= row["ttl"] <= 86400:
            raise ValueError("record is not valid")
        beside = [one for one in self.records.values() if one["name"] == row["name"]]
        kinds = {one["type"] for one in beside} | {row["type"]}
        if "CNAME" in kinds and kinds & {"A", "AAAA"}:
            raise ValueError("a CNAME is beside an address")
        if any((one["type"], one["content"]) == (row["type"], row["content"]) for one in beside):
            raise ValueError("an identical record already exists")
        made = {**row, "id": secrets.token_hex(16), "zone": zone}
        self.records[made["id"]] = made
        return made


def _done(result: Any) -> dict[str, Any]:
    return {"success": True, "errors": [], "messages": [], "result": result}


def _failed(code: int, message: str) -> dict[str, Any]:
    return {"success": False, "errors": [{"code": code, "message": message}], "messages": [], "result": None}


@contextmanager
def running_stand_in() -> Iterator[CloudflareStandIn]:
    """A stand-in that listens on loopback, and ends afterwards."""
    state = CloudflareStandIn()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._serve()

        def do_POST(self) -> None:
            self._serve()

        def _serve(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(size)) if size else None
            state.delay.wait(20)
            status, value = state.answer(self.command, self.path, self.headers.get("Authorization", ""), body)
            payload = json.dumps(value).encode()
            with suppress(OSError):  # a client that had to wait too long has gone
                self.send_response(status)
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)
                self.wfile.flush()

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda request, client: None  # type: ignore[assignment]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}/client/v4"
    try:
        yield state
    finally:
        state.delay.set()
        server.shutdown()
        server.server_close()
        thread.join(10)
