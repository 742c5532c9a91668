"""Sites of others in the proxy, as far as they lead to ports of this machine: what an earlier installation left behind."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from codeb_mcp.model.routes import Route, Site, route_hosts

_LOCAL = re.compile(r"^(?:localhost|127\.0\.0\.1|\[::1\]|):([0-9]{1,5})$")
HARMLESS = frozenset({"encode", "headers"})
"""Handlers that shape an answer and decide nothing: a site may be taken over although they end with its route."""


@dataclass(frozen=True, slots=True)
class ForeignSite:
    """A foreign route with hosts. `ports`: ports of this machine that it sends requests to; `handlers`: what it does besides;
    `plain`: it asks for nothing but hosts, and sends requests nowhere else."""

    hosts: tuple[str, ...]
    ports: tuple[int, ...]
    handlers: tuple[str, ...] = ()
    plain: bool = True

    @property
    def replaceable(self) -> bool:
        """Whether nothing that matters would be lost if another route sent these hosts to the same port."""
        return self.plain and len(self.ports) == 1 and HARMLESS.issuperset(self.handlers)


def foreign_site(route: Route) -> ForeignSite | None:
    """What a route of Caddy's does; None for one without hosts or without a port of this machine."""
    try:
        parts = list(_parts(route))
    except (TypeError, AttributeError):
        return None
    hosts = tuple(dict.fromkeys(route_hosts(route)))
    dials = [dial for kind, dial in parts if kind == "dial"]
    ports = {int(found[1]) for dial in dials if (found := _LOCAL.match(dial))}
    if not hosts or not ports:
        return None
    elsewhere = any(not _LOCAL.match(dial) for dial in dials)
    handlers = tuple(sorted({name for kind, name in parts if kind == "handler"}))
    asks = any(set(matcher) - {"host"} for matcher in route.get("match") or ()) or ("asks", "") in parts
    return ForeignSite(hosts, tuple(sorted(ports)), handlers, plain=not elsewhere and not asks)


def yields(found: ForeignSite, site: Site) -> bool:
    """Whether that foreign route is what the site was before: its hosts, one of its ports, and nothing else that matters."""
    return (
        found.replaceable
        and found.ports[0] in (site.blue_port, site.green_port)
        and set(found.hosts) <= set(site.hosts)
    )


def _parts(route: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """`("dial", address)`, `("handler", name)` and `("asks", "")` of a route and all within it."""
    for handler in route.get("handle") or ():
        match handler.get("handler"):
            case "subroute":
                for inner in handler.get("routes") or ():
                    if inner.get("match"):
                        yield "asks", ""
                    yield from _parts(inner)
            case "reverse_proxy":
                yield from (("dial", str(one.get("dial", ""))) for one in handler.get("upstreams") or ())
                odd = ("headers", "rewrite", "transport", "dynamic_upstreams", "handle_response")
                yield from (("handler", name) for name in odd if handler.get(name))
            case name:
                yield "handler", str(name)
