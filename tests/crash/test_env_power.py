"""The power goes at any change to the disk while variables are written: versions that were acknowledged stay, in order."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from codeb_mcp.registry.disk import Disk
from codeb_mcp.registry.env_history import Draft, EnvHistory
from codeb_mcp.registry.env_keys import EnvKeys
from tests.crash.env_steps import ANNA, AT, writes
from tests.crash.vanishing_disk import PowerCut, VanishingDisk

CHANGES = st.lists(st.integers(1, 2), min_size=1, max_size=5)
"""How many versions each commit brings."""


class Life:
    """A history from its first change to the power cut."""

    def __init__(self, disk: Disk, root: Path) -> None:
        self.history = opened(disk, root)
        self.acked: list[bytes] = []
        self.possible: list[list[bytes]] = [[]]

    def live(self, changes: list[int]) -> None:
        """Change by change; `possible` are the histories that may be found."""
        number = 0
        for count in changes:
            data = [f"N={number + turn}\n".encode() for turn in range(count)]
            number += count
            self.possible = [self.acked, [*self.acked, *data]]
            self.history.change(ANNA, AT, writes(*(Draft("set", one) for one in data)))
            self.acked = self.possible[-1]
            self.possible = [self.acked]


def opened(disk: Disk, root: Path) -> EnvHistory:
    """The history of one environment on that disk."""
    made = EnvHistory(root, "shop", "production", EnvKeys(root, disk), disk)
    made.immutable = False
    return made


def check(root: Path, life: Life) -> None:
    """Open what the cut has left."""
    disk = VanishingDisk(root)
    disk.know_what_is_there()
    history = opened(disk, root)
    assert history.examine() == []
    state = history.snapshot()
    found = [state.read(entry) for entry in state.entries]
    assert found in life.possible, (found, life.possible)
    if found:
        folder = Path(history.folder)
        assert (folder / "master.env").read_bytes() == found[0]
        assert (folder / "current.env").read_bytes() == found[-1]
    if found and found == life.acked and len(life.possible) == 1:
        assert state.live == found[-1]
    after = history.change(ANNA, AT, writes(Draft("set", b"N=after\n"))).after
    assert [after.read(entry) for entry in after.entries] == [*found, b"N=after\n"]


@pytest.mark.parametrize("examples", [40, pytest.param(2000, marks=pytest.mark.nightly)])
def test_whatever_was_acknowledged_survives_a_power_cut(examples: int) -> None:
    cuts = 0

    @settings(max_examples=examples, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
    @given(changes=CHANGES, seed=st.integers(0, 1 << 32))
    def run(changes: list[int], seed: int) -> None:
        nonlocal cuts
        chance = random.Random(seed)
        with tempfile.TemporaryDirectory(prefix="codeb-env-power-") as scratch:
            whole = VanishingDisk(Path(scratch, "whole"))
            Life(whole, Path(whole.root)).live(changes)
            for turn in range(6):
                disk = VanishingDisk(Path(scratch, f"before{turn}"))
                life = Life(disk, Path(disk.root))
                disk.left = chance.randrange(whole.changes + 1)
                try:
                    life.live(changes)
                except PowerCut:
                    cuts += 1
                for look in range(4):
                    after = Path(scratch, f"after{turn}-{look}")
                    disk.after_the_cut(after, chance)
                    check(after, life)

    run()
    print(f"{cuts} power cuts, 0 acknowledged versions lost")
    assert cuts > examples
