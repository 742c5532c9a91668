"""Two servers on one registry: one run at a time, seen by both, and taken over when its server dies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.lab.daemons import wait_until
from tests.lab.hammer import Hammer
from tests.lab.installation import Installation
from tests.lab.ports import FreePorts
from tests.lab.samples import SampleImages


@pytest.fixture
def second(installation: Installation, free_ports: FreePorts) -> Iterator[Installation]:
    """A second server on the registry of the first."""
    twin = installation.sibling(free_ports())
    yield twin
    twin.stop()


async def test_the_other_server_takes_over_the_deploy_of_one_that_was_killed(
    installation: Installation, second: Installation, sample_images: SampleImages, unique: str
) -> None:
    installation.serve()
    second.serve()
    assert installation.call("project_create", projectName=unique, environments=["production"]).ok
    live: dict[str, Any] = {"projectName": unique, "environment": "production"}
    assert second.call("deploy", image=await sample_images.pushed("v1"), autoPromote=True, **live).ok
    slow = await sample_images.pushed("v2", READY_DELAY="4")

    accepted = installation.call("deploy", image=slow, wait=False, **live)
    assert accepted.status == 202, accepted.body
    run = accepted.body["operationId"]
    refused = second.call("promote", **live)
    assert (refused.status, refused.body["code"]) == (423, "lock_held"), refused.body
    assert refused.body["details"]["operationId"] == run
    assert second.call("operation_get", operationId=run).body["status"] == "running"

    with Hammer(installation.caddy.port, f"{unique}.apps.test") as hammer:
        installation.kill()
        wait_until(
            lambda: second.call("operation_get", operationId=run).body.get("status") == "succeeded",
            60, "the other server does not take the run over", log=installation.root / "server.log",
        )  # fmt: skip
        joined = second.call("deploy", image=slow, **live)
        assert joined.ok, joined.body
        assert joined.body["operationId"] == run
        assert second.call("promote", **live).ok
    assert hammer.failed == 0, (hammer.lost[:5], hammer.answers)
    assert second.ask_public(unique) == (200, "v2", "green")
    assert second.call("registry_check").body["data"] == []
