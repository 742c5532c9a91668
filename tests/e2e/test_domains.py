"""Domains on real parts: a name server, an authority, Caddy old and new. Only the container engine is in memory here; its
applications answer on real ports."""

from __future__ import annotations

import asyncio
import contextlib
import os
import ssl
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from codeb_mcp.app import build, build_drivers
from codeb_mcp.drivers.fake_engine import FakeEngine
from codeb_mcp.drivers.fakes import FakeContainers, FakeImages
from codeb_mcp.model.access import Principal, Role
from codeb_mcp.model.errors import CodebError
from codeb_mcp.model.routes import Site
from codeb_mcp.operations.context import Services
from codeb_mcp.operations.housekeeping import Housekeeper
from codeb_mcp.operations.invoke import Call, invoke
from codeb_mcp.operations.setup import initialise
from codeb_mcp.settings import Settings
from tests.conftest import _leave_out_without
from tests.lab.caddy import BINARIES, CaddyServer, running_caddy
from tests.lab.dns import KEY, Bind, running_bind
from tests.lab.pebble import Pebble, running_pebble
from tests.lab.ports import FreePorts

OWNER = Principal("key_test", "tests", "default", Role.OWNER, platform=True)
LIVE = {"projectName": "shop", "environment": "production"}
HERE = "127.0.0.1"
WAIT_SECONDS = 60


@dataclass
class Installed:
    """An installation whose names, certificates and proxy are real."""

    services: Services
    bind: Bind
    caddy: CaddyServer
    engine: FakeEngine
    pebble: Pebble | None
    http_port: int

    async def call(self, tool: str, /, **arguments: Any) -> dict[str, Any]:
        """The answer of one operation."""
        async with asyncio.timeout(WAIT_SECONDS):
            return (await invoke(self.services, Call(tool, arguments, OWNER))).body

    async def live(self, version: str) -> None:
        """Deploy and promote that version of the shop."""
        self.engine.publish(f"registry.test/shop:{version}", version)
        await self.call("deploy", **LIVE, image=f"registry.test/shop:{version}", version=version)
        await self.call("promote", **LIVE)

    async def visit(self, host: str, path: str = "/version", *, tls: bool = True) -> tuple[int, dict[str, str], str]:
        """Status, headers and body for a visitor, who believes the authority that is configured."""
        import aiohttp

        context: ssl.SSLContext | bool = True
        if tls:
            root = self.pebble.issuing_root if self.pebble else self.caddy.authority
            context = ssl.create_default_context(cafile=root)
        url = f"{'https' if tls else 'http'}://{HERE}:{self.caddy.port if tls or not self.pebble else self.http_port}{path}"
        async with (
            aiohttp.ClientSession(trust_env=False, timeout=aiohttp.ClientTimeout(total=10)) as session,
            session.get(url, headers={"Host": host}, ssl=context, server_hostname=host if tls else None) as answer,
        ):
            return answer.status, {name.lower(): value for name, value in answer.headers.items()}, await answer.text()


@contextlib.asynccontextmanager
async def _installed(
    root: Path,
    caddy: CaddyServer,
    bind: Bind,
    ports: FreePorts,
    *,
    tls: str,
    pebble: Pebble | None = None,
    http_port: int = 80,
) -> AsyncIterator[Installed]:
    authority: dict[str, Any] = {}
    if pebble is not None:
        authority = {
            "acme_directory": pebble.directory, "acme_root": pebble.root, "acme_email": "ops@lab.test",
            "root_certificate": pebble.issuing_root, "acme_names": ["pebble.lab.test"],
        }  # fmt: skip
    settings = Settings.model_validate(
        {
            "root": root,
            "base_domain": "apps.lab.test",
            "preview_domain": "preview.lab.test",
            "proxy": {
                "admin": caddy.admin, "listen": [caddy.listen], "public": caddy.listen, "tls": tls, "http_port": http_port, **authority,
            },
            "ports": {name: [ports.take(20, align=2)[:: 19]] for name in ("production", "staging", "preview")},
            "docker": {"min_free_mb": 0},
            "env": {"immutable_master": False},
            "server": {"calls_per_minute": 1_000_000, "team_calls_per_minute": 1_000_000},
            "dns": {
                "addresses": [HERE], "resolvers": [bind.address], "ttl": 60,
                "zones": {
                    "lab.test": {"provider": "rfc2136", "server": bind.address, "key_name": KEY, "secret_file": bind.secret_file}
                },
            },
        }
    )  # fmt: skip
    caddy.flags.rmdir()
    root.joinpath("traffic").mkdir(parents=True, exist_ok=True)
    for folder in (root, *root.parents[:3], root / "traffic"):
        with contextlib.suppress(PermissionError):
            os.chmod(folder, 0o755)
    caddy.flags.symlink_to(settings.traffic)
    engine = FakeEngine(serve=True)
    drivers = replace(build_drivers(settings), containers=FakeContainers(engine), images=FakeImages(engine))
    services = build(settings, drivers)
    try:
        await initialise(services)
        made = Installed(services, bind, caddy, engine, pebble, http_port)
        for name in ("apps", "preview"):
            bind.change("lab.test", (f"*.{name}.lab.test", "A", HERE))
        if pebble is not None:
            await _account(made)
        await made.call(
            "project_create", projectName="shop", healthCheck={"deadlineSeconds": 10, "intervalSeconds": 0.05}
        )
        yield made
    finally:
        await services.runs.close()
        await services.trail.close()
        for driver in (services.drivers.proxy, services.drivers.prober, services.drivers.names, services.drivers.hosts):
            await driver.close()
        await engine.close()


@pytest.fixture(scope="module")
def bind() -> Iterator[Bind]:
    """A name server for this module."""
    _leave_out_without("dns")
    ports = FreePorts()
    with running_bind(ports) as server:
        yield server
    ports.release()


EACH_CADDY = pytest.mark.parametrize("which", [pytest.param(name, marks=pytest.mark.real(name)) for name in BINARIES])


@EACH_CADDY
@pytest.mark.real("dns", "pebble", "caddy")
async def test_a_domain_gets_a_certificate_of_a_real_authority_only_after_the_preflight(
    which: str, bind: Bind, free_ports: FreePorts, tmp_path: Path, unique: str
) -> None:
    http_port, tls_port = free_ports(), free_ports()
    name = f"{unique}.lab.test"
    with (
        running_caddy(which, tls_port) as caddy,
        running_pebble(free_ports, http_port=http_port, tls_port=tls_port, resolver=bind.address) as pebble,
    ):
        async with _installed(
            tmp_path / "codeb", caddy, bind, free_ports, tls="acme", pebble=pebble, http_port=http_port
        ) as made:
            await _until_served(made, "shop.apps.lab.test")
            await made.live("v1")
            await _until_quiet(made)
            orders = pebble.orders()
            bind.change("lab.test", (name, "CAA", '0 issue "other-ca.example"'))
            pending = await made.call("domain_setup", domain=name, **LIVE)
            assert pending["data"]["status"] == "pending"
            assert "other-ca.example" in pending["message"]
            await Housekeeper(made.services).once()
            assert pebble.orders() == orders, "the authority was asked although CAA forbids it"
            bind.change("lab.test", (name, "CAA", '0 issue "other-ca.example"'), delete=True)
            answer = await made.call("domain_setup", domain=name, **LIVE)
            assert answer["data"].get("problems", []) == []
            assert (answer["data"]["status"], answer["data"]["ssl"]) == ("active", "active")
            assert pebble.orders() == orders + 1
            status = (await made.call("ssl_status", domain=name))["data"]
            assert (status["names"], status["trusted"]) == ([name], True)
            assert status["issuer"].startswith("Pebble")
            await made.live("v2")
            code, headers, body = await made.visit(name)
            assert (code, body.strip()) == (200, "v2")
            assert headers["strict-transport-security"] == "max-age=31536000"
            checks = (await made.call("domain_verify", domain=name))["checks"]
            assert [one["status"] for one in checks] == ["ok"] * 4, checks
            await made.call("domain_delete", domain=name)
            assert bind.ask(name, "A") == []
            with pytest.raises(CodebError):
                await made.call("domain_verify", domain=name)


async def _account(made: Installed) -> None:
    """Have the account at the authority made for one name: Caddy 2.6 makes several at once for several names, mixes up their
    keys, and tries again only a minute later."""
    first = Site("first-production", ("first.apps.lab.test",), 1, 2)
    await made.services.drivers.proxy.apply(upsert=[first])
    await _until_served(made, first.hosts[0])
    await made.services.drivers.proxy.apply(remove=[first.key])


async def _until_served(made: Installed, host: str) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while True:
            with contextlib.suppress(CodebError):
                if (await made.services.drivers.outside.certificate(host)).trusted:
                    return
            await asyncio.sleep(0.05)


async def _until_quiet(made: Installed) -> None:
    """All names of the installation have their certificates."""
    for site in await made.services.drivers.proxy.routes():
        for host in site.all_hosts:
            await _until_served(made, host)


@EACH_CADDY
@pytest.mark.real("dns", "caddy")
async def test_the_internal_authority_is_trusted_without_anybody_copying_its_root(
    which: str, bind: Bind, free_ports: FreePorts, tmp_path: Path, unique: str
) -> None:
    name = f"{unique}.lab.test"
    with running_caddy(which, free_ports()) as caddy:
        async with _installed(tmp_path / "codeb", caddy, bind, free_ports, tls="internal") as made:
            await _until_served(made, "shop.apps.lab.test")
            await made.live("v1")
            answer = await made.call("domain_setup", domain=name, **LIVE)
            assert (answer["data"]["status"], answer["data"]["ssl"]) == ("active", "active")
            data = (await made.call("ssl_status", domain=name))["data"]
            assert (data["names"], data["trusted"], data["issuer"][:5]) == ([name], True, "Caddy")
            assert data["daysLeft"] in (0, 1)


@EACH_CADDY
@pytest.mark.real("dns", "caddy")
async def test_security_headers_are_added_and_can_be_turned_off(
    which: str, bind: Bind, free_ports: FreePorts, tmp_path: Path, unique: str
) -> None:
    name = f"{unique}.lab.test"
    with running_caddy(which, free_ports()) as caddy:
        async with _installed(tmp_path / "codeb", caddy, bind, free_ports, tls="off") as made:
            await made.live("v1")
            await made.call("domain_setup", domain=name, **LIVE)
            _, headers, body = await made.visit(name, tls=False)
            assert body.strip() == "v1"
            assert headers["x-content-type-options"] == "nosniff"
            assert headers["x-frame-options"] == "SAMEORIGIN"
            assert "referrer-policy" in headers
            assert "strict-transport-security" not in headers, "HSTS is for TLS only"
            await made.call("project_update", **LIVE, securityHeaders=False)
            _, headers, _ = await made.visit(name, tls=False)
            assert "x-content-type-options" not in headers
            await made.live("v2")
            assert (await made.visit(name, tls=False))[2].strip() == "v2"


@pytest.mark.real("dns", "caddy-wheel")
async def test_a_name_server_that_hangs_or_refuses_leaves_nothing_half(
    free_ports: FreePorts, tmp_path: Path, unique: str
) -> None:
    name = f"{unique}.lab.test"
    with running_bind(free_ports) as bind, running_caddy("caddy-wheel", free_ports()) as caddy:
        async with _installed(tmp_path / "codeb", caddy, bind, free_ports, tls="off") as made:
            await made.live("v1")
            right = bind.secret_file.read_text(encoding="utf-8")
            bind.secret_file.write_text("bm90IHRoZSByaWdodCBzZWNyZXQ=", encoding="utf-8")
            with pytest.raises(CodebError) as caught:
                await made.call("domain_setup", domain=name, **LIVE)
            assert caught.value.code == "driver_refused"
            assert "lab.test" in caught.value.message
            assert (await made.call("domain_list"))["total"] == 0
            bind.secret_file.write_text(right, encoding="utf-8")
            bind.freeze()
            pending = await made.call("domain_setup", domain=name, **LIVE)
            assert pending["data"]["status"] == "pending"
            assert bind.address in " ".join(pending["data"]["problems"])
            bind.thaw()
            await Housekeeper(made.services).once()
            assert (await made.call("domain_list"))["data"][0]["status"] == "active"
            assert bind.ask(name, "A") == [HERE]
            bind.stop()
            assert (await made.call("domain_delete", domain=name))["data"]["status"] == "deleting"
            bind.start()
            await Housekeeper(made.services).once()
            assert bind.ask(name, "A") == []
            assert bind.ask(f"_codeb.{name}", "TXT") == []
