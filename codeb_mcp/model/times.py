"""Moments as text: ISO 8601 in UTC with `Z`, everywhere. Reading also takes other offsets, as earlier versions wrote them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

from pydantic import AfterValidator


def in_utc(moment: datetime) -> datetime:
    """The same moment in UTC; one without an offset is taken to be UTC already."""
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)


def utc_text(moment: datetime, timespec: str = "auto") -> str:
    """`2026-11-23T17:15:21.590007Z`, as all documents and answers have it. `timespec` like `datetime.isoformat`."""
    return in_utc(moment).replace(tzinfo=None).isoformat(timespec=timespec) + "Z"


Moment = Annotated[datetime, AfterValidator(in_utc)]
"""A field that is written as `utc_text` writes it, whatever offset it was read with."""
