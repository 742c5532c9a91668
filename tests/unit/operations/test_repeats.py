"""The same request again, at once, or by many: one effect, and a clear answer for everybody."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from codeb_mcp.model.access import Role
from codeb_mcp.model.errors import CodebError, Conflict, DriverRefused, LockHeld
from codeb_mcp.operations.setup import initialise
from tests.unit.operations.world import World, bounded, principal

HERE = {"projectName": "shop", "environment": "production"}


async def _codes(calls: list[Any]) -> tuple[list[dict[str, Any]], Counter[str]]:
    """Answers, and how often each error came."""
    ends = await bounded(asyncio.gather(*calls, return_exceptions=True), 60)
    for end in ends:
        assert isinstance(end, dict | CodebError), end
    return [end for end in ends if isinstance(end, dict)], Counter(
        end.code for end in ends if isinstance(end, CodebError)
    )


def _starts(world: World) -> int:
    return world.engine.faults.calls["containers.ensure"]


async def test_the_same_deploy_again_reports_the_earlier_run(world: World) -> None:
    await world.project()
    image = world.image("v1")
    first = await world.call("deploy", **HERE, image=image)
    again = await world.call("deploy", **HERE, image=image)
    assert again["joined"] is True
    assert again["operationId"] == first["operationId"]
    assert (again["slot"], again["digest"]) == (first["slot"], first["digest"])
    assert _starts(world) == 1


async def test_the_same_deploy_twice_at_once_is_one_run(world: World) -> None:
    await world.project()
    image = world.image("v1")
    answers, errors = await _codes([world.call("deploy", **HERE, image=image) for _ in range(6)])
    assert not errors
    assert len({answer["operationId"] for answer in answers}) == 1
    assert sum(answer.get("joined", False) for answer in answers) == 5
    assert _starts(world) == 1


async def test_the_same_key_twice_at_once_is_one_run_and_says_the_same_for_ever(world: World) -> None:
    await world.project()
    image = world.image("v1")
    calls = [world.call("deploy", **HERE, image=image, idempotencyKey="ci-1") for _ in range(6)]
    answers, errors = await _codes(calls)
    assert not errors
    assert len({answer["operationId"] for answer in answers}) == 1
    await world.promote()
    await world.live("v2")
    later = await world.call("deploy", **HERE, image=image, idempotencyKey="ci-1")
    assert later["operationId"] == answers[0]["operationId"]
    assert await world.visit() == "v2"


async def test_the_same_promote_with_a_key_is_not_done_twice(world: World) -> None:
    await world.project()
    await world.live("v1")
    await world.deploy("v2")
    first = await world.promote(idempotencyKey="p-1")
    again = await world.promote(idempotencyKey="p-1")
    assert (again["operationId"], again["joined"]) == (first["operationId"], True)
    await world.refused("conflict", "promote", **HERE)


async def test_a_key_gives_the_same_failure_again_and_no_second_try(world: World) -> None:
    await world.project()
    image = world.image("v1", HEALTH="fail")
    first = await world.refused("release_unhealthy", "deploy", **HERE, image=image, idempotencyKey="ci-2")
    again = await world.refused("release_unhealthy", "deploy", **HERE, image=image, idempotencyKey="ci-2")
    assert again.detail["operationId"] == first.detail["operationId"]
    assert again.message == first.message
    assert _starts(world) == 1


async def test_without_a_key_a_failed_deploy_may_be_tried_again(world: World) -> None:
    await world.project()
    image = world.image("v1")
    world.engine.faults.fail("containers.ensure", DriverRefused("no"))
    await world.refused("driver_refused", "deploy", **HERE, image=image)
    answer = await world.call("deploy", **HERE, image=image)
    assert "joined" not in answer
    assert await world.states() == ("deployed", "empty")


async def test_after_a_cleanup_the_same_deploy_is_done_again(world: World) -> None:
    await world.project()
    image = world.image("v1")
    first = await world.call("deploy", **HERE, image=image)
    await world.call("slot_cleanup", **HERE, force=True)
    again = await world.call("deploy", **HERE, image=image)
    assert again["operationId"] != first["operationId"]
    assert await world.states() == ("deployed", "empty")


async def test_a_release_that_is_the_way_back_by_now_is_not_said_to_wait(world: World) -> None:
    await world.project()
    image = world.image("v1")
    first = await world.call("deploy", **HERE, image=image)
    await world.promote()
    assert (await world.call("deploy", **HERE, image=image))["joined"] is True
    await world.live("v2")
    await world.refused("conflict", "deploy", **HERE, image=image)
    again = await world.call("deploy", **HERE, image=image, force=True)
    assert again["operationId"] != first["operationId"]
    await world.promote()
    assert await world.visit() == "v1"


async def test_after_an_hour_the_same_deploy_is_a_new_one(world: World) -> None:
    await world.project()
    image = world.image("v1")
    first = await world.call("deploy", **HERE, image=image)
    world.clock.forward(hours=1, seconds=1)
    again = await world.call("deploy", **HERE, image=image)
    assert again["operationId"] != first["operationId"]


@pytest.mark.parametrize(
    "more", [{"environment": "staging"}, {"projectName": "blog"}, {"image": "registry.test/shop:v2"}]
)
async def test_a_key_of_another_request_is_refused(world: World, more: dict[str, str]) -> None:
    await world.project("shop", "production", "staging")
    await world.project("blog")
    request = {**HERE, "image": world.image("v1")}
    world.image("v2")
    await world.call("deploy", **request, idempotencyKey="ci-3")
    refusal = await world.refused("conflict", "deploy", **{**request, **more}, idempotencyKey="ci-3")
    assert "idempotency key" in refusal.message


async def test_the_same_key_of_two_teams_are_two_keys(world: World) -> None:
    await world.call("team_create", teamId="acme", name="Acme")
    acme = principal(Role.OWNER, "acme")
    await world.project("shop")
    await world.project("theirs", caller=acme)
    first = await world.deploy("v1", "shop", idempotencyKey="k")
    second = await world.deploy("v1", "theirs", caller=acme, idempotencyKey="k")
    assert first["operationId"] != second["operationId"]


async def test_a_call_that_does_not_wait_answers_an_id_that_leads_to_the_end(world: World) -> None:
    await world.project()
    answer = await world.call("deploy", **HERE, image=world.image("v1"), wait=False)
    assert answer["status"] == "running"
    await bounded(world.services.runs.drain())
    end = await world.call("operation_get", operationId=answer["operationId"])
    assert end["status"] == "succeeded"
    assert end["result"]["slot"] == "blue"
    assert await world.states() == ("deployed", "empty")


async def test_of_eight_callers_for_one_environment_one_wins_and_the_others_learn_who(world: World) -> None:
    await world.project()
    images = [world.image(f"v{number}") for number in range(8)]
    pause = world.engine.faults.pause("images.pull")
    calls = [asyncio.create_task(world.call("deploy", **HERE, image=image)) for image in images]
    await bounded(pause.reached.wait())
    while sum(call.done() for call in calls) < 7:
        await bounded(asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED))
        await asyncio.sleep(0)
        calls = sorted(calls, key=lambda call: call.done())
        if not await _some_end(calls):
            break
    pause.release()
    ends = await bounded(asyncio.gather(*calls, return_exceptions=True))
    winners = [end for end in ends if isinstance(end, dict)]
    losers = [end for end in ends if isinstance(end, CodebError)]
    assert (len(winners), len(losers)) == (1, 7)
    for loser in losers:
        assert loser.code == "lock_held"
        assert loser.detail["operationId"] == winners[0]["operationId"]
        assert loser.detail["since"] < loser.detail["until"]
    assert (await world.slots()).blue.version == winners[0]["version"]
    assert world.running() == ["shop-production-blue"]


async def _some_end(calls: list[asyncio.Task[Any]]) -> bool:
    """Let those that are not done go on; False when only one is left."""
    open_calls = [call for call in calls if not call.done()]
    if len(open_calls) <= 1:
        return False
    await bounded(asyncio.wait(open_calls, return_when=asyncio.FIRST_COMPLETED))
    return True


async def test_eight_callers_who_come_again_until_they_win_leave_one_version_live(world: World) -> None:
    await world.project()

    async def insist(number: int) -> None:
        image = world.image(f"v{number}")
        while True:
            try:
                await world.call("deploy", **HERE, image=image, autoPromote=True, force=True)
                return
            except (LockHeld, Conflict):
                await asyncio.sleep(0.002)

    await bounded(asyncio.gather(*(insist(number) for number in range(8))), 60)
    slots = await world.require_consistent()
    assert slots.active is not None
    assert await world.visit() == slots.active.version
    assert len(world.running()) == 2


async def test_fifty_projects_at_once_get_ports_of_their_own_and_all_serve(world: World) -> None:
    names = [f"p{number}" for number in range(50)]
    await bounded(asyncio.gather(*(world.project(name) for name in names)), 60)
    answers = await bounded(asyncio.gather(*(world.deploy("v1", name, autoPromote=True) for name in names)), 60)
    ports = [answer["port"] for answer in answers]
    assert len(set(ports)) == 50
    for name in names:
        assert await world.visit(f"{name}.codeb.localhost") == "v1"
    stored = await world.services.store.get("ssot")
    assert stored is not None
    assert len(stored.doc["usedPorts"]) == 100 == len(set(stored.doc["usedPorts"]))
    assert await world.drift() == []


async def test_two_processes_on_one_registry_share_runs_and_ports(world: World) -> None:
    await world.project()
    image = world.image("v1")
    here, there = world.services, world.start()
    try:
        pause = world.engine.faults.pause("images.pull")
        first = asyncio.create_task(world.call("deploy", **HERE, image=image))
        await bounded(pause.reached.wait())
        world.services = there
        second = asyncio.create_task(world.call("deploy", **HERE, image=image))
        other = world.image("v2")
        await world.refused("lock_held", "deploy", **HERE, image=other)
        pause.release()
        answers = await bounded(asyncio.gather(first, second))
        assert answers[0]["operationId"] == answers[1]["operationId"]
        assert _starts(world) == 1
    finally:
        world.services = here
        await there.runs.close()
        await there.trail.close()


async def test_a_caller_who_goes_away_cancels_nothing(world: World) -> None:
    await world.project()
    pause = world.engine.faults.pause("images.pull")
    call = asyncio.create_task(world.call("deploy", **HERE, image=world.image("v1")))
    await bounded(pause.reached.wait())
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    pause.release()
    await bounded(world.services.runs.drain())
    assert await world.states() == ("deployed", "empty")


async def test_a_second_init_at_the_same_time_makes_one_owner(world: World) -> None:
    ends = await asyncio.gather(*(initialise(world.services) for _ in range(4)))
    assert [end.owner_key for end in ends] == [None] * 4


async def test_a_request_with_a_key_joins_the_same_one_without_and_the_other_way_round(world: World) -> None:
    await world.call("project_create", projectName="worb")
    image = world.image("v1")
    first = await world.call("deploy", projectName="worb", image=image, idempotencyKey="one")
    plain = await world.call("deploy", projectName="worb", image=image)
    other = await world.call("deploy", projectName="worb", image=image, idempotencyKey="two")
    assert first["operationId"] == plain["operationId"] == other["operationId"]
    assert plain["joined"]
    again = await world.call("deploy", projectName="worb", image=image, idempotencyKey="two")
    assert again["operationId"] == first["operationId"]
    assert _starts(world) == 1


CHANGES: list[dict[str, Any]] = [
    {"limits": {"memoryMb": 256}},
    {"limits": {"cpus": 0.5}},
    {"limits": {"capabilities": ["CHOWN"]}},
    {"limits": {"readOnlyRoot": False}},
    {"healthCheck": {"path": "/health"}},
    {"healthCheck": {"deadlineSeconds": 3}},
    {"containerPort": 9090},
    {"pullPolicy": "missing"},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
async def test_a_changed_setting_makes_the_same_deploy_a_new_one(world: World, change: dict[str, Any]) -> None:
    await world.project()
    image = world.image("v1")
    first = await world.call("deploy", **HERE, image=image)
    await world.call("project_update", projectName="shop", **change)
    again = await world.call("deploy", **HERE, image=image, force=True)
    assert "joined" not in again
    assert again["operationId"] != first["operationId"]
    third = await world.call("deploy", **HERE, image=image)
    assert (third["operationId"], third["joined"]) == (again["operationId"], True)


@pytest.mark.parametrize("values", [{"A": "2"}, {"A": "1", "B": "x"}], ids=str)
async def test_changed_variables_make_the_same_deploy_a_new_one(world: World, values: dict[str, str]) -> None:
    await world.project()
    image = world.image("v1")
    await world.call("env_set", **HERE, values={"A": "1"})
    await world.call("deploy", **HERE, image=image)
    await world.call("env_set", **HERE, values=values)
    again = await world.call("deploy", **HERE, image=image, force=True)
    assert "joined" not in again
    containers = [
        one for one in world.engine.containers.values() if one.seen.labels["codeb.run"] == again["operationId"]
    ]
    assert [{name: one.environment.get(name) for name in values} for one in containers] == [values]


async def test_settings_that_start_nothing_differently_still_join(world: World) -> None:
    await world.project()
    image = world.image("v1")
    first = await world.call("deploy", **HERE, image=image)
    await world.call("project_update", projectName="shop", keep=7)
    await world.call("project_update", projectName="shop", limits={"memoryMb": 512})
    again = await world.call("deploy", **HERE, image=image)
    assert (again["operationId"], again["joined"]) == (first["operationId"], True)
    assert _starts(world) == 1
