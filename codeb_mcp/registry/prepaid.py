"""A rate limiter for busy callers: while calls come fast, some are counted in advance, so that most touch no file."""

from __future__ import annotations

import time
from pathlib import Path

from codeb_mcp.registry.limits import RateLimiter, Taken

_PART = 100  # at most a hundredth of the limit is counted in advance
_SECONDS = 1.0
_BUCKETS = 10_000


class PrepaidLimiter(RateLimiter):
    """Never allows more than the limit, in all processes together. What was counted in advance and is not used within a
    second is lost, so a process may be allowed up to a hundredth less."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._paid: dict[str, tuple[int, float, Taken]] = {}

    def take(self, bucket: str, *, limit: int, per_seconds: int, count: int = 1) -> Taken:
        """See `RateLimiter.take`; takes a microsecond for a call that was counted in advance."""
        now = time.monotonic()
        left, at, taken = self._paid.get(bucket, (0, float("-inf"), None))
        fresh = now - at < _SECONDS
        if taken is not None and fresh and left >= count and taken.limit == limit:
            self._paid[bucket] = (left - count, at, taken)
            return taken
        ahead = limit // _PART if fresh and count == 1 else 0
        found = super().take(bucket, limit=limit, per_seconds=per_seconds, count=count + ahead)
        if ahead and not found.allowed:
            ahead = 0
            found = super().take(bucket, limit=limit, per_seconds=per_seconds, count=count)
        if len(self._paid) >= _BUCKETS:
            self._paid.clear()
        self._paid[bucket] = (ahead if found.allowed else 0, now, found)
        return found
