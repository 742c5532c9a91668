"""Slots out of what is left of them."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codeb_mcp.model.names import Environment, Slot, container_name
from codeb_mcp.model.rebuild import GRACE, Remains, slots_from_remains
from codeb_mcp.model.slot import SlotRecord, Slots, SlotState
from tests.unit.model.plans import NOW
from tests.unit.model.worlds import environments, slots_of


def _remains(slots: Slots) -> list[Remains]:
    """The containers of these slots, as their labels tell."""
    return [
        Remains(
            name=container_name(slots.project_name, slots.environment, one.name),
            project=slots.project_name,
            environment=slots.environment,
            slot=one.name,
            team=slots.team_id,
            version=one.version or "",
            image=one.image or "",
            image_id=one.image_id or "",
            digest=one.digest or "",
            run_id=one.run_id or "",
            port=one.port,
            deployed_at=one.deployed_at,
        )
        for one in (slots.blue, slots.green)
        if one.state is not SlotState.EMPTY
    ]


def _facts(one: SlotRecord) -> tuple[object, ...]:
    return one.state, one.port, one.version, one.image_id, one.digest, one.run_id, one.container_name


@given(environments())
def test_containers_and_flag_tell_the_slots_again(made: list[Slots]) -> None:
    for slots in made:
        remains = _remains(slots)
        if not remains:
            continue
        rebuilt = slots_from_remains(remains, slots.active_slot, None, NOW)
        assert rebuilt.active_slot == slots.active_slot
        assert (rebuilt.project_name, rebuilt.environment, rebuilt.team_id) == (
            slots.project_name,
            slots.environment,
            slots.team_id,
        )
        for slot in Slot:
            assert _facts(rebuilt.record(slot)) == _facts(slots.record(slot))
        assert Slots.model_validate(rebuilt.dump()) == rebuilt


@given(environments())
def test_a_document_that_is_right_stays_as_it_is(made: list[Slots]) -> None:
    for slots in made:
        rebuilt = slots_from_remains(_remains(slots), slots.active_slot, slots, NOW)
        assert (rebuilt.blue, rebuilt.green, rebuilt.active_slot) == (slots.blue, slots.green, slots.active_slot)


@given(environments(), st.sampled_from([None, Slot.BLUE, Slot.GREEN]), st.booleans(), st.booleans())
def test_whatever_is_left_the_rebuilt_slots_are_legal(
    made: list[Slots], live: Slot | None, keep: bool, stale: bool
) -> None:
    for slots in made:
        remains = _remains(slots)[: None if keep else 1]
        former = slots if stale else None
        if not remains and former is None:
            with pytest.raises(ValueError, match="nothing is left"):
                slots_from_remains(remains, live, former, NOW)
            continue
        rebuilt = slots_from_remains(remains, live, former, NOW)
        there = {one.slot for one in remains}
        assert rebuilt.active_slot == (live if live in there else None)
        assert (rebuilt.active is not None) == (SlotState.ACTIVE in {rebuilt.blue.state, rebuilt.green.state})
        for slot in Slot:
            assert (rebuilt.record(slot).state is SlotState.EMPTY) == (slot not in there)


def test_an_older_container_is_the_way_back_and_a_newer_one_waits() -> None:
    slots = slots_of(states=(SlotState.ACTIVE, SlotState.GRACE))
    rebuilt = slots_from_remains(_remains(slots), Slot.BLUE, None, NOW)
    assert rebuilt.green.state is SlotState.GRACE
    assert rebuilt.green.grace_expires_at == NOW + GRACE
    rebuilt = slots_from_remains(_remains(slots), Slot.GREEN, None, NOW)
    assert (rebuilt.green.state, rebuilt.blue.state) == (SlotState.ACTIVE, SlotState.DEPLOYED)


def test_a_stale_document_gives_way_to_the_flag() -> None:
    before = slots_of(states=(SlotState.ACTIVE, SlotState.DEPLOYED))
    rebuilt = slots_from_remains(_remains(before), Slot.GREEN, before, NOW)
    assert rebuilt.active_slot is Slot.GREEN
    assert (rebuilt.blue.state, rebuilt.green.state) == (SlotState.GRACE, SlotState.ACTIVE)
    assert rebuilt.green.health_path == "/health"


def test_without_a_date_nothing_is_said_to_be_the_way_back() -> None:
    slots = slots_of(states=(SlotState.ACTIVE, SlotState.GRACE))
    undated = [Remains(**{**_as_dict(one), "deployed_at": None}) for one in _remains(slots)]  # type: ignore[arg-type]
    assert slots_from_remains(undated, Slot.BLUE, None, NOW).green.state is SlotState.DEPLOYED


def test_a_single_container_tells_the_ports_of_both_slots() -> None:
    slots = slots_of(states=(SlotState.EMPTY, SlotState.DEPLOYED), first_port=4600)
    rebuilt = slots_from_remains(_remains(slots), None, None, NOW + timedelta(days=1))
    assert (rebuilt.blue.port, rebuilt.green.port) == (4600, 4601)
    assert rebuilt.environment is Environment.PRODUCTION


def _as_dict(one: Remains) -> dict[str, object]:
    return {name: getattr(one, name) for name in Remains.__slots__}
