"""Every system call of a change is once the last one, and once refused by the disk: the change is whole or not there."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from codeb_mcp.model.errors import NotFound
from codeb_mcp.registry.audit import AuditTrail
from codeb_mcp.registry.files import FileStore
from codeb_mcp.registry.journal import Journals
from codeb_mcp.registry.store import Change
from tests.crash.registry_steps import HELD, KINDS, prepare

CHANGING = (
    "fsync,fdatasync,rename,renameat,renameat2,link,linkat,unlink,unlinkat,mkdir,mkdirat,ftruncate,pwrite64,write"
)
FAULTS = {"KILL": "signal=KILL", "EIO": "error=EIO", "ENOSPC": "error=ENOSPC"}

pytestmark = pytest.mark.real("strace")


@dataclass(frozen=True)
class Told:
    """What the process said before its end."""

    acked: bool
    refused: bool
    usable: bool
    injected: bool
    errors: str


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry to copy."""
    root = tmp_path_factory.mktemp("faults") / "prepared"
    asyncio.run(prepare(root))
    return root


def run(kind: str, root: Path, inject: str | None) -> tuple[Told, str]:
    """Have the change done, with a fault in one of its changing system calls; also what strace saw."""
    log = root.with_suffix(".strace")
    done = subprocess.run(
        [
            "strace", "-f", "-qq", *(() if inject and "KILL" in inject else ("--seccomp-bpf",)), "-o", str(log), "-e", f"trace={CHANGING}",
            *(("-e", f"inject={inject}") if inject else ()),
            sys.executable, "-m", "tests.crash.registry_steps", kind, str(root),
        ],
        capture_output=True, text=True, timeout=60, check=False, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    traced = log.read_text(encoding="utf-8", errors="replace")
    injected = "killed by SIGKILL" in traced or "(INJECTED)" in traced
    lines = done.stdout.split("\n")
    refused = any(line.startswith("refused") for line in lines)
    return Told("acked" in lines, refused, "usable" in lines, injected, done.stderr), traced


def calls(traced: str) -> list[str]:
    """Each system call that was seen, as `name:when=n`; strace counts per thread and name."""
    seen = Counter((line.split()[0], line.split()[1].split("(")[0]) for line in traced.splitlines() if "(" in line)
    most: dict[str, int] = {}
    for (_, name), number in seen.items():
        most[name] = max(most.get(name, 0), number)
    return [f"{name}:{{}}:when={number}" for name in sorted(most) for number in range(1, most[name] + 1)]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", KINDS)
async def test_a_change_is_whole_or_not_there_whichever_call_fails(
    kind: str, fault: str, prepared: Path, tmp_path: Path
) -> None:
    def attempt(inject: str) -> tuple[str, Path, Told]:
        root = tmp_path / inject.replace(":", "-")
        shutil.copytree(prepared, root)
        return inject, root, run(kind, root, inject.format(FAULTS[fault]))[0]

    shutil.copytree(prepared, tmp_path / "whole")
    told, traced = run(kind, tmp_path / "whole", None)
    await check(f"{kind} whole", kind, tmp_path / "whole", told)
    faults = refusals = 0
    with ThreadPoolExecutor(2) as pool:
        for inject, root, told in pool.map(attempt, calls(traced)):
            await check(f"{inject} {fault}: {told}", kind, root, told)
            faults += told.injected
            refusals += told.refused
    print(f"{kind} {fault}: {faults} faults injected, {refusals} refused, 0 lost")
    assert faults >= len(calls(traced)) - 2  # the last ones may be of a thread that had less to do this time
    assert faults >= 3
    assert fault == "KILL" or refusals >= 3


async def check(where: str, kind: str, root: Path, told: Told) -> None:
    """Open what is left as the next process would."""
    if not told.injected:
        assert told.acked, where
    if told.refused:
        assert told.usable, where
    store = FileStore(root)
    assert await store.examine() == [], where
    if kind in ("one", "several"):
        await check_documents(kind, store, told, where)
    elif kind == "lease":
        held = await store.acquire("environment/a", "next")
        assert held.token == (4 if told.acked else held.token), where
        assert held.token in (3, 4, 5), where
    elif kind == "journal":
        await check_journal(root, store, told, where)
    else:
        report = await AuditTrail(root).verify()
        assert report.ok, where
        assert report.records in ((3,) if told.acked else (1, 3, 5, 7, 9)), where
        await AuditTrail(root).append([], durable=True)
    assert await store.commit([Change("api-keys", {}, 0)]) == {"api-keys": 1}, where


async def check_documents(kind: str, store: FileStore, told: Told, where: str) -> None:
    """All of the commit or nothing of it, and all of it when it was acknowledged."""
    keys = ["ssot"] if kind == "one" else ["ssot", "slots/a", "domains/a", "domains/b"]
    found = [await store.get(key) for key in keys]
    states = [item.doc["state"] if item else None for item in found]
    before = ["before", "before", "before", None][: len(keys)]
    after = ["after", "after", None, "after"][: len(keys)]
    assert states in ([after] if told.acked else [before, after]), where
    assert await store.keys("domains/") == (["domains/b"] if states == after and kind == "several" else ["domains/a"])


async def check_journal(root: Path, store: FileStore, told: Told, where: str) -> None:
    """The run is where it was when it was last told so, and can be taken to its end."""
    journals = Journals(root, store)
    assert (await journals.open("r1")).in_doubt() == "pull", where
    try:
        run = await journals.open("new1")
    except NotFound:
        assert not told.acked, where
        return
    if told.acked:
        assert run.finished() == {"state": "after"}, where
        assert [name for name, _ in run.outcomes()] == ["pull", "start"], where
        assert await journals.open_runs() == ["r1"], where
    if run.finished() is None:
        run.fence = HELD
        await run.finish({"state": "resumed"})
    assert "new1" not in await journals.open_runs(), where
