"""From the configuration that Caddy runs to the one we want: pure functions on parsed JSON.

Nothing is changed in place. Whatever is not ours is carried over by reference, so it cannot change.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from codeb_mcp.model.errors import Conflict, DriverRefused
from codeb_mcp.model.foreign import ForeignSite, foreign_site, yields
from codeb_mcp.model.routes import (
    NOBODY_ID,
    RivalRoute,
    Route,
    Site,
    merge_routes,
    rival,
    rivals_before,
    route_hosts,
    site_from_route,
    site_key,
    site_route,
)

Tls = Literal["off", "internal", "acme"]
Json = dict[str, Any]
TLS_ID = "codeb-tls"
HTTP_SERVER = "codeb-http"
USUAL_HTTP_PORT = 80
_ANY_ADDRESS = frozenset({"", "0.0.0.0", "::"})


@dataclass(frozen=True, slots=True)
class Acme:
    """Which authority issues certificates, where that is not Caddy's own choice. `root`: file with the root certificate of
    the directory's address; `http_port`: where the authority's questions over plain HTTP arrive."""

    directory: str | None = None
    root: str | None = None
    email: str | None = None
    http_port: int = 80

    def issuer(self) -> Json | None:
        """Caddy's issuer for it; None when nothing was said."""
        said: Json = {
            "ca": self.directory,
            "email": self.email,
            "trusted_roots_pem_files": [self.root] if self.root else None,
        }
        if self.http_port != USUAL_HTTP_PORT:
            said["challenges"] = {"http": {"alternate_port": self.http_port}, "tls-alpn": {"disabled": True}}
        said = {name: value for name, value in said.items() if value is not None}
        return {"module": "acme", **said} if said else None


@dataclass(frozen=True, slots=True)
class Edge:
    """Where our sites stand in Caddy. `listen` holds Caddy network addresses, the public one first; `nobody` is the route
    for names of ours that are no site."""

    flags_folder: str
    listen: tuple[str, ...]
    tls: Tls
    server_name: str
    nobody: Route | None = None
    acme: Acme = Acme()


@dataclass(frozen=True, slots=True)
class Address:
    """A Caddy network address: network, host and the range of ports."""

    network: str
    host: str
    first: int
    last: int

    def overlaps(self, other: Address) -> bool:
        """Whether both cannot be listened on by different servers."""
        if self.network != other.network:
            return False
        same_host = self.host == other.host or not _ANY_ADDRESS.isdisjoint((self.host, other.host))
        return same_host and self.first <= other.last and other.first <= self.last


def parse_address(text: str) -> Address:
    """Read `[network/][host]:port[-port]` or `unix/path`; a text that is neither overlaps only with itself."""
    network, slash, rest = text.partition("/")
    if not slash or not re.fullmatch(r"(tcp|udp|unix)[46+a-z]*", network):
        network, rest = "tcp", text
    if network.startswith("unix"):
        return Address("unix", rest, 0, 0)
    host, _, ports = rest.rpartition(":")
    if not (found := re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", ports)):
        return Address("other", text, 0, 0)
    return Address(network.rstrip("46"), host.strip("[]"), int(found[1]), int(found[2] or found[1]))


def servers_of(config: Json | None) -> dict[str, Json]:
    """The HTTP servers of a configuration by name; empty when it has none."""
    return _at(config, "apps", "http", "servers")


def site_keys(config: Json | None) -> list[str]:
    """The keys of all sites of ours, sorted."""
    routes = (route for server in servers_of(config).values() for route in server.get("routes") or ())
    return sorted({key for route in routes if (key := site_key(route)) is not None})


def sites_in(config: Json | None) -> list[Site]:
    """All sites of ours that can be told from their routes, by key."""
    routes = (route for server in servers_of(config).values() for route in server.get("routes") or ())
    found = {site.key: site for route in routes if (site := site_from_route(route)) is not None}
    return [found[key] for key in sorted(found)]


def others_in(config: Json | None, edge: Edge) -> list[ForeignSite]:
    """The sites of others on the server that has, or would have, ours."""
    present = servers_of(config)
    routes = present.get(_server_name(present, edge), {}).get("routes") or []
    return [found for route in routes if site_key(route) is None and (found := foreign_site(route)) is not None]


def rivals_in(config: Json | None) -> list[RivalRoute]:
    """Routes of others that get requests for our hosts first."""
    return [
        found
        for name, server in servers_of(config).items()
        for found in rivals_before(server.get("routes") or [], name)
    ]


def change(
    config: Json | None, edge: Edge, upsert: Sequence[Site], remove: Iterable[str], *, take_over: bool = False
) -> Json:
    """The configuration that has these sites and not those; equal to `config` when nothing is to be done. `take_over`: see
    `Proxy.apply`.

    Raises Conflict when another route of the server already asks for one of the sites' host names, and DriverRefused when
    the configuration is not shaped like one of Caddy's.
    """
    gone = frozenset(remove)
    present = servers_of(config)
    target = _server_name(present, edge)
    touched = gone | {site.key for site in upsert}
    servers = {name: server if name == target else _without(server, touched) for name, server in present.items()}
    if take_over and target in servers:
        servers[target] = _given_way(servers[target], upsert)
    if upsert or target in servers:
        servers[target] = _with_routes(servers.get(target, {}), target, edge, upsert, gone)
    if servers == present:
        return config or {}
    changed = _put(config or {}, servers, "apps", "http", "servers")
    if edge.tls == "internal":
        # Never touch the host's trust store.
        authority = _at(changed, "apps", "pki", "certificate_authorities", "local")
        changed = _put(
            changed, {"install_trust": False, **authority}, "apps", "pki", "certificate_authorities", "local"
        )
    issuer = {"module": "internal"} if edge.tls == "internal" else edge.acme.issuer() if edge.tls == "acme" else None
    return _with_issuer(changed, servers, issuer) if issuer else changed


def with_proof(config: Json | None, edge: Edge, route: Route) -> Json:
    """The configuration in which plain HTTP gets this route first, on whichever server already listens there, else on one of
    our own. Equal to `config` when nothing is to be done."""
    present = servers_of(config)
    listen = tuple(dict.fromkeys(f"{text.rpartition(':')[0]}:{edge.acme.http_port}" for text in edge.listen))
    wanted = [parse_address(text) for text in listen]
    target = next(
        (
            name
            for name, server in present.items()
            if any(one.overlaps(parse_address(text)) for one in wanted for text in server.get("listen") or ())
        ),
        HTTP_SERVER,
    )
    servers = {
        name: _without_route(server, str(route["@id"]), kept=route if name == target else None)
        for name, server in present.items()
    }
    own = servers.get(target, {"listen": list(listen)})
    if route not in (own.get("routes") or []):
        servers[target] = {**own, "routes": [route, *(own.get("routes") or [])]}
    if edge.acme.http_port != USUAL_HTTP_PORT:
        config = _put(config or {}, edge.acme.http_port, "apps", "http", "http_port")
    return config or {} if servers == present else _put(config or {}, servers, "apps", "http", "servers")


def _without_route(server: Json, name: str, *, kept: Route | None) -> Json:
    routes = server.get("routes") or []
    left = [route for route in routes if route.get("@id") != name or route == kept]
    return server if len(left) == len(routes) else {**server, "routes": left}


def _with_routes(server: Json, name: str, edge: Edge, upsert: Sequence[Site], remove: frozenset[str]) -> Json:
    wanted = [site_route(site, edge.flags_folder) for site in upsert]
    routes = merge_routes(server.get("routes") or [], wanted, remove, edge.nobody)
    for site in upsert:
        if found := rival(routes, site):
            raise _conflict(site, name, *found)
    own = _own_server(server, edge) if name == edge.server_name else server
    return {**own, "routes": routes}


def _given_way(server: Json, sites: Sequence[Site]) -> Json:
    """The server without the foreign routes that one of these sites takes the place of."""
    routes = server.get("routes") or []
    found = [None if site_key(route) else foreign_site(route) for route in routes]
    gone = [one is not None and any(yields(one, site) for site in sites) for one in found]
    return {**server, "routes": [route for route, goes in zip(routes, gone, strict=True) if not goes]}


def _server_name(servers: Mapping[str, Json], edge: Edge) -> str:
    """The server that holds our first address which anybody holds; ours by name when nobody does."""
    for wanted in map(parse_address, edge.listen):
        for name, server in servers.items():
            if any(wanted.overlaps(parse_address(text)) for text in server.get("listen") or ()):
                return name
    return edge.server_name


def _own_server(server: Json, edge: Edge) -> Json:
    settings: dict[Tls, Json] = {
        "off": {"automatic_https": {"disable": True}},
        # The redirects would listen on port 80, which nobody gave us; an empty policy is TLS with Caddy's defaults.
        "internal": {
            "automatic_https": {"disable_redirects": True},
            "tls_connection_policies": [{}],
            "protocols": ["h1", "h2"],
        },
        "acme": {},
    }
    return {**server, "listen": list(edge.listen), **settings[edge.tls]}


def _without(server: Json, keys: frozenset[str]) -> Json:
    """The server without our sites of these keys: a site that moves to another server must not stay in the former. Nor
    must the route for nobody, of which a configuration can have only one."""
    routes = server.get("routes") or []
    kept = [route for route in routes if site_key(route) not in keys and route.get("@id") != NOBODY_ID]
    return server if len(kept) == len(routes) else {**server, "routes": kept}


def _with_issuer(config: Json, servers: Mapping[str, Json], issuer: Json) -> Json:
    """Have this authority issue the certificates of our hosts, and of nobody else's."""
    routes: list[Route] = [route for server in servers.values() for route in server.get("routes") or ()]
    hosts = sorted({host for route in routes if site_key(route) is not None for host in route_hosts(route)})
    others = [
        policy for policy in _list_at(config, "apps", "tls", "automation", "policies") if policy.get("@id") != TLS_ID
    ]
    ours = [{"@id": TLS_ID, "subjects": hosts, "issuers": [issuer]}] if hosts else []
    return _put(config, [*ours, *others], "apps", "tls", "automation", "policies")


def _conflict(site: Site, server: str, host: str, who: str) -> Conflict:
    return Conflict(
        f"{host} is already served by {who} in the proxy's server {server}",
        hint=f"Remove that route from the proxy's configuration or give {site.key} another domain.",
        host=host,
        site=site.key,
        claimedBy=who,
    )


def _at(config: Json | None, *path: str) -> Json:
    found = _look(config, path)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise _odd(path)
    return found


def _list_at(config: Json, *path: str) -> list[Json]:
    found = _look(config, path)
    if found is None:
        return []
    if not isinstance(found, list):
        raise _odd(path)
    return found


def _look(config: Json | None, path: tuple[str, ...]) -> Any:
    found: Any = config
    for step in path:
        if found is None:
            return None
        if not isinstance(found, dict):
            raise _odd(path)
        found = found.get(step)
    return found


def _put(config: Json, value: Any, step: str, *deeper: str) -> Json:
    return {**config, step: _put(config.get(step) or {}, value, *deeper) if deeper else value}


def _odd(path: tuple[str, ...]) -> DriverRefused:
    return DriverRefused(
        f"the proxy's configuration has something unexpected at {'/'.join(path)}",
        hint="Check that the admin address is Caddy's.",
    )
