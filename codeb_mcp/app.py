"""The composition root: settings become drivers, registry and services. The only place that constructs them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from codeb_mcp.app_servers import SshAppServers
from codeb_mcp.drivers.caddy import CaddyProxy
from codeb_mcp.drivers.caddy_config import Acme
from codeb_mcp.drivers.caddy_pki import internal_root
from codeb_mcp.drivers.clock import SystemClock
from codeb_mcp.drivers.dns import Zone
from codeb_mcp.drivers.dns_cloudflare import SERVER, CloudflareZone
from codeb_mcp.drivers.dns_powerdns import PowerDnsZone
from codeb_mcp.drivers.dns_rfc2136 import TsigKey, UpdateZone
from codeb_mcp.drivers.docker import DockerContainers
from codeb_mcp.drivers.docker_credentials import credentials_from
from codeb_mcp.drivers.docker_images import DockerImages
from codeb_mcp.drivers.flags import FlagTraffic, LocalTraffic
from codeb_mcp.drivers.github import GitHubPullRequests
from codeb_mcp.drivers.inspect import SocketInspector
from codeb_mcp.drivers.kernel import KernelPorts
from codeb_mcp.drivers.names import DnsNames
from codeb_mcp.drivers.outside import NetworkOutside, from_file, the_systems
from codeb_mcp.drivers.own_stores import Stores
from codeb_mcp.drivers.probe import HttpProber
from codeb_mcp.drivers.ssh import SshHosts, SshSettings
from codeb_mcp.operations.catalog import load_all
from codeb_mcp.operations.context import Drivers, Registry, Services
from codeb_mcp.operations.runs import Runs
from codeb_mcp.operations.trail import Trail
from codeb_mcp.registry.audit import AuditTrail
from codeb_mcp.registry.env_history import EnvHistories
from codeb_mcp.registry.files import FileStore
from codeb_mcp.registry.journal import Journals
from codeb_mcp.registry.prepaid import PrepaidLimiter
from codeb_mcp.settings import DnsZone, Settings


def configured_log(level: str) -> Any:
    """The log on stderr, with colours on a terminal."""
    from codeb_mcp.log import configure_logging

    return configure_logging(level, colours=os.isatty(2))


class LateLog:
    """A log that is set up at its first line: what it takes to write one costs as much as a tenth of a start."""

    def __init__(self, level: str) -> None:
        self._level = level
        self._log: Any = None

    def __getattr__(self, name: str) -> Any:
        if self._log is None:
            self._log = configured_log(self._level)
        return getattr(self._log, name)


def build_drivers(settings: Settings) -> Drivers:
    """Drivers for this host; nothing is connected yet."""
    proxy, docker = settings.proxy, settings.docker
    host, _, port = proxy.public.rpartition(":")
    authority = internal_root(proxy.admin) if proxy.tls == "internal" else the_systems
    if proxy.root_certificate is not None:
        authority = from_file(proxy.root_certificate)
    hosts = SshHosts(ssh_settings(settings))
    return Drivers(
        containers=DockerContainers(docker.host),
        images=DockerImages(
            docker.host,
            credentials=credentials_from(docker.credentials_file),
            min_free_bytes=docker.min_free_mb << 20,
        ),
        proxy=CaddyProxy(
            proxy.admin,
            flags_folder=str(settings.traffic),
            listen=proxy.listen,
            tls=proxy.tls,
            domains=(settings.base_domain, settings.preview_domain),
            acme=Acme(
                proxy.acme_directory,
                str(proxy.acme_root) if proxy.acme_root else None,
                proxy.acme_email,
                proxy.http_port,
            ),
        ),
        traffic=LocalTraffic(FlagTraffic(settings.traffic)),
        prober=HttpProber(address=host, port=int(port), tls=proxy.tls, authority=proxy.root_certificate),
        ports=KernelPorts(),
        clock=SystemClock(),
        hosts=hosts,
        app_servers=SshAppServers(settings, hosts),
        inspect=SocketInspector(),
        pull_requests=GitHubPullRequests(settings.github.api, settings.github.token_file),
        names=names_from(settings),
        outside=NetworkOutside(proxy.public, http_port=proxy.http_port, authority=authority),
        stores=Stores(credentials_from(docker.credentials_file)),
    )


def names_from(settings: Settings) -> DnsNames:
    """Resolvers and the zones that can be written to; secrets are read when they are needed."""
    dns = settings.dns

    def maker(name: str, zone: DnsZone) -> Callable[[], Zone]:
        return lambda: zone_from(name, zone, ttl=dns.ttl, timeout_seconds=dns.timeout_seconds)

    zones = {name: maker(name, zone) for name, zone in dns.zones.items() if zone.provider != "manual"}
    return DnsNames(dns.resolvers, zones, timeout_seconds=dns.timeout_seconds)


def zone_from(name: str, zone: DnsZone, *, ttl: int, timeout_seconds: float) -> Zone:
    """The client for a zone; nothing is connected yet. The settings have made sure that all it needs is there."""
    secret, server = zone.secret_file or Path(), zone.server or SERVER
    if zone.provider == "rfc2136":
        key = TsigKey(zone.key_name or "", secret, zone.key_algorithm)
        return UpdateZone(name, server, key=key, ttl=ttl, timeout_seconds=timeout_seconds)
    if zone.provider == "powerdns":
        return PowerDnsZone(
            name, server, secret_file=secret, server_id=zone.server_id, ttl=ttl, timeout_seconds=timeout_seconds
        )
    return CloudflareZone(name, server, secret_file=secret, ttl=ttl, timeout_seconds=timeout_seconds)


def ssh_settings(settings: Settings) -> SshSettings:
    """How the servers of the inventory are reached."""
    ssh = settings.ssh
    return SshSettings(
        key_file=str(settings.ssh_key),
        agent=str(ssh.agent) if ssh.agent else None,
        connect_seconds=ssh.connect_seconds,
        keepalive_seconds=ssh.keepalive_seconds,
    )


def build(settings: Settings, drivers: Drivers | None = None, *, late: bool = False) -> Services:
    """An installation, ready for calls inside a running event loop. `late`: the caller loads the catalog itself before its
    first call, and the log is set up when there is something to log."""
    if not late:
        load_all()
    store = FileStore(settings.registry)
    registry = Registry(
        store=store,
        journals=Journals(settings.registry, store),
        audit=AuditTrail(settings.registry),
        limiter=PrepaidLimiter(settings.run / "limits"),
        env=EnvHistories(settings.root, immutable_master=settings.env.immutable_master),
    )
    runs = Runs()
    services = Services(
        settings=settings,
        drivers=drivers or build_drivers(settings),
        registry=registry,
        trail=Trail(registry.audit),
        runs=runs,
        log=LateLog(settings.log_level) if late else configured_log(settings.log_level),
    )
    runs.bind(services)
    return services


@contextlib.asynccontextmanager
async def opened(settings: Settings, drivers: Drivers | None = None, *, late: bool = False) -> AsyncIterator[Services]:
    """The installation for the time of a block; closes runs, audit and connections at its end. `late`: see `build`."""
    services = build(settings, drivers, late=late)
    try:
        yield services
    finally:
        await services.runs.close()
        await services.trail.close()
        for driver in (
            services.drivers.containers,
            services.drivers.images,
            services.drivers.proxy,
            services.drivers.prober,
            services.drivers.app_servers,
            services.drivers.hosts,
            services.drivers.names,
        ):
            await driver.close()
