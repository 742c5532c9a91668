"""The proxy configuration we want, as a value.

Both slots of an environment stand in the configuration for good. Which one serves is decided per request by a flag file
(`file` matcher), so a promote changes no configuration and closes no connection:

* `{key}.green` exists  -> green
* `{key}.off` exists    -> 503, nothing is live
* otherwise             -> blue

The order matters: one look at `.green` decides between the slots, so there is no moment in which neither is chosen.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from codeb_mcp.model.names import Domain, Environment, Slot

ID_PREFIX = "codeb-site-"
NOBODY_ID = "codeb-nobody"
PROOF_ID = "codeb-proof"
SLOT_HEADER = "X-CodeB-Slot"
KEY_PATTERN = r"[a-z0-9][a-z0-9-]{0,79}"

Route = dict[str, Any]
_DOMAIN: TypeAdapter[str] = TypeAdapter(Domain)


@dataclass(frozen=True, slots=True)
class Site:
    """One environment at the proxy: its public names, its preview names and the fixed port of each slot."""

    key: str
    hosts: tuple[str, ...]
    blue_port: int
    green_port: int
    blue_preview: str | None = None
    green_preview: str | None = None
    security_headers: bool = True
    addresses: tuple[str, ...] = ("127.0.0.1",)
    """Where the slots are published; of several, the one with the fewest open requests is asked."""

    def port(self, slot: Slot) -> int:
        """The loopback port of a slot."""
        return self.blue_port if slot is Slot.BLUE else self.green_port

    @property
    def all_hosts(self) -> tuple[str, ...]:
        """Public and preview names."""
        return (*self.hosts, *(name for name in (self.blue_preview, self.green_preview) if name))


def site_problems(site: Site) -> list[dict[str, str]]:
    """Everything about a site that must not reach the proxy, which itself accepts any text: `{field, problem}` each."""
    found = []
    if not re.fullmatch(KEY_PATTERN, site.key):
        found.append({"field": "key", "problem": "must be lower-case letters, digits and hyphens, at most 80"})
    for field, port in (("blue_port", site.blue_port), ("green_port", site.green_port)):
        if type(port) is not int or not 1 <= port <= 65535:
            found.append({"field": field, "problem": "must be a port number from 1 to 65535"})
    if site.blue_port == site.green_port:
        found.append({"field": "green_port", "problem": "must differ from the blue port"})
    if not site.all_hosts:
        found.append({"field": "hosts", "problem": "must name at least one host"})
    if len(set(site.all_hosts)) != len(site.all_hosts):
        found.append({"field": "hosts", "problem": "must name each host once, previews included"})
    found += [
        {"field": "hosts", "problem": f"{host!r:.100} is no full domain name"} for host in site.all_hosts if _bad(host)
    ]
    return found


def _bad(host: str) -> bool:
    try:
        _DOMAIN.validate_python(host, strict=True)
    except ValidationError:
        return True
    return False


def flag_name(key: str, slot: Slot | None) -> str | None:
    """The flag file that says "this slot is live"; None for blue, which is live when no flag is there."""
    return f"{key}.off" if slot is None else None if slot is Slot.BLUE else f"{key}.green"


def site_id(key: str) -> str:
    """The `@id` of a site's route in Caddy's configuration."""
    return ID_PREFIX + key


def site_key(route: Route) -> str | None:
    """The key of the site that a route object is; None for a route that is not ours."""
    name = route.get("@id")
    return name.removeprefix(ID_PREFIX) if isinstance(name, str) and name.startswith(ID_PREFIX) else None


def site_route(site: Site, flags_folder: str) -> Route:
    """The route object of a site for Caddy's JSON configuration (caddyserver.com/docs/json/apps/http)."""
    previews = [
        {"match": [{"host": [name]}], "terminal": True, "handle": [_or_nothing(site, slot)]}
        for slot, name in ((Slot.BLUE, site.blue_preview), (Slot.GREEN, site.green_preview))
        if name
    ]
    chosen = [
        {"match": [_flag(flags_folder, f"{site.key}.green")], "terminal": True, "handle": _to_slot(site, Slot.GREEN)},
        {"match": [_flag(flags_folder, f"{site.key}.off")], "terminal": True, "handle": [_nothing_live(site)]},
        {"handle": _to_slot(site, Slot.BLUE)},
    ]
    return {
        "@id": site_id(site.key),
        "match": [{"host": list(site.all_hosts)}],
        "terminal": True,
        "handle": [
            *(security_headers() if site.security_headers else []),
            {"handler": "subroute", "routes": [*previews, *chosen]},
        ],
    }


HSTS = ("Strict-Transport-Security", "max-age=31536000")
"""A year, for this very host: who has the domain may have others below it that are not ours to decide about."""


def security_headers() -> list[dict[str, Any]]:
    """Handlers that add headers to every answer which does not have them: what the application sets stays as it is.

    HSTS is sent over TLS only. Who may frame a page is left to an application that has a policy of its own.
    """
    hsts = {"match": [{"protocol": "https"}], "handle": [_unless_set(*HSTS)]}
    return [
        _unless_set("X-Content-Type-Options", "nosniff"),
        _unless_set("Referrer-Policy", "strict-origin-when-cross-origin"),
        _unless_set("X-Frame-Options", "SAMEORIGIN", "Content-Security-Policy"),
        {"handler": "subroute", "routes": [hsts]},
    ]


def _unless_set(name: str, value: str, *others: str) -> dict[str, Any]:
    absent: dict[str, None] = dict.fromkeys((name, *others))
    return {
        "handler": "headers",
        "response": {"set": {name: [value]}, "require": {"headers": absent}, "deferred": True},
    }


def site_from_route(route: Route) -> Site | None:
    """The site that a route of ours was made from, as far as it tells; None for a foreign one or one that was changed so
    that it names no two ports."""
    key = site_key(route)
    try:
        inner = [_unwrapped(one) for one in route["handle"][-1]["routes"]] if key else []
        ports = {slot: _port_to(inner, slot) for slot in Slot}
        previews = {slot: _preview_of(inner, slot) for slot in Slot}
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        return None
    blue, green = ports[Slot.BLUE], ports[Slot.GREEN]
    if key is None or blue is None or green is None:
        return None
    hosts = tuple(host for host in route_hosts(route) if host not in previews.values())
    return Site(
        key,
        hosts,
        blue,
        green,
        previews[Slot.BLUE],
        previews[Slot.GREEN],
        security_headers=len(route["handle"]) > 1,
        addresses=_addresses_in(inner),
    )


def _unwrapped(route: Route) -> Route:
    """A preview's route with its handlers as they stand in a public one; earlier versions made them so."""
    first = route["handle"][0]
    return {**route, "handle": first["routes"][0]["handle"]} if first.get("handler") == "subroute" else route


def _to(route: Route, slot: Slot) -> bool:
    return bool(route["handle"][0].get("response", {}).get("set", {}).get(SLOT_HEADER) == [slot.value])


def _port_to(inner: Sequence[Route], slot: Slot) -> int | None:
    dials = [route["handle"][1]["upstreams"][0]["dial"] for route in inner if _to(route, slot)]
    return int(dials[0].rpartition(":")[2]) if dials else None


def _addresses_in(inner: Sequence[Route]) -> tuple[str, ...]:
    handler = next(route["handle"][1] for route in inner if _to(route, Slot.BLUE))
    return tuple(str(one["dial"]).rpartition(":")[0].strip("[]") for one in handler["upstreams"])


def _preview_of(inner: Sequence[Route], slot: Slot) -> str | None:
    return next((host for route in inner if _to(route, slot) for host in route_hosts(route)), None)


def _flag(folder: str, name: str) -> dict[str, Any]:
    return {"file": {"root": folder, "try_files": [f"/{name}"]}}


def _to_slot(site: Site, slot: Slot) -> list[dict[str, Any]]:
    # `deferred` writes the header when the slot's own answer comes back: an application cannot pretend to be the other
    # slot, and an answer that Caddy makes up itself (502) carries no slot.
    return [
        {"handler": "headers", "response": {"set": {SLOT_HEADER: [slot.value]}, "deferred": True}},
        {
            "handler": "reverse_proxy",
            "upstreams": [{"dial": f"{_bracketed(address)}:{site.port(slot)}"} for address in site.addresses],
            **(_AMONG_SEVERAL if len(site.addresses) > 1 else {}),
        },
    ]


_AMONG_SEVERAL: dict[str, Any] = {
    "load_balancing": {"selection_policy": {"policy": "least_conn"}, "try_duration": "5s", "try_interval": "100ms"},
    "health_checks": {"passive": {"fail_duration": "10s", "max_fails": 1}},
}
"""A server that does not take a connection is passed over for a while, and the request goes to another one."""


def _bracketed(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def _or_nothing(site: Site, slot: Slot) -> dict[str, Any]:
    """To the slot, and a plain sentence when nobody is there. Other errors stay what they are: without the second route
    they would end as an empty 200."""
    nobody = {
        "match": [{"expression": "{http.error.status_code} == 502"}],
        "terminal": True,
        "handle": [_unavailable(f"{site.key}: no release answers in slot {slot.value}")],
    }
    same = {"handle": [{"handler": "error", "status_code": "{http.error.status_code}"}]}
    return {
        "handler": "subroute",
        "routes": [{"handle": _to_slot(site, slot)}],
        "errors": {"routes": [nobody, same]},
    }


def _nothing_live(site: Site) -> dict[str, Any]:
    return _unavailable(f"{site.key}: no release is live yet")


def _unavailable(said: str) -> dict[str, Any]:
    return {
        "handler": "static_response",
        "status_code": 503,
        "headers": {"Retry-After": ["5"], "Content-Type": ["text/plain; charset=utf-8"]},
        "body": f"{said}\n",
    }


def nobody_route(base_domain: str, preview_domain: str) -> Route:
    """The route that answers 404 for names which can only be ours and are no site (any more): all below the preview domain,
    and those of environments below the base domain. Without it the proxy answers an empty 200. To be the last of all.

    Other names below the base domain may be somebody else's. The names are matched by a pattern because the proxy gets a
    certificate for each `host` that is asked for, and for a wildcard instead of those for single names.
    """
    environments = "|".join(one.value for one in Environment if one is not Environment.PRODUCTION)
    ours = (
        rf"(?:[^.]+\.)+{re.escape(preview_domain)}",
        rf"[^.]+-(?:{environments})\.{re.escape(base_domain)}",
    )
    return {
        "@id": NOBODY_ID,
        "match": [{"vars_regexp": {"{http.request.host}": {"pattern": rf"(?i)^(?:{'|'.join(ours)})\.?$"}}}],
        "terminal": True,
        "handle": [
            {
                "handler": "static_response",
                "status_code": 404,
                "headers": {"Content-Type": ["text/plain; charset=utf-8"], "Cache-Control": ["no-store"]},
                "body": "there is nothing at this address (any more)\n",
            }
        ],
    }


def route_hosts(route: Route) -> Iterator[str]:
    """The host names a route asks for, lower case; none for a route that matches by something else."""
    for matcher in route.get("match") or ():
        for host in matcher.get("host") or () if isinstance(matcher, dict) else ():
            if isinstance(host, str):
                yield host.lower()


def proof_route(path: str, proof: str) -> Route:
    """The route that shows over plain HTTP, under any name, that this proxy is ours. It takes nobody's host."""
    return {
        "@id": PROOF_ID,
        "match": [{"path": [path]}],
        "terminal": True,
        "handle": [
            {
                "handler": "static_response",
                "status_code": 200,
                "headers": {"Content-Type": ["text/plain; charset=utf-8"], "Cache-Control": ["no-store"]},
                "body": f"{proof}\n",
            }
        ],
    }


def rival(routes: Sequence[Route], site: Site) -> tuple[str, str] | None:
    """`(host, who)` of the first other route that asks for one of the site's own names; None when all are free.

    A wildcard or a catch-all is no rival: our exact names come first.
    """
    wanted = set(site.all_hosts)
    for position, route in enumerate(routes):
        if site_key(route) == site.key:
            continue
        for host in route_hosts(route):
            if host in wanted:
                other = site_key(route)
                return host, f"site {other}" if other else f"route {route.get('@id') or position}"
    return None


@dataclass(frozen=True, slots=True)
class RivalRoute:
    """A route of somebody else that gets requests for a host of the site `key` before the site does. `where` tells a person
    where it stands in the proxy's configuration."""

    key: str
    host: str
    where: str


_PASSING = frozenset(
    {"headers", "encode", "vars", "rewrite", "map", "request_body", "log_append", "tracing", "templates"}
)
"""Handlers that hand the request on to the next route."""


def rivals_before(routes: Sequence[Route], server: str) -> list[RivalRoute]:
    """The foreign routes of a server that stand before a site of ours and answer for one of its hosts, the first one for
    each host. One that asks for something else and no host at all (a path, say) is not against anybody."""
    found: list[RivalRoute] = []
    before: list[tuple[str, Route]] = []
    for position, route in enumerate(routes):
        key = site_key(route)
        if key is None and route.get("@id") not in (NOBODY_ID, PROOF_ID) and _answers(route):
            name = f" ({route['@id']})" if isinstance(route.get("@id"), str) else ""
            before.append((f"route {position}{name} of the proxy's server {server}", route))
        for host in route_hosts(route) if key is not None and before else ():
            where = next((where for where, other in before if _claims(other, host)), None)
            if where is not None:
                found.append(RivalRoute(str(key), host, where))
    return found


def _answers(route: Route) -> bool:
    if route.get("terminal"):
        return True
    for handler in route.get("handle") or ():
        kind = handler.get("handler")
        inner = handler.get("routes") or () if kind == "subroute" else ()
        if any(map(_answers, inner)) or kind not in (*_PASSING, "subroute"):
            return True
    return False


def _claims(route: Route, host: str) -> bool:
    matchers = route.get("match") or [{}]
    asked = [one.get("host") if isinstance(one, dict) and one else ["*"] if not one else None for one in matchers]
    return any(isinstance(one, str) and _fits(one.lower(), host) for names in asked for one in names or ())


def _fits(pattern: str, host: str) -> bool:
    if pattern == "*":
        return True
    wanted, labels = pattern.split("."), host.split(".")
    return len(wanted) == len(labels) and all(one in ("*", label) for one, label in zip(wanted, labels, strict=True))


def merge_routes(
    present: Sequence[Route], upsert: Iterable[Route], remove: Iterable[str], nobody: Route | None = None
) -> list[Route]:
    """The routes with ours replaced in place, added (before foreign ones, so that a foreign catch-all cannot hide them)
    or removed; foreign routes keep their order and content. `remove` holds site keys. `nobody` is put at the very end, so
    that it hides nothing, and is there only as long as a site is."""
    gone = {NOBODY_ID, *(site_id(key) for key in remove)}
    wanted = {route["@id"]: route for route in upsert}
    placed: set[str] = set()
    kept: list[Route] = []
    for route in present:
        name = str(route.get("@id"))
        if name in gone or name in placed:
            continue
        if name in wanted:
            placed.add(name)
            route = wanted[name]
        kept.append(route)
    merged = [*(route for name, route in wanted.items() if name not in placed), *kept]
    return [*merged, nobody] if nobody and any(map(site_key, merged)) else merged
