"""Runs a file of tests on a network, process tree and /run of its own: its lab hosts are new, and nobody else's.

The hosts' addresses and names are fixed, so tests that want hosts on which nothing was ever done cannot share the lab.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

from tests.lab.daemons import LabError, cache_folder, program, wait_until
from tests.lab.hosts import FOLDER, LabHosts

INSIDE = 'mount -t tmpfs -o mode=755 run /run && mkdir -p /run/lock && ip link set lo up && exec "$@"'
CONTROL_GROUP, WHEELS = "CODEB_LAB_CONTROL_GROUP", "CODEB_LAB_WHEELS"
CHECKOUT = Path(__file__).resolve().parents[2]


SYSTEMD = "/lib/systemd/systemd"
POWER_ON = r"""
set -e
group=$1; cd /sys/fs/cgroup
join() { mkdir -p "$1/$group"; for f in cpuset.cpus cpuset.mems; do [ ! -e "$1/$f" ] || cat "$1/$f" > "$1/$group/$f"; done
  echo $$ > "$1/$group/cgroup.procs"; }
if [ -e cgroup.controllers ]; then join .; else for one in */; do [ ! -e "$one/cgroup.procs" ] || join "${one%/}"; done; fi
cd /
exec setsid unshare --cgroup --pid --fork --mount --mount-proc --kill-child sh -c '
  set -e; top=/sys/fs/cgroup
  if [ -e $top/cgroup.controllers ]; then umount $top; mount -t cgroup2 none $top
  else names=$(cd $top; for one in */cgroup.procs; do echo "${one%/*}"; done); mount -t tmpfs none $top
    for one in $names; do mkdir $top/$one; case $one in
      systemd) mount -t cgroup -o none,name=systemd none $top/$one;; unified) mount -t cgroup2 none $top/$one;;
      *) mount -t cgroup -o $one none $top/$one;; esac; done; fi
  mount -t tmpfs -o mode=755 run /run; mkdir -p /run/lock
  exec env -i container=lab PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin '"$2"' --system' >/var/log/boot 2>&1 </dev/null &
"""
"""Starts systemd as the first process of a process tree of its own, with control groups of its own."""


MAKE_ROOM = r"""
cp -a /etc/ssh/sshd_config /run/kept; echo "Port 2022" >> /etc/ssh/sshd_config; kill -HUP $(pgrep -o -x sshd)
for i in $(seq 500); do ! bash -c ': </dev/tcp/127.0.0.1/2022' 2>/dev/null || break; sleep 0.01; done
cp -a /run/kept /etc/ssh/sshd_config
"""


class NewHosts(LabHosts):
    """Five hosts as they come from the factory, which `power_on` makes whole servers: systemd starts what is enabled. With
    the process that made them they are gone."""

    def __init__(self) -> None:
        super().__init__()
        self._first: dict[str, int] = {}

    def power_on(self, host: str) -> None:
        """Boot systemd. The sshd that every lab host has makes room for the server's own."""
        self.exec(host, "sh", "-c", MAKE_ROOM)
        self.exec(host, "sh", "-c", POWER_ON, "boot", f"{os.environ[CONTROL_GROUP]}-{host}", SYSTEMD)
        wait_until(lambda: self._found(host), 20, f"{host} has no systemd", log=self.root(host) / "var/log/boot")
        self.exec(host, "systemctl", "is-system-running", "--wait", check=False)
        failed = self.exec(host, "systemctl", "--failed", "--no-legend").stdout.decode()
        if failed:
            raise LabError(f"{host}: {failed}")
        self.wait_ready(host)

    def _found(self, host: str) -> bool:
        """Whether systemd is up, as its private socket shows."""
        names = os.readlink(f"/proc/{self.pid(host)}/ns/uts")
        for path in Path("/proc").glob("[0-9]*/comm"):
            with contextlib.suppress(OSError):
                there = path.read_text(encoding="utf-8") == "systemd\n" and os.readlink(path.parent / "ns/uts") == names
                if there and (path.parent / "root/run/systemd/private").exists():
                    self._first[host] = int(path.parent.name)
                    return True
        return False

    def kill(self, host: str) -> None:
        """See `LabHosts.kill`."""
        self._first.pop(host, None)
        super().kill(host)

    def _running(self, host: str) -> int:
        return self._first.get(host) or super()._running(host)

    def engine(self, host: str) -> str:
        """The socket of the host's engine as the machine sees it."""
        return f"{self.root(host)}/run/docker.sock"


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
