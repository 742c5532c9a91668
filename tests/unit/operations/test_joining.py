"""The same promote, rollback, cleanup or deletion again while the first one is open is one run; afterwards it is a new one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from codeb_mcp.model.access import Principal, Role
from codeb_mcp.model.errors import CodebError, DriverUnavailable
from codeb_mcp.model.names import lease_name
from codeb_mcp.operations.answers import RunRequest, header_of
from codeb_mcp.operations.context import Context
from codeb_mcp.operations.housekeeping import Housekeeper
from codeb_mcp.operations.requests import JOINED_WHILE_OPEN
from codeb_mcp.operations.runs import PLANNERS
from tests.unit.operations.world import OWNER, World, bounded, principal, until

HERE = {"projectName": "shop", "environment": "production"}


async def _v2_waits(world: World) -> None:
    await world.project()
    await world.live("v1")
    await world.deploy("v2")


async def _v2_live(world: World) -> None:
    await _v2_waits(world)
    await world.promote()


@dataclass(frozen=True)
class Case:
    """A call, what comes before it, a driver's method to hold it at, and what tells that it was done once."""

    tool: str
    arguments: dict[str, Any]
    before: Callable[[World], Awaitable[None]]
    held_at: str
    states: tuple[str, str] | None


CASES = {
    "promote": Case("promote", HERE, _v2_waits, "containers.inspect", ("grace", "active")),
    "rollback": Case("rollback", HERE, _v2_live, "containers.inspect", ("active", "grace")),
    "cleanup": Case("slot_cleanup", {**HERE, "force": True}, _v2_live, "containers.remove", ("empty", "active")),
    "deletion": Case("project_delete", {"projectName": "shop", "confirm": "shop"}, _v2_live, "containers.remove", None),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    """Each of the calls that are joined while they are open."""
    return CASES[request.param]


async def _begun(world: World, case: Case) -> tuple[asyncio.Task[dict[str, Any]], Any]:
    """The first call, held in the middle of its run, and what lets it go on."""
    await case.before(world)
    pause = world.engine.faults.pause(case.held_at)
    first = asyncio.create_task(world.call(case.tool, **case.arguments))
    await bounded(pause.reached.wait())
    return first, pause


async def _waiting(world: World, callers: int) -> None:
    """Until so many callers wait for the run."""
    lives = world.services.runs._live
    await until(lambda: sum(len(life.listeners) for life in lives.values()) >= callers)


async def _kinds(world: World) -> list[str]:
    """Kinds of all runs, newest first."""
    return [row["kind"] for row in (await world.call("operation_list"))["data"]]


async def _ended_well(world: World, case: Case) -> None:
    if case.states is not None:
        assert await world.states() == case.states
        await world.require_consistent()
    assert (await _kinds(world)).count(case.tool) == (2 if case.tool == "promote" else 1), "v1 was promoted once before"


async def test_the_same_call_while_the_first_runs_joins_it(world: World, case: Case) -> None:
    first, pause = await _begun(world, case)
    second = asyncio.create_task(world.call(case.tool, **case.arguments))
    third = await world.call(case.tool, **case.arguments, wait=False)
    assert (third["status"], third["joined"]) == ("running", True)
    await _waiting(world, 2)
    pause.release()
    one, two = await bounded(asyncio.gather(first, second))
    assert one["operationId"] == two["operationId"] == third["operationId"]
    assert (one.get("joined"), two["joined"], two["status"]) == (None, True, "succeeded")
    assert {**one, "joined": True} == two
    await _ended_well(world, case)


async def test_two_at_the_very_same_time_are_one_run(world: World, case: Case) -> None:
    await case.before(world)
    calls = [world.call(case.tool, **case.arguments) for _ in range(4)]
    answers = await bounded(asyncio.gather(*calls))
    assert len({answer["operationId"] for answer in answers}) == 1
    await _ended_well(world, case)


async def test_after_a_lost_connection_the_same_call_joins_what_it_had_begun(world: World, case: Case) -> None:
    first, pause = await _begun(world, case)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    again = asyncio.create_task(world.call(case.tool, **case.arguments))
    await _waiting(world, 1)
    pause.release()
    answer = await bounded(again)
    assert (answer["status"], answer["joined"]) == ("succeeded", True)
    await _ended_well(world, case)


async def test_a_call_to_another_process_joins_as_well(world: World, case: Case) -> None:
    first, pause = await _begun(world, case)
    here, there = world.services, world.start()
    world.services = there
    two = await world.call(case.tool, **case.arguments, wait=False)
    pause.release()
    one = await bounded(first)
    world.services = here
    assert one["operationId"] == two["operationId"]
    await there.runs.close()
    await there.trail.close()
    await _ended_well(world, case)


async def test_after_the_process_went_away_the_same_call_takes_its_run_up(world: World, case: Case) -> None:
    first, _ = await _begun(world, case)
    [run_id] = await world.services.registry.journals.open_runs()
    world.restart()
    answer = await world.call(case.tool, **case.arguments)
    assert (answer["operationId"], answer["status"], answer["joined"]) == (run_id, "succeeded", True)
    await _ended_well(world, case)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)


async def test_a_server_that_ends_says_what_to_do_and_the_same_call_finds_the_run(world: World, case: Case) -> None:
    first, _ = await _begun(world, case)
    await bounded(world.services.runs.close())
    with pytest.raises(DriverUnavailable) as refusal:
        await bounded(first)
    run_id = refusal.value.detail["operationId"]
    assert f"operation_get {run_id}" in refusal.value.hint
    assert "While it is open the same call again joins it" in refusal.value.hint
    world.services = world.start()
    answer = await world.call(case.tool, **case.arguments)
    assert (answer["operationId"], answer["status"]) == (run_id, "succeeded")
    await _ended_well(world, case)


async def test_a_promote_that_has_ended_is_not_answered_from_the_past(world: World) -> None:
    await _v2_waits(world)
    first = await world.promote()
    await world.refused("conflict", "promote", **HERE)
    await world.deploy("v3", force=True)
    again = await world.promote()
    assert again["operationId"] != first["operationId"]
    assert "joined" not in again
    assert await world.visit() == "v3"
    back = await world.rollback()
    assert (await world.rollback())["operationId"] != back["operationId"]
    assert await world.visit() == "v3"


async def test_a_run_that_ended_before_the_request_was_made_is_not_joined_though_its_lease_is_not_free_yet(
    world: World,
) -> None:
    await _v2_waits(world)
    done = await world.promote()
    world.clock.forward(seconds=1)
    store = world.services.store
    lease = await store.acquire(lease_name("shop", "production"), f"run:{done['operationId']}")
    refusal = await world.refused("lock_held", "promote", **HERE)
    assert refusal.detail["operationId"] == done["operationId"]
    await store.release(lease)
    await world.refused("conflict", "promote", **HERE)


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("promote", {**HERE, "drainSeconds": 1}),
        ("rollback", HERE),
        ("slot_cleanup", {**HERE, "force": True}),
        ("project_delete", {"projectName": "shop", "confirm": "shop"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_another_request_is_told_what_to_do_and_not_joined(
    world: World, tool: str, arguments: dict[str, Any]
) -> None:
    first, pause = await _begun(world, CASES["promote"])
    refusal = await world.refused("lock_held", tool, **arguments)
    pause.release()
    answer = await bounded(first)
    if tool != "project_delete":
        assert f"operation_get {answer['operationId']}; repeat this call when it has ended" in refusal.hint
    assert refusal.detail["operationId"] == answer["operationId"]
    assert await world.visit() == "v2"


async def test_the_same_call_for_another_environment_is_another_run(world: World) -> None:
    await world.project("shop", "production", "staging")
    for environment in ("production", "staging"):
        await world.deploy("v1", environment=environment)
    pause = world.engine.faults.pause("containers.inspect")
    first = asyncio.create_task(world.promote())
    await bounded(pause.reached.wait())
    other = await world.promote(environment="staging")
    pause.release()
    assert (await bounded(first))["operationId"] != other["operationId"]
    assert "joined" not in other


async def test_why_a_rollback_is_asked_for_does_not_make_it_another_one(world: World) -> None:
    await _v2_live(world)
    pause = world.engine.faults.pause("containers.inspect")
    first = asyncio.create_task(world.rollback(reason="errors"))
    await bounded(pause.reached.wait())
    second = await world.rollback(reason="too many errors", wait=False)
    third = await world.rollback(wait=False)
    pause.release()
    assert (await bounded(first))["operationId"] == second["operationId"] == third["operationId"]


async def test_keys_and_joining_hold_together(world: World) -> None:
    first, pause = await _begun(world, CASES["promote"])
    second = await world.promote(idempotencyKey="two", wait=False)
    pause.release()
    one = await bounded(first)
    assert one["operationId"] == second["operationId"]
    later = await world.promote(idempotencyKey="two")
    assert (later["operationId"], later["joined"]) == (one["operationId"], True)
    await world.refused("conflict", "promote", **HERE)


async def test_a_run_that_is_being_cancelled_is_not_joined(world: World) -> None:
    first, pause = await _begun(world, CASES["promote"])
    [run_id] = await world.services.registry.journals.open_runs()
    world.restart()
    journal = await world.services.registry.journals.open(run_id)
    await journal.request_cancel("somebody")
    again = await world.promote()
    assert again["operationId"] != run_id
    assert (await world.call("operation_get", operationId=run_id))["failure"]["code"] == "cancelled"
    assert await world.visit() == "v2"
    pause.release()
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)


async def test_a_run_whose_undoing_had_to_wait_is_joined_and_tells_its_failure(world: World) -> None:
    await _v2_waits(world)
    green = world.edge.apps[4001]
    world.edge.apps[4001] = lambda path: green(path) if world.edge.flags["shop-production"] == "blue" else green("/no")
    promote = asyncio.create_task(world.promote())
    await until(lambda: world.edge.flags["shop-production"] == "green")
    world.edge.fail("switch", *(DriverUnavailable("away") for _ in range(3)))
    with pytest.raises(DriverUnavailable) as refusal:
        await bounded(promote)
    run_id = refusal.value.detail["operationId"]
    assert "the same call again joins it" in refusal.value.hint
    failure = await world.refused("switch_reverted", "promote", **HERE)
    assert failure.detail["operationId"] == run_id
    assert await world.visit() == "v1"
    world.edge.apps[4001] = green
    assert (await world.promote())["operationId"] != run_id


async def test_a_round_of_housekeeping_beside_another_is_no_problem(world: World) -> None:
    await _v2_live(world)
    world.clock.forward(hours=49)
    world.edge.running[4000] = 1  # a request that the first round waits for
    first = asyncio.create_task(Housekeeper(world.services).once())
    await _waiting(world, 1)
    there = world.start()
    second = await bounded(Housekeeper(there).once())
    world.edge.running[4000] = 0
    assert second.problems == []
    assert (await bounded(first)).expired
    await there.runs.close()
    await there.trail.close()
    assert await world.states() == ("empty", "active")


async def test_another_teams_run_is_never_joined(world: World) -> None:
    await _v2_waits(world)

    async def started(caller: Principal) -> Any:
        request = RunRequest.model_validate(HERE)
        header = header_of(Context(world.services, caller, "c"), "promote", request, team="default", seconds=60)
        return await world.services.runs.start(header)

    pause = world.engine.faults.pause("containers.inspect")
    view = await started(OWNER)
    await bounded(pause.reached.wait())
    with pytest.raises(CodebError) as refusal:
        await started(principal(Role.OWNER, "acme"))
    assert refusal.value.code == "lock_held"
    assert (await started(principal(Role.MEMBER))).header.run_id == view.header.run_id
    pause.release()
    await bounded(world.services.runs.drain())


async def test_a_run_that_is_stopped_before_its_first_step_gives_its_lease_back(world: World) -> None:
    await _v2_waits(world)
    services = world.services
    request = RunRequest.model_validate(HERE)
    header = header_of(Context(services, OWNER, "c"), "promote", request, team="default", seconds=60)
    view = await services.runs.start(header)
    await services.runs.close()  # nothing in between lets the run's task begin
    assert view.steps[-1]["status"] == "running"
    assert await services.store.lease(lease_name("shop", "production")) is None
    there = world.start()
    assert await there.runs.resume_all() == [header.run_id]
    await bounded(there.runs.drain())
    assert await world.visit() == "v2"
    await there.trail.close()


def test_every_tool_that_is_joined_while_open_is_a_kind_of_run() -> None:
    assert set(JOINED_WHILE_OPEN) < set(PLANNERS)
