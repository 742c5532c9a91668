"""A project cannot take the names of another project's environments; one that has such a name already goes on."""

from __future__ import annotations

from typing import Any

import pytest

from codeb_mcp.model.access import Role
from codeb_mcp.registry.store import update
from tests.unit.operations.world import World, principal

ACME = principal(Role.OWNER, "acme")
ENDS = [
    f"{environment}{slot}" for environment in ("production", "staging", "preview") for slot in ("", "-blue", "-green")
]


@pytest.fixture
async def two_teams(world: World) -> World:
    """A world with a second team, and a project `shop` of the first that has production only."""
    await world.call("team_create", teamId="acme", name="Acme")
    await world.project("shop", "production")
    return world


@pytest.mark.parametrize("end", ENDS)
async def test_the_name_of_anothers_environment_is_refused_by_field(two_teams: World, end: str) -> None:
    before = await two_teams.services.store.get("ssot")
    refusal = await two_teams.refused("invalid_request", "project_create", ACME, projectName=f"shop-{end}")
    assert [field["field"] for field in refusal.detail["fields"]] == ["projectName"]
    assert f"must not end with -{end}" in refusal.message
    assert await two_teams.services.store.get("ssot") == before
    added = await two_teams.call("project_create", projectName="shop", environments=["staging", "preview"])
    assert {one["url"] for one in added["environments"]} == {
        "http://shop.codeb.localhost", "http://shop-staging.codeb.localhost", "http://shop-preview.codeb.localhost",
    }  # fmt: skip


async def test_a_slots_word_alone_is_an_ordinary_end(two_teams: World) -> None:
    made = await two_teams.call("project_create", ACME, projectName="shop-blue")
    assert made["created"]


async def _as_stored_before(world: World, name: str) -> None:
    """A project of that name from a time when it could be created."""
    await world.project("stand-in", "production", caller=ACME)

    def renamed(doc: Any) -> Any:
        entries = dict(doc["projects"])
        return {**doc, "projects": {**entries, name: entries.pop("stand-in")}}

    def listed(doc: Any) -> Any:
        acme = {**doc["teams"]["acme"], "projects": [name]}
        return {**doc, "teams": {**doc["teams"], "acme": acme}}

    await update(world.services.store, "ssot", renamed)
    await update(world.services.store, "teams", listed)


async def test_a_project_that_has_such_a_name_goes_on_working(two_teams: World) -> None:
    await _as_stored_before(two_teams, "old-staging")
    assert (await two_teams.call("project_get", ACME, projectName="old-staging"))["projectName"] == "old-staging"
    again = await two_teams.call("project_create", ACME, projectName="old-staging", environments=["production"])
    assert again["created"] is False
    deployed = await two_teams.deploy("v1", "old-staging", caller=ACME)
    assert deployed["slot"] == "blue"
    await two_teams.call("promote", ACME, projectName="old-staging", environment="production")
    assert await two_teams.visit("old-staging.codeb.localhost") == "v1"
    refusal = await two_teams.refused("conflict", "project_create", projectName="old", environments=["staging"])
    assert "old-staging.codeb.localhost is taken by another project" in refusal.message
