"""The proxy configuration we want, as a value.

Both slots of an environment stand in the configuration for good. Which one serves is decided per request by a flag file
(`file` matcher), so a promote changes no configuration and closes no connection:

* `{key}.green` exists  -> green
* `{key}.off` exists    -> 503, nothing is live
* otherwise             -> blue

The order matters: one look at `.green` decides between the slots, so there is no moment in which neither is chosen.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from codeb_mcp.model.names import Slot

ID_PREFIX = "codeb-site-"
SLOT_HEADER = "X-CodeB-Slot"


@dataclass(frozen=True, slots=True)
class Site:
    """One environment at the proxy: its public names, its preview names and the fixed port of each slot."""

    key: str
    hosts: tuple[str, ...]
    blue_port: int
    green_port: int
    blue_preview: str | None = None
    green_preview: str | None = None

    def port(self, slot: Slot) -> int:
        """The loopback port of a slot."""
        return self.blue_port if slot is Slot.BLUE else self.green_port


def flag_name(key: str, slot: Slot | None) -> str | None:
    """The flag file that says "this slot is live"; None for blue, which is live when no flag is there."""
    return f"{key}.off" if slot is None else None if slot is Slot.BLUE else f"{key}.green"


def site_route(site: Site, flags_folder: str) -> dict[str, Any]:
    """The route object of a site for Caddy's JSON configuration (caddyserver.com/docs/json/apps/http)."""
    all_hosts = [*site.hosts, *(name for name in (site.blue_preview, site.green_preview) if name)]
    previews = [
        {"match": [{"host": [name]}], "terminal": True, "handle": _to_slot(site, slot)}
        for slot, name in ((Slot.BLUE, site.blue_preview), (Slot.GREEN, site.green_preview))
        if name
    ]
    chosen = [
        {"match": [_flag(flags_folder, f"{site.key}.green")], "terminal": True, "handle": _to_slot(site, Slot.GREEN)},
        {"match": [_flag(flags_folder, f"{site.key}.off")], "terminal": True, "handle": [_nothing_live(site)]},
        {"handle": _to_slot(site, Slot.BLUE)},
    ]
    return {
        "@id": ID_PREFIX + site.key,
        "match": [{"host": all_hosts}],
        "terminal": True,
        "handle": [{"handler": "subroute", "routes": [*previews, *chosen]}],
    }


def _flag(folder: str, name: str) -> dict[str, Any]:
    return {"file": {"root": folder, "try_files": [f"/{name}"]}}


def _to_slot(site: Site, slot: Slot) -> list[dict[str, Any]]:
    return [
        {"handler": "headers", "response": {"set": {SLOT_HEADER: [slot.value]}, "deferred": True}},
        {"handler": "reverse_proxy", "upstreams": [{"dial": f"127.0.0.1:{site.port(slot)}"}]},
    ]


def _nothing_live(site: Site) -> dict[str, Any]:
    return {
        "handler": "static_response",
        "status_code": 503,
        "headers": {"Retry-After": ["5"], "Content-Type": ["text/plain; charset=utf-8"]},
        "body": f"{site.key}: no release is live yet\n",
    }


def merge_routes(present: list[dict[str, Any]], upsert: list[dict[str, Any]], remove: set[str]) -> list[dict[str, Any]]:
    """The routes with ours replaced, added (before foreign ones, so that a foreign catch-all cannot hide them) or
    removed; foreign routes keep their order and content. `remove` holds site keys."""
    gone = {ID_PREFIX + key for key in remove}
    wanted = {route["@id"]: route for route in upsert}
    kept = [wanted.pop(route.get("@id"), route) for route in present if route.get("@id") not in gone]
    return [*wanted.values(), *kept]
