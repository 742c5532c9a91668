"""One form for all moments, and every form that may come in."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

from hypothesis import given
from hypothesis import strategies as st

from codeb_mcp.model.slot import SlotRecord
from codeb_mcp.model.times import in_utc, utc_text

OFFSETS = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
MOMENTS = st.builds(
    lambda offset, since: datetime(1970, 1, 3, tzinfo=offset) + since,
    OFFSETS,
    st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=365 * 1000)),
)


@given(MOMENTS)
def test_a_moment_is_written_in_utc_and_read_back_as_the_same_one(moment: datetime) -> None:
    text = utc_text(moment)
    assert text.endswith("Z")
    assert text.count("Z") == 1
    assert "+" not in text
    assert datetime.fromisoformat(text) == moment


@given(MOMENTS)
def test_documents_and_answers_write_a_moment_alike(moment: datetime) -> None:
    record = SlotRecord.model_validate({"name": "blue", "port": 4000, "deployedAt": moment.isoformat()})
    assert record.dump()["deployedAt"] == utc_text(moment)
    assert SlotRecord.model_validate(record.dump()) == record


def test_a_time_without_an_offset_is_utc() -> None:
    noon = datetime(2026, 1, 7, 12, tzinfo=UTC)
    assert in_utc(noon.replace(tzinfo=None)) == noon
    record = SlotRecord.model_validate(
        {"name": "blue", "port": 4000, "state": "grace", "graceExpiresAt": "2026-01-07T12:00:00"}
    )
    assert record.grace_is_over(noon)


def test_the_precision_can_be_chosen() -> None:
    moment = datetime(2026, 1, 7, 12, 0, 0, 590007, tzinfo=UTC)
    assert utc_text(moment) == "2026-01-07T12:00:00.590007Z"
    assert utc_text(moment, "milliseconds") == "2026-01-07T12:00:00.590Z"
    assert utc_text(moment, "seconds") == "2026-01-07T12:00:00Z"
