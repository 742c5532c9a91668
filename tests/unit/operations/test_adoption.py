"""Adoption on fakes: what is written, what is left out and why, and that nothing is touched."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from codeb_mcp.drivers.fakes import FakeContainers
from codeb_mcp.drivers.protocols import ContainerSpec
from codeb_mcp.model.foreign import ForeignSite
from tests.unit.operations.world import World

TABLE = {
    ("worb", "production"): (4000, 4001),
    ("worb", "staging"): (4500, 4501),
    ("w-homepage", "production"): (4002, 4003),
    ("da-rak", "production"): (4004, 4005),
}
"""The infrastructure guide's own."""


async def old_container(world: World, name: str, port: int, version: str = "v1", **labels: str) -> str:
    """A container that an earlier installation started; answers its id."""
    image = world.engine.load(f"registry.test/{name.partition('-')[0]}:{version}", version)
    said = {f"codeb.{key}": value for key, value in labels.items()}
    spec = ContainerSpec(name, image.image_id, image.reference, said, port, 3000, {}, 1 << 28, 1.0, 64)
    return (await FakeContainers(world.engine).ensure(spec)).container_id


def site(world: World, host: str, *ports: int, **more: Any) -> None:
    """A route of the earlier installation."""
    world.edge.old.append(ForeignSite((host,), ports, **more))


async def table(world: World) -> None:
    """The guide's projects, live in blue."""
    for (project, environment), (blue, _) in TABLE.items():
        await old_container(world, f"{project}-{environment}-blue", blue, project=project)
        site(world, f"{project}-{environment}.example.com", blue)


async def rows(world: World, **arguments: Any) -> dict[str, dict[str, Any]]:
    """The answer by environment."""
    answer = await world.call("adopt", **arguments)
    return {f"{row['projectName']}-{row['environment']}": row for row in answer["data"]}


def old_registry(folder: Path, **files: Any) -> str:
    """A folder of old files; a text is written as it is."""
    (folder / "slots").mkdir(parents=True)
    for name, content in files.items():
        path = folder / f"{name.replace('__', '/')}.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(folder)


def slot_file(key: str, blue: int, active: str | None = "blue", **more: Any) -> dict[str, Any]:
    """A slot file of the earlier installation, with keys that only it knew."""
    project, _, environment = key.rpartition("-")
    record = {
        "name": "blue",
        "state": "active" if active == "blue" else "empty",
        "port": blue,
        "version": "v1",
        "_legacy": 1,
    }
    green = {"name": "green", "state": "active" if active == "green" else "empty", "port": blue + 1}
    return {
        "projectName": project, "teamId": "default", "environment": environment, "activeSlot": active,
        "blue": record, "green": green, "oldKey": "kept", **more,
    }  # fmt: skip


async def documents(world: World) -> dict[str, Any]:
    """The whole registry."""
    store = world.services.store
    return {key: (await store.get(key)) for key in await store.keys("")}


async def test_the_guides_table_is_planned_then_written_and_repeating_changes_nothing(world: World) -> None:
    await table(world)
    before, changes = await documents(world), world.edge.changes
    plan = await rows(world)
    assert {row["status"] for row in plan.values()} == {"new"}
    assert await documents(world) == before, "a plan writes nothing"
    done = await rows(world, apply=True)
    for (project, environment), ports in TABLE.items():
        row = done[f"{project}-{environment}"]
        assert (row["status"], row["activeSlot"]) == ("written", "blue")
        slots = await world.slots(project, environment)
        assert (slots.blue.port, slots.green.port) == ports
        assert (await world.states(project, environment)) == ("active", "empty")
    ssot = await world.services.store.get("ssot")
    assert ssot is not None
    assert {4000, 4001, 4500, 4501, 4002, 4003, 4004, 4005} <= set(ssot.doc["usedPorts"])
    after = await documents(world)
    assert {row["status"] for row in (await rows(world, apply=True)).values()} == {"present"}
    assert await documents(world) == after
    assert world.edge.changes == changes, "the proxy was not touched"
    assert await world.drift() == []


async def test_the_first_promote_takes_the_place_of_the_former_route_and_a_rollback_goes_back(world: World) -> None:
    await old_container(world, "shop-production-blue", 4000)
    site(world, "www.shop.example", 4000, handlers=("encode",))
    site(world, "other.example", 9)
    row = (await rows(world, apply=True))["shop-production"]
    assert "encode" in row["notes"][0]
    await world.call("project_update", projectName="shop", healthCheck={"deadlineSeconds": 1, "intervalSeconds": 0.05})
    deployed = await world.deploy("v2")
    assert "first promote" in deployed["warnings"][0]
    assert await world.visit("www.shop.example") == "v1"
    assert len(world.edge.old) == 2
    await world.promote()
    assert await world.visit("www.shop.example") == "v2"
    assert [one.hosts for one in world.edge.old] == [("other.example",)]
    await world.rollback()
    assert await world.visit("www.shop.example") == "v1"
    await world.require_consistent()


async def test_exactly_the_adopted_container_is_replaced_although_it_has_no_labels(world: World) -> None:
    await old_container(world, "shop-production-blue", 4000)
    site(world, "www.shop.example", 4000)
    await rows(world, apply=True)
    await world.call("project_update", projectName="shop", healthCheck={"deadlineSeconds": 1, "intervalSeconds": 0.05})
    for version in ("v2", "v3"):
        await world.deploy(version, force=True)
        await world.promote()
    assert await world.visit("www.shop.example") == "v3"
    made = world.engine.containers["shop-production-blue"]
    assert made.seen.labels["codeb.version"] == "v3"
    assert (await world.slots()).blue.adopted_id is None


async def test_another_container_of_the_name_is_left_alone(world: World) -> None:
    await old_container(world, "shop-production-blue", 4000)
    site(world, "www.shop.example", 4000)
    await rows(world, apply=True)
    await world.call("project_update", projectName="shop", healthCheck={"deadlineSeconds": 1, "intervalSeconds": 0.05})
    await world.deploy("v2")
    await world.promote()
    made = world.engine.containers["shop-production-blue"]
    made.seen = replace(made.seen, container_id="f" * 64)
    error = await world.refused(
        "driver_unavailable",
        "deploy",
        projectName="shop",
        environment="production",
        image=world.image("v3"),
        force=True,
    )
    assert "was not made by CodeB" in str(error.detail["steps"])
    assert "shop-production-blue" in world.running()


async def test_a_cleanup_and_a_deletion_remove_adopted_containers(world: World) -> None:
    await old_container(world, "shop-production-blue", 4000, "v1", deployed_at="2026-01-01T00:00:00+00:00")
    await old_container(world, "shop-production-green", 4001, "v2", deployed_at="2026-01-02T00:00:00+00:00")
    site(world, "www.shop.example", 4001)
    await rows(world, apply=True)
    assert await world.states() == ("grace", "active")
    await world.call("slot_cleanup", projectName="shop", environment="production", force=True)
    assert world.running() == ["shop-production-green"]
    await world.call("project_delete", projectName="shop", confirm="shop")
    assert world.running() == []


async def test_old_files_are_read_with_their_extra_keys_and_all_spellings_of_used_ports(
    world: World, tmp_path: Path
) -> None:
    await old_container(world, "worb-production-blue", 4000, project="worb", environment="production", slot="blue")
    site(world, "worb.example.com", 4000)
    projects = {
        "worb": {
            "ports": {"production": {"blue": 4000, "green": 4001}},
            "database": {"name": "worb", "server": "storage"},
        },
        "da-rak": {"ports": {"production": {"blue": 4004, "green": 4005}}},
    }
    ssot = {"projects": projects, "usedPorts": [3100], "ports": {"used": [4004], "allocated": [6400]}, "lineage": "x"}
    folder = old_registry(
        tmp_path / "old",
        ssot=ssot,
        slots__worb_production="",
        **{"slots__worb-production": slot_file("worb-production", 4000)},
    )
    (tmp_path / "old/slots/worb_production.json").unlink()
    found = await rows(world, apply=True, fromFolder=folder)
    assert {key: row["status"] for key, row in found.items()} == {
        "worb-production": "written",
        "da-rak-production": "written",
    }
    stored = await world.services.store.get("ssot")
    slots = await world.services.store.get("slots/worb-production")
    assert stored is not None
    assert slots is not None
    assert stored.doc["projects"]["worb"]["database"] == {"name": "worb", "server": "storage"}
    assert {3100, 4004, 6400} <= set(stored.doc["usedPorts"])
    assert (slots.doc["oldKey"], slots.doc["blue"]["_legacy"]) == ("kept", 1)
    assert (await world.states("da-rak")) == ("empty", "empty")


BROKEN: dict[str, Any] = {
    "no JSON": {"ssot": "{"},
    "an array": {"ssot": []},
    "projects of another kind": {"ssot": {"projects": []}},
    "a project without ports in numbers": {"ssot": {"projects": {"worb": {"ports": {"production": {"blue": "x"}}}}}},
    "used ports of another kind": {"ssot": {"usedPorts": {"4000": True}}},
    "used ports that are texts": {"ssot": {"ports": {"used": ["4000"]}}},
    "a torn slot file": {"slots__worb-production": '{"projectName": "worb"'},
    "a slot file of another environment": {"slots__worb-production": slot_file("worb-staging", 4500)},
    "an unknown state": {
        "slots__worb-production": slot_file("worb-production", 4000)
        | {"blue": {"name": "blue", "state": "?", "port": 1}}
    },
}


@pytest.mark.parametrize("what", BROKEN)
async def test_broken_old_files_are_named_and_nothing_is_written(world: World, tmp_path: Path, what: str) -> None:
    await table(world)
    folder = old_registry(tmp_path / "old", **BROKEN[what])
    before = await documents(world)
    for apply in (False, True):
        error = await world.refused("registry_damaged", "adopt", apply=apply, fromFolder=folder)
        assert ".json: " in error.message
        assert "nothing was written" in error.hint
    assert await documents(world) == before


async def test_a_folder_that_is_no_registry_is_refused(world: World, tmp_path: Path) -> None:
    await world.refused("invalid_request", "adopt", fromFolder=str(tmp_path))
    await world.refused("invalid_request", "adopt", fromFolder="relative/folder")
    await world.refused("invalid_request", "adopt", fromFolder="/opt/../etc")


async def test_what_does_not_fit_together_is_left_out_with_the_reason(world: World, tmp_path: Path) -> None:
    await old_container(world, "a-production-blue", 4100, project="other")
    await old_container(world, "b-production-blue", 4102)
    await old_container(world, "b-production-green", 4103)
    site(world, "b.example.com", 4102, 4103)
    await old_container(world, "c-production-blue", 4104)
    site(world, "c.example.com", 4104, handlers=("authentication",))
    await old_container(world, "d-production-blue", 4106, team="nobody")
    await old_container(world, "e-production-blue", 4108)
    await old_container(world, "f-production-green", 4111)
    await old_container(world, "g-production-blue", 4112)
    site(world, "g.example.com", 4112, plain=False)
    await old_container(world, "h-production-blue", 4114)
    site(world, "*.example.com", 4114)
    site(world, "i.example.com", 4117)
    folder = old_registry(
        tmp_path / "old",
        **{
            "slots__e-production": slot_file("e-production", 4200),
            "slots__f-production": slot_file("f-production", 4110, active="green"),
            "slots__i-production": slot_file("i-production", 4116, active="green"),
        },
    )
    world.ports.ports.add(4115)
    found = await rows(world, apply=True, fromFolder=folder)
    reasons = {key[0]: " ".join(row["reasons"]) for key, row in found.items()}
    assert {row["status"] for row in found.values()} == {"left_out"}
    for key, word in {
        "a": "codeb.project=other", "b": "4102, 4103", "c": "authentication", "d": "no team nobody", "e": "told differently",
        "f": "no route of the proxy", "g": "conditions", "h": "another program", "i": "is missing",
    }.items():  # fmt: skip
        assert word in reasons[key], (key, reasons[key])
    assert await world.services.store.keys("slots/") == []


async def test_only_admins_of_the_platform_may_adopt(world: World) -> None:
    from codeb_mcp.model.access import Role
    from tests.unit.operations.world import principal

    await world.refused("forbidden", "adopt", principal(Role.MEMBER))
    await world.refused("forbidden", "adopt", principal(Role.ADMIN, "north"))
