"""What is read out of a server's own words, and what is made of it."""

from __future__ import annotations

import subprocess

import pytest
from pydantic import ValidationError

from codeb_mcp.model.server import Server, fingerprint
from codeb_mcp.model.server_facts import (
    Finding,
    Health,
    Listener,
    judge_clock,
    judge_disks,
    judge_listeners,
    judge_registered_ports,
    judge_root_login,
    listeners,
)

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
TABLE = (
    HEAD
    + "   0: 0100007F:0FA0 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0 100 0 0 10 0\n"
    + "   1: 00000000:1538 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 2 1 0 100 0 0 10 0\n"
    + "   2: 0100007F:0FA0 0100007F:D2F0 01 00000000:00000000 00:00000000 00000000     0        0 3 1 0 100 0 0 10 0\n"
)
TABLE_6 = (
    HEAD
    + "   0: 00000000000000000000000001000000:07E3 00000000000000000000000000000000:0000 0A 0 0 0 0 0 1 1 0\n"
    + "   1: 0000000000000000FFFF00000100007F:1F90 00000000000000000000000000000000:0000 0A 0 0 0 0 0 1 1 0\n"
    + "   2: 00000000000000000000000000000000:0947 00000000000000000000000000000000:0000 0A 0 0 0 0 0 1 1 0\n"
)


def test_only_listening_sockets_count_with_their_addresses() -> None:
    assert list(listeners(TABLE)) == [Listener(4000, "127.0.0.1"), Listener(5432, "0.0.0.0")]
    assert list(listeners(TABLE_6)) == [Listener(2019, "::1"), Listener(8080, "127.0.0.1"), Listener(2375, "::")]


def test_the_words_of_ss_say_the_same() -> None:
    said = (
        "LISTEN 0      4096   127.0.0.1:4000  0.0.0.0:*\n"
        "LISTEN 0      128    0.0.0.0:5432    0.0.0.0:*\n"
        "LISTEN 0      4096   127.0.0.53%lo:53 0.0.0.0:*\n"
        "LISTEN 0      128    [::1]:2019      [::]:*\n"
        "LISTEN 0      128    [::ffff:127.0.0.1]:8080 *:*\n"
        "LISTEN 0      128    *:2375          *:*\n"
        "LISTEN 0      128    [fe80::1%eth0]:22 [::]:*\n"
    )
    assert list(listeners(said)) == [
        Listener(4000, "127.0.0.1"), Listener(5432, "0.0.0.0"), Listener(53, "127.0.0.53"), Listener(2019, "::1"),
        Listener(8080, "127.0.0.1"), Listener(2375, "::"), Listener(22, "fe80::1"),
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["", "nonsense", HEAD, "\n\n", "a b c 0A\n"])
def test_tables_without_sockets_have_none(text: str) -> None:
    assert list(listeners(text)) == []


def statuses(findings: list[Finding]) -> list[Health]:
    return [one.status for one in findings]


def test_private_ports_that_are_open_are_named() -> None:
    found = judge_listeners([Listener(2375, "::"), Listener(4001, "192.0.2.7"), Listener(22, "0.0.0.0")])
    assert statuses(found) == [Health.FAIL, Health.FAIL]
    assert "the container engine" in found[0].message
    assert "an app's slot" in found[1].message
    assert "192.0.2.7:4001" in found[1].message


def test_databases_may_listen_on_a_private_address_but_not_on_all() -> None:
    assert statuses(judge_listeners([Listener(5432, "10.0.0.3"), Listener(6400, "127.0.0.1")])) == [Health.OK]
    assert statuses(judge_listeners([Listener(5450, "0.0.0.0")])) == [Health.WARN]


def test_the_fullest_disk_counts() -> None:
    df = (
        "Filesystem 1-blocks Used Available Capacity Mounted on\n"
        "/dev/a 1000000000 500000000 500000000 50% /\n"
        "/dev/b 1000000000 970000000 30000000 97% /var\n"
        "proc 0 0 0 - /proc\n"
    )
    (found,) = judge_disks(df)
    assert (found.check, found.status) == ("disk", Health.FAIL)
    assert found.message.startswith("/var: 28 MiB of 953 MiB free (3%)")
    assert judge_disks(df.replace(" 30000000 ", " 130000000 "))[0].status is Health.WARN
    assert judge_disks("")[0].status is Health.UNKNOWN


@pytest.mark.parametrize(
    ("skew", "uncertainty", "status"),
    [(0.2, 0.1, Health.OK), (-1.5, 0.1, Health.WARN), (1.5, 0.8, Health.OK), (-30, 0.1, Health.FAIL)],
)
def test_a_clock_is_only_blamed_for_what_asking_does_not_explain(
    skew: float, uncertainty: float, status: Health
) -> None:
    assert judge_clock(skew, uncertainty).status is status


@pytest.mark.parametrize(
    ("config", "status"),
    [
        ("", Health.OK),
        ("PermitRootLogin yes\n", Health.FAIL),
        ("permitrootlogin no\nPermitRootLogin yes\n", Health.OK),
        ("#PermitRootLogin yes\n", Health.OK),
        ("Match User root\n  PermitRootLogin yes\n", Health.OK),
    ],
)
def test_root_login_follows_the_first_value_as_sshd_does(config: str, status: Health) -> None:
    assert judge_root_login(config).status is status


def test_ports_of_the_registry_without_a_listener_are_named() -> None:
    expected = {4000: "worb-production blue", 4001: "worb-production green"}
    assert judge_registered_ports([Listener(4000, "127.0.0.1")], expected)[0].message.endswith(
        "4001 (worb-production green)"
    )
    assert judge_registered_ports([Listener(4000, "::1"), Listener(4001, "::1")], expected)[0].status is Health.OK


def test_the_fingerprint_is_that_of_ssh_keygen(tmp_path: object) -> None:
    path = f"{tmp_path}/key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True, timeout=20)
    shown = subprocess.run(["ssh-keygen", "-lf", path + ".pub"], check=True, timeout=20, capture_output=True, text=True)
    with open(path + ".pub", encoding="ascii") as file:
        assert fingerprint(file.read()) == shown.stdout.split()[1]


def test_the_guides_entries_load_and_keep_what_they_say() -> None:
    entry = {"host": "192.0.2.10", "role": "application", "rack": "b2"}
    server = Server.model_validate(entry)
    assert server.dump() == entry
    assert (server.port, server.user, server.host_key, server.where) == (22, "codeb", None, "codeb@192.0.2.10:22")


@pytest.mark.parametrize(
    "host", ["", "-oProxyCommand=x", "a b", "host;id", "1.2.3.4.5", "UPPER.example", "x" * 300, "a..b"]
)
def test_a_host_is_an_address_or_a_name(host: str) -> None:
    with pytest.raises(ValidationError):
        Server.model_validate({"host": host, "role": "backup"})
