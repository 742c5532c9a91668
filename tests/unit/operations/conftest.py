"""One world per test, and steps that are tried again at once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from codeb_mcp.operations import runner, switching
from tests.unit.operations.world import World, initialised


@pytest.fixture(autouse=True)
def _no_long_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tried again is tried again soon; how often stays as it is."""
    monkeypatch.setattr(runner, "UNDO_PAUSE_SECONDS", 0.005)
    monkeypatch.setattr(switching, "VERIFY_PAUSE_SECONDS", 0.005)
    monkeypatch.setattr(switching, "DRAIN_PAUSE_SECONDS", 0.005)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """An installation after `codeb init`, without any project."""
    made = await initialised(tmp_path / "codeb")
    yield made
    await made.close()


@pytest.fixture
async def worlds(tmp_path: Path) -> AsyncIterator[Callable[[], Awaitable[World]]]:
    """A new world at each call."""
    made: list[World] = []

    async def another() -> World:
        made.append(await initialised(tmp_path / f"codeb{len(made)}"))
        return made[-1]

    yield another
    for world in made:
        await world.close()
