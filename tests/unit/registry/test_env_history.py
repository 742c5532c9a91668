"""A history of variables in files: versions, their order, what is damage, and many writers at once."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from codeb_mcp.model.env import render
from codeb_mcp.model.errors import Conflict, NotFound, RegistryDamaged
from codeb_mcp.registry.env_history import Changed, Draft, EnvHistories, EnvSnapshot, make_immutable, values_of
from codeb_mcp.registry.env_log import EnvAuthor, is_version, next_version

AT = datetime(2026, 1, 7, 12, tzinfo=UTC)
ANNA = EnvAuthor("Anna", "key_1", "acme")


def histories(root: Path) -> EnvHistories:
    """Without `chattr +i`, so that tests can clean up."""
    return EnvHistories(root, immutable_master=False)


def setting(**values: str) -> Callable[[EnvSnapshot], Sequence[Draft]]:
    """A change that adds these variables."""
    return lambda state: [Draft("set", render({**values_of(state.current), **values}).encode())]


async def put(env: EnvHistories, at: datetime = AT, **values: str) -> Changed:
    """Add variables to shop production."""
    return await env.change("shop", "production", ANNA, at, setting(**values))


def folder(root: Path) -> Path:
    """Where the history is."""
    return root / "env-backup/shop/production"


async def test_versions_are_in_order_and_unique_also_within_one_moment_and_with_a_clock_that_goes_back(
    tmp_path: Path,
) -> None:
    env = histories(tmp_path)
    for turn in range(100):
        await put(env, AT, N=str(turn))
    await put(env, AT - timedelta(days=1), N="late")
    versions = [one.version for one in (await env.snapshot("shop", "production")).entries]
    assert len(set(versions)) == 101
    assert versions == sorted(versions)
    assert all(is_version(one) for one in versions)
    assert next_version(AT, versions[-1]) > versions[-1]


async def test_the_first_version_is_never_rewritten(tmp_path: Path) -> None:
    env = histories(tmp_path)
    await put(env, A="1")
    before = (folder(tmp_path) / "master.env").stat()
    for turn in range(5):
        await put(env, A=str(turn + 2))
    after = (folder(tmp_path) / "master.env").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert (await env.snapshot("shop", "production")).master == b"A=1\n"


async def test_the_first_version_cannot_be_changed_where_the_file_system_helps(tmp_path: Path) -> None:
    probe = tmp_path / "probe"
    probe.touch()
    helped = make_immutable(str(probe))
    await EnvHistories(tmp_path).change("shop", "production", ANNA, AT, setting(A="1"))
    master = folder(tmp_path) / "master.env"
    try:
        if not helped:
            pytest.skip("this file system has no immutable files")
        with pytest.raises(PermissionError):
            master.write_bytes(b"B=2\n")
        with pytest.raises(PermissionError):
            master.unlink()
    finally:
        subprocess.run(["chattr", "-i", str(probe), str(master)], check=helped, capture_output=True)


async def test_files_are_for_their_owner_only(tmp_path: Path) -> None:
    await put(histories(tmp_path), A="1")
    for path in tmp_path.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


async def test_a_change_that_is_refused_changes_nothing(tmp_path: Path) -> None:
    env = histories(tmp_path)
    await put(env, A="1")

    def refuse(state: EnvSnapshot) -> Sequence[Draft]:
        raise Conflict("no")

    before = sorted((path, path.stat().st_mtime_ns) for path in folder(tmp_path).glob("*.*"))
    with pytest.raises(Conflict):
        await env.change("shop", "production", ANNA, AT, refuse)
    assert sorted((path, path.stat().st_mtime_ns) for path in folder(tmp_path).glob("*.*")) == before


async def test_two_drafts_are_one_commit(tmp_path: Path) -> None:
    env = histories(tmp_path)
    drafts = [Draft("adopted", b"# odd\nA=1\n"), Draft("set", b"A=2\n")]
    changed = await env.change("shop", "production", ANNA, AT, lambda state: drafts)
    assert [one.operation for one in changed.after.entries] == ["adopted", "set"]
    assert (folder(tmp_path) / "master.env").read_bytes() == b"# odd\nA=1\n"
    assert changed.after.live == b"A=2\n"
    assert await env.examine("shop", "production") == []


async def test_names_of_versions(tmp_path: Path) -> None:
    env = histories(tmp_path)
    first, second = await put(env, A="1"), await put(env, A="2")
    state = second.after
    assert state.find("master") == first.after.newest
    assert state.find("current") == state.newest
    with pytest.raises(NotFound):
        state.find("20200101T000000.000000Z")


def _text(path: Path, change: Callable[[str], str]) -> None:
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")


def _swapped(text: str) -> str:
    lines = text.split("\n")
    lines[1], lines[2] = lines[2], lines[1]
    return "\n".join(lines)


def _versions(where: Path) -> list[Path]:
    return sorted(path for path in where.glob("*.env") if path.name[0] == "2")


DAMAGE: dict[str, Callable[[Path], object]] = {
    "a version changed": lambda at: _versions(at)[1].write_bytes(b"A=9\n"),
    "a version gone": lambda at: _versions(at)[1].unlink(),
    "the newest version gone": lambda at: _versions(at)[-1].unlink(),
    "a version that nobody made": lambda at: (at / "20250101T000000.000000Z.env").write_bytes(b""),
    "versions after the last": lambda at: [(at / f"20300101T00000{n}.000000Z.env").write_bytes(b"") for n in range(3)],
    "a foreign env file": lambda at: (at / "old.env").write_bytes(b""),
    "the master changed": lambda at: (at / "master.env").write_bytes(b"A=9\n"),
    "the master gone": lambda at: (at / "master.env").unlink(),
    "the master is another version": lambda at: shutil.copy(_versions(at)[1], at / "master.env"),
    "current changed": lambda at: (at / "current.env").write_bytes(b"A=9\n"),
    "current is an old version": lambda at: shutil.copy(_versions(at)[0], at / "current.env"),
    "current gone": lambda at: (at / "current.env").unlink(),
    "the log gone": lambda at: (at / "backup-log.json").unlink(),
    "the log empty": lambda at: (at / "backup-log.json").write_bytes(b""),
    "the log is of others": lambda at: (at / "backup-log.json").write_bytes(b'[{"timestamp":"2025"}]'),
    "the log cut": lambda at: os.truncate(at / "backup-log.json", 500),
    "a name in the log changed": lambda at: _text(at / "backup-log.json", lambda text: text.replace('"A"', '"B"', 1)),
    "an author in the log changed": lambda at: _text(
        at / "backup-log.json", lambda text: text.replace("Anna", "Mona", 1)
    ),
    "entries swapped": lambda at: _text(at / "backup-log.json", _swapped),
    "the last entry taken away": lambda at: _text(
        at / "backup-log.json", lambda text: text.rsplit(",\n", 1)[0] + "\n]}\n"
    ),
    "the last two entries taken away": lambda at: _text(
        at / "backup-log.json", lambda text: text.rsplit(",\n", 2)[0] + "\n]}\n"
    ),
    "the key of the log changed": lambda at: (at.parents[2] / "keys/env.key").write_text("00" * 32),
    "the key of the log gone": lambda at: (at.parents[2] / "keys/env.key").unlink(),
    "the log of another environment": lambda at: shutil.copy(
        at.parents[1] / "blog/staging/backup-log.json", at / "backup-log.json"
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
async def test_damage_is_refused_explained_and_left_alone(tmp_path: Path, kind: str) -> None:
    env = histories(tmp_path)
    for turn in range(4):
        await put(env, A=str(turn))
        await env.change("blog", "staging", ANNA, AT, setting(A=str(turn)))
    DAMAGE[kind](folder(tmp_path))
    before = {path: path.read_bytes() for path in folder(tmp_path).glob("*.*")}
    fresh = histories(tmp_path)
    problems = await fresh.examine("shop", "production")
    assert problems, kind
    if kind != "a version changed":  # an old version is only read when it is asked for
        with pytest.raises(RegistryDamaged) as refusal:
            await put(fresh, A="new")
        assert refusal.value.hint
    assert {path: path.read_bytes() for path in before} == before


async def test_the_log_never_holds_a_value_and_is_json(tmp_path: Path) -> None:
    env = histories(tmp_path)
    await put(env, A="canary-one", B="canary-two")
    await put(env, A="canary-three")
    text = (folder(tmp_path) / "backup-log.json").read_text(encoding="utf-8")
    assert "canary" not in text
    assert [entry["changed"] for entry in json.loads(text)["entries"]] == [[], ["A"]]


WRITER = """
import asyncio, sys
from pathlib import Path
from tests.unit.registry.test_env_history import histories, put
async def main():
    env = histories(Path(sys.argv[1]))
    async def one(n):
        changed = await put(env, **{f"{sys.argv[2]}_{n}": "x" * n})
        print(changed.after.newest.version, f"{sys.argv[2]}_{n}", flush=True)
    await asyncio.gather(*(one(n) for n in range(50)))
asyncio.run(main())
"""


async def test_a_hundred_sets_at_once_from_two_processes_are_all_there_in_order(tmp_path: Path) -> None:
    env = histories(tmp_path)
    await put(env, FIRST="1")
    master = (folder(tmp_path) / "master.env").read_bytes()
    children = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", WRITER, str(tmp_path), name, stdout=asyncio.subprocess.PIPE
        )
        for name in ("LEFT", "RIGHT")
    ]
    async with asyncio.timeout(120):
        said = [await child.communicate() for child in children]
    assert [child.returncode for child in children] == [0, 0]
    acked = dict(line.split() for out, _ in said for line in out.decode().splitlines())
    assert len(acked) == 100
    state = await env.snapshot("shop", "production")
    versions = [one.version for one in state.entries]
    assert versions == sorted(versions)
    assert set(acked) == set(versions[1:])
    for before, after in zip(state.entries, state.entries[1:], strict=False):
        assert after.added == (acked[after.version],)
        assert values_of(state.read(after)).keys() - values_of(state.read(before)).keys() == set(after.added)
    assert len(values_of(state.live)) == 101
    assert (folder(tmp_path) / "master.env").read_bytes() == master
    assert await env.examine("shop", "production") == []
    print("2 processes, 100 concurrent sets, 0 lost, master byte-identical")


async def test_a_deleted_projects_history_is_put_aside_and_can_be_again_and_again(tmp_path: Path) -> None:
    env = histories(tmp_path)
    for turn in range(3):
        await put(env, A=str(turn))
        await env.retire("shop", AT + timedelta(seconds=turn))
        await env.retire("shop", AT + timedelta(seconds=turn))
        assert (await env.snapshot("shop", "production")).entries == ()
    assert env.existing() == []
    assert len(list((tmp_path / "env-backup/.deleted").iterdir())) == 3


async def test_random_kills_lose_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    acked: set[str] = set()
    for turn in range(12):
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-c", WRITER, str(tmp_path), f"T{turn}", stdout=asyncio.subprocess.PIPE
        )
        assert child.stdout is not None
        wanted = chance.randrange(1, 40)
        async with asyncio.timeout(60):
            for _ in range(wanted):
                acked.add((await child.stdout.readline()).decode().split()[0])
            child.kill()
            acked |= {line.split()[0] for line in (await child.stdout.read()).decode().splitlines() if line.count(" ")}
            await child.wait()
        env = histories(tmp_path)
        state = await env.snapshot("shop", "production")
        assert acked <= {one.version for one in state.entries}
        assert state.current == (folder(tmp_path) / "current.env").read_bytes()
        assert await env.examine("shop", "production") == []
    print(f"12 kills, {len(acked)} acknowledged versions, 0 lost")
