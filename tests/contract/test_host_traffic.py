"""The traffic flags of a server are those of this machine: same files, same fences, same refusals; and whatever ends a switch
in the middle leaves the old slot live or the new one."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
from collections.abc import AsyncIterator, Sequence
from itertools import product
from pathlib import Path

import pytest

from codeb_mcp.drivers.fake_proxy import FakeEdge, FakeTraffic
from codeb_mcp.drivers.flags import FlagTraffic
from codeb_mcp.drivers.host_flags import HostTraffic
from codeb_mcp.drivers.hosts import MAX_OUTPUT, Finished, Host
from codeb_mcp.drivers.local_host import LocalHost
from codeb_mcp.model.errors import CodebError, DriverRefused, InsufficientStorage, InvalidRequest, LeaseLost, LockHeld
from codeb_mcp.model.names import Slot
from tests.contract.hosts_worlds import HostWorld, host_world
from tests.lab.hosts import LabHosts
from tests.lab.small_disk import small_disk

KEY = "shop-production"
SLOTS: tuple[Slot | None, ...] = (Slot.BLUE, Slot.GREEN, None)
HOSTILE = (
    "",
    "../etc",
    "a/b",
    ".lock",
    "A-production",
    "a.green",
    "a\n",
    "a\0b",
    "x" * 200,
    "-a",
    "$(id)",
    "a;id",
    "a b",
)


@pytest.fixture(
    params=[
        "local",
        pytest.param("root", marks=pytest.mark.real("hosts")),
        pytest.param("codeb", marks=pytest.mark.real("hosts")),
    ]
)
async def world(request: pytest.FixtureRequest, unique: str) -> AsyncIterator[HostWorld]:
    """This machine, and a lab host over SSH as two accounts."""
    lab: LabHosts | None = None if request.param == "local" else request.getfixturevalue("hosts")
    async with host_world(request.param, unique, lab) as made:
        yield made


def told(world: HostWorld) -> dict[str, bytes]:
    """The files of the folder `flags`, the lock left out."""
    return {name: world.content(f"flags/{name}") for name in world.names("flags") if name != ".lock"}


async def test_a_long_random_walk_leaves_the_very_files_of_this_machine(world: HostWorld, tmp_path: Path) -> None:
    seed = 77
    rng, far = random.Random(seed), HostTraffic(world.host, world.path("flags"))
    near, model = FlagTraffic(tmp_path / "flags"), FakeTraffic(FakeEdge())
    for step in range(60):
        key, slot = rng.choice(["a-staging", "b-staging"]), rng.choice(SLOTS)
        fence, forgets = step // 3 + 1 - rng.choice([0, 0, 0, 2]), rng.random() < 0.15
        outcomes: list[bool | str | None] = []
        try:
            outcomes.append(await (far.forget(key, fence=fence) if forgets else far.switch(key, slot, fence=fence)))
        except LeaseLost as lost:
            outcomes.append(lost.code)
        for one in (near, model):
            try:
                outcomes.append(one.forget(key, fence=fence) if forgets else one.switch(key, slot, fence=fence))
            except LeaseLost as lost:
                outcomes.append(lost.code)
        assert outcomes[0] == outcomes[1] == outcomes[2], f"seed {seed} step {step}: {outcomes}"
        assert (await far.live(key), await far.keys()) == (near.live(key), near.keys()), f"seed {seed} step {step}"
    here = {path.name: path.read_bytes() for path in (tmp_path / "flags").iterdir() if path.name != ".lock"}
    assert told(world) == here
    modes = world.do("stat", "-c", "%a", *(world.path(f"flags/{name}") for name in here)).split()
    assert set(modes) == {b"644"}
    assert world.do("stat", "-c", "%a", world.path("flags")).strip() == b"755"


async def test_nothing_is_live_where_there_is_no_folder(world: HostWorld) -> None:
    far = HostTraffic(world.host, world.path("flags"))
    assert (await far.live(KEY), await far.keys()) == (None, [])
    await far.forget(KEY, fence=1)
    assert world.names() == []


@pytest.mark.parametrize("key", HOSTILE)
async def test_a_key_that_is_no_name_is_refused_before_anything_is_sent(tmp_path: Path, key: str) -> None:
    far = HostTraffic(LocalHost("here"), str(tmp_path / "flags"))
    for call in (far.switch(key, None, fence=1), far.live(key), far.forget(key, fence=1)):
        with pytest.raises(InvalidRequest):
            await call
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"7\n", b"x" * 19 + b"\n", b"9" * 40 + b"\n"])
async def test_a_damaged_fence_is_refused_not_guessed(tmp_path: Path, content: bytes) -> None:
    near, far = FlagTraffic(tmp_path), HostTraffic(LocalHost("here"), str(tmp_path))
    near.switch(KEY, Slot.GREEN, fence=1)
    (tmp_path / f"{KEY}.fence").write_bytes(content)
    with pytest.raises(DriverRefused):
        await far.switch(KEY, Slot.BLUE, fence=2)
    assert near.live(KEY) is Slot.GREEN


async def test_both_ways_to_the_same_folder_share_lock_and_fences(tmp_path: Path) -> None:
    near, far = FlagTraffic(tmp_path), HostTraffic(LocalHost("here"), str(tmp_path))
    assert await far.switch(KEY, Slot.GREEN, fence=5)
    with pytest.raises(LeaseLost):
        near.switch(KEY, Slot.BLUE, fence=4)
    near.switch(KEY, Slot.BLUE, fence=6)
    with pytest.raises(LeaseLost):
        await far.switch(KEY, Slot.GREEN, fence=5)
    holder = await asyncio.create_subprocess_exec(
        "flock",
        str(tmp_path / ".lock"),
        "sh",
        "-c",
        "echo held; cat",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert holder.stdout is not None
    await asyncio.wait_for(holder.stdout.readline(), 10)
    with pytest.raises(LockHeld):
        await far.switch(KEY, Slot.GREEN, fence=7)
    assert near_state(tmp_path) == Slot.BLUE
    await holder.communicate(b"")
    assert await far.switch(KEY, Slot.GREEN, fence=7)


def near_state(folder: Path) -> Slot | None:
    """What the proxy sees, without any lock."""
    names = {path.name for path in folder.iterdir()}
    return Slot.GREEN if f"{KEY}.green" in names else None if f"{KEY}.off" in names else Slot.BLUE


async def test_a_folder_that_may_not_be_written_is_said_to_be_so(world: HostWorld) -> None:
    if world.user == "root":
        return  # root may
    far = HostTraffic(world.host, world.path("flags"))
    world.do("install", "-d", "-o", "root", "-m", "755", world.path("flags"))
    with pytest.raises(DriverRefused) as refused:
        await far.switch(KEY, Slot.GREEN, fence=1)
    assert world.host.key in refused.value.message
    assert told(world) == {}


async def test_a_full_disk_is_told_and_the_old_slot_stays_live(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 1) as disk:
        near, far = FlagTraffic(disk.folder), HostTraffic(LocalHost("here"), str(disk.folder))
        near.switch(KEY, Slot.GREEN, fence=1)
        disk.fill()
        with pytest.raises(InsufficientStorage):
            await far.switch("other-production", Slot.GREEN, fence=1)
        assert near.live(KEY) is Slot.GREEN
        disk.free()
        assert await far.switch("other-production", Slot.GREEN, fence=1)


class Mortal:
    """A host whose command is killed, with all that it started, before or after its nth program."""

    COUNTED = ("mv", "sync", "rm", "cat")

    def __init__(self, folder: Path) -> None:
        self.key = "mortal"
        self._folder = folder
        self._host = LocalHost("mortal")
        for name in self.COUNTED:
            program = shutil.which(name, path="/usr/bin:/bin")
            wrapper = folder / name
            wrapper.write_text(
                f'#!/bin/sh\necho {name} >>"$MORTAL/calls"\nn=$(wc -l <"$MORTAL/calls")\n'
                f'[ "$n/before" = "$DIES" ] && kill -9 0\n{program} "$@" || exit\n[ "$n/after" = "$DIES" ] && kill -9 0\nexit 0\n'
            )
            wrapper.chmod(0o755)

    def arm(self, dies: str) -> None:
        """When to die, as `number/before` or `number/after`."""
        self._dies = dies
        (self._folder / "calls").unlink(missing_ok=True)

    @property
    def calls(self) -> int:
        """How many programs ran."""
        calls = self._folder / "calls"
        return len(calls.read_text().splitlines()) if calls.exists() else 0

    async def run(
        self, argv: Sequence[str], *, stdin: bytes = b"", timeout_seconds: float = 30.0, max_output: int = MAX_OUTPUT
    ) -> Finished:
        """See `Host.run`."""
        process = await asyncio.create_subprocess_exec(
            *argv,
            env={
                **os.environ,
                "PATH": f"{self._folder}:{os.environ['PATH']}",
                "MORTAL": str(self._folder),
                "DIES": self._dies,
            },
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        out, err = await asyncio.wait_for(process.communicate(), timeout_seconds)
        status = process.returncode or 0
        return Finished(status if status >= 0 else 128 - status, out, err)

    def __getattr__(self, name: str) -> object:
        return getattr(self._host, name)


@pytest.mark.parametrize(("start", "end"), [pair for pair in product(("blue", "green", "off", "covered"), SLOTS)])
async def test_a_switch_that_is_killed_at_any_program_leaves_the_old_slot_live_or_the_new_one(
    tmp_path: Path, start: str, end: Slot | None
) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    mortal = Mortal(programs)
    host: Host = mortal  # type: ignore[assignment]
    mortal.arm("never")
    _arrange(tmp_path / "whole", start)
    await HostTraffic(host, str(tmp_path / "whole")).switch(KEY, end, fence=2)
    total, tried = mortal.calls, 0
    assert total >= 4
    for number, when in product(range(1, total + 1), ("before", "after")):
        folder = tmp_path / f"{number}-{when}"
        _arrange(folder, start)
        before = near_state(folder)
        mortal.arm(f"{number}/{when}")
        with pytest.raises(CodebError):
            await HostTraffic(host, str(folder)).switch(KEY, end, fence=2)
        tried += 1
        assert near_state(folder) in (before, end), f"killed {when} program {number}"
        mortal.arm("never")
        await HostTraffic(host, str(folder)).switch(KEY, end, fence=2)
        assert (near_state(folder), FlagTraffic(folder).live(KEY)) == (end, end), f"killed {when} program {number}"
    assert tried == 2 * total


def _arrange(folder: Path, start: str) -> None:
    near = FlagTraffic(folder)
    if start == "covered":
        near.switch(KEY, None, fence=1)
    near.switch(KEY, {"blue": Slot.BLUE, "off": None}.get(start, Slot.GREEN), fence=1)
