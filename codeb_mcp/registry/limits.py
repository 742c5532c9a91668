"""Rate limits that all processes share: one tiny file per bucket, the generic cell rate algorithm, no syncing.

The file holds one number, the theoretical arrival time: when the bucket will be full again. A call is allowed if taking
from the bucket leaves that time within the period. What a power cut loses here is harmless.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from codeb_mcp.registry.disk import Disk, refusals
from codeb_mcp.registry.lock import try_flock

_SECOND = 1_000_000_000
_TRIES = 40
_PAUSE_SECONDS = 0.0005


@dataclass(frozen=True, slots=True)
class Taken:
    """The answer: whether the call is allowed, calls left now, the UNIX time at which the bucket is full again, and
    after how many whole seconds a refused call may be repeated (0 for an allowed one)."""

    allowed: bool
    limit: int
    remaining: int
    reset_at_seconds: int
    retry_after_seconds: int


class RateLimiter:
    """Buckets in one folder, which is made at first use. Safe to share between threads and processes."""

    def __init__(self, folder: Path, *, clock: Callable[[], int] = time.time_ns) -> None:
        self._folder = str(folder.absolute())
        self._clock = clock

    def take(self, bucket: str, *, limit: int, per_seconds: int, count: int = 1) -> Taken:
        """Count a call, or several at once, against the bucket: at most `limit` at once, refilled evenly over `per_seconds`.

        Takes some 30 µs. A bucket whose lock another process does not let go of refuses the call after 20 ms.
        """
        path = f"{self._folder}/{hashlib.sha256(bucket.encode()).hexdigest()[:40]}"
        with refusals("count a call"):
            handle = self._locked(path)
            if handle is None:
                return Taken(False, limit, 0, self._clock() // _SECOND + 1, 1)
            try:
                return self._count(handle, limit, per_seconds * _SECOND, count)
            finally:
                os.close(handle)

    def prune(self, *, older_than_seconds: float) -> int:
        """Remove buckets that were not used for that long; answers how many. Choose more than the longest period."""
        removed = 0
        with refusals("remove old rate limits"):
            for name in os.listdir(self._folder) if os.path.isdir(self._folder) else []:
                removed += self._remove_old(f"{self._folder}/{name}", older_than_seconds)
        return removed

    def _count(self, handle: int, limit: int, period: int, count: int) -> Taken:
        now = self._clock()
        cost = period // limit
        data = os.pread(handle, 8, 0)
        stored = int.from_bytes(data, "little") if len(data) == 8 else 0
        full_at = min(max(stored, now), now + period)
        after = full_at + cost * count
        allowed = after - now <= period
        if allowed:
            full_at = after
        if allowed or stored > full_at:  # the latter if the clock was set back, which must not lock out for longer
            os.pwrite(handle, full_at.to_bytes(8, "little"), 0)
        return Taken(
            allowed=allowed,
            limit=limit,
            remaining=max(0, (period - (full_at - now)) // cost),
            reset_at_seconds=-(-full_at // _SECOND),
            retry_after_seconds=0 if allowed else max(1, -(-(after - period - now) // _SECOND)),
        )

    def _locked(self, path: str) -> int | None:
        for _ in range(_TRIES):
            handle = self._open(path)
            if try_flock(handle) and os.fstat(handle).st_nlink:
                return handle
            os.close(handle)
            time.sleep(_PAUSE_SECONDS)
        return None

    def _open(self, path: str) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            return os.open(path, flags, 0o600)
        except FileNotFoundError:
            Disk().make_folder(self._folder, durable=False)
            return os.open(path, flags, 0o600)

    def _remove_old(self, path: str, older_than_seconds: float) -> bool:
        try:
            if time.time() - os.stat(path).st_mtime < older_than_seconds:
                return False
            handle = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return False
        try:
            if not try_flock(handle):
                return False
            os.unlink(path)
            return True
        finally:
            os.close(handle)
