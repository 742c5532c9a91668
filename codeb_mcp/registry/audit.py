"""The audit trail: who did what, when, with which outcome, so written that a change to it is found.

`audit/YYYY-MM.jsonl`, one record per line. Each carries its number, the hash of the record before it (`prev`), its own
hash and an HMAC of that hash with the key in `audit/.key`. `audit/head.json` holds count and hash of the newest record
under the same HMAC, so that records missing at the end are found as well. The head is written after the records, in
place: it may lag behind them, never run ahead. Records not yet synced may be lost with the machine, so the head also
says up to which count they were synced, and which boot wrote it: after another boot only the synced ones must be there.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from codeb_mcp.model.errors import InvalidRequest, RegistryDamaged
from codeb_mcp.registry.chain import GENESIS, canonical, chained, checked, keyed
from codeb_mcp.registry.disk import Disk, put, read_file, refusals, write_all
from codeb_mcp.registry.lock import hold
from codeb_mcp.registry.process import boot_id

_HEAD_BYTES = 512
_CHUNK = 64 * 1024
_WAIT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """One decision. `outcome` is `ok` or an error code; `arguments` are redacted by the caller; `at` is aware."""

    at: datetime
    actor: str | None
    key_id: str | None
    team: str | None
    role: str | None
    tool: str
    outcome: str
    project: str | None = None
    environment: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    correlation_id: str | None = None
    operation_id: str | None = None
    duration_ms: float | None = None
    serial: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "at": self.at.astimezone(UTC).isoformat(),
            "actor": self.actor,
            "keyId": self.key_id,
            "team": self.team,
            "role": self.role,
            "tool": self.tool,
            "project": self.project,
            "environment": self.environment,
            "arguments": dict(self.arguments),
            "outcome": self.outcome,
            "correlationId": self.correlation_id,
            "operationId": self.operation_id,
            "durationMs": self.duration_ms,
            "serial": self.serial,
        }


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What `verify` found. `records` were read; `first_problem` says what is wrong at `path`, line `line` (from 1).
    `last_hash` is what to note down elsewhere: the same count must always have the same hash."""

    ok: bool
    records: int
    last_hash: str
    first_problem: str | None = None
    path: str | None = None
    line: int | None = None


@dataclass(frozen=True, slots=True)
class Tail:
    """The end of the trail: newest file, its size and inode, count and hash of the newest record."""

    path: str
    size: int
    inode: int
    count: int
    last: str


class AuditTrail:
    """The trail of one registry. Any number of processes may append; they take turns by a lock of their own."""

    def __init__(self, root: Path, *, disk: Disk | None = None) -> None:
        self._folder = f"{root.absolute()}/audit"
        self._disk = disk or Disk()
        self._tail: Tail | None = None
        self._key = b""
        self._synced = 0
        self.boot = boot_id()

    async def append(self, records: Sequence[AuditRecord], *, durable: bool) -> None:
        """Add them in this order; `durable` waits until they (and all before them) survive a power cut.

        Raises `InvalidRequest` for arguments that are not JSON, `RegistryDamaged` when the end of the trail cannot be
        read, `InsufficientStorage` or `DriverRefused` when the disk refuses (then none of them was added).
        """
        if records:
            await asyncio.to_thread(self._append, records, durable)

    async def append_made(self, make: Callable[[], Sequence[AuditRecord]], *, durable: bool) -> None:
        """The same for records that are made in the thread that writes them."""
        await asyncio.to_thread(lambda: self._append(make(), durable))

    async def page(
        self, *, team: str | None, limit: int, offset: int, **filters: str | None
    ) -> tuple[list[dict[str, Any]], int]:
        """`(rows, total)`, newest first; `team` None is all teams. Filters: any text field of a record, such as actor,
        tool, project; None filters nothing."""
        wanted = {name: value for name, value in {"team": team, **filters}.items() if value is not None}
        return await asyncio.to_thread(self._page, wanted, limit, offset)

    async def verify(self) -> AuditReport:
        """Check every record, the chain and the head; reads everything."""
        return await asyncio.to_thread(self._verify)

    def _append(self, records: Sequence[AuditRecord], durable: bool) -> None:  # noqa: FBT001
        try:
            bodies = [json.dumps(record.as_dict(), ensure_ascii=False, allow_nan=False) for record in records]
        except (TypeError, ValueError) as error:
            raise InvalidRequest(f"an audit record is not JSON: {error}") from error
        with refusals("write the audit trail"), self._locked():
            tail = self._current_tail(records[-1].at)
            count, last, lines = tail.count, tail.last, []
            for body in bodies:
                count += 1
                line, last = chained(self._key, json.loads(body), count, last)
                lines.append(line)
            size, inode = self._write(tail, b"".join(lines), durable=durable)
            self._tail = Tail(tail.path, size, inode, count, last)
            if durable:
                self._synced = count
            self._write_head(count, last)

    def _write(self, tail: Tail, data: bytes, *, durable: bool) -> tuple[int, int]:
        fresh = not os.path.lexists(tail.path)
        handle = os.open(tail.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.fchmod(handle, 0o600)
            try:
                write_all(handle, data)
                if durable:
                    os.fsync(handle)
            except OSError:
                os.ftruncate(handle, tail.size)
                raise
            status = os.fstat(handle)
        finally:
            os.close(handle)
        if durable and (fresh or self._synced < tail.count):
            self._sync_earlier()
        return status.st_size, status.st_ino

    def _sync_earlier(self) -> None:
        """Records before these may lie unsynced in the month before, and this month's name in an unsynced folder."""
        for path in self._months()[-2:-1]:
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
        self._disk.sync_folder(self._folder)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self._disk.make_folder(self._folder, durable=True)
        with hold(f"{self._folder}/.lock", wait_seconds=_WAIT_SECONDS):
            if not self._key:
                self._key = self._own_key()
                if self._read_head() is None and not self._months():
                    self._write_head(0, GENESIS)
            yield

    def _own_key(self) -> bytes:
        path = f"{self._folder}/.key"
        try:
            key = bytes.fromhex(read_file(path, 200)[0].decode())
        except FileNotFoundError:
            if self._months():
                raise RegistryDamaged(
                    "the key of the audit trail is missing",
                    hint="Restore audit/.key from a backup, or move the old trail away to begin a new one.",
                    path=path,
                ) from None
            key = secrets.token_bytes(32)
            put(self._disk, path, key.hex().encode())
        except ValueError:
            key = b""
        if len(key) != 32:
            raise RegistryDamaged("the key of the audit trail is damaged", hint="Restore audit/.key.", path=path)
        return key

    def _months(self) -> list[str]:
        try:
            names = os.listdir(self._folder)
        except FileNotFoundError:
            return []
        return sorted(f"{self._folder}/{name}" for name in names if name.endswith(".jsonl"))

    def _current_tail(self, at: datetime) -> Tail:
        """Where the next record goes, after records that others may have added."""
        newest = self._tail
        if newest is None or not _unchanged(newest):
            newest = self._read_tail()
        month = f"{self._folder}/{at.astimezone(UTC):%Y-%m}.jsonl"
        # A clock that was set back does not reopen an older month.
        return newest if month <= newest.path else replace(newest, path=month, size=0, inode=0)

    def _read_tail(self) -> Tail:
        head, months = self._read_head(), self._months()
        if not head and (head is not None or months):
            raise RegistryDamaged(
                "the head of the audit trail is missing or was changed",
                hint="Run `codeb audit verify`; move the audit folder away to go on with a new trail.",
                path=f"{self._folder}/head.json",
            )
        self._synced = head["synced"] if head else 0
        found = next((tail for path in reversed(months) if (tail := _tail_of(path))), Tail("", 0, 0, 0, GENESIS))
        if head and found.count < _certain(head):
            # Records are gone. Going on from the head leaves a gap that `verify` finds for ever.
            return replace(found, count=head["count"], last=head["hash"])
        return found

    def _write_head(self, count: int, last: str) -> None:
        doc = {"count": count, "hash": last, "synced": self._synced, "boot": self.boot}
        data = json.dumps({**doc, "mac": keyed(self._key, canonical(doc))}).encode().ljust(_HEAD_BYTES - 1) + b"\n"
        path = f"{self._folder}/head.json"
        if not os.path.lexists(path):
            put(self._disk, path, data)
            return
        handle = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.pwrite(handle, data, 0)  # one sector: the old or the new one, and the old one merely lags
        finally:
            os.close(handle)

    def _read_head(self) -> dict[str, Any] | None:
        """The head; None when there is none, and an empty one when it is not what we wrote."""
        try:
            doc = json.loads(read_file(f"{self._folder}/head.json", 4096)[0])
            mac = doc.pop("mac")
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, AttributeError):
            return {}
        return doc if hmac.compare_digest(str(mac), keyed(self._key, canonical(doc))) else {}

    def _page(self, wanted: dict[str, str], limit: int, offset: int) -> tuple[list[dict[str, Any]], int]:
        # A line without these bytes cannot match; one with them may have them elsewhere and is parsed.
        marks = [canonical({name: value})[1:-1] for name, value in wanted.items()]
        rows: list[dict[str, Any]] = []
        total = 0
        with refusals("read the audit trail"):
            for path in reversed(self._months()):
                for line in reversed(read_file(path, 1 << 40)[0].split(b"\n")[:-1]):
                    if all(mark in line for mark in marks):
                        needed = bool(marks) or offset <= total < offset + limit
                        row = _parse(line) if needed else {}
                        if row is None or any(row.get(name) != value for name, value in wanted.items() if needed):
                            continue
                        if offset <= total < offset + limit:
                            rows.append(_shown(row))
                        total += 1
        return rows, total

    def _verify(self) -> AuditReport:
        with refusals("read the audit trail"):
            with self._locked():
                head = self._read_head()
                sizes = [(path, os.stat(path).st_size) for path in self._months()]
            count, last = 0, GENESIS
            hashes_at_head = None
            for path, size in sizes:
                with open(path, "rb") as file:
                    for number, line in enumerate(_whole_lines(file.read(size)), 1):
                        problem, digest = checked(self._key, line, count + 1, last)
                        if problem:
                            return AuditReport(False, count, last, problem, path, number)
                        count, last = count + 1, digest
                        if head and count == head.get("count"):
                            hashes_at_head = last
            problem = _compare_head(head, count, hashes_at_head)
        return AuditReport(problem is None, count, last, problem, f"{self._folder}/head.json" if problem else None)


def _compare_head(head: dict[str, Any] | None, count: int, hash_at_head: str | None) -> str | None:
    if head is None:
        return None if count == 0 else "the head is missing"
    if not head:
        return "the head was changed, or sealed with another key"
    if count < _certain(head):
        return f"{_certain(head) - count} records are missing at the end"
    if hash_at_head is not None and hash_at_head != head["hash"]:
        return "the head belongs to another trail"
    return None


def _certain(head: dict[str, Any]) -> int:
    """How many records there must be: after another boot, only those that were synced."""
    return int(head["count"] if head["boot"] == boot_id() else head["synced"])


def _tail_of(path: str) -> Tail | None:
    """The end of one month; None when it holds no record. Raises `RegistryDamaged`."""
    size, line = _last_line(path)
    if line is None:
        return None
    try:
        record = json.loads(line)
        return Tail(path, size, os.stat(path).st_ino, int(record["n"]), str(record["hash"]))
    except (ValueError, KeyError, TypeError) as error:
        raise RegistryDamaged(
            "the last record of the audit trail cannot be read",
            hint="Run `codeb audit verify`; move the audit folder away to go on with a new trail.",
            path=path,
        ) from error


def _whole_lines(data: bytes) -> list[bytes]:
    """The lines; a torn end, which a crash may leave, is no line (and if it was one, the count is too low)."""
    return data.split(b"\n")[:-1]


def _last_line(path: str) -> tuple[int, bytes | None]:
    """The size of the file and its last line, after removing a torn end."""
    with open(path, "r+b") as file:
        size = file.seek(0, os.SEEK_END)
        data, start = b"", size
        while start and data[:-1].count(b"\n") < 2:
            step = min(start, _CHUNK)
            start -= step
            file.seek(start)
            data = file.read(step) + data
        end = data.rfind(b"\n") + 1
        if end < len(data):
            size = start + end
            file.truncate(size)
    lines = data[:end].split(b"\n")
    return size, lines[-2] if end else None


def _unchanged(tail: Tail) -> bool:
    try:
        found = os.stat(tail.path)
    except FileNotFoundError:
        return False
    return (found.st_size, found.st_ino) == (tail.size, tail.inode)


def _parse(line: bytes) -> dict[str, Any] | None:
    with contextlib.suppress(ValueError):
        row = json.loads(line)
        if isinstance(row, dict):
            return row
    return None


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in ("prev", "hash", "mac")}
