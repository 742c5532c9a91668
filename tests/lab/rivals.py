"""What another program may put into a Caddy that it shares with us."""

from __future__ import annotations

from typing import Any

from codeb_mcp.model.routes import SLOT_HEADER
from tests.lab.caddy import CaddyServer
from tests.lab.daemons import LabError

RIVAL = "rival"


def rival_route(
    caddy: CaddyServer, host: str | None, *, path: str | None = None, status: int = 200, slot: str | None = None
) -> None:
    """Put a route first that takes this host (all hosts without one), or one path of it, and answers `rival`; `slot`: it
    pretends to be that slot of ours."""
    asks: dict[str, Any] = {**({"host": [host]} if host else {}), **({"path": [path]} if path else {})}
    answer: dict[str, Any] = {"handler": "static_response", "status_code": status, "body": "rival"}
    if slot:
        answer["headers"] = {SLOT_HEADER: [slot]}
    route = {"@id": RIVAL, "terminal": True, "handle": [answer], **({"match": [asks]} if asks else {})}
    _must(caddy.ask("PUT", f"/config/apps/http/servers/{_server(caddy)}/routes/0", route))


def without_rival(caddy: CaddyServer) -> None:
    """Take it away again."""
    _must(caddy.ask("DELETE", f"/id/{RIVAL}"))


def _server(caddy: CaddyServer) -> str:
    servers: dict[str, Any] = caddy.get("/config/apps/http/servers")
    return next(name for name, server in servers.items() if server.get("routes"))


def _must(answer: bytes) -> None:
    if not answer.startswith(b"HTTP/1.1 200"):
        raise LabError(f"caddy refused: {answer[:300]!r}")
