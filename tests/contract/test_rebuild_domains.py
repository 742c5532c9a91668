"""What the routes of any proxy, fake or real, tell of further domains when the registry has lost them."""

from __future__ import annotations

from typing import Any

from codeb_mcp.model.rebuild import Known, further_domains
from tests.contract.edges import Case, site

BASE = "apps.test"


def _known(projects: dict[str, Any], *, whole: bool = True) -> Known:
    return Known(projects, whole, BASE)


def _entry(**chosen: str) -> dict[str, Any]:
    """A project of `ssot` with both environments and these chosen domains."""
    environments = {name: {"domain": domain} for name, domain in chosen.items()}
    return {"ports": {"production": {}, "staging": {}}, "settings": {"environments": environments}}


async def test_routes_tell_the_domains_beyond_an_environments_own_host(edge: Case) -> None:
    proxy = edge.proxy()
    edge.add_foreign("foreign.test")
    default = site("shop-production", edge.ports, "shop.apps.test", "www.shop.test", "shop.test", preview=True)
    chosen = site("shop-staging", edge.ports, "try.shop.test", "next.shop.test", preview=True)
    alone = site("blog-production", edge.ports, "blog.apps.test", preview=True)
    await proxy.apply(upsert=[chosen, default, alone])

    ssot = {"shop": _entry(staging="try.shop.test"), "blog": _entry()}
    found = further_domains(await proxy.routes(), _known(ssot))
    assert found == {
        "shop": [
            {"domain": "www.shop.test", "environment": "production"},
            {"domain": "shop.test", "environment": "production"},
            {"domain": "next.shop.test", "environment": "staging"},
        ]
    }
    edge.restart(keep=True)
    assert further_domains(await proxy.routes(), _known(ssot)) == found


async def test_without_ssot_the_first_host_of_a_route_is_the_environments_own(edge: Case) -> None:
    proxy = edge.proxy()
    await proxy.apply(upsert=[site("shop-production", edge.ports, "my.shop.test", "www.shop.test", preview=True)])
    found = further_domains(await proxy.routes(), _known({}, whole=False))
    assert found == {"shop": [{"domain": "www.shop.test", "environment": "production"}]}


async def test_a_route_that_is_older_than_a_change_of_domain_does_not_bring_the_former_one_back(edge: Case) -> None:
    proxy = edge.proxy()
    await proxy.apply(upsert=[site("shop-production", edge.ports, "old.shop.test", "www.shop.test")])
    routes, ssot = await proxy.routes(), {"shop": _entry(production="new.shop.test")}
    kept = [{"domain": "www.shop.test", "environment": "production"}]
    former = [{"domain": "old.shop.test", "environment": "production"}]
    assert further_domains(routes, _known(ssot)) == {"shop": kept}
    assert further_domains(routes, _known(ssot, whole=False)) == {"shop": [*former, *kept]}
