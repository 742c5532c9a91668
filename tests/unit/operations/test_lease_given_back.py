"""A run's end can be seen a moment before its lease is free: who calls then is not turned away."""

from __future__ import annotations

import asyncio

from codeb_mcp.model.names import lease_name
from tests.unit.operations.world import World


async def test_a_call_right_after_the_end_of_a_run_waits_for_its_lease(world: World) -> None:
    await world.project()
    done = await world.deploy("v1")
    store, name = world.services.store, lease_name("shop", "production")
    lease = await store.acquire(name, f"run:{done['operationId']}")
    promote = asyncio.create_task(world.promote())
    assert not (await asyncio.wait({promote}, timeout=0.12))[0]
    await store.release(lease)
    assert (await promote)["toSlot"] == "blue"


async def test_a_lease_that_its_ended_run_never_gives_back_is_still_an_answer(world: World) -> None:
    await world.project()
    done = await world.deploy("v1")
    await world.services.store.acquire(lease_name("shop", "production"), f"run:{done['operationId']}")
    error = await world.refused("lock_held", "promote", projectName="shop", environment="production")
    assert error.retryable
