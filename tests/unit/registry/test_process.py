"""Whether a process is certainly gone."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from codeb_mcp.registry.process import ProcessIdentity, certainly_gone, this_process


@pytest.fixture
def me() -> ProcessIdentity:
    found = this_process()
    assert found is not None
    return found


def test_we_are_not_gone(me: ProcessIdentity) -> None:
    assert not certainly_gone(me)
    assert ProcessIdentity.of(me.as_dict()) == me


def test_a_number_that_was_given_to_another_process_means_that_the_first_is_gone(me: ProcessIdentity) -> None:
    assert certainly_gone(replace(me, started=me.started - 1))


def test_nothing_is_certain_about_another_boot_or_namespace_or_without_facts(me: ProcessIdentity) -> None:
    gone = replace(me, started=me.started - 1)
    assert not certainly_gone(replace(gone, boot="another"))
    assert not certainly_gone(replace(gone, namespace=1))
    assert not certainly_gone(None)
    assert ProcessIdentity.of({"pid": 1}) is None


def test_a_process_that_ended_is_gone_before_and_after_it_is_buried(me: ProcessIdentity) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    with open(f"/proc/{child.pid}/stat", "rb") as file:
        started = int(file.read().rpartition(b")")[2].split()[19])
    holder = replace(me, pid=child.pid, started=started)
    assert not certainly_gone(holder)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert certainly_gone(holder)
    child.communicate()
    assert certainly_gone(holder)
