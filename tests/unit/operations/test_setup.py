"""The first start, and everything that is read on the way: folders, env files, limits, progress."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from codeb_mcp.model.access import Role
from codeb_mcp.model.errors import RegistryDamaged
from codeb_mcp.operations.context import Event
from codeb_mcp.operations.keys import KeyRing
from codeb_mcp.operations.setup import FOLDERS, initialise
from tests.unit.operations.world import OWNER, World, principal

HERE = {"projectName": "shop", "environment": "production"}


async def test_the_first_init_makes_folders_and_one_owner_of_the_platform(tmp_path: Path) -> None:
    world = World(tmp_path / "new")
    made = await initialise(world.services)
    assert set(made.created) == {"ssot", "teams", "api-keys"}
    assert made.owner_key is not None
    for name, mode in FOLDERS.items():
        assert stat.S_IMODE((tmp_path / "new" / name).stat().st_mode) == mode
    caller = await KeyRing().authenticate(world.services, made.owner_key, via="test")
    assert (caller.team, caller.role, caller.platform, caller.scopes) == ("default", Role.OWNER, True, ())
    world.clock.forward(days=4000)
    await KeyRing().authenticate(world.services, made.owner_key, via="test")
    await world.close()


async def test_an_init_that_was_cut_off_is_completed(tmp_path: Path) -> None:
    world = World(tmp_path / "new")
    await initialise(world.services)
    (world.settings.registry / "teams.json").unlink()
    shutil.rmtree(world.settings.registry / ".generations")
    world.restart()
    made = await initialise(world.services)
    assert (made.created, made.owner_key) == (("teams",), None)
    await world.close()


async def test_a_lost_index_is_not_begun_anew_over_slots_that_are_there(world: World) -> None:
    await world.project()
    (world.settings.registry / "ssot.json").unlink()
    world.restart()
    with pytest.raises(RegistryDamaged) as refusal:
        await initialise(world.services)
    assert "rebuild" in refusal.value.hint


async def test_before_init_every_operation_says_what_to_do(tmp_path: Path) -> None:
    world = World(tmp_path / "new")
    refusal = await world.refused("not_found", "project_create", projectName="shop")
    assert "codeb init" in refusal.hint
    await world.close()


def _write_env(world: World, content: bytes) -> None:
    path = world.settings.projects / "shop" / ".env.production"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


async def test_the_env_file_goes_into_the_container_literally_and_only_its_hash_into_the_registry(world: World) -> None:
    await world.project()
    _write_env(world, b'A=1\nSECRET="p$A w"\nEMPTY=\nURL=postgres://u:p@h/d?x=1\n')
    await world.live("v1")
    environment = world.engine.containers["shop-production-blue"].spec.environment
    assert environment == {"PORT": "8080", "A": "1", "SECRET": "p$A w", "EMPTY": "", "URL": "postgres://u:p@h/d?x=1"}
    slots = await world.slots()
    assert len(slots.blue.env_hash or "") == 64
    everything = b"".join(path.read_bytes() for path in world.settings.registry.rglob("*") if path.is_file())
    assert b"p$A w" not in everything
    assert b"postgres://u:p" not in everything


@pytest.mark.parametrize("content", [b"\xff\xfe", b"A=\xe9\n"])
async def test_an_env_file_that_cannot_be_read_stops_the_deploy(world: World, content: bytes) -> None:
    await world.project()
    _write_env(world, content)
    refusal = await world.refused("registry_damaged", "deploy", **HERE, image=world.image("v1"))
    assert "not UTF-8" in refusal.message
    assert world.running() == []


async def test_progress_reaches_whoever_listens_step_by_step(world: World) -> None:
    await world.project()
    heard: list[Event] = []
    await world.call("deploy", OWNER, heard.append, **HERE, image=world.image("v1"), autoPromote=True)
    steps = list(dict.fromkeys(event.step for event in heard))
    assert steps[:3] == ["pull_image", "cleanup_container", "start_container"]
    assert "verify_public" in steps
    assert [event.position for event in heard] == sorted(event.position for event in heard)
    assert all(1 <= event.position <= event.total for event in heard)
    assert any(event.fraction == 0.5 for event in heard if event.step == "pull_image")
    assert len({event.operation_id for event in heard}) == 1


async def test_too_many_calls_of_a_key_or_a_team_are_slowed_down(world: World) -> None:
    server = world.settings.server.model_copy(update={"calls_per_minute": 5, "team_calls_per_minute": 8})
    world.settings = world.settings.model_copy(update={"server": server})
    world.restart()
    first, second = principal(Role.VIEWER), principal(Role.MEMBER)
    for _ in range(5):
        await world.call("project_list", first)
    refusal = await world.refused("rate_limited", "project_list", first)
    assert (refusal.detail["limit"], refusal.detail["remaining"]) == (5, 0)
    assert refusal.detail["retryAfter"] >= 1
    for _ in range(3):
        await world.call("project_list", second)
    await world.refused("rate_limited", "project_list", second)
    await world.call("project_list", principal(Role.VIEWER, "acme"))


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def narrow_umask() -> Iterator[None]:
    """As a careful administrator has it."""
    former = os.umask(0o077)
    yield
    os.umask(former)


@pytest.mark.usefixtures("narrow_umask")
async def test_a_narrow_umask_cuts_nothing_from_the_folders_that_the_proxy_passes(tmp_path: Path) -> None:
    world = World(tmp_path / "deep" / "root")
    await initialise(world.services)
    assert [_mode(tmp_path / name) for name in ("deep", "deep/root", "deep/root/traffic")] == [0o755] * 3
    assert {_mode(tmp_path / "deep/root" / name) for name in FOLDERS if name != "traffic"} == {0o700}
    await world.close()


async def test_a_repeated_init_widens_what_init_made_and_says_so(tmp_path: Path) -> None:
    world = World(tmp_path / "root")
    assert (await initialise(world.services)).repaired == ()
    root = world.settings.root
    root.chmod(0o750)
    (root / "traffic").chmod(0o700)
    (root / "registry").chmod(0o700)
    again = await initialise(world.services)
    assert again.repaired == (str(root), str(root / "traffic"))
    assert (_mode(root), _mode(root / "traffic"), _mode(root / "registry")) == (0o755, 0o755, 0o700)
    assert (await initialise(world.services)).repaired == ()
    await world.close()


async def test_a_folder_that_init_did_not_make_is_left_alone_and_warned_of(tmp_path: Path) -> None:
    root = tmp_path / "theirs"
    root.mkdir(mode=0o700)
    world = World(root)
    for _ in range(2):
        made = await initialise(world.services)
        assert made.repaired == ()
        assert any(f"chmod o+x {root}" in warning for warning in made.warnings)
    assert _mode(root) == 0o700
    await world.close()
