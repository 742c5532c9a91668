"""After damage to the audit trail the owner of the machine can go on, and nobody forgets what was broken."""

from __future__ import annotations

from pathlib import Path

import pytest

from codeb_mcp.model.access import Role
from codeb_mcp.operations.audits import SEALED_SHOWN, seal_trail
from codeb_mcp.operations.catalog import ANSWER_LIMIT, load_all
from tests.unit.operations.world import World, principal


def _trail(world: World) -> Path:
    [path] = (world.settings.registry / "audit").glob("*.jsonl")
    return path


async def _damaged(world: World) -> None:
    """A trail with one record that was changed."""
    for number in range(4):
        await world.call("member_invite", name=f"m{number}")
    path = _trail(world)
    path.write_bytes(path.read_bytes().replace(b'"m1"', b'"mX"'))


async def test_verify_says_what_to_do_and_after_the_seal_is_ok_and_tells_the_damage(world: World) -> None:
    await _damaged(world)
    broken = await world.call("audit_verify")
    assert (broken["ok"], broken["sealed"], broken["sealedTotal"]) == (False, [], 0)
    assert "codeb audit seal" in broken["summary"]
    done = await seal_trail(world.services, by="root (uid 0) on the machine", reason="a disk that lies")
    assert done.seal is not None
    for _ in range(2):
        await world.call("member_invite", name="later")
        whole = await world.call("audit_verify")
        assert (whole["ok"], whole["sealedTotal"], "problem" in whole) == (True, 1, False)
        [damage] = whole["sealed"]
        assert (damage["kind"], damage["file"], damage["line"]) == ("changed", _trail(world).name, broken["line"])
        assert damage["sealedBy"] == "root (uid 0) on the machine"
        assert damage["record"] == done.seal.record
    again = await seal_trail(world.services, by="root")
    assert (again.seal, again.report.ok) == (None, True)


async def test_a_change_after_the_seal_is_found_and_the_sealed_damage_is_still_told(world: World) -> None:
    await _damaged(world)
    await seal_trail(world.services, by="root")
    await world.call("member_invite", name="later")
    path = _trail(world)
    path.write_bytes(path.read_bytes().replace(b'"later"', b'"never"'))
    found = await world.call("audit_verify")
    assert not found["ok"]
    assert found["sealedTotal"] == 1


async def test_a_seal_that_was_changed_is_found(world: World) -> None:
    await _damaged(world)
    await seal_trail(world.services, by="root")
    path = _trail(world)
    path.write_bytes(path.read_bytes().replace(b'"kind":"changed"', b'"kind":"missing"'))
    found = await world.call("audit_verify")
    assert (found["ok"], found["sealedTotal"]) == (False, 0)


async def test_the_platforms_team_sees_who_sealed_and_why_and_no_other_team_does(world: World) -> None:
    await world.call("team_create", teamId="acme", name="Acme")
    await _damaged(world)
    await seal_trail(world.services, by="root", reason="a disk that lies; password=hunter2hunter2")
    [row] = (await world.call("audit_list", tool="audit_seal"))["data"]
    assert (row["actor"], row["outcome"]) == ("root", "ok")
    assert "a disk that lies" in row["arguments"]["reason"]
    assert "hunter2" not in str(row)
    assert row["seal"]["flaws"][0]["kind"] == "changed"
    assert (await world.call("audit_list", principal(Role.OWNER, "acme"), tool="audit_seal"))["data"] == []


async def test_very_much_damage_fits_into_an_answer(world: World) -> None:
    for number in range(200):
        await world.call("member_invite", name=f"m{number}")
    path = _trail(world)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(b"x" + line if number % 2 else line for number, line in enumerate(lines)))
    await seal_trail(world.services, by="root " + "x" * 50)
    found = await world.call("audit_verify")
    assert found["ok"]
    assert len(found["sealed"]) == SEALED_SHOWN < found["sealedTotal"]
    assert len(str(found)) < ANSWER_LIMIT


async def test_changes_that_a_broken_head_kept_from_being_made_can_be_made_again(world: World) -> None:
    await world.project()
    (world.settings.registry / "audit/head.json").unlink()
    world.services = world.start()
    refusal = await world.refused("registry_damaged", "project_update", projectName="shop", keep=5)
    assert "codeb audit seal" in refusal.hint
    await seal_trail(world.start(), by="root")
    assert (await world.call("project_update", projectName="shop", keep=6))["keep"] == 6
    assert (await world.call("audit_verify"))["ok"]


@pytest.mark.parametrize("name", ["audit_seal", "audit_accept"])
def test_sealing_is_no_tool(name: str) -> None:
    assert name not in load_all()
    assert name not in load_all().aliases
