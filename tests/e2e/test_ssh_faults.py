"""A server over SSH while the network, sshd or the server itself breaks. What was acked is there, and `inDoubt` is true to
its word: false means that nothing was done."""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from codeb_mcp.drivers.hosts import Host
from codeb_mcp.drivers.ssh import SshHosts, SshSettings
from codeb_mcp.model.errors import CodebError, DeadlineExceeded, DriverRefused, DriverUnavailable, HostKeyChanged
from codeb_mcp.model.server import Server, fingerprint
from tests.contract.hosts_worlds import server_of
from tests.lab.hosts import LabHosts

pytestmark = pytest.mark.real("hosts")

HOST = "spare"
LIMIT = 20.0
GONE = (DriverUnavailable, DeadlineExceeded)


@dataclass
class Faulty:
    """The spare host for one test alone, and short limits so that faults are noticed soon."""

    lab: LabHosts
    settings: SshSettings
    folder: str
    hosts: list[SshHosts] = field(default_factory=list)

    def host(self, *, user: str = "root", entry: Server | None = None, **settings: float) -> Host:
        """The server with a connection of its own."""
        self.hosts.append(SshHosts(replace(self.settings, **settings)))  # type: ignore[arg-type]
        return self.hosts[-1].at(HOST, entry or self.entry(user))

    def entry(self, user: str = "root") -> Server:
        """Its entry in the inventory."""
        return server_of(self.lab, HOST, user)

    def do(self, *argv: str, check: bool = True) -> bytes:
        """A command in the host, not over SSH."""
        return self.lab.exec(HOST, *argv, check=check).stdout

    def there(self, name: str) -> bytes | None:
        """What is in a file of the own folder, not over SSH."""
        path = Path(f"{self.lab.root(HOST)}{self.folder}/{name}")
        return path.read_bytes() if path.exists() else None

    def logins(self) -> int:
        """How often somebody logged in since the lab is up."""
        return (self.lab.folder / HOST / "log").read_bytes().count(b"Accepted publickey")

    def end_sessions(self, number: str = "KILL") -> None:
        """A signal to every sshd process that serves a connection; the listener stays."""
        self.do("pkill", f"-{number}", "-f", "^sshd: (root|codeb)", check=False)

    async def works(self, host: Host) -> None:
        """Wait until it does again, bounded: the connection may have to be given up first."""
        async with asyncio.timeout(LIMIT):
            while True:
                with contextlib.suppress(*GONE):
                    assert (await host.run(["echo", "here"], timeout_seconds=2)).stdout == b"here\n"
                    return

    async def until(self, done: Callable[[], object]) -> None:
        """Wait for something outside, bounded."""
        async with asyncio.timeout(LIMIT):
            while not await asyncio.to_thread(done):
                await asyncio.sleep(0.01)


@pytest.fixture
def alone(hosts: LabHosts) -> Iterator[None]:
    with hosts.alone(HOST):
        yield


@pytest.fixture
async def faulty(hosts: LabHosts, alone: None, unique: str) -> AsyncIterator[Faulty]:
    with tempfile.TemporaryDirectory(prefix="codeb-faults-") as sockets:
        settings = SshSettings(
            key_file=hosts.key_file, connect_seconds=2, file_seconds=2, keepalive_seconds=0.3, sockets=sockets
        )
        made = Faulty(hosts, settings, f"/srv/{unique}")
        made.do("install", "-d", "-m", "777", made.folder)
        try:
            yield made
        finally:
            async with asyncio.timeout(60):
                await asyncio.gather(*(each.close() for each in made.hosts))
            assert os.listdir(sockets) == []


CALLS: dict[str, Callable[[Host, str], Awaitable[object]]] = {
    "run": lambda host, folder: host.run(["touch", f"{folder}/ran"], timeout_seconds=2),
    "read": lambda host, folder: host.read(f"{folder}/file"),
    "write": lambda host, folder: host.write(f"{folder}/file", b"new"),
    "stat": lambda host, folder: host.stat(f"{folder}/file"),
    "list": lambda host, folder: host.list(folder),
    "make_folder": lambda host, folder: host.make_folder(f"{folder}/made"),
    "remove": lambda host, folder: host.remove(f"{folder}/file"),
}


@pytest.mark.parametrize("direction", ["in", "out"])
@pytest.mark.parametrize("name", CALLS)
async def test_a_call_over_a_dead_line_fails_in_time_and_works_when_the_line_is_back(
    faulty: Faulty, name: str, direction: str
) -> None:
    host = faulty.host()
    await host.write(f"{faulty.folder}/file", b"old")
    assert await host.stat(f"{faulty.folder}/file") is not None
    faulty.lab.drop(HOST, direction=direction)
    with pytest.raises(GONE) as failed:
        async with asyncio.timeout(LIMIT):
            await CALLS[name](host, faulty.folder)
    assert failed.value.detail["server"] == HOST
    assert failed.value.detail["inDoubt"] is False
    assert faulty.there("file") == b"old"
    assert faulty.there("ran") is None
    faulty.lab.undrop(HOST)
    await faulty.works(host)
    await CALLS[name](host, faulty.folder)


async def test_a_line_that_was_dead_between_two_calls_is_made_anew(faulty: Faulty) -> None:
    host = faulty.host()
    await CALLS["write"](host, faulty.folder)
    before = faulty.logins()
    faulty.lab.cut(HOST)
    await asyncio.to_thread(faulty.end_sessions)
    faulty.lab.heal(HOST)
    await faulty.works(host)
    assert await host.read(f"{faulty.folder}/file") == b"new"
    assert faulty.logins() == before + 1


@pytest.mark.parametrize("direction", ["in", "out"])
async def test_a_command_whose_line_dies_is_in_doubt_and_ends_on_the_server(
    faulty: Faulty, direction: str, unique: str
) -> None:
    mark = f"sleep 60.{int(unique[1:], 16)}"
    host = faulty.host()
    task = asyncio.create_task(host.run(["sh", "-c", f"touch {faulty.folder}/began; {mark}"], timeout_seconds=3))
    await faulty.until(lambda: faulty.there("began") is not None)
    faulty.lab.drop(HOST, direction=direction)
    with pytest.raises(GONE) as failed:
        async with asyncio.timeout(LIMIT):
            await task
    assert failed.value.detail["inDoubt"] is True
    await faulty.until(lambda: not faulty.do("pgrep", "-f", mark, check=False))


@pytest.mark.parametrize("fault", ["sessions", "power", "line in", "line out"])
async def test_a_write_is_whole_and_says_whether_it_may_have_happened(faulty: Faulty, fault: str) -> None:
    old, new = b"o" * 300_000, b"n" * 6_000_000
    seen = {"acked": 0, "doubt": 0, "not done": 0}
    for turn in range(24 if fault == "sessions" else 5):
        host = faulty.host(user="codeb")
        await faulty.works(host)
        await host.write(f"{faulty.folder}/file", old)
        task = asyncio.create_task(host.write(f"{faulty.folder}/file", new))
        await asyncio.sleep(0.008 * turn * (1 if fault == "sessions" else 4))  # another moment of it each time
        await asyncio.to_thread(_break, faulty, fault)
        error: CodebError | None = None
        try:
            async with asyncio.timeout(LIMIT):
                await task
        except CodebError as failed:
            error = failed
        _mend(faulty, fault)
        content = faulty.there("file")
        assert content in (old, new)
        if error is None:
            assert content == new
            seen["acked"] += 1
        else:
            assert isinstance(error, GONE)
            seen["doubt" if error.detail["inDoubt"] else "not done"] += 1
            assert error.detail["inDoubt"] or content == old
    print(fault, seen)


def _break(faulty: Faulty, fault: str) -> None:
    if fault == "sessions":
        faulty.end_sessions()
    elif fault == "power":
        faulty.lab.kill(HOST)
    else:
        faulty.lab.drop(HOST, direction=fault.split()[1])


def _mend(faulty: Faulty, fault: str) -> None:
    if fault.startswith("line"):
        faulty.lab.undrop(HOST)
    faulty.lab.boot(HOST)


async def test_sshd_that_dies_in_mid_call_is_reached_again(faulty: Faulty) -> None:
    host = faulty.host()
    task = asyncio.create_task(host.run(["sh", "-c", f"touch {faulty.folder}/began; sleep 60"]))
    await faulty.until(lambda: faulty.there("began") is not None)
    faulty.lab.kill(HOST)
    with pytest.raises(DriverUnavailable) as failed:
        async with asyncio.timeout(LIMIT):
            await task
    assert failed.value.detail["inDoubt"] is True
    with pytest.raises(DriverUnavailable) as failed:
        await host.run(["true"])
    assert failed.value.detail["inDoubt"] is False
    faulty.lab.boot(HOST)
    await faulty.works(host)


async def test_sshd_that_hangs_after_the_login_costs_the_call_its_deadline_only(faulty: Faulty) -> None:
    host = faulty.host()
    await faulty.works(host)
    await host.stat("/")
    faulty.end_sessions("STOP")
    async with asyncio.timeout(LIMIT):
        failed = await asyncio.gather(
            host.run(["true"], timeout_seconds=0.5), host.stat("/"), host.write(f"{faulty.folder}/file", b"x"),
            return_exceptions=True,
        )  # fmt: skip
    assert [isinstance(error, GONE) for error in failed] == [True] * 3
    assert faulty.there("file") is None
    faulty.end_sessions("CONT")
    await faulty.works(host)


@pytest.mark.parametrize("greeting", [b"", b"SSH-2.0-Hangs\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\x00" * 9000])
async def test_somebody_who_accepts_and_is_no_sshd_costs_the_deadline_only(faulty: Faulty, greeting: bytes) -> None:
    calls = 0

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal calls
        calls += 1
        writer.write(greeting)
        with contextlib.suppress(OSError):
            await reader.read()
            await reader.read()
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    host = faulty.host(entry=faulty.entry().model_copy(update={"host": "127.0.0.1", "port": port}), connect_seconds=0.5)
    for call in (
        host.run(["true"]),
        host.stat("/"),
        host.socket("/run/docker.sock"),
        faulty.hosts[-1].host_keys("127.0.0.1", port),
    ):
        with pytest.raises(GONE) as failed:
            async with asyncio.timeout(LIMIT):
                await call
        assert failed.value.detail["inDoubt"] is False
    assert calls >= 4
    server.close()


async def test_nobody_there_is_unavailable(faulty: Faulty) -> None:
    host = faulty.host(entry=faulty.entry().model_copy(update={"port": 9}))
    with pytest.raises(DriverUnavailable):
        await host.run(["true"])
    with pytest.raises(DriverUnavailable):
        await faulty.hosts[-1].host_keys(faulty.lab.address(HOST), 9)
    faulty.lab.drop(HOST)
    with pytest.raises(DriverUnavailable):
        await faulty.host().run(["true"])


async def test_another_host_key_stops_everything_and_names_both(faulty: Faulty) -> None:
    before = (faulty.lab.folder / HOST / "log").stat().st_size
    accepted = faulty.lab.host_key("app")
    host = faulty.host(entry=faulty.entry().model_copy(update={"host_key": accepted}))
    for call in (host.run(["touch", f"{faulty.folder}/ran"]), host.read("/etc/passwd"), host.socket("/x")):
        with pytest.raises(HostKeyChanged) as changed:
            await call
        assert changed.value.detail["accepted"] == fingerprint(accepted)
        assert changed.value.detail["shown"] == fingerprint(faulty.lab.host_key(HOST))
        assert fingerprint(accepted) in changed.value.message
        assert fingerprint(faulty.lab.host_key(HOST)) in changed.value.message
    assert faulty.there("ran") is None
    with (faulty.lab.folder / HOST / "log").open("rb") as log:
        log.seek(before)
        said = log.read()
    assert b"root" not in said, "the user's name was sent"


@pytest.mark.parametrize("kind", ["rsa", "ecdsa", "ed25519"])
async def test_a_server_set_up_anew_is_another_one_whatever_kind_its_key_is(faulty: Faulty, kind: str) -> None:
    host = faulty.host()
    await faulty.works(host)
    key = "/etc/ssh/ssh_host_ed25519_key"
    faulty.do("cp", "-a", key, f"{key}.kept")
    try:
        faulty.do("sh", "-c", f'rm "$0"; ssh-keygen -q -t {kind} -N "" -f "$0"', key)
        shown = " ".join(faulty.do("cat", f"{key}.pub").decode().split()[:2])
        faulty.lab.kill(HOST)
        faulty.lab.boot(HOST)
        with pytest.raises(HostKeyChanged) as changed:
            await faulty.works(host)
        assert changed.value.detail["shown"] == fingerprint(shown)
        assert await faulty.hosts[-1].host_keys(faulty.lab.address(HOST), 22) == [shown]
        again = faulty.hosts[-1].at(HOST, faulty.entry().model_copy(update={"host_key": shown}))
        assert (await again.run(["true"])).ok
        with pytest.raises(DriverUnavailable):
            await host.run(["true"])
    finally:
        faulty.do("mv", f"{key}.kept", key)
        faulty.lab.kill(HOST)


async def test_without_a_host_key_nobody_is_even_called(faulty: Faulty) -> None:
    calls = 0

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal calls
        calls += 1
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    for key, reason in ((None, "host_key_missing"), ("ssh-ed25519 " + "A" * 68, "host_key_bad")):
        entry = faulty.entry().model_copy(update={"host": "127.0.0.1", "port": port, "host_key": key})
        with pytest.raises(DriverRefused) as refused:
            await faulty.host(entry=entry).run(["true"])
        assert refused.value.detail["reason"] == reason
        assert "hostKey" in refused.value.hint
    assert calls == 0
    server.close()


async def test_a_login_that_is_not_allowed_or_a_key_that_is_no_good_says_what_to_do(
    faulty: Faulty, tmp_path: Path
) -> None:
    with pytest.raises(DriverRefused, match="does not let nobody log in"):
        await faulty.host(user="nobody").run(["true"])
    broken, open_to_all = tmp_path / "broken", tmp_path / "open"
    broken.write_text("no key", encoding="utf-8")
    broken.chmod(0o600)
    open_to_all.write_bytes(Path(faulty.lab.key_file).read_bytes())
    open_to_all.chmod(0o644)
    for path in (tmp_path / "none", broken, open_to_all):
        hosts = SshHosts(replace(faulty.settings, key_file=str(path)))
        with pytest.raises(DriverRefused) as refused:
            await hosts.at(HOST, faulty.entry()).run(["true"])
        assert refused.value.detail["reason"] == "login_key"
        assert str(path) in refused.value.hint
        await hosts.close()


async def test_the_keys_of_an_agent_log_in(faulty: Faulty, tmp_path: Path) -> None:
    path = str(tmp_path / "agent.sock")
    agent = await asyncio.create_subprocess_exec("ssh-agent", "-D", "-a", path, stdout=asyncio.subprocess.DEVNULL)
    try:
        await faulty.until(lambda: os.path.exists(path))
        adding = await asyncio.create_subprocess_exec(
            "ssh-add", "-q", faulty.lab.key_file, env={**os.environ, "SSH_AUTH_SOCK": path}
        )
        assert await adding.wait() == 0
        hosts = SshHosts(replace(faulty.settings, key_file=str(tmp_path / "none"), agent=path))
        assert (await hosts.at(HOST, faulty.entry()).run(["true"])).ok
        await hosts.close()
    finally:
        agent.terminate()
        await agent.wait()


async def test_the_operators_own_ssh_settings_are_not_read(
    faulty: Faulty, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ".ssh"
    folder.mkdir(mode=0o700)
    canary = tmp_path / "canary"
    (folder / "config").write_text(f"Host *\n  ProxyCommand touch {canary}\n  User nobody\n", encoding="utf-8")
    address = faulty.lab.address(HOST)
    (folder / "known_hosts").write_text(f"{address} {faulty.lab.host_key('app')}\n", encoding="utf-8")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "no-agent"))
    assert (await faulty.host().run(["id", "-un"])).stdout == b"root\n"
    assert not canary.exists()


async def test_first_users_at_once_share_one_login(faulty: Faulty) -> None:
    before, host = faulty.logins(), faulty.host()
    impatient = asyncio.create_task(host.run(["true"]))
    calls = [host.run(["true"]), host.stat("/"), host.socket("127.0.0.1:22"), host.list("/")]
    waiting = asyncio.gather(*calls, *(host.run(["true"]) for _ in range(50)))
    await asyncio.sleep(0)
    impatient.cancel()
    await waiting
    assert faulty.logins() == before + 1


async def test_a_slow_line_is_slow_and_nothing_else(faulty: Faulty) -> None:
    host = faulty.host(file_seconds=60, keepalive_seconds=5)
    data = os.urandom(700_000)
    await host.write(f"{faulty.folder}/file", data)
    faulty.lab.slow(HOST, megabits=4)
    reading = asyncio.create_task(host.read(f"{faulty.folder}/file"))
    small = await asyncio.gather(*(host.run(["echo", str(n)], timeout_seconds=60) for n in range(20)))
    assert [done.stdout for done in small] == [b"%d\n" % n for n in range(20)]
    assert await reading == data


async def test_a_socket_is_made_again_at_the_same_place_after_a_reconnect(faulty: Faulty) -> None:
    host = faulty.host()
    path = await host.socket("127.0.0.1:22")
    await _greeted(path)
    faulty.end_sessions()
    await faulty.works(host)
    assert await host.socket("127.0.0.1:22") == path
    await _greeted(path)


async def test_a_changed_entry_of_the_inventory_drops_the_former_connection(faulty: Faulty) -> None:
    host = faulty.host()
    task = asyncio.create_task(host.run(["sh", "-c", f"touch {faulty.folder}/began; sleep 60"], timeout_seconds=60))
    await faulty.until(lambda: faulty.there("began") is not None)
    assert faulty.hosts[-1].at(HOST, faulty.entry()) is host
    other = faulty.hosts[-1].at(HOST, faulty.entry("codeb"))
    for call in (task, host.run(["true"])):
        with pytest.raises(DriverUnavailable):
            async with asyncio.timeout(LIMIT):
                await call
    assert (await other.run(["id", "-un"])).stdout == b"codeb\n"


async def test_closing_takes_sockets_and_waiting_calls_away(faulty: Faulty) -> None:
    host = faulty.host()
    path = await host.socket("127.0.0.1:22")
    task = asyncio.create_task(host.run(["sh", "-c", f"touch {faulty.folder}/began; sleep 60"], timeout_seconds=60))
    await faulty.until(lambda: faulty.there("began") is not None)
    async with asyncio.timeout(LIMIT):
        await faulty.hosts[-1].close()
    with pytest.raises(DriverUnavailable) as failed:
        await task
    assert failed.value.detail["inDoubt"] is True
    assert not os.path.exists(path)
    assert not os.path.exists(os.path.dirname(path))


async def test_more_sessions_than_the_server_gives_wait_for_their_turn(faulty: Faulty) -> None:
    faulty.do("sh", "-c", "echo MaxSessions 3 >> /etc/ssh/sshd_config; pkill -HUP -o sshd")
    try:
        await faulty.until(lambda: b"maxsessions 3" in faulty.do("sshd", "-T"))
        faulty.lab.wait_ready(HOST)
        host = faulty.host()
        await faulty.works(host)
        done = await asyncio.gather(*(host.run(["true"], timeout_seconds=60) for _ in range(60)), host.stat("/"))
        assert len(done) == 61
    finally:
        faulty.do("sh", "-c", "sed -i '/^MaxSessions/d' /etc/ssh/sshd_config; pkill -HUP -o sshd")


@pytest.mark.real("strace")
async def test_a_write_syncs_the_file_renames_it_and_syncs_the_folder(faulty: Faulty, unique: str) -> None:
    host = faulty.host()
    await host.stat("/")
    await _traced(faulty, "trace=openat,fchmod,write,fsync,rename,unlink")
    await host.write(f"{faulty.folder}/{unique}", b"content-of-it")
    faulty.do("pkill", "-INT", "-x", "strace")
    await faulty.until(lambda: not faulty.do("pgrep", "-x", "strace", check=False))
    steps = _steps((faulty.there("trace") or b"").decode(), unique, faulty.folder)
    assert steps == ["create exclusively", "mode", "content", "fsync", "rename", "open folder", "fsync"]


@pytest.mark.real("strace")
@pytest.mark.parametrize("moment", ["enter", "exit"])
async def test_a_write_whose_answer_is_lost_is_in_doubt(faulty: Faulty, moment: str) -> None:
    host = faulty.host()
    await host.write(f"{faulty.folder}/file", b"old")
    await _traced(faulty, f"inject=rename:delay_{moment}=3000000")
    task = asyncio.create_task(host.write(f"{faulty.folder}/file", b"new"))
    await faulty.until(lambda: b"rename(" in (faulty.there("trace") or b"") or faulty.there("file") == b"new")
    faulty.end_sessions()
    with pytest.raises(DriverUnavailable) as failed:
        async with asyncio.timeout(LIMIT):
            await task
    assert failed.value.detail["inDoubt"] is True
    assert "look before you repeat" in failed.value.hint
    assert faulty.there("file") in ((b"new",) if moment == "exit" else (b"old", b"new"))


async def _traced(faulty: Faulty, wish: str) -> None:
    """strace on the SFTP process of the one connection."""
    pid = faulty.do("pgrep", "-n", "-f", "internal-sftp").decode().strip()
    words = 'strace -f -o "$0/trace" -e "$2" -p "$1" >"$0/attached" 2>&1 </dev/null &'
    faulty.do("sh", "-c", words, faulty.folder, pid, wish)
    await faulty.until(lambda: b"attached" in (faulty.there("attached") or b""))


def _steps(trace: str, name: str, folder: str) -> list[str]:
    kinds = (
        (f'/.{name}.', "O_EXCL", "create exclusively"), ("fchmod(", "0600", "mode"), ("write(", "content-of-it", "content"),
        ("fsync(", "= 0", "fsync"), ("rename(", f'/{name}"', "rename"), (f'"{folder}"', "O_RDONLY", "open folder"),
    )  # fmt: skip
    found = ((line, kind) for line in trace.splitlines() for one, two, kind in kinds if one in line and two in line)
    return [kind for _, kind in found]


async def _greeted(path: str) -> None:
    async with asyncio.timeout(LIMIT):
        reader, writer = await asyncio.open_unix_connection(path)
        assert (await reader.read(4)) == b"SSH-"
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
