"""The audit trail: what was written is found, and what was changed is found out."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from codeb_mcp.model.errors import InvalidRequest, RegistryDamaged
from codeb_mcp.registry.audit import AuditRecord, AuditTrail
from tests.unit.registry.clock import StillClock


def record(n: int, *, team: str = "default", month: int = 0, tool: str = "deploy") -> AuditRecord:
    at = StillClock()() + timedelta(days=28 * month, seconds=n)
    arguments = {"n": n, "note": '"team":"other"', "이름": "값"}
    return AuditRecord(at, f"actor{n % 3}", f"k{n}", team, "member", tool, "ok", project="worb", arguments=arguments)


async def filled(root: Path, *, durable: bool = True) -> AuditTrail:
    trail = AuditTrail(root)
    for month in range(3):
        for n in range(4):
            await trail.append([record(n, month=month), record(n + 10, month=month)], durable=durable)
    return trail


async def test_a_whole_trail_is_ok_and_files_are_by_month(tmp_path: Path) -> None:
    trail = await filled(tmp_path)
    report = await trail.verify()
    assert (report.ok, report.records, report.first_problem) == (True, 24, None)
    assert sorted(path.name for path in (tmp_path / "audit").glob("*.jsonl")) == [
        "2026-01.jsonl", "2026-02.jsonl", "2026-03.jsonl",
    ]  # fmt: skip
    row = json.loads((tmp_path / "audit/2026-01.jsonl").read_text(encoding="utf-8").splitlines()[0])
    assert row["at"] == "2026-01-31T23:59:00+00:00"
    assert (row["actor"], row["keyId"], row["arguments"]["n"], row["n"]) == ("actor0", "k0", 0, 1)
    assert (await AuditTrail(tmp_path / "new").verify()).ok


def _lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def _change(month: int, change: Callable[[list[bytes]], list[bytes]]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / f"2026-0{month}.jsonl"
        path.write_bytes(b"".join(change(_lines(path))))

    return spoil


def _flip_head(folder: Path) -> None:
    data = (folder / "head.json").read_bytes()
    (folder / "head.json").write_bytes(data.replace(b'"count": 24', b'"count": 23'))


def _delete_months(folder: Path) -> None:
    for path in folder.glob("*.jsonl"):
        path.unlink()


TAMPERED: dict[str, Callable[[Path], object]] = {
    "first deleted": _change(1, lambda lines: lines[1:]),
    "middle deleted": _change(2, lambda lines: lines[:3] + lines[4:]),
    "last of a month deleted": _change(2, lambda lines: lines[:-1]),
    "last deleted": _change(3, lambda lines: lines[:-1]),
    "last two deleted": _change(3, lambda lines: lines[:-2]),
    "cut in the last line": _change(3, lambda lines: [*lines[:-1], lines[-1][:-1]]),
    "cut in a former month": _change(1, lambda lines: [*lines[:-1], lines[-1][:-9]]),
    "swapped": _change(2, lambda lines: [lines[1], lines[0], *lines[2:]]),
    "repeated": _change(2, lambda lines: [lines[0], *lines]),
    "repeated at the end": _change(3, lambda lines: [*lines, lines[-1]]),
    "inserted": _change(3, lambda lines: [*lines, b'{"n":25,"prev":"0","hash":"0","mac":"0"}\n']),
    "empty line": _change(2, lambda lines: [*lines[:2], b"\n", *lines[2:]]),
    "emptied": _change(3, lambda lines: []),
    "month deleted": lambda folder: (folder / "2026-02.jsonl").unlink(),
    "last month deleted": lambda folder: (folder / "2026-03.jsonl").unlink(),
    "all months deleted": _delete_months,
    "months swapped": lambda folder: (
        (folder / "2026-02.jsonl").rename(folder / "x"),
        (folder / "2026-03.jsonl").rename(folder / "2026-02.jsonl"),
        (folder / "x").rename(folder / "2026-03.jsonl"),
    ),
    "head deleted": lambda folder: (folder / "head.json").unlink(),
    "head changed": _flip_head,
    "head emptied": lambda folder: (folder / "head.json").write_bytes(b""),
    "key replaced": lambda folder: (folder / ".key").write_text("00" * 32),
}


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("kind", TAMPERED)
async def test_tampering_is_found_and_stays_found_after_the_next_record(
    tmp_path: Path, kind: str, durable: bool
) -> None:
    writer = await filled(tmp_path, durable=durable)
    TAMPERED[kind](tmp_path / "audit")
    report = await AuditTrail(tmp_path).verify()
    assert not report.ok
    assert report.first_problem
    # Who wrote all of it knows the true head and may restore it; anybody else must not.
    for trail in (AuditTrail(tmp_path), *(() if kind.startswith("head") else (writer,))):
        with contextlib.suppress(RegistryDamaged):  # refusing to go on hides nothing
            await trail.append([record(99, month=3)], durable=durable)
        assert not (await AuditTrail(tmp_path).verify()).ok


async def test_every_flipped_byte_is_found_where_it_is(tmp_path: Path) -> None:
    trail = AuditTrail(tmp_path)
    await trail.append([record(n) for n in range(3)], durable=True)
    path = tmp_path / "audit/2026-01.jsonl"
    good = path.read_bytes()
    lines = good.count(b"\n")
    for at in range(len(good)):
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        report = await trail.verify()
        assert not report.ok, at
        assert (report.line or lines) <= good[: at + 1].count(b"\n") + 1
    path.write_bytes(good)
    assert (await trail.verify()).ok


async def test_a_trail_rewritten_without_the_key_is_found(tmp_path: Path) -> None:
    await filled(tmp_path / "real")
    forger = AuditTrail(tmp_path / "forged")
    await forger.append([record(n) for n in range(24)], durable=True)
    for path in (tmp_path / "real/audit").glob("*.jsonl"):
        path.unlink()
    shutil.copy(tmp_path / "forged/audit/2026-01.jsonl", tmp_path / "real/audit/2026-01.jsonl")
    report = await AuditTrail(tmp_path / "real").verify()
    assert (report.ok, report.line) == (False, 1)


async def test_records_of_another_past_under_the_same_key_are_found(tmp_path: Path) -> None:
    await filled(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "other")
    for name in ("one", "other"):
        await AuditTrail(tmp_path / name).append([record(n + len(name), month=2) for n in range(3)], durable=True)
    path = Path("audit/2026-03.jsonl")
    mixed = [*_lines(tmp_path / "one" / path)[:-2], *_lines(tmp_path / "other" / path)[-2:]]
    shutil.copy(tmp_path / "other/audit/head.json", tmp_path / "one/audit/head.json")
    (tmp_path / "one" / path).write_bytes(b"".join(mixed))
    report = await AuditTrail(tmp_path / "one").verify()
    assert (report.ok, report.line) == (False, 10)


async def test_a_torn_end_that_nobody_was_told_about_is_no_tampering(tmp_path: Path) -> None:
    await filled(tmp_path)
    with (tmp_path / "audit/2026-03.jsonl").open("ab") as file:
        file.write(b'{"n":25,"at":"2026')
    assert (await AuditTrail(tmp_path).verify()).ok
    trail = AuditTrail(tmp_path)
    await trail.append([record(1, month=2)], durable=True)
    report = await trail.verify()
    assert (report.ok, report.records) == (True, 25)


async def test_records_beyond_a_head_that_lags_are_fine(tmp_path: Path) -> None:
    trail = await filled(tmp_path)
    head = (tmp_path / "audit/head.json").read_bytes()
    await trail.append([record(1, month=2)], durable=True)
    (tmp_path / "audit/head.json").write_bytes(head)
    assert (await AuditTrail(tmp_path).verify()).ok
    other = AuditTrail(tmp_path)
    await other.append([record(2, month=2)], durable=True)
    assert (await other.verify()).records == 26


async def test_after_another_boot_unsynced_records_may_be_missing_and_synced_ones_not(tmp_path: Path) -> None:
    trail = AuditTrail(tmp_path)
    await trail.append([record(1)], durable=True)
    await trail.append([record(2)], durable=False)
    trail.boot = "another boot"
    await trail.append([record(3)], durable=False)
    path = tmp_path / "audit/2026-01.jsonl"
    lines = _lines(path)
    path.write_bytes(lines[0])
    assert (await AuditTrail(tmp_path).verify()).ok
    path.write_bytes(b"")
    assert not (await AuditTrail(tmp_path).verify()).ok
    path.write_bytes(lines[0])
    survivor = AuditTrail(tmp_path)
    await survivor.append([record(4)], durable=True)
    report = await survivor.verify()
    assert (report.ok, report.records) == (True, 2)


async def test_a_clock_set_back_keeps_the_order(tmp_path: Path) -> None:
    trail = await filled(tmp_path)
    await trail.append([record(5, month=0)], durable=True)
    assert (await trail.verify()).records == 25
    assert len(_lines(tmp_path / "audit/2026-03.jsonl")) == 9


async def test_pages_are_newest_first_and_of_one_team_only(tmp_path: Path) -> None:
    trail = AuditTrail(tmp_path)
    for n in range(30):
        team = "other" if n % 3 == 0 else "default"
        await trail.append(
            [record(n, team=team, month=n // 10, tool="promote" if n == 29 else "deploy")], durable=False
        )
    rows, total = await trail.page(team="other", limit=3, offset=2)
    assert total == 10
    assert [row["arguments"]["n"] for row in rows] == [21, 18, 15]
    assert {row["team"] for row in rows} == {"other"}
    assert not {"mac", "hash", "prev"} & set(rows[0])
    rows, total = await trail.page(team=None, limit=2, offset=0)
    assert ([row["arguments"]["n"] for row in rows], total) == ([29, 28], 30)
    rows, total = await trail.page(team=None, limit=5, offset=0, tool="promote", actor=None)
    assert ([row["arguments"]["n"] for row in rows], total) == ([29], 1)
    assert await trail.page(team="nobody", limit=5, offset=0) == ([], 0)
    assert await AuditTrail(tmp_path / "new").page(team=None, limit=5, offset=0) == ([], 0)


WRITER = """
import asyncio, sys
from pathlib import Path
from tests.unit.registry.test_audit import record
from codeb_mcp.registry.audit import AuditTrail
async def main():
    trail = AuditTrail(Path(sys.argv[1]))
    for n in range(40):
        await trail.append([record(n)], durable=n % 4 == 0)
asyncio.run(main())
"""


async def test_four_processes_write_one_chain(tmp_path: Path) -> None:
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)]) for _ in range(4)]
    assert [await asyncio.to_thread(writer.wait, 60) for writer in writers] == [0] * 4
    report = await AuditTrail(tmp_path).verify()
    assert (report.ok, report.records) == (True, 160)


async def test_appending_does_not_read_what_is_there(tmp_path: Path) -> None:
    trail = AuditTrail(tmp_path)
    await trail.append([record(n % 50) for n in range(3000)], durable=False)
    path = tmp_path / "audit/2026-01.jsonl"
    before = path.stat().st_size
    for n in range(20):  # a damaged beginning is not even noticed
        with path.open("r+b") as file:
            file.write(b"\0" * 50_000)
        await AuditTrail(tmp_path).append([record(n)], durable=False)
    assert path.stat().st_size > before
    assert (await trail.verify()).line == 1


async def test_a_record_that_is_not_json_is_refused(tmp_path: Path) -> None:
    trail = await filled(tmp_path)
    bad = AuditRecord(StillClock()(), "a", "k", "t", "r", "deploy", "ok", arguments={"a": object()})
    with pytest.raises(InvalidRequest):
        await trail.append([record(1, month=2), bad], durable=True)
    assert (await trail.verify()).records == 24


async def test_the_key_and_the_files_are_private(tmp_path: Path) -> None:
    await filled(tmp_path)
    names = sorted(os.listdir(tmp_path / "audit"))
    assert names == [".key", ".lock", "2026-01.jsonl", "2026-02.jsonl", "2026-03.jsonl", "head.json"]
    assert {(tmp_path / "audit" / name).stat().st_mode & 0o777 for name in names} == {0o600}


async def test_a_lost_key_is_refused_and_not_replaced(tmp_path: Path) -> None:
    await filled(tmp_path)
    (tmp_path / "audit/.key").unlink()
    with pytest.raises(RegistryDamaged):
        await AuditTrail(tmp_path).append([record(1)], durable=True)
    assert not (tmp_path / "audit/.key").exists()
