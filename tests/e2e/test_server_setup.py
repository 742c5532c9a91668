"""Set-up of a real host over SSH: a dry run changes nothing, a second time changes nothing, a cut line leaves whole steps."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from codeb_mcp.drivers.hosts import Host
from codeb_mcp.drivers.ssh import SshHosts, SshSettings
from codeb_mcp.model import server_setup as needs
from codeb_mcp.model.firewall import firewall
from codeb_mcp.model.server import Server, ServerRole
from codeb_mcp.operations import server_firewall, server_setup
from codeb_mcp.operations.servers import load_server
from codeb_mcp.registry.store import update
from tests.lab import units
from tests.lab.daemons import wait_until
from tests.lab.hosts import LabHosts
from tests.unit.operations.world import OWNER, World, initialised

MADE = (
    "/opt/codeb", "/opt/actions-runner", "/etc/centrifugo", "/etc/caddy/codeb.json", "/etc/docker/daemon.json",
    "/etc/logrotate.d/codeb", "/etc/codeb", "/var/log/codeb", "/etc/systemd/system",
)  # fmt: skip
AS_FRESH = r"""
nft delete table inet codeb 2>/dev/null
userdel -r runner 2>/dev/null
rm -rf "$@" /etc/docker/*.before-codeb /etc/docker/*.codeb-new /run/codeb-firewall*
mkdir -p /etc/docker /etc/caddy /etc/logrotate.d /etc/systemd/system
for unit in caddy docker; do systemctl -q enable $unit; done
"""


ADMIN = """
set -e
userdel -r codeb
useradd --create-home --shell /bin/sh --password '*' admin
install -d -o admin -g admin -m 700 /home/admin/.ssh
cat > /home/admin/.ssh/authorized_keys
sed -i 's/^restrict,port-forwarding //' /home/admin/.ssh/authorized_keys
chown admin: /home/admin/.ssh/authorized_keys
chmod 600 /home/admin/.ssh/authorized_keys
echo 'admin ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/admin
"""
"""Somebody who may do everything by sudo, and nobody called codeb."""
APT = """
set -e
top=/srv/apt; mkdir -p $top/pkg/DEBIAN $top/pkg/usr/bin
printf 'Package: %s\\nVersion: 1.0\\nArchitecture: all\\nMaintainer: lab <lab@codeb.test>\\nDescription: greets\\n' "$1" \\
  > $top/pkg/DEBIAN/control
printf '#!/bin/sh\\necho good morning\\n' > "$top/pkg/usr/bin/$1"; chmod 755 "$top/pkg/usr/bin/$1"
dpkg-deb --root-owner-group -b $top/pkg $top/it.deb >/dev/null
{ cat $top/pkg/DEBIAN/control
  printf 'Filename: ./it.deb\\nSize: %s\\nSHA256: %s\\n' "$(stat -c %s $top/it.deb)" "$(sha256sum < $top/it.deb | cut -d' ' -f1)"
} > $top/Packages
rm -f /etc/apt/sources.list.d/*
echo "deb [trusted=yes] file:$top ./" > /etc/apt/sources.list.d/lab.list
"""
"""A package of Debian's kind in an archive on the host's own disk, since hosts have no way to another one."""


class Cutting:
    """Implements `Hosts`; the cable of one host is pulled when the call of this number begins."""

    def __init__(self, lab: LabHosts, name: str, real: SshHosts) -> None:
        self.lab, self.name, self.real = lab, name, real
        self.at_call: int | None = None
        self.after = False
        self.calls = 0

    def at(self, key: str, server: Server) -> Host:
        return _Cut(self, self.real.at(key, server))  # type: ignore[return-value]

    async def host_keys(self, address: str, port: int) -> list[str]:
        return await self.real.host_keys(address, port)

    async def close(self) -> None:
        await self.real.close()


class _Cut:
    """A host whose applying calls are counted."""

    def __init__(self, owner: Cutting, host: Host) -> None:
        self.owner, self.host = owner, host

    @property
    def key(self) -> str:
        return self.host.key

    async def run(self, argv: list[str], **more: Any) -> Any:
        if "apply" in argv[:6]:
            self.owner.calls += 1
            if self.owner.calls == self.owner.at_call:
                if self.owner.after:  # the work is done, the answer is lost
                    await self.host.run(argv, **more)
                self.owner.lab.cut(self.owner.name)
                return await self.host.run(["true"] if self.owner.after else argv, **more)
        return await self.host.run(argv, **more)


@pytest.fixture
def host(hosts: LabHosts) -> Iterator[str]:
    """A host of its own, without what set-up makes."""
    with hosts.alone("spare"):
        _empty(hosts)
        yield "spare"
        hosts.heal("spare")
        _empty(hosts)


def _empty(lab: LabHosts) -> None:
    lab.exec("spare", "sh", "-c", AS_FRESH, "x", *MADE, "/home/codeb/.ssh/setup-test")


@pytest.fixture
async def world(hosts: LabHosts, host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """An installation that knows the host, with what the lab's machine has for packages."""
    some = dict.fromkeys(needs.PACKAGES, ("openssh-server", "rsync"))
    monkeypatch.setattr(needs, "PACKAGES", some)
    made = await initialised(tmp_path / "codeb")
    settings = made.settings.model_copy(
        update={"ssh": made.settings.ssh.model_copy(update={"key_file": Path(hosts.key_file)})}
    )
    way = SshSettings(key_file=hosts.key_file, connect_seconds=3.0, keepalive_seconds=0.5)
    cutting = Cutting(hosts, host, SshHosts(way))
    drivers = replace(made.services.drivers, hosts=cutting)
    made.services = replace(made.services, settings=settings, drivers=drivers)
    made.services.runs.bind(made.services)
    yield made
    await cutting.close()
    await made.close()


async def known(world: World, hosts: LabHosts, role: str) -> dict[str, Any]:
    """The arguments of a set-up of the host in this role."""
    entry = {"host": hosts.address("spare"), "role": role, "hostKey": hosts.host_key("spare"), "user": "codeb"}
    stored = await world.services.store.get("ssot")
    assert stored is not None
    from codeb_mcp.registry.store import Change

    doc = {**stored.doc, "servers": {"spare": entry}}
    await world.services.store.commit([Change("ssot", doc, stored.version)])
    return {"serverKey": "spare", "loginUser": "root"}


@pytest.mark.parametrize("role", ["application", "streaming", "database", "backup"])
async def test_a_dry_run_changes_nothing_and_a_second_set_up_neither(world: World, hosts: LabHosts, role: str) -> None:
    setup = await known(world, hosts, role)
    if role == "application":
        hosts.exec(
            "spare", "sh", "-c", 'printf \'{"bip": "10.9.0.1/24", "live-restore": true}\' > /etc/docker/daemon.json'
        )
    empty = hosts.tree_hash("spare")
    plan = await world.call("server_setup", **setup)
    assert hosts.tree_hash("spare") == empty
    assert plan["changed"] is False
    first = await world.call("server_setup", dryRun=False, **setup)
    assert first["changed"] is True, first
    assert [row["name"] for row in plan["data"] if row["status"] == "change"] == [
        row["name"] for row in first["data"] if row["status"] == "changed"
    ]
    whole = hosts.tree_hash("spare")
    assert whole != empty
    again = await world.call("server_setup", dryRun=False, **setup)
    assert (again["changed"], {row["status"] for row in again["data"]}) == (False, {"right"})
    assert hosts.tree_hash("spare") == whole
    if role == "application":
        kept = hosts.exec("spare", "cat", "/etc/docker/daemon.json.before-codeb").stdout
        assert kept == b'{"bip": "10.9.0.1/24", "live-restore": true}'
        merged = hosts.exec("spare", "cat", "/etc/docker/daemon.json").stdout
        assert b'"bip": "10.9.0.1/24"' in merged
        assert b'"live-restore": false' in merged


@pytest.mark.parametrize("after", [False, True], ids=["before the effect", "after the effect"])
async def test_a_line_cut_at_each_step_leaves_whole_steps_and_the_same_call_goes_on(
    world: World, hosts: LabHosts, *, after: bool
) -> None:
    setup = await known(world, hosts, "application")
    cutting = world.services.drivers.hosts
    assert isinstance(cutting, Cutting)
    await world.call("server_setup", dryRun=False, **setup)
    _empty(hosts)
    first = await world.call("server_setup", dryRun=False, **setup)
    steps = [row["name"] for row in first["data"] if row["status"] == "changed"]
    whole, cutting.after = hosts.tree_hash("spare"), after
    for number, name in enumerate(steps, start=1):
        _empty(hosts)
        cutting.calls, cutting.at_call = 0, number
        refused = await world.refused("driver_unavailable", "server_setup", OWNER, dryRun=False, **setup)
        assert "spare" in refused.message
        assert [one["name"] for one in refused.detail["steps"] if one["status"] == "failed"] == [name]
        hosts.heal("spare")
        cutting.at_call = None
        plan = await world.call("server_setup", **setup)
        left = [row["name"] for row in plan["data"] if row["status"] == "change"]
        assert left == steps[number if after else number - 1 :], name
        assert (await world.call("server_setup", dryRun=False, **setup))["changed"] is bool(left)
        assert hosts.tree_hash("spare") == whole, name
    print(f"{len(steps)} steps cut {'after' if after else 'before'} their effect, 0 torn")


async def test_damaged_settings_of_the_engine_and_links_are_refused_and_left_alone(
    world: World, hosts: LabHosts
) -> None:
    setup = await known(world, hosts, "application")
    hosts.exec("spare", "sh", "-c", "printf '{' > /etc/docker/daemon.json")
    error = await world.refused("driver_refused", "server_setup", OWNER, dryRun=False, **setup)
    assert "/etc/docker/daemon.json" in error.message
    hosts.exec("spare", "sh", "-c", "rm /etc/docker/daemon.json; ln -s /etc/shadow /etc/logrotate.d/codeb")
    before = hosts.exec("spare", "sha256sum", "/etc/shadow").stdout
    error = await world.refused("driver_refused", "server_setup", OWNER, dryRun=False, **setup)
    assert "is a link" in error.message
    assert hosts.exec("spare", "sha256sum", "/etc/shadow").stdout == before


async def test_a_user_without_rights_is_told_what_is_missing(world: World, hosts: LabHosts) -> None:
    setup = await known(world, hosts, "backup")
    error = await world.refused("driver_refused", "server_setup", OWNER, serverKey=setup["serverKey"])
    assert "sudo" in error.message


async def test_a_user_who_may_sudo_sets_up_from_a_bare_host_and_apt_really_installs(
    world: World, hosts: LabHosts, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    setup = await known(world, hosts, "backup") | {"loginUser": "admin", "dryRun": False}
    name = "codeb-lab-greeting"
    kept = hosts.exec("spare", "cat", "/home/codeb/.ssh/authorized_keys").stdout
    accounts = ("passwd", "shadow", "group", "gshadow", "subuid", "subgid")
    keep = 'mkdir -p /srv/kept; for one; do cp -a "/etc/$one" /srv/kept/; done'
    hosts.exec("spare", "sh", "-c", keep, "x", *accounts)
    try:
        hosts.exec("spare", "sh", "-c", ADMIN, "x", stdin=kept)
        monkeypatch.setattr(needs, "PACKAGES", dict.fromkeys(needs.PACKAGES, (name,)))
        hosts.exec("spare", "sh", "-c", APT, "x", name, seconds=120)
        plan = await world.call("server_setup", **{**setup, "dryRun": True})
        assert {"packages", "user"} <= {row["name"] for row in plan["data"] if row["status"] == "change"}
        assert (await world.call("server_setup", **setup))["changed"] is True
        assert hosts.exec("spare", name).stdout == b"good morning\n"
        account = hosts.exec("spare", "getent", "passwd", "codeb").stdout.decode().strip().split(":")
        assert account[5:] == ["/home/codeb", "/bin/sh"]
        assert int(account[2]) >= 1000
        assert hosts.exec("spare", "passwd", "-S", "codeb").stdout.split()[1] == b"L", "nobody logs in with a password"
        assert hosts.exec("spare", "stat", "-c", "%U %a", "/home/codeb/.ssh/authorized_keys").stdout == b"codeb 600\n"
        whole = hosts.tree_hash("spare")
        again = await world.call("server_setup", **setup)
        assert {row["status"] for row in again["data"]} == {"right"}
        assert hosts.tree_hash("spare") == whole
        there = await load_server(world.services.store, "spare")
        login = await world.services.drivers.hosts.at("spare", there).run(["id", "-un"])
        assert login.stdout == b"codeb\n"
        hosts.exec("spare", "sh", "-c", "echo 'admin ALL=(ALL) NOPASSWD: /usr/bin/apt-get' > /etc/sudoers.d/admin")
        error = await world.refused("driver_refused", "server_setup", OWNER, **setup)
        assert "NOPASSWD" in error.hint
    finally:
        back = 'userdel -rf admin; userdel -rf codeb; for one; do cp -a "/srv/kept/$one" /etc/; done; rm -rf /srv/kept'
        hosts.exec("spare", "sh", "-c", back, "x", *accounts, check=False)
        home = "install -d -o codeb -g codeb -m 700 /home/codeb /home/codeb/.ssh; cd /home/codeb/.ssh; cat > authorized_keys"
        hosts.exec("spare", "sh", "-c", f"{home}; chown codeb: *; chmod 600 *", stdin=kept)
        hosts.exec(
            "spare",
            "sh",
            "-c",
            f"dpkg --purge {name}; rm -rf /srv/apt /etc/apt/sources.list.d/lab.list /etc/sudoers.d/admin",
            check=False,
        )


# ── the firewall ────────────────────────────────────────────────────────────────────────────────────────────────

OTHERS = "table inet other { chain input { type filter hook input priority 10; tcp dport 8081 drop; }; }"


def reaches(lab: LabHosts, port: int) -> bool:
    """Whether a stranger gets a connection."""
    try:
        socket.create_connection((lab.address("spare"), port), timeout=0.5).close()
    except OSError:
        return False
    return True


def rules(lab: LabHosts) -> str:
    """Ours, as the kernel has them."""
    return lab.exec("spare", "nft", "-s", "list", "table", "inet", "codeb", check=False).stdout.decode()


@pytest.fixture
def listening(hosts: LabHosts, host: str) -> Iterator[None]:
    """Somebody answers at 80 and 8080, and others have rules of their own."""
    ends = [
        hosts.exec(host, "sh", "-c", f"busybox httpd -f -p {port} -h /tmp >/dev/null 2>&1 & echo $!")
        for port in (80, 8080)
    ]
    hosts.exec(host, "nft", OTHERS)
    wait_until(lambda: reaches(hosts, 80) and reaches(hosts, 8080), 10, "nobody answers")
    yield
    hosts.exec(host, "sh", "-c", 'nft delete table inet other; nft delete table inet codeb; kill "$@"', "x",
               *(one.stdout.decode().strip() for one in ends), check=False)  # fmt: skip


@pytest.mark.usefixtures("listening")
async def test_the_firewall_is_only_printed_unless_it_is_asked_for(world: World, hosts: LabHosts) -> None:
    setup = await known(world, hosts, "application")
    said = await world.call("server_setup", dryRun=False, **setup)
    assert "tcp dport { 22, 80, 443 } accept" in said["firewall"]
    assert (rules(hosts), reaches(hosts, 8080)) == ("", True)
    plan = await world.call("server_setup", applyFirewall=True, **setup)
    assert [row["name"] for row in plan["data"] if row["status"] == "change"] == [
        "unit_firewall", "firewall", "enable_firewall",
    ]  # fmt: skip
    assert (rules(hosts), reaches(hosts, 8080)) == ("", True)


@pytest.mark.usefixtures("listening")
async def test_an_applied_firewall_closes_and_opens_what_it_says_and_outlives_a_reboot(
    world: World, hosts: LabHosts
) -> None:
    setup = await known(world, hosts, "application") | {"applyFirewall": True, "dryRun": False}
    assert (await world.call("server_setup", **setup))["changed"] is True
    assert {port: reaches(hosts, port) for port in (22, 80, 8080)} == {22: True, 80: True, 8080: False}
    assert "8081" in hosts.exec("spare", "nft", "list", "table", "inet", "other").stdout.decode()
    assert units.enabled(hosts, "spare", "codeb-firewall.service")
    whole, applied = hosts.tree_hash("spare"), rules(hosts)
    assert (await world.call("server_setup", **setup))["changed"] is False
    assert (hosts.tree_hash("spare"), rules(hosts)) == (whole, applied)
    hosts.exec("spare", "nft", "delete", "table", "inet", "codeb")
    units.start(hosts, "spare", "codeb-firewall.service")
    wait_until(lambda: rules(hosts) == applied, 10, "the rules are not there after a boot")
    hosts.exec("spare", "nft", "add", "rule", "inet", "codeb", "input", "tcp", "dport", "8080", "accept")
    assert reaches(hosts, 8080)
    assert (await world.call("server_setup", **setup))["changed"] is True
    assert (rules(hosts), reaches(hosts, 8080)) == (applied, False)


@pytest.mark.usefixtures("listening")
@pytest.mark.parametrize("former", [False, True], ids=["no rules before", "other rules before"])
async def test_rules_that_shut_us_out_are_taken_back_by_the_server_itself(
    world: World, hosts: LabHosts, monkeypatch: pytest.MonkeyPatch, *, former: bool
) -> None:
    setup = await known(world, hosts, "application") | {"applyFirewall": True, "dryRun": False}
    if former:
        await world.call("server_setup", **setup)
    before, file = rules(hosts), hosts.exec("spare", "sh", "-c", "cat /etc/codeb/firewall.nft || :").stdout

    async def shut(*_: Any, **__: Any) -> str:
        return firewall(ServerRole.BACKUP, [2222])

    monkeypatch.setattr(server_setup, "rules_for", shut)
    monkeypatch.setattr(server_setup, "BACK_SECONDS", 6)
    error = await world.refused("driver_unavailable", "server_setup", OWNER, **setup)
    assert [one["name"] for one in error.detail["steps"] if one["status"] == "failed"] == ["firewall"]
    assert "2222" in rules(hosts), "they were really there"
    assert not reaches(hosts, 22)
    wait_until(lambda: rules(hosts) == before, 15, "the former rules do not come back")
    assert reaches(hosts, 22)
    assert hosts.exec("spare", "sh", "-c", "cat /etc/codeb/firewall.nft || :").stdout == file


@pytest.mark.usefixtures("listening")
async def test_a_line_that_is_cut_before_the_rules_are_kept_ends_with_the_former_ones(
    world: World, hosts: LabHosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = await known(world, hosts, "application") | {"applyFirewall": True, "dryRun": False}
    await world.call("server_setup", **{**setup, "applyFirewall": False})
    real = server_firewall.require_way_in

    async def cut(*words: Any) -> None:
        await real(*words)
        hosts.cut("spare")

    monkeypatch.setattr(server_setup, "require_way_in", cut)
    monkeypatch.setattr(server_setup, "BACK_SECONDS", 6)
    await world.refused("driver_unavailable", "server_setup", OWNER, **setup)
    hosts.heal("spare")
    wait_until(lambda: rules(hosts) == "", 15, "the former rules do not come back")
    monkeypatch.setattr(server_setup, "require_way_in", real)
    assert (await world.call("server_setup", **setup))["changed"] is True
    assert not reaches(hosts, 8080)


async def test_a_server_that_is_known_by_name_is_not_shut_out(world: World, hosts: LabHosts) -> None:
    setup = await known(world, hosts, "database") | {"applyFirewall": True, "dryRun": False}
    await update(
        world.services.store,
        "ssot",
        lambda doc: {
            **(doc or {}),
            "servers": {**(doc or {})["servers"], "app": {"host": "app.codeb.test", "role": "application"}},
        },
    )
    error = await world.refused("conflict", "server_setup", OWNER, **setup)
    assert "app" in error.message
    assert rules(hosts) == ""
