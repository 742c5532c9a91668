"""Variables through invoke: what a change does, what is refused, what is kept, and that no value ever comes out."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from typing import Any

import pytest

from codeb_mcp.model.access import Role
from codeb_mcp.model.env import parse
from codeb_mcp.operations.envfile import read_env
from tests.unit.operations.world import World, principal

LIVE = {"projectName": "shop", "environment": "production"}
HOSTILE = "a b'\"\\$(touch x)`id`\n#c\r\n\t =é🚀 "


async def put(world: World, values: dict[str, str], **more: Any) -> dict[str, Any]:
    """Set variables of production."""
    return await world.call("env_set", **LIVE, values=values, **more)


def live(world: World) -> dict[str, str]:
    """What a container would be started with."""
    return dict(read_env(world.settings, "shop", "production")[0])


async def test_a_set_is_a_version_in_the_history_and_in_the_live_file(world: World) -> None:
    await world.project()
    first = await put(world, {"LOG_LEVEL": "debug", "ODD": HOSTILE})
    assert first["added"] == ["LOG_LEVEL", "ODD"]
    assert live(world) == {"LOG_LEVEL": "debug", "ODD": HOSTILE}
    second = await put(world, {"LOG_LEVEL": "info", "MORE": ""})
    assert (second["added"], second["changed"], second["previousVersion"]) == (
        ["MORE"],
        ["LOG_LEVEL"],
        first["version"],
    )
    folder = world.settings.root / "env-backup/shop/production"
    assert sorted(os.listdir(folder)) == sorted(
        [".lock", "backup-log.json", "current.env", "master.env", f"{first['version']}.env", f"{second['version']}.env"]
    )
    assert parse((folder / "master.env").read_bytes().decode()).values == {"LOG_LEVEL": "debug", "ODD": HOSTILE}
    assert (folder / "current.env").read_bytes() == (world.settings.projects / "shop/.env.production").read_bytes()
    assert os.stat(world.settings.projects / "shop/.env.production").st_mode & 0o777 == 0o600
    log = json.loads((folder / "backup-log.json").read_bytes())
    assert [entry["version"] for entry in log["entries"]] == [first["version"], second["version"]]


async def test_the_same_values_again_change_nothing(world: World) -> None:
    await world.project()
    first = await put(world, {"A": "1"})
    again = await put(world, {"A": "1"})
    assert (again["version"], again["unchanged"]) == (first["version"], True)
    assert (await world.call("env_backup_list", **LIVE))["total"] == 1


async def test_two_writers_with_the_same_version_in_mind_do_not_overwrite_each_other(world: World) -> None:
    await world.project()
    first = await put(world, {"A": "1"}, ifVersion="none")
    await put(world, {"A": "2"}, ifVersion=first["version"])
    error = await world.refused("conflict", "env_set", **LIVE, values={"A": "3"}, ifVersion=first["version"])
    assert error.detail["version"] > first["version"]
    assert live(world) == {"A": "2"}


async def test_unset_takes_names_away_and_earlier_versions_keep_them(world: World) -> None:
    await world.project()
    first = await put(world, {"A": "1", "B": "2"})
    gone = await world.call("env_unset", **LIVE, names=["A", "NEVER_THERE"])
    assert gone["removed"] == ["A"]
    assert live(world) == {"B": "2"}
    back = await world.call("env_restore", **LIVE, to=first["version"])
    assert back["added"] == ["A"]
    assert live(world) == {"A": "1", "B": "2"}
    assert (await world.call("env_backup_list", **LIVE))["total"] == 3


@pytest.mark.parametrize("to", ["master", "version"])
async def test_a_restore_is_byte_for_byte_and_a_new_version(world: World, to: str) -> None:
    await world.project()
    first = await put(world, {"A": HOSTILE})
    await put(world, {"A": "2"})
    back = await world.call("env_restore", **LIVE, to=first["version"] if to == "version" else to)
    assert back["version"] > first["version"]
    folder = world.settings.root / "env-backup/shop/production"
    assert (folder / "current.env").read_bytes() == (folder / "master.env").read_bytes()
    same = await world.call("env_restore", **LIVE, to="current")
    assert same["unchanged"] is True


async def test_an_unknown_version_is_not_found(world: World) -> None:
    await world.project()
    await put(world, {"A": "1"})
    await world.refused("not_found", "env_restore", **LIVE, to="20200101T000000.000000Z")


@pytest.mark.parametrize("name", ["PORT", "CODEB_TOKEN", "1A", "A-B", "A B", "", "A=B", "Ä", "A" * 129, "A\n"])
async def test_names_that_cannot_be_are_refused(world: World, name: str) -> None:
    await world.project()
    error = await world.refused("invalid_request", "env_set", **LIVE, values={name: "x-y"})
    assert "x-y" not in json.dumps(error.as_dict())


@pytest.mark.parametrize(
    "value",
    [
        "changeme",
        "CHANGE_ME",
        "xxx",
        "<token>",
        "${DB}",
        "your-key-here",
        "TODO",
        "sample-value",
        "pg://user:password@h/d",
    ],
)
async def test_a_placeholder_is_refused_by_the_names_of_its_field_only(world: World, value: str) -> None:
    await world.project()
    error = await world.refused("invalid_request", "env_set", **LIVE, values={"GOOD": "fine", "API_KEY": value})
    assert [one["field"] for one in error.detail["fields"]] == ["values.API_KEY"]
    assert value not in json.dumps(error.as_dict())
    assert not (world.settings.root / "env-backup/shop").exists()
    await put(world, {"API_KEY": value}, allowPlaceholders=True)
    assert live(world) == {"API_KEY": value}


async def test_too_much_is_refused(world: World) -> None:
    await world.project()
    await world.refused("invalid_request", "env_set", **LIVE, values={"A": "a" * 65_537})
    await world.refused("invalid_request", "env_set", **LIVE, values={"A": "é" * 40_000})
    await world.refused("invalid_request", "env_set", **LIVE, values={f"A{n}": "1" for n in range(201)})
    await world.refused("invalid_request", "env_set", **LIVE, values={f"A{n}": "1" * 60_000 for n in range(5)})
    await world.refused("invalid_request", "env_set", **LIVE, values={"A": "nul\0"})
    await world.refused("invalid_request", "env_set", **LIVE, values={})
    await put(world, {f"A{n}": "1" * 60_000 for n in range(4)})
    await world.refused("conflict", "env_set", **LIVE, values={"B": "1" * 60_000})


async def test_protected_names_stay_as_the_first_version_has_them(world: World) -> None:
    await world.project()
    await put(world, {"DATABASE_URL": "postgres://one", "POSTGRES_DB": "shop", "A": "1"})
    pushed = await put(world, {"DATABASE_URL": "postgres://two", "REDIS_URL": "redis://new", "A": "2"})
    assert pushed["kept"] == ["DATABASE_URL"]
    assert live(world)["DATABASE_URL"] == "postgres://one"
    assert live(world)["REDIS_URL"] == "redis://new"
    await world.refused("conflict", "env_unset", **LIVE, names=["POSTGRES_DB"])
    await put(world, {"DATABASE_URL": "postgres://two"}, overwriteProtected=True)
    assert live(world)["DATABASE_URL"] == "postgres://two"
    assert (await put(world, {"DATABASE_URL": "postgres://two", "A": "3"}))["kept"] == []
    back = await world.call("env_restore", **LIVE, to="master")
    assert "DATABASE_URL" in back["warnings"][0]


async def test_a_live_file_from_before_becomes_the_first_version_as_it_is(world: World) -> None:
    await world.project()
    path = world.settings.projects / "shop/.env.production"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"# by hand\nexport DATABASE_URL=postgres://one\nA = '1'\n")
    assert (await world.call("env_scan", **LIVE))["live"] == "unmanaged"
    assert [row["name"] for row in (await world.call("env_get", **LIVE))["data"]] == ["A", "DATABASE_URL"]
    pushed = await put(world, {"DATABASE_URL": "postgres://two", "B": "2"})
    assert pushed["kept"] == ["DATABASE_URL"]
    folder = world.settings.root / "env-backup/shop/production"
    assert (folder / "master.env").read_bytes().startswith(b"# by hand\n")
    assert live(world) == {"DATABASE_URL": "postgres://one", "A": "1", "B": "2"}
    assert [row["operation"] for row in (await world.call("env_backup_list", **LIVE))["data"]] == ["set", "adopted"]


async def test_a_live_file_that_cannot_be_read_is_not_adopted(world: World) -> None:
    await world.project()
    path = world.settings.projects / "shop/.env.production"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"A=1\n'broken\n")
    error = await world.refused("conflict", "env_set", **LIVE, values={"B": "2"})
    assert "assignments: 2" in error.message
    for content in (b"A=\xff\n", b"'my key'=1\n", b"A=nul\0\n"):
        path.write_bytes(content)
        await world.refused("conflict", "env_set", **LIVE, values={"B": "2"})
        assert path.read_bytes() == content


async def test_a_change_that_a_deletion_overtakes_leaves_nothing_for_the_next_owner_of_the_name(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.project()
    env = world.services.registry.env
    change = env.change

    async def late(*words: Any) -> Any:
        await world.call("project_delete", projectName="shop", confirm="shop")
        return await change(*words)

    monkeypatch.setattr(env, "change", late)
    await world.refused("not_found", "env_set", **LIVE, values={"A": "1"})
    assert env.existing() == []
    assert not (world.settings.projects / "shop").exists()


async def test_changes_by_hand_are_seen_and_never_lost(world: World) -> None:
    await world.project()
    await put(world, {"A": "1", "B": "2"})
    path = world.settings.projects / "shop/.env.production"
    path.write_bytes(b"A=by-hand\nC=3\n")
    scan = await world.call("env_scan", **LIVE)
    assert (scan["live"], scan["differing"]) == ("changed", ["A", "B", "C"])
    error = await world.refused("conflict", "env_set", **LIVE, values={"D": "4"})
    assert error.detail["names"] == ["A", "B", "C"]
    await world.call("env_sync", **LIVE)
    assert live(world) == {"A": "1", "B": "2"}
    rows = (await world.call("env_backup_list", **LIVE))["data"]
    assert [row["operation"] for row in rows] == ["sync", "found", "set"]
    await world.call("env_restore", **LIVE, to=rows[1]["version"])
    assert live(world) == {"A": "by-hand", "C": "3"}


async def test_what_stands_in_the_live_file_can_be_taken_over(world: World) -> None:
    await world.project()
    await put(world, {"A": "1"})
    (world.settings.projects / "shop/.env.production").write_bytes(b"A=2\n")
    taken = await world.call("env_sync", **LIVE, keepLive=True)
    assert taken["changed"] == ["A"]
    assert live(world) == {"A": "2"}
    assert (await world.call("env_scan", **LIVE))["live"] == "same"


async def test_a_stale_or_missing_live_file_is_written_again(world: World) -> None:
    await world.project()
    first = await put(world, {"A": "1"})
    await put(world, {"A": "2"})
    path = world.settings.projects / "shop/.env.production"
    folder = world.settings.root / "env-backup/shop/production"
    path.write_bytes((folder / f"{first['version']}.env").read_bytes())
    assert (await world.call("env_scan", **LIVE))["live"] == "stale"
    await put(world, {"A": "2"})
    assert live(world) == {"A": "2"}
    path.unlink()
    assert (await world.call("env_scan", **LIVE))["live"] == "missing"
    assert (await world.call("env_sync", **LIVE))["unchanged"] is True
    assert live(world) == {"A": "2"}


async def test_a_change_says_whether_a_container_must_be_started_anew(world: World) -> None:
    await world.project()
    assert (await put(world, {"A": "1"}))["redeployNeeded"] is False
    await world.live("v1")
    assert world.engine.containers["shop-production-blue"].spec.environment["A"] == "1"
    assert (await world.call("env_scan", **LIVE))["redeployNeeded"] is False
    assert (await put(world, {"A": "2"}))["redeployNeeded"] is True
    assert (await world.call("env_scan", **LIVE))["containers"] == {"blue": "stale"}
    assert (await put(world, {"A": "1"}))["redeployNeeded"] is False


async def test_hashes_tell_equal_from_different_and_are_keyed(world: World) -> None:
    await world.project("shop", "production", "staging")
    await world.project("blog")
    await put(world, {"A": "1", "B": "1"})
    await world.call("env_set", projectName="shop", environment="staging", values={"A": "1"})
    await world.call("env_set", projectName="blog", environment="production", values={"A": "1"})
    first = {row["name"]: row["hash"] for row in (await world.call("env_get", **LIVE))["data"]}
    staging = (await world.call("env_get", projectName="shop", environment="staging"))["data"][0]["hash"]
    other = (await world.call("env_get", projectName="blog", environment="production"))["data"][0]["hash"]
    assert first["A"] == staging
    assert len({first["A"], first["B"], other}) == 3


async def test_names_lengths_and_what_the_contract_says_are_listed(world: World) -> None:
    rules: dict[str, Any] = {
        "API": {"secret": True, "required": True},
        "MODE": {"pattern": "dev|prod"},
        "ONLY": {"required": True, "environments": ["staging"]},
    }
    await world.project(envContract=rules)
    answer = await put(world, {"API": "é", "MODE": "test"})
    assert answer["warnings"] == ["MODE does not match its pattern: deploy and promote are refused until it is set"]
    [api, mode] = (await world.call("env_get", **LIVE))["data"]
    assert (api["name"], api["bytes"], api["secret"], api["required"]) == ("API", 2, True, True)
    assert (mode["secret"], mode["required"], mode["protected"]) == (False, False, False)


@pytest.mark.parametrize("values", [{"MODE": "prod"}, {"API": "", "MODE": "prod"}, {"API": "k", "MODE": "production"}])
async def test_deploy_is_refused_before_anything_starts_when_the_contract_is_broken(
    world: World, values: dict[str, str]
) -> None:
    await world.project(envContract={"API": {"required": True}, "MODE": {"pattern": "dev|prod"}})
    await put(world, values)
    error = await world.refused("conflict", "deploy", **LIVE, image=world.image("v1"))
    assert {one["name"] for one in error.detail["keys"]} <= {"API", "MODE"}
    assert world.running() == []
    assert await world.states() == ("empty", "empty")
    await put(world, {"API": "k", "MODE": "dev"})
    await world.deploy("v1")


async def test_promote_is_refused_when_the_contract_is_broken_by_then_and_rollback_never(world: World) -> None:
    await world.project()
    await world.live("v1")
    await world.deploy("v2")
    await world.call("project_update", projectName="shop", envContract={"API": {"required": True}})
    error = await world.refused("conflict", "promote", **LIVE)
    assert error.detail["keys"] == [{"name": "API", "problem": "missing"}]
    assert await world.visit() == "v1"
    await put(world, {"API": "k"})
    await world.promote()
    await world.call("env_unset", **LIVE, names=["API"])
    await world.rollback()
    assert await world.visit() == "v1"


async def test_a_contract_with_a_pattern_that_is_none_is_refused(world: World) -> None:
    await world.project()
    contracts: list[dict[str, Any]] = [
        {"A": {"pattern": "("}},
        {"A": {"pattern": "a" * 201}},
        {"a-b": {}},
        {"A": {"colour": 1}},
        {"PORT": {}},
    ]
    for rules in contracts:
        await world.refused("invalid_request", "project_update", projectName="shop", envContract=rules)
    large = {f"A{n}": {"description": "d" * 200} for n in range(100)}
    await world.refused("invalid_request", "project_update", projectName="shop", envContract=large)
    slow = {"A": {"pattern": "(a+)+b"}}
    await world.call("project_update", projectName="shop", envContract=slow)
    assert (await put(world, {"A": "a" * 60_000}))["warnings"]


async def test_differences_are_told_by_name(world: World) -> None:
    await world.project("shop", "production", "staging", envContract={"Z": {"required": True}})
    first = await put(world, {"A": "1", "B": "2", "C": "3"})
    second = await put(world, {"A": "9", "D": "4"})
    await world.call("env_set", projectName="shop", environment="staging", values={"A": "9", "E": "5"})

    async def rows(**said: Any) -> dict[str, str]:
        page = await world.call("env_diff", **LIVE, **said)
        return {row["name"]: row["change"] for row in page["data"]}

    assert await rows(fromVersion="master") == {"A": "changed", "D": "added"}
    assert await rows(fromVersion=second["version"], toVersion=first["version"]) == {"A": "changed", "D": "removed"}
    assert await rows(against="staging") == {"B": "removed", "C": "removed", "D": "removed", "E": "added"}
    assert await rows(contract=True) == {"Z": "missing", **dict.fromkeys("ABCD", "undeclared")}
    await world.refused("invalid_request", "env_diff", **LIVE)
    await world.refused("invalid_request", "env_diff", **LIVE, contract=True, against="staging")
    scoped = principal(Role.VIEWER, "default", "environment:production")
    await world.refused("forbidden", "env_diff", scoped, **LIVE, against="staging")


async def test_lists_are_paged_and_answers_stay_small(world: World) -> None:
    await world.project()
    await put(world, {f"{'N' * 120}{n}": "1" for n in range(200)})
    page = await world.call("env_get", **LIVE, limit=200)
    assert page["nextOffset"] < 200
    assert page["total"] == 200
    for tool in ("env_backup_list", "env_scan"):
        assert len(json.dumps(await world.call(tool, **LIVE))) < 20_000


async def test_a_missing_environment_makes_no_history(world: World) -> None:
    await world.project("shop", "production")
    await world.refused("not_found", "env_set", projectName="shop", values={"A": "1"})
    assert not (world.settings.root / "env-backup/shop").exists()


async def test_a_new_project_of_a_deleted_ones_name_gets_none_of_its_secrets(world: World) -> None:
    await world.project()
    await put(world, {"A": "1"})
    await world.call("project_delete", projectName="shop", confirm="shop")
    await world.call("team_create", teamId="acme", name="Acme")
    theirs = principal(Role.OWNER, "acme")
    world.clock.forward(hours=2)
    await world.project(caller=theirs)
    assert (await world.call("env_get", theirs, **LIVE))["total"] == 0
    assert (await world.call("env_backup_list", theirs, **LIVE))["total"] == 0
    await world.refused("not_found", "env_restore", theirs, **LIVE, to="master")
    image = world.image("v1")
    await world.call("deploy", theirs, **LIVE, image=image)
    assert "A" not in world.engine.containers["shop-production-blue"].spec.environment
    [aside] = (world.settings.root / "env-backup/.deleted").iterdir()
    assert (aside / "production/master.env").exists()


async def test_roles(world: World) -> None:
    await world.project()
    await put(world, {"A": "1"})
    viewer, member = principal(Role.VIEWER), principal(Role.MEMBER)
    for tool in ("env_get", "env_scan", "env_backup_list", "env_verify"):
        await world.call(tool, viewer, **LIVE)
    for tool, more in (("env_set", {"values": {"A": "2"}}), ("env_unset", {"names": ["A"]}), ("env_sync", {})):
        await world.refused("forbidden", tool, viewer, **LIVE, **more)
        await world.call(tool, member, **LIVE, **more)
    await world.refused("forbidden", "env_restore", member, **LIVE, to="master")


async def test_verify_finds_what_is_damaged_and_everything_else_refuses_it(world: World) -> None:
    await world.project()
    first = await put(world, {"A": "1"})
    assert (await world.call("env_verify", **LIVE))["ok"] is True
    path = world.settings.root / f"env-backup/shop/production/{first['version']}.env"
    path.write_bytes(b"A=3\n")
    verified = await world.call("env_verify", **LIVE)
    assert verified["ok"] is False
    assert path.name in verified["problems"][0]
    for tool, more in (("env_set", {"values": {"A": "2"}}), ("env_get", {}), ("env_restore", {"to": "master"})):
        await world.refused("registry_damaged", tool, **LIVE, **more)


async def test_a_scan_asks_the_containers_themselves(world: World) -> None:
    await world.project()
    await world.call("env_set", **LIVE, values={"COLOUR": "blue"})
    await world.live("v1")
    assert (await world.call("env_scan", **LIVE))["containers"] == {}
    made = world.engine.containers["shop-production-blue"]
    former = made.seen
    made.seen = replace(former, environment={**former.environment, "COLOUR": "vermilion"})
    found = await world.call("env_scan", **LIVE)
    assert (found["containers"], found["redeployNeeded"]) == ({"blue": "stale"}, True)
    assert "vermilion" not in str(found)
    made.seen = former
    world.engine.away = True
    assert (await world.call("env_scan", **LIVE))["containers"] == {"blue": "unknown"}
    world.engine.away = False
    await world.engine.stop(world.engine.containers.pop("shop-production-blue"), removed=True)
    assert (await world.call("env_scan", **LIVE))["containers"] == {"blue": "missing"}
