"""A writer that may die at any moment: `python -m tests.crash.registry_worker ROOT NAME TIMES`.

It counts in a document of its own and in a shared one, every fifth time in both with one commit, until its own count is
TIMES. It prints each count once it was acknowledged.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

from codeb_mcp.model.errors import Conflict
from codeb_mcp.registry.files import FileStore
from codeb_mcp.registry.store import Change, Stored, update


def counted(found: Stored | None, name: str) -> dict[str, int]:
    """The document with one more for that name."""
    doc = dict(found.doc) if found else {}
    return {**doc, name: doc.get(name, 0) + 1}


async def both(store: FileStore, name: str) -> int:
    """Count in both documents with one commit."""
    while True:
        shared, own = await store.get("ssot"), await store.get(f"slots/{name}")
        after = counted(own, "n")
        changes = [
            Change("ssot", counted(shared, name), shared.version if shared else 0),
            Change(f"slots/{name}", {**after, "both": after.get("both", 0) + 1}, own.version if own else 0),
        ]
        try:
            await store.commit(changes)
        except Conflict:
            continue
        return after["n"]


async def main() -> None:
    """Count."""
    root, name, times = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    store = FileStore(root, lock_wait_seconds=60)
    found = await store.get(f"slots/{name}")
    count = found.doc["n"] if found else 0
    while count < times:
        if count % 5 == 0:
            count = await both(store, name)
        else:
            stored = await update(store, f"slots/{name}", lambda doc: {**(doc or {}), "n": (doc or {}).get("n", 0) + 1})
            count = stored.doc["n"] if stored else 0
        os.write(1, f"{count}\n".encode())


if __name__ == "__main__":
    asyncio.run(main())
