"""A container engine of our own, next to whatever else runs on the machine.

It has its own socket, data, bridge and containerd, touches no firewall rule and is gone afterwards with all it made.
`CODEB_TEST_DOCKER_HOST` names an engine to use instead.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.lab.daemons import (
    LabError,
    Shared,
    end,
    launch,
    locked,
    program,
    read_pid,
    start_time,
    state_folder,
    wait_until,
)

if TYPE_CHECKING:
    import aiodocker

PART, PACKAGE = "docker", "docker.io"
SHARED_INDEX = 0
SPARE_INDEXES = range(1, 40)


class Engine:
    """A running container engine: `host` is its address as clients want it."""

    def __init__(self, host: str, bridge_address: str) -> None:
        self.host = host
        self.bridge_address = bridge_address

    def docker(self) -> aiodocker.Docker:
        """A client, to be used with `async with`."""
        import aiodocker

        return aiodocker.Docker(url=self.host)

    def call(self, method: str, path: str, body: Any = None, *, timeout_seconds: float = 30.0) -> Any:
        """One blocking API call with this JSON; answers the JSON (None for none) or raises LabError."""
        with contextlib.closing(_UnixConnection(self.host.removeprefix("unix://"), timeout_seconds)) as connection:
            payload = None if body is None else json.dumps(body).encode()
            headers = {"Host": "engine", "Content-Type": "application/json"}
            connection.request(method, path, body=payload, headers=headers)
            answer = connection.getresponse()
            said = answer.read()
        if answer.status >= 400:
            raise LabError(f"{method} {path} -> {answer.status} {said[:300]!r}")
        return json.loads(said) if said.startswith((b"{", b"[")) else None

    def answers(self) -> bool:
        """Whether it can be talked to now."""
        try:
            self.call("GET", "/_ping", timeout_seconds=2)
        except (OSError, LabError, http.client.HTTPException):
            return False
        return True

    def sweep(self, prefix: str = "") -> None:
        """Remove every container whose name starts with the prefix, killing what runs."""
        for entry in self.call("GET", "/containers/json?all=1"):
            if any(name.lstrip("/").startswith(prefix) for name in entry["Names"]):
                with contextlib.suppress(LabError):
                    self.call("DELETE", f"/containers/{entry['Id']}?force=1&v=1")


class PrivateEngine(Engine):
    """An engine that we start, stop, kill and start again; all it has lies in one folder.

    `index` makes its bridge (`cblabN`) and its addresses (10.217.N.0/24) its own.
    """

    def __init__(self, folder: Path, index: int) -> None:
        super().__init__(f"unix://{folder}/docker.sock", f"10.217.{index}.1")
        self.folder = folder
        self.index = index
        self.bridge = f"cblab{index}"

    @property
    def pid(self) -> int | None:
        """The daemon's process id while it lives."""
        return read_pid(self.folder / "docker.pid", "dockerd")

    @property
    def log(self) -> Path:
        """The daemon's log."""
        return self.folder / "dockerd.log"

    def start(self) -> None:
        """Have it answering; gets over what a killed daemon leaves behind."""
        if self.pid is None:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._clear_traps()
            self._make_bridge()
            # The machine's own /etc/docker/daemon.json is for another engine.
            (self.folder / "daemon.json").write_text("{}", encoding="utf-8")
            launch(self._argv(), pidfile=self.folder / "launch.pid", log=self.log)
        wait_until(self.answers, 30, "the engine did not answer", log=self.log)

    def kill(self) -> None:
        """Power loss of the daemon (SIGKILL); containers live on without it."""
        pid = self.pid
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
            wait_until(lambda: self.pid is None, 10, "the engine survived SIGKILL")

    def stop(self) -> None:
        """End it and take away containers, mounts, the bridge and the folder. Harmless when it is not there."""
        if self.pid is None and any((self.folder / "data/containers").glob("*")):
            self.start()  # only a daemon can end what a crashed one left running
        pid = self.pid
        if pid is not None:
            with contextlib.suppress(OSError, LabError, http.client.HTTPException):
                self.sweep()
            end(pid)
        _unmount_below(self.folder)
        _ip("link", "delete", self.bridge, check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _argv(self) -> list[str]:
        folder = self.folder
        return [
            program("dockerd", part=PART, package=PACKAGE),
            "--host", self.host, "--data-root", f"{folder}/data", "--exec-root", f"{folder}/exec",
            "--pidfile", f"{folder}/docker.pid", "--config-file", f"{folder}/daemon.json",
            "--bridge", self.bridge, "--default-address-pool", f"base=10.218.{self.index}.0/24,size=26",
            "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false",
            "--containerd-namespace", f"codeb-lab-{self.index}",
            "--containerd-plugins-namespace", f"codeb-lab-plugins-{self.index}",
        ]  # fmt: skip

    def _clear_traps(self) -> None:
        # A zombie's entry in /proc makes the daemon believe its old pid file, and a stale containerd.pid makes it
        # wait for a containerd that is not there until it gives up.
        (self.folder / "docker.pid").unlink(missing_ok=True)
        child = self.folder / "exec/containerd"
        if read_pid(child / "containerd.pid", "containerd") is None:
            for leftover in child.glob("containerd*.*"):
                if leftover.suffix in {".pid", ".sock", ".ttrpc"}:
                    leftover.unlink(missing_ok=True)

    def _make_bridge(self) -> None:
        # A daemon with a bridge of its own removes docker0, and with it the network of an engine that uses it.
        if Path("/sys/class/net/docker0").exists():
            raise LabError(
                "another engine uses docker0 on this machine and a private one would take it away: "
                "set CODEB_TEST_DOCKER_HOST (for instance unix:///var/run/docker.sock) to test with that one"
            )
        if not Path(f"/sys/class/net/{self.bridge}").exists():
            _ip("link", "add", self.bridge, "type", "bridge")
            _ip("address", "add", f"{self.bridge_address}/24", "dev", self.bridge)
        _ip("link", "set", self.bridge, "up")


def shared_engine() -> tuple[Engine, Shared | None]:
    """The engine that all test processes share and the hold on it, to be released; None for a given engine."""
    given = os.environ.get("CODEB_TEST_DOCKER_HOST")
    if given:
        engine = Engine(given, "")
        if not engine.answers():
            raise LabError(f"CODEB_TEST_DOCKER_HOST names an engine that does not answer: {given}")
        networks = engine.call("GET", "/networks/bridge")
        engine.bridge_address = networks["IPAM"]["Config"][0].get("Gateway", "")
        return engine, None
    _need_root()
    private = PrivateEngine(state_folder() / "engine", SHARED_INDEX)
    hold = Shared(private.folder, start=lambda: _started(private), stop=private.stop)
    hold.acquire()
    return private, hold


def spare_engine(*, start: bool = True) -> PrivateEngine:
    """An engine for one test alone, which may kill it; `stop()` it in the end. Without `start` the test starts it."""
    _need_root()
    with locked(state_folder() / "spare.lock"):
        for index in SPARE_INDEXES:
            engine = PrivateEngine(state_folder() / f"spare{index}", index)
            if _claim(engine):
                break
        else:
            raise LabError("all spare engines are in use")
    if start:
        engine.start()
    return engine


def _claim(engine: PrivateEngine) -> bool:
    owner = engine.folder / "owner"
    with contextlib.suppress(OSError, ValueError):
        pid, born = map(int, owner.read_text(encoding="utf-8").split())
        if start_time(pid) == born:
            return False
    engine.stop()
    engine.folder.mkdir(mode=0o700, parents=True)
    owner.write_text(_identity(), encoding="utf-8")
    return True


def _identity() -> str:
    return f"{os.getpid()} {start_time(os.getpid())}"


def _started(engine: PrivateEngine) -> dict[str, Any]:
    engine.start()
    return {"host": engine.host}


def _need_root() -> None:
    program("dockerd", part=PART, package=PACKAGE)
    program("ip", part=PART, package="iproute2")
    if os.geteuid() != 0:
        raise LabError(
            "a private engine needs root: run the tests with sudo, name an engine with CODEB_TEST_DOCKER_HOST, "
            "or leave these tests out with CODEB_TEST_WITHOUT=docker"
        )


def _ip(*words: str, check: bool = True) -> None:
    argv = [program("ip", part=PART, package="iproute2"), *words]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False)
    if check and done.returncode:
        raise LabError(f"ip {' '.join(words)}: {done.stderr.strip()}")


def _unmount_below(folder: Path) -> None:
    lines = Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()
    for target in reversed([line.split(" ")[1] for line in lines]):
        if target.startswith(f"{folder}/"):
            subprocess.run(["umount", "-l", target], capture_output=True, timeout=20, check=False)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout_seconds: float) -> None:
        super().__init__("engine", timeout=timeout_seconds)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)
