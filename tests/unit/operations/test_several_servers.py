"""An environment on several app servers: all of them or none, and whoever fails is named."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from codeb_mcp.drivers.fake_proxy import FakeProber
from codeb_mcp.model.errors import DriverRefused, DriverUnavailable
from codeb_mcp.model.names import Slot
from codeb_mcp.operations.housekeeping import Housekeeper
from codeb_mcp.operations.rebuild import rebuild
from codeb_mcp.registry.store import update
from tests.lab.app_servers import FakeAppServer
from tests.unit.operations.world import World

HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI" + "A" * 43
LIVE = {"projectName": "shop", "environment": "production"}
TWO = ("app-1", "app-2")


def _away(world: World, key: str, *, away: bool = True) -> None:
    world.app_servers[key].engine.away = away


async def add_servers(world: World, *keys: str, role: str = "application") -> None:
    """Servers in the inventory whose host keys were accepted."""
    entries = {
        key: {"host": f"192.0.2.{number}", "role": role, "hostKey": HOST_KEY} for number, key in enumerate(keys, 11)
    }
    await update(
        world.services.store,
        "ssot",
        lambda doc: {**(doc or {}), "servers": {**(doc or {}).get("servers", {}), **entries}},
    )


async def placed(world: World, *keys: str, edge: bool = False) -> None:
    """The project shop, whose production stands on these servers."""
    await add_servers(world, *keys)
    await world.project()
    done = await world.call("project_place", **LIVE, servers=list(keys), edge=edge)
    assert (done["changed"], done["warnings"]) == (True, [])


def published(world: World, version: str) -> str:
    """An image that both servers can pull."""
    reference = f"registry.test/shop:{version}"
    for key in TWO:
        world.app_servers[key].engine.publish(reference, version)
        digest = world.app_servers[key].engine.remote[reference].image.digest
        world.app_servers[key].engine.remote[f"registry.test/shop@{digest}"] = world.app_servers[key].engine.remote[
            reference
        ]
    return reference


async def seen_at(server: FakeAppServer, host: str = "shop.codeb.localhost") -> str:
    """What a visitor of that server's proxy gets."""
    answer = await FakeProber(server.edge).public(host, "/version", timeout_seconds=1)
    return answer.body_head.strip() if answer.status == 200 else str(answer.status)


async def everywhere(world: World) -> list[str]:
    """What visitors get at each server."""
    return [await seen_at(world.app_servers[key]) for key in TWO]


async def release(world: World, version: str) -> None:
    """Deploy and promote on both."""
    await world.deploy(version, image=published(world, version))
    await world.promote()


async def test_a_deploy_goes_to_all_and_a_promote_switches_all(world: World) -> None:
    await placed(world, *TWO)
    await release(world, "v1")
    assert await everywhere(world) == ["v1", "v1"]
    assert world.running() == []
    await world.deploy("v2", image=published(world, "v2"))
    assert await everywhere(world) == ["v1", "v1"]
    await world.promote()
    assert await everywhere(world) == ["v2", "v2"]
    assert (await world.rollback())["restoredVersion"] == "v1"
    assert await everywhere(world) == ["v1", "v1"]
    await world.require_consistent()
    shown = (await world.call("project_get", projectName="shop"))["environments"]
    assert [one["servers"] for one in shown] == [list(TWO)]
    health = await world.call("health_check", **LIVE)
    assert {part["name"] for part in health["parts"] if part["status"] == "healthy"} >= {
        "shop.codeb.localhost on app-1", "shop.codeb.localhost on app-2", "blue on app-1", "blue on app-2"
    }  # fmt: skip


FAILING: dict[str, tuple[str, str]] = {
    "images.pull": ("engine", "pull_image"),
    "containers.ensure": ("engine", "start_container"),
}


@pytest.mark.parametrize(("method", "server"), [*product(FAILING, TWO)])
async def test_a_deploy_that_one_server_cannot_do_leaves_no_trace_on_any(
    world: World, method: str, server: str
) -> None:
    await placed(world, *TWO)
    await release(world, "v1")
    image = published(world, "v2")
    world.app_servers[server].engine.faults.fail(method, DriverRefused("it does not want to", hint="Ask it."))
    refused = await world.refused("driver_refused", "deploy", **LIVE, image=image, version="v2")
    assert server in refused.message
    assert refused.detail["server"] == server
    assert await everywhere(world) == ["v1", "v1"]
    for key in TWO:
        assert sorted(world.app_servers[key].engine.containers) == ["shop-production-blue"]
    assert await world.states() == ("active", "empty")
    await world.require_consistent()


@pytest.mark.parametrize("server", TWO)
async def test_a_release_that_is_sick_on_one_server_is_taken_away_from_all(world: World, server: str) -> None:
    await placed(world, *TWO)
    await release(world, "v1")
    image = published(world, "v2")
    remote = world.app_servers[server].engine.remote
    for name in [name for name in remote if remote[name].image.reference == image]:
        remote[name] = replace(remote[name], environment={**remote[name].environment, "HEALTH": "fail"})
    refused = await world.refused("release_unhealthy", "deploy", **LIVE, image=image, version="v2")
    assert server in refused.message
    assert await everywhere(world) == ["v1", "v1"]
    for key in TWO:
        assert sorted(world.app_servers[key].engine.containers) == ["shop-production-blue"]
    await world.require_consistent()


@pytest.mark.parametrize(("method", "server"), [*product(("switch", "live", "has"), TWO)])
async def test_a_promote_that_one_server_cannot_do_leaves_all_on_the_old_version(
    world: World, method: str, server: str
) -> None:
    await placed(world, *TWO)
    await release(world, "v1")
    await world.deploy("v2", image=published(world, "v2"))
    world.app_servers[server].edge.faults[method] = [DriverUnavailable("the line is cut", hint="Mend it.")]
    refused = await world.refused("switch_reverted" if method == "switch" else "driver_unavailable", "promote", **LIVE)
    assert server in refused.message
    assert await everywhere(world) == ["v1", "v1"]
    assert await world.states() == ("active", "deployed")
    await world.require_consistent()
    await world.promote()
    assert await everywhere(world) == ["v2", "v2"]


async def test_a_server_that_answers_with_the_old_slot_after_a_switch_takes_all_back(world: World) -> None:
    await placed(world, *TWO)
    await release(world, "v1")
    await world.deploy("v2", image=published(world, "v2"))
    world.app_servers["app-2"].edge.blind = True
    refused = await world.refused("switch_reverted", "promote", **LIVE)
    assert "app-2" in refused.message
    assert await everywhere(world) == ["v1", "v1"]


async def test_an_edge_leads_to_all_servers_and_only_its_flag_moves(world: World) -> None:
    await placed(world, *TWO, edge=True)
    site = world.edge.configured["shop-production"]
    assert site.addresses == ("192.0.2.11", "192.0.2.12")
    assert [world.app_servers[key].edge.configured for key in TWO] == [{}, {}]
    image = published(world, "v1")
    # The edge's upstreams are the servers' own applications.
    world.edge.apps = world.app_servers["app-1"].edge.apps
    await world.deploy("v1", image=image)
    await world.promote()
    assert await world.visit() == "v1"
    for key in TWO:
        assert sorted(world.app_servers[key].engine.containers) == ["shop-production-blue"]
        assert world.app_servers[key].edge.flags == {}
    assert world.edge.flags == {"shop-production": Slot.BLUE}
    await world.require_consistent()


async def test_what_stands_on_a_server_that_is_down_is_told_and_the_others_are_still_checked(world: World) -> None:
    await placed(world, *TWO)
    await release(world, "v1")
    _away(world, "app-2")
    world.app_servers["app-1"].edge.flags["shop-production"] = None
    rows = {(row["kind"], row.get("server")): row for row in await world.drift()}
    assert set(rows) == {("server_unreachable", "app-2"), ("traffic_differs", "app-1")}
    mended = await world.call("registry_repair", driftIds=[rows["traffic_differs", "app-1"]["id"]])
    assert mended["repaired"] == 1
    assert await seen_at(world.app_servers["app-1"]) == "v1"
    _away(world, "app-2", away=False)
    await world.require_consistent()


async def test_a_container_that_is_gone_on_one_server_is_made_again_there(world: World) -> None:
    await placed(world, *TWO)
    await release(world, "v1")
    server = world.app_servers["app-2"]
    await server.engine.stop(server.engine.containers.pop("shop-production-blue"), removed=True)
    [row] = await world.drift()
    assert (row["kind"], row["server"], row["repair"]) == ("container_missing", "app-2", "recreate_container")
    assert (await world.call("registry_repair", driftIds=[row["id"]]))["repaired"] == 1
    await world.require_consistent()


async def test_a_dead_server_is_taken_away_and_the_other_goes_on(world: World) -> None:
    await placed(world, *TWO)
    await release(world, "v1")
    _away(world, "app-2")
    done = await world.call("project_place", **LIVE, servers=["app-1"])
    assert done["changed"]
    assert "app-2" in done["warnings"][0]
    await world.deploy("v2", image=published(world, "v2"))
    await world.promote()
    assert await seen_at(world.app_servers["app-1"]) == "v2"
    _away(world, "app-2", away=False)
    [row] = await world.drift()
    assert (row["kind"], row["server"]) == ("container_unknown", "app-2")
    assert (await world.call("registry_repair", driftIds=[row["id"]]))["repaired"] == 1
    await world.require_consistent()


async def test_a_promote_that_cannot_be_taken_back_everywhere_ends_once_the_dead_server_is_gone(world: World) -> None:
    await placed(world, *TWO)
    await release(world, "v1")
    await world.deploy("v2", image=published(world, "v2"))
    cut: list[Any] = [DriverUnavailable("the line is cut", hint="Mend it.") for _ in range(500)]
    world.app_servers["app-2"].edge.faults["switch"] = cut
    await world.refused("driver_unavailable", "promote", **LIVE)
    assert await seen_at(world.app_servers["app-1"]) == "v1"
    await world.call("project_place", **LIVE, servers=["app-1"])
    await world.call("operation_list")
    await world.services.runs.resume_all()
    await world.services.runs.drain()
    assert await seen_at(world.app_servers["app-1"]) == "v1"
    assert await world.services.registry.journals.open_runs() == []


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "unknown": ({"servers": ["nowhere"]}, "not_found", "nowhere"),
    "storage": ({"servers": ["db"]}, "conflict", "db"),
    "twice": ({"servers": ["app-1", "app-1"]}, "invalid_request", "servers"),
    "no name": ({"servers": ["../x"]}, "invalid_request", "servers"),
    "unknown environment": ({"servers": ["app-1"], "environment": "staging"}, "not_found", "staging"),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_a_place_that_cannot_be_is_refused_and_nothing_changes(world: World, case: str) -> None:
    await add_servers(world, "app-1")
    await add_servers(world, "db", role="database")
    await world.project()
    arguments, code, said = REFUSED[case]
    refused = await world.refused(code, "project_place", **{**LIVE, **arguments})
    assert said in refused.message
    assert (await world.call("project_get", projectName="shop"))["environments"][0]["servers"] == []


async def test_a_full_environment_gets_no_new_servers(world: World) -> None:
    await add_servers(world, *TWO)
    await world.project()
    await world.live("v1")
    await world.refused("conflict", "project_place", **LIVE, servers=["app-1"])
    assert await world.visit() == "v1"
    await world.require_consistent()


async def test_a_server_whose_ports_are_taken_or_that_is_away_is_refused(world: World) -> None:
    await add_servers(world, *TWO)
    await world.project()
    world.app_servers["app-2"].ports.ports = {4001}
    refused = await world.refused("conflict", "project_place", **LIVE, servers=list(TWO))
    assert (refused.detail["server"], refused.detail["ports"]) == ("app-2", [4001])
    world.app_servers["app-2"].ports.ports = set()
    _away(world, "app-1")
    refused = await world.refused("driver_unavailable", "project_place", **LIVE, servers=list(TWO))
    assert refused.detail["server"] == "app-1"


async def test_the_same_place_again_changes_nothing(world: World) -> None:
    await placed(world, *TWO)
    before = await world.services.store.get("ssot")
    done = await world.call("project_place", **LIVE, servers=list(TWO))
    after = await world.services.store.get("ssot")
    assert not done["changed"]
    assert before == after


async def test_a_server_with_releases_is_not_forgotten(world: World) -> None:
    await placed(world, *TWO)
    await world.refused("conflict", "server_remove", serverKey="app-1", confirm="app-1")


async def test_deleting_the_project_clears_all_its_servers(world: World) -> None:
    await placed(world, *TWO)
    await release(world, "v1")
    await world.call("project_delete", projectName="shop", confirm="shop")
    for key in TWO:
        server = world.app_servers[key]
        assert (server.engine.containers, server.edge.configured, server.edge.flags) == ({}, {}, {})


async def test_a_proxy_that_lost_its_routes_gets_them_back_by_itself(world: World) -> None:
    await placed(world, *TWO)
    await release(world, "v1")
    world.app_servers["app-2"].edge.restart(keep=False)
    report = await Housekeeper(world.services).once()
    assert report.routes == ["shop-production"]
    assert await everywhere(world) == ["v1", "v1"]


async def test_logs_come_from_the_server_that_is_named(world: World) -> None:
    await placed(world, *TWO)
    await release(world, "v1")
    world.app_servers["app-2"].engine.containers["shop-production-blue"].say("said on the second")
    lines = (await world.call("logs_get", **LIVE, server="app-2"))["lines"]
    assert any("said on the second" in line for line in lines)
    lines = (await world.call("logs_get", **LIVE))["lines"]
    assert not any("said on the second" in line for line in lines)
    await world.refused("not_found", "logs_get", **LIVE, server="app-3")


async def _without(world: World, *keys: str) -> None:
    """These servers vanish from the inventory, as by a slip of hand."""

    def less(doc: Any) -> Any:
        return {**doc, "servers": {key: one for key, one in doc["servers"].items() if key not in keys}}

    await update(world.services.store, "ssot", less)


async def test_a_server_that_vanished_from_the_inventory_is_told_and_there_is_a_way_out(world: World) -> None:
    await placed(world, *TWO)
    await release(world, "v1")
    await world.project("other")
    await _without(world, "app-2")
    kinds = {(row["kind"], row["environment"]) for row in await world.drift()}
    assert kinds == {("server_unknown", "shop-production")}
    done = await world.call("project_place", **LIVE, servers=["app-1"])
    assert done["changed"]
    assert await seen_at(world.app_servers["app-1"]) == "v1"
    await world.require_consistent()


async def test_a_project_whose_servers_are_all_gone_can_be_deleted(world: World) -> None:
    await placed(world, *TWO)
    await release(world, "v1")
    await _without(world, *TWO)
    await world.call("project_delete", projectName="shop", confirm="shop")
    assert (await world.call("project_list"))["data"] == []


async def test_a_delete_that_waits_for_a_dead_server_ends_once_that_is_taken_away(world: World) -> None:
    await placed(world, *TWO)
    await release(world, "v1")
    _away(world, "app-2")
    cut: list[Any] = [DriverUnavailable("the line is cut", hint="Mend it.") for _ in range(500)]
    world.app_servers["app-2"].edge.faults["forget"] = cut
    await world.refused("driver_unavailable", "project_delete", projectName="shop", confirm="shop")
    await world.refused("lock_held", "project_create", projectName="shop", environments=["production"])
    await _without(world, "app-2")
    await world.services.runs.resume_all()
    await world.services.runs.drain()
    assert await world.services.registry.journals.open_runs() == []
    await world.project()


async def test_a_name_is_free_again_only_when_its_deletion_has_ended(world: World) -> None:
    await world.project()
    world.edge.faults["forget"] = [DriverUnavailable("gone", hint="Wait.") for _ in range(500)]
    await world.refused("driver_unavailable", "project_delete", projectName="shop", confirm="shop")
    await world.refused("lock_held", "project_create", projectName="shop", environments=["production"])
    world.edge.faults.clear()
    await world.services.runs.resume_all()
    await world.services.runs.drain()
    await world.project()
    assert (await world.call("project_list"))["total"] == 1


async def test_a_repair_never_removes_what_has_live_traffic(world: World) -> None:
    """The machine of the control plane is in the inventory once more, under a name of its own."""
    await world.project()
    await world.live("v1")
    await add_servers(world, "twin")
    twin = world.app_servers["twin"]
    twin.edge, twin.engine = world.edge, world.engine
    rows = await world.drift()
    assert {(row["kind"], row["server"]) for row in rows} == {("container_unknown", "twin"), ("route_unknown", "twin")}
    done = await world.call("registry_repair", driftIds=[row["id"] for row in rows])
    assert done["repaired"] == 0
    assert all("live traffic" in row["message"] for row in done["data"])
    assert await world.visit() == "v1"


async def test_a_project_that_the_registry_lost_is_rebuilt_where_it_stands(world: World) -> None:
    await placed(world, *TWO)
    await release(world, "v1")
    await update(world.services.store, "ssot", lambda doc: {**(doc or {}), "projects": {}})
    await rebuild(world.services, apply=True)
    shown = (await world.call("project_get", projectName="shop"))["environments"]
    assert [one["servers"] for one in shown] == [list(TWO)]
    assert await everywhere(world) == ["v1", "v1"]
    await world.require_consistent()


async def test_previews_stand_where_the_previews_of_their_project_do(world: World) -> None:
    await add_servers(world, *TWO)
    await world.project("shop", "production", "preview")
    where = {"projectName": "shop", "environment": "preview"}
    await world.call("project_place", **where, servers=["app-1"])
    made = await world.call("preview_create", projectName="shop", pullRequest=7)
    assert made
    shown = (await world.call("project_get", projectName="shop-pr-7"))["environments"]
    assert [one["servers"] for one in shown] == [["app-1"]]


async def test_a_proxy_gets_its_routes_back_while_another_server_is_down(world: World) -> None:
    await placed(world, *TWO)
    await release(world, "v1")
    _away(world, "app-2")
    world.app_servers["app-2"].edge.faults["live"] = [DriverUnavailable("gone", hint="Wait.") for _ in range(99)]
    world.app_servers["app-2"].edge.faults["sites"] = [DriverUnavailable("gone", hint="Wait.") for _ in range(99)]
    world.app_servers["app-1"].edge.restart(keep=False)
    report = await Housekeeper(world.services).once()
    assert report.routes == ["shop-production"]
    assert await seen_at(world.app_servers["app-1"]) == "v1"


async def test_the_control_planes_own_machine_is_one_of_several_under_its_name(world: World) -> None:
    entries = {"app": {"host": "192.0.2.10", "role": "application", "connection": "local"}}
    await update(world.services.store, "ssot", lambda doc: {**(doc or {}), "servers": entries})
    entry = {"app-2": {"host": "192.0.2.12", "role": "application", "hostKey": HOST_KEY}}
    await update(world.services.store, "ssot", lambda doc: {**(doc or {}), "servers": {**entries, **entry}})
    await world.project()
    await world.call("project_place", **LIVE, servers=["app", "app-2"])
    image = published(world, "v1")
    world.engine.remote |= world.app_servers["app-2"].engine.remote
    await world.deploy("v1", image=image)
    await world.promote()
    assert [await world.visit(), await seen_at(world.app_servers["app-2"])] == ["v1", "v1"]
    assert (await world.call("logs_get", **LIVE, server="app"))["container"] == "shop-production-blue"
    image = published(world, "v2")
    world.engine.remote |= world.app_servers["app-2"].engine.remote
    world.engine.faults.fail("containers.ensure", DriverRefused("no", hint="Ask."))
    refused = await world.refused("driver_refused", "deploy", **LIVE, image=image, version="v2")
    assert "server app:" in refused.message
    await world.require_consistent()


async def test_a_server_in_use_keeps_its_role_and_one_machine_is_named_once(world: World) -> None:
    entries = {key: {"host": "192.0.2.10", "role": "application", "connection": "local"} for key in ("app", "same")}
    await update(world.services.store, "ssot", lambda doc: {**(doc or {}), "servers": entries})
    await world.project()
    await world.refused("conflict", "project_place", **LIVE, servers=["app", "same"])
    await world.call("project_place", **LIVE, servers=["app"])
    refused = await world.refused(
        "conflict", "server_add", serverKey="app", host="192.0.2.10", role="backup", connection="local", replace=True
    )
    assert refused.detail["usedBy"] == ["shop"]
