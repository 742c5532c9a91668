"""Damage: refused with its reason, never overwritten, and mended from the versions that are kept."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from codeb_mcp.model.errors import NotFound, RegistryDamaged
from codeb_mcp.registry.files import FileStore
from codeb_mcp.registry.store import Change
from tests.unit.registry.samples import written


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "registry"


def _old_copy(root: Path) -> None:
    (root / "ssot.json").write_bytes((root / ".generations/ssot/2.json").read_bytes())


def _foreign(root: Path) -> None:
    (root / "ssot.json").write_text('{"lineage":"ffffffffffffffffffffffffffffffff","serial":9}')


def _unlink_from_generations(path: Path) -> None:
    """What a copy from elsewhere is: a file of its own."""
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut short": (lambda root: os.truncate(root / "ssot.json", 10), "Expecting"),
    "empty": (lambda root: (root / "ssot.json").write_bytes(b""), "Expecting value"),
    "not utf-8": (lambda root: (root / "ssot.json").write_bytes(b'{"a":"\xff"}'), "is not UTF-8 at byte 6"),
    "key twice": (lambda root: (root / "ssot.json").write_text('{"a":1,"a":2}'), "has the key 'a' twice"),
    "nan": (lambda root: (root / "ssot.json").write_text('{"a":NaN}'), "contains NaN"),
    "huge number": (lambda root: (root / "ssot.json").write_text('{"a":1e999}'), "number that is too large"),
    "a list": (lambda root: (root / "ssot.json").write_text("[]"), "is not a JSON object"),
    "too deep": (lambda root: (root / "ssot.json").write_text("[" * 65 + "]" * 65), "is not a JSON object"),
    "too deep inside": (
        lambda root: (root / "ssot.json").write_text('{"a":' + "[" * 64 + "]" * 64 + "}"),
        "nested deeper than 64",
    ),
    "far too deep": (lambda root: (root / "ssot.json").write_text('{"a":' * 100_000), "nested deeper"),
    "too large": (lambda root: os.truncate(root / "ssot.json", 32 * 1024 * 1024 + 1), "is larger than"),
    "old copy": (_old_copy, "is an old copy (serial 2, but serial 3 is known)"),
    "adopted again": (lambda root: (root / "ssot.json").write_text("{}"), "is an old copy (serial 1"),
    "foreign": (_foreign, "belongs to another registry (lineage ffffffffffffffffffffffffffffffff"),
    "half of the pair": (lambda root: (root / "ssot.json").write_text('{"serial":9}'), "do not make sense"),
    "serial is text": (
        lambda root: (root / "ssot.json").write_text('{"serial":"9","lineage":"x"}'),
        "do not make sense",
    ),
    "missing": (lambda root: (root / "ssot.json").unlink(), "is missing, though serial 3 was written"),
}


@pytest.mark.parametrize("kind", DAMAGE)
async def test_damage_is_refused_with_its_reason_and_nothing_is_overwritten(root: Path, kind: str) -> None:
    store = await written(root)
    spoil, reason = DAMAGE[kind]
    _unlink_from_generations(root / "ssot.json")
    spoil(root)
    damaged = (root / "ssot.json").read_bytes() if (root / "ssot.json").exists() else None
    for reader in (store, FileStore(root)):
        with pytest.raises(RegistryDamaged) as caught:
            await reader.get("ssot")
        assert reason in caught.value.message
        assert caught.value.detail["lastGood"] == 3
        for expected in (0, 1, 3):
            with pytest.raises(RegistryDamaged):
                await reader.commit([Change("ssot", {}, expected)])
    assert damaged == ((root / "ssot.json").read_bytes() if damaged is not None else None)
    assert [(found.key, found.last_good_serial) for found in await store.examine()] == [("ssot", 3)]
    assert await store.restore("ssot", 3) > 3
    found = await store.get("ssot")
    assert found is not None
    assert found.doc == {"n": 2}
    assert await store.examine() == []
    assert damaged is None or [path.read_bytes() for path in (root / ".damaged").iterdir()] == [damaged]


@pytest.mark.parametrize("key", ["ssot", "slots/a", "domains/a", "teams", "api-keys", "key-use"])
@pytest.mark.parametrize("times", [1, 4])
@pytest.mark.parametrize("several", [False, True])
async def test_what_is_spoilt_in_place_comes_back_with_its_newest_version(
    root: Path, key: str, times: int, *, several: bool
) -> None:
    store = FileStore(root)
    for n in range(times):
        also = [Change("slots/other", {"n": n}, n)] if several else []
        await store.commit([Change(key, {"n": n}, n), *also])
    for spoil in (lambda path: os.truncate(path, 3), lambda path: path.write_text('{"x')):
        before = await store.get(key)
        assert before is not None
        spoil(root / f"{key}.json")
        [damage] = await FileStore(root).examine()
        assert (damage.last_good_serial, damage.reached) == (before.version, before.version)
        await store.restore(key, before.version)
        after = await store.get(key)
        assert after is not None
        assert after.doc == {"n": times - 1}


@pytest.mark.parametrize("key", ["idempotency/a", "images/a"])
async def test_documents_without_a_copy_of_their_own_are_restored_from_the_version_before(root: Path, key: str) -> None:
    store = FileStore(root)
    for n in range(2):
        await store.commit([Change(key, {"n": n}, n)])
    (root / f"{key}.json").write_text("{")
    [damage] = await store.examine()
    assert (damage.last_good_serial, damage.reached) == (1, 2)
    assert await store.restore(key, 1) == 3


async def test_a_version_that_is_lost_with_its_copy_is_still_known_of(root: Path) -> None:
    store = await written(root)
    (root / ".generations/ssot/3.json").write_text("{")
    (root / "ssot.json").write_text("{")
    [damage] = await store.examine()
    assert (damage.last_good_serial, damage.reached) == (2, 3)


async def test_damage_of_one_document_leaves_the_others_usable(root: Path) -> None:
    store = await written(root)
    _foreign(root)
    assert await store.commit([Change("slots/a", {}, 0)]) == {"slots/a": 1}


async def test_a_document_put_back_after_its_deletion_is_refused(root: Path) -> None:
    store = await written(root)
    copy = (root / "ssot.json").read_bytes()
    await store.commit([Change("ssot", None, 3)])
    (root / "ssot.json").write_bytes(copy)
    with pytest.raises(RegistryDamaged, match="serial 4 was deleted"):
        await store.get("ssot")


async def test_a_damaged_document_can_be_replaced_by_another(root: Path) -> None:
    store = await written(root)
    (root / "ssot.json").write_text("{")
    assert await store.replace_damaged("ssot", {"rebuilt": True}) == 4
    found = await store.get("ssot")
    assert found is not None
    assert found.doc == {"rebuilt": True}


async def test_a_generation_that_is_not_kept_cannot_be_restored(root: Path) -> None:
    store = await written(root)
    (root / ".generations/ssot/2.json").write_text("{")
    for serial in (2, 9):
        with pytest.raises(NotFound):
            await store.restore("ssot", serial)


async def test_a_damaged_lineage_is_refused(root: Path) -> None:
    await written(root)
    (root / "lineage").write_text("nonsense")
    with pytest.raises(RegistryDamaged, match="lineage"):
        await FileStore(root).get("ssot")


async def test_a_lost_lineage_makes_every_document_foreign_and_the_answer_names_theirs(root: Path) -> None:
    await written(root)
    lineage = (root / "lineage").read_text().strip()
    (root / "lineage").unlink()
    with pytest.raises(RegistryDamaged, match=lineage):
        await FileStore(root).get("ssot")


async def test_a_damaged_intent_is_refused(root: Path) -> None:
    store = await written(root)
    (root / ".intent.json").write_text('{"documents":[]}')
    with pytest.raises(RegistryDamaged, match="intent"):
        await store.commit([Change("ssot", {}, 3)])
    with pytest.raises(RegistryDamaged, match="intent"):
        await FileStore(root).get("ssot")


async def test_an_unreadable_lease_is_refused_and_can_be_freed_with_a_higher_token(root: Path) -> None:
    store = FileStore(root)
    lease = await store.acquire("environment/a", "somebody")
    (root / "leases/environment+a.json").write_text("{")
    with pytest.raises(RegistryDamaged):
        await store.acquire("environment/a", "other")
    with pytest.raises(RegistryDamaged):
        await store.check(lease.fence)
    assert [found.key for found in await store.examine()] == ["leases/environment/a"]
    await store.replace_damaged_lease("environment/a")
    assert (await store.acquire("environment/a", "other")).token > 1_000_000
    assert await store.examine() == []


async def test_a_lost_beat_only_makes_the_lease_end_earlier(root: Path) -> None:
    store = FileStore(root)
    lease = await store.renew(await store.acquire("a", "somebody", ttl_seconds=30), ttl_seconds=300)
    (root / "leases/a.beat").write_bytes(b"\0" * 20)
    found = await store.lease("a")
    assert found is not None
    assert found.expires_at < lease.expires_at
    await store.check(lease.fence)
