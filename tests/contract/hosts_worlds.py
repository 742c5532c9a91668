"""Servers to run the same contract on: this machine, and a lab host over SSH as root (bash) and as codeb (dash, restricted).

`look` and `do` are the view from outside: they do not use the code under test.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

from codeb_mcp.drivers.hosts import Host
from codeb_mcp.drivers.ssh import SshHosts, SshSettings
from codeb_mcp.model.server import Server
from tests.lab.hosts import LabHosts

HOST = "app"
SECONDS = 20.0


@dataclass(frozen=True)
class HostWorld:
    """A server under test, a folder of it that is the test's own, and a way to act there as root from outside."""

    host: Host
    hosts: SshHosts
    folder: str
    do: Callable[..., bytes]
    user: str

    def path(self, name: str) -> str:
        """A path in the own folder."""
        return f"{self.folder}/{name}"

    def content(self, name: str) -> bytes:
        """What is in a file, seen from outside."""
        return self.do("cat", "--", self.path(name))

    def names(self, under: str = "") -> list[str]:
        """All names in a folder, seen from outside."""
        found = self.do("find", self.path(under), "-mindepth", "1", "-maxdepth", "1", "-printf", "%f\\0")
        return sorted(os.fsdecode(name) for name in found.split(b"\0") if name)

    async def until(self, done: Callable[[], bool], what: str) -> None:
        """Wait for something outside, bounded."""
        async with asyncio.timeout(SECONDS):
            while not await asyncio.to_thread(done):
                await asyncio.sleep(0.01)
        assert done(), what

    def running(self, mark: str) -> bool:
        """Whether a process with that text in its command line is there."""
        found = self.do("pgrep", "-f", "--", mark.replace("[", "\\["), check=False)
        return bool(found.split())


def server_of(lab: LabHosts, host: str, user: str) -> Server:
    """The inventory entry of a lab host."""
    return Server.model_validate(
        {"host": lab.address(host), "role": "application", "user": user, "hostKey": lab.host_key(host)}
    )


@contextlib.asynccontextmanager
async def host_world(kind: str, unique: str, lab: LabHosts | None) -> AsyncIterator[HostWorld]:
    """The world of that kind; everything of it is gone afterwards."""
    if kind == "local":
        with tempfile.TemporaryDirectory(prefix="codeb-host-") as folder:
            hosts = SshHosts(SshSettings(sockets=folder))
            entry = Server.model_validate({"host": "127.0.0.1", "role": "application", "connection": "local"})
            Path(folder, "own").mkdir(mode=0o755)
            try:
                yield HostWorld(hosts.at("here", entry), hosts, f"{folder}/own", _do_here, "root")
            finally:
                await hosts.close()
        return
    assert lab is not None
    user = kind.removeprefix("ssh-")

    def do(*argv: str, check: bool = True, stdin: bytes = b"") -> bytes:
        return lab.exec(HOST, *argv, check=check, stdin=stdin).stdout

    with lab.using(HOST), tempfile.TemporaryDirectory(prefix="codeb-host-") as sockets:
        hosts = SshHosts(SshSettings(key_file=lab.key_file, sockets=sockets))
        folder = f"/srv/{unique}/own"
        do("install", "-d", "-m", "755", "-o", user, f"/srv/{unique}", folder)
        try:
            yield HostWorld(hosts.at(HOST, server_of(lab, HOST, user)), hosts, folder, do, user)
        finally:
            await hosts.close()
            assert os.listdir(sockets) == []
            do("sh", "-c", 'umount "$0"/own/* 2>/dev/null; rm -rf "$0"', f"/srv/{unique}")


def _do_here(*argv: str, check: bool = True, stdin: bytes = b"") -> bytes:
    program = shutil.which(argv[0])
    assert program is not None, argv[0]
    done = subprocess.run([program, *argv[1:]], input=stdin, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0 or not check, done.stderr
    return done.stdout
