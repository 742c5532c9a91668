"""Rate limits: exact at the border, shared by processes, harmless when the clock jumps."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from codeb_mcp.registry.limits import RateLimiter

SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND


class Nanoseconds:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Nanoseconds:
    return Nanoseconds()


@pytest.fixture
def limiter(tmp_path: Path, clock: Nanoseconds) -> RateLimiter:
    return RateLimiter(tmp_path / "run" / "limits", clock=clock)


def bucket_file(folder: Path, bucket: str) -> Path:
    return folder / hashlib.sha256(bucket.encode()).hexdigest()[:40]


def test_a_full_bucket_allows_its_limit_and_refills_evenly(limiter: RateLimiter, clock: Nanoseconds) -> None:
    taken = [limiter.take("key:k1", limit=5, per_seconds=60) for _ in range(6)]
    assert [answer.allowed for answer in taken] == [True] * 5 + [False]
    assert [answer.remaining for answer in taken] == [4, 3, 2, 1, 0, 0]
    assert (taken[0].reset_at_seconds, taken[5].reset_at_seconds) == (START // SECOND + 12, START // SECOND + 60)
    assert (taken[5].retry_after_seconds, taken[5].limit) == (12, 5)
    clock.now += 12 * SECOND - 1
    assert not limiter.take("key:k1", limit=5, per_seconds=60).allowed
    clock.now += 1
    assert limiter.take("key:k1", limit=5, per_seconds=60).allowed
    assert not limiter.take("key:k1", limit=5, per_seconds=60).allowed
    clock.now += 600 * SECOND
    assert sum(limiter.take("key:k1", limit=5, per_seconds=60).allowed for _ in range(10)) == 5


def test_refused_calls_cost_nothing(limiter: RateLimiter, clock: Nanoseconds) -> None:
    for _ in range(100):
        limiter.take("a", limit=2, per_seconds=10)
    clock.now += 5 * SECOND
    assert limiter.take("a", limit=2, per_seconds=10).allowed


def test_buckets_do_not_touch_each_other_whatever_their_names(limiter: RateLimiter) -> None:
    for name in ("a", "b", "../x", "ß" * 500, "a\0b", ""):
        assert limiter.take(name, limit=1, per_seconds=10).allowed
        assert not limiter.take(name, limit=1, per_seconds=10).allowed


def test_a_clock_set_back_locks_nobody_out_for_longer_than_the_period(limiter: RateLimiter, clock: Nanoseconds) -> None:
    limiter.take("a", limit=1, per_seconds=10)
    clock.now -= 86_400 * SECOND
    assert limiter.take("a", limit=1, per_seconds=10).retry_after_seconds <= 10
    clock.now += 10 * SECOND
    assert limiter.take("a", limit=1, per_seconds=10).allowed


def test_a_damaged_bucket_is_a_new_one(limiter: RateLimiter, tmp_path: Path) -> None:
    assert limiter.take("a", limit=1, per_seconds=10).allowed
    bucket_file(tmp_path / "run/limits", "a").write_bytes(b"x")
    assert limiter.take("a", limit=1, per_seconds=10).allowed


def test_a_bucket_that_stays_locked_refuses(limiter: RateLimiter, tmp_path: Path) -> None:
    limiter.take("a", limit=9, per_seconds=10)
    with bucket_file(tmp_path / "run/limits", "a").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        answer = limiter.take("a", limit=9, per_seconds=10)
        assert (answer.allowed, answer.retry_after_seconds) == (False, 1)
    assert limiter.take("a", limit=9, per_seconds=10).allowed


def test_old_buckets_are_removed_and_used_ones_stay(limiter: RateLimiter, tmp_path: Path) -> None:
    assert limiter.prune(older_than_seconds=10) == 0
    limiter.take("old", limit=1, per_seconds=10)
    limiter.take("new", limit=1, per_seconds=10)
    os.utime(bucket_file(tmp_path / "run/limits", "old"), (1, 1))
    assert limiter.prune(older_than_seconds=3600) == 1
    assert limiter.take("old", limit=1, per_seconds=10).allowed
    assert not limiter.take("new", limit=1, per_seconds=10).allowed


TAKER = """
import sys
from pathlib import Path
from codeb_mcp.registry.limits import RateLimiter
limiter = RateLimiter(Path(sys.argv[1]), clock=lambda: 1_700_000_000_000_000_000)
print(sum(limiter.take("a", limit=100, per_seconds=60).allowed for _ in range(80)))
"""


async def test_four_processes_share_a_bucket_exactly(tmp_path: Path) -> None:
    takers = [
        subprocess.Popen([sys.executable, "-c", TAKER, str(tmp_path / "limits")], stdout=subprocess.PIPE)
        for _ in range(4)
    ]
    answers = await asyncio.gather(*(asyncio.to_thread(taker.communicate, None, 60) for taker in takers))
    assert sum(int(out) for out, _ in answers) == 100
