"""What a check over many servers costs against one of them: 50 sshd processes on this machine, each as a server of its own.

    python -m tests.bench.fanout [--servers 50] [--rounds 9] [--role backup]

Needs root, because sshd does for logins. `server_check` is called as the faces call it, for one server and for the whole
inventory in turns: with connections that have to be made (cold), and with kept ones. The floor is the SSH library without us:
a login and one command, on one server and on all at once. Servers, client and commands share the cores of this machine.

The bound is for the cold check, which is what `codeb doctor` does. With kept connections nothing is left but processor time, so
that the ratio is that of the work to the cores, with the bare library as well; it is printed, and milliseconds tell more.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import asyncssh

from codeb_mcp.app import opened
from codeb_mcp.model.access import Principal, Role
from codeb_mcp.operations.context import Services
from codeb_mcp.operations.invoke import Call, invoke
from codeb_mcp.registry.store import update
from codeb_mcp.settings import Settings
from tests.lab.daemons import LabError, end, program, wait_until
from tests.lab.ports import FreePorts

BOUND = 5.0
COLD = "check, cold"
SEPARATION = Path("/run/sshd")
"""sshd's empty folder, without which it does not start; usually its unit makes it."""
CALLER = Principal("key_bench", "bench", "default", Role.OWNER, (), platform=True, via="bench")
# With this SHLVL bash leaves the account's own .bashrc out, which may do anything and belongs to no server.
CONFIG = """\
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host_key
PidFile {folder}/pid
AuthorizedKeysFile {authorized}
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
SetEnv SHLVL=2
Subsystem sftp internal-sftp
"""
Took = dict[str, list[float]]


@dataclass(frozen=True)
class Stub:
    """One sshd: its port, its public host key as `type base64` and its process."""

    key: str
    port: int
    host_key: str
    process: subprocess.Popen[bytes]


def main() -> None:
    """Measure and print; ends with 1 when the bound is not kept."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.fanout", description=__doc__)
    parser.add_argument("--servers", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--role", default="backup", choices=("application", "streaming", "database", "backup"))
    said = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="codeb-fanout-") as folder, stubs(Path(folder), said.servers) as servers:
        took = asyncio.run(measure(Path(folder), servers, said.rounds, said.role))
    sys.exit(0 if told(took, said.servers) else 1)


@contextlib.contextmanager
def stubs(folder: Path, count: int) -> Iterator[list[Stub]]:
    """That many sshd processes, all of which one key may log in to; gone afterwards, with what they started."""
    keygen(folder / "login")
    ports, made, servers = FreePorts(), not SEPARATION.exists(), list[Stub]()
    SEPARATION.mkdir(mode=0o755, exist_ok=True)
    try:
        for port in ports.take(count):
            servers.append(started(folder, f"s{len(servers):03}", port))
        for stub in servers:
            wait_until(partial(answers, stub), 20, f"{stub.key} does not come up", log=folder / stub.key / "log")
        yield servers
    finally:
        for stub in servers:
            stop(stub)
        ports.release()
        if made:
            with contextlib.suppress(OSError):
                SEPARATION.rmdir()


def started(above: Path, key: str, port: int) -> Stub:
    """One sshd with its own host key, configuration and log."""
    folder = above / key
    folder.mkdir()
    keygen(folder / "host_key")
    config = CONFIG.format(port=port, folder=folder, authorized=above / "login.pub")
    (folder / "config").write_text(config, encoding="utf-8")
    words = [program("sshd", part="hosts", package="openssh-server"), "-D", "-e", "-f", str(folder / "config")]
    with (folder / "log").open("ab") as log:
        # A session of its own, so that Ctrl-C reaches us first and we end it.
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    return Stub(key, port, " ".join((folder / "host_key.pub").read_text(encoding="utf-8").split()[:2]), process)


def answers(stub: Stub) -> bool:
    """Whether it greets; LabError when it has ended."""
    if stub.process.poll() is not None:
        raise LabError(f"{stub.key} ended with {stub.process.returncode}: see its log")
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", stub.port), timeout=1) as made:
        return made.recv(4) == b"SSH-"
    return False


def stop(stub: Stub) -> None:
    """End it: first the connections that it serves, which it would leave behind."""
    children = Path(f"/proc/{stub.process.pid}/task/{stub.process.pid}/children")
    with contextlib.suppress(OSError):
        for child in children.read_text(encoding="ascii").split():
            end(int(child), grace_seconds=2)
    stub.process.terminate()
    try:
        stub.process.wait(5)
    except subprocess.TimeoutExpired:
        stub.process.kill()
        stub.process.wait(5)


def keygen(path: Path) -> None:
    """A key pair without a passphrase."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True, timeout=20)


async def measure(folder: Path, servers: list[Stub], rounds: int, role: str) -> Took:
    """Seconds by what was done, in turns; the first round, which loads code, is not counted."""
    settings = Settings(root=folder / "codeb")
    settings.ssh_key.parent.mkdir(parents=True)
    shutil.copy(folder / "login", settings.ssh_key)
    entries = {stub.key: entry(stub, role) for stub in servers}
    async with opened(settings) as services:
        await update(services.store, "ssot", lambda doc: {**(doc or {}), "servers": entries})
    took: Took = {}
    for number in range(rounds + 1):
        for side, chosen in (("1", servers[:1]), ("all", servers)):
            times = await product(settings, chosen, whole=side == "all")
            times |= await bare(folder, chosen)
            for what, seconds in times.items():
                took.setdefault(f"{what}|{side}", [])
                if number:
                    took[f"{what}|{side}"].append(seconds)
    return took


def entry(stub: Stub, role: str) -> dict[str, Any]:
    """Its place in the inventory."""
    return {"host": "127.0.0.1", "port": stub.port, "user": "root", "role": role, "hostKey": stub.host_key}


async def product(settings: Settings, chosen: list[Stub], *, whole: bool) -> dict[str, float]:
    """A check with connections to make, and three more with kept ones (the median), both on wall and processor."""
    async with opened(settings) as services:
        used = time.process_time()
        cold = await timed(lambda: check(services, chosen, whole=whole))
        mine = time.process_time() - used
        kept = [await timed(lambda: check(services, chosen, whole=whole)) for _ in range(3)]
    return {COLD: cold, "check, kept connections": statistics.median(kept), "our processor time, cold": mine}


async def check(services: Services, chosen: list[Stub], *, whole: bool) -> None:
    """`server_check` of one server, or of all; LabError when a server could not be asked."""
    wanted = {} if whole else {"serverKey": chosen[0].key}
    body = (await invoke(services, Call("server_check", wanted, CALLER))).body
    logins = [one for one in body["checks"] if one["check"] == "login"]
    if len(logins) != len(chosen) or any(one["status"] != "ok" for one in logins):
        raise LabError(f"{len(chosen)} servers were to be checked: {[one for one in logins if one['status'] != 'ok']}")


async def bare(folder: Path, chosen: list[Stub]) -> dict[str, float]:
    """The library alone: login and one command on each, all at once; and one command over the connections that are there."""
    key = asyncssh.read_private_key(str(folder / "login"))
    links: list[asyncssh.SSHClientConnection] = []

    async def first(stub: Stub) -> None:
        pinned = asyncssh.import_public_key(stub.host_key)
        link = await asyncssh.connect(
            "127.0.0.1", stub.port, username="root", client_keys=[key], known_hosts=([pinned], [], []), config=None,
            agent_path=None, server_host_key_algs=["ssh-ed25519"], preferred_auth=["publickey"],
        )  # fmt: skip
        links.append(link)
        await link.run("true", check=True)

    async def login() -> None:
        await asyncio.gather(*(first(stub) for stub in chosen))

    async def again() -> None:
        await asyncio.gather(*(link.run("true", check=True) for link in links))

    try:
        return {"bare login and command": await timed(login), "bare command, kept": await timed(again)}
    finally:
        for link in links:
            link.close()
        await asyncio.gather(*(link.wait_closed() for link in links))


async def timed(call: Callable[[], Awaitable[None]]) -> float:
    """Seconds that it takes."""
    before = time.perf_counter()
    await call()
    return time.perf_counter() - before


def told(took: Took, count: int) -> bool:
    """Print the medians; whether the cold check keeps the bound."""
    kept = True
    print(f"{count} servers on {os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}")
    for what in dict.fromkeys(name.partition("|")[0] for name in took):
        one, every = (statistics.median(took[f"{what}|{side}"]) * 1000 for side in ("1", "all"))
        ratio = every / one
        print(f"{what:28} {one:8.1f} ms for 1 {every:9.1f} ms for {count}    ratio {ratio:6.2f}")
        kept = kept and not (what == COLD and ratio > BOUND)
    return kept


if __name__ == "__main__":
    main()
