"""Every operation, through every face, with the same answer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from mcp import Client

from codeb_mcp.model.errors import CodebError
from codeb_mcp.operations.catalog import load_all
from tests.faces.story import STORY, Told, essence, tell
from tests.faces.ways import ERAS, Outcome, by_api, child, in_process, over_http, over_sse, saying
from tests.faces.world import World, open_world, publish, serving

WAYS = ["api", *(f"{way} {era}" for way in ("mcp", "http", "sse", "stdio") for era in ERAS)]


def test_the_story_calls_every_operation() -> None:
    catalog = load_all()
    called = {catalog.aliases.get(tool, tool) for tool, _ in STORY}
    assert set(catalog) <= called


async def _directly(root: Path) -> Told:
    """The story without any face."""
    async with open_world(root) as world:
        publish(world)
        key = world.keys["default"]["owner"]

        async def say(tool: str, params: Mapping[str, Any]) -> Outcome:
            try:
                return Outcome(await world.call(tool, key, **params))
            except CodebError as error:
                return Outcome({}, error.code, error.message, error.as_dict())

        return await tell(say)


async def _through(way: str, era: str, world: World, root: Path) -> Told:
    key = world.keys["default"]["owner"]
    if way == "stdio":
        async with Client(child(root / "child" / "codeb", ""), mode=era) as client:
            return await tell(saying(client))
    if way == "mcp":
        async with in_process(world, key, era) as client:
            return await tell(saying(client))
    async with serving(world) as served:
        if way == "api":
            async with by_api(served, key) as say:
                return await tell(say)
        over = over_http if way == "http" else over_sse
        async with over(served, key, era) as client:
            return await tell(saying(client))


@pytest.mark.parametrize("way", WAYS)
async def test_a_face_answers_like_the_operations_themselves(way: str, tmp_path: Path) -> None:
    name, _, era = way.partition(" ")
    wanted = essence(await _directly(tmp_path / "direct" / "codeb"))
    async with open_world(tmp_path / "faced" / "codeb") as world:
        publish(world)
        told = await _through(name, era, world, tmp_path)
    for number, (got, expected) in enumerate(zip(essence(told), wanted, strict=True)):
        assert got == expected, (number, told[number])
