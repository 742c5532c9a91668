"""kill -9 of the server before and after every step: afterwards the state is one of the two legal ends, the traffic never
stopped, and nothing leaked."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tests.lab.daemons import wait_until
from tests.lab.hammer import Hammer
from tests.lab.installation import Installation
from tests.lab.rivals import rival_route, without_rival
from tests.lab.samples import SampleImages

DEPLOY = [
    "pull_image:1",
    "empty_slot:1",
    "remove_container:1",
    "start_container:1",
    "check_health:1",
    "record_release:1",
    "publish_preview:1",
]
FAILED_DEPLOY = ["check_health:1", "remove_container:2"]
SWITCH = ["check_target:1", "check_flags:1", "switch_traffic:1", "verify_public:1", "record_switch:1"]
AUTO_PROMOTED = ["check_flags:1", "switch_traffic:1", "verify_public:1", "record_switch:1"]
REROUTED = ["ensure_route:1"]
REVERTED = ["verify_public:1", "switch_traffic:2"]
FORGOTTEN = ["empty_slot:2", "remove_container:2"]
WHEN = ("before", "after")


def orders(kind: str, actions: list[str], last: str) -> list[str]:
    """Before and after each action; after the last one also once its outcome and the run's end are durable."""
    return [f"{kind}:{action}:{when}" for action in actions for when in WHEN] + [f"{kind}:{last}:1:recorded"]


def story(installation: Installation, images: dict[str, str], project: str) -> None:
    """v1 live in green, v0 warm in blue."""
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


def check_whole(installation: Installation, project: str) -> dict[str, Any]:
    """Registry, engine, proxy and public address agree; answers the slot document."""
    drift = installation.call("registry_check", limit=200)
    assert drift.ok, drift.body
    # Other tests have containers of their own on the same engine, which this registry rightly does not know.
    ours = [row for row in drift.body["data"] if row["environment"].startswith(f"{project}-")]
    assert ours == [], ours
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


def kill_during(
    installation: Installation, project: str, order: str, tool: str, *, reloads: bool = False, **params: Any
) -> None:
    """Serve a victim, make the call, wait for its death, serve again; the load in between loses nothing, but for the
    connections that Caddy closes when its configuration `reloads`."""
    installation.stop()
    installation.serve(VICTIM_DIES=order)
    with Hammer(installation.caddy.port, f"{project}.apps.test") as hammer:
        reply = installation.call(tool, projectName=project, environment="production", **params)
        assert reply.status == 0, f"the server did not die at {order}: {reply.body}"
        assert installation.wait_dead() == -9
        installation.serve()
        wait_until(lambda: settled(installation), 60, "a run stays open", log=installation.root / "server.log")
    assert hammer.failed == 0 or reloads, (hammer.lost[:5], hammer.answers)
    assert set(hammer.answers) == {200}, hammer.answers


@pytest.mark.parametrize("order", orders("deploy", DEPLOY, "publish_preview"))
def test_a_killed_deploy_ends_deployed_or_undone(
    installation: Installation, images: dict[str, str], unique: str, order: str
) -> None:
    installation.serve()
    story(installation, images, unique)
    kill_during(installation, unique, order, "deploy", image=images["v2"], force=True)
    slots = check_whole(installation, unique)
    assert slots["activeSlot"] == "green"
    assert slots["blue"]["state"] in ("deployed", "empty", "grace")
    again = installation.call("deploy", projectName=unique, environment="production", image=images["v2"], force=True)
    assert again.ok, again.body
    assert installation.call("promote", projectName=unique, environment="production").ok
    assert installation.ask_public(unique)[1] == "v2"


@pytest.mark.parametrize("order", orders("deploy", FAILED_DEPLOY, "remove_container"))
def test_a_killed_deploy_of_a_bad_release_leaves_the_slot_empty(
    installation: Installation, images: dict[str, str], unique: str, order: str
) -> None:
    installation.serve()
    story(installation, images, unique)
    health = {"deadlineSeconds": 1}
    assert installation.call("project_update", projectName=unique, healthCheck=health).ok
    kill_during(installation, unique, order, "deploy", image=images["bad"], force=True)
    slots = check_whole(installation, unique)
    assert (slots["activeSlot"], slots["blue"]["state"]) == ("green", "empty")


@pytest.mark.parametrize("order", orders("deploy", AUTO_PROMOTED, "record_switch"))
def test_a_killed_deploy_with_promotion_ends_on_one_side(
    installation: Installation, images: dict[str, str], unique: str, order: str
) -> None:
    installation.serve()
    story(installation, images, unique)
    kill_during(installation, unique, order, "deploy", image=images["v2"], force=True, autoPromote=True)
    check_switched(check_whole(installation, unique), "green", rest="deployed")


@pytest.mark.parametrize(
    "order",
    [
        *orders("promote", SWITCH, "record_switch"),
        *orders("promote", ["drain:1"], "drain"),
        *orders("rollback", SWITCH, "record_switch"),
    ],
)
def test_a_killed_switch_ends_on_one_side(
    installation: Installation, images: dict[str, str], unique: str, order: str
) -> None:
    installation.serve()
    story(installation, images, unique)
    tool = order.partition(":")[0]
    params: dict[str, Any] = {"projectName": unique, "environment": "production", "image": images["v2"], "force": True}
    if tool == "promote":
        assert installation.call("deploy", **params).ok
    drain: dict[str, Any] = {"drainSeconds": 1} if "drain" in order else {}
    kill_during(installation, unique, order, tool, **drain)
    rest = "deployed" if tool == "promote" else "grace"
    check_switched(check_whole(installation, unique), "green", rest=rest)


@pytest.mark.parametrize("order", orders("promote", REROUTED, "ensure_route"))
def test_a_switch_that_is_killed_while_it_mends_the_route_ends_on_one_side(
    installation: Installation, images: dict[str, str], unique: str, order: str
) -> None:
    housekeeping(installation, 600)  # else it would mend the route before the promote does
    installation.serve()
    story(installation, images, unique)
    deploy: dict[str, Any] = {"projectName": unique, "environment": "production", "image": images["v2"]}
    assert installation.call("deploy", **deploy, force=True).ok
    route = f"/id/codeb-site-{unique}-production"
    handlers = installation.caddy.get(f"{route}/handle")
    installation.caddy.ask("PATCH", f"{route}/handle", [{"handler": "headers"}, *handlers])
    assert installation.caddy.get(f"{route}/handle") != handlers
    kill_during(installation, unique, order, "promote", reloads=True)
    housekeeping(installation, 1)
    installation.stop()
    installation.serve()
    wait_until(lambda: installation.caddy.get(f"{route}/handle") == handlers, 30, "the route is not mended")
    check_switched(check_whole(installation, unique), "green", rest="deployed")


@pytest.mark.parametrize(
    "order", [*orders("promote", REVERTED, "switch_traffic"), *orders("rollback", REVERTED, "switch_traffic")]
)
def test_a_switch_that_is_killed_while_it_is_taken_back_ends_where_it_began(
    installation: Installation, images: dict[str, str], unique: str, order: str
) -> None:
    installation.serve()
    story(installation, images, unique)
    tool = order.partition(":")[0]
    if tool == "promote":
        deploy: dict[str, Any] = {"projectName": unique, "environment": "production", "image": images["v2"]}
        assert installation.call("deploy", **deploy, force=True).ok
    rival_route(installation.caddy, f"{unique}.apps.test", path="/health")
    kill_during(installation, unique, order, tool)
    without_rival(installation.caddy)
    slots = check_whole(installation, unique)
    assert (slots["activeSlot"], slots["blue"]["state"]) == ("green", "deployed" if tool == "promote" else "grace")


@pytest.mark.parametrize("order", orders("deploy", FORGOTTEN, "remove_container"))
def test_a_deploy_that_is_killed_while_it_is_forgotten_leaves_the_slot_empty(
    installation: Installation, images: dict[str, str], unique: str, order: str
) -> None:
    installation.serve()
    story(installation, images, unique)
    # The public address is answered by blue although green is live, as by a proxy that sees no flags: the deploy is undone.
    rival_route(installation.caddy, f"{unique}.apps.test", path="/health", slot="blue")
    kill_during(installation, unique, order, "deploy", image=images["v2"], force=True)
    without_rival(installation.caddy)
    slots = check_whole(installation, unique)
    assert (slots["activeSlot"], slots["blue"]["state"]) == ("green", "empty")


def housekeeping(installation: Installation, seconds: int) -> None:
    """How often the servers that start from now on look after everything."""
    toml = installation.root / "codeb.toml"
    text = re.sub(r"housekeeping_seconds = \d+", f"housekeeping_seconds = {seconds}", toml.read_text(encoding="utf-8"))
    toml.write_text(text, encoding="utf-8")


def check_switched(slots: dict[str, Any], before: str, *, rest: str) -> None:
    """Either the switch happened and the former slot is warm, or it did not and the other slot is as it was."""
    other = "blue" if before == "green" else "green"
    if slots["activeSlot"] == before:
        assert slots[other]["state"] == rest
    else:
        assert (slots["activeSlot"], slots[before]["state"]) == (other, "grace")
