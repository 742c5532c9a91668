"""One change to a registry, in a process of its own, to be killed or to be lied to by the kernel at any system call.

`python -m tests.crash.registry_steps KIND ROOT` prints `acked` once the change was acknowledged, or `refused CODE` when
it was refused, and then `usable` if a further change goes through.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

from codeb_mcp.model.errors import Bug, CodebError
from codeb_mcp.model.machine import Action, Done
from codeb_mcp.registry.audit import AuditRecord, AuditTrail
from codeb_mcp.registry.entries import RunHeader
from codeb_mcp.registry.files import FileStore
from codeb_mcp.registry.journal import Journals
from codeb_mcp.registry.store import Change, Fence, update

AT = datetime(2026, 1, 1, tzinfo=UTC)
HELD = Fence("environment/held", 1)
PULL = Action("pull", "pull_image")
START = Action("start", "start_container")


async def prepare(root: Path) -> None:
    """What is there before each kind of change."""
    store = FileStore(root)
    await store.commit([Change(key, {"state": "before"}, 0) for key in ("ssot", "slots/a", "domains/a")])
    lease = await store.acquire("environment/a", "run:r1", ttl_seconds=3600)
    await store.release(lease)
    lease = await store.acquire("environment/a", "run:r1", ttl_seconds=3600)
    await Journals(root, store).create(header("r1"), lease.fence, plan={"state": "planned"}, first=PULL)
    await store.release(lease)
    await store.acquire(HELD.lease, "run:new1", ttl_seconds=3600)
    await AuditTrail(root).append([record("before")], durable=True)
    for path in root.rglob("*.json"):
        os.utime(path, (1, 1))  # as if the machine had synced them long ago, so that reading syncs nothing


def header(run_id: str) -> RunHeader:
    """A run."""
    return RunHeader(run_id, "deploy", {}, {}, "default", "a", "staging", AT, "c")


def record(tool: str) -> AuditRecord:
    """An entry of the audit trail."""
    return AuditRecord(AT, "anna", "k1", "default", "member", tool, "ok")


async def one(store: FileStore, _: str) -> None:
    """Change one document."""
    found = await store.get("ssot")
    await store.commit([Change("ssot", {"state": "after"}, found.version if found else 0)])


async def several(store: FileStore, _: str) -> None:
    """Change one document, delete one and create one, together."""
    versions = {key: await store.get(key) for key in ("ssot", "slots/a", "domains/a", "domains/b")}
    known = {key: found.version if found else 0 for key, found in versions.items()}
    await store.commit(
        [
            Change("ssot", {"state": "after"}, known["ssot"]),
            Change("slots/a", {"state": "after"}, known["slots/a"]),
            Change("domains/a", None, known["domains/a"]),
            Change("domains/b", {"state": "after"}, known["domains/b"]),
        ]
    )


async def lease(store: FileStore, _: str) -> None:
    """Take a lease."""
    await store.acquire("environment/a", "run:r1", ttl_seconds=3600)


async def journal(store: FileStore, turn: str) -> None:
    """Begin a run and take it to its end; what is refused on the way is tried again."""
    run = await Journals(store.root, store).create(header(turn), HELD, plan={"state": "planned"}, first=PULL)
    await patiently(lambda: run.record(0, "pull", Done({"n": 1}), then=(1, START)))
    await patiently(lambda: run.intend(1, START))
    await patiently(lambda: run.record(1, "start", Done({"n": 2}), end={"state": "after"}))


async def patiently(work: Callable[[], Awaitable[None]]) -> None:
    """Twice, if need be."""
    try:
        await work()
    except CodebError as error:
        say(f"refused {error.code}")
        try:
            await work()
        except Bug:
            say("it had been recorded")
        say("usable")


async def audit(store: FileStore, _: str) -> None:
    """Write to the audit trail."""
    await AuditTrail(store.root).append([record("after"), record("after")], durable=True)


KINDS: dict[str, Callable[[FileStore, str], Awaitable[None]]] = {
    "one": one,
    "several": several,
    "lease": lease,
    "journal": journal,
    "audit": audit,
}


def say(text: str) -> None:
    """At once, so that a kill leaves nothing in a buffer, and by a call that no fault is meant for."""
    os.writev(1, [text.encode() + b"\n"])


async def main() -> None:
    """Do it."""
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    kind, store = KINDS[sys.argv[1]], FileStore(Path(sys.argv[2]))
    try:
        await kind(store, "new1")
    except CodebError as error:
        say(f"refused {error.code}")
        await go_on(kind, store)
    else:
        say("acked")


async def go_on(kind: Callable[[FileStore, str], Awaitable[None]], store: FileStore) -> None:
    """Do something more in the same process; the fault comes once in each of its three threads."""
    for turn in range(2, 6):
        try:
            if sys.argv[1] in ("journal", "audit"):
                await kind(store, f"new{turn}")
            await update(store, "teams", lambda doc: {"n": 1})
        except CodebError:
            continue
        say("usable")
        return


if __name__ == "__main__":
    asyncio.run(main())
