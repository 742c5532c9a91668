"""What every `Proxy` keeps, and what only a real Caddy can get wrong."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from typing import Any

import pytest
from aiohttp import web

from codeb_mcp.drivers.caddy_admin import CaddyAdmin, body_tag
from codeb_mcp.drivers.caddy_config import parse_address
from codeb_mcp.model.errors import Conflict, DeadlineExceeded, DriverRefused, DriverUnavailable, InvalidRequest
from codeb_mcp.model.names import Slot
from codeb_mcp.model.routes import NOBODY_ID, Site
from tests.contract.edges import Case, RealCase, serving, site, until
from tests.lab.caddy import CaddyServer
from tests.lab.ports import FreePorts

FOREIGN: dict[str, Any] = {
    "listen": ["127.0.0.1:1"],
    "automatic_https": {"disable": True},
    "read_timeout": 1.5e9,
    "routes": [
        {"@id": "theirs", "match": [{"host": ["theirs.test"], "path": ["/ä<&>\u2028*"]}], "terminal": True},
        {"match": [{"path": ["/static/*"]}], "handle": [{"handler": "static_response", "body": "😀 \\u0000 \"quoted\""}]},
        {"handle": [{"handler": "headers", "response": {"set": {"X-Order": ["3", "1", "2"]}}}]},
    ],
}  # fmt: skip


def foreign_config(server: CaddyServer) -> dict[str, Any]:
    """Apps of another program: one server on our address, one elsewhere, and TLS settings."""
    ours = {**FOREIGN, "listen": [f":{server.port}"]}
    other = {**FOREIGN, "listen": [f"unix/{server.folder}/other.sock"], "routes": FOREIGN["routes"][1:]}
    tls = {"automation": {"policies": [{"subjects": ["theirs.test"], "issuers": [{"module": "internal"}]}]}}
    # Without this, Caddy would put its root certificate into this machine's trust store.
    pki = {"certificate_authorities": {"local": {"install_trust": False}}}
    return {"http": {"servers": {"shared": ours, "other": other}}, "tls": tls, "pki": pki}


# --- every proxy


async def test_a_site_that_was_applied_is_there_and_another_is_not(edge: Case) -> None:
    proxy, shop = edge.proxy(), site("shop-production", edge.ports)
    assert not await proxy.has(shop)
    assert await proxy.sites() == []
    assert await proxy.apply(upsert=[shop])
    assert await proxy.has(shop)
    assert not await proxy.has(Site(shop.key, shop.hosts, shop.blue_port + 2, shop.green_port))
    assert await proxy.sites() == ["shop-production"]


async def test_routes_tell_the_sites_that_they_were_made_from(edge: Case) -> None:
    plain = site("api-staging", edge.ports, "api.example.test", "second.example.test")
    shop = site("shop-production", edge.ports, preview=True)
    edge.add_foreign("foreign.test")
    proxy = edge.proxy()
    assert await proxy.routes() == []
    await proxy.apply(upsert=[shop, plain])
    assert await proxy.routes() == [plain, shop]


async def test_applying_what_is_there_changes_nothing(edge: Case) -> None:
    proxy, shop = edge.proxy(), site("shop-production", edge.ports)
    assert not await proxy.apply()
    assert not await proxy.apply(remove=["never-was-production"])
    assert await proxy.apply(upsert=[shop])
    assert not await proxy.apply(upsert=[shop])


async def test_removing_takes_exactly_that_site_away(edge: Case) -> None:
    proxy, one, two = edge.proxy(), site("one-production", edge.ports), site("two-production", edge.ports)
    await proxy.apply(upsert=[one, two])
    assert await proxy.apply(remove=["one-production"])
    assert await proxy.sites() == ["two-production"]
    assert not await proxy.apply(remove=["one-production"])


async def test_two_clients_racing_with_twenty_sites_each_lose_none(edge: Case) -> None:
    clients = [edge.proxy(), edge.proxy()]
    sites = [[site(f"{name}{n}-production", edge.ports) for n in range(20)] for name in ("left", "right")]

    async def one_by_one(number: int) -> None:
        for wanted in sites[number]:
            assert await clients[number].apply(upsert=[wanted])

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        for number in range(2):
            group.create_task(one_by_one(number))
    wanted = [*sites[0], *sites[1]]
    assert await clients[0].sites() == sorted(one.key for one in wanted)
    assert all([await clients[1].has(one) for one in wanted])


async def test_a_host_of_another_site_is_a_conflict_that_names_it_and_spares_other_callers(edge: Case) -> None:
    edge.add_foreign("taken.test")
    proxy, thief, honest = (
        edge.proxy(),
        site("thief-production", edge.ports, "taken.test"),
        site("fine-staging", edge.ports),
    )
    outcomes = await asyncio.gather(
        proxy.apply(upsert=[thief]), proxy.apply(upsert=[honest]), return_exceptions=True
    )  # fmt: skip
    assert isinstance(outcomes[0], Conflict)
    assert "taken.test" in outcomes[0].message
    assert outcomes[1] is True
    assert await proxy.sites() == ["fine-staging"]


async def test_a_host_of_another_environment_is_a_conflict(edge: Case) -> None:
    proxy = edge.proxy()
    await proxy.apply(upsert=[site("one-production", edge.ports, "same.test")])
    with pytest.raises(Conflict, match="one-production"):
        await proxy.apply(upsert=[site("two-production", edge.ports, "same.test")])
    assert await proxy.sites() == ["one-production"]


BAD_HOSTS = [
    "",
    "shop",
    "*",
    "*.test",
    "a b.test",
    "SHOP.test",
    "{env.HOME}.test",
    "x.test\n",
    "-x.test",
    "1.test/..",
    "x" * 300,
]
BAD_PORTS: list[Any] = [0, -1, 65536, "8080", True, 80.0, None, "bad:::addr"]


async def test_what_is_not_fit_for_the_proxy_is_refused_before_it_is_sent(edge: Case) -> None:
    proxy, good = edge.proxy(), site("good-production", edge.ports)
    bad = [Site("bad-production", (host,), 4000, 4001) for host in BAD_HOSTS]
    bad += [Site("bad-production", ("bad.test",), port, 4001) for port in BAD_PORTS]
    bad += [Site("bad-production", ("bad.test",), 4001, port) for port in BAD_PORTS]
    bad += [Site("bad-production", ("bad.test",), 4000, 4000), Site("bad-production", (), 4000, 4001)]
    bad += [Site("../bad", ("bad.test",), 4000, 4001), Site("bad-production", ("b.test", "b.test"), 4000, 4001)]
    for one in bad:
        with pytest.raises(InvalidRequest):
            await proxy.apply(upsert=[good, one])
    with pytest.raises(InvalidRequest):
        await proxy.apply(upsert=[good], remove=[good.key])
    assert await proxy.sites() == []


async def test_a_proxy_that_forgot_its_configuration_is_noticed_and_repaired(edge: Case) -> None:
    proxy, shop = edge.proxy(), site("shop-production", edge.ports)
    await proxy.apply(upsert=[shop])
    edge.restart(keep=False)
    assert not await proxy.has(shop)
    assert await proxy.apply(upsert=[shop])
    assert await proxy.has(shop)


async def test_requests_in_flight_are_counted_down_to_zero(edge: Case) -> None:
    proxy, shop = edge.proxy(), site("shop-production", edge.ports)
    await proxy.apply(upsert=[shop])
    assert await proxy.in_flight(1) is None
    release = await edge.hold(shop, Slot.BLUE)
    assert await proxy.in_flight(shop.blue_port) == 1
    edge.traffic.switch(shop.key, Slot.GREEN, fence=1)
    assert await proxy.in_flight(shop.blue_port) == 1
    await release()
    await until(lambda: _is_zero(edge, shop.blue_port))


async def _is_zero(edge: Case, port: int) -> bool:
    return await edge.proxy().in_flight(port) == 0


# --- real Caddy only


async def test_foreign_configuration_survives_byte_for_byte_and_its_server_is_adopted(real: RealCase) -> None:
    server = real.server
    server.ask("POST", "/config/apps", foreign_config(server))
    routes, before = server.get("/config/apps/http/servers/shared/routes"), server.body("/config/")
    proxy, sites = real.proxy(), [site(f"shop{n}-production", real.ports) for n in range(3)]
    await proxy.apply(upsert=sites)
    assert list(server.get("/config/apps/http/servers")) == ["other", "shared"]
    now = server.get("/config/apps/http/servers/shared/routes")
    assert [route["@id"] for route in now[:3]] == [f"codeb-site-shop{n}-production" for n in range(3)]
    assert json.dumps(now[3:-1]) == json.dumps(routes)
    assert now[-1]["@id"] == NOBODY_ID
    await proxy.apply(remove=[one.key for one in sites])
    assert server.body("/config/") == before


async def test_a_server_elsewhere_is_left_alone_and_ours_is_made(real: RealCase) -> None:
    config = foreign_config(real.server)
    del config["http"]["servers"]["shared"]
    real.server.ask("POST", "/config/apps", config)
    before = real.server.body("/config/apps/http/servers/other")
    await real.proxy().apply(upsert=[site("shop-production", real.ports)])
    assert real.server.body("/config/apps/http/servers/other") == before
    assert real.server.get("/config/apps/http/servers/codeb/listen") == [real.server.listen]


async def test_a_site_moves_with_the_address_that_codeb_is_told_to_use(real: RealCase) -> None:
    shop, elsewhere = site("shop-production", real.ports), f"127.0.0.1:{real.ports()}"
    await real.proxy().apply(upsert=[shop])
    real.server.ask(
        "POST",
        "/config/apps/http/servers/theirs",
        {"listen": [elsewhere], "routes": [], "automatic_https": {"disable": True}},
    )
    await real.proxy(listen=elsewhere).apply(upsert=[shop])
    assert real.server.get("/config/apps/http/servers/codeb/routes") == []
    moved = real.server.get("/config/apps/http/servers/theirs/routes")
    assert [route["@id"] for route in moved] == ["codeb-site-shop-production", NOBODY_ID]


async def test_another_writer_between_reading_and_writing_is_not_overwritten(real: RealCase) -> None:
    """The change of the other one is made exactly between our read and our write, on a line that we tap."""
    await real.proxy().apply(upsert=[site("first-production", real.ports)])
    meddled: list[bytes] = []

    def meddle(request: bytes) -> None:
        if request.startswith(b"POST") and len(meddled) < 3:
            meddled.append(request)
            route = {"@id": f"other{len(meddled)}", "match": [{"host": [f"other{len(meddled)}.test"]}], "handle": []}
            real.server.ask("POST", "/config/apps/http/servers/codeb/routes", route)

    port = real.ports()
    async with serving(port, lambda r, w: _forward(real.server, r, w, meddle)):
        assert await real.proxy(admin=f"http://127.0.0.1:{port}").apply(upsert=[site("second-production", real.ports)])
    names = {route["@id"] for route in real.server.get("/config/apps/http/servers/codeb/routes")}
    sites = {"codeb-site-first-production", "codeb-site-second-production"}
    assert names == {*sites, "other1", "other2", "other3", NOBODY_ID}
    assert all(b"If-Match: " in request for request in meddled)


async def _forward(server: CaddyServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, see: Any) -> None:
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    body = await reader.readexactly(int(length[1])) if length else b""
    see(head)
    upstream_reader, upstream_writer = await asyncio.open_unix_connection(str(server.socket))
    upstream_writer.write(re.sub(rb"(?i)\r\nhost: [^\r]*", b"\r\nHost: ", head, count=1) + body)
    writer.write(await upstream_reader.read())
    for end in (upstream_writer, writer):
        end.close()
        await end.wait_closed()


async def test_a_caddy_that_changes_all_the_time_is_reported_not_overwritten(real: RealCase) -> None:
    counter = itertools.count()

    def meddle(request: bytes) -> None:
        if request.startswith(b"POST"):
            real.server.ask("POST", "/config/logging/logs/default/level", ["WARN", "ERROR"][next(counter) % 2])

    port = real.ports()
    async with serving(port, lambda r, w: _forward(real.server, r, w, meddle)):
        with pytest.raises(DriverUnavailable, match="kept changing"):
            await real.proxy(admin=f"http://127.0.0.1:{port}").apply(upsert=[site("shop-production", real.ports)])
    assert await real.proxy().sites() == []


async def test_the_tag_we_guard_with_is_the_one_caddy_gives(caddy: CaddyServer) -> None:
    caddy.ask("POST", "/config/apps", foreign_config(caddy))
    admin = CaddyAdmin(caddy.admin)
    try:
        for path in ("/config/", "/config/apps/http", "/config/apps/nothing"):
            raw = caddy.ask("GET", path)
            found = re.search(rb"(?im)^etag: ([^\r]*)\r$", raw)
            assert found is not None
            read = await admin.get(path)
            assert read is not None
            assert read.etag == found[1].decode()
            if b"\r\nTrailer: ETag" in raw:
                assert body_tag(path, caddy.body(path)) == found[1].decode()
    finally:
        await admin.close()


async def test_many_callers_share_few_changes(real: RealCase) -> None:
    proxy, sites = real.proxy(), [site(f"shop{n}-production", real.ports) for n in range(50)]
    before = real.server.changes()
    assert all(await asyncio.gather(*(proxy.apply(upsert=[one]) for one in sites)))
    assert real.server.changes() - before <= 2
    assert all(not changed for changed in await asyncio.gather(*(proxy.apply(upsert=[one]) for one in sites)))
    assert real.server.changes() - before <= 2
    assert len(await proxy.sites()) == 50


async def test_a_caller_that_gives_up_takes_nobody_with_it(real: RealCase) -> None:
    proxy, sites = real.proxy(), [site(f"shop{n}-production", real.ports) for n in range(4)]
    calls = [asyncio.create_task(proxy.apply(upsert=[one])) for one in sites]
    await asyncio.sleep(0)
    calls[0].cancel()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(outcomes[0], asyncio.CancelledError)
    assert outcomes[1:] == [True, True, True]
    assert set(await proxy.sites()) >= {one.key for one in sites[1:]}


async def test_closing_answers_everybody_who_waits(real: RealCase) -> None:
    proxy = real.proxy()
    calls = [asyncio.create_task(proxy.apply(upsert=[site(f"shop{n}-production", real.ports)])) for n in range(3)]
    await asyncio.sleep(0)
    await proxy.close()
    async with asyncio.timeout(10):
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(outcome, DriverUnavailable) for outcome in outcomes)


async def test_a_proxy_that_is_away_is_unavailable(real: RealCase) -> None:
    proxy, shop = real.proxy(), site("shop-production", real.ports)
    real.server.stop()
    for call in (proxy.apply(upsert=[shop]), proxy.has(shop), proxy.sites(), proxy.in_flight(1)):
        with pytest.raises(DriverUnavailable):
            await call
    real.server.start()
    assert await proxy.apply(upsert=[shop])


async def test_a_refusal_brings_caddys_words_and_leaves_what_ran(real: RealCase) -> None:
    shop, port = site("shop-production", real.ports), real.ports()
    await real.proxy().apply(upsert=[shop])
    blocker = await asyncio.start_server(lambda r, w: None, "127.0.0.1", port)
    async with blocker:
        taken = real.proxy(listen=f"127.0.0.1:{port}")
        with pytest.raises(DriverRefused, match="address already in use") as refusal:
            await taken.apply(upsert=[site("late-production", real.ports)])
    assert len(refusal.value.message) < 400
    assert refusal.value.message.isprintable()
    assert await real.proxy().sites() == ["shop-production"]


async def test_something_that_is_no_caddy_is_refused(ports: FreePorts) -> None:
    async def page(request: web.Request) -> web.Response:
        return web.Response(text="<html>" + "x" * 5000, status=200 if request.path == "/config/" else 500)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", page)
    runner, port = web.AppRunner(app, access_log=None), ports()
    await runner.setup()
    admin = CaddyAdmin(f"http://127.0.0.1:{port}")
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        for path in ("/config/", "/other"):
            with pytest.raises(DriverRefused) as refusal:
                await admin.get(path)
            assert len(refusal.value.message) < 400
    finally:
        await admin.close()
        await runner.cleanup()


async def test_an_admin_endpoint_that_never_answers_is_a_timeout(ports: FreePorts) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    port = ports()
    admin = CaddyAdmin(f"http://127.0.0.1:{port}", read_seconds=0.2)
    async with serving(port, silent):
        with pytest.raises(DeadlineExceeded):
            await admin.get("/config/")
        await admin.close()


async def test_an_admin_endpoint_on_loopback_tcp_works_as_well(real: RealCase) -> None:
    port, shop = real.ports(), site("shop-production", real.ports)
    real.server.stop()
    real.server.start_elsewhere(port)
    proxy = real.proxy(admin=f"http://127.0.0.1:{port}")
    assert await proxy.apply(upsert=[shop])
    assert await proxy.has(shop)


async def test_an_admin_endpoint_with_origins_set_works_as_well(real: RealCase) -> None:
    shop = site("shop-production", real.ports)
    real.server.ask("POST", "/config/admin/origins", ["127.0.0.1"])
    assert await real.proxy().apply(upsert=[shop])
    assert await real.proxy().has(shop)


@pytest.mark.parametrize(
    ("one", "two", "overlap"),
    [
        (":443", "127.0.0.1:443", True),
        ("0.0.0.0:80", "[::]:80", True),
        ("tcp/:80", "tcp4/127.0.0.1:80", True),
        (":8000-8010", "127.0.0.1:8005", True),
        ("127.0.0.1:80", "127.0.0.2:80", False),
        (":80", ":443", False),
        ("udp/:443", ":443", False),
        ("unix//run/a.sock", "unix//run/a.sock", True),
        ("unix//run/a.sock", "unix//run/b.sock", False),
        ("{env.PLACE}", ":80", False),
    ],
)
def test_addresses_overlap_when_two_servers_could_not_have_both(one: str, two: str, overlap: bool) -> None:
    assert parse_address(one).overlaps(parse_address(two)) is overlap
    assert parse_address(two).overlaps(parse_address(one)) is overlap
