"""Port allocation: which pair an environment gets, from which range.

Ranges of the infrastructure guide §2. The guide lets previews (5000-5499) overlap PostgreSQL (5432-5499); PostgreSQL owns
the overlap, so previews end at 5431.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta

from codeb_mcp.model.errors import Conflict
from codeb_mcp.model.names import Environment

PortRange = tuple[int, int]

RANGES: Mapping[Environment, tuple[PortRange, ...]] = {
    Environment.PRODUCTION: ((4000, 4499),),
    Environment.STAGING: ((4500, 4999),),
    Environment.PREVIEW: ((5000, 5431),),
}
RESERVED: Mapping[str, PortRange] = {
    "system services": (3000, 3499),
    "PostgreSQL": (5432, 5499),
    "Redis": (6379, 6499),
    "Centrifugo": (8000, 8000),
    "CodeB API": (9101, 9101),
}
QUARANTINE = timedelta(hours=1)
"""How long a freed port is not handed out again: late clients of its former owner must not reach a stranger."""


def allocate_pair(ranges: Sequence[PortRange], taken: Iterable[int]) -> tuple[int, int]:
    """The lowest free even/odd pair (blue, green); raises Conflict when the ranges are full."""
    for blue in _free(ranges, taken):
        return blue, blue + 1
    spans = ", ".join(f"{first}-{last}" for first, last in ranges)
    raise Conflict(
        f"no free port pair is left in {spans}",
        hint="Delete environments that are not needed, or widen the range in the settings (ports).",
    )


def free_pairs(ranges: Sequence[PortRange], taken: Iterable[int]) -> int:
    """How many pairs are left."""
    return sum(1 for _ in _free(ranges, taken))


def _free(ranges: Sequence[PortRange], taken: Iterable[int]) -> Iterator[int]:
    """The even ports of free pairs, lowest first in each range."""
    used = frozenset(taken)
    for first, last in ranges:
        for blue in range(first + first % 2, last, 2):
            if blue not in used and blue + 1 not in used:
                yield blue


def quarantined(entries: Iterable[Mapping[str, object]], now: datetime) -> list[Mapping[str, object]]:
    """The quarantine entries `{port, until}` that are still in force."""
    return [entry for entry in entries if datetime.fromisoformat(str(entry["until"])) > now]


def overlaps(ranges: Mapping[str, Sequence[PortRange]]) -> list[str]:
    """Every overlap between configured ranges and reserved ones, in words; empty when there is none."""
    spans = [(name, span) for name, several in ranges.items() for span in several]
    spans += [(name, span) for name, span in RESERVED.items()]
    return [
        f"{one} {a[0]}-{a[1]} overlaps {other} {b[0]}-{b[1]}"
        for index, (one, a) in enumerate(spans)
        for other, b in spans[index + 1 :]
        if a[0] <= b[1] and b[0] <= a[1]
    ]
