"""`codeb ssh-key`: one key for ever, whoever asks at once, and its line opens a real sshd."""

from __future__ import annotations

import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from codeb_mcp.drivers.ssh_keygen import have_key
from codeb_mcp.model.errors import DriverRefused
from tests.faces.cli_world import CliWorld
from tests.lab.hosts import LabHosts

NO_KEY = {"CODEB_API_KEY": ""}


@pytest.fixture
def world(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> CliWorld:
    """The command line on a root of its own."""
    return CliWorld(tmp_path / "codeb", capsys)


def test_the_key_is_made_once_and_printed_each_time(world: CliWorld) -> None:
    first, path = world("ssh-key", environ=NO_KEY), world.root / "ssh" / "id_ed25519"
    assert first.code == 0
    assert first.out.startswith("restrict,port-forwarding ssh-ed25519 AAAA")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    before = {one: one.read_bytes() for one in path.parent.iterdir()}
    again = world("ssh-key", "--json", environ=NO_KEY)
    assert (again.json["made"], again.json["authorizedKey"]) == (False, first.out.strip())
    assert {one: one.read_bytes() for one in path.parent.iterdir()} == before


def test_many_at_once_get_the_same_key(tmp_path: Path) -> None:
    path = tmp_path / "ssh" / "key"
    with ThreadPoolExecutor(8) as pool:
        pairs = list(pool.map(lambda _: have_key(path), range(24)))
    assert len({pair.line for pair in pairs}) == 1
    assert sum(pair.made for pair in pairs) == 1
    assert sorted(one.name for one in path.parent.iterdir()) == ["key", "key.pub"]


@pytest.mark.parametrize("content", [b"", b"no key", b"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n"])
def test_what_stands_there_is_never_replaced(world: CliWorld, content: bytes) -> None:
    path = world.root / "ssh" / "id_ed25519"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    path.chmod(0o600)
    refused = world("ssh-key", environ=NO_KEY)
    assert refused.code == DriverRefused.exit_code
    assert "left alone" in refused.err
    assert path.read_bytes() == content


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    have_key(path)
    path.chmod(0o644)
    with pytest.raises(DriverRefused, match="by others"):
        have_key(path)


def test_the_line_opens_a_server(hosts: LabHosts, tmp_path: Path) -> None:
    pair = have_key(tmp_path / "key")
    with hosts.using("spare"):
        home = "/tmp/ssh-key-test"
        line = f"{pair.line}\n".encode()
        hosts.exec("spare", "sh", "-c", f"mkdir -p {home} && cat >> {home}/keys", stdin=line)
        hosts.exec(
            "spare",
            "sh",
            "-c",
            "cp /root/.ssh/authorized_keys /tmp/former; cat /tmp/ssh-key-test/keys >> /root/.ssh/authorized_keys",
        )
        try:
            known = tmp_path / "known"
            known.write_text(f"{hosts.address('spare')} {hosts.host_key('spare')}\n", encoding="utf-8")
            argv = ["ssh", "-i", str(pair.path), "-o", f"UserKnownHostsFile={known}", "-o", "BatchMode=yes"]
            argv += ["-o", "ConnectTimeout=10", f"root@{hosts.address('spare')}", "echo", "open"]
            done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False)
            assert (done.returncode, done.stdout) == (0, "open\n"), done.stderr
        finally:
            hosts.exec("spare", "sh", "-c", f"cp /tmp/former /root/.ssh/authorized_keys; rm -r {home} /tmp/former")
