"""`codeb audit seal`, as the owner of the machine uses it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faces.cli_world import CliWorld

NO_KEY = {"CODEB_API_KEY": ""}


@pytest.fixture
def world(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> CliWorld:
    """The command line on a root of its own."""
    return CliWorld(tmp_path / "codeb", capsys)


def _spoil(world: CliWorld, before: str, after: str) -> None:
    for path in (world.root / "registry" / "audit").glob("*.jsonl"):
        path.write_text(path.read_text(encoding="utf-8").replace(before, after), encoding="utf-8")


def test_a_trail_that_is_whole_is_left_alone(world: CliWorld) -> None:
    world.initialised().with_project()
    said = world("audit", "seal", environ=NO_KEY)
    assert (said.code, said.out) == (0, "the audit trail is whole; nothing to seal\n")
    assert world("audit", "seal", "--json").json == {"sealed": False, "record": None, "data": [], "ok": True}


def test_damage_is_sealed_without_a_key_and_told_from_then_on(world: CliWorld) -> None:
    world.initialised().with_project()
    _spoil(world, "project_create", "project_update")
    assert world("audit", "verify").code == 30
    said = world("audit", "seal", "--reason", "a disk that lies", environ=NO_KEY)
    assert said.code == 0
    assert "changed" in said.out
    assert "sealed by record" in said.out
    verified = world("audit", "verify", "--json")
    assert (verified.code, verified.json["ok"], verified.json["sealedTotal"]) == (0, True, 1)
    assert "uid" in verified.json["sealed"][0]["sealedBy"]
    assert "a disk that lies" in world("audit", "list", "--tool", "audit_seal", "--json").out
    _spoil(world, "a disk that lies", "nothing of it")
    assert world("audit", "verify").code == 30
    again = world("audit", "seal", "--json")
    assert (again.code, again.json["sealed"], again.json["ok"]) == (0, True, True)


def test_sealing_is_only_for_the_machine_itself(world: CliWorld) -> None:
    world.initialised()
    assert world("call", "audit_seal").code != 0
    assert world("audit", "seal", "--connect", "http://127.0.0.1:1").code == 10
    assert "seal" in world("audit", "--help").out
