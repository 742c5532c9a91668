"""Copies on the Backup server: encrypted, complete, caught up, and enough to go on without the control plane."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pyrage
import pytest
from pyrage import x25519

from codeb_mcp.drivers.hosts import FileStat, Finished, Host
from codeb_mcp.drivers.local_host import LocalHost
from codeb_mcp.model.env import parse
from codeb_mcp.model.errors import DriverUnavailable, InsufficientStorage
from codeb_mcp.model.server import Server
from codeb_mcp.operations.env_copies import catch_up
from codeb_mcp.registry.store import update
from codeb_mcp.settings import EnvSettings
from tests.unit.operations.world import World

LIVE = {"projectName": "shop", "environment": "production"}


class Flaky:
    """Implements `Host` by this machine; `left` writes go through, then it cannot be reached; None is no limit."""

    def __init__(self) -> None:
        self.inner = LocalHost("backup")
        self.left: int | None = None
        self.full = False
        self.writes = 0

    @property
    def key(self) -> str:
        """See `Host.key`."""
        return "backup"

    async def run(self, *words: Any, **more: Any) -> Finished:
        """See `Host.run`."""
        raise AssertionError("no copy runs a command")

    async def read(self, path: str, *, max_bytes: int = 1 << 20) -> bytes | None:
        """See `Host.read`."""
        self._reachable()
        return await self.inner.read(path, max_bytes=max_bytes)

    async def write(self, path: str, data: bytes, *, mode: int = 0o600) -> None:
        """See `Host.write`."""
        if self.full:
            raise InsufficientStorage("backup: the disk is full")
        if self.left is not None:
            self.left -= 1
        self._reachable()
        self.writes += 1
        await self.inner.write(path, data, mode=mode)

    async def stat(self, path: str) -> FileStat | None:
        """See `Host.stat`."""
        return await self.inner.stat(path)

    async def list(self, folder: str) -> list[str] | None:
        """See `Host.list`."""
        return await self.inner.list(folder)

    async def make_folder(self, path: str, *, mode: int = 0o755) -> bool:
        """See `Host.make_folder`."""
        self._reachable()
        return await self.inner.make_folder(path, mode=mode)

    async def remove(self, path: str) -> bool:
        """See `Host.remove`."""
        return await self.inner.remove(path)

    async def socket(self, target: str) -> str:
        """See `Host.socket`."""
        return await self.inner.socket(target)

    def _reachable(self) -> None:
        if self.left is not None and self.left < 0:
            raise DriverUnavailable("backup: no route to it")


class OneHost:
    """Implements `Hosts` with a single server."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def at(self, key: str, server: Server) -> Host:
        """See `Hosts.at`."""
        return self.host

    async def host_keys(self, address: str, port: int) -> list[str]:
        """See `Hosts.host_keys`."""
        return []

    async def close(self) -> None:
        """See `Hosts.close`."""


async def with_backup(world: World, folder: Path, **env: Any) -> Flaky:
    """The world with a Backup server that keeps its copies in this folder."""
    host = Flaky()
    said = EnvSettings(backup_folder=str(folder), **env)
    world.settings = world.settings.model_copy(update={"env": said})
    drivers = dataclasses.replace(world.services.drivers, hosts=OneHost(host))
    world.services = dataclasses.replace(world.services, settings=world.settings, drivers=drivers)
    world.services.runs.bind(world.services)
    await update(world.services.store, "ssot", _with_server)
    await world.project()
    return host


def _with_server(doc: Any) -> Any:
    entry = {"host": "192.0.2.63", "role": "backup", "connection": "local"}
    return {**doc, "servers": {"app": {"host": "192.0.2.1", "role": "application"}, "backup": entry}}


@pytest.fixture
def copies(tmp_path: Path) -> Path:
    """The Backup server's folder."""
    return tmp_path / "backup-server"


async def put(world: World, **values: str) -> dict[str, Any]:
    """Set variables of production."""
    return await world.call("env_set", **LIVE, values=values)


async def test_every_change_is_copied_under_the_same_names_encrypted(world: World, copies: Path) -> None:
    await with_backup(world, copies)
    first = await put(world, API_KEY="canary-in-clear")
    second = await put(world, API_KEY="canary-two")
    assert (first["backedUp"], second["backedUp"]) == (True, True)
    assert "backupProblem" not in second
    names = ["backup-log.json", "current.env", "master.env", f"{first['version']}.env", f"{second['version']}.env"]
    found = copies / "shop/production"
    assert sorted(os.listdir(found)) == sorted(f"{name}.age" for name in names)
    for path in found.iterdir():
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.read_bytes().startswith(b"age-encryption.org/v1\n")
        assert b"canary" not in path.read_bytes()
    assert (await world.call("env_verify", **LIVE))["copies"] == "same"
    key = world.settings.root / "keys/env.agekey"
    assert key.stat().st_mode & 0o777 == 0o600
    for path in copies.rglob("*"):
        assert not path.is_file() or key.read_bytes().strip() not in path.read_bytes()


async def test_a_restore_from_the_copies_alone_and_the_identity(world: World, copies: Path) -> None:
    await with_backup(world, copies)
    values = {"ODD": "a'\"\\$\r\n#é🚀 ", "PLAIN": "1"}
    await world.call("env_set", **LIVE, values=values)
    await put(world, PLAIN="2")
    folder = world.settings.root / "env-backup/shop/production"
    wanted = {path.name: path.read_bytes() for path in folder.iterdir() if path.name[0] != "."}
    identity = x25519.Identity.from_str((world.settings.root / "keys/env.agekey").read_text(encoding="utf-8").strip())
    opened = {
        path.name.removesuffix(".age"): pyrage.decrypt(path.read_bytes(), [identity])
        for path in (copies / "shop/production").iterdir()
    }
    assert opened == wanted
    assert parse(opened["current.env"].decode()).values == {**values, "PLAIN": "2"}
    assert parse(opened["master.env"].decode()).values == values
    stranger = x25519.Identity.generate()
    with pytest.raises(pyrage.DecryptError):
        pyrage.decrypt((copies / "shop/production/current.env.age").read_bytes(), [stranger])


async def test_a_server_that_cannot_be_reached_costs_no_change_and_is_caught_up(world: World, copies: Path) -> None:
    host = await with_backup(world, copies)
    await put(world, A="1")
    host.left = 0
    said = await put(world, A="2")
    assert (said["backedUp"], said["backupProblem"]) == (False, "backup: no route to it")
    await put(world, A="3")
    assert (await world.call("env_verify", **LIVE))["ok"] is False
    assert [problem.rpartition(": ")[2] for problem in await catch_up(world.services)] == ["no route to it"]
    host.left = None
    assert await catch_up(world.services) == []
    assert (await world.call("env_verify", **LIVE))["copies"] == "same"
    before = host.writes
    assert await catch_up(world.services) == []
    assert host.writes == before


@pytest.mark.parametrize("cut", range(12))
async def test_a_link_that_breaks_anywhere_leaves_copies_that_can_be_finished(
    world: World, copies: Path, cut: int
) -> None:
    host = await with_backup(world, copies)
    await put(world, A="0")
    host.left = 0
    for turn in range(5):
        await put(world, A=str(turn + 1))
    host.left = cut
    await catch_up(world.services)
    identity = x25519.Identity.from_str((world.settings.root / "keys/env.agekey").read_text(encoding="utf-8").strip())
    log = json.loads(pyrage.decrypt((copies / "shop/production/backup-log.json.age").read_bytes(), [identity]))
    for entry in log["entries"]:
        assert (copies / f"shop/production/{entry['version']}.env.age").exists()
    host.left = None
    assert await catch_up(world.services) == []
    assert (await world.call("env_verify", **LIVE))["copies"] == "same"


async def test_where_a_copy_is_required_nothing_is_changed_without_it(world: World, copies: Path) -> None:
    host = await with_backup(world, copies, require_backup=True)
    await put(world, A="1")
    host.left = 0
    await put(world, A="2")  # the server fails between the look and the copy: what was promised is the look
    await world.refused("driver_unavailable", "env_set", **LIVE, values={"A": "3"})
    host.left, host.full = None, True
    error = await world.refused("driver_unavailable", "env_set", **LIVE, values={"A": "3"})
    assert "the disk is full" in error.message
    assert (await world.call("env_backup_list", **LIVE))["total"] == 2
    host.full = False
    assert (await put(world, A="3"))["backedUp"] is True
    assert (await world.call("env_verify", **LIVE))["copies"] == "same"


async def test_without_a_backup_server_the_answer_says_so_and_requiring_one_refuses(world: World) -> None:
    await world.project()
    said = await put(world, A="1")
    assert said["backedUp"] is False
    assert "role backup" in said["backupProblem"]
    assert (await world.call("env_verify", **LIVE))["ok"] is True
    settings = world.settings.model_copy(update={"env": EnvSettings(require_backup=True)})
    world.services = dataclasses.replace(world.services, settings=settings)
    await world.refused("driver_unavailable", "env_set", **LIVE, values={"A": "2"})


async def test_damaged_and_lost_copies_are_found_and_made_again(world: World, copies: Path) -> None:
    await with_backup(world, copies)
    first = await put(world, A="1")
    await put(world, A="2")
    found = copies / "shop/production"
    (found / f"{first['version']}.env.age").unlink()
    (found / "current.env.age").write_bytes((found / "master.env.age").read_bytes())
    (found / "backup-log.json.age").write_bytes(b"age-encryption.org/v1\nnonsense")
    verified = await world.call("env_verify", **LIVE)
    assert (verified["ok"], verified["copies"], verified["problemCount"]) == (False, "differs", 3)
    assert (await world.call("env_sync", **LIVE))["backedUp"] is True
    assert (await world.call("env_verify", **LIVE))["copies"] == "same"


async def test_a_lost_identity_is_not_replaced_silently(world: World, copies: Path) -> None:
    await with_backup(world, copies)
    await put(world, A="1")
    (world.settings.root / "keys/env.agekey").unlink()
    fresh = world.start()
    world.services = dataclasses.replace(fresh, drivers=world.services.drivers, settings=world.settings)
    said = await put(world, A="2")
    assert said["backedUp"] is False
    assert "env.agekey is missing" in said["backupProblem"]


async def test_many_changes_at_once_share_their_trips(world: World, copies: Path) -> None:
    host = await with_backup(world, copies)
    await put(world, FIRST="1")
    before = host.writes
    said = await asyncio.gather(*(put(world, **{f"N{n}": "1"}) for n in range(50)))
    assert all(one["backedUp"] for one in said)
    assert host.writes - before < 50 * 3
    assert (await world.call("env_verify", **LIVE))["copies"] == "same"


async def test_a_server_that_hangs_costs_a_change_no_more_than_its_limit(world: World, copies: Path) -> None:
    host = await with_backup(world, copies, backup_seconds=0.2)
    never = asyncio.Event()

    async def hang(path: str, *, mode: int = 0o755) -> bool:
        await never.wait()
        return True

    host.make_folder = hang  # type: ignore[method-assign]
    said = await put(world, A="1")
    assert said["backupProblem"] == "no copy within 0.2 seconds"
