"""One contract for every provider of DNS: what is wished is there, what is foreign stays, failures name zone and server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from codeb_mcp.drivers.dns import ensure_records, remove_records
from codeb_mcp.drivers.dns_cloudflare import CloudflareZone
from codeb_mcp.drivers.dns_powerdns import PowerDnsZone
from codeb_mcp.drivers.dns_rfc2136 import TsigKey, UpdateZone
from codeb_mcp.model.dns import Change, Record, Wish, mark_name
from codeb_mcp.model.errors import CodebError, Conflict, DeadlineExceeded, DriverRefused, DriverUnavailable
from tests.conftest import _leave_out_without
from tests.contract.zones import KINDS, REAL, ZONE, ZoneCase, zone_case
from tests.lab.ports import FreePorts

OWNER = "0123456789abcdef/shop"
OTHER = "0123456789abcdef/blog"


@pytest.fixture(scope="module", params=KINDS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ZoneCase]:
    """Each kind of zone, its server shared by the tests of this module."""
    if request.param in REAL:
        _leave_out_without("dns")
    ports = FreePorts()
    with zone_case(request.param, ports, tmp_path_factory.mktemp("zone")) as made:
        yield made
    ports.release()


with_a_server = pytest.mark.parametrize(
    "case", [kind for kind in KINDS if kind != "fake"], indirect=True, scope="module"
)
"""For what only a server has: secrets, zones that it does not know, hanging."""


@pytest.fixture
def name(unique: str) -> str:
    """A name of this test alone."""
    return f"{unique}.{ZONE}"


async def test_a_wish_is_there_and_making_it_again_changes_nothing(case: ZoneCase, name: str) -> None:
    zone = case.zone()
    wish = Wish(name, OWNER, ("192.0.2.10", "192.0.2.11", "2001:db8::10"))
    assert await ensure_records(zone, wish) is True
    assert await ensure_records(zone, wish) is False
    assert case.keeper.ask(name, "A") == ["192.0.2.10", "192.0.2.11"]
    assert case.keeper.ask(name, "AAAA") == ["2001:db8::10"]
    assert len(case.keeper.ask(mark_name(name), "TXT")) == 1
    await zone.close()


async def test_another_wish_of_the_same_owner_replaces_what_was_written(case: ZoneCase, name: str) -> None:
    zone = case.zone()
    await ensure_records(zone, Wish(name, OWNER, ("192.0.2.10", "2001:db8::10")))
    assert await ensure_records(zone, Wish(name, OWNER, ("192.0.2.12",))) is True
    assert (case.keeper.ask(name, "A"), case.keeper.ask(name, "AAAA")) == (["192.0.2.12"], [])
    await zone.close()


async def test_removing_takes_all_that_was_written_and_is_harmless_to_repeat(case: ZoneCase, name: str) -> None:
    zone = case.zone()
    assert await remove_records(zone, name, OWNER) is False
    await ensure_records(zone, Wish(name, OWNER, ("192.0.2.10", "2001:db8::10")))
    assert await remove_records(zone, name, OWNER) is True
    assert await remove_records(zone, name, OWNER) is False
    assert [case.keeper.ask(name, kind) for kind in ("A", "AAAA")] == [[], []]
    assert case.keeper.ask(mark_name(name), "TXT") == []
    await zone.close()


@pytest.mark.parametrize(
    ("kind", "value"), [("A", "192.0.2.99"), ("AAAA", "2001:db8::99"), ("CNAME", f"elsewhere.{ZONE}.")]
)
async def test_a_name_with_foreign_records_is_refused_and_left_alone(
    case: ZoneCase, name: str, kind: str, value: str
) -> None:
    if case.kind.startswith("cloudflare"):
        value = value.rstrip(".")
    case.keeper.change(ZONE, (name, kind, value))
    zone = case.zone()
    with pytest.raises(Conflict) as caught:
        await ensure_records(zone, Wish(name, OWNER, ("192.0.2.10",)))
    assert value.rstrip(".") in caught.value.message
    assert await remove_records(zone, name, OWNER) is False
    assert case.keeper.ask(name, kind) == [value]
    assert case.keeper.ask(mark_name(name), "TXT") == []
    await zone.close()


async def test_foreign_records_beside_ours_survive_our_removal(case: ZoneCase, name: str) -> None:
    zone = case.zone()
    case.keeper.change(ZONE, (name, "MX", "10 mail.example."), (name, "TXT", '"v=spf1 -all"'))
    await ensure_records(zone, Wish(name, OWNER, ("192.0.2.10",)))
    case.keeper.change(ZONE, (name, "A", "192.0.2.77"))
    assert await remove_records(zone, name, OWNER) is True
    assert case.keeper.ask(name, "A") == ["192.0.2.77"]
    assert len(case.keeper.ask(name, "MX")) == 1
    assert case.keeper.ask(name, "TXT") == ['"v=spf1 -all"'] or case.kind == "fake"
    await zone.close()


async def test_records_that_somebody_entered_as_wished_are_taken_as_they_are_and_never_removed(
    case: ZoneCase, name: str
) -> None:
    case.keeper.change(ZONE, (name, "A", "192.0.2.10"))
    zone = case.zone()
    assert await ensure_records(zone, Wish(name, OWNER, ("192.0.2.10",))) is False
    assert await remove_records(zone, name, OWNER) is False
    assert case.keeper.ask(name, "A") == ["192.0.2.10"]
    await zone.close()


async def test_what_another_owner_wrote_is_neither_changed_nor_removed(case: ZoneCase, name: str) -> None:
    zone = case.zone()
    await ensure_records(zone, Wish(name, OTHER, ("192.0.2.10",)))
    with pytest.raises(Conflict):
        await ensure_records(zone, Wish(name, OWNER, ("192.0.2.11",)))
    assert await remove_records(zone, name, OWNER) is False
    assert case.keeper.ask(name, "A") == ["192.0.2.10"]
    await zone.close()


async def test_a_change_decided_on_what_is_no_longer_there_is_not_made(case: ZoneCase, name: str) -> None:
    zone = case.zone()
    seen = await zone.read(name)
    case.keeper.change(ZONE, (name, "A", "192.0.2.50"))
    change = Change(add=frozenset({Record(name, "A", "192.0.2.10")}))
    assert await zone.write(change, seen) is False
    assert case.keeper.ask(name, "A") == ["192.0.2.50"]
    await zone.close()


async def test_many_at_once_end_with_one_set_of_records(case: ZoneCase, name: str) -> None:
    zone = case.zone()
    wish = Wish(name, OWNER, ("192.0.2.10", "2001:db8::10"))
    async with asyncio.timeout(60):
        made = await asyncio.gather(*(ensure_records(zone, wish) for _ in range(8)), return_exceptions=True)
    assert [one for one in made if isinstance(one, BaseException)] == []
    assert (case.keeper.ask(name, "A"), case.keeper.ask(name, "AAAA")) == (["192.0.2.10"], ["2001:db8::10"])
    assert len(case.keeper.ask(mark_name(name), "TXT")) == 1
    await zone.close()


# ── failures ────────────────────────────────────────────────────────────────────────────────────────────────────


def _require_typed(case: ZoneCase, error: CodebError, *secrets: str) -> None:
    text = f"{error.message} {error.hint} {error.detail}"
    assert ZONE in text or "secret" in text, text
    for secret in secrets:
        assert secret not in text
    assert error.hint.endswith((".", "secret"))


@with_a_server
async def test_a_wrong_secret_is_refused_and_never_told(case: ZoneCase, name: str, tmp_path: Path) -> None:
    file = tmp_path / "wrong"
    file.write_text("bm90IHRoZSByaWdodCBzZWNyZXQgYXQgYWxsIQ==", encoding="utf-8")
    file.chmod(0o600)
    zone = case.zone(file=file)
    with pytest.raises(DriverRefused) as caught:
        await ensure_records(zone, Wish(name, OWNER, ("192.0.2.10",)))
    _require_typed(case, caught.value, file.read_text(), case.secret.read_text().strip())
    assert case.keeper.ask(name, "A") == []
    await zone.close()


@with_a_server
@pytest.mark.parametrize("content", ["", "two\nlines", "spa ce", "\x00"])
async def test_a_secret_file_that_holds_no_secret_is_refused(
    case: ZoneCase, name: str, tmp_path: Path, content: str
) -> None:
    file = tmp_path / "odd"
    file.write_text(content, encoding="utf-8")
    file.chmod(0o600)
    zone = case.zone(file=file)
    with pytest.raises(DriverRefused):
        await zone.read(name)
    await zone.close()


@with_a_server
async def test_a_secret_that_others_may_read_is_not_used(case: ZoneCase, name: str, tmp_path: Path) -> None:
    file = tmp_path / "open"
    file.write_text(case.secret.read_text(), encoding="utf-8")
    for mode in (0o644, 0o640, 0o604):
        file.chmod(mode)
        zone = case.zone(file=file)
        with pytest.raises(DriverRefused, match="may be read by others"):
            await zone.read(name)
        await zone.close()


@with_a_server
async def test_a_zone_that_the_server_does_not_have_is_refused(case: ZoneCase, unique: str) -> None:
    zone = case.zone("nowhere.test")
    with pytest.raises((DriverRefused, DriverUnavailable)) as caught:
        await ensure_records(zone, Wish(f"{unique}.nowhere.test", OWNER, ("192.0.2.10",)))
    assert "nowhere.test" in caught.value.message
    await zone.close()


@with_a_server
async def test_a_server_that_hangs_costs_no_more_than_its_limit(case: ZoneCase, name: str) -> None:
    zone = case.zone(seconds=0.3)
    stuck = getattr(case.server, "delay", None)
    (stuck.clear if stuck else case.server.freeze)()
    try:
        with pytest.raises(DeadlineExceeded) as caught:
            async with asyncio.timeout(20):
                await ensure_records(zone, Wish(name, OWNER, ("192.0.2.10",)))
    finally:
        (stuck.set if stuck else case.server.thaw)()
    _require_typed(case, caught.value)
    await zone.close()


async def test_a_server_that_is_away_is_unavailable(free_ports: FreePorts, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("c2VjcmV0", encoding="utf-8")
    secret.chmod(0o600)
    port = free_ports()
    url = f"http://127.0.0.1:{port}"
    for zone in (
        UpdateZone(ZONE, f"127.0.0.1:{port}", key=TsigKey("k", secret)),
        PowerDnsZone(ZONE, url, secret_file=secret),
        CloudflareZone(ZONE, url, secret_file=secret),
    ):
        with pytest.raises(DriverUnavailable) as caught:
            await zone.read(f"www.{ZONE}")
        assert ZONE in caught.value.message
        assert str(port) in caught.value.message
        await zone.close()
