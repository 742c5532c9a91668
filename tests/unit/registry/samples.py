"""Registries to begin with."""

from __future__ import annotations

from pathlib import Path

from codeb_mcp.registry.files import FileStore
from codeb_mcp.registry.store import Change


async def written(root: Path, times: int = 3) -> FileStore:
    """A registry whose ssot has been written that often: `{"n": 0}`, `{"n": 1}` …"""
    store = FileStore(root)
    for n in range(times):
        await store.commit([Change("ssot", {"n": n}, n)])
    return store
