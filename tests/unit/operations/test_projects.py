"""Projects: create, change, delete, and the ports that come and go with them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from codeb_mcp.model.access import Role
from codeb_mcp.model.errors import CodebError, DriverUnavailable, NotFound
from codeb_mcp.operations.housekeeping import Housekeeper
from codeb_mcp.registry.store import Change
from tests.unit.operations.world import World, bounded, principal

ACME = principal(Role.OWNER, "acme")


async def _team(world: World) -> None:
    await world.call("team_create", teamId="acme", name="Acme")


async def _ports(world: World, name: str) -> dict[str, dict[str, int]]:
    found = await world.call("project_get", projectName=name)
    return {one["environment"]: one["ports"] for one in found["environments"]}


async def test_the_guides_projects_stand_on_the_guides_ports(world: World) -> None:
    await world.call("project_create", projectName="worb")
    await world.call("project_create", projectName="w-homepage", environments=["production"])
    await world.call("project_create", projectName="da-rak", environments=["production"])
    assert await _ports(world, "worb") == {
        "production": {"blue": 4000, "green": 4001}, "staging": {"blue": 4500, "green": 4501},
    }  # fmt: skip
    assert (await _ports(world, "w-homepage"))["production"] == {"blue": 4002, "green": 4003}
    assert (await _ports(world, "da-rak"))["production"] == {"blue": 4004, "green": 4005}
    stored = await world.services.store.get("ssot")
    assert stored is not None
    assert stored.doc["usedPorts"] == [4000, 4001, 4002, 4003, 4004, 4005, 4500, 4501]


async def test_the_ports_of_the_team_are_listed_with_what_is_left(world: World) -> None:
    await _team(world)
    await world.call("project_create", projectName="worb")
    await world.project("theirs", caller=ACME)
    found = await world.call("port_list")
    assert found["data"] == [
        {"projectName": "worb", "environment": "production", "blue": 4000, "green": 4001},
        {"projectName": "worb", "environment": "staging", "blue": 4500, "green": 4501},
    ]
    assert {one["environment"]: (one["ranges"], one["freePairs"]) for one in found["ranges"]} == {
        "production": (["4000-4499"], 248), "staging": (["4500-4999"], 249), "preview": (["5000-5431"], 216),
    }  # fmt: skip
    assert found["overlaps"] == []
    only = await world.call("port_list", principal(Role.VIEWER, "default", "environment:staging"), projectName="worb")
    assert [row["environment"] for row in only["data"]] == ["staging"]
    assert [row["projectName"] for row in (await world.call("port_list", ACME))["data"]] == ["theirs"]
    await world.refused("not_found", "port_list", ACME, projectName="worb")


async def test_a_range_that_reaches_into_a_reserved_one_is_told(world: World) -> None:
    ports = world.settings.ports.model_copy(update={"preview": ((5000, 5499),)})
    world.settings = world.settings.model_copy(update={"ports": ports})
    world.restart()
    assert (await world.call("port_list"))["overlaps"] == ["preview 5000-5499 overlaps PostgreSQL 5432-5499"]


async def test_ports_that_anything_holds_are_not_given_away(world: World) -> None:
    world.ports.ports |= {4000, 4003}
    image = world.engine.load("registry.test/other:1")
    world.engine.keep(world.engine.images[image.image_id], image.reference)
    await world.project("first")
    assert (await _ports(world, "first"))["production"] == {"blue": 4004, "green": 4005}


async def test_creating_a_project_again_changes_nothing_and_adds_what_is_missing(world: World) -> None:
    await world.project("shop", "production", keep=7)
    again = await world.call("project_create", projectName="shop", environments=["production", "staging"], keep=9)
    assert again["created"] is False
    assert again["keep"] == 7
    assert await _ports(world, "shop") == {
        "production": {"blue": 4000, "green": 4001}, "staging": {"blue": 4500, "green": 4501},
    }  # fmt: skip


async def test_an_environment_that_is_named_twice_is_made_once(world: World) -> None:
    await world.call("project_create", projectName="shop", environments=["staging", "staging"])
    assert await _ports(world, "shop") == {"staging": {"blue": 4500, "green": 4501}}


async def test_a_project_of_another_team_keeps_its_name(world: World) -> None:
    await _team(world)
    await world.project("shop", caller=ACME)
    refusal = await world.refused("conflict", "project_create", projectName="shop")
    assert "taken" in refusal.message
    assert (await world.call("project_get", ACME, projectName="shop"))["teamId"] == "acme"


async def test_a_key_of_any_team_may_deploy_what_it_created(world: World) -> None:
    await _team(world)
    member = principal(Role.MEMBER, "acme")
    await world.project("shop", caller=member)
    deployed = await world.deploy("v1", caller=member)
    assert deployed["slot"] == "blue"


async def test_a_change_keeps_what_it_does_not_name(world: World) -> None:
    await world.project("shop", limits={"memoryMb": 256})
    await world.call("project_update", projectName="shop", limits={"pids": 64}, keep=5)
    await world.call("project_update", projectName="shop", healthCheck={"path": "/ready"}, containerPort=3000)
    found = await world.call(
        "project_update", projectName="shop", environment="production", graceHours=1, drainSeconds=2
    )
    assert (found["limits"]["memoryMb"], found["limits"]["pids"]) == (256, 64)
    assert (found["keep"], found["containerPort"]) == (5, 3000)
    assert found["healthCheck"]["path"] == "/ready"
    assert found["healthCheck"]["deadlineSeconds"] == 1
    assert (found["environments"][0]["graceHours"], found["environments"][0]["drainSeconds"]) == (1, 2)


async def test_a_grace_period_needs_its_environment(world: World) -> None:
    await world.project()
    refusal = await world.refused("invalid_request", "project_update", projectName="shop", graceHours=1)
    assert refusal.detail["fields"][0]["field"] == "environment"


async def test_a_new_domain_is_served_at_once_also_before_the_first_release(world: World) -> None:
    await world.project()
    await world.deploy("v1")
    changed = await world.call(
        "project_update", projectName="shop", environment="production", domain="shop.example.com"
    )
    assert changed["warnings"] == []
    assert changed["environments"][0]["url"] == "http://shop.example.com"
    assert await world.visit("shop.example.com") == "503"
    await world.promote()
    assert await world.visit("shop.example.com") == "v1"


async def test_a_proxy_that_is_away_does_not_undo_a_change(world: World) -> None:
    await world.project()
    world.edge.fail("apply", DriverUnavailable("the proxy is away"))
    changed = await world.call("project_update", projectName="shop", environment="production", domain="a.example.com")
    assert "the proxy is away" in changed["warnings"][0]
    assert (await world.call("project_get", projectName="shop"))["environments"][0]["url"] == "http://a.example.com"


@pytest.mark.parametrize(
    "domain",
    [
        "shop.example.com",
        "blog.codeb.localhost",
        "blog-staging.codeb.localhost",
        "x.preview.codeb.localhost",
        "preview.codeb.localhost",
    ],
)
async def test_a_domain_that_somebody_else_has_is_refused(world: World, domain: str) -> None:
    await world.project("shop", domain="shop.example.com")
    await world.project("blog", "production", "staging")
    await world.project("new")
    await world.refused("conflict", "project_update", projectName="new", environment="production", domain=domain)
    await world.refused("conflict", "project_create", projectName="newer", domain=domain)


async def test_two_environments_of_a_project_cannot_share_a_domain(world: World) -> None:
    await world.project("shop", "production", "staging", domain="shop.example.com")
    refusal = await world.refused(
        "conflict", "project_update", projectName="shop", environment="staging", domain="shop.example.com"
    )
    assert refusal.detail["host"] == "shop.example.com"


async def test_a_name_whose_own_address_is_taken_is_refused(world: World) -> None:
    await world.project("first", domain="shop.codeb.localhost")
    refusal = await world.refused("conflict", "project_create", projectName="shop", environments=["production"])
    assert refusal.detail["host"] == "shop.codeb.localhost"


async def test_of_two_who_want_a_domain_at_once_one_gets_it(world: World) -> None:
    await world.project("one")
    await world.project("two")
    wanted = [
        world.call("project_update", projectName=name, environment="production", domain="shop.example.com")
        for name in ("one", "two")
    ]
    ends = await asyncio.gather(*wanted, return_exceptions=True)
    assert sorted(isinstance(end, CodebError) for end in ends) == [False, True]


# ── delete ──────────────────────────────────────────────────────────────────────────────────────────────────────


async def _delete(world: World, name: str = "shop", **more: Any) -> dict[str, Any]:
    return await world.call("project_delete", projectName=name, confirm=name, **more)


async def test_a_deleted_project_leaves_nothing_but_its_env_files(world: World) -> None:
    await world.project("shop", "production", "staging")
    await world.live("v1")
    await world.deploy("v2")
    await world.deploy("v1", environment="staging", image="registry.test/shop:v1")
    env = world.settings.projects / "shop" / ".env.production"
    env.parent.mkdir(parents=True)
    env.write_text("A=1\n", encoding="utf-8")
    gone = await _delete(world)
    assert gone["freedPorts"] == [4000, 4001, 4500, 4501]
    assert world.running() == []
    assert world.edge.configured == {}
    assert world.edge.flags == {}
    [aside] = (world.settings.projects / ".deleted").iterdir()
    assert (aside / env.name).read_text(encoding="utf-8") == "A=1\n"
    await world.refused("not_found", "project_get", projectName="shop")
    with pytest.raises(NotFound):
        await world.slots()


async def test_a_staging_environment_of_many_deploys_can_be_deleted(world: World) -> None:
    await world.project("shop", "production", "staging")
    for version in ("v1", "v2", "v3", "v4"):
        await world.deploy(version, environment="staging", force=True)
        await world.promote(environment="staging")
    await _delete(world)
    assert world.running() == []


async def test_a_deletion_is_refused_while_any_environment_is_being_deployed_to(world: World) -> None:
    await world.project("shop", "production", "staging")
    pause = world.engine.faults.pause("containers.ensure")
    deploy = asyncio.create_task(world.deploy("v1", environment="staging"))
    await bounded(pause.reached.wait())
    refusal = await world.refused("lock_held", "project_delete", projectName="shop", confirm="shop")
    assert refusal.detail["operationId"]
    pause.release()
    await bounded(deploy)
    assert await world.states(environment="staging") == ("deployed", "empty")
    await _delete(world)
    assert world.running() == []


async def test_nothing_is_deployed_to_a_project_that_is_being_deleted(world: World) -> None:
    await world.project("shop", "production", "staging")
    await world.live("v1")
    pause = world.engine.faults.pause("containers.remove")
    deletion = asyncio.create_task(_delete(world))
    await bounded(pause.reached.wait())
    image = world.image("v2")
    for environment in ("production", "staging"):
        with pytest.raises(CodebError) as refusal:
            await world.deploy("v2", image=image, environment=environment)
        assert refusal.value.code == "lock_held"
    pause.release()
    await bounded(deletion)
    assert world.running() == []


async def test_a_deletion_goes_on_when_other_projects_change_the_registry(world: World) -> None:
    await world.project("shop")
    await world.live("v1")
    others = [world.project(f"other{number}") for number in range(8)]
    await asyncio.gather(_delete(world), *others)
    assert (await world.call("project_list"))["total"] == 8
    assert world.running() == []


async def test_a_deletion_whose_proxy_is_away_is_taken_up_again(world: World) -> None:
    await world.project("shop", "production", "staging")
    await world.live("v1")
    world.edge.fail("apply", *[DriverUnavailable("the proxy is away")] * 3)
    refusal = await world.refused("driver_unavailable", "project_delete", projectName="shop", confirm="shop")
    assert "taken up again" in refusal.hint
    await Housekeeper(world.services).once()
    await bounded(world.services.runs.drain())
    assert world.running() == []
    await world.refused("not_found", "project_get", projectName="shop")


async def test_a_deletion_must_be_confirmed(world: World) -> None:
    await world.project()
    await world.refused("invalid_request", "project_delete", projectName="shop", confirm="shpo")
    await world.refused("forbidden", "project_delete", principal(Role.MEMBER), projectName="shop", confirm="shop")
    assert (await world.call("project_list"))["total"] == 1


async def test_freed_ports_rest_for_an_hour_and_the_name_can_be_used_again(world: World) -> None:
    await world.project()
    await world.live("v1")
    await _delete(world)
    await world.project()
    assert (await _ports(world, "shop"))["production"] == {"blue": 4002, "green": 4003}
    assert await world.visit() == "503"
    await world.live("v2")
    assert await world.visit() == "v2"
    world.clock.forward(hours=1, seconds=1)
    await world.project("late")
    assert (await _ports(world, "late"))["production"] == {"blue": 4000, "green": 4001}


async def test_a_project_can_be_deleted_and_made_again_many_times(world: World) -> None:
    for round_number in range(3):
        await world.project("shop", "production", "staging")
        await world.live(f"v{round_number}")
        await world.deploy(f"s{round_number}", environment="staging")
        assert await world.visit() == f"v{round_number}"
        await world.require_consistent()
        await _delete(world)


async def test_a_project_without_its_slots_document_can_be_deployed_to(world: World) -> None:
    """What earlier versions wrote: an entry with ports, and no slots yet."""
    stored = await world.services.store.get("ssot")
    teams = await world.services.store.get("teams")
    assert stored is not None
    assert teams is not None
    root = world.settings.registry
    ssot = {
        **stored.doc,
        "projects": {"worb": {"ports": {"production": {"blue": 4000, "green": 4001}}, "database": {"name": "worb"}}},
    }
    team = {**teams.doc["teams"]["default"], "projects": ["worb"]}
    await world.services.store.commit(
        [
            Change("ssot", ssot, stored.version),
            Change("teams", {**teams.doc, "teams": {"default": team}}, teams.version),
        ]
    )
    await world.live("v1", "worb")
    assert await world.visit("worb.codeb.localhost") == "v1"
    stored = await world.services.store.get("ssot")
    assert stored is not None
    assert stored.doc["projects"]["worb"]["database"] == {"name": "worb"}
    assert root.exists()


async def test_an_update_says_what_is_missing_and_takes_a_domain_back(world: World) -> None:
    await world.call("project_create", projectName="worb", environments=["production"])
    empty = await world.refused("invalid_request", "project_update", projectName="worb", environment="production")
    assert "nothing to change" in empty.message
    missing = await world.refused(
        "not_found", "project_update", projectName="worb", environment="preview", graceHours=5
    )
    assert "project_create" in missing.hint
    chosen = {"projectName": "worb", "environment": "production"}
    changed = await world.call("project_update", **chosen, domain="shop.example.com")
    assert "shop.example.com" in changed["environments"][0]["url"]
    back = await world.call("project_update", **chosen, domain=None)
    assert "worb." in back["environments"][0]["url"]


@pytest.mark.parametrize(
    ("field", "value"),
    [("limit", True), ("limit", "5"), ("limit", 1.5), ("offset", "0"), ("offset", None), ("limit", [5])],
)
async def test_a_value_of_another_type_is_refused_by_its_field(world: World, field: str, value: Any) -> None:
    refusal = await world.refused("invalid_request", "project_list", **{field: value})
    assert refusal.detail["fields"][0]["field"] == field


@pytest.mark.parametrize(
    "domain", ["127.0.0.1", "shop", "shop.example.1", "*.example.com", "shop..com", "Shop.example.com"]
)
async def test_what_is_no_host_name_is_no_domain(world: World, domain: str) -> None:
    refusal = await world.refused("invalid_request", "project_create", projectName="worb", domain=domain)
    assert refusal.detail["fields"][0]["field"] == "domain"
    assert "Value error" not in refusal.message


async def test_a_refused_name_is_explained_in_words(world: World) -> None:
    refusal = await world.refused("invalid_request", "project_create", projectName="Worb!")
    assert "lower-case letters" in refusal.message
    assert "[a-z" not in refusal.message


@pytest.mark.parametrize(
    "folder",
    [
        "/..", "/../../x", "/tmp/../etc", "/./tmp", "/tmp/.", "/tmp/", "//tmp", "/tmp//x", "/...", "/proc", "/proc/self", "/sys",
        "/dev", "/dev/shm", "/etc", "/etc/nginx", "/bin", "/sbin", "/lib", "/lib64", "/libx32/x", "/usr", "/usr/bin",
        "/run/secrets", "/run/secrets/x", "/var/run/secrets", "/", "tmp", "",
    ],
)  # fmt: skip
async def test_an_app_gets_no_folder_in_memory_where_the_system_has_its_own(world: World, folder: str) -> None:
    await world.project("shop")
    for tool in ("project_create", "project_update"):
        error = await world.refused("invalid_request", tool, projectName="shop", limits={"tmpfs": ["/tmp", folder]})
        assert "tmpfs" in error.message
    assert (await world.call("project_get", projectName="shop"))["limits"]["tmpfs"] == ["/tmp"]
    await world.services.runs.drain()


async def test_an_app_gets_folders_in_memory_of_its_own(world: World) -> None:
    own = ["/tmp", "/run", "/var/cache/nginx", "/etcetera", "/library", "/app/.cache"]
    await world.project("shop", limits={"tmpfs": own})
    await world.live()
    assert (await world.call("project_get", projectName="shop"))["limits"]["tmpfs"] == own


async def test_an_older_setting_loads_and_is_refused_when_it_is_to_be_used(world: World) -> None:
    await world.project("shop")
    await world.live()
    stored = await world.services.store.get("ssot")
    assert stored is not None
    entry = stored.doc["projects"]["shop"]
    older = {**entry, "settings": {**entry.get("settings", {}), "limits": {"tmpfs": ["/tmp", "/proc"]}}}
    doc = {**stored.doc, "projects": {**stored.doc["projects"], "shop": older}}
    await world.services.store.commit([Change("ssot", doc, stored.version)])
    assert (await world.call("project_get", projectName="shop"))["limits"]["tmpfs"] == ["/tmp", "/proc"]
    running = world.running()
    error = await world.refused(
        "conflict", "deploy", projectName="shop", environment="production", image=world.image("v2")
    )
    assert "/proc" in error.message
    assert "project_update" in error.hint
    assert world.running() == running
    assert await world.visit() == "v1"
    await world.call("project_update", projectName="shop", limits={"tmpfs": ["/tmp"]})
    await world.deploy("v2")
