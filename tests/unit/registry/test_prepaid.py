"""Calls that are counted in advance."""

from __future__ import annotations

from pathlib import Path

from codeb_mcp.registry.limits import RateLimiter
from codeb_mcp.registry.prepaid import PrepaidLimiter

HOUR = 3600


def test_several_processes_together_never_get_more_than_the_limit(tmp_path: Path) -> None:
    several = [PrepaidLimiter(tmp_path) for _ in range(4)]
    allowed = sum(several[number % 4].take("key", limit=1000, per_seconds=HOUR).allowed for number in range(3000))
    assert 960 <= allowed <= 1001


def test_one_that_counts_each_call_sees_what_others_took_in_advance(tmp_path: Path) -> None:
    busy, exact = PrepaidLimiter(tmp_path), RateLimiter(tmp_path)
    for _ in range(500):
        assert busy.take("key", limit=1000, per_seconds=HOUR).allowed
    assert exact.take("key", limit=1000, per_seconds=HOUR).remaining <= 499


def test_a_small_limit_is_exact(tmp_path: Path) -> None:
    limiter = PrepaidLimiter(tmp_path)
    allowed = [limiter.take("key", limit=20, per_seconds=HOUR).allowed for _ in range(30)]
    assert allowed == [True] * 20 + [False] * 10


def test_buckets_do_not_share(tmp_path: Path) -> None:
    limiter = PrepaidLimiter(tmp_path)
    for _ in range(300):
        limiter.take("one", limit=200, per_seconds=HOUR)
    assert not limiter.take("one", limit=200, per_seconds=HOUR).allowed
    assert limiter.take("two", limit=200, per_seconds=HOUR).allowed


def test_a_refusal_says_when_to_come_back(tmp_path: Path) -> None:
    limiter = PrepaidLimiter(tmp_path)
    for _ in range(300):
        taken = limiter.take("key", limit=100, per_seconds=60)
    assert not taken.allowed
    assert taken.retry_after_seconds >= 1
    assert taken.limit == 100
