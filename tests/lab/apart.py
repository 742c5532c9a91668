"""Runs a file of tests on a network, process tree and /run of its own: its lab hosts are new, and nobody else's.

The hosts' addresses and names are fixed, so tests that want hosts on which nothing was ever done cannot share the lab.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

from tests.lab.daemons import cache_folder, program, wait_until
from tests.lab.engine import Engine
from tests.lab.hosts import FOLDER, LabHosts

INSIDE = 'mount -t tmpfs -o mode=755 run /run && mkdir -p /run/lock && ip link set lo up && exec "$@"'
CONTROL_GROUP, WHEELS = "CODEB_LAB_CONTROL_GROUP", "CODEB_LAB_WHEELS"
CHECKOUT = Path(__file__).resolve().parents[2]


class NewHosts(LabHosts):
    """Five hosts as they come from the factory. With the process that made them they are gone."""

    def start_engine(self, host: str) -> str:
        """See `LabHosts.start_engine`; its containers do not meet those of the shared lab's hosts."""
        engine = Engine(f"unix://{self.root(host)}/run/docker.sock", "")
        if not engine.answers():
            group = f"/{os.environ[CONTROL_GROUP]}-{host}"
            self.exec(
                host, "sh", "-c", "setsid dockerd --cgroup-parent $0 >>/var/log/dockerd.log 2>&1 </dev/null &", group
            )
            log = self.root(host) / "var/log/dockerd.log"
            wait_until(engine.answers, 30, f"the engine of {host} does not come up", log=log)
        return engine.host.removeprefix("unix://")


def new_hosts() -> NewHosts:
    """Start them; only in a process that `run_apart` started."""
    if CONTROL_GROUP not in os.environ:
        raise RuntimeError("these tests have a lab of their own: run test_walk.py, which starts them")
    FOLDER.mkdir(mode=0o700, parents=True)
    lab = NewHosts()
    lab.start()
    return lab


def run_apart(file: str, *, seconds: float) -> tuple[int, str]:
    """Run the tests in a file below `tests/`; answers pytest's exit status and all that was printed."""
    group = f"codeb-apart-{os.getpid()}"
    left_out = ("PYTEST_", "CODEB_LAB_STATE")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
    spaces = [program("unshare", part="hosts", package="util-linux"), "--net", "--mount", "--ipc", "--pid", "--fork"]
    tests = [sys.executable, "-m", "pytest", "-q", "-x", "-rA", "-p", "no:cacheprovider", "-p", "no:xdist", file]
    environ |= {CONTROL_GROUP: group, WHEELS: str(_build_tools())}
    process = subprocess.Popen(
        [*spaces, "--mount-proc", "--kill-child", "sh", "-c", INSIDE, "apart", *tests],
        cwd=CHECKOUT, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, errors="replace",
    )  # fmt: skip
    try:
        said, _ = process.communicate(timeout=seconds)
        return process.returncode, said
    except subprocess.TimeoutExpired:
        process.kill()
        said, _ = process.communicate(timeout=30)
        return -1, f"{said}\nnot done after {seconds:g} s"
    finally:
        process.kill()
        _remove_control_groups(group)


def _build_tools() -> Path:
    """What pip needs to build this package, and what only an older Python needs, fetched once: inside there is no index."""
    folder = cache_folder() / "build-tools"
    if not all(list(folder.glob(f"{name}-*.whl")) for name in ("setuptools", "async_timeout")):
        words = ["download", "-q", "--no-deps", "--dest", str(folder), "setuptools>=77", "async-timeout>=4.0.3"]
        subprocess.run([sys.executable, "-m", "pip", *words], timeout=120, check=True)
    return folder


def _remove_control_groups(prefix: str) -> None:
    for top in [*Path("/sys/fs/cgroup").glob(f"*/{prefix}-*"), *Path("/sys/fs/cgroup").glob(f"{prefix}-*")]:
        for path, _, _ in os.walk(top, topdown=False):
            with contextlib.suppress(OSError):  # a process of it is still on its way out
                os.rmdir(path)
