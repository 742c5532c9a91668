"""Drift: every difference is named once, with the one repair for it, and nothing is named where all is well."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codeb_mcp.model.drift import Drift, PublicAnswer, Repair, World, drift_of
from codeb_mcp.model.names import Environment, Slot
from codeb_mcp.model.routes import RivalRoute
from codeb_mcp.model.slot import Slots, SlotState
from tests.unit.model.worlds import environments, seen, slots_of, world_of

SLOTS = slots_of()
BLUE, GREEN = "worb-production-blue", "worb-production-green"
Change = Callable[[World], World]


def _container(name: str, **more: Any) -> Change:
    return lambda world: replace(world, containers={**world.containers, name: replace(world.containers[name], **more)})


def _without(name: str, *, image: bool = True) -> Change:
    def change(world: World) -> World:
        left = {key: value for key, value in world.containers.items() if key != name}
        images = world.images if image else world.images - {world.containers[name].image_id}
        return replace(world, containers=left, images=images)

    return change


def _with(**more: Any) -> Change:
    return lambda world: replace(world, **more)


CASES: dict[str, tuple[Change, tuple[str, Repair, str | None]]] = {
    "live container gone": (_without(BLUE), ("container_missing", Repair.RECREATE, "blue")),
    "live container and image gone": (_without(BLUE, image=False), ("container_missing", Repair.NONE, "blue")),
    "waiting container gone": (_without(GREEN), ("container_missing", Repair.RECREATE, "green")),
    "waiting container and image gone": (_without(GREEN, image=False), ("container_missing", Repair.EMPTY, "green")),
    "another image": (_container(BLUE, image_id="sha256:x"), ("container_wrong_image", Repair.RECREATE, "blue")),
    "stopped": (_container(GREEN, running=False, state="exited"), ("container_stopped", Repair.START, "green")),
    "another port": (_container(GREEN, host_ports=(4999,)), ("container_wrong_port", Repair.RECREATE, "green")),
    "traffic elsewhere": (_with(live={"worb-production": Slot.GREEN}), ("traffic_differs", Repair.SWITCH, "blue")),
    "traffic off": (_with(live={"worb-production": None}), ("traffic_differs", Repair.SWITCH, "blue")),
    "flag gone": (_with(live={}), ("traffic_differs", Repair.SWITCH, "blue")),
    "route gone": (_with(routes={}), ("route_missing", Repair.ROUTE, None)),
    "host taken": (
        _with(rivals=(RivalRoute("worb-production", "worb.test", "route 0 of the proxy's server srv0"),)),
        ("host_taken", Repair.NONE, None),
    ),
    "host taken, which explains the answer": (
        _with(
            rivals=(RivalRoute("worb-production", "worb.test", "route 0 of the proxy's server srv0"),),
            public={"worb-production": PublicAnswer("worb.test", 200, None)},
        ),
        ("host_taken", Repair.NONE, None),
    ),
    "idle slot answers": (
        _with(public={"worb-production": PublicAnswer("worb.test", 200, "green")}),
        ("public_wrong_slot", Repair.NONE, "blue"),
    ),
    "somebody else answers": (
        _with(public={"worb-production": PublicAnswer("worb.test", 404, None)}),
        ("public_not_ours", Repair.NONE, "blue"),
    ),
    "route changed": (_with(routes={"worb-production": False}), ("route_missing", Repair.ROUTE, None)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_difference_is_named_once_with_its_repair(name: str) -> None:
    change, expected = CASES[name]
    [found] = drift_of([SLOTS], change(world_of([SLOTS])))
    assert (found.kind, found.repair, found.slot) == expected
    assert found.key == "worb-production"
    assert found.message
    assert found.proposal
    again = drift_of([SLOTS], change(world_of([SLOTS])))
    assert [one.id for one in again] == [found.id]


def test_an_image_that_is_wrong_and_gone_from_the_engine_needs_a_person() -> None:
    world = _with(images=frozenset())(_container(BLUE, image_id="sha256:x")(world_of([SLOTS])))
    [found] = drift_of([SLOTS], world)
    assert (found.kind, found.repair) == ("container_wrong_image", Repair.NONE)


def test_an_empty_slot_with_a_container_or_a_foreign_listener_is_named() -> None:
    slots = slots_of(states=(SlotState.ACTIVE, SlotState.EMPTY))
    container = seen(slots, slots.green)
    [found] = drift_of(
        [slots], world_of([slots], containers={**world_of([slots]).containers, container.name: container})
    )
    assert (found.kind, found.repair, found.slot, found.subject) == ("container_unknown", Repair.REMOVE, "green", GREEN)
    [found] = drift_of([slots], world_of([slots], foreign_ports=frozenset({4001, 9})))
    assert (found.kind, found.repair, found.subject) == ("port_taken", Repair.NONE, "4001")


def test_a_container_and_a_route_that_no_environment_knows_are_named() -> None:
    other = slots_of("ghost")
    container = seen(other, other.blue)
    world = world_of([SLOTS])
    found = drift_of(
        [SLOTS],
        replace(
            world,
            containers={**world.containers, container.name: container},
            routes={**(world.routes or {}), "ghost-production": True},
        ),
    )
    assert [(one.kind, one.key, one.repair) for one in found] == [
        ("container_unknown", "ghost-production", Repair.REMOVE),
        ("route_unknown", "ghost-production", Repair.UNROUTE),
    ]


def test_a_proxy_that_cannot_be_asked_is_not_taken_for_missing_routes() -> None:
    assert drift_of([SLOTS], world_of([SLOTS], routes=None)) == []


def test_a_container_of_another_name_that_the_slot_names_is_the_right_one() -> None:
    slots = SLOTS.model_copy(update={"blue": SLOTS.blue.model_copy(update={"container_name": "old-name"})})
    world = world_of([slots])
    moved = replace(world.containers[BLUE], name="old-name")
    left = {name: one for name, one in world.containers.items() if name != BLUE}
    assert drift_of([slots], replace(world, containers={**left, "old-name": moved})) == []


def test_a_document_without_image_ids_is_taken_by_its_containers() -> None:
    slots = SLOTS.model_copy(update={"blue": SLOTS.blue.model_copy(update={"image_id": None})})
    world = _container(BLUE, image_id="sha256:whatever")(world_of([SLOTS]))
    assert drift_of([slots], world) == []


@given(environments())
def test_where_all_is_right_nothing_is_named(made: list[Slots]) -> None:
    assert drift_of(made, world_of(made)) == []


@given(environments(), st.data())
def test_busy_environments_are_left_out_and_the_others_are_not(made: list[Slots], data: st.DataObject) -> None:
    busy = set(data.draw(st.lists(st.sampled_from([slots.key for slots in made] or ["none"]))))
    found = drift_of(made, world_of(made, containers={}, live={}, routes={}), busy)
    assert {one.key for one in found} == {slots.key for slots in made} - busy


@given(environments())
def test_ids_are_short_differ_and_do_not_depend_on_order_or_words(made: list[Slots]) -> None:
    world = world_of(made, containers={}, images=frozenset(), routes={})
    found = drift_of(made, world)
    ids = [one.id for one in found]
    assert len(set(ids)) == len(ids)
    assert sorted(one.id for one in drift_of(made[::-1], world)) == sorted(ids)
    assert [replace(one, message="other", proposal="words").id for one in found] == ids
    assert all(len(one) == len("drift_") + 12 for one in ids)


@given(environments())
def test_differences_come_in_the_order_of_their_environments(made: list[Slots]) -> None:
    found = drift_of(made, world_of(made, containers={}, routes={}))
    assert [one.key for one in found] == sorted(one.key for one in found)


def test_an_environment_that_never_had_traffic_may_have_no_flag() -> None:
    slots = slots_of(states=(SlotState.DEPLOYED, SlotState.EMPTY))
    assert drift_of([slots], world_of([slots], live={})) == []
    [found] = drift_of([slots], world_of([slots], live={"worb-production": Slot.BLUE}))
    assert found.kind == "traffic_differs"
    assert "nothing" in found.message


def test_the_same_difference_in_two_environments_has_two_ids() -> None:
    assert Drift("k", "a-staging", "", Repair.NONE, "").id != Drift("k", "b-staging", "", Repair.NONE, "").id
    assert (
        Drift("k", "a-staging", "", Repair.NONE, "", "blue").id
        != Drift("k", "a-staging", "", Repair.NONE, "", "green").id
    )
    assert Environment.STAGING.value == "staging"


@pytest.mark.parametrize(
    ("status", "slot"), [(200, "blue"), (500, "blue"), (502, None), (504, None)], ids=lambda said: str(said)
)
def test_the_right_slot_and_one_that_is_down_are_no_drift(status: int, slot: str | None) -> None:
    answer = PublicAnswer("worb.test", status, slot)
    assert drift_of([SLOTS], replace(world_of([SLOTS]), public={"worb-production": answer})) == []


def test_an_environment_without_traffic_that_is_answered_by_a_slot_differs() -> None:
    waiting = slots_of(states=(SlotState.DEPLOYED, SlotState.EMPTY))
    world = world_of([waiting])
    assert drift_of([waiting], replace(world, public={waiting.key: PublicAnswer("worb.test", 503, None)})) == []
    [found] = drift_of([waiting], replace(world, public={waiting.key: PublicAnswer("worb.test", 200, "blue")}))
    assert (found.kind, found.repair) == ("public_wrong_slot", Repair.NONE)
