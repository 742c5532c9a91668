"""The power goes at any change to the disk, and what was never synced may vanish: acknowledged things stay."""

from __future__ import annotations

import random
import shutil
import tempfile
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from codeb_mcp.model.errors import LeaseLost
from codeb_mcp.registry.commits import Request, commit_all
from codeb_mcp.registry.folder import RegistryFolder
from codeb_mcp.registry.leases import Leases, utc_now
from codeb_mcp.registry.repair import Repair
from codeb_mcp.registry.store import Change, Fence
from tests.crash.vanishing_disk import PowerCut, VanishingDisk

KEYS = ["ssot", "slots/a", "slots/b", "domains/a"]
State = dict[str, int | None]

COMMITS = st.lists(
    st.lists(st.dictionaries(st.sampled_from(KEYS), st.booleans(), min_size=1, max_size=3), min_size=1, max_size=3),
    min_size=1,
    max_size=6,
)  # rounds of commits that share the lock; of each document, whether it is deleted


class Life:
    """A registry from its first commit to the power cut."""

    def __init__(self, disk: VanishingDisk) -> None:
        self.folder = RegistryFolder(Path(disk.root), disk, generations=3, lock_wait_seconds=5)
        self.acked: State = dict.fromkeys(KEYS)
        self.possible: list[State] = [dict(self.acked)]
        self.reached = dict.fromkeys(KEYS, 0)
        self.number = 0

    def live(self, rounds: list[list[dict[str, bool]]]) -> None:
        """Commit round by round. `possible` are the states that may be found: the acknowledged one with any of the
        commits that are under way, since they do not know of each other."""
        for commits in rounds:
            changes = [{key: None if gone else self._next() for key, gone in commit.items()} for commit in commits]
            self.possible = [
                {key: value for part in (self.acked, *chosen) for key, value in part.items()}
                for number in range(len(changes) + 1)
                for chosen in combinations(changes, number)
            ]
            self._commit(changes)
            self.acked = self.possible[-1]
            self.possible = [self.acked]

    def _commit(self, commits: list[State]) -> None:
        waiting = []
        versions = {key: self._version(key) for key in KEYS}
        for commit in commits:
            changes = []
            for key, value in commit.items():
                changes.append(Change(key, None if value is None else {"n": value}, versions[key][0]))
                versions[key] = self._after(versions[key], gone=value is None)
            waiting.append(Request(changes, lambda: None))
        commit_all(self.folder, waiting)
        for request in waiting:
            request.answer.result(0)
        self.reached = {key: reached for key, (_, reached) in versions.items()}

    def _version(self, key: str) -> tuple[int, int]:
        with self.folder.locked("look"):
            entry = self.folder.versions.current(key)
            return (entry.stored.version if entry.stored else 0), entry.reached

    def _after(self, version: tuple[int, int], *, gone: bool) -> tuple[int, int]:
        present, reached = version
        if gone and not present:
            return version
        return (0 if gone else reached + 1), reached + 1

    def _next(self) -> int:
        self.number += 1
        return self.number


def check(root: Path, life: Life) -> None:
    """Open what the cut has left."""
    disk = VanishingDisk(root)
    disk.know_what_is_there()
    folder = RegistryFolder(root, disk, generations=3, lock_wait_seconds=5)
    leases = Leases(disk, str(root), utc_now)
    found: State = {}
    for key in KEYS:
        stored = folder.read(key)
        found[key] = stored.doc["n"] if stored else None
    assert found in life.possible, (found, life.possible)
    assert Repair(folder, leases, utc_now).examine() == []
    for key in KEYS:
        stored = folder.read(key)
        request = Request([Change(key, {"n": -1}, stored.version if stored else 0)], lambda: None)
        commit_all(folder, [request])
        assert request.answer.result(0)[key] > life.reached[key]


@pytest.mark.parametrize("examples", [40, pytest.param(2000, marks=pytest.mark.nightly)])
def test_whatever_was_acknowledged_survives_a_power_cut(examples: int) -> None:
    cuts = 0

    @settings(max_examples=examples, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
    @given(rounds=COMMITS, seed=st.integers(0, 1 << 32))
    def run(rounds: list[list[dict[str, bool]]], seed: int) -> None:
        nonlocal cuts
        chance = random.Random(seed)
        with tempfile.TemporaryDirectory(prefix="codeb-power-") as scratch:
            whole = VanishingDisk(Path(scratch, "whole"))
            Life(whole).live(rounds)
            for turn in range(6):
                disk = VanishingDisk(Path(scratch, f"before{turn}"))
                life = Life(disk)
                disk.left = chance.randrange(whole.changes + 1)
                try:
                    life.live(rounds)
                except PowerCut:
                    cuts += 1
                for look in range(4):
                    after = Path(scratch, f"after{turn}-{look}")
                    disk.after_the_cut(after, chance)
                    check(after, life)

    run()
    print(f"{cuts} power cuts, 0 acknowledged commits lost")
    assert cuts > examples


@pytest.mark.parametrize("seed", range(5))
def test_a_token_that_was_given_out_is_never_given_out_again(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    root = tmp_path / "registry"
    given_out = 0
    for _ in range(12):
        disk = VanishingDisk(root)
        if (tmp_path / "after").exists():
            shutil.rmtree(root)
            (tmp_path / "after").rename(root)
            disk.know_what_is_there()
        folder = RegistryFolder(root, disk, generations=3, lock_wait_seconds=5)
        leases = Leases(disk, str(root), utc_now)
        disk.left = chance.randrange(40)
        try:
            for _ in range(4):
                given_out = _take_and_give_back(folder, leases, given_out)
        except PowerCut:
            pass
        disk.after_the_cut(tmp_path / "after", chance)
    assert given_out > 3


def _take_and_give_back(folder: RegistryFolder, leases: Leases, given_out: int) -> int:
    with folder.locked("lease"):
        present = leases.holding("a")
        if present is not None and present.held:
            leases.break_open("a", present.lease.token)
        lease = leases.acquire("a", "x", 30)
    assert lease.token > given_out
    with folder.locked("lease"):
        leases.renew(lease, 30)
        leases.release(lease)
        with pytest.raises(LeaseLost):
            leases.check(Fence("a", lease.token))
    return lease.token
