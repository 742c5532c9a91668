"""Which ports an environment gets."""

from __future__ import annotations

import itertools
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codeb_mcp.model.errors import Conflict
from codeb_mcp.model.names import Environment
from codeb_mcp.model.ports import QUARANTINE, RANGES, RESERVED, allocate_pair, free_pairs, overlaps, quarantined
from codeb_mcp.model.project import all_ports
from tests.unit.model.plans import NOW

PRODUCTION, STAGING, PREVIEW = (RANGES[environment] for environment in Environment)


def test_the_guides_projects_get_the_guides_ports_in_the_order_they_are_created() -> None:
    taken: set[int] = set()
    got = {}
    for name, ranges in (
        ("worb", PRODUCTION),
        ("worb-staging", STAGING),
        ("w-homepage", PRODUCTION),
        ("da-rak", PRODUCTION),
    ):
        got[name] = allocate_pair(ranges, taken)
        taken |= set(got[name])
    assert got == {
        "worb": (4000, 4001), "worb-staging": (4500, 4501), "w-homepage": (4002, 4003), "da-rak": (4004, 4005),
    }  # fmt: skip


def test_previews_end_where_postgresql_begins() -> None:
    taken: set[int] = set()
    pairs = []
    for _ in range(216):
        pairs.append(allocate_pair(PREVIEW, taken))
        taken |= set(pairs[-1])
    assert pairs[0] == (5000, 5001)
    assert pairs[-1] == (5430, 5431)
    with pytest.raises(Conflict, match="5000-5431"):
        allocate_pair(PREVIEW, taken)


@given(
    st.lists(st.tuples(st.integers(4000, 4040), st.integers(0, 20)), min_size=1, max_size=3),
    st.sets(st.integers(4000, 4060)),
)
def test_a_pair_is_even_and_odd_free_and_the_lowest_of_its_range(spans: list[tuple[int, int]], taken: set[int]) -> None:
    ranges = [(first, first + length) for first, length in spans]
    free = [
        blue for first, last in ranges for blue in range(first, last) if blue % 2 == 0 and not {blue, blue + 1} & taken
    ]
    if not free:
        with pytest.raises(Conflict):
            allocate_pair(ranges, taken)
        return
    assert allocate_pair(ranges, taken) == (free[0], free[0] + 1)


def test_what_is_left_is_counted() -> None:
    assert [free_pairs(ranges, ()) for ranges in (PRODUCTION, STAGING, PREVIEW)] == [250, 250, 216]
    assert free_pairs([(4000, 4005)], {4001, 4004}) == 1


def test_half_a_pair_is_no_pair() -> None:
    assert allocate_pair([(4000, 4003)], {4001}) == (4002, 4003)
    with pytest.raises(Conflict, match="no free port pair"):
        allocate_pair([(4000, 4002)], {4001})


def test_an_odd_range_begins_at_its_first_even_port() -> None:
    assert allocate_pair([(4001, 4010)], ()) == (4002, 4003)


def test_a_full_range_says_what_to_do() -> None:
    with pytest.raises(Conflict) as refusal:
        allocate_pair([(4000, 4001), (4100, 4101)], {4000, 4100})
    assert "4000-4001, 4100-4101" in refusal.value.message
    assert "widen the range" in refusal.value.hint


def test_a_freed_port_is_held_back_for_an_hour() -> None:
    entries = [{"port": 4000, "until": (NOW + QUARANTINE).isoformat()}]
    assert quarantined(entries, NOW) == entries
    assert quarantined(entries, NOW + QUARANTINE - timedelta(seconds=1)) == entries
    assert quarantined(entries, NOW + QUARANTINE) == []


def test_the_guides_preview_range_overlaps_postgresql_and_ours_does_not() -> None:
    assert overlaps({"preview": [(5000, 5499)]}) == ["preview 5000-5499 overlaps PostgreSQL 5432-5499"]
    assert overlaps({environment.value: ranges for environment, ranges in RANGES.items()}) == []


def test_every_overlap_is_reported_once() -> None:
    found = overlaps({"production": [(3400, 4500)], "staging": [(4500, 4999)], "preview": [(9000, 9200)]})
    assert found == [
        "production 3400-4500 overlaps staging 4500-4999",
        "production 3400-4500 overlaps system services 3000-3499",
        "preview 9000-9200 overlaps CodeB API 9101-9101",
    ]


def test_the_ranges_of_the_guide_are_apart() -> None:
    spans = [span for ranges in RANGES.values() for span in ranges] + list(RESERVED.values())
    for (a, b), (c, d) in itertools.combinations(spans, 2):
        assert b < c or d < a


def test_every_spelling_of_ports_in_a_project_counts() -> None:
    projects = {
        "worb": {"ports": {"production": {"blue": 4000, "green": 4001}}, "database": {"name": "worb"}},
        "odd": {"ports": {"production": {"blue": 4100, "green": 4101, "extra": "x"}, "legacy": 7}},
        "none": {},
    }
    assert all_ports(projects) == {4000, 4001, 4100, 4101}
