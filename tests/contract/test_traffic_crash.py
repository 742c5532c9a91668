"""A crash, an I/O error or a full disk at every system call of a switch: the old or the new slot is live, acked means new."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from types import TracebackType

import pytest

from codeb_mcp.drivers.flags import FlagTraffic
from codeb_mcp.model.names import Slot
from tests.lab.daemons import program, wait_until

KEY = "shop-production"
CALLS = ("openat", "flock", "fchmod", "write", "pwrite64", "fsync", "fdatasync", "close", "rename", "unlink")
LANES = 3

# Forks a child per line of input, so that the imports are paid once. The child stops itself to be attached to.
ZYGOTE = """
import os, signal, sys
from pathlib import Path
from codeb_mcp.drivers.flags import FlagTraffic
from codeb_mcp.model.names import Slot
for line in sys.stdin:
    folder, name, ack = line.split()
    child = os.fork()
    if child == 0:
        said = os.open(ack, os.O_CREAT | os.O_WRONLY)
        os.kill(os.getpid(), signal.SIGSTOP)
        try:
            FlagTraffic(Path(folder)).switch("shop-production", None if name == "off" else Slot(name), fence=2)
            os.write(said, b"acked")
        finally:
            os._exit(0)
    os.waitpid(child, os.WUNTRACED)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


class Zygote:
    """A process that runs one switch at a time in a fresh child, traced."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", ZYGOTE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __enter__(self) -> Zygote:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._process.communicate(timeout=20)

    def switch(self, folder: Path, end: str, *options: str) -> tuple[bool, int, list[tuple[str, str]]]:
        """Whether it acked, how the child ended, and its system calls: `(name, line)`."""
        ack, log = folder.with_suffix(".ack"), folder.with_suffix(".log")
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{folder} {end} {ack}\n")
        self._process.stdin.flush()
        pid = int(self._process.stdout.readline())
        strace = program("strace", part="strace", package="strace")
        argv = [strace, "-qq", "-o", str(log), "-p", str(pid), "-e", f"trace={','.join(CALLS)}", *options]
        with subprocess.Popen(argv, stderr=subprocess.DEVNULL) as tracer:
            try:
                wait_until(lambda: _traced(pid), 20, "strace did not attach")
            finally:
                os.kill(pid, signal.SIGCONT)
            status = int(self._process.stdout.readline())
            tracer.wait(20)
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        calls = [(line.partition("(")[0], line) for line in lines if line.partition("(")[0] in CALLS]
        return ack.read_bytes() == b"acked", status, calls


def _traced(pid: int) -> bool:
    return "TracerPid:\t0" not in Path(f"/proc/{pid}/status").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def zygotes() -> Iterator[Queue[Zygote]]:
    """A few of them, to be taken and put back."""
    with Zygote() as one, Zygote() as two, Zygote() as three:
        free: Queue[Zygote] = Queue()
        for each in (one, two, three):
            free.put(each)
        yield free


STARTS: dict[str, Slot | None] = {
    "unknown": None,
    "blue": Slot.BLUE,
    "green": Slot.GREEN,
    "off": None,
    "both": Slot.GREEN,
}
ENDS: dict[str, Slot | None] = {"green": Slot.GREEN, "blue": Slot.BLUE, "off": None}


def _arrange(folder: Path, start: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    traffic = FlagTraffic(folder)
    if start == "covered":
        traffic.switch(KEY, None, fence=1)
    if start != "unknown":
        traffic.switch(KEY, STARTS[start], fence=1)


def _faults(name: str) -> Iterator[str]:
    yield "signal=KILL"
    if name in ("fsync", "fdatasync", "rename", "write", "pwrite64", "unlink"):
        yield "error=EIO"
    if name in ("openat", "write", "pwrite64"):
        yield "error=ENOSPC"


@pytest.mark.parametrize(("start", "end"), [(start, end) for start in STARTS for end in ENDS if start != end])
def test_a_fault_anywhere_in_a_switch_leaves_the_old_or_the_new_slot_live(
    tmp_path: Path, zygotes: Queue[Zygote], start: str, end: str
) -> None:
    _arrange(tmp_path / "plain", start)
    zygote = zygotes.get(timeout=60)
    acked, _, calls = zygote.switch(tmp_path / "plain", end)
    zygotes.put(zygote)
    assert acked
    _assert_durable(calls)
    names = [name for name, _ in calls]
    faults = [
        (name, names[: index + 1].count(name), fault) for index, name in enumerate(names) for fault in _faults(name)
    ]

    def one(number: int) -> int:
        name, when, fault = faults[number]
        folder, inject = tmp_path / f"{number}", f"inject={name}:{fault}:when={when}"
        _arrange(folder, start)
        zygote = zygotes.get(timeout=60)
        try:
            acked, status, seen = zygote.switch(folder, end, "-e", inject)
        finally:
            zygotes.put(zygote)
        live = FlagTraffic(folder).live(KEY)
        assert live in (STARTS[start], ENDS[end]), f"{start}->{end} {inject}: {live}"
        assert live is ENDS[end] or not acked, f"{start}->{end} {inject}: acked, but {live} is live"
        assert _took_effect(fault, status, seen), f"{start}->{end} {inject} was not injected"
        FlagTraffic(folder).switch(KEY, ENDS[end], fence=2)
        assert FlagTraffic(folder).live(KEY) is ENDS[end]
        return number

    with ThreadPoolExecutor(LANES) as pool:
        done = list(pool.map(one, range(len(faults))))
    assert len(done) >= 20
    print(f"{start} -> {end}: {len(done)} faults over {len(calls)} system calls")


def _assert_durable(calls: list[tuple[str, str]]) -> None:
    """What a crash cannot show here, because the kernel lives on: each change of a name is followed by an fsync of the
    folder, and each content is on the disk before it gets its name."""
    names = [name for name, _ in calls]
    assert "flock" in names
    last = max((index for index, name in enumerate(names) if name in ("rename", "unlink")), default=-1)
    assert "fsync" in names[last + 1 :]
    for index, name in enumerate(names):
        if name == "rename" and ".part" in calls[index][1]:
            assert "fsync" in names[names[:index].index("fchmod") : index]
        if name == "unlink" and "rename" in names[index:]:
            assert "fsync" in names[index : names.index("rename", index)]
        if name == "pwrite64":
            assert names[index + 1] == "fdatasync"


def _took_effect(fault: str, status: int, seen: list[tuple[str, str]]) -> bool:
    if fault == "signal=KILL":
        return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    return any("(INJECTED)" in line for _, line in seen)
