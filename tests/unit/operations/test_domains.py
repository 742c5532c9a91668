"""Domains: whose they are, what is asked of whom before a certificate, and that a crash at any point leaves nothing half."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from codeb_mcp.drivers.fake_names import FakeZone
from codeb_mcp.drivers.fake_proxy import FakeProxy
from codeb_mcp.drivers.outside import Served
from codeb_mcp.model.access import Role
from codeb_mcp.model.dns import Caa, Record, mark_name
from codeb_mcp.model.errors import DeadlineExceeded, DriverRefused, DriverUnavailable
from codeb_mcp.operations import domain_work
from codeb_mcp.operations.domain_state import leaving
from codeb_mcp.operations.domain_work import owner_of, proof_of
from codeb_mcp.operations.housekeeping import Housekeeper
from codeb_mcp.registry.files import FileStore
from codeb_mcp.registry.store import update
from codeb_mcp.settings import DnsSettings
from tests.unit.operations.world import World, bounded, initialised, principal

HERE = "192.0.2.10"
NAME = "www.example.com"
LIVE = {"projectName": "shop", "environment": "production"}
ACME = principal(Role.OWNER, "acme")
DNS = {
    "addresses": [HERE],
    "zones": {"example.com": {"provider": "cloudflare", "secret_file": "/nowhere"}, "far.test": {"provider": "manual"}},
}


async def _world(root: Path, *, tls: str = "off", **dns: Any) -> World:
    """An installation with a zone, and a project whose production serves v1."""
    world = await initialised(root)
    settings = world.settings
    world.settings = settings.model_copy(
        update={
            "dns": DnsSettings.model_validate({**DNS, **dns}),
            "proxy": settings.proxy.model_copy(update={"tls": tls}),
        }
    )
    world.dns.zones = set(world.settings.dns.zones)
    world.restart()
    world.dns.doors[HERE] = await proof_of(world.services)
    await world.project()
    await world.live("v1")
    return world


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(domain_work, "CERTIFICATE_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr("codeb_mcp.operations.domains.CERTIFICATE_SECONDS", 0.01)


@pytest.fixture
async def plain(tmp_path: Path) -> AsyncIterator[World]:
    """Without TLS."""
    made = await _world(tmp_path / "plain")
    yield made
    await made.close()


@pytest.fixture
async def acme(tmp_path: Path) -> AsyncIterator[World]:
    """With certificates from outside."""
    made = await _world(tmp_path / "acme", tls="acme")
    yield made
    await made.close()


def _issue(world: World, name: str = NAME, *, trusted: bool = True) -> None:
    """The authority has issued a certificate."""
    world.dns.certificates[name] = Served(
        (name,),
        "Lab CA",
        datetime(2026, 1, 1, tzinfo=UTC),
        datetime(2026, 4, 1, tzinfo=UTC),
        trusted,
        "" if trusted else "expired",
    )


def _records(world: World, name: str = NAME) -> list[str]:
    return sorted(one.value for one in world.dns.records if one.name == name)


# ── the way of a domain ─────────────────────────────────────────────────────────────────────────────────────────


async def test_a_domain_gets_records_a_route_and_follows_each_promote(plain: World) -> None:
    answer = await plain.call("domain_setup", domain=NAME, **LIVE)
    assert answer["created"] is True
    data = answer["data"]
    assert {key: data[key] for key in ("domain", "type", "target", "ssl", "status", "provider")} == {
        "domain": NAME, "type": "A", "target": HERE, "ssl": "off", "status": "active", "provider": "cloudflare",
    }  # fmt: skip
    assert data["records"] == [{"type": "A", "name": NAME, "value": HERE, "found": True}]
    assert _records(plain) == [HERE]
    assert await plain.visit(NAME) == "v1"
    await plain.live("v2")
    assert await plain.visit(NAME) == "v2"
    await plain.require_consistent()


async def test_setting_it_up_again_changes_nothing(plain: World) -> None:
    await plain.call("domain_setup", domain=NAME, **LIVE)
    before = (set(plain.dns.records), plain.edge.changes, (await plain.services.store.get("domains/shop")))
    again = await plain.call("domain_setup", domain=NAME, **LIVE)
    assert again["created"] is False
    assert before == (set(plain.dns.records), plain.edge.changes, (await plain.services.store.get("domains/shop")))


async def test_a_deleted_domain_leaves_no_trace(plain: World) -> None:
    await plain.call("domain_setup", domain=NAME, **LIVE)
    answer = await plain.call("domain_delete", domain=NAME)
    assert answer["data"]["status"] == "deleted"
    assert plain.dns.records == set()
    assert all(NAME not in site.hosts for site in plain.edge.configured.values())
    assert (await plain.call("domain_list"))["total"] == 0
    await plain.refused("not_found", "domain_delete", domain=NAME)
    await plain.require_consistent()


async def test_deleting_the_project_takes_its_records_away(plain: World) -> None:
    await plain.call("domain_setup", domain=NAME, **LIVE)
    await plain.call("project_delete", projectName="shop", confirm="shop")
    await Housekeeper(plain.services).once()
    assert plain.dns.records == set()
    assert await plain.services.store.get("domains/shop") is None


async def test_a_manual_domain_says_what_to_enter_and_touches_no_zone(plain: World) -> None:
    answer = await plain.call("domain_setup", domain=NAME, provider="manual", **LIVE)
    assert answer["data"]["status"] == "pending"
    assert answer["toEnter"] == [f"{NAME}. 300 IN A {HERE}"]
    assert plain.dns.records == set()
    plain.dns.add((NAME, "A", HERE))
    assert (await Housekeeper(plain.services).once()).domains == [NAME]
    assert (await plain.call("domain_list"))["data"][0]["status"] == "active"
    await plain.call("domain_delete", domain=NAME)
    assert _records(plain) == [HERE]


async def test_unknown_keys_of_the_document_survive(plain: World) -> None:
    old = {"domain": "old.example.com", "environment": "production", "note": "by hand"}
    await update(plain.services.store, "domains/shop", lambda doc: {**(doc or {}), "domains": [old], "theirs": 7})
    await plain.call("domain_setup", domain=NAME, **LIVE)
    await plain.call("domain_delete", domain=NAME)
    stored = await plain.services.store.get("domains/shop")
    assert stored is not None
    assert (stored.doc["domains"], stored.doc["theirs"]) == ([old], 7)
    assert await plain.visit("old.example.com") == "v1"


# ── whose it is ─────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_domain_of_another_team_is_refused_whatever_made_it_theirs(plain: World) -> None:
    await plain.call("team_create", teamId="acme", name="Acme")
    await plain.project("blog", caller=ACME)
    await plain.call("domain_setup", ACME, domain=NAME, projectName="blog", environment="production")
    await plain.call("project_update", ACME, projectName="blog", environment="production", domain="chosen.example.com")
    for taken in (NAME, "chosen.example.com"):
        error = await plain.refused("conflict", "domain_setup", domain=taken, **LIVE)
        assert "blog" not in f"{error.message} {error.hint}"
        await plain.refused("conflict", "project_update", domain=taken, **LIVE)
    await plain.refused("conflict", "project_create", projectName="next", domain=NAME)
    await plain.refused("not_found", "domain_delete", domain=NAME)
    await plain.refused("not_found", "domain_verify", domain=NAME)
    await plain.refused("not_found", "ssl_status", domain=NAME)
    assert _records(plain) == [HERE]


async def test_a_default_name_of_a_later_project_cannot_be_taken_twice(plain: World) -> None:
    await plain.call("domain_setup", domain="later.codeb.localhost", provider="manual", **LIVE)
    await plain.refused("conflict", "project_create", projectName="later", environments=["production"])


async def test_a_domain_stays_in_its_environment(plain: World) -> None:
    await plain.call("project_create", projectName="shop", environments=["staging"])
    await plain.call("domain_setup", domain=NAME, **LIVE)
    error = await plain.refused("conflict", "domain_setup", domain=NAME, projectName="shop", environment="staging")
    assert "production" in error.message
    await plain.refused("conflict", "domain_setup", domain="shop-staging.codeb.localhost", **LIVE)


@pytest.mark.parametrize("name", ["x.preview.codeb.localhost", "preview.codeb.localhost"])
async def test_a_preview_name_is_nobodys_domain(plain: World, name: str) -> None:
    await plain.refused("conflict", "domain_setup", domain=name, **LIVE)


@pytest.mark.parametrize(
    "name", ["*.example.com", "EXAMPLE.com", "example", "192.0.2.1", "a..b", "-a.test", "www.example.com."]
)
async def test_what_is_no_plain_host_name_is_refused(plain: World, name: str) -> None:
    await plain.refused("invalid_request", "domain_setup", domain=name, **LIVE)


async def test_of_many_who_want_the_same_domain_at_once_one_gets_it(plain: World) -> None:
    projects = [f"p{number}" for number in range(6)]
    for name in projects:
        await plain.project(name)
    wanted = [plain.call("domain_setup", domain=NAME, projectName=name, environment="production") for name in projects]
    ends = await bounded(asyncio.gather(*wanted, return_exceptions=True), 60)
    assert sum(isinstance(end, dict) for end in ends) == 1
    assert [one["domain"] for one in (await plain.call("domain_list"))["data"]] == [NAME]


async def test_a_zone_can_be_kept_for_some_teams(tmp_path: Path) -> None:
    zone = {"provider": "cloudflare", "secret_file": "/nowhere", "teams": ["acme"]}
    world = await _world(tmp_path / "w", zones={"example.com": zone})
    await world.refused("conflict", "domain_setup", domain=NAME, **LIVE)
    await world.refused("conflict", "domain_setup", domain=NAME, provider="manual", **LIVE)
    assert (await world.call("domain_list"))["total"] == 0
    await world.close()


async def test_a_provider_that_does_not_keep_the_zone_is_refused(plain: World) -> None:
    await plain.refused("invalid_request", "domain_setup", domain=NAME, provider="powerdns", **LIVE)
    await plain.refused("invalid_request", "domain_setup", domain="www.nowhere.test", provider="rfc2136", **LIVE)


async def test_a_key_limited_to_an_environment_sees_and_changes_only_its_domains(plain: World) -> None:
    await plain.call("domain_setup", domain=NAME, **LIVE)
    limited = principal(Role.OWNER, "default", "environment:staging")
    assert (await plain.call("domain_list", limited))["total"] == 0
    await plain.refused("forbidden", "domain_delete", limited, domain=NAME)
    await plain.refused("forbidden", "domain_setup", limited, domain="b.example.com", **LIVE)


# ── foreign things ──────────────────────────────────────────────────────────────────────────────────────────────


async def test_foreign_records_refuse_the_domain_and_nothing_is_left(plain: World) -> None:
    plain.dns.add((NAME, "A", "198.51.100.7"))
    before = set(plain.dns.records)
    error = await plain.refused("conflict", "domain_setup", domain=NAME, **LIVE)
    assert "198.51.100.7" in error.message
    assert plain.dns.records == before
    assert (await plain.call("domain_list"))["total"] == 0
    await plain.require_consistent()


async def test_records_that_somebody_adds_later_survive_our_removal(plain: World) -> None:
    await plain.call("domain_setup", domain=NAME, **LIVE)
    plain.dns.add((NAME, "A", "198.51.100.7"))
    await plain.call("domain_delete", domain=NAME)
    assert _records(plain) == ["198.51.100.7"]


async def test_a_foreign_route_of_the_proxy_refuses_the_domain_and_harms_no_other(plain: World) -> None:
    plain.edge.foreign.add(NAME)
    await plain.refused("conflict", "domain_setup", domain=NAME, **LIVE)
    assert (await plain.call("domain_list"))["total"] == 0
    assert plain.dns.records == set()
    await plain.live("v2")
    assert await plain.visit() == "v2"


# ── before a certificate ────────────────────────────────────────────────────────────────────────────────────────


async def test_a_domain_that_passes_preflight_gets_a_certificate(acme: World) -> None:
    _issue(acme)
    answer = await acme.call("domain_setup", domain=NAME, **LIVE)
    assert (answer["data"]["status"], answer["data"]["ssl"]) == ("active", "active")
    assert acme.edge.proof == await proof_of(acme.services)


def _elsewhere(world: World) -> None:
    world.dns.add((NAME, "AAAA", "2001:db8::99"))


def _shut(world: World) -> None:
    world.dns.doors.clear()


def _somebody_else(world: World) -> None:
    world.dns.doors[HERE] = "welcome to another web server"


def _caa(world: World) -> None:
    world.dns.caa["example.com"] = (Caa(0, "issue", "other-ca.example"),)


def _no_resolver(world: World) -> None:
    world.dns.faults["lookup"] = [DriverUnavailable("no resolver", hint="Wait.")] * 20


OBSTACLES = [_elsewhere, _shut, _somebody_else, _caa, _no_resolver]


@pytest.mark.parametrize("obstacle", OBSTACLES)
async def test_no_certificate_is_asked_for_before_everything_fits(
    acme: World, obstacle: Callable[[World], None]
) -> None:
    acme.dns.add((NAME, "A", HERE))
    obstacle(acme)
    answer = await acme.call("domain_setup", domain=NAME, provider="manual", **LIVE)
    assert answer["data"]["status"] == "pending"
    assert answer["data"]["problems"]
    assert all(NAME not in site.hosts for site in acme.edge.configured.values()), (
        "the proxy would ask for a certificate"
    )
    await Housekeeper(acme.services).once()
    assert all(NAME not in site.hosts for site in acme.edge.configured.values())


async def test_a_pending_domain_comes_by_itself_and_holds_up_no_promote(acme: World) -> None:
    _caa(acme)
    await acme.call("domain_setup", domain=NAME, **LIVE)
    await acme.live("v2")
    acme.dns.caa.clear()
    _issue(acme)
    assert (await Housekeeper(acme.services).once()).domains == [NAME]
    assert await acme.visit(NAME) == "v2"


async def test_a_domain_that_waits_for_its_certificate_follows_a_promote_without_being_asked(acme: World) -> None:
    answer = await acme.call("domain_setup", domain=NAME, **LIVE)
    assert (answer["data"]["status"], answer["data"]["ssl"]) == ("pending", "pending")
    await acme.live("v2")
    run = await acme.services.registry.journals.page(limit=1, offset=0, match=lambda header: header.kind == "promote")
    assert NAME not in str(run[0][0].planned())
    assert await acme.visit(NAME) == "v2"


async def test_a_chosen_host_makes_the_same_preflight(acme: World) -> None:
    await acme.refused("conflict", "project_update", domain=NAME, **LIVE)
    acme.dns.add((NAME, "A", HERE))
    await acme.call("project_update", domain=NAME, **LIVE)


async def test_ssl_status_tells_what_is_served(acme: World) -> None:
    await acme.call("domain_setup", domain=NAME, **LIVE)
    assert (await acme.call("ssl_status", domain=NAME))["data"]["ssl"] == "pending"
    _issue(acme, trusted=False)
    data = (await acme.call("ssl_status", domain=NAME))["data"]
    assert (data["issuer"], data["names"], data["daysLeft"], data["trusted"], data["problem"]) == (
        "Lab CA", [NAME], 83, False, "expired",
    )  # fmt: skip


async def test_verify_names_what_is_wrong_and_changes_nothing(plain: World) -> None:
    await plain.call("domain_setup", domain=NAME, **LIVE)
    good = await plain.call("domain_verify", domain=NAME)
    assert [(one["name"], one["status"]) for one in good["checks"]] == [("dns", "ok"), ("route", "ok"), ("http", "ok")]
    plain.edge.restart(keep=False)
    plain.dns.records.clear()
    bad = await plain.call("domain_verify", domain=NAME)
    assert [one["status"] for one in bad["checks"]] == ["failed", "failed", "failed"]
    assert bad["data"]["status"] == "pending"
    assert plain.edge.configured == {}
    assert plain.dns.records == set()


# ── faults and crashes ──────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "fault", [DriverUnavailable("zone example.com is away"), DeadlineExceeded("zone example.com is slow")]
)
@pytest.mark.parametrize("done", [False, True])
async def test_a_provider_that_is_away_leaves_the_domain_pending_until_it_is_back(
    plain: World, fault: DriverUnavailable, done: bool
) -> None:
    (plain.dns.after if done else plain.dns.faults)["write"] = [fault]
    answer = await plain.call("domain_setup", domain=NAME, **LIVE)
    assert "example.com" in answer["data"]["problems"][0]
    await Housekeeper(plain.services).once()
    assert (await plain.call("domain_list"))["data"][0]["status"] == "active"
    assert _records(plain) == [HERE]


async def test_a_provider_that_refuses_leaves_nothing(plain: World) -> None:
    plain.dns.faults["write"] = [DriverRefused("zone example.com at 192.0.2.53: the update was answered with NOTAUTH")]
    await plain.refused("driver_refused", "domain_setup", domain=NAME, **LIVE)
    assert (await plain.call("domain_list"))["total"] == 0
    assert await leaving(plain.services.store) == []
    assert plain.dns.records == set()


async def test_a_domain_whose_zone_cannot_be_reached_leaves_later_and_is_nobody_elses_until_then(plain: World) -> None:
    await plain.project("blog")
    await plain.call("domain_setup", domain=NAME, **LIVE)
    plain.dns.faults["write"] = [DriverUnavailable("zone example.com is away", hint="Wait.")]
    answer = await plain.call("domain_delete", domain=NAME)
    assert answer["data"]["status"] == "deleting"
    await plain.refused("conflict", "domain_setup", domain=NAME, projectName="blog", environment="production")
    await Housekeeper(plain.services).once()
    assert plain.dns.records == set()
    await plain.call("domain_setup", domain=NAME, projectName="blog", environment="production")


async def test_a_domain_that_is_leaving_can_be_taken_back_by_its_project(plain: World) -> None:
    await plain.call("domain_setup", domain=NAME, **LIVE)
    plain.dns.faults["write"] = [DriverUnavailable("zone example.com is away", hint="Wait.")]
    await plain.call("domain_delete", domain=NAME)
    await plain.call("domain_setup", domain=NAME, **LIVE)
    await Housekeeper(plain.services).once()
    assert _records(plain) == [HERE]
    assert await plain.visit(NAME) == "v1"


class Vanished(BaseException):
    """The process is gone: nothing catches this."""


class Moments:
    """Counts what the world is asked to change; at moment number `at` (from 0) the process vanishes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
        self.at = at
        self.passed = 0
        for owner, method in ((FileStore, "commit"), (FakeZone, "write"), (FakeProxy, "apply")):
            monkeypatch.setattr(owner, method, self._around(getattr(owner, method)))

    def _around(self, work: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def watched(*args: Any, **more: Any) -> Any:
            self._pass()
            result = await work(*args, **more)
            self._pass()
            return result

        return watched

    def _pass(self) -> None:
        number, self.passed = self.passed, self.passed + 1
        if number >= self.at:  # one that is gone does nothing more, also not when it cleans up
            raise Vanished


@pytest.mark.parametrize("tool", ["domain_setup", "domain_delete"])
async def test_a_process_that_vanishes_at_any_moment_leaves_nothing_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tool: str
) -> None:
    tried = 0
    for at in range(100):
        world = await _world(tmp_path / f"w{at}")
        if tool == "domain_delete":
            await world.call("domain_setup", domain=NAME, **LIVE)
        arguments = {"domain": NAME, **(LIVE if tool == "domain_setup" else {})}
        with monkeypatch.context() as patched:
            moments = Moments(patched, at)
            ended = False
            try:
                await world.call(tool, **arguments)
                ended = True
            except Vanished:
                tried += 1
        if ended:
            assert moments.passed <= at
            await world.close()
            break
        world.restart()
        await Housekeeper(world.services).once()
        await _require_whole(world, at)
        if tool == "domain_setup":
            await world.call(tool, **arguments)
            assert (_records(world), await world.visit(NAME)) == ([HERE], "v1")
        await world.close()
    print(f"{tool}: {tried} moments of a crash, 0 left half")
    assert tried >= 6


async def _require_whole(world: World, at: int) -> None:
    """Either the document names it and everything is in place, or there is no trace of it."""
    rows = (await world.call("domain_list"))["data"]
    served = any(NAME in site.hosts for site in world.edge.configured.values())
    if rows:
        assert (rows[0]["status"], _records(world), served) == ("active", [HERE], True), at
    else:
        assert (world.dns.records, served) == (set(), False), at
    await world.require_consistent()


async def test_the_mark_names_installation_and_project(plain: World) -> None:
    await plain.call("domain_setup", domain=NAME, **LIVE)
    mark = next(one for one in plain.dns.records if one.name == mark_name(NAME))
    assert mark == Record(mark_name(NAME), "TXT", f"codeb owner={await owner_of(plain.services, 'shop')} for={HERE}")
