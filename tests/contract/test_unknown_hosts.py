"""What a real Caddy answers for names that are no site, without a foreign route ever being hidden."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import ClientSession

from codeb_mcp.drivers.probe import HttpProber
from codeb_mcp.model.names import Slot
from codeb_mcp.model.routes import NOBODY_ID, Site
from tests.contract.edges import RealCase, until

ROUTES = "/config/apps/http/servers/codeb/routes"


class Public:
    """Asks the public address."""

    def __init__(self, case: RealCase, session: ClientSession) -> None:
        self._url = f"http://127.0.0.1:{case.server.port}/"
        self._session = session

    async def __call__(self, host: str) -> tuple[int, str]:
        async with self._session.get(self._url, headers={"Host": host}) as answer:
            return answer.status, (await answer.text()).strip()


@pytest.fixture
async def public(real: RealCase) -> AsyncIterator[Public]:
    """The edge as a visitor sees it."""
    async with ClientSession() as session:
        yield Public(real, session)


@pytest.fixture
async def shop(real: RealCase) -> Site:
    """A site whose blue slot answers."""
    blue, green = real.ports.pair()
    names = [f"shop-staging{end}" for end in (".apps.test", "-blue.preview.test", "-green.preview.test")]
    made = Site("shop-staging", (names[0],), blue, green, names[1], names[2])
    await real.serve(blue, "blue")
    await real.proxy().apply(upsert=[made])
    real.traffic.switch(made.key, Slot.BLUE, fence=1)
    return made


def foreign(body: str, *hosts: str) -> dict[str, Any]:
    """A route of somebody else; for all hosts when none is named."""
    match = {"match": [{"host": list(hosts)}]} if hosts else {}
    return {**match, "terminal": True, "handle": [{"handler": "static_response", "body": body}]}


NOT_FOUND = (404, "there is nothing at this address (any more)")
NOT_OURS = (200, "")
"""What Caddy says by itself."""


async def test_names_that_can_only_be_ours_get_404_and_others_what_caddy_says(shop: Site, public: Public) -> None:
    for host in (*shop.hosts, shop.blue_preview or ""):
        assert await public(host) == (200, "blue")
    for host in (
        "gone-staging-blue.preview.test",
        "X.Preview.TEST",
        "gone-preview.apps.test",
        "shop-pr-3-preview.apps.test",
    ):
        assert await public(host) == NOT_FOUND
    for host in ("gone.apps.test", "api.apps.test", "apps.test", "preview.test", "shop.example.test"):
        assert await public(host) == NOT_OURS


async def test_a_site_that_is_deleted_gets_404(real: RealCase, shop: Site, public: Public) -> None:
    left = Site("left-production", ("left.test",), *real.ports.pair())
    await real.proxy().apply(upsert=[left])
    await real.proxy().apply(remove=[shop.key])
    for host in shop.all_hosts:
        assert await public(host) == NOT_FOUND
    await real.proxy().apply(upsert=[shop])
    assert await public(shop.hosts[0]) == (200, "blue")


async def test_routes_that_others_append_later_are_served_at_once(real: RealCase, shop: Site, public: Public) -> None:
    for host in ("api.apps.test", "shop.example.test", "gone.apps.test"):
        real.server.ask("POST", ROUTES, foreign(f"theirs at {host}", host))
        assert await public(host) == (200, f"theirs at {host}")
    real.server.ask("POST", ROUTES, foreign("theirs for the rest"))
    assert await public("whoever.example.test") == (200, "theirs for the rest")
    assert await public(shop.hosts[0]) == (200, "blue")


async def test_a_foreign_route_for_one_of_these_names_wins_once_the_configuration_is_written(
    real: RealCase, shop: Site, public: Public
) -> None:
    real.server.ask("POST", ROUTES, foreign("theirs", "odd-staging.apps.test"))
    assert await public("odd-staging.apps.test") == NOT_FOUND
    assert await real.proxy().apply(upsert=[shop])
    assert await public("odd-staging.apps.test") == (200, "theirs")
    assert real.server.get(ROUTES)[-1]["@id"] == NOBODY_ID
    assert not await real.proxy().apply(upsert=[shop])


async def test_the_last_site_takes_the_route_along(real: RealCase) -> None:
    real.server.ask("POST", "/config/apps", {"http": {"servers": {"theirs": {
        "listen": [real.server.listen], "automatic_https": {"disable": True}, "routes": [foreign("theirs", "theirs.test")],
    }}}})  # fmt: skip
    before = real.server.body("/config/")
    site = Site("only-staging", ("only-staging.apps.test",), *real.ports.pair())
    await real.proxy().apply(upsert=[site])
    assert real.server.get("/config/apps/http/servers/theirs/routes")[-1]["@id"] == NOBODY_ID
    await real.proxy().apply(remove=[site.key])
    assert real.server.body("/config/") == before


async def test_a_configuration_from_before_gets_the_route_with_the_next_change(real: RealCase, shop: Site) -> None:
    real.server.ask("DELETE", f"/id/{NOBODY_ID}")
    assert [route["@id"] for route in real.server.get(ROUTES)] == ["codeb-site-shop-staging"]
    await real.proxy().apply(upsert=[Site("next-staging", ("next-staging.apps.test",), *real.ports.pair())])
    assert [route["@id"] for route in real.server.get(ROUTES)][-1] == NOBODY_ID


async def test_with_tls_the_sites_keep_certificates_of_their_own(real: RealCase) -> None:
    case = RealCase(real.server, real.ports, tls="internal")
    site = Site("tls-staging", ("tls-staging.apps.test",), *real.ports.pair(), "tls-staging-blue.preview.test")
    await case.serve(site.blue_port, "blue")
    await case.proxy().apply(upsert=[site])
    case.traffic.switch(site.key, Slot.BLUE, fence=1)
    assert case.server.get("/id/codeb-tls/subjects") == sorted(site.all_hosts)
    prober = HttpProber(port=real.server.port, tls="internal")

    async def served(host: str) -> bool:
        answer = await prober.public(host, "/", timeout_seconds=10)
        return (answer.status, answer.slot) == (200, "blue")

    try:
        for host in site.all_hosts:
            await until(lambda host=host: served(host))  # type: ignore[misc]
    finally:
        await prober.close()
        await case.close()
