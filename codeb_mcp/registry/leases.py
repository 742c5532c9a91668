"""Leases as files: who holds a name, until when, and a token that only ever grows.

`leases/<name>.json` is written durably at each acquisition and never deleted, so no token is given out twice.
`leases/<name>.beat` holds what changes often, the end of the lease; it is not synced, because losing it merely makes
the lease end earlier. A beat counts only for the token it names. All methods that change something expect to be
called under the registry's lock; `check` may be called at any time.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from codeb_mcp.model.errors import Conflict, InvalidRequest, LeaseLost, LockHeld, RegistryDamaged
from codeb_mcp.model.times import utc_text
from codeb_mcp.registry.disk import Disk, put, read_file
from codeb_mcp.registry.documents import parse
from codeb_mcp.registry.process import ProcessIdentity, certainly_gone, this_process
from codeb_mcp.registry.store import Fence, Lease

GRACE = timedelta(seconds=15)
"""How long after its end a lease is still left alone, unless its process is certainly gone."""

_NAME = re.compile(r"[a-z0-9-]+(/[a-z0-9_-][a-z0-9._-]*)*")
_MAX_BYTES = 16 * 1024
_RUN = "run:"


def utc_now() -> datetime:
    """The present moment."""
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Holding:
    """The newest lease of a name and whether it was given back."""

    lease: Lease
    held: bool
    process: ProcessIdentity | None = None

    def free_at(self, now: datetime) -> bool:
        """Whether somebody else may have it now."""
        return not self.held or now >= self.lease.expires_at + GRACE or certainly_gone(self.process)


def check_lease_name(name: str) -> str:
    """The name itself; raises `InvalidRequest` unless it is a plain one like `environment/worb-staging`."""
    if not _NAME.fullmatch(name) or ".." in name or len(name) > 200:
        raise InvalidRequest(
            f"{name[:80]!r} is no lease name", fields=[{"field": "name", "problem": "does not name a lease"}]
        )
    return name


def held_by(lease: Lease) -> LockHeld:
    """The answer for whoever comes second; names the run when the owner is one (`run:<id>`)."""
    run = {"operationId": lease.owner.removeprefix(_RUN)} if lease.owner.startswith(_RUN) else {}
    return LockHeld(
        f"{lease.name} is held by {lease.owner}",
        hint="Wait for that run to end, or look at what it is doing, then try again.",
        lease=lease.name,
        holder=lease.owner,
        since=utc_text(lease.acquired_at),
        until=utc_text(lease.expires_at),
        token=lease.token,
        **run,
    )


def lease_lost(fence: Fence, newest: int | None) -> LeaseLost:
    """The answer for a holder that was overtaken; `newest` None when the lease was given back."""
    return LeaseLost(
        f"the lease {fence.lease} with token {fence.token} is no longer held",
        hint="Stop; whoever holds it now goes on from what was recorded.",
        lease=fence.lease,
        token=fence.token,
        newest=newest,
    )


class Leases:
    """The leases of one registry folder."""

    def __init__(self, disk: Disk, root: str, clock: Callable[[], datetime]) -> None:
        self._disk = disk
        self._folder = f"{root}/leases"
        self._clock = clock

    def holding(self, name: str) -> Holding | None:
        """The newest lease of that name; None when there never was one. Raises `RegistryDamaged` and OSError."""
        path = self._path(name)
        record = self._read(path + ".json")
        if record is None:
            return None
        beat = self._read(path + ".beat") or {}
        try:
            if beat.get("token") == record["token"]:
                record = {**record, **beat}
            lease = Lease(
                name,
                str(record["owner"]),
                int(record["token"]),
                datetime.fromisoformat(record["acquiredAt"]),
                datetime.fromisoformat(record["expiresAt"]),
            )
            return Holding(lease, record["held"] is True, ProcessIdentity.of(record.get("process")))
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(path, f"lacks or garbles a field ({error})") from error

    def acquire(self, name: str, owner: str, ttl_seconds: float) -> Lease:
        """Take it, durably; raises `LockHeld`."""
        now = self._clock()
        former = self.holding(name)
        if former is not None and not former.free_at(now):
            raise held_by(former.lease)
        token = former.lease.token + 1 if former else 1
        lease = Lease(name, owner, token, now, now + timedelta(seconds=ttl_seconds))
        self._write(lease)
        return lease

    def renew(self, lease: Lease, ttl_seconds: float) -> Lease:
        """Move its end; raises `LeaseLost`."""
        self.check(lease.fence)
        renewed = replace(lease, expires_at=self._clock() + timedelta(seconds=ttl_seconds))
        self._beat(renewed, held=True)
        return renewed

    def release(self, lease: Lease) -> None:
        """Give it back, if it is still ours."""
        now = self.holding(lease.name)
        if now is not None and now.lease.token == lease.token:
            self._beat(now.lease, held=False)

    def break_open(self, name: str, token: int) -> None:
        """Take it away from a holder with exactly this token; raises `Conflict`."""
        now = self.holding(name)
        if now is None or not now.held or now.lease.token != token:
            raise not_held_with(name, token, now.lease.token if now and now.held else None)
        self._beat(now.lease, held=False)

    def check(self, fence: Fence) -> None:
        """Raise `LeaseLost` unless the token is the newest one and was not given back."""
        now = self.holding(fence.lease)
        if now is None or now.lease.token != fence.token or not now.held:
            raise lease_lost(fence, now.lease.token if now and now.held else None)

    def names(self) -> list[str]:
        """All names that were ever taken, sorted."""
        try:
            files = os.listdir(self._folder)
        except FileNotFoundError:
            return []
        return sorted(
            name.removesuffix(".json").replace("+", "/")
            for name in files
            if name.endswith(".json") and not name.startswith(".")
        )

    def replace_damaged(self, name: str) -> None:
        """Write an unreadable lease anew, free, with a token above all that can have been given out.

        One acquisition takes longer than a millisecond, so milliseconds since 1970 are above every count.
        """
        now = self._clock()
        lease = Lease(name, "repair", int(now.timestamp() * 1000), now, now)
        self._write(lease)
        self._beat(lease, held=False)

    def _write(self, lease: Lease) -> None:
        process = this_process()
        record = {
            "name": lease.name,
            "owner": lease.owner,
            "token": lease.token,
            "acquiredAt": utc_text(lease.acquired_at),
            "expiresAt": utc_text(lease.expires_at),
            "held": True,
            "process": process.as_dict() if process else None,
        }
        self._disk.make_folder(self._folder, durable=True)
        put(self._disk, self._path(lease.name) + ".json", _encode(record))

    def _beat(self, lease: Lease, *, held: bool) -> None:
        record = {"token": lease.token, "expiresAt": utc_text(lease.expires_at), "held": held}
        put(self._disk, self._path(lease.name) + ".beat", _encode(record), durable=False)

    def _path(self, name: str) -> str:
        return f"{self._folder}/{check_lease_name(name).replace('/', '+')}"

    def _read(self, path: str) -> dict[str, Any] | None:
        try:
            return parse(read_file(path, _MAX_BYTES)[0])
        except FileNotFoundError:
            return None
        except ValueError as error:
            if path.endswith(".beat"):  # not synced, so a power cut may leave anything; the lease then ends earlier
                return None
            raise _damaged(path, str(error)) from error


def not_held_with(name: str, token: int, newest: int | None) -> Conflict:
    """The answer for breaking a lease that is not the one that was meant."""
    return Conflict(
        f"{name} is not held with token {token}",
        hint="Look who holds it now and decide again.",
        lease=name,
        token=token,
        newest=newest,
    )


def _encode(record: dict[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _damaged(path: str, problem: str) -> RegistryDamaged:
    return RegistryDamaged(
        f"the lease file {os.path.basename(path)} {problem}",
        hint="Run `codeb registry rebuild`, which gives the lease a token above all former ones.",
        path=path,
    )
