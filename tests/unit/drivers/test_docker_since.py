"""`since` never lies after the moment it was made from."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codeb_mcp.drivers.docker_logs import unix_seconds

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@given(micros=st.integers(0, 4 * 10**15))
def test_every_microsecond_is_told_exactly(micros: int) -> None:
    assert Decimal(unix_seconds(EPOCH + timedelta(microseconds=micros))) == Decimal(micros) / 10**6


def test_a_moment_that_a_float_rounds_up_stays_before_its_line() -> None:
    moment = datetime.fromisoformat("2026-11-23T17:15:21.590007054+00:00")
    assert f"{moment.timestamp():.9f}" > "1795454121.590007054", "a float would leave the line out"
    assert unix_seconds(moment) == "1795454121.590007"


@pytest.mark.parametrize("hours", [-11, 0, 9])
def test_the_zone_does_not_matter(hours: int) -> None:
    moment = datetime(2026, 11, 23, 17, 15, tzinfo=UTC)
    assert unix_seconds(moment.astimezone(timezone(timedelta(hours=hours)))) == unix_seconds(moment)
