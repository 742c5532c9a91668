"""Many processes on one registry, killed and stopped at random: nothing lost, nothing twice, nobody late."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from codeb_mcp.model.errors import LockHeld
from codeb_mcp.registry.files import FileStore
from codeb_mcp.registry.journal import Journals
from codeb_mcp.registry.leases import utc_now
from codeb_mcp.registry.store import Change

WRITERS = 8


class Writer:
    """One writer, started again whenever it was killed."""

    def __init__(self, root: Path, name: str, times: int) -> None:
        self.name = name
        self.acked = 0
        self.deaths = 0
        self._command = [sys.executable, "-m", "tests.crash.registry_worker", str(root), name, str(times)]
        self._log = (root.parent / f"{name}.log").open("w+b")
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self._command, stdout=self._log, stderr=subprocess.PIPE)

    def kill(self) -> None:
        """kill -9, then read what it had acknowledged."""
        self.process.kill()
        self.deaths += 1
        self._bury()
        self.process = self._start()

    def done(self) -> bool:
        """Whether it has counted to its end."""
        if self.process.poll() is None:
            return False
        errors = self._bury()
        assert self.process.returncode == 0, errors
        return True

    def close(self) -> None:
        """Leave nothing behind."""
        self.process.kill()
        self.process.wait(30)
        self._log.close()

    def _bury(self) -> str:
        errors = self.process.communicate(timeout=60)[1]
        self._log.seek(0)
        numbers = self._log.read().split(b"\n")[:-1]
        self._log.seek(0, os.SEEK_END)
        self.acked = max(self.acked, *(int(number) for number in numbers), 0)
        return errors.decode()


@pytest.fixture
def writers() -> Iterator[list[Writer]]:
    started: list[Writer] = []
    yield started
    for writer in started:
        writer.close()


@pytest.mark.parametrize(
    ("times", "kills"), [(500, 30), pytest.param(3000, 200, marks=pytest.mark.nightly)], ids=["short", "long"]
)
async def test_killed_and_stopped_writers_lose_and_repeat_nothing(
    tmp_path: Path, writers: list[Writer], times: int, kills: int
) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    root = tmp_path / "registry"
    writers += [Writer(root, f"w{n}", times) for n in range(WRITERS)]
    stopped = killed = 0
    async with asyncio.timeout(300):
        while not all(writer.done() for writer in writers):
            alive = [writer for writer in writers if writer.process.poll() is None]
            if not alive:
                continue
            victim = chance.choice(alive)
            if killed < kills and chance.random() < 0.4:
                await asyncio.to_thread(victim.kill)
                killed += 1
            else:
                victim.process.send_signal(signal.SIGSTOP)
                await asyncio.sleep(chance.uniform(0.01, 0.05))
                victim.process.send_signal(signal.SIGCONT)
                stopped += 1
            await asyncio.sleep(chance.uniform(0.05, 0.25))
    await check(root, writers, times)
    print(f"{WRITERS} writers, {WRITERS * times} commits, {killed} killed, {stopped} stopped, 0 lost, 0 doubled")
    assert killed
    assert stopped


async def check(root: Path, writers: list[Writer], times: int) -> None:
    """Every count that was acknowledged is there, and no commit was counted twice or half."""
    store = FileStore(root)
    assert await store.examine() == []
    shared = await store.get("ssot")
    assert shared is not None
    commits = 0
    for writer in writers:
        own = await store.get(f"slots/{writer.name}")
        assert own is not None
        assert own.doc["n"] == own.version == times >= writer.acked
        assert own.doc["both"] == shared.doc[writer.name]
        commits += shared.doc[writer.name]
    assert shared.version == commits
    assert [path.name for path in root.rglob("*.tmp")] == []


async def test_a_reader_never_sees_one_half_of_a_commit_before_the_other(tmp_path: Path) -> None:
    root = tmp_path / "registry"
    await FileStore(root).commit([Change("ssot", {"n": 0}, 0), Change("slots/z", {"n": 0}, 0)])
    writer = await asyncio.create_subprocess_exec(sys.executable, "-c", PAIRS, str(root))
    reader = FileStore(root)
    seen = set()
    async with asyncio.timeout(60):
        while writer.returncode is None:
            first, second = await reader.get("ssot"), await reader.get("slots/z")
            assert first is not None
            assert second is not None
            assert second.doc["n"] >= first.doc["n"]
            seen.add(second.doc["n"])
            await asyncio.sleep(0)  # an unchanged document is answered without waiting for anything
    assert await writer.wait() == 0
    assert len(seen) > 20


PAIRS = """
import asyncio, sys
from pathlib import Path
from codeb_mcp.registry.files import FileStore
from codeb_mcp.registry.store import Change
async def main():
    store = FileStore(Path(sys.argv[1]))
    for n in range(1, 200):
        await store.commit([Change("ssot", {"n": n}, n), Change("slots/z", {"n": n}, n)])
asyncio.run(main())
"""


async def start_holder(root: Path) -> asyncio.subprocess.Process:
    """A process that holds the lease."""
    holder = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.crash.registry_holder", str(root), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    async with asyncio.timeout(30):
        assert await holder.stdout.readline() == b"holding\n"
    return holder


async def test_the_late_write_of_a_paused_holder_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "registry"
    holder = await start_holder(root)
    holder.send_signal(signal.SIGSTOP)
    with pytest.raises(LockHeld):
        await FileStore(root).acquire("environment/a", "run:r2")
    later = FileStore(root, clock=lambda: utc_now() + timedelta(seconds=60))
    lease = await later.acquire("environment/a", "run:r2")
    assert lease.token == 2
    holder.send_signal(signal.SIGCONT)
    async with asyncio.timeout(30):
        out, _ = await holder.communicate(b"go on\n")
    assert out.split() == [b"lease_lost"] * 4
    found = await later.get("slots/a")
    assert found is not None
    assert found.doc == {"by": "holder"}
    assert (await Journals(root, later).open("r1")).in_doubt() == "pull"
    await later.check(lease.fence)


async def test_the_lease_of_a_process_that_is_gone_is_taken_over_at_once(tmp_path: Path) -> None:
    root = tmp_path / "registry"
    holder = await start_holder(root)
    store = FileStore(root)
    with pytest.raises(LockHeld):
        await store.acquire("environment/a", "run:r2")
    holder.kill()
    await holder.wait()
    assert await store.lease("environment/a") is None
    assert (await store.acquire("environment/a", "run:r2")).token == 2


async def test_a_holder_of_another_boot_or_namespace_is_given_its_time(tmp_path: Path) -> None:
    root = tmp_path / "registry"
    holder = await start_holder(root)
    holder.kill()
    await holder.wait()
    path = root / "leases/environment+a.json"
    record = path.read_text()
    for key, other in (("boot", "another"), ("namespace", 1)):
        doc = json.loads(record)
        path.write_text(json.dumps({**doc, "process": {**doc["process"], key: other}}))
        with pytest.raises(LockHeld):
            await FileStore(root).acquire("environment/a", "run:r2")
    path.write_text(record)
    assert (await FileStore(root).acquire("environment/a", "run:r2")).token == 2
