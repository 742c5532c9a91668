"""The lab's promises: shared parts are stopped once, nothing is skipped silently, ports are handed out once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.daemons import LabError, Shared, end, launch, program, start_time
from tests.lab.ports import FreePorts

ROOT = Path(__file__).parents[3]

USE = """
import sys, time
from pathlib import Path
from tests.lab.daemons import Shared
folder = Path(sys.argv[1])
def start(): (folder / "started").touch(); return {"by": "child"}
Shared(folder, start=start, stop=lambda: None).acquire()
print("holding", flush=True)
time.sleep(60)
"""

TAKE = """
import sys
from pathlib import Path
from tests.lab.ports import FreePorts
print(*[FreePorts(Path(sys.argv[1]))() for _ in range(20)], flush=True)
sys.stdin.read()
"""


def _shared(folder: Path, events: list[str]) -> Shared:
    def start() -> dict[str, str]:
        events.append("start")
        return {"by": "me"}

    return Shared(folder, start=start, stop=lambda: events.append("stop"))


def _child(script: str, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, str(folder)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def test_the_last_user_stops_a_shared_part(tmp_path: Path) -> None:
    events: list[str] = []
    one, two = _shared(tmp_path / "part", events), _shared(tmp_path / "part", events)
    assert one.acquire() == two.acquire() == {"by": "me"}
    one.release()
    assert events == ["stop", "start"]
    two.release()
    assert events == ["stop", "start", "stop"]


def test_a_part_whose_users_were_killed_is_stopped_before_it_is_started_again(tmp_path: Path) -> None:
    events: list[str] = []
    with _child(USE, tmp_path / "part") as child:
        assert child.stdout is not None
        assert child.stdout.readline().strip() == "holding"
        living = _shared(tmp_path / "part", events)
        assert living.acquire() == {"by": "child"}
        living.release()
        assert events == []
        child.send_signal(signal.SIGKILL)
    after = _shared(tmp_path / "part", events)
    assert after.acquire() == {"by": "me"}
    assert events == ["stop", "start"]
    after.release()


def test_processes_that_ask_at_once_get_different_ports(tmp_path: Path) -> None:
    children = [_child(TAKE, tmp_path) for _ in range(3)]
    taken: list[str] = []
    for child in children:
        assert child.stdout is not None
        taken += child.stdout.readline().split()
    for child in children:
        child.communicate(timeout=20)
    assert len(set(taken)) == len(taken) == 60


def test_ports_come_back_after_their_owner_is_gone(tmp_path: Path) -> None:
    with _child(TAKE, tmp_path) as child:
        child.communicate(timeout=20)
    ports = FreePorts(tmp_path)
    even, odd = ports.pair()
    assert (even % 2, odd) == (0, even + 1)
    ports.release()


def test_a_launched_process_is_nobodys_child_and_ends_when_told(tmp_path: Path) -> None:
    pid = launch(
        [program("sleep", part="docker", package="coreutils"), "60"], pidfile=tmp_path / "pid", log=tmp_path / "log"
    )
    assert start_time(pid) is not None
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    assert f"PPid:\t{os.getpid()}\n" not in status
    end(pid)
    assert start_time(pid) is None


def test_a_missing_program_names_package_and_way_out() -> None:
    with pytest.raises(LabError, match=r"apt-get install thing.*CODEB_TEST_WITHOUT=docker"):
        program("no-such-program-anywhere", part="docker", package="thing")


def test_left_out_parts_are_named_in_the_last_lines() -> None:
    done = _pytest("docker", "tests/contract/test_images.py")
    assert done.returncode == 0
    assert "NOT TESTED: docker (" in "\n".join(done.stdout.splitlines()[-3:])
    assert "NOT TESTED: docker (0 " not in done.stdout


def test_an_unknown_part_is_an_error() -> None:
    done = _pytest("dokcer", "tests/contract/test_images.py")
    assert done.returncode != 0
    assert "dokcer is no part" in done.stdout + done.stderr


def _pytest(without: str, file: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", file],
        cwd=ROOT, env={**os.environ, "CODEB_TEST_WITHOUT": without}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
