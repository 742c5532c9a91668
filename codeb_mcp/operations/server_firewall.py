"""The firewall of a server: which rules it needs, and whether one can still get in when they are there."""

from __future__ import annotations

import contextlib
import ipaddress

from codeb_mcp.drivers.hosts import Host
from codeb_mcp.model.errors import CodebError, Conflict, DeadlineExceeded, DriverUnavailable, HostKeyChanged
from codeb_mcp.model.firewall import firewall
from codeb_mcp.model.server import Server
from codeb_mcp.operations.context import Services
from codeb_mcp.operations.servers import load_servers

WAY_IN_SECONDS = 10.0
KNOCK = ["timeout", "5", "bash", "-c", 'exec 3<>"/dev/tcp/$0/$1"']

BACK_SAYS = "The former rules come back by themselves, within a minute."


async def rules_for(services: Services, host: Host, server: Server, *, needed: bool) -> str:
    """The rules of the server's role. The ports of sshd are the inventory's and the one that we came in by. `needed`: they are
    to be applied, so raise Conflict when they would shut one of ours out."""
    others = [(key, one) for key, one in (await load_servers(services.store)).items() if one.host != server.host]
    named = sorted(key for key, one in others if not _is_address(one.host))
    if needed and named:
        raise Conflict(
            f"the firewall would shut out {', '.join(named)}: rules are about addresses, and the inventory has a name",
            hint="Give their address with server_add and replace: true, or apply the printed rules by hand.",
        )
    said = (await host.run(["printenv", "SSH_CONNECTION"], timeout_seconds=WAY_IN_SECONDS)).stdout.split()
    ports = {server.port, *(int(port) for port in said[3:4] if port.isdigit())}
    return firewall(server.role, sorted(ports), sorted({one.host for _, one in others if _is_address(one.host)}))


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


async def require_way_in(services: Services, key: str, server: Server) -> None:
    """Come in anew, since connections that are there go on whatever the rules say. Raises DriverUnavailable when that does not
    work."""
    hosts = services.drivers.hosts
    if server.connection == "ssh":
        try:
            shown = await hosts.host_keys(server.host, server.port)
        except (DriverUnavailable, DeadlineExceeded) as error:
            raise DriverUnavailable(
                f"{key} lets no new connection in: {error.message}", hint=BACK_SAYS, server=key
            ) from None
        if server.host_key not in shown:
            raise HostKeyChanged(
                f"{key} shows another host key than the accepted one", hint="Look into it.", server=key
            )
        return
    tried = []
    for name, other in (await load_servers(services.store)).items():
        if other.connection != "ssh" or other.host_key is None:
            continue
        tried.append(name)
        with contextlib.suppress(CodebError):
            way = [*KNOCK, server.host, str(server.port)]
            if (await hosts.at(name, other).run(way, timeout_seconds=WAY_IN_SECONDS)).ok:
                return
    if tried:
        raise DriverUnavailable(
            f"{server.host}:{server.port} cannot be reached from {', '.join(tried)}",
            hint=BACK_SAYS,
            server=key,
        )
    raise Conflict(
        f"nobody can tell whether {key} still lets us in",
        hint=f"Add another server first: this machine is tried from there. {BACK_SAYS}",
        server=key,
    )
