"""Five servers on one machine: own network, processes, mounts, host name and disk, own sshd with the machine's programs.

| host | from the test process | among the hosts |
|---|---|---|
| app | 127.0.0.11, every port | 198.51.100.11, `app.codeb.test` |
| streaming | 127.0.0.12 | 198.51.100.12, `ws.codeb.test` |
| storage | 127.0.0.13 | 198.51.100.13, `db.codeb.test` |
| backup | 127.0.0.14 | 198.51.100.14, `backup.codeb.test` |
| spare | 127.0.0.15 | 198.51.100.15, `spare.codeb.test` |

All test processes of the machine share one lab: the first one starts it, the last one takes it away, leftovers of runs
that died are removed at the next start. A test that breaks a host takes it for itself: `with lab.alone("spare")`.
`root` logs in with everything, `codeb` (shell `/bin/sh`, group `docker`) with `restrict,port-forwarding`.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.lab import host_network
from tests.lab.daemons import LabError, Shared, locked, program, start_time, wait_until
from tests.lab.engine import Engine
from tests.lab.host_disk import make_disk, remove_disk, tree_hash

NUMBERS = {"app": 11, "streaming": 12, "storage": 13, "backup": 14, "spare": 15}
PACKAGES = {
    "sshd": "openssh-server",
    "ssh-keygen": "openssh-client",
    "rsync": "rsync",
    "tini": "tini",
    "iptables": "iptables",
    "ip": "iproute2",
    "nsenter": "util-linux",
}
FOLDER = Path("/run/codeb-lab-hosts")
"""Fixed, because the addresses are: whoever wants the lab on this machine meets here."""
EXEC_SECONDS = 60.0


class LabHosts:
    """The running lab."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self.folder = folder

    @property
    def key_file(self) -> str:
        """The private key that may log in as root and as codeb, on all hosts."""
        return str(self.folder / "id_ed25519")

    def address(self, host: str) -> str:
        """Where the test process reaches it."""
        return f"127.0.0.{NUMBERS[host]}"

    def inner_address(self, host: str) -> str:
        """Where the other hosts reach it."""
        return f"{host_network.NETWORK}.{NUMBERS[host]}"

    def host_key(self, host: str) -> str:
        """Its public host key as `type base64`."""
        words = (self.folder / host / "host_key.pub").read_text(encoding="utf-8").split()
        return " ".join(words[:2])

    def pid(self, host: str) -> int | None:
        """The host's first process as the machine numbers it; None while the power is off."""
        try:
            pid, born = map(int, (self.folder / host / "pid").read_text(encoding="utf-8").split())
        except (OSError, ValueError):
            return None
        return pid if start_time(pid) == born else None

    def root(self, host: str) -> Path:
        """The running host's root folder as the machine sees it."""
        return Path(f"/proc/{self._running(host)}/root")

    def exec(
        self, host: str, *argv: str, stdin: bytes = b"", check: bool = True, seconds: float = EXEC_SECONDS
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command in a host as root without SSH, for set-up and assertions; LabError for a status other than 0."""
        command = ["nsenter", "-t", str(self._running(host)), "-m", "-u", "-i", "-n", "-p", "-r", "-w", "--", *argv]
        environ = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
        done = subprocess.run(command, input=stdin, capture_output=True, timeout=seconds, check=False, env=environ)
        if check and done.returncode:
            said = (done.stderr or done.stdout).decode(errors="replace").strip()[-500:]
            raise LabError(f"{host}: {shlex.join(argv)} -> {done.returncode}: {said}")
        return done

    def kill(self, host: str) -> None:
        """Power loss: all processes are gone at once, the disk stays."""
        pid = self.pid(host)
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: self.pid(host) is None, 10, f"{host} survived its power loss")

    def boot(self, host: str, *, wait: bool = True) -> None:
        """Power on: only sshd comes up."""
        if self.pid(host) is None:
            folder = self.folder / host
            with (folder / "log").open("ab") as log:
                done = subprocess.run(
                    [sys.executable, "-ISE", str(Path(__file__).with_name("host_init.py")), str(folder / "spec.json")],
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=20, check=False,
                )  # fmt: skip
            if done.returncode:
                raise LabError(f"{host} does not boot: {(folder / 'log').read_text(encoding='utf-8')[-1000:]}")
        if wait:
            self.wait_ready(host)

    def wait_ready(self, host: str) -> None:
        """Wait until its sshd answers."""
        wait_until(lambda: self._answers(host), 20, f"{host} does not come up", log=self.folder / host / "log")

    def cut(self, host: str) -> None:
        """Pull the network cable."""
        host_network.set_cable(NUMBERS[host], plugged=False)

    def heal(self, host: str) -> None:
        """Plug the network cable."""
        host_network.set_cable(NUMBERS[host], plugged=True)

    def drop(self, host: str, port: int = 22, *, direction: str = "in", reset: bool = False) -> None:
        """A firewall in the host: what comes `in` to the port, or goes `out` from it, vanishes; `reset` answers instead."""
        chain, side = ("INPUT", "--dport") if direction == "in" else ("OUTPUT", "--sport")
        target = ["-j", "REJECT", "--reject-with", "tcp-reset"] if reset else ["-j", "DROP"]
        host_network.inside(host, "iptables", "-w", "10", "-A", chain, "-p", "tcp", side, str(port), *target)

    def undrop(self, host: str) -> None:
        """No firewall rule any more."""
        for chain in ("INPUT", "OUTPUT"):
            host_network.inside(host, "iptables", "-w", "10", "-F", chain)

    def slow(self, host: str, *, megabits: float) -> None:
        """A slow line out of the host."""
        self.fast(host)
        words = f"rate {int(megabits * 1000)}kbit burst 16kb latency 400ms".split()
        host_network.inside(host, "tc", "qdisc", "add", "dev", "eth0", "root", "tbf", *words)

    def fast(self, host: str) -> None:
        """The line as it was."""
        host_network.inside(host, "tc", "qdisc", "del", "dev", "eth0", "root", check=False)

    def tree_hash(self, host: str) -> str:
        """A hash of all that the host ever wrote to its disk (not `/tmp`, `/run`, `/var/log`): names, kinds, modes, owners,
        contents, links. Equal before and after means: nothing was changed."""
        return tree_hash(self.folder / host / "disk")

    @contextlib.contextmanager
    def alone(self, host: str, *, seconds: float = 900.0) -> Iterator[str]:
        """Have a host for oneself, waiting for the others; afterwards it is whole again, with what was written on it."""
        with self._hold(host, fcntl.LOCK_EX, seconds):
            try:
                yield host
            finally:
                self._mend(host)

    @contextlib.contextmanager
    def using(self, host: str, *, seconds: float = 900.0) -> Iterator[str]:
        """Use a host beside others: nobody breaks it meanwhile."""
        with self._hold(host, fcntl.LOCK_SH, seconds):
            yield host

    def start_engine(self, host: str) -> str:
        """Have a container engine of the host's own running; answers the socket's path as the machine sees it."""
        engine = Engine(f"unix://{self.root(host)}/run/docker.sock", "")
        with locked(self.folder / f"{host}-engine.lock"):
            if not engine.answers():
                words = "setsid dockerd --cgroup-parent /cbh-$0 >>/var/log/dockerd.log 2>&1 </dev/null &"
                self.exec(host, "sh", "-c", words, host)
                log = self.root(host) / "var/log/dockerd.log"
                wait_until(engine.answers, 30, f"the engine of {host} does not come up", log=log)
        return engine.host.removeprefix("unix://")

    def start(self) -> dict[str, Any]:
        """Make and boot all hosts; leftovers are gone by then."""
        for name, package in PACKAGES.items():
            program(name, part="hosts", package=package)
        if os.geteuid() != 0:
            raise LabError("lab hosts need root: leave these tests out with CODEB_TEST_WITHOUT=hosts")
        _keygen(Path(self.key_file), "lab")
        host_network.plug(NUMBERS)
        public = Path(f"{self.key_file}.pub").read_text(encoding="utf-8").strip()
        for host, number in NUMBERS.items():
            make_disk(self.folder / host, host, public, {name: self.inner_address(name) for name in NUMBERS})
            self._write_spec(host, number)
            self.boot(host, wait=False)
        for host in NUMBERS:
            self.wait_ready(host)
        return {"code": code_version()}

    def stop(self) -> None:
        """Take everything away. Harmless when it is not there."""
        for host in NUMBERS:
            self.kill(host)
        if shutil.which("ip") and shutil.which("iptables", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"):
            host_network.unplug(NUMBERS)
        for host in NUMBERS:
            remove_disk(self.folder / host, host)
        for key in (self.key_file, f"{self.key_file}.pub"):
            Path(key).unlink(missing_ok=True)

    def _write_spec(self, host: str, number: int) -> None:
        folder = self.folder / host
        spec = {
            "name": host,
            "number": number,
            "network": f"/run/netns/{host_network.namespace(host)}",
            "pidfile": str(folder / "pid"),
            "root": str(folder / "root"),
            "disk": str(folder / "disk"),
            "own_folders": sorted(os.path.relpath(own, folder / "disk/own") for own in _own_folders(folder)),
        }
        (folder / "spec.json").write_text(json.dumps(spec), encoding="utf-8")

    def _running(self, host: str) -> int:
        pid = self.pid(host)
        if pid is None:
            raise LabError(f"{host} has no power")
        return pid

    def _answers(self, host: str) -> bool:
        try:
            with socket.create_connection((self.address(host), 22), timeout=1) as made:
                return made.recv(4) == b"SSH-"
        except OSError:
            return False

    def _mend(self, host: str) -> None:
        self.heal(host)
        self.undrop(host)
        self.fast(host)
        self.boot(host)

    @contextlib.contextmanager
    def _hold(self, host: str, kind: int, seconds: float) -> Iterator[None]:
        end_at = time.monotonic() + seconds
        with (self.folder / f"{host}.lock").open("ab") as file:
            while True:
                try:
                    fcntl.flock(file, kind | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > end_at:
                        raise LabError(f"{host} is held by another test for more than {seconds:g} s") from None
                    time.sleep(0.02)
            yield


def shared_hosts() -> tuple[LabHosts, Shared]:
    """The lab that all test processes of this machine share, and the hold on it, to be released."""
    lab = LabHosts()
    hold = Shared(lab.folder, start=lab.start, stop=lab.stop)
    facts = hold.acquire()
    if facts.get("code") != code_version():
        hold.release()
        raise LabError(
            "another test run on this machine uses lab hosts made by other code: wait until it has ended, "
            "or leave these tests out with CODEB_TEST_WITHOUT=hosts"
        )
    return lab, hold


def code_version() -> str:
    """A hash of the code that makes the lab: runs of two different ones must not share it."""
    digest = hashlib.sha256()
    for name in ("hosts.py", "host_init.py", "host_network.py", "host_disk.py"):
        digest.update(Path(__file__).with_name(name).read_bytes())
    return digest.hexdigest()


def _own_folders(folder: Path) -> list[Path]:
    return [Path(line) for line in (folder / "own.txt").read_text(encoding="utf-8").splitlines()]


def _keygen(path: Path, comment: str) -> None:
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path)],
        stdin=subprocess.DEVNULL, capture_output=True, timeout=20, check=True,
    )  # fmt: skip
