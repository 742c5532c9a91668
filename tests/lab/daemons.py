"""Background processes that many test processes share and that nobody forgets to stop.

A process is known by its id and its start time, so that a reused id or a zombie is never taken for it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any


class LabError(RuntimeError):
    """A real part is missing or does not come up; the text says which and what to do."""


def state_folder() -> Path:
    """Where all lab parts of this user keep their state: `CODEB_LAB_STATE`, else /run/codeb-lab, else the temp folder."""
    wanted = os.environ.get("CODEB_LAB_STATE")
    base = Path("/run") if os.access("/run", os.W_OK) else Path(tempfile.gettempdir())
    folder = Path(wanted) if wanted else base / f"codeb-lab-{os.getuid()}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def cache_folder() -> Path:
    """Where things live that are slow to make and safe to keep."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    folder = Path(base) / "codeb-lab"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def program(name: str, *, part: str, package: str) -> str:
    """The path of a program; raises LabError that names the package and the way to do without."""
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/bin")
    if found is None:
        raise LabError(
            f"{name} is missing: apt-get install {package}, or leave these tests out with CODEB_TEST_WITHOUT={part}"
        )
    return found


def start_time(pid: int) -> int | None:
    """The kernel's start time of a live process in clock ticks; None when it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def freeze(pid: int) -> None:
    """Stop all threads of a process (SIGSTOP), and be sure of it: one that still runs would answer one more question."""
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: all(state in "TZ" for state in _thread_states(pid)), 10, f"process {pid} does not stop")


def _thread_states(pid: int) -> list[str]:
    states = []
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # ended meanwhile
            states.append((thread / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0])
    return states


def launch(argv: Sequence[str], *, pidfile: Path, log: Path) -> int:
    """Start a process of its own session, detached from us, and answer its id.

    It is nobody's child, so no test process has to outlive it or reap it.
    """
    pidfile.unlink(missing_ok=True)
    script = 'echo $$ >"$0.part"; mv "$0.part" "$0"; exec "$@"'
    with log.open("ab") as out:
        subprocess.run(
            ["setsid", "--fork", "sh", "-c", script, str(pidfile), *argv],
            stdin=subprocess.DEVNULL, stdout=out, stderr=out, timeout=20, check=True,
        )  # fmt: skip
    wait_until(pidfile.exists, 10, f"{argv[0]} did not start")
    return int(pidfile.read_text(encoding="utf-8"))


def read_pid(pidfile: Path, name: str) -> int | None:
    """The id in a pid file if that process lives and is called so."""
    try:
        pid = int(pidfile.read_text(encoding="utf-8"))
        comm = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None
    return pid if comm == name[:15] and start_time(pid) is not None else None


def end(pid: int, *, grace_seconds: float = 20.0) -> None:
    """SIGTERM, then SIGKILL when it has not gone by then; returns when it is gone."""
    born = start_time(pid)
    for number, seconds in ((signal.SIGTERM, grace_seconds), (signal.SIGKILL, 10.0)):
        if born is None or start_time(pid) != born:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        with contextlib.suppress(LabError):
            wait_until(lambda: start_time(pid) != born, seconds, "")
            return
    raise LabError(f"process {pid} survives SIGKILL")


def wait_until(done: Callable[[], object], seconds: float, problem: str, *, log: Path | None = None) -> None:
    """Wait for a condition; raises LabError with the problem and the end of the log when the time is over."""
    end_at = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end_at:
            raise LabError(f"{problem} within {seconds:g} s{_tail(log)}")
        time.sleep(0.01)


def _tail(log: Path | None, lines: int = 8) -> str:
    if log is None or not log.exists():
        return ""
    return "\n" + "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock between processes. The lock file stays; it is never replaced."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Shared:
    """One part used by many test processes: the first one starts it, the last one stops it.

    Users are remembered by process id and start time. A part whose users all died without saying goodbye is stopped
    before it is started again.
    """

    def __init__(self, folder: Path, *, start: Callable[[], dict[str, Any]], stop: Callable[[], None]) -> None:
        self.folder = folder
        self._start = start
        self._stop = stop
        self._lock = folder.parent / f"{folder.name}.lock"
        self._users = folder / "users.json"

    def acquire(self) -> dict[str, Any]:
        """Have it running and be counted as a user; answers the facts that `start` gave."""
        with locked(self._lock):
            state = self._read()
            if not state["users"]:
                self._stop()
                self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                try:
                    state = {"users": [], "facts": self._start()}
                except BaseException:
                    self._stop()
                    raise
            state["users"].append([os.getpid(), start_time(os.getpid())])
            self._write(state)
            facts: dict[str, Any] = state["facts"]
            return facts

    def release(self) -> None:
        """No longer be a user; the last one stops the part and removes its folder."""
        with locked(self._lock):
            state = self._read()
            me = [os.getpid(), start_time(os.getpid())]
            if me in state["users"]:
                state["users"].remove(me)
            if state["users"]:
                self._write(state)
            else:
                self._stop()
                shutil.rmtree(self.folder, ignore_errors=True)

    def _read(self) -> dict[str, Any]:
        try:
            state = json.loads(self._users.read_text(encoding="utf-8"))
            alive = [user for user in state["users"] if start_time(user[0]) == user[1]]
            return {"users": alive, "facts": state["facts"]}
        except (OSError, ValueError, KeyError, TypeError):
            return {"users": [], "facts": {}}

    def _write(self, state: dict[str, Any]) -> None:
        part = self._users.with_suffix(".part")
        part.write_text(json.dumps(state), encoding="utf-8")
        part.rename(self._users)
