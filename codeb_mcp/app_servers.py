"""The drivers of the app servers of the inventory, each put together once: its engine, proxy and flags over its connection."""

from __future__ import annotations

import asyncio
import posixpath
from dataclasses import dataclass

from codeb_mcp.drivers.caddy import CaddyProxy
from codeb_mcp.drivers.caddy_admin import CaddyAdmin
from codeb_mcp.drivers.caddy_config import Acme
from codeb_mcp.drivers.caddy_pki import internal_root
from codeb_mcp.drivers.docker import DockerContainers
from codeb_mcp.drivers.docker_api import EngineApi
from codeb_mcp.drivers.docker_credentials import credentials_from
from codeb_mcp.drivers.docker_images import DockerImages
from codeb_mcp.drivers.host_flags import HostTraffic
from codeb_mcp.drivers.hosts import Host, Hosts
from codeb_mcp.drivers.kernel import HostPorts
from codeb_mcp.drivers.outside import NetworkOutside, from_file, the_systems
from codeb_mcp.drivers.probe import Authority, HttpProber
from codeb_mcp.model.errors import DriverUnavailable
from codeb_mcp.model.server import Server
from codeb_mcp.operations.context import AppServer
from codeb_mcp.settings import AppServerSettings, Settings

DF_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class _Known:
    server: Server
    drivers: AppServer


class SshAppServers:
    """Implements `AppServers`. What changed in the inventory gets new drivers; the former ones are closed at the end."""

    def __init__(self, settings: Settings, hosts: Hosts) -> None:
        self._settings = settings
        self._hosts = hosts
        self._known: dict[str, _Known] = {}
        self._former: list[AppServer] = []

    def at(self, key: str, server: Server) -> AppServer:
        """See `AppServers.at`."""
        known = self._known.get(key)
        if known is not None and known.server == server:
            return known.drivers
        if known is not None:
            self._former.append(known.drivers)
        made = _Assembly(self._settings, key, server, self._hosts.at(key, server)).drivers()
        self._known[key] = _Known(server, made)
        return made

    async def close(self) -> None:
        """See `AppServers.close`."""
        every = [*(one.drivers for one in self._known.values()), *self._former]
        self._known.clear()
        self._former.clear()
        closing = [part.close() for one in every for part in (one.containers, one.images, one.proxy, one.prober)]
        await asyncio.gather(*closing)


class _Assembly:
    """Puts the drivers of one server together; nothing is connected yet."""

    def __init__(self, settings: Settings, key: str, server: Server, host: Host) -> None:
        self.settings, self.key, self.server, self.host = settings, key, server, host
        self.own = settings.app_servers.get(key, AppServerSettings())

    def drivers(self) -> AppServer:
        docker = self.settings.docker
        credentials = credentials_from(docker.credentials_file)
        return AppServer(
            containers=DockerContainers(self._engine()),
            images=DockerImages(self._engine(), credentials=credentials, min_free_bytes=docker.min_free_mb << 20),
            proxy=self._proxy(),
            traffic=HostTraffic(self.host, str(self.own.flags or self.settings.traffic)),
            prober=self._prober(),
            ports=HostPorts(self.host),
            outside=NetworkOutside(
                self._public(), http_port=self.settings.proxy.http_port, authority=self._authority() or the_systems
            ),
        )

    def _engine(self) -> EngineApi:
        wanted = self.server.engine or "ssh"
        if wanted.startswith("tcp://"):
            if self.own.tls is None:
                return EngineApi(wanted, locate=self._no_certificates)
            return EngineApi(wanted, free=self._free, tls=self.own.tls)
        if wanted == "none":
            return EngineApi(wanted, locate=self._no_engine)
        return EngineApi(f"server {self.key}", locate=self._engine_socket, free=self._free)

    async def _no_certificates(self) -> str:
        raise DriverUnavailable(
            f"the engine of server {self.key} is at {self.server.engine}, and there are no certificates for it",
            hint=f"Set app_servers.{self.key}.tls to a folder with ca.pem, cert.pem and key.pem, or use engine ssh.",
            server=self.key,
        )

    async def _no_engine(self) -> str:
        raise DriverUnavailable(
            f"server {self.key} has no container engine", hint="Set its engine with server_add.", server=self.key
        )

    async def _engine_socket(self) -> str:
        return "unix://" + await self.host.socket(self.own.engine_socket)

    async def _free(self, folder: str) -> int | None:
        """What `df` of that server says about the file system of the engine's folder."""
        if not posixpath.isabs(folder):
            return None
        done = await self.host.run(["df", "-P", "-B1", "--", folder], timeout_seconds=DF_SECONDS)
        rows = done.stdout.decode("utf-8", "replace").splitlines()[1:] if done.ok else []
        fields = rows[0].split() if rows else []
        return int(fields[3]) if len(fields) > 3 and fields[3].isdigit() else None

    async def _admin_socket(self) -> str:
        target = self.own.admin.removeprefix("unix://").removeprefix("http://").rstrip("/")
        return await self.host.socket(target)

    def _proxy(self) -> CaddyProxy:
        proxy = self.settings.proxy
        root = str(proxy.acme_root) if proxy.acme_root else None
        return CaddyProxy(
            CaddyAdmin(self.own.admin, locate=self._admin_socket),
            flags_folder=str(self.own.flags or self.settings.traffic),
            listen=self.own.listen or proxy.listen,
            tls=proxy.tls,
            domains=(self.settings.base_domain, self.settings.preview_domain),
            acme=Acme(proxy.acme_directory, root, proxy.acme_email, proxy.http_port),
        )

    def _prober(self) -> HttpProber:
        address, _, port = self._public().rpartition(":")
        return HttpProber(
            address=address.strip("[]"),
            port=int(port),
            tls=self.settings.proxy.tls,
            authority=self._authority(),
            locate=self.host.socket,
        )

    def _public(self) -> str:
        return self.own.public or f"{self.server.host}:{self.settings.proxy.public.rpartition(':')[2]}"

    def _authority(self) -> Authority | None:
        """Whom to believe at its front door; None for the system's authorities."""
        proxy = self.settings.proxy
        if proxy.root_certificate is not None:
            return from_file(proxy.root_certificate)
        return internal_root(self.own.admin, locate=self._admin_socket) if proxy.tls == "internal" else None
