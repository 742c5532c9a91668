"""The lab's servers do what tests of faults rely on."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.lab.daemons import LabError
from tests.lab.hosts import NUMBERS, LabHosts

pytestmark = pytest.mark.real("hosts")


def test_every_host_has_its_own_name_processes_and_network(hosts: LabHosts) -> None:
    for host, number in NUMBERS.items():
        shown = hosts.exec(host, "sh", "-c", "hostname; cat /proc/1/comm; ip -br address show dev eth0").stdout.decode()
        assert shown.startswith(f"{host}\ntini\n")
        assert f"198.51.100.{number}/24" in shown


def test_a_power_loss_keeps_the_disk_and_ends_all_processes(hosts: LabHosts, unique: str) -> None:
    with hosts.alone("spare"):
        hosts.exec("spare", "sh", "-c", "echo kept >/srv/$0; sleep 600 >/dev/null 2>&1 &", unique)
        hosts.kill("spare")
        with pytest.raises(LabError, match="no power"):
            hosts.exec("spare", "true")
        hosts.boot("spare")
        assert hosts.exec("spare", "cat", f"/srv/{unique}").stdout == b"kept\n"
        assert hosts.exec("spare", "pgrep", "-x", "sleep", check=False).returncode == 1
        hosts.exec("spare", "rm", f"/srv/{unique}")


def test_a_host_that_was_broken_is_whole_when_it_is_given_back(hosts: LabHosts) -> None:
    with hosts.alone("spare"):
        hosts.drop("spare")
        hosts.slow("spare", megabits=1)
        hosts.cut("spare")
        hosts.kill("spare")
    with hosts.using("spare"):
        hosts.wait_ready("spare")


def test_what_is_written_on_a_host_changes_its_hash_and_stays_there(hosts: LabHosts, unique: str) -> None:
    with hosts.alone("spare"):
        before = hosts.tree_hash("spare")
        assert hosts.tree_hash("spare") == before
        hosts.exec("spare", "sh", "-c", "echo x >/srv/$0", unique)
        changed = hosts.tree_hash("spare")
        hosts.exec("spare", "chmod", "600", f"/srv/{unique}")
        assert len({before, changed, hosts.tree_hash("spare")}) == 3
        assert hosts.exec("app", "test", "-e", f"/srv/{unique}", check=False).returncode == 1
        hosts.exec("spare", "rm", f"/srv/{unique}")
        assert hosts.tree_hash("spare") == before


def test_a_host_that_somebody_has_for_himself_is_not_given_away(hosts: LabHosts) -> None:
    code = (
        "from tests.lab.daemons import LabError\nfrom tests.lab.hosts import LabHosts\n"
        "try:\n    with LabHosts().using('spare', seconds=0.1): print('given')\n"
        "except LabError as error: print(error)"
    )
    with hosts.alone("spare"):
        said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "held by another test" in said.stdout
