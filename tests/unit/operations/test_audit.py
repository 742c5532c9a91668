"""Every decision leaves a record, and no caller can keep others' records out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from codeb_mcp.model.access import Role
from codeb_mcp.model.errors import CodebError, InsufficientStorage, UnknownTool
from codeb_mcp.operations.catalog import load_all
from codeb_mcp.registry.audit import AuditRecord
from tests.unit.operations.test_rights import _arguments
from tests.unit.operations.world import OWNER, World, bounded, principal

CATALOG = load_all()
ACME = principal(Role.OWNER, "acme")


async def _rows(world: World, **more: Any) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = (await world.call("audit_list", limit=200, **more))["data"]
    return rows


@pytest.mark.parametrize("name", CATALOG)
async def test_every_operation_leaves_a_record_whether_it_may_or_not(world: World, name: str) -> None:
    operation = CATALOG[name]
    await world.project()
    arguments = _arguments(operation, team="default")
    for caller in (principal(Role.VIEWER), OWNER):
        before = len([row for row in await _rows(world) if row["tool"] == name and row["keyId"] == caller.key_id])
        try:
            await world.call(name, caller, **arguments)
            outcome = "ok"
        except CodebError as error:
            outcome = error.code
        mine = [row for row in await _rows(world) if row["tool"] == name and row["keyId"] == caller.key_id]
        assert len(mine) > before
        assert mine[-1 if name == "audit_list" else 0]["outcome"] == outcome or name == "audit_list"
        assert mine[0]["role"] == caller.role
        assert mine[0]["project"] == arguments.get("projectName")
    assert (await world.call("audit_verify"))["ok"]


async def test_a_change_is_on_the_disk_before_it_is_answered(world: World) -> None:
    await world.project()
    answer = await world.deploy("v1")
    there = world.start()
    rows, _ = await there.registry.audit.page(team="default", limit=10, offset=0, tool="deploy")
    assert rows[0]["operationId"] == answer["operationId"]
    assert rows[0]["arguments"]["image"] == "registry.test/shop:v1"


async def test_a_refusal_says_what_was_tried_and_by_whom(world: World) -> None:
    await world.project()
    await world.refused("invalid_request", "deploy", projectName="shop", imag="x")
    [row] = [row for row in await _rows(world, tool="deploy")]
    assert (row["outcome"], row["arguments"], row["actor"]) == (
        "invalid_request",
        {"projectName": "shop", "imag": "x"},
        OWNER.name,
    )


SECRET = "ghp_" + "a" * 36


@pytest.mark.parametrize(
    "arguments",
    [
        {"reason": SECRET}, {"reason": f"token={SECRET}"}, {"password": "hunter2hunter2"}, {"x": {"api_key": "plain-words"}},
        {SECRET: 1}, {"list": [SECRET, {"deep": SECRET}]}, {"projectName": SECRET}, {"environment": SECRET},
    ],
)  # fmt: skip
async def test_no_secret_gets_into_the_trail(world: World, arguments: dict[str, Any]) -> None:
    with pytest.raises(CodebError):
        await world.call("rollback", **arguments)
    await world.services.trail.flush()
    text = "".join(path.read_text(encoding="utf-8") for path in (world.settings.registry / "audit").glob("*.jsonl"))
    for secret in (SECRET, "hunter2hunter2", "plain-words"):
        assert secret not in text


def _deep(levels: int) -> Any:
    value: Any = "x"
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    "arguments",
    [
        {"limit": float("nan")}, {"limit": float("inf")}, {"x": float("-inf")}, {"projectName": "\ud800"}, {"\udfff": 1},
        {"projectName": "a\x00b"}, {"projectName": "x" * 500_000}, {"x": _deep(5000)}, {"x": 10**400},
        {f"k{number}": "v" * 100 for number in range(5000)}, {"projectName": {"a": 1}}, {"environment": ["\ud800"]},
        {"projectName": "\u202eevil\x1b[31m"},
    ],
    ids=range(13),
)  # fmt: skip
@pytest.mark.parametrize("tool", ["slot_list", "rollback"])
async def test_no_argument_keeps_this_or_other_records_out_of_the_trail(
    world: World, tool: str, arguments: dict[str, Any]
) -> None:
    await world.project()
    await world.call("project_get", projectName="shop")
    refusal = await world.refused("invalid_request", tool, **arguments)
    assert len(str(refusal.as_dict())) < 20_000
    await world.call("project_list")
    tools = [row["tool"] for row in await _rows(world)]
    assert tools[:4] == ["project_list", tool, "project_get", "project_create"]
    assert (await world.call("audit_verify"))["ok"]
    size = max(path.stat().st_size for path in (world.settings.registry / "audit").glob("*.jsonl"))
    assert size < 100_000


async def test_reads_are_gathered_and_written_within_a_moment(world: World) -> None:
    for _ in range(3):
        await world.call("project_list")
    assert [row["tool"] for row in await _rows(world)] == ["project_list"] * 3


async def test_a_trail_that_cannot_be_written_keeps_what_was_gathered(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.call("project_list")
    audit = world.services.registry.audit
    append = audit.append_made

    async def full(make: Callable[[], list[AuditRecord]], *, durable: bool) -> None:
        raise InsufficientStorage("the disk is full")

    monkeypatch.setattr(audit, "append_made", full)
    await world.refused("insufficient_storage", "audit_list")
    monkeypatch.setattr(audit, "append_made", append)
    assert [row["tool"] for row in await _rows(world)] == ["audit_list", "project_list"]


async def test_a_caller_who_goes_away_is_not_recorded_as_answered(world: World) -> None:
    await world.project()
    pause = world.engine.faults.pause("images.pull")
    call = asyncio.create_task(world.deploy("v1"))
    await bounded(pause.reached.wait())
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    pause.release()
    await bounded(world.services.runs.drain())
    [row] = await _rows(world, tool="deploy")
    assert row["outcome"] == "caller_gone"


async def test_an_unknown_tool_names_the_nearest(world: World) -> None:
    with pytest.raises(UnknownTool) as refusal:
        await world.call("depoly")
    assert "deploy" in refusal.value.hint
    with pytest.raises(UnknownTool) as refusal:
        await world.call("x" * 10_000 + "\x00")
    assert len(refusal.value.message) < 200


async def test_many_at_once_are_all_recorded_in_one_chain(world: World) -> None:
    await world.project()
    here, there = world.services, world.start()
    calls = []
    for number in range(30):
        world.services = (here, there)[number % 2]
        calls.append(asyncio.create_task(world.call("project_update", projectName="shop", keep=number + 1)))
        await asyncio.sleep(0)
    await bounded(asyncio.gather(*calls))
    world.services = here
    assert len(await _rows(world, tool="project_update")) == 30
    report = await world.call("audit_verify")
    assert report["ok"], report
    await there.trail.close()


@pytest.mark.parametrize("how", ["change", "drop", "swap", "cut"])
async def test_a_trail_that_was_tampered_with_is_found_out(world: World, how: str) -> None:
    for number in range(4):
        await world.call("member_invite", name=f"m{number}")
    [path] = (world.settings.registry / "audit").glob("*.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    if how == "change":
        lines[1] = lines[1].replace(b"m1", b"mX")
    elif how == "drop":
        del lines[1]
    elif how == "swap":
        lines[1], lines[2] = lines[2], lines[1]
    else:
        lines = lines[:-2]
    path.write_bytes(b"".join(lines))
    report = await world.call("audit_verify")
    assert not report["ok"]
    assert report["problem"]


async def test_a_page_of_the_trail_says_how_to_go_on(world: World) -> None:
    for number in range(7):
        await world.call("member_invite", name=f"m{number}")
    first = await world.call("audit_list", limit=3, tool="member_invite")
    assert (len(first["data"]), first["total"], first["nextOffset"]) == (3, 7, 3)
    last = await world.call("audit_list", limit=3, offset=6, tool="member_invite")
    assert (len(last["data"]), "nextOffset" in last) == (1, False)
