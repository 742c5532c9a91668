"""Many callers at once: unique ports, one winner at a time, a clear answer for everybody."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from tests.lab.installation import Installation, Reply
from tests.lab.samples import SampleImages

PROJECTS = 50
CALLERS = 8


async def test_fifty_projects_deploy_at_once(
    installation: Installation, sample_images: SampleImages, unique: str
) -> None:
    installation.serve()
    image = await sample_images.pushed("v1")
    names = [f"{unique}-{number}" for number in range(PROJECTS)]
    small = {"memoryMb": 64, "pids": 32}
    with ThreadPoolExecutor(PROJECTS) as pool:
        created = list(
            pool.map(
                lambda name: installation.call(
                    "project_create", projectName=name, environments=["staging"], limits=small
                ),
                names,
            )
        )
        assert all(reply.ok for reply in created), [reply.body for reply in created if not reply.ok][:3]
        deployed = list(pool.map(lambda name: installation.call("deploy", projectName=name, image=image), names))
    assert all(reply.ok for reply in deployed), [reply.body for reply in deployed if not reply.ok][:3]
    ports = [reply.body["port"] for reply in deployed]
    assert len(set(ports)) == PROJECTS
    pairs = [tuple(reply.body["environments"][0]["ports"].values()) for reply in created]
    assert len({port for pair in pairs for port in pair}) == 2 * PROJECTS
    assert installation.call("registry_check").body["data"] == []


async def test_eight_callers_fight_for_one_environment(
    installation: Installation, sample_images: SampleImages, unique: str
) -> None:
    installation.serve()
    assert installation.call("project_create", projectName=unique, environments=["staging"]).ok
    images = [await sample_images.pushed(f"v{number}") for number in range(CALLERS)]

    def deploy(image: str) -> Reply:
        return installation.call("deploy", projectName=unique, image=image)

    with ThreadPoolExecutor(CALLERS) as pool:
        replies = list(pool.map(deploy, images))
    won = [reply for reply in replies if reply.ok]
    assert won
    for reply in replies:
        if not reply.ok:
            assert (reply.status, reply.body["code"]) == (423, "lock_held"), reply.body
            assert reply.body["hint"]
            assert reply.body["details"]["until"]
    slots = installation.slots(unique, "staging")
    full = [slots[slot] for slot in ("blue", "green") if slots[slot]["state"] == "deployed"]
    assert len(full) == 1
    assert full[0]["version"] in {reply.body["version"] for reply in won}
    assert installation.call("registry_check").body["data"] == []


async def test_the_same_request_eight_times_at_once_is_one_run(
    installation: Installation, sample_images: SampleImages, unique: str
) -> None:
    installation.serve()
    assert installation.call("project_create", projectName=unique, environments=["staging"]).ok
    image = await sample_images.pushed("v1")
    with ThreadPoolExecutor(CALLERS) as pool:
        replies = list(pool.map(lambda _: installation.call("deploy", projectName=unique, image=image), range(CALLERS)))
    assert [reply.status for reply in replies] == [200] * CALLERS, [reply.body for reply in replies if not reply.ok]
    assert len({reply.body["operationId"] for reply in replies}) == 1
    assert installation.call("operation_list").body["total"] == 1
