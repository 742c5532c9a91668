"""kill -9 of the server before and after every step: afterwards the state is one of the two legal ends, the traffic never
stopped, and nothing leaked."""

from __future__ import annotations

from typing import Any

import pytest

from tests.lab.daemons import wait_until
from tests.lab.hammer import Hammer
from tests.lab.installation import Installation
from tests.lab.samples import SampleImages

DEPLOY = [
    ("pull_image", 1),
    ("empty_slot", 1),
    ("remove_container", 1),
    ("start_container", 1),
    ("check_health", 1),
    ("record_release", 1),
    ("publish_preview", 1),
]
FAILED_DEPLOY = [("check_health", 1), ("remove_container", 2)]
SWITCH = [
    ("check_target", 1),
    ("ensure_route", 1),
    ("switch_traffic", 1),
    ("verify_public", 1),
    ("record_switch", 1),
    ("drain", 1),
]
WHEN = ("before", "after", "recorded")


def story(installation: Installation, images: dict[str, str], project: str) -> None:
    """v1 live in blue, v0 warm in green."""
    assert installation.call("project_create", projectName=project, environments=["production"]).ok
    for version in ("v0", "v1"):
        reply = installation.call(
            "deploy", projectName=project, environment="production", image=images[version], autoPromote=True
        )
        assert reply.ok, reply.body


def settled(installation: Installation) -> bool:
    """No run is open any more."""
    reply = installation.call("operation_list", limit=200)
    return reply.ok and all(row["status"] in ("succeeded", "failed") for row in reply.body["data"])


def check_whole(installation: Installation, project: str) -> dict[str, object]:
    """Registry, engine, proxy and public address agree; answers the slot document."""
    drift = installation.call("registry_check")
    assert drift.ok, drift.body
    assert drift.body["data"] == [], drift.body["data"]
    slots = installation.slots(project)
    full = {f"{project}-production-{slot}" for slot in ("blue", "green") if slots[slot]["state"] != "empty"}
    assert set(installation.containers(project)) == full
    status, body, slot = installation.ask_public(project)
    assert (status, slot) == (200, slots["activeSlot"])
    assert body == slots[slots["activeSlot"]]["version"]
    return slots


@pytest.fixture
async def images(sample_images: SampleImages) -> dict[str, str]:
    made = {version: await sample_images.pushed(version) for version in ("v0", "v1", "v2")}
    return {**made, "bad": await sample_images.pushed("bad", HEALTH="fail")}


def kill_during(installation: Installation, project: str, order: str, tool: str, **params: Any) -> None:
    """Serve a victim, make the call, wait for its death, serve again; the load in between loses nothing."""
    installation.stop()
    installation.serve(VICTIM_DIES=order)
    with Hammer(installation.caddy.port, f"{project}.apps.test") as hammer:
        reply = installation.call(tool, projectName=project, environment="production", **params)
        assert reply.status == 0, f"the server did not die at {order}: {reply.body}"
        assert installation.wait_dead() == -9
        installation.serve()
        wait_until(lambda: settled(installation), 60, "a run stays open", log=installation.root / "server.log")
    assert hammer.failed == 0, (hammer.lost[:5], hammer.answers)
    assert sum(hammer.answers.values()) > 0


@pytest.mark.parametrize("when", WHEN)
@pytest.mark.parametrize(("action", "number"), DEPLOY, ids=[name for name, _ in DEPLOY])
def test_a_killed_deploy_ends_deployed_or_undone(
    installation: Installation, images: dict[str, str], unique: str, action: str, number: int, when: str
) -> None:
    installation.serve()
    story(installation, images, unique)
    order = f"deploy:{action}:{number}:{when}"
    kill_during(installation, unique, order, "deploy", image=images["v2"], force=True)
    slots = check_whole(installation, unique)
    green = slots["green"]
    assert isinstance(green, dict)
    assert slots["activeSlot"] == "green" or green["state"] in ("deployed", "empty", "grace")
    again = installation.call("deploy", projectName=unique, environment="production", image=images["v2"], force=True)
    assert again.ok, again.body
    assert installation.call("promote", projectName=unique, environment="production").ok
    assert installation.ask_public(unique)[1] == "v2"


@pytest.mark.parametrize("when", WHEN)
@pytest.mark.parametrize(("action", "number"), FAILED_DEPLOY, ids=["check_health", "undo"])
def test_a_killed_deploy_of_a_bad_release_leaves_the_slot_empty(
    installation: Installation, images: dict[str, str], unique: str, action: str, number: int, when: str
) -> None:
    installation.serve()
    story(installation, images, unique)
    health = {"deadlineSeconds": 1}
    assert installation.call("project_update", projectName=unique, healthCheck=health).ok
    order = f"deploy:{action}:{number}:{when}"
    kill_during(installation, unique, order, "deploy", image=images["bad"], force=True)
    slots = check_whole(installation, unique)
    active = slots["activeSlot"]
    idle = slots["green" if active == "blue" else "blue"]
    assert isinstance(idle, dict)
    assert idle["state"] == "empty"


@pytest.mark.parametrize("when", WHEN)
@pytest.mark.parametrize(("action", "number"), SWITCH, ids=[name for name, _ in SWITCH])
@pytest.mark.parametrize("tool", ["promote", "rollback"])
def test_a_killed_switch_ends_on_one_side(
    installation: Installation, images: dict[str, str], unique: str, tool: str, action: str, number: int, when: str
) -> None:
    installation.serve()
    story(installation, images, unique)
    if tool == "promote":
        params: dict[str, Any] = {
            "projectName": unique,
            "environment": "production",
            "image": images["v2"],
            "force": True,
        }
        assert installation.call("deploy", **params).ok
    before = installation.slots(unique)["activeSlot"]
    kill_during(installation, unique, f"{tool}:{action}:{number}:{when}", tool)
    slots = check_whole(installation, unique)
    assert slots["activeSlot"] in ("blue", "green")
    former = slots[str(before)]
    assert isinstance(former, dict)
    assert former["state"] == ("active" if slots["activeSlot"] == before else "grace")
