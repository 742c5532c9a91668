"""A document of further domains that is lost with all its kept versions comes back from the proxy's routes."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from codeb_mcp.model.errors import DriverUnavailable
from codeb_mcp.model.names import Environment
from codeb_mcp.operations.rebuild import Rebuilt, rebuild
from codeb_mcp.operations.routing import publish_routes
from codeb_mcp.registry.store import Change
from tests.unit.operations.world import World

DOMAINS = [
    {"domain": "www.example.com", "environment": "production"},
    {"domain": "example.org", "environment": "production"},
    {"domain": "try.example.com", "environment": "staging"},
]
KEY = "domains/shop"


async def _with_domains(world: World, domains: list[dict[str, str]] | None = None, **settings: Any) -> None:
    """A live project with these further domains, served by the proxy."""
    await world.project("shop", "production", "staging", **settings)
    await world.services.store.commit([Change(KEY, {"domains": domains or DOMAINS}, 0)])
    await world.live("v1")
    await world.deploy("v1", environment="staging", image="registry.test/shop:v1")
    await publish_routes(world.services, "shop", list(Environment))


def _path(world: World, key: str) -> Path:
    return world.settings.registry / f"{key}.json"


def _lose(world: World, *keys: str) -> None:
    """The documents and all their kept versions are gone, as after a loss of these folders."""
    for key in keys:
        _path(world, key).unlink()
        shutil.rmtree(world.settings.registry / ".generations" / key)
    world.restart()


async def _rebuilt(world: World) -> dict[str, Rebuilt]:
    proposed = await rebuild(world.services, apply=False)
    done = await rebuild(world.services, apply=True)
    assert done == proposed, "what was shown is what was done"
    assert await rebuild(world.services, apply=True) == []
    return {one.key: one for one in done}


async def _domains(world: World) -> list[dict[str, str]] | None:
    stored = await world.services.store.get(KEY)
    return stored.doc["domains"] if stored else None


@pytest.mark.parametrize("chosen", [None, "shop.example.com"])
async def test_a_document_that_is_lost_with_its_kept_versions_comes_back_from_the_routes(
    world: World, chosen: str | None
) -> None:
    await _with_domains(world, domain=chosen)
    assert await world.visit("www.example.com") == "v1"
    _lose(world, KEY)
    proposed = await rebuild(world.services, apply=False)
    assert [(one.key, one.action) for one in proposed] == [(KEY, "rebuilt")]
    assert "www.example.com (production), example.org (production), try.example.com (staging)" in proposed[0].detail
    assert await _domains(world) is None, "a proposal changes nothing"
    assert set(await _rebuilt(world)) == {KEY}
    assert await _domains(world) == DOMAINS
    assert await world.drift() == []
    await world.live("v2")
    for host in ("www.example.com", "example.org", chosen or "shop.codeb.localhost"):
        assert await world.visit(host) == "v2", "and they go on being served"


async def test_one_that_is_damaged_without_kept_versions_comes_back_the_same_way(world: World) -> None:
    await _with_domains(world)
    shutil.rmtree(world.settings.registry / ".generations")
    os.truncate(_path(world, KEY), 20)
    world.restart()
    assert (await _rebuilt(world))[KEY].action == "rebuilt"
    assert await _domains(world) == DOMAINS


async def test_it_comes_back_together_with_the_whole_registry(world: World) -> None:
    await _with_domains(world, domain="shop.example.com")
    shutil.rmtree(world.settings.registry / ".generations")
    for key in ("slots", "domains"):
        shutil.rmtree(world.settings.registry / key)
    _path(world, "ssot").unlink()
    world.restart()
    done = await _rebuilt(world)
    assert done[KEY].action == "rebuilt"
    assert await _domains(world) == DOMAINS
    assert await world.visit("shop.example.com") == "v1"
    assert await world.drift() == []


async def test_a_project_without_further_domains_gets_no_document(world: World) -> None:
    await world.project("shop", "production", "staging", domain="shop.example.com")
    await world.live("v1")
    world.restart()
    assert await _rebuilt(world) == {}
    assert await _domains(world) is None


async def test_a_document_that_can_be_read_is_left_alone(world: World) -> None:
    await _with_domains(world)
    stored = await world.services.store.get(KEY)
    assert stored is not None
    await world.services.store.commit([Change(KEY, {"domains": DOMAINS[:1], "note": "kept"}, stored.version)])
    world.restart()
    assert await _rebuilt(world) == {}
    assert await _domains(world) == DOMAINS[:1]


async def test_a_document_that_was_deleted_on_purpose_does_not_come_back(world: World) -> None:
    await _with_domains(world)
    stored = await world.services.store.get(KEY)
    assert stored is not None
    await world.services.store.commit([Change(KEY, None, stored.version)])
    world.restart()
    assert await _rebuilt(world) == {}
    assert await _domains(world) is None


@pytest.mark.parametrize("back_to_default", [False, True])
async def test_a_chosen_domain_that_the_proxy_has_not_forgotten_yet_does_not_come_back(
    world: World, back_to_default: bool
) -> None:
    await _with_domains(world, domain="old.example.com")
    domain = None if back_to_default else "new.example.com"
    world.edge.fail("apply", DriverUnavailable("away"))
    changed = await world.call("project_update", projectName="shop", environment="production", domain=domain)
    assert changed["warnings"]
    _lose(world, KEY)
    await _rebuilt(world)
    assert await _domains(world) == DOMAINS


async def test_a_former_domain_is_kept_when_what_is_left_of_ssot_is_older_than_it(world: World) -> None:
    await _with_domains(world)
    await world.call("project_update", projectName="shop", environment="production", domain="shop.example.com")
    versions = world.settings.registry / ".generations/ssot"
    max(versions.glob("*.json"), key=lambda path: int(path.stem)).write_bytes(b"{")
    os.truncate(_path(world, "ssot"), 30)
    _lose(world, KEY)
    done = await _rebuilt(world)
    assert done["ssot"].action == "older"
    assert await _domains(world) == [{"domain": "shop.example.com", "environment": "production"}, *DOMAINS]
    await publish_routes(world.services, "shop", [Environment.PRODUCTION])
    assert await world.visit("shop.example.com") == "v1"


async def test_a_host_that_is_another_environments_own_by_now_is_left_to_it(world: World) -> None:
    await _with_domains(world)
    site = world.edge.configured["shop-production"]
    await world.project("blog", domain="blog.example.com")
    moved = (*site.hosts, "blog.example.com")
    world.edge.configured["shop-production"] = replace(site, hosts=moved)
    _lose(world, KEY)
    await _rebuilt(world)
    assert await _domains(world) == DOMAINS


async def test_a_proxy_that_cannot_be_asked_is_said_to_be_and_nothing_is_made_up(world: World) -> None:
    await _with_domains(world)
    _lose(world, KEY)
    world.edge.fail("sites", DriverUnavailable("away"))
    [said] = await rebuild(world.services, apply=False)
    assert (said.key, said.action) == ("proxy", "lost")
    assert (await _rebuilt(world))[KEY].action == "rebuilt"
