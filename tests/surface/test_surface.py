"""What each role is offered, compared with the files in this folder: a change of the surface is a change of a file.

`python -m tests.surface.test_surface --update` writes the files anew.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from codeb_mcp.model.access import Role
from codeb_mcp.operations.catalog import CATALOG, Effect, load_all
from tests.faces.ways import in_process
from tests.faces.world import World, open_world

HERE = Path(__file__).parent
VIEWS = (*(("acme", role.value) for role in Role), ("default", "owner"))


def _file(team: str, role: str) -> Path:
    return HERE / (f"{role}.json" if team == "acme" else "platform-owner.json")


async def surface(world: World, team: str, role: str) -> str:
    """The tool list as the client of that key reads it: names and the hash of everything; for the key that sees all of it
    the whole text, one tool per line."""
    async with in_process(world, world.keys[team][role], "auto") as client:
        listed = (await client.list_tools()).model_dump(mode="json", by_alias=True, exclude_none=True)["tools"]
    lines = [json.dumps(tool, ensure_ascii=False, sort_keys=True) for tool in listed]
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    if team != "default":
        lines = [json.dumps(tool["name"]) for tool in listed]
    return f'{{"sha256": "{digest}", "tools": [\n' + ",\n".join(lines) + "\n]}\n"


@pytest.mark.parametrize(("team", "role"), VIEWS)
async def test_the_surface_is_the_reviewed_one(team: str, role: str, tmp_path: Path) -> None:
    async with open_world(tmp_path / "codeb") as world:
        found = await surface(world, team, role)
    wanted = _file(team, role).read_text(encoding="utf-8")
    assert found == wanted, "review the change, then run: python -m tests.surface.test_surface --update"


def test_a_higher_role_sees_everything_that_a_lower_one_sees() -> None:
    seen: list[set[str]] = []
    for role in Role:
        seen.append(set(json.loads(_file("acme", role.value).read_text())["tools"]))
    assert all(lower < higher for lower, higher in itertools.pairwise(seen))


def test_every_tool_is_worded_for_a_model() -> None:
    """Rules over the whole list: a first line that fits into a menu, words for every parameter, and no surprise."""
    load_all()
    for tool in json.loads(_file("default", "owner").read_text())["tools"]:
        first = tool["description"].partition("\n")[0]
        assert 10 <= len(first) <= 160, tool["name"]
        assert first.endswith("."), tool["name"]
        assert len(tool["description"]) <= 1000, tool["name"]
        assert tool["inputSchema"]["type"] == "object"
        assert not tool["inputSchema"]["additionalProperties"], tool["name"]
        for name, schema in tool["inputSchema"].get("properties", {}).items():
            assert name == name[0].lower() + name[1:]
            assert "_" not in name
            assert _described(schema), (tool["name"], name)
        assert "(?P<" not in json.dumps(tool)


def _described(schema: dict[str, Any]) -> bool:
    return bool(schema.get("description"))


def test_whatever_a_viewer_may_call_only_reads() -> None:
    allowed = set(json.loads(_file("acme", "viewer").read_text())["tools"])
    for tool in json.loads(_file("default", "owner").read_text())["tools"]:
        if tool["name"] in allowed:
            assert CATALOG[tool["name"]].effect is Effect.READ, tool["name"]
            assert tool["annotations"]["readOnlyHint"]


async def _update() -> None:
    with tempfile.TemporaryDirectory() as folder:
        async with open_world(Path(folder, "codeb")) as world:
            for team, role in VIEWS:
                _file(team, role).write_text(await surface(world, team, role), encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] != ["--update"]:
        sys.exit("usage: python -m tests.surface.test_surface --update")
    asyncio.run(_update())
