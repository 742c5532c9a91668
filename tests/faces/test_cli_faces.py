"""Every operation through the command line, local and on a server, as `codeb call` and as friendly commands: the answer is
that of the operations themselves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from codeb_mcp.app import opened
from codeb_mcp.faces.cli import run
from codeb_mcp.faces.cli_call import Surroundings
from codeb_mcp.model.errors import ERRORS
from codeb_mcp.operations.catalog import load_all
from codeb_mcp.operations.context import Services
from codeb_mcp.settings import Settings
from tests.faces.cli_world import typed
from tests.faces.story import STORY, Told, essence
from tests.faces.test_every_face import _directly
from tests.faces.ways import Outcome
from tests.faces.world import World, open_world, publish, serving

NOT_SAID = Outcome(code="not said")
"""A call that this way of asking cannot express, like a field that does not exist."""

LEFT_RUNNING = frozenset({"operation_cancel", "operation_resume"})


class Terminal:
    """Commands in this process, on the world's registry or on its server."""

    def __init__(self, world: World, capsys: pytest.CaptureFixture[str], url: str | None = None) -> None:
        settings = world.services.settings
        self._around = Surroundings(
            self._open,
            {"CODEB_ROOT": str(settings.root), "CODEB_API_KEY": world.keys["default"]["owner"], "HOME": "/nowhere"},
        )
        self._world = world
        self._capsys = capsys
        self._url = url

    def _open(self, settings: Settings) -> AbstractAsyncContextManager[Services]:
        return opened(self._world.services.settings, self._world.services.drivers)

    async def __call__(self, words: list[str]) -> Outcome:
        where = ["--connect", self._url] if self._url else []
        self._capsys.readouterr()
        code = await asyncio.to_thread(run, [*words, "--json", *where], self._around)
        said = self._capsys.readouterr().out
        assert said.count("\n") == 1, said
        body = json.loads(said)
        if body.get("success") is not False:
            unmended = "repaired" in body and body["repaired"] < len(body["data"])
            bad_news = body.get("status") == "unhealthy" or body.get("ok") is False or unmended
            assert (code != 0) == bad_news, said
            return Outcome(body, text=said)
        assert code == ERRORS[body["code"]].exit_code
        return Outcome({}, body["code"], body["message"], body, said)

    async def call(self, tool: str, params: Mapping[str, Any]) -> Outcome:
        """`codeb call TOOL JSON`."""
        return await self(["call", tool, json.dumps(params)])

    async def friendly(self, tool: str, params: Mapping[str, Any]) -> Outcome:
        """`codeb NOUN VERB --flags`."""
        words = typed(tool, params, self._world.services.settings.root.parent)
        if words is None or params.get("environment") == "mars":
            return NOT_SAID
        return await self([*words, *([] if "confirm" in params else yes(tool))])


def yes(tool: str) -> list[str]:
    """`--yes` where the command has it."""
    catalog = load_all()
    return ["--yes"] if catalog[catalog.aliases.get(tool, tool)].effect.value == "destroy" else []


async def _tell(terminal: Terminal, way: str, *, local: bool) -> Told:
    """The story. A local command lives as long as its run, so there nobody is left to cancel one."""
    told: Told = []
    for tool, params in STORY:
        if local and (tool in LEFT_RUNNING or (not callable(params) and params.get("wait") is False)):
            told.append((tool, NOT_SAID))
            continue
        say = terminal.call if way == "call" else terminal.friendly
        told.append((tool, await say(tool, params(told) if callable(params) else params)))
    return told


@pytest.mark.parametrize("way", ["call", "friendly"])
@pytest.mark.parametrize("where", ["local", "server"])
async def test_the_command_line_answers_like_the_operations_themselves(
    way: str, where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = essence(await _directly(tmp_path / "direct" / "codeb"))
    async with open_world(tmp_path / "faced" / "codeb") as world:
        publish(world)
        if where == "local":
            told = await _tell(Terminal(world, capsys), way, local=True)
        else:
            async with serving(world) as served:
                told = await _tell(Terminal(world, capsys, served.url), way, local=False)
    got = essence(told)
    compared = 0
    for number, (tool, outcome) in enumerate(told):
        if outcome is NOT_SAID or (where == "local" and tool in ("operation_list", "audit_verify")):
            continue
        compared += 1
        assert got[number] == wanted[number], (number, told[number])
    assert compared >= len(STORY) - 9
