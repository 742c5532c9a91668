"""All times that are written or answered have one form; what earlier versions wrote goes on being read and verified."""

from __future__ import annotations

import json
import re
import sys
from datetime import datetime
from typing import Any

import pytest

from codeb_mcp.model.times import utc_text
from tests.unit.operations.world import World

OFFSET = re.compile(r"\d\d:\d\d(?:\.\d+)?[+-]\d\d:\d\d")
FORMER_WRITERS = {"audit", "idempotency"}
"""Folders whose lines keep the form in which they were sealed, or are read by nobody but us."""


def _formerly(moment: datetime, timespec: str = "auto") -> str:
    """A time as it used to be written."""
    return moment.isoformat(timespec=timespec)


@pytest.fixture
def former(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Until it is undone, times are written with an offset."""
    for name, module in list(sys.modules.items()):
        if name.startswith("codeb_mcp.") and getattr(module, "utc_text", None) is utc_text:
            monkeypatch.setattr(module, "utc_text", _formerly)
    return monkeypatch


async def _story(world: World) -> list[dict[str, Any]]:
    """The main job, a key, a member; answers what was answered."""
    answers: list[dict[str, Any]] = [await world.call("project_create", projectName="shop")]
    for version in ("v1", "v2"):
        answers += [await world.deploy(version), await world.promote()]
    answers.append(await world.call("token_create", name="ci", role="member"))
    answers.append(await world.call("token_revoke", tokenId=answers[-1]["token"]["id"]))
    answers.append(await world.call("member_invite", teamId="default", name="anna", role="viewer"))
    answers.append(await world.call("team_create", name="Acme", teamId="acme"))
    here = {"projectName": "shop", "environment": "production"}
    answers.append((await world.refused("conflict", "deploy", **here, image=world.image("v3"))).as_dict())
    for tool in ("token_list", "slot_list", "operation_list", "project_list", "team_list"):
        answers.append(await world.call(tool))
    answers.append(await world.call("slot_status", **here))
    run = answers[1]["operationId"]
    answers.append(await world.call("operation_get", operationId=run))
    answers.append(await world.call("project_delete", projectName="shop", confirm="shop"))
    return answers


async def test_no_answer_and_no_document_has_a_time_with_an_offset(world: World) -> None:
    for answer in await _story(world):
        assert not OFFSET.search(json.dumps(answer)), answer
    registry = world.settings.registry
    files = [path for path in registry.rglob("*") if path.is_file() and path.suffix in (".json", ".jsonl", ".beat")]
    seen = 0
    for path in files:
        if not FORMER_WRITERS & set(path.relative_to(registry).parts):
            text = path.read_text(encoding="utf-8")
            seen += "Z" in text
            assert not OFFSET.search(text), path
    assert seen > 10


async def test_what_was_written_with_offsets_is_read_verified_and_gone_on_with(
    world: World, former: pytest.MonkeyPatch
) -> None:
    await world.project()
    await world.live("v1")
    await world.deploy("v2")
    made = await world.call("token_create", name="ci", role="member")
    assert made["token"]["createdAt"].endswith("+00:00")
    documents = [path.read_text(encoding="utf-8") for path in world.settings.registry.rglob("*.json*")]
    assert any(OFFSET.search(text) for text in documents)
    former.undo()
    world.restart()
    assert (await world.call("audit_verify"))["ok"]
    assert {row["createdAt"][-1] for row in (await world.call("operation_list"))["data"]} == {"Z"}
    assert {row["createdAt"][-1] for row in (await world.call("token_list"))["data"]} == {"Z"}
    assert (await world.promote())["newVersion"] == "v2"
    assert (await world.rollback())["restoredVersion"] == "v1"
    await world.call("project_delete", projectName="shop", confirm="shop")
    assert (await world.call("audit_verify"))["ok"]
    await world.project("again")
