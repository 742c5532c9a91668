"""The contract of `Containers`, kept by the fake and by the driver of a real engine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from datetime import datetime

import pytest

from codeb_mcp.drivers.protocols import Container, ContainerSpec
from codeb_mcp.model.errors import DriverRefused, NotFound
from tests.contract.worlds import WORLDS, World, eventually, get, healthy, made_world


@pytest.fixture(params=WORLDS)
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """The fake and the real one."""
    async with made_world(request, request.param) as made:
        yield made


async def test_the_engine_says_who_it_is(world: World) -> None:
    engine = await world.containers.engine()
    assert engine.version
    assert tuple(map(int, engine.api_version.split("."))) >= (1, 41)
    assert engine.free_bytes is None or engine.free_bytes > 0


async def test_ensure_has_the_container_running_and_answering_on_loopback(world: World) -> None:
    image = await world.image("v7")
    spec = world.spec(image)
    made = await world.containers.ensure(spec)
    assert made.running
    assert (made.name, made.image_id, made.host_ports) == (spec.name, image.image_id, (spec.host_port,))
    assert made.exit_code is None
    assert made.started_at is not None
    assert made.started_at.tzinfo is not None
    assert await healthy(spec.host_port) == "v7"


async def test_labels_come_back_as_they_were_given(world: World) -> None:
    image = await world.image()
    spec = world.spec(image)
    spec = replace(spec, labels={**spec.labels, "codeb.version": "1.2.3", "note": "a=b, 'c' \"d\" $e é"})
    await world.containers.ensure(spec)
    found = await world.containers.inspect(spec.name)
    assert found is not None
    assert {name: found.labels.get(name) for name in spec.labels} == spec.labels


async def test_ensure_again_keeps_the_container(world: World) -> None:
    spec = world.spec(await world.image())
    first = await world.containers.ensure(spec)
    assert (await world.containers.ensure(spec)).container_id == first.container_id
    later = replace(spec, labels={**spec.labels, "codeb.fence": "9"})
    assert (await world.containers.ensure(later)).container_id == first.container_id


async def test_ensure_starts_a_stopped_container_again(world: World) -> None:
    spec = world.spec(await world.image())
    first = await world.containers.ensure(spec)
    await healthy(spec.host_port)
    await world.stop(spec.name)
    stopped = await world.containers.inspect(spec.name)
    assert stopped is not None
    assert (stopped.state, stopped.host_ports) == ("exited", (spec.host_port,))
    assert stopped.exit_code is not None
    again = await world.containers.ensure(spec)
    assert (again.container_id, again.running) == (first.container_id, True)
    await healthy(spec.host_port)


async def test_ensure_for_another_run_replaces_the_container(world: World) -> None:
    image = await world.image()
    spec = world.spec(image)
    first = await world.containers.ensure(spec)
    other = replace(spec, labels={**spec.labels, "codeb.run": "run-2", "codeb.fence": "2"})
    second = await world.containers.ensure(other)
    assert second.container_id != first.container_id
    assert [one.container_id for one in await _mine(world)] == [second.container_id]


async def test_ensure_with_another_image_replaces_the_container(world: World) -> None:
    old, new = await world.image("v1"), await world.image("v2")
    spec = world.spec(old)
    await world.containers.ensure(spec)
    await healthy(spec.host_port)
    await world.containers.ensure(replace(spec, image_id=new.image_id, image_reference=new.reference))
    assert await healthy(spec.host_port) == "v2"


async def test_two_callers_at_once_get_the_same_container(world: World) -> None:
    spec = world.spec(await world.image())
    async with asyncio.TaskGroup() as group:
        callers = [group.create_task(world.containers.ensure(spec)) for _ in range(4)]
    assert len({caller.result().container_id for caller in callers}) == 1
    assert len(await _mine(world)) == 1


async def test_when_runs_fight_the_highest_fence_has_the_container_in_the_end(world: World) -> None:
    spec = world.spec(await world.image(TERM="exit"), stop_timeout_seconds=2)
    rivals = [replace(spec, labels={**spec.labels, "codeb.run": f"run-{n}", "codeb.fence": str(n)}) for n in (3, 1, 2)]

    async def ensure(rival: ContainerSpec) -> str:
        try:
            return (await world.containers.ensure(rival)).labels["codeb.run"]
        except DriverRefused as error:
            return str(error.detail["reason"])

    async with asyncio.TaskGroup() as group:
        ends = [group.create_task(ensure(rival)) for rival in rivals]
    assert ends[0].result() == "run-3"
    assert {end.result() for end in ends[1:]} <= {"fenced", "run-1", "run-2"}
    assert [one.labels["codeb.run"] for one in await _mine(world)] == ["run-3"]


async def test_an_older_fence_neither_replaces_nor_removes(world: World) -> None:
    spec = world.spec(await world.image(), fence=5)
    made = await world.containers.ensure(spec)
    older = replace(spec, labels={**spec.labels, "codeb.run": "run-0", "codeb.fence": "4"})
    with pytest.raises(DriverRefused) as refusal:
        await world.containers.ensure(older)
    assert (refusal.value.detail["reason"], refusal.value.detail["fence"]) == ("fenced", 5)
    with pytest.raises(DriverRefused):
        await world.containers.ensure(replace(spec, labels={**spec.labels, "codeb.fence": "4"}))
    with pytest.raises(DriverRefused):
        await world.containers.remove(spec.name, fence=4)
    found = await world.containers.inspect(spec.name)
    assert found is not None
    assert (found.container_id, found.running) == (made.container_id, True)


async def test_remove_stops_and_removes_and_may_be_repeated(world: World) -> None:
    spec = world.spec(await world.image())
    await world.containers.ensure(spec)
    await healthy(spec.host_port)
    assert await world.containers.remove(spec.name, fence=1) is True
    assert await world.containers.inspect(spec.name) is None
    assert await get(spec.host_port) is None
    assert await world.containers.remove(spec.name, fence=1) is False


async def test_remove_of_what_never_was_is_false(world: World) -> None:
    assert await world.containers.remove(f"{world.unique}-nothing", fence=1) is False
    assert await world.containers.inspect(f"{world.unique}-nothing") is None


async def test_several_removals_at_once_all_succeed(world: World) -> None:
    spec = world.spec(await world.image())
    await world.containers.ensure(spec)
    async with asyncio.TaskGroup() as group:
        ends = [group.create_task(world.containers.remove(spec.name, fence=1)) for _ in range(4)]
    assert any(end.result() for end in ends)
    assert await world.containers.inspect(spec.name) is None


async def test_a_container_that_ignores_sigterm_is_killed_after_the_stop_timeout(world: World) -> None:
    spec = world.spec(await world.image(TERM="ignore"))
    await world.containers.ensure(spec)
    await healthy(spec.host_port)
    async with asyncio.timeout(15):
        assert await world.containers.remove(spec.name, fence=1, stop_timeout_seconds=1)
    assert await world.containers.inspect(spec.name) is None


async def test_containers_of_others_are_left_alone(world: World) -> None:
    image = await world.image()
    spec = world.spec(image)
    await world.foreign(image, spec.name)
    attempts = (lambda: world.containers.ensure(spec), lambda: world.containers.remove(spec.name, fence=99))
    for attempt in attempts:
        with pytest.raises(DriverRefused) as refusal:
            await attempt()
        assert refusal.value.detail["reason"] == "foreign_container"
    assert await world.containers.inspect(spec.name) is not None
    assert spec.name not in [one.name for one in await world.containers.list()]
    assert spec.name in [one.name for one in await world.containers.list(managed=False)]


async def test_the_list_has_running_and_crashed_containers(world: World) -> None:
    good, bad = (
        world.spec(await world.image("v1"), "good"),
        world.spec(await world.image("v2", CRASH_AT_START="3"), "bad"),
    )
    await world.containers.ensure(good)
    await world.containers.ensure(bad)
    found = {one.name: one for one in await _mine(world)}
    assert set(found) == {good.name, bad.name}
    assert found[good.name].running
    assert found[bad.name].host_ports == (bad.host_port,)


async def test_a_container_that_crashes_at_start_shows_exit_code_restarts_and_log(world: World) -> None:
    spec = world.spec(await world.image(CRASH_AT_START="37"))
    await world.containers.ensure(spec)

    async def crashed() -> Container | None:
        found = await world.containers.inspect(spec.name)
        return found if found and found.exit_code == 37 and found.restart_count > 0 else None

    found = await eventually(crashed, "a restart after the crash")
    assert not found.running
    assert any("told to end with 37" in line for line in await _log(world, spec.name))
    assert await world.containers.remove(spec.name, fence=1)


async def test_a_taken_port_is_refused_with_its_reason_and_the_container_can_be_removed(world: World) -> None:
    image = await world.image()
    first = world.spec(image, "one")
    await world.containers.ensure(first)
    second = world.spec(image, "two", host_port=first.host_port)
    with pytest.raises(DriverRefused) as refusal:
        await world.containers.ensure(second)
    assert refusal.value.detail["reason"] == "port_in_use"
    assert "port" in refusal.value.hint
    await world.containers.remove(second.name, fence=1)
    assert [one.name for one in await _mine(world)] == [first.name]


async def test_an_image_that_is_not_there_is_refused_with_its_reason(world: World) -> None:
    image = replace(await world.image(), image_id="sha256:" + "0" * 64)
    with pytest.raises(DriverRefused) as refusal:
        await world.containers.ensure(world.spec(image))
    assert refusal.value.detail["reason"] == "image_not_found"
    assert await _mine(world) == []


async def test_the_environment_reaches_the_application(world: World) -> None:
    spec = world.spec(await world.image("v1"), environment={"APP_VERSION": "from the spec = 'é' \"$X\""})
    await world.containers.ensure(spec)
    assert await healthy(spec.host_port) == "from the spec = 'é' \"$X\""


async def test_log_lines_begin_with_a_time_and_can_be_cut_by_number_and_time(world: World) -> None:
    spec = world.spec(await world.image("v5"))
    await world.containers.ensure(spec)
    await healthy(spec.host_port)
    await world.stop(spec.name)
    await world.containers.ensure(spec)

    async def both() -> list[str] | None:
        lines = [line for line in await _log(world, spec.name) if "listens" in line]
        return lines if len(lines) == 2 else None

    first, second = await eventually(both, "two starts in the log")
    stamp, _, words = second.partition(" ")
    moment = datetime.fromisoformat(stamp)
    assert moment.tzinfo is not None
    assert words == "version v5 listens"
    assert await _log(world, spec.name, tail=1) == [second]
    assert first not in await _log(world, spec.name, since=moment)
    assert second in await _log(world, spec.name, since=moment)


async def test_a_followed_log_goes_on_until_the_container_is_gone(world: World) -> None:
    spec = world.spec(await world.image("v5"))
    await world.containers.ensure(spec)
    await healthy(spec.host_port)
    lines: list[str] = []
    seen_first = asyncio.Event()

    async def follow() -> None:
        async with aclosing(world.containers.logs(spec.name, tail=100, follow=True)) as log:  # type: ignore[type-var]
            async for line in log:
                lines.append(line)
                seen_first.set()

    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        group.create_task(follow())
        await seen_first.wait()
        await world.containers.remove(spec.name, fence=1)
    assert "version v5 listens" in lines[0]


async def test_the_log_of_what_is_not_there_is_not_found(world: World) -> None:
    with pytest.raises(NotFound):
        await _log(world, f"{world.unique}-nothing")


async def _mine(world: World) -> list[Container]:
    return [one for one in await world.containers.list() if one.labels["codeb.project"] == world.unique]


async def _log(world: World, name: str, *, tail: int = 100, since: datetime | None = None) -> list[str]:
    return [line async for line in world.containers.logs(name, tail=tail, since=since)]
