"""Fixtures of the server faces."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.faces.world import Served, World, open_world, serving


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """An installation with teams and keys, and nothing deployed."""
    async with open_world(tmp_path / "codeb") as made:
        yield made


@pytest.fixture
async def shop(world: World) -> World:
    """The same with project `shop` of team `acme`: v1 is live in production."""
    return await world.with_project()


@pytest.fixture
async def served(shop: World) -> AsyncIterator[Served]:
    """The shop behind a real port."""
    async with serving(shop) as made:
        yield made
