"""The audit trail: who did what, when, with which outcome, so written that a change to it is found.

`audit/YYYY-MM.jsonl`, one record per line. Each carries its number, the hash of the record before it (`prev`), its own
hash and an HMAC of that hash with the key in `audit/.key`. `audit/head.json` holds count and hash of the newest record
under the same HMAC, so that records missing at the end are found as well. The head is written after the records, in
place: it may lag behind them, never run ahead. Records not yet synced may be lost with the machine, so the head also
says up to which count they were synced, and which boot wrote it: after another boot only the synced ones must be there.

A trail that is broken stays so, until whoever owns the machine seals it: see `chain_walk`.
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
from codeb_mcp.registry.chain import GENESIS, canonical, chained, keyed
from codeb_mcp.registry.chain_tail import SEAL_IT, Tail, last_line, tail_of, unchanged
from codeb_mcp.registry.chain_walk import SEAL, Seal, Walk, told_flaws
from codeb_mcp.registry.disk import Disk, put, read_file, refusals, write_all
from codeb_mcp.registry.lock import hold
from codeb_mcp.registry.process import boot_id

_HEAD = "head.json"
_HEAD_BYTES = 512
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
    `last_hash` is what to note down elsewhere: the same count must always have the same hash. `seals` hold the damage that
    was acknowledged earlier; it does not count against `ok`."""

    ok: bool
    records: int
    last_hash: str
    first_problem: str | None = None
    path: str | None = None
    line: int | None = None
    seals: tuple[Seal, ...] = ()


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

    async def seal(self, record: AuditRecord) -> Seal | None:
        """Acknowledge all present damage in this record, durably, and begin a new segment of the chain with it; None, and
        nothing written, when the trail is whole. A key that is missing is made anew. Others wait meanwhile."""
        return await asyncio.to_thread(self._seal, record)

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
    def _locked(self, *, new_key: bool = False) -> Iterator[None]:
        self._disk.make_folder(self._folder, durable=True)
        with hold(f"{self._folder}/.lock", wait_seconds=_WAIT_SECONDS):
            if not self._key:
                self._key = self._own_key(new=new_key)
                if self._read_head() is None and not self._months():
                    self._write_head(0, GENESIS)
            yield

    def _own_key(self, *, new: bool = False) -> bytes:
        path = f"{self._folder}/.key"
        try:
            key = bytes.fromhex(read_file(path, 200)[0].decode())
        except FileNotFoundError:
            if self._months() and not new:
                raise RegistryDamaged(
                    "the key of the audit trail is missing",
                    hint=f"Restore audit/.key from a backup; without one, {SEAL_IT} with a new key.",
                    path=path,
                ) from None
            key = secrets.token_bytes(32)
            put(self._disk, path, key.hex().encode())
        except ValueError:
            key = b""
        if len(key) != 32:
            hint = f"Restore audit/.key from a backup; without one, remove it, and {SEAL_IT} with a new key."
            raise RegistryDamaged("the key of the audit trail is damaged", hint=hint, path=path)
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
        if newest is None or self._months()[-1:] != [newest.path] or not unchanged(newest):
            newest = self._read_tail()
        month = f"{self._folder}/{at.astimezone(UTC):%Y-%m}.jsonl"
        # A clock that was set back does not reopen an older month.
        return newest if month <= newest.path else replace(newest, path=month, size=0, inode=0)

    def _read_tail(self) -> Tail:
        head, months = self._read_head(), self._months()
        if not head and (head is not None or months):
            raise RegistryDamaged(
                "the head of the audit trail is missing or was changed",
                hint=f"Find out who changed it; then {SEAL_IT}.",
                path=f"{self._folder}/head.json",
            )
        self._synced = head["synced"] if head else 0
        found = next((tail for path in reversed(months) if (tail := tail_of(path))), Tail("", 0, 0, 0, GENESIS))
        if head and found.count < _certain(head):
            # Records are gone. Going on from the head leaves a gap that `verify` finds for ever.
            return replace(found, count=head["count"], last=head["hash"])
        return found

    def _write_head(self, count: int, last: str, *, anew: bool = False) -> None:
        doc = {"count": count, "hash": last, "synced": self._synced, "boot": self.boot}
        data = json.dumps({**doc, "mac": keyed(self._key, canonical(doc))}).encode().ljust(_HEAD_BYTES - 1) + b"\n"
        path = f"{self._folder}/head.json"
        if anew or not os.path.lexists(path):
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
        if not hmac.compare_digest(str(mac), keyed(self._key, canonical(doc))):
            self._key = self._own_key()  # another process may have made a new one
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
            walk = self._walked(head, sizes)
        if not walk.flaws:
            return AuditReport(True, walk.count, walk.last, seals=tuple(walk.seals))
        first = walk.flaws[0]
        path = f"{self._folder}/{first.file}"
        return AuditReport(False, walk.good, walk.last, first.problem, path, first.line, tuple(walk.seals))

    def _walked(self, head: dict[str, Any] | None, sizes: Sequence[tuple[str, int]]) -> Walk:
        walk = Walk(self._key, head.get("count") if head else None)
        for path, size in sizes:
            with open(path, "rb") as file:
                walk.file(os.path.basename(path), file.read(size))
        _compare_head(head, walk)
        return walk

    def _seal(self, record: AuditRecord) -> Seal | None:
        with refusals("seal the audit trail"):
            without_key = not os.path.lexists(f"{self._folder}/.key")
            self._key = b"" if without_key else self._key
            with self._locked(new_key=True):
                months = self._months()
                for path in months[-1:]:
                    last_line(path)
                head = self._read_head()
                walk = self._walked(head, [(path, os.stat(path).st_size) for path in months])
                if not walk.flaws:
                    return None
                if without_key:
                    walk.flaw("key", "the key was missing; a new one was made")
                number = max(walk.reached, int(head["count"]) if head else 0) + 1
                return self._sealed(walk, record, number, months)

    def _sealed(self, walk: Walk, record: AuditRecord, number: int, months: Sequence[str]) -> Seal:
        month = max([f"{self._folder}/{record.at.astimezone(UTC):%Y-%m}.jsonl", *months[-1:]])
        if month not in months:
            walk.file(os.path.basename(month), b"")
        seal = Seal(number, record.as_dict()["at"], record.actor, tuple(walk.flaws))
        doc = {**record.as_dict(), SEAL: {"digest": walk.digest(), "flaws": told_flaws(seal.flaws)}}
        line, last = chained(self._key, doc, number, walk.digest())
        tail = Tail(month, os.stat(month).st_size if month in months else 0, 0, number - 1, walk.last)
        size, inode = self._write(tail, line, durable=True)
        self._tail, self._synced = Tail(month, size, inode, number, last), number
        self._write_head(number, last, anew=True)
        return seal


def _compare_head(head: dict[str, Any] | None, walk: Walk) -> None:
    """Note what is wrong with the head, or with the end of the trail as the head tells it."""
    if head is None and walk.reached:
        walk.flaw("head", "the head is missing", file=_HEAD)
    elif head is not None and not head:
        walk.flaw("head", "the head was changed, or sealed with another key", file=_HEAD)
    elif head and walk.reached < _certain(head):
        problem = f"{_certain(head) - walk.reached} records are missing at the end"
        span = {"first_record": walk.reached + 1, "last_record": _certain(head)}
        walk.flaw("missing", problem, file=_HEAD, **span)
    elif head and walk.at_head not in (None, head["hash"]):
        walk.flaw("head", "the head belongs to another trail", file=_HEAD)


def _certain(head: dict[str, Any]) -> int:
    """How many records there must be: after another boot, only those that were synced."""
    return int(head["count"] if head["boot"] == boot_id() else head["synced"])


def _parse(line: bytes) -> dict[str, Any] | None:
    with contextlib.suppress(ValueError):
        row = json.loads(line)
        if isinstance(row, dict):
            return row
    return None


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in ("prev", "hash", "mac")}
