"""JSON that is read, and JSON that is not."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codeb_mcp.faces.bodies import MAX_DEPTH, check, parse
from codeb_mcp.faces.streams import Pace, level_of
from codeb_mcp.model.errors import InvalidRequest

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(VALUES)
def test_what_json_can_say_is_read_as_it_is(value: Any) -> None:
    assert parse(json.dumps(value).encode()) == value
    assert parse(json.dumps(value, ensure_ascii=False).encode("utf-8")) == value


@given(st.binary(max_size=200))
def test_anything_else_is_refused_and_nothing_crashes(raw: bytes) -> None:
    with contextlib.suppress(InvalidRequest):
        assert parse(raw) == json.loads(raw)


def _nested(depth: int) -> Any:
    value: Any = "x"
    for number in range(depth):
        value = [value] if number % 2 else {"a": value}
    return value


def test_the_deepest_document_is_read_and_one_level_more_is_not() -> None:
    assert parse(json.dumps(_nested(MAX_DEPTH)).encode())
    check(_nested(MAX_DEPTH))
    for deeper in (MAX_DEPTH + 1, 500, 100_000):
        raw = (b'{"a":' * deeper) + b"1" + b"}" * deeper
        with pytest.raises(InvalidRequest, match="nested deeper"):
            parse(raw)
    with pytest.raises(InvalidRequest, match="nested deeper"):
        check(_nested(MAX_DEPTH + 1))


def test_a_pair_of_surrogates_is_a_character_and_half_of_one_is_not() -> None:
    assert parse(b'"\\ud83d\\ude80"') == "🚀"
    for half in (b'"\\ud83d"', b'"\\ude80\\ud83d"', b'{"\\ud83d":1}', b'[["\\ud83d"]]'):
        with pytest.raises(InvalidRequest, match="surrogate"):
            parse(half)


@pytest.mark.parametrize("number", [float("inf"), float("-inf"), float("nan")])
def test_numbers_that_are_none_are_refused_wherever_they_come_from(number: float) -> None:
    with pytest.raises(InvalidRequest, match="not finite"):
        check({"a": [number]})


@pytest.mark.parametrize(
    ("line", "level"),
    [
        ("2026-01-01T00:00:00Z level=error msg=x", "error"),
        ('{"level":"warn","msg":"an error"}', "warn"),
        ("[WARNING] disk", "warn"),
        ("FATAL: no database", "error"),
        ("DEBUG x", "debug"),
        ("terror and information", "info"),
        ("plain", "info"),
    ],
)
def test_a_line_has_the_level_that_it_claims(line: str, level: str) -> None:
    assert level_of(line) == level


def test_a_pace_lets_so_many_through_each_second_and_counts_the_rest() -> None:
    pace = Pace(3)
    assert [pace.allows(10.1) for _ in range(5)] == [True, True, True, False, False]
    assert pace.allows(11.0)
    assert pace.take_dropped() == 2
    assert pace.take_dropped() == 0
