"""What the registry costs: `python -m tests.bench.registry`. Ends with 1 when a bound is not kept.

Two ratios, each from interleaved runs on one disk, so that they say something on any machine:
commits per second of 50 concurrent writers over those of the bare system calls that one durable file needs, and the
registry's part of one deploy with 10,000 projects over the same with 10.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from codeb_mcp.model.machine import Action, Done
from codeb_mcp.registry.entries import RunHeader
from codeb_mcp.registry.files import FileStore
from codeb_mcp.registry.journal import Journals
from codeb_mcp.registry.store import Change, update

WRITERS = 50
STEPS = (
    "get_slot_status", "select_slot", "pull_image", "cleanup_container", "start_container", "health_check",
    "update_registry",
)  # fmt: skip
RATE_BOUND = 0.5
GROWTH_BOUND = 1.2


def slot_document(name: str, port: int) -> dict[str, Any]:
    """A slot document of the usual size."""
    side = {
        "state": "deployed", "version": "v1.2.3", "deployedAt": "2026-01-07T00:00:00Z", "deployedBy": "key_abc123",
        "healthStatus": "healthy", "image": "registry.example/worb:v1.2.3", "digest": "sha256:" + "0" * 64,
    }  # fmt: skip
    return {
        "projectName": name,
        "teamId": "default",
        "environment": "production",
        "activeSlot": "blue",
        "blue": {"name": "blue", "port": port, **side},
        "green": {"name": "green", "port": port + 1, **side},
        "lastUpdated": "2026-01-07T01:00:00Z",
    }


def bare(folder: Path, times: int) -> float:
    """Files per second by temp + fsync + rename + fsync(dir), and nothing else."""
    data = json.dumps(slot_document("bare", 4000), indent=2).encode()
    temporary, target = str(folder / "temporary"), str(folder / "target")
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    started = time.perf_counter()
    for _ in range(times):
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.write(file, data)
        os.fsync(file)
        os.close(file)
        os.rename(temporary, target)
        os.fsync(handle)
    took = time.perf_counter() - started
    os.close(handle)
    return times / took


async def commits(store: FileStore, times: int) -> float:
    """Commits per second of all writers together, each reading, changing and committing a document of its own."""

    async def write(number: int) -> None:
        for _ in range(times):
            await update(
                store,
                f"slots/w{number}-production",
                lambda doc: {**slot_document("w", 4000), "n": 1 + (doc or {"n": 0})["n"]},
            )

    started = time.perf_counter()
    await asyncio.gather(*(write(number) for number in range(WRITERS)))
    return WRITERS * times / (time.perf_counter() - started)


async def deploy(store: FileStore, journals: Journals, number: int) -> float:
    """Milliseconds of the registry's work in one deploy."""
    started = time.perf_counter()
    run_id = f"{time.time_ns():020d}-{number}"
    ssot = await store.get("ssot")
    lease = await store.acquire("environment/p1-production", f"run:{run_id}")
    header = RunHeader(
        run_id, "deploy", {"version": "v1"}, {"keyId": "k"}, "default", "p1", "production", datetime.now(UTC), "c"
    )
    actions = [Action(f"do_{name}", name, {"project": "p1"}) for name in STEPS]
    journal = await journals.create(header, lease.fence, plan={"ssot": ssot.version if ssot else 0}, first=actions[0])
    for step, action in enumerate(actions):
        if action.step == "update_registry":
            slot = await store.get("slots/p1-production")
            await store.commit(
                [
                    Change(
                        "slots/p1-production",
                        {**(slot.doc if slot else {}), "run": run_id},
                        slot.version if slot else 0,
                    )
                ],
                fence=lease.fence,
            )
        then = (step + 1, actions[step + 1]) if step + 1 < len(actions) else None
        await journal.record(step, action.name, Done({"ok": True}), then=then)
    await journal.finish({"status": "success"})
    await store.release(lease)
    return (time.perf_counter() - started) * 1000


async def filled(root: Path, projects: int) -> tuple[FileStore, Journals]:
    """A registry with that many projects."""
    store = FileStore(root)
    names = [f"p{number}" for number in range(projects)]
    await store.commit(
        [
            Change(
                "ssot",
                {
                    "version": "6.0.5",
                    "projects": {
                        name: {"ports": {"production": {"blue": 2 * n, "green": 2 * n + 1}}, "team": "default"}
                        for n, name in enumerate(names)
                    },
                    "usedPorts": list(range(2 * projects)),
                },
                0,
            )
        ]
    )
    for first in range(0, projects, 500):
        await store.commit(
            [Change(f"slots/{name}-production", slot_document(name, 4000), 0) for name in names[first : first + 500]]
        )
    await store.get("ssot")
    return store, Journals(root, store)


async def measure(folder: Path, rounds: int) -> bool:
    """Both ratios; answers whether the bounds are kept."""
    store = FileStore(folder / "writers")
    (folder / "bare").mkdir()
    await commits(store, 2)
    rates = [(bare(folder / "bare", 300), await commits(store, 10)) for _ in range(rounds)]
    ratio = statistics.median(ours / base for base, ours in rates)
    print(f"bare temp+fsync+rename+fsync(dir)   {statistics.median(base for base, _ in rates):8.0f} /s")
    print(f"commits of {WRITERS} concurrent writers     {statistics.median(ours for _, ours in rates):8.0f} /s")
    print(f"ratio                               {ratio:8.2f}    bound >= {RATE_BOUND}")
    written = [await store.get(key) for key in await store.keys("slots/")]
    lost = WRITERS * (2 + 10 * rounds) - sum(found.doc["n"] for found in written if found)
    print(f"commits lost                        {lost:8d}    bound 0")
    small, large = await filled(folder / "small", 10), await filled(folder / "large", 10_000)
    few: list[float] = []
    many: list[float] = []
    for number in range(40 * rounds):
        few.append(await deploy(*small, number))
        many.append(await deploy(*large, number))
    growth = statistics.median(many) / statistics.median(few)
    print(f"registry work of a deploy, 10       {statistics.median(few):8.2f} ms")
    print(f"registry work of a deploy, 10,000   {statistics.median(many):8.2f} ms")
    print(f"ratio                               {growth:8.2f}    bound <= {GROWTH_BOUND}")
    return ratio >= RATE_BOUND and growth <= GROWTH_BOUND and not lost


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="What the registry costs.")
    parser.add_argument("--folder", type=Path, help="measure on the disk of this folder (default: the temporary one)")
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="codeb-bench-", dir=chosen.folder) as folder:
        kept = asyncio.run(measure(Path(folder), chosen.rounds))
    sys.exit(0 if kept else 1)


if __name__ == "__main__":
    main()
