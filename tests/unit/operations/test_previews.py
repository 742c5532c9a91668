"""Preview environments per pull request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from codeb_mcp.drivers.github import GitHubPullRequests
from codeb_mcp.model.access import Role
from codeb_mcp.model.errors import CodebError
from codeb_mcp.operations.housekeeping import Housekeeper
from codeb_mcp.registry.env_history import values_of
from tests.unit.operations.world import World, principal

MEMBER = principal(Role.MEMBER)


async def made(world: World, number: int = 12, **more: object) -> dict[str, Any]:
    return await world.call("preview_create", MEMBER, projectName="shop", pullRequest=number, **more)


async def test_a_preview_is_a_project_of_its_own_with_the_settings_of_its_parent(world: World) -> None:
    await world.project(containerPort=3000, limits={"memoryMb": 99})
    answer = await made(world)
    assert (answer["previewProject"], answer["created"]) == ("shop-pr-12", True)
    assert answer["url"] == "http://shop-pr-12-preview.codeb.localhost"
    blue, green = answer["ports"]["blue"], answer["ports"]["green"]
    assert (blue % 2, green) == (0, blue + 1)
    assert 5000 <= blue < 5432
    child = await world.call("project_get", projectName="shop-pr-12")
    assert (child["containerPort"], child["limits"]["memoryMb"]) == (3000, 99)
    assert [one["environment"] for one in child["environments"]] == ["preview"]


async def test_a_preview_is_deployed_promoted_and_deleted_without_touching_its_parent(world: World) -> None:
    await world.project()
    await world.live("v1")
    before = await world.call("slot_status", projectName="shop", environment="production")
    await made(world)
    image = world.image("pr")
    where = {"projectName": "shop-pr-12", "environment": "preview"}
    await world.call("deploy", MEMBER, **where, image=image)
    await world.call("promote", MEMBER, **where)
    (row,) = (await world.call("preview_list", MEMBER, projectName="shop"))["data"]
    assert (row["pullRequest"], row["activeSlot"]) == (12, "blue")
    gone = await world.call("preview_delete", MEMBER, projectName="shop", pullRequest=12)
    assert (gone["deleted"], gone["status"]) == (True, "succeeded")
    assert [one for one in world.engine.containers if "pr-12" in one] == []
    assert (await world.call("preview_list", MEMBER))["data"] == []
    assert await world.call("slot_status", projectName="shop", environment="production") == before


async def test_deleting_a_preview_that_is_not_there_is_as_good(world: World) -> None:
    await world.project()
    answer = await world.call("preview_delete", MEMBER, projectName="shop", pullRequest=3)
    assert (answer["deleted"], answer["status"]) == (False, "succeeded")


async def test_repeating_the_call_keeps_the_preview_for_longer_and_changes_nothing_else(world: World) -> None:
    await world.project()
    first = await made(world, ttlHours=1)
    world.clock.forward(minutes=30)
    second = await made(world, ttlHours=1)
    assert second["created"] is False
    assert second["ports"] == first["ports"]
    assert second["expiresAt"] > first["expiresAt"]


async def test_the_housekeeper_ends_what_has_expired_and_nothing_else(world: World) -> None:
    await world.project()
    await made(world, 1, ttlHours=1)
    await made(world, 2, ttlHours=100)
    keeper = Housekeeper(world.services)
    assert (await keeper.once()).previews_ended == []
    world.clock.forward(minutes=61)
    report = await keeper.once()
    assert report.previews_ended == ["shop-pr-1"]
    assert [row["pullRequest"] for row in (await world.call("preview_list"))["data"]] == [2]


async def test_a_project_has_no_more_previews_than_allowed_also_when_all_come_at_once(world: World) -> None:
    await world.project()
    results = await asyncio.gather(*(made(world, number) for number in range(1, 16)), return_exceptions=True)
    refused = [one for one in results if isinstance(one, CodebError)]
    assert [one.code for one in refused] == ["conflict"] * 5
    assert all(one.detail["limit"] == 10 for one in refused)
    assert (await world.call("preview_list"))["total"] == 10


async def test_a_key_of_the_parent_project_may_use_its_previews_and_no_others(world: World) -> None:
    await world.project()
    await world.project("other")
    await made(world)
    await world.call("preview_create", MEMBER, projectName="other", pullRequest=1)
    ci = principal(Role.MEMBER, "default", "project:shop")
    await world.call("deploy", ci, projectName="shop-pr-12", environment="preview", image=world.image("v1"))
    assert [row["previewProject"] for row in (await world.call("preview_list", ci))["data"]] == ["shop-pr-12"]
    await world.refused("forbidden", "preview_create", ci, projectName="other", pullRequest=2)
    await world.refused("forbidden", "slot_status", ci, projectName="other-pr-1", environment="preview")


async def test_a_preview_has_no_previews_and_its_name_cannot_be_taken(world: World) -> None:
    await world.project()
    await made(world)
    await world.refused("invalid_request", "preview_create", projectName="shop-pr-12", pullRequest=1)
    error = await world.refused("invalid_request", "project_create", projectName="shop-pr-13")
    assert error.detail["fields"][0]["field"] == "projectName"


@pytest.mark.parametrize("number", [0, -1, 10_000_000, "12", 1.5, True, None])
async def test_a_pull_request_is_a_whole_number(world: World, number: object) -> None:
    await world.project()
    await world.refused("invalid_request", "preview_create", projectName="shop", pullRequest=number)


async def test_a_name_that_gets_too_long_is_refused_before_anything_is_made(world: World) -> None:
    long = "a" * 36
    await world.project(long)
    error = await world.refused("invalid_request", "preview_create", projectName=long, pullRequest=12)
    assert "more than 40 characters" in error.message


async def test_other_teams_do_not_see_it(world: World) -> None:
    await world.project()
    await made(world)
    stranger = principal(Role.OWNER, "acme")
    await world.refused("not_found", "preview_create", stranger, projectName="shop", pullRequest=1)
    await world.refused("not_found", "preview_delete", stranger, projectName="shop", pullRequest=12)
    assert (await world.call("preview_list", stranger))["data"] == []


async def test_a_preview_gets_the_parents_preview_variables_and_no_others(world: World) -> None:
    await world.project()
    production, template = {"DB": "postgres://live"}, {"DB": "postgres://throwaway", "FLAG": "on"}
    await world.call("env_set", MEMBER, projectName="shop", environment="production", values=production)
    await world.call("env_set", MEMBER, projectName="shop", environment="preview", values=template)
    await made(world)
    child = await world.services.registry.env.snapshot("shop-pr-12", "preview")
    assert values_of(child.current) == template
    await world.deploy("v1", "shop-pr-12", environment="preview")
    (container,) = [one for name, one in world.engine.containers.items() if "pr-12" in name]
    assert {name: container.spec.environment[name] for name in template} == template


async def test_a_preview_made_again_does_not_get_what_its_former_self_had(world: World) -> None:
    await world.project()
    await made(world)
    own = {"projectName": "shop-pr-12", "environment": "preview"}
    await world.call("env_set", MEMBER, **own, values={"SECRET": "of the first one"})
    await world.call("preview_delete", MEMBER, projectName="shop", pullRequest=12)
    await made(world)
    assert (await world.call("env_get", MEMBER, **own))["data"] == []


class Pulls:
    """GitHub's answer about one pull request: a real HTTP server of this test."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, str]] = {}
        self.asked: list[tuple[str, str | None]] = []

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append((request.path, request.headers.get("Authorization")))
        status, body = self.answers.get(request.path, (404, "{}"))
        return web.Response(status=status, text=body, content_type="application/json")


@pytest.fixture
async def pulls(world: World, tmp_path: Path) -> AsyncIterator[Pulls]:
    found = Pulls()
    app = web.Application()
    app.router.add_get("/{path:.*}", found.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    (tmp_path / "token").write_text("token-of-the-test\n")
    github = GitHubPullRequests(f"http://127.0.0.1:{port}", tmp_path / "token")
    object.__setattr__(world.services.drivers, "pull_requests", github)
    yield found
    await runner.cleanup()


async def test_previews_of_closed_pull_requests_end_and_all_others_stay(world: World, pulls: Pulls) -> None:
    await world.project(repository="acme/shop")
    for number in range(1, 6):
        await made(world, number)
    base = "/repos/acme/shop/pulls/"
    pulls.answers = {
        base + "1": (200, '{"state":"closed"}'),
        base + "2": (200, '{"state":"open"}'),
        base + "3": (500, "{}"),
        base + "4": (200, '{"state":"merged?"}'),
    }
    report = await Housekeeper(world.services).once()
    assert report.previews_ended == ["shop-pr-1"]
    assert [row["pullRequest"] for row in (await world.call("preview_list"))["data"]] == [2, 3, 4, 5]
    assert {authorization for _, authorization in pulls.asked} == {"Bearer token-of-the-test"}
    said = " ".join(report.problems)
    assert "shop-pr-3" in said
    assert "shop-pr-4" in said
    assert "token-of-the-test" not in said


async def test_nobody_is_asked_about_projects_without_a_repository(world: World, pulls: Pulls) -> None:
    await world.project()
    await made(world)
    assert (await Housekeeper(world.services).once()).previews_ended == []
    assert pulls.asked == []


async def test_previews_of_a_project_that_is_gone_end(world: World) -> None:
    await world.project()
    await made(world)
    await world.call("project_delete", projectName="shop", confirm="shop")
    assert (await Housekeeper(world.services).once()).previews_ended == ["shop-pr-12"]
