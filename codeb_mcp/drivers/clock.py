"""Time as data: the only place that asks the host what time it is."""

from __future__ import annotations

from datetime import UTC, datetime


class SystemClock:
    """The host's clock. Implements `Clock`."""

    def now(self) -> datetime:
        """The present moment, aware, UTC."""
        return datetime.now(UTC)
