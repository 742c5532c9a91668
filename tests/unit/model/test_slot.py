"""Slots: the whole table of moves, the guide's document, and which slot a release goes to."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codeb_mcp.model.errors import Conflict
from codeb_mcp.model.names import Environment, Slot
from codeb_mcp.model.slot import MOVES, Move, Refusal, SlotRecord, Slots, SlotState, choose_slot, moved, rollback_target
from tests.unit.model.plans import NOW

GRACE = timedelta(hours=48)
EMPTY, DEPLOYED, ACTIVE, WARM = SlotState.EMPTY, SlotState.DEPLOYED, SlotState.ACTIVE, SlotState.GRACE
TABLE = {
    EMPTY: {Move.DEPLOY: DEPLOYED, Move.CLEAN: EMPTY},
    DEPLOYED: {Move.PROMOTE: ACTIVE, Move.CLEAN: EMPTY},
    ACTIVE: {Move.DEMOTE: WARM},
    WARM: {Move.ROLL_BACK: ACTIVE, Move.CLEAN: EMPTY},
}
GUIDE: dict[str, Any] = {
    "projectName": "worb",
    "teamId": "default",
    "environment": "production",
    "activeSlot": "blue",
    "blue": {
        "name": "blue", "state": "active", "port": 4000, "version": "v1.2.3", "deployedAt": "2026-01-07T00:00:00Z",
        "deployedBy": "key_abc123", "promotedAt": "2026-01-07T00:05:00Z", "promotedBy": "key_abc123",
        "healthStatus": "healthy",
    },
    "green": {
        "name": "green", "state": "deployed", "port": 4001, "version": "v1.2.4", "deployedAt": "2026-01-07T01:00:00Z",
        "deployedBy": "key_abc123", "healthStatus": "healthy",
    },
    "lastUpdated": "2026-01-07T01:00:00Z",
}  # fmt: skip


def _slots(blue: SlotState, green: SlotState, *, ends: timedelta | None = GRACE, active: Slot | None = None) -> Slots:
    live = active or (Slot.BLUE if blue is ACTIVE else Slot.GREEN if green is ACTIVE else None)
    records = {
        name.value: SlotRecord(
            name=name,
            port=4000 + (name is Slot.GREEN),
            state=state,
            version=None if state is EMPTY else f"v-{name}",
            grace_expires_at=NOW + ends if state is WARM and ends is not None else None,
        )
        for name, state in ((Slot.BLUE, blue), (Slot.GREEN, green))
    }
    return Slots(
        project_name="worb",
        environment=Environment.PRODUCTION,
        active_slot=live,
        blue=records["blue"],
        green=records["green"],
    )


@pytest.mark.parametrize("state", list(SlotState))
@pytest.mark.parametrize("move", list(Move))
def test_each_state_allows_exactly_the_moves_of_the_table(state: SlotState, move: Move) -> None:
    expected = TABLE[state].get(move)
    if expected is None:
        with pytest.raises(Conflict, match=f"a slot that is {state} cannot"):
            moved(state, move)
    else:
        assert moved(state, move) is expected
    assert MOVES.get((state, move)) is expected


# ── the document ────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_guides_document_survives_a_round_trip() -> None:
    assert Slots.model_validate(GUIDE).dump() == GUIDE


@pytest.mark.parametrize("key", ["image_", "_legacy", "rolledBackAt", "containerName", "serial", "lineage"])
def test_keys_of_other_versions_survive_a_round_trip_and_every_change(key: str) -> None:
    value: Any = "2026-01-06T00:00:00Z" if key == "rolledBackAt" else {"x": [1, None]} if key == "_legacy" else "kept"
    document = {**GUIDE, "extra": {"a": 1}, "green": {**GUIDE["green"], key: value}}
    slots = Slots.model_validate(document)
    assert slots.dump() == document
    promoted = slots.promoted(Slot.GREEN, NOW, "key_1", GRACE)
    assert promoted.dump()["green"][key] == value
    assert promoted.dump()["extra"] == {"a": 1}


def test_an_emptied_slot_keeps_its_port_and_unknown_keys_and_nothing_of_its_release() -> None:
    slots = Slots.model_validate({**GUIDE, "green": {**GUIDE["green"], "_legacy": {"x": 1}, "image": "a/b:1"}})
    assert slots.cleaned(Slot.GREEN, NOW).dump()["green"] == {
        "name": "green", "state": "empty", "port": 4001, "_legacy": {"x": 1},
    }  # fmt: skip


# ── moves of a whole environment ────────────────────────────────────────────────────────────────────────────────


def test_the_first_promote_leaves_the_empty_slot_empty() -> None:
    slots = _slots(DEPLOYED, EMPTY).promoted(Slot.BLUE, NOW, "key_1", GRACE)
    assert (slots.blue.state, slots.green.state, slots.active_slot) == (ACTIVE, EMPTY, Slot.BLUE)
    assert isinstance(rollback_target(slots, NOW), Refusal)


def test_a_promote_keeps_the_former_slot_warm_for_the_grace_period() -> None:
    slots = _slots(ACTIVE, DEPLOYED).promoted(Slot.GREEN, NOW, "key_1", GRACE)
    assert (slots.blue.state, slots.blue.grace_expires_at) == (WARM, NOW + GRACE)
    assert (slots.green.promoted_at, slots.green.promoted_by) == (NOW, "key_1")
    target = rollback_target(slots, NOW + GRACE - timedelta(seconds=1))
    assert isinstance(target, SlotRecord)
    assert target.name is Slot.BLUE


def test_a_rollback_turns_the_slots_around_and_the_way_forth_stays() -> None:
    slots = _slots(WARM, ACTIVE).promoted(Slot.BLUE, NOW, "key_1", GRACE)
    assert (slots.blue.state, slots.green.state, slots.active_slot) == (ACTIVE, WARM, Slot.BLUE)
    assert slots.blue.grace_expires_at is None
    assert slots.blue.rolled_back_at == NOW
    assert slots.green.grace_expires_at == NOW + GRACE


@pytest.mark.parametrize("later", [timedelta(0), timedelta(seconds=1), timedelta(days=400)])
def test_there_is_no_way_back_once_the_grace_period_has_ended(later: timedelta) -> None:
    slots = _slots(WARM, ACTIVE)
    refusal = rollback_target(slots, NOW + GRACE + later)
    assert isinstance(refusal, Refusal)
    assert "v-blue" in refusal.hint
    assert slots.blue.grace_is_over(NOW + GRACE + later)


def test_a_grace_slot_without_an_end_never_expires_by_itself() -> None:
    slots = _slots(WARM, ACTIVE, ends=None)
    assert not slots.blue.grace_is_over(NOW + timedelta(days=4000))
    assert isinstance(rollback_target(slots, NOW), SlotRecord)


@pytest.mark.parametrize(
    ("blue", "green", "slot"),
    [(ACTIVE, EMPTY, Slot.GREEN), (EMPTY, EMPTY, Slot.BLUE), (ACTIVE, DEPLOYED, Slot.BLUE)],
)
def test_only_a_deployed_or_warm_slot_can_be_promoted(blue: SlotState, green: SlotState, slot: Slot) -> None:
    with pytest.raises(Conflict):
        _slots(blue, green).promoted(slot, NOW, "key_1", GRACE)


@pytest.mark.parametrize("state", [DEPLOYED, ACTIVE, WARM])
def test_a_release_goes_only_into_an_empty_slot(state: SlotState) -> None:
    with pytest.raises(Conflict):
        _slots(state, EMPTY).deployed(Slot.BLUE, NOW, "key_1", {"version": "v2"})


def test_the_active_slot_cannot_be_emptied() -> None:
    with pytest.raises(Conflict):
        _slots(ACTIVE, DEPLOYED).cleaned(Slot.BLUE, NOW)


def test_health_is_noted_without_touching_anything_else() -> None:
    before = Slots.model_validate(GUIDE)
    after = before.checked(Slot.GREEN, NOW, "unhealthy").dump()
    changed = {"healthStatus": "unhealthy", "healthCheckedAt": NOW.isoformat().replace("+00:00", "Z")}
    assert after == {**GUIDE, "green": {**GUIDE["green"], **changed}, "lastUpdated": changed["healthCheckedAt"]}


# ── which slot ──────────────────────────────────────────────────────────────────────────────────────────────────

PAIRS = [(blue, green) for blue in SlotState for green in SlotState if not blue is green is ACTIVE]


@pytest.mark.parametrize(("blue", "green"), PAIRS)
@pytest.mark.parametrize("over", [False, True])
@pytest.mark.parametrize("force", [False, True])
def test_a_release_never_goes_where_the_traffic_is_nor_over_the_way_back(
    blue: SlotState, green: SlotState, over: bool, force: bool
) -> None:
    slots = _slots(blue, green, ends=-GRACE if over else GRACE)
    chosen = choose_slot(slots, NOW, force=force)
    idle = [record for record in (slots.blue, slots.green) if record.state is not ACTIVE]
    if isinstance(chosen, Refusal):
        assert not force
        assert not over
        assert all(record.state is WARM for record in idle), "a free slot was there"
        assert chosen.detail["wouldLose"] == slots.record(Slot(chosen.detail["slot"])).version
        assert "force: true" in chosen.hint
        return
    assert slots.record(chosen) in idle
    if slots.active is None and DEPLOYED in (blue, green):
        assert slots.record(chosen).state is DEPLOYED, "a waiting release is replaced, not joined by a second one"
    elif slots.active is None and EMPTY in (blue, green):
        assert slots.record(chosen).state is EMPTY
    if slots.record(chosen).state is WARM:
        assert force or over


@pytest.mark.parametrize("force", [False, True])
def test_the_slot_named_active_is_never_taken_whatever_its_state_says(force: bool) -> None:
    for active in Slot:
        for blue in SlotState:
            for green in SlotState:
                chosen = choose_slot(_slots(blue, green, active=active), NOW, force=force)
                assert chosen is not active


# ── any history ─────────────────────────────────────────────────────────────────────────────────────────────────

EVENTS = st.lists(
    st.tuples(st.sampled_from(["deploy", "force", "promote", "rollback", "clean"]), st.integers(0, 72)), max_size=30
)


@given(EVENTS)
def test_no_history_of_operations_leaves_a_state_that_is_not_legal(events: list[tuple[str, int]]) -> None:
    slots, now = Slots.fresh("worb", "default", Environment.PRODUCTION, (4000, 4001), NOW), NOW
    for number, (event, hours) in enumerate(events):
        now += timedelta(hours=hours)
        slots = _after(slots, event, f"v{number}", now)
        states = {slots.blue.state, slots.green.state}
        assert (ACTIVE in states) == (slots.active_slot is not None)
        assert slots.active is None or slots.active.state is ACTIVE
        assert [record.state for record in (slots.blue, slots.green)].count(WARM) <= 1
        assert WARM not in states or ACTIVE in states, "there is no way back without something to go back from"
        for record in (slots.blue, slots.green):
            assert (record.version is None) == (record.state is EMPTY)
            assert (record.grace_expires_at is not None) == (record.state is WARM)
        assert Slots.model_validate(slots.dump()) == slots


def _after(slots: Slots, event: str, version: str, now: Any) -> Slots:
    if event in ("deploy", "force"):
        chosen = choose_slot(slots, now, force=event == "force")
        if isinstance(chosen, Refusal):
            return slots
        return slots.cleaned(chosen, now).deployed(chosen, now, "key_1", {"version": version})
    if event == "rollback":
        target = rollback_target(slots, now)
        return slots if isinstance(target, Refusal) else slots.promoted(target.name, now, "key_1", GRACE)
    wanted = slots.in_state(DEPLOYED) if event == "promote" else slots.in_state(DEPLOYED) or slots.in_state(WARM)
    if wanted is None:
        return slots
    return slots.promoted(wanted.name, now, "key_1", GRACE) if event == "promote" else slots.cleaned(wanted.name, now)
