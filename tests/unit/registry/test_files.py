"""The file backend's own promises: files, modes, adoption, damage, generations, disks that refuse."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from codeb_mcp.model.errors import (
    CodebError,
    Conflict,
    DeadlineExceeded,
    DriverRefused,
    InsufficientStorage,
)
from codeb_mcp.registry.disk import Disk
from codeb_mcp.registry.files import FileStore
from codeb_mcp.registry.lock import hold
from codeb_mcp.registry.store import Change, update
from tests.unit.registry.samples import written

SSOT = {
    "version": "6.0.5",
    "servers": {
        "app": {"host": "192.0.2.1", "role": "application"},
        "storage": {"host": "192.0.2.2", "role": "database"},
    },
    "projects": {
        "worb": {
            "ports": {"production": {"blue": 4000, "green": 4001}},
            "database": {"name": "worb", "server": "storage"},
        }
    },
    "usedPorts": [3100, 4000, 4001],
    "_legacy": {"머리말": None, "nested": [{"x": 1.5}]},
}
SLOT = {
    "projectName": "worb",
    "teamId": "default",
    "environment": "production",
    "activeSlot": "blue",
    "blue": {"name": "blue", "state": "active", "port": 4000, "version": "v1.2.3", "containerName": "old"},
    "green": {"name": "green", "state": "deployed", "port": 4001, "version": "v1.2.4", "rolledBackAt": None},
    "lastUpdated": "2026-01-07T01:00:00Z",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "registry"


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o777])
async def test_files_are_0600_and_folders_0700_whatever_the_umask(root: Path, umask: int) -> None:
    former = os.umask(umask)
    try:
        store = FileStore(root)
        await store.commit([Change("ssot", {}, 0), Change("slots/a", {}, 0)])
        await store.commit([Change("slots/a", None, 1)])
        await store.acquire("environment/a", "somebody")
    finally:
        os.umask(former)
    for path in [root, *root.rglob("*")]:
        if path.name != ".lock":
            assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


async def test_documents_of_other_programs_are_adopted_and_keep_what_we_do_not_know(root: Path) -> None:
    (root / "slots").mkdir(parents=True)
    (root / "ssot.json").write_text(json.dumps(SSOT), encoding="utf-8")
    (root / "slots" / "worb-production.json").write_text(json.dumps(SLOT, indent=4), encoding="utf-8")
    store = FileStore(root)
    slot = await store.get("slots/worb-production")
    assert slot is not None
    assert slot.doc == SLOT
    stored = await update(store, "ssot", lambda doc: {**(doc or {}), "usedPorts": [4000]})
    assert stored is not None
    assert await store.commit([Change("slots/worb-production", slot.doc, slot.version)]) == {
        "slots/worb-production": slot.version + 1
    }
    on_disk = json.loads((root / "ssot.json").read_text(encoding="utf-8"))
    assert list(on_disk) == [*SSOT, "lineage", "serial"]
    assert {**on_disk, "usedPorts": SSOT["usedPorts"]} == {
        **SSOT,
        "lineage": (root / "lineage").read_text().strip(),
        "serial": stored.version,
    }
    assert json.loads((root / ".generations/ssot/1.json").read_text(encoding="utf-8")) == SSOT
    assert await store.examine() == []


async def test_documents_for_people_are_indented_and_others_are_not(root: Path) -> None:
    store = FileStore(root)
    await store.commit([Change("api-keys", {"키": [1]}, 0), Change("idempotency/a", {"b": [1]}, 0)])
    lineage = (root / "lineage").read_text().strip()
    assert (root / "api-keys.json").read_text(encoding="utf-8") == (
        f'{{\n  "키": [\n    1\n  ],\n  "lineage": "{lineage}",\n  "serial": 1\n}}\n'
    )
    assert (root / "idempotency/a.json").read_text() == f'{{"b":[1],"lineage": "{lineage}", "serial": 1}}\n'


async def test_the_stores_own_keys_are_its_own(root: Path) -> None:
    store = FileStore(root)
    await store.commit([Change("ssot", {"serial": 77, "lineage": "x", "a": 1}, 0)])
    found = await store.get("ssot")
    assert found is not None
    assert (found.doc, found.version) == ({"a": 1}, 1)


async def test_another_process_sees_each_version(root: Path) -> None:
    ours, theirs = FileStore(root), FileStore(root)
    for n in range(50):  # same size, faster than time stamps tick
        await ours.commit([Change("ssot", {"n": n % 10}, n)])
        found = await theirs.get("ssot")
        assert found is not None
        assert (found.doc, found.version) == ({"n": n % 10}, n + 1)


async def test_an_unchanged_document_is_the_same_object_again(root: Path) -> None:
    store = await written(root)
    os.utime(root / "ssot.json", (1, 1))
    first, second = await store.get("ssot"), await store.get("ssot")
    assert first is not None
    assert first is second


async def test_the_newest_generations_are_kept(root: Path) -> None:
    store = FileStore(root, generations=3)
    for n in range(40):
        await store.commit([Change("ssot", {"n": n}, n)])
    assert sorted(path.name for path in (root / ".generations/ssot").iterdir()) == ["38.json", "39.json", "40.json"]
    assert json.loads((root / ".generations/ssot/39.json").read_text())["n"] == 38


async def test_forgotten_deletions_still_keep_serials_growing(root: Path) -> None:
    store = FileStore(root)
    for key in ("idempotency/a", "idempotency/b"):
        await store.commit([Change(key, {}, 0)])
    await store.commit([Change("idempotency/a", None, 1)])
    assert await store.forget_deleted("idempotency/", older_than_seconds=3600) == 0
    assert await store.forget_deleted("idempotency/", older_than_seconds=0) == 1
    assert not (root / ".generations/idempotency/a").exists()
    assert await store.get("idempotency/a") is None
    assert await store.commit([Change("idempotency/a", {}, 0)]) == {"idempotency/a": 3}
    assert await store.examine() == []


async def test_a_symbolic_link_is_not_followed(root: Path, tmp_path: Path) -> None:
    store = await written(root)
    (tmp_path / "elsewhere.json").write_text("{}")
    (root / "teams.json").symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(DriverRefused):
        await store.get("teams")


async def test_strays_of_a_crash_are_removed_at_the_next_start(root: Path) -> None:
    await written(root)
    for stray in (root / ".ssot.json.tmp", root / "slots" / ".a.json.tmp"):
        stray.parent.mkdir(exist_ok=True)
        stray.write_text("half")
    await FileStore(root).get("ssot")
    assert [path for path in root.rglob("*.tmp")] == []


async def test_a_lock_that_stays_held_is_an_answer_and_not_a_hang(root: Path) -> None:
    await written(root)
    store = FileStore(root, lock_wait_seconds=0.05)
    await store.get("ssot")
    with hold(str(root / ".lock"), wait_seconds=1):
        with pytest.raises(DeadlineExceeded):
            await store.commit([Change("ssot", {}, 3)])
        await asyncio.wait_for(store.get("ssot"), 5)
    assert await store.commit([Change("ssot", {}, 3)]) == {"ssot": 4}


async def test_a_deleted_lock_file_does_not_let_two_writers_in(root: Path) -> None:
    store = await written(root)
    (root / ".lock").unlink()
    others = [FileStore(root) for _ in range(4)]
    await asyncio.gather(*(update(other, "ssot", lambda doc: {"n": (doc or {})["n"] + 1}) for other in others))
    found = await store.get("ssot")
    assert found is not None
    assert found.doc["n"] == 2 + 4


class HastyDisk(Disk):
    """Syncs nothing, so that versions follow each other faster than time stamps tick."""

    def create(self, path: str, data: bytes, *, durable: bool) -> None:
        super().create(path, data, durable=False)

    def sync_file(self, path: str) -> None:
        """Nothing."""

    def sync_folder(self, path: str) -> None:
        """Nothing."""


async def test_versions_that_look_the_same_to_stat_are_told_apart(root: Path) -> None:
    ours, theirs = FileStore(root, disk=HastyDisk(), generations=2), FileStore(root, disk=HastyDisk(), generations=2)
    for n in range(300):  # after three, the number of the first file is used again
        await ours.commit([Change("ssot", {"n": n % 10}, n)])
        if n % 4 == 0:
            found = await theirs.get("ssot")
            assert found is not None
            assert found.version == n + 1


class FarDisk(Disk):
    """A disk on another machine."""

    def __init__(self, magic: int) -> None:
        self.magic = magic

    def file_system(self, folder: str) -> int:
        return self.magic


@pytest.mark.parametrize(("magic", "name"), [(0x6969, "nfs"), (0xFF534D42, "cifs"), (0x65735546, "fuse")])
async def test_a_network_file_system_is_refused(root: Path, magic: int, name: str) -> None:
    with pytest.raises(DriverRefused, match=name):
        await FileStore(root, disk=FarDisk(magic)).commit([Change("ssot", {}, 0)])
    assert list(root.iterdir()) == []


def test_the_magic_number_comes_from_the_kernel() -> None:
    assert Disk().file_system("/proc") == 0x9FA0


class RefusingDisk(Disk):
    """Refuses the n-th change with this error, once."""

    def __init__(self) -> None:
        self.left = -1
        self.error = errno.EIO

    def _count(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise OSError(self.error, os.strerror(self.error))

    def create(self, path: str, data: bytes, *, durable: bool) -> None:
        self._count()
        super().create(path, data, durable=durable)
        self._count()

    def sync_file(self, path: str) -> None:
        self._count()
        super().sync_file(path)

    def replace(self, source: str, target: str) -> None:
        self._count()
        super().replace(source, target)

    def sync_folder(self, path: str) -> None:
        self._count()
        super().sync_folder(path)

    def link(self, source: str, target: str) -> None:
        self._count()
        super().link(source, target)

    def unlink(self, path: str) -> None:
        self._count()
        super().unlink(path)


@pytest.mark.parametrize(
    ("code", "kind"),
    [(errno.EIO, DriverRefused), (errno.ENOSPC, InsufficientStorage), (errno.EDQUOT, InsufficientStorage)],
)
@pytest.mark.parametrize("several", [False, True])
async def test_a_disk_that_refuses_anything_once_is_an_answer_and_the_store_stays_usable(
    root: Path, code: int, kind: type[CodebError], several: bool
) -> None:
    disk = RefusingDisk()
    disk.error = code
    store = FileStore(root, disk=disk)
    await store.commit([Change("ssot", {"n": 0}, 0), Change("slots/a", {"n": 0}, 0), Change("slots/b", {}, 0)])
    versions: dict[str, Any] = {"ssot": 1, "slots/a": 1}
    refused = 0
    for at in range(1, 40):
        names = list(versions) if several else ["ssot"]
        disk.left = at
        try:
            await store.commit([Change(name, {"n": at}, versions[name]) for name in names])
        except CodebError as error:
            assert type(error) is kind  # noqa: PT017
            refused += 1
        disk.left = -1
        for reader in (store, FileStore(root)):
            found = [await reader.get(name) for name in names]
            assert len({item.doc["n"] if item else None for item in found}) == 1
        versions |= {name: item.version for name, item in zip(names, found, strict=True) if item}
    assert refused >= (10 if several else 5)
    assert await store.examine() == []


async def test_a_conflict_in_shared_commits_fails_alone(root: Path) -> None:
    store = FileStore(root)
    answers = await asyncio.gather(
        *(store.commit([Change(f"slots/{n}", {"n": n}, n % 2)]) for n in range(20)), return_exceptions=True
    )
    assert [isinstance(answer, Conflict) for answer in answers] == [n % 2 == 1 for n in range(20)]
    assert len(await store.keys("slots/")) == 10
