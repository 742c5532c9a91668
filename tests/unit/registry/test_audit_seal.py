"""Damage that was sealed is known and never forgotten; any other damage, before, in or after a seal, is found."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from codeb_mcp.model.errors import RegistryDamaged
from codeb_mcp.registry.audit import AuditReport, AuditTrail
from codeb_mcp.registry.chain_walk import FLAWS_KEPT, Flaw, Seal
from tests.unit.registry.test_audit import TAMPERED, filled, record

KINDS: dict[str, Callable[[Path], object]] = {**TAMPERED, "key deleted": lambda folder: (folder / ".key").unlink()}
MARCH = "2026-03.jsonl"


async def _verified(root: Path) -> AuditReport:
    return await AuditTrail(root).verify()


async def _sealed(root: Path, *, month: int = 3) -> Seal:
    """Seal what is broken, as a process of its own."""
    wanted = replace(record(0, month=month, tool="audit_seal"), actor="root", arguments={"reason": "disk"})
    seal = await AuditTrail(root).seal(wanted)
    assert seal is not None
    return seal


def _spoil(root: Path, month: str, change: Callable[[list[bytes]], list[bytes]]) -> None:
    path = root / "audit" / month
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))


def _change_second(lines: list[bytes]) -> list[bytes]:
    return [lines[0], lines[1].replace(b"deploy", b"delete"), *lines[2:]]


async def _damaged_and_sealed(root: Path, *, month: int = 2) -> Seal:
    """A trail of three months with a changed record in the second, sealed in the third (or later), and two more records."""
    trail = await filled(root)
    _spoil(root, "2026-02.jsonl", _change_second)
    seal = await _sealed(root, month=month)
    await trail.append([record(1, month=month), record(2, month=month)], durable=True)
    return seal


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("month", [2, 5], ids=["in the newest file", "in a new file"])
@pytest.mark.parametrize("kind", KINDS)
async def test_after_a_seal_the_trail_is_whole_again_and_tells_what_was_broken(
    tmp_path: Path, kind: str, month: int, durable: bool
) -> None:
    await filled(tmp_path, durable=durable)
    KINDS[kind](tmp_path / "audit")
    seal = await _sealed(tmp_path, month=month)
    assert seal.flaws
    report = await _verified(tmp_path)
    assert (report.ok, report.first_problem, report.records) == (True, None, seal.record)
    for number in range(3):
        await AuditTrail(tmp_path).append([record(number, month=month + number)], durable=durable)
    report = await _verified(tmp_path)
    assert (report.ok, report.records) == (True, seal.record + 3)
    assert report.seals == (seal,)
    assert seal.record >= 25, "no number is given twice"
    assert await AuditTrail(tmp_path).seal(record(5, month=6)) is None, "there is nothing left to seal"
    assert (await _verified(tmp_path)).records == seal.record + 3


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("middle deleted", Flaw("missing", "", "2026-02.jsonl", 4, None, 12, 12)),
        ("month deleted", Flaw("missing", "", MARCH, 1, None, 9, 16)),
        ("last two deleted", Flaw("missing", "", "head.json", None, None, 23, 24)),
        ("repeated", Flaw("displaced", "", "2026-02.jsonl", 2)),
        ("inserted", Flaw("changed", "", MARCH, 9)),
        ("empty line", Flaw("changed", "", "2026-02.jsonl", 3)),
        ("head emptied", Flaw("head", "", "head.json")),
    ],
)
async def test_a_seal_says_where_and_what_the_damage_is(tmp_path: Path, kind: str, expected: Flaw) -> None:
    await filled(tmp_path)
    KINDS[kind](tmp_path / "audit")
    seal = await _sealed(tmp_path)
    assert [replace(flaw, problem="") for flaw in seal.flaws] == [expected]
    assert seal.flaws[0].problem


async def test_lines_that_were_changed_in_a_row_are_one_range(tmp_path: Path) -> None:
    await filled(tmp_path)
    _spoil(tmp_path, "2026-01.jsonl", lambda lines: [line.replace(b"deploy", b"delete") for line in lines])
    seal = await _sealed(tmp_path)
    assert [(flaw.kind, flaw.line, flaw.last_line) for flaw in seal.flaws] == [("changed", 1, 8)]


async def test_a_trail_that_is_whole_is_not_sealed_and_not_touched(tmp_path: Path) -> None:
    trail = await filled(tmp_path)
    before = {path.name: path.read_bytes() for path in (tmp_path / "audit").iterdir()}
    assert await trail.seal(record(1, month=3)) is None
    assert {path.name: path.read_bytes() for path in (tmp_path / "audit").iterdir()} == before
    assert await AuditTrail(tmp_path / "new").seal(record(1)) is None


@pytest.mark.parametrize("month", [2, 4], ids=["in the newest file", "in a new file"])
async def test_every_flipped_byte_before_in_and_after_a_seal_is_found(tmp_path: Path, month: int) -> None:
    trail = AuditTrail(tmp_path)
    await trail.append([record(n) for n in range(2)], durable=True)
    await trail.append([record(3, month=2)], durable=True)
    _spoil(tmp_path, "2026-01.jsonl", lambda lines: [lines[0].replace(b"deploy", b"delete"), *lines[1:]])
    await _sealed(tmp_path, month=month)
    await trail.append([record(4, month=month)], durable=True)
    assert (await _verified(tmp_path)).ok
    for path in sorted((tmp_path / "audit").glob("*.jsonl")):
        good = path.read_bytes()
        for at in range(len(good)):
            path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
            report = await trail.verify()
            assert not report.ok, (path.name, at)
            assert report.first_problem
        path.write_bytes(good)
    assert (await _verified(tmp_path)).ok


SEAL_AT = 8  # the line, from 0, of the seal among those of the third month
AFTER: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "the seal is removed": lambda lines: [*lines[:SEAL_AT], *lines[SEAL_AT + 1 :]],
    "the seal and all after it are removed": lambda lines: lines[:SEAL_AT],
    "the seal names other damage": lambda lines: [
        line.replace(b'"kind":"changed"', b'"kind":"missing"') for line in lines
    ],
    "the seal is moved back": lambda lines: [*lines[:7], lines[8], lines[7], *lines[9:]],
    "the seal is moved to the end": lambda lines: [*lines[:8], *lines[9:], lines[8]],
    "the seal is repeated at the end": lambda lines: [*lines, lines[8]],
    "a record after it is removed": lambda lines: [*lines[:9], *lines[10:]],
    "a record after it is changed": lambda lines: [*lines[:9], lines[9].replace(b"deploy", b"delete"), *lines[10:]],
    "the last record is removed": lambda lines: lines[:-1],
    "the records after it are swapped": lambda lines: [*lines[:9], lines[10], lines[9]],
    "a record before it is changed": lambda lines: [lines[0].replace(b"deploy", b"delete"), *lines[1:]],
    "a record before it is removed": lambda lines: lines[1:],
    "a line before it is added": lambda lines: [lines[0], b"{}\n", *lines[1:]],
}


@pytest.mark.parametrize("kind", AFTER)
async def test_tampering_after_a_seal_is_found_and_can_be_sealed_in_turn(tmp_path: Path, kind: str) -> None:
    first = await _damaged_and_sealed(tmp_path)
    lines = (tmp_path / "audit" / MARCH).read_bytes().splitlines()
    assert json.loads(lines[SEAL_AT])["tool"] == "audit_seal"
    _spoil(tmp_path, MARCH, AFTER[kind])
    report = await _verified(tmp_path)
    assert not report.ok
    assert report.first_problem
    second = await _sealed(tmp_path)
    assert second.record > first.record
    report = await _verified(tmp_path)
    assert report.ok
    assert report.seals[-1] == second
    known = [flaw for seal in report.seals for flaw in seal.flaws]
    changed = [flaw for flaw in known if (flaw.file, flaw.line) == ("2026-02.jsonl", 2)]
    assert changed, "the first damage is still told"


async def test_sealed_damage_that_is_changed_once_more_is_found(tmp_path: Path) -> None:
    seal = await _damaged_and_sealed(tmp_path)
    _spoil(tmp_path, "2026-02.jsonl", lambda lines: [lines[0], lines[1].replace(b"delete", b"delate"), *lines[2:]])
    report = await _verified(tmp_path)
    assert not report.ok
    assert report.first_problem == f"what record {seal.record} sealed was changed since"


def _rename(folder: Path) -> None:
    (folder / "2026-01.jsonl").rename(folder / "2025-12.jsonl")


def _move_a_line(folder: Path) -> None:
    january, february = folder / "2026-01.jsonl", folder / "2026-02.jsonl"
    lines = january.read_bytes().splitlines(keepends=True)
    january.write_bytes(b"".join(lines[:-1]))
    february.write_bytes(lines[-1] + february.read_bytes())


def _add_an_end(folder: Path) -> None:
    with (folder / "2026-01.jsonl").open("ab") as file:
        file.write(b"something without a line end")


@pytest.mark.parametrize("change", [_rename, _move_a_line, _add_an_end], ids=lambda change: change.__name__.strip("_"))
async def test_how_sealed_records_lie_in_their_files_is_sealed_too(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    await _damaged_and_sealed(tmp_path)
    change(tmp_path / "audit")
    assert not (await _verified(tmp_path)).ok


async def test_sealed_damage_that_is_put_right_again_is_a_change_too(tmp_path: Path) -> None:
    seal = await _damaged_and_sealed(tmp_path)
    _spoil(tmp_path, "2026-02.jsonl", lambda lines: [lines[0], lines[1].replace(b"delete", b"deploy"), *lines[2:]])
    report = await _verified(tmp_path)
    assert (report.ok, report.line) == (False, SEAL_AT + 1)
    assert str(seal.record) in (report.first_problem or "")


async def test_the_seal_of_another_trail_holds_nothing(tmp_path: Path) -> None:
    await _damaged_and_sealed(tmp_path / "one")
    await filled(tmp_path / "two")
    _spoil(tmp_path / "two", "2026-02.jsonl", _change_second)
    foreign = (tmp_path / "one/audit" / MARCH).read_bytes().splitlines(keepends=True)[SEAL_AT]
    _spoil(tmp_path / "two", MARCH, lambda lines: [*lines, foreign])
    assert not (await _verified(tmp_path / "two")).ok


async def test_the_seal_of_another_damage_under_the_same_key_holds_nothing(tmp_path: Path) -> None:
    await filled(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    for name, word in (("one", b"delete"), ("two", b"remove")):
        path = tmp_path / name / "audit/2026-02.jsonl"
        path.write_bytes(path.read_bytes().replace(b"deploy", word, 1))
    await _sealed(tmp_path / "one", month=2)
    for file in (MARCH, "head.json"):
        shutil.copy(tmp_path / "one/audit" / file, tmp_path / "two/audit" / file)
    report = await _verified(tmp_path / "two")
    assert not report.ok
    assert report.seals == ()


async def test_several_seals_are_all_told(tmp_path: Path) -> None:
    first = await _damaged_and_sealed(tmp_path)
    _spoil(tmp_path, MARCH, lambda lines: lines[:-1])
    second = await _sealed(tmp_path)
    (tmp_path / "audit/head.json").unlink()
    third = await _sealed(tmp_path, month=4)
    report = await _verified(tmp_path)
    assert (report.ok, report.seals) == (True, (first, second, third))
    assert [flaw.kind for seal in report.seals for flaw in seal.flaws] == ["changed", "missing", "head"]


async def test_very_much_damage_is_told_in_part_and_counted(tmp_path: Path) -> None:
    trail = AuditTrail(tmp_path)
    await trail.append([record(n % 50) for n in range(3 * FLAWS_KEPT)], durable=True)
    _spoil(tmp_path, "2026-01.jsonl", lambda lines: [b"x" + line if n % 2 else line for n, line in enumerate(lines)])
    await _sealed(tmp_path)
    report = await _verified(tmp_path)
    assert report.ok
    [seal] = report.seals
    assert len(seal.flaws) == FLAWS_KEPT + 1
    assert (seal.flaws[-1].kind, seal.flaws[-1].problem) == ("more", f"{75 - FLAWS_KEPT} more")
    _spoil(tmp_path, "2026-01.jsonl", lambda lines: lines[1:])
    assert not (await _verified(tmp_path)).ok


async def test_a_server_that_runs_meanwhile_goes_on_in_the_new_segment(tmp_path: Path) -> None:
    server = await filled(tmp_path)
    _spoil(tmp_path, MARCH, lambda lines: [*lines[:-1], b"garbage\n"])
    with pytest.raises(RegistryDamaged) as refusal:
        await server.append([record(1, month=2)], durable=True)
    assert "codeb audit seal" in refusal.value.hint
    seal = await _sealed(tmp_path)
    await server.append([record(2, month=3)], durable=True)
    report = await server.verify()
    assert (report.ok, report.records, report.seals) == (True, seal.record + 1, (seal,))


async def test_a_server_that_runs_takes_the_new_key_after_one_was_lost(tmp_path: Path) -> None:
    server = await filled(tmp_path)
    (tmp_path / "audit/.key").unlink()
    seal = await _sealed(tmp_path)
    assert {flaw.kind for flaw in seal.flaws} == {"changed", "head", "key"}
    await server.append([record(2, month=3)], durable=True)
    report = await _verified(tmp_path)
    assert (report.ok, report.records) == (True, seal.record + 1)
    assert (await server.verify()).ok


async def test_a_key_that_is_damaged_is_not_replaced(tmp_path: Path) -> None:
    await filled(tmp_path)
    (tmp_path / "audit/.key").write_text("ab", encoding="utf-8")
    with pytest.raises(RegistryDamaged) as refusal:
        await AuditTrail(tmp_path).seal(record(1, month=3))
    assert "remove it" in refusal.value.hint
    assert (tmp_path / "audit/.key").read_text(encoding="utf-8") == "ab"


async def test_a_seal_whose_head_was_not_written_any_more_is_no_harm(tmp_path: Path) -> None:
    await filled(tmp_path)
    head = (tmp_path / "audit/head.json").read_bytes()
    _spoil(tmp_path, "2026-02.jsonl", _change_second)
    await _sealed(tmp_path)
    (tmp_path / "audit/head.json").write_bytes(head)
    assert (await _verified(tmp_path)).ok
    await AuditTrail(tmp_path).append([record(1, month=3)], durable=True)
    assert (await _verified(tmp_path)).ok
    for _ in range(2):
        (tmp_path / "audit/head.json").write_bytes(b"?" * 600)
        assert not (await _verified(tmp_path)).ok
        assert [flaw.kind for flaw in (await _sealed(tmp_path)).flaws] == ["head"]
        assert (await _verified(tmp_path)).ok


async def test_two_who_seal_at_once_leave_one_seal(tmp_path: Path) -> None:
    await filled(tmp_path)
    _spoil(tmp_path, "2026-02.jsonl", _change_second)
    trails = [AuditTrail(tmp_path) for _ in range(4)]
    seals = await asyncio.gather(*(trail.seal(record(1, month=3, tool="audit_seal")) for trail in trails))
    assert len([seal for seal in seals if seal is not None]) == 1
    assert len((await _verified(tmp_path)).seals) == 1


async def test_the_seal_is_a_record_that_can_be_listed(tmp_path: Path) -> None:
    seal = await _damaged_and_sealed(tmp_path)
    [row], _ = await AuditTrail(tmp_path).page(team=None, limit=5, offset=0, tool="audit_seal")
    assert (row["n"], row["actor"], row["arguments"]) == (seal.record, "root", {"reason": "disk"})
    assert [Flaw.of(flaw) for flaw in row["seal"]["flaws"]] == list(seal.flaws)


async def test_what_a_caller_says_cannot_make_a_seal(tmp_path: Path) -> None:
    trail = await filled(tmp_path)
    _spoil(tmp_path, "2026-02.jsonl", _change_second)
    forged = {"seal": {"digest": "0" * 64, "flaws": []}}
    await trail.append([replace(record(1, month=3, tool="audit_seal"), arguments=forged)], durable=True)
    report = await _verified(tmp_path)
    assert (report.ok, report.seals) == (False, ())


async def test_two_processes_that_cross_the_end_of_a_month_write_one_chain(tmp_path: Path) -> None:
    one, two = AuditTrail(tmp_path), AuditTrail(tmp_path)
    for month in (0, 1, 2):
        for number, trail in enumerate((one, two, one, two)):
            await trail.append([record(number, month=month)], durable=number % 2 == 0)
    report = await _verified(tmp_path)
    assert (report.ok, report.records) == (True, 12)
