"""Deploy, switch and sequence: stories as data, and walks over every order of outcomes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from codeb_mcp.model.deploy import Deploy
from codeb_mcp.model.machine import Action, Done, Failed, Machine, Outcome, walk
from codeb_mcp.model.machines import machine_from_json, machine_to_json
from codeb_mcp.model.sequence import Sequence
from codeb_mcp.model.traffic import Switch
from tests.unit.model.plans import deploy_plan, follow, removal, steps, switch_plan

HERE = Path(__file__).parent
LONGEST = 20
NO = Failed("driver_refused", "no")


def _shown(action: Action) -> str:
    words = [action.name]
    if action.name == "switch_traffic":
        words.append(action.detail["slot"] or "nothing")
    if action.undo:
        words.append("(undo)")
    return " ".join(words)


def _outcome(told: dict[str, Any]) -> Outcome:
    return Done(told["done"]) if "done" in told else Failed(*told["failed"])


def _stories(folder: str) -> list[Any]:
    return [pytest.param(path, id=f"{folder}-{path.stem}") for path in sorted((HERE / folder).glob("*.json"))]


@pytest.mark.parametrize("path", [*_stories("deploy"), *_stories("switch")])
def test_a_story_asks_for_exactly_these_actions_and_ends_like_this(path: Path) -> None:
    story = json.loads(path.read_text(encoding="utf-8"))
    start: Any = (
        Deploy(deploy_plan(**story["plan"])) if path.parent.name == "deploy" else Switch(switch_plan(**story["plan"]))
    )
    end: Any
    end, actions = follow(start, [_outcome(told) for told in story["outcomes"]])
    assert [_shown(action) for action in actions] == story["actions"]
    assert end.action() is None
    assert end.phase == story["phase"]
    assert (end.failure.code if end.failure else None) == story.get("failure")
    if "result" in story:
        assert end.result == story["result"]


# ── walks ───────────────────────────────────────────────────────────────────────────────────────────────────────

SLOTS = st.sampled_from([("blue", "green"), ("green", "blue"), (None, "blue"), (None, "green")])
DRAINS = st.sampled_from([0, 5])


@st.composite
def switches(draw: st.DrawFn) -> Switch:
    """Every kind of switch."""
    former, target = draw(SLOTS)
    plan = switch_plan(
        from_slot=former,
        to_slot=target,
        from_port=4000 if former else None,
        kind=draw(st.sampled_from(["promote", "rollback"])),
        drain_seconds=draw(DRAINS),
        routed=draw(st.booleans()),
    )
    return Switch(plan)


@st.composite
def deploys(draw: st.DrawFn) -> Deploy:
    """Every kind of deploy."""
    promotion = None
    slot = draw(st.sampled_from(["blue", "green"]))
    if draw(st.booleans()):
        former = draw(st.sampled_from([None, "green" if slot == "blue" else "blue"]))
        promotion = {
            "to_slot": slot, "from_slot": former, "container": f"worb-production-{slot}", "drain_seconds": draw(DRAINS),
        }  # fmt: skip
    plan = deploy_plan(
        slot=slot,
        replaces=draw(st.booleans()),
        skip_healthcheck=draw(st.booleans()),
        promotion=promotion,
    )
    return Deploy(plan)


SEQUENCES = st.sampled_from(
    [removal(), steps("a"), steps("a", "b", "c", soft=("b",)), steps("a", "b", soft=("a", "b"))]
)
MACHINES: st.SearchStrategy[Any] = st.one_of(switches(), deploys(), SEQUENCES)
DATA = st.dictionaries(
    st.sampled_from(["imageId", "digest", "path", "graceExpiresAt"]), st.text(max_size=5), max_size=3
)
CODES = st.sampled_from(
    ["driver_refused", "driver_unavailable", "timeout", "cancelled", "release_unhealthy", "conflict"]
)


@st.composite
def runs(draw: st.DrawFn, machines: st.SearchStrategy[Any] = MACHINES) -> tuple[Machine, list[Outcome], list[Action]]:
    """A machine, outcomes that lead to its end (a step that undoes always succeeds in the end), and the actions."""
    start = machine = draw(machines)
    outcomes: list[Outcome] = []
    actions: list[Action] = []
    while (action := machine.action()) is not None:
        assert len(outcomes) < LONGEST, "the machine does not come to an end"
        fails = not action.undo and draw(st.integers(0, 4)) == 0
        outcome = Failed(draw(CODES), "no") if fails else Done(draw(DATA))
        outcomes.append(outcome)
        actions.append(action)
        machine = machine.advance(outcome)
    return start, outcomes, actions


@given(runs())
def test_every_order_of_outcomes_ends_and_an_ended_machine_takes_no_more(
    run: tuple[Machine, list[Outcome], list[Action]],
) -> None:
    end, _ = follow(run[0], run[1])
    assert end.action() is None
    with pytest.raises(ValueError):
        end.advance(Done())


@given(MACHINES)
def test_the_plan_shown_is_what_is_executed_when_all_goes_well(machine: Machine) -> None:
    end, actions = follow(machine, [Done() for _ in range(LONGEST)])
    assert actions == walk(machine)
    assert end.failure is None


@given(MACHINES)
def test_a_machine_survives_its_way_through_a_journal(machine: Machine) -> None:
    assert machine_from_json(json.loads(json.dumps(machine_to_json(machine)))) == machine


@given(runs(), st.integers(0, LONGEST))
def test_replayed_outcomes_lead_to_the_same_machine_as_the_live_walk(
    run: tuple[Machine, list[Outcome], list[Action]], crash: int
) -> None:
    start, outcomes, actions = run
    replayed, before = follow(machine_from_json(json.loads(json.dumps(machine_to_json(start)))), outcomes[:crash])
    end, after = follow(replayed, outcomes[crash:])
    live_end, _ = follow(start, outcomes)
    assert [*before, *after] == actions
    assert end == live_end


@given(runs(switches()))
def test_a_switch_sends_traffic_only_to_its_target_or_back_to_where_it_was(
    run: tuple[Switch, list[Outcome], list[Action]],
) -> None:
    plan = run[0].plan
    seen_switch = False
    for action, outcome in zip(run[2], run[1], strict=True):
        if action.name != "switch_traffic":
            assert not action.undo
            continue
        assert action.detail["slot"] == (plan.from_slot if action.undo else plan.to_slot)
        assert action.undo == seen_switch, "going back is the only second switch"
        seen_switch = True
        assert action.undo or isinstance(outcome, Done | Failed)


@given(runs(switches()))
def test_a_switch_ends_with_traffic_where_the_registry_says(run: tuple[Switch, list[Outcome], list[Action]]) -> None:
    start, outcomes, actions = run
    traffic = registry = start.plan.from_slot
    for action, outcome in zip(actions, outcomes, strict=True):
        if action.name == "switch_traffic":  # a failed one may have moved all the same
            traffic = action.detail["slot"]
        if action.name == "record_switch" and isinstance(outcome, Done):
            registry = start.plan.to_slot
    end, _ = follow(start, outcomes)
    assert traffic == registry
    assert (end.failure is None) == (registry == start.plan.to_slot)


@given(runs(deploys()))
def test_a_deploy_that_failed_leaves_neither_container_nor_record(
    run: tuple[Deploy, list[Outcome], list[Action]],
) -> None:
    start, outcomes, actions = run
    container = recorded = stands = False
    for action, outcome in zip(actions, outcomes, strict=True):
        done = isinstance(outcome, Done)
        if action.name == "start_container":
            container = True
        elif action.name == "remove_container" and done:
            container = False
        elif action.name == "record_release":
            recorded, stands = True, done
        elif action.name == "empty_slot" and done:
            recorded = stands = False
        if "container" in action.detail or "name" in action.detail:
            assert action.detail.get("name") in (None, start.plan.container), "the other slot is never touched"
    end, _ = follow(start, outcomes)
    promoting = end.promotion is not None  # type: ignore[attr-defined]
    if end.failure is not None and not promoting:
        assert not container
        assert not recorded
    else:
        assert container
        assert stands


@given(runs(deploys()))
def test_a_deploy_switches_traffic_only_after_its_release_is_proven_and_recorded(
    run: tuple[Deploy, list[Outcome], list[Action]],
) -> None:
    names = [action.name for action in run[2]]
    if "switch_traffic" not in names:
        return
    before = dict(zip(names[: names.index("switch_traffic")], run[1], strict=False))
    assert run[0].plan.promotion is not None
    assert all(isinstance(before[name], Done) for name in ("check_health", "record_release", "check_target"))


@given(runs())
def test_only_steps_that_restore_a_legal_state_are_never_given_up(
    run: tuple[Machine, list[Outcome], list[Action]],
) -> None:
    for action in run[2]:
        assert not action.undo or action.name in ("switch_traffic", "remove_container", "empty_slot")
        assert action.cancellable or action.name in ("empty_slot", "record_release", "record_switch")


@pytest.mark.parametrize("name", ["record_release", "record_switch", "empty_slot"])
def test_writing_the_registry_is_never_cancelled_half_way(name: str) -> None:
    plan = deploy_plan(replaces=True, promotion={})
    assert [action.cancellable for action in walk(Deploy(plan)) if action.name == name] == [False]


def test_the_promotion_after_a_deploy_switches_to_what_the_deploy_found() -> None:
    found = {"imageId": "sha256:new", "digest": "sha256:digest"}
    outcomes: list[Outcome] = [Done(found), Done(), Done(), Done({"path": "/api/health"}), Done(), Done()]
    machine, _ = follow(Deploy(deploy_plan(promotion={"health_path": None})), outcomes)
    action = machine.action()
    assert action is not None
    assert action.name == "check_target"
    assert action.detail["imageId"] == "sha256:new"
    assert action.detail["health"]["path"] == "/api/health"


def test_a_soft_step_that_fails_is_a_warning_and_a_cancel_ends_the_sequence_all_the_same() -> None:
    end, _ = follow(steps("a", "b", soft=("a",)), [Failed("timeout", "too slow"), Done({"x": 1})])
    assert end.failure is None
    assert end.result == {"facts": {"b": {"x": 1}}, "warnings": ["too slow"]}
    end, _ = follow(steps("a", "b", soft=("a",)), [Failed("cancelled", "stop")])
    assert end.failure is not None


def test_a_retirement_strikes_the_slot_before_it_removes_the_container() -> None:
    assert [action.name for action in walk(removal())] == ["drain", "empty_slot", "remove_container"]
    end, actions = follow(removal(), [NO, Done(), Done()])
    assert end.failure is None
    assert actions[-1].undo


def test_the_failure_after_a_switch_says_that_it_was_taken_back_and_why() -> None:
    end, _ = follow(Switch(switch_plan()), [Done(), Done(), Done(), Failed("timeout", "no answer", "Wait."), Done()])
    assert end.failure == Failed(
        "switch_reverted", "no answer", "Traffic was switched back. Wait.", {"cause": "timeout"}
    )


@pytest.mark.parametrize("document", [{}, {"kind": "nonsense"}, {"kind": None}])
def test_a_document_that_is_no_machine_is_refused(document: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        machine_from_json(document)


def test_only_known_machines_are_journalled() -> None:
    class Other:
        failure = None
        result: dict[str, Any] = {}  # noqa: RUF012

        def action(self) -> None: ...

        def advance(self, outcome: Outcome) -> Other:
            return self

    with pytest.raises(TypeError):
        machine_to_json(Other())


def test_a_sequence_keeps_what_its_steps_told() -> None:
    assert isinstance(removal(), Sequence)
    end, _ = follow(steps("a", "b"), [Done({"n": 1}), Done({"n": 2})])
    assert end.result["facts"] == {"a": {"n": 1}, "b": {"n": 2}}
