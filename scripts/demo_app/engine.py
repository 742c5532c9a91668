"""A container engine for the demo: one that answers, else a private one, installed by apt when it has to be."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.lab.engine import Engine, PrivateEngine

SOCKET = "/var/run/docker.sock"
INDEXES = range(100, 140)
"""Bridges and addresses that the tests' own engines do not use."""

APT_SECONDS = 600.0
START_SECONDS = 20.0


class DemoError(RuntimeError):
    """The demo cannot go on; the text is one sentence for the person who started it."""


def answering() -> Engine | None:
    """An engine of this machine that answers now."""
    given = os.environ.get("DOCKER_HOST")
    rootless = f"unix://{os.environ.get('XDG_RUNTIME_DIR', '/nowhere')}/docker.sock"
    for host in [given] if given else [f"unix://{SOCKET}", rootless]:
        if host.startswith("unix://") and (engine := Engine(host, "")).answers():
            return engine
    return None


def private(folder: Path, say: Callable[[str], None], claim: Callable[[PrivateEngine], None]) -> Engine:
    """An engine of our own below the folder; `claim` is told of it before it is started. Installs docker.io when needed;
    when that starts an engine, answers that one.

    Raises DemoError in one sentence when this machine or user cannot.
    """
    need_root()
    if shutil.which("dockerd", path=search_path()) is None or shutil.which("ip", path=search_path()) is None:
        say("installing docker.io with apt")
        install(["docker.io", "iptables", "iproute2"], folder)
        if (engine := started_by_install()) is not None:
            return engine
    if Path("/sys/class/net/docker0").exists():
        raise DemoError("a Docker Engine is installed here but does not answer: start it (systemctl start docker)")
    engine = PrivateEngine(folder / "engine", free_index())
    claim(engine)
    engine.start()
    return engine


def need_root() -> None:
    """Become root by sudo, or say what is missing. Does not return when it starts over as root."""
    if os.geteuid() == 0:
        return
    sudo = shutil.which("sudo")
    asks = sudo is not None and sys.stdin.isatty()
    if sudo is None or not (
        asks or subprocess.run([sudo, "-n", "true"], capture_output=True, check=False).returncode == 0
    ):
        raise DemoError("no Docker Engine answers, and without root or sudo none can be started")
    os.execv(sudo, [sudo, sys.executable, *sys.argv])  # noqa: S606 - the same script once more


def install(packages: Sequence[str], folder: Path) -> None:
    """Install packages with apt; raises DemoError when there is no apt or it fails."""
    apt = shutil.which("apt-get")
    if apt is None:
        raise DemoError("no Docker Engine answers, and there is no apt to install one: install Docker and repeat")
    log = folder / "apt.log"
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for words in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *packages]):
        with log.open("ab") as out:
            done = subprocess.run([apt, *words], stdout=out, stderr=out, env=env, timeout=APT_SECONDS, check=False)
        if done.returncode:
            last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
            raise DemoError(f"apt-get {words[0]} failed: {' '.join(last)}")


def started_by_install() -> Engine | None:
    """With systemd the package starts its engine: give it a moment."""
    if not Path("/run/systemd/system").exists():
        return None
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        if (engine := answering()) is not None:
            return engine
        time.sleep(0.2)
    return None


def free_index() -> int:
    """A number whose bridge nobody has."""
    for index in random.sample(INDEXES, len(INDEXES)):
        if not Path(f"/sys/class/net/cblab{index}").exists():
            return index
    raise DemoError("too many demos are running on this machine")


def search_path() -> str:
    """Where programs are, also those of root."""
    return os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/bin"
