"""Every system call of a change of variables is once the last one, and once refused: the change is whole or not there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from codeb_mcp.registry.env_history import Draft
from tests.crash.env_steps import AFTER, ANNA, AT, BEFORE, DRAFTS, LATER, history, prepare, writes
from tests.crash.test_registry_faults import CHANGING, FAULTS, Told, calls

pytestmark = pytest.mark.real("strace")


def run(kind: str, root: Path, inject: str | None) -> tuple[Told, str]:
    """Have the change made, with a fault in one of its changing system calls; also what strace saw."""
    log = root.with_suffix(".strace")
    done = subprocess.run(
        [
            "strace", "-f", "-qq", "-o", str(log), "-e", f"trace={CHANGING}",
            *(("-e", f"inject={inject}") if inject else ()),
            sys.executable, "-m", "tests.crash.env_steps", kind, str(root),
        ],
        capture_output=True, text=True, timeout=60, check=False, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    traced = log.read_text(encoding="utf-8", errors="replace")
    injected = "killed by SIGKILL" in traced or "(INJECTED)" in traced
    lines = done.stdout.split("\n")
    refused = any(line.startswith("refused") for line in lines)
    return Told("acked" in lines, refused, "usable" in lines, injected, done.stderr), traced


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", DRAFTS)
def test_a_change_is_whole_or_not_there_whichever_call_fails(kind: str, fault: str, tmp_path: Path) -> None:
    prepared = tmp_path / "prepared"
    prepared.mkdir()
    prepare(kind, prepared)

    def attempt(inject: str) -> tuple[str, Path, Told]:
        root = tmp_path / inject.replace(":", "-")
        shutil.copytree(prepared, root)
        return inject, root, run(kind, root, inject.format(FAULTS[fault]))[0]

    shutil.copytree(prepared, tmp_path / "whole")
    told, traced = run(kind, tmp_path / "whole", None)
    check(f"{kind} whole", kind, tmp_path / "whole", told)
    faults = refusals = 0
    with ThreadPoolExecutor(2) as pool:
        for inject, root, told in pool.map(attempt, calls(traced)):
            check(f"{inject} {fault}: {told}", kind, root, told)
            faults += told.injected
            refusals += told.refused
    print(f"{kind} {fault}: {faults} faults injected, {refusals} refused, 0 lost")
    assert faults == len(calls(traced))
    assert fault == "KILL" or refusals >= 3


def check(where: str, kind: str, root: Path, told: Told) -> None:
    """Open what is left as the next process would."""
    if not told.injected:
        assert told.acked, where
    if told.refused:
        assert told.usable, where
    left = history(root)
    assert left.examine() == [], where
    state = left.snapshot()
    before = 2 if kind in ("next", "found") else 0
    made = [draft.data for draft in DRAFTS[kind]]
    found = [state.read(entry) for entry in state.entries][before:]
    allowed = [made] if told.acked else [[], made, [LATER], [*made, LATER]]
    assert found in allowed, where
    if told.acked:
        assert state.live == (BEFORE if kind == "found" else AFTER), where
    if state.entries:
        assert (Path(left.folder) / "master.env").read_bytes() == state.read(state.entries[0]), where
        assert (Path(left.folder) / "current.env").read_bytes() == state.current, where
    after = left.change(ANNA, AT, writes(Draft("set", b"STATE=usable\n"))).after
    assert after.live == after.current == b"STATE=usable\n", where
    versions = [entry.version for entry in after.entries]
    assert versions == sorted(set(versions)), where
    assert [path.name for path in root.rglob("*.tmp")] == [], where
