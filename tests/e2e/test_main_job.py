"""The main job on real parts: deploy, promote, roll back, with requests all the while, on both Caddys."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from tests.lab.daemons import wait_until
from tests.lab.hammer import Hammer
from tests.lab.installation import Installation, Reply
from tests.lab.samples import SampleImages

PRODUCTION: dict[str, Any] = {"environment": "production"}


async def test_a_release_is_deployed_promoted_and_rolled_back_without_losing_a_request(
    served: Installation, sample_images: SampleImages, unique: str
) -> None:
    v1, v2 = await sample_images.pushed("v1"), await sample_images.pushed("v2")
    created = served.call("project_create", projectName=unique)
    assert created.ok, created.body
    assert served.ask_public(unique)[0] == 503

    first = served.call("deploy", projectName=unique, image=v1, **PRODUCTION)
    assert first.ok, first.body
    assert first.body["digest"].startswith("sha256:")
    assert served.ask_public(unique)[0] == 503, "a deploy must not go live by itself"
    assert served.call("promote", projectName=unique, **PRODUCTION).ok
    assert served.ask_public(unique) == (200, "v1", "blue")

    with Hammer(served.caddy.port, f"{unique}.apps.test", threads=8) as hammer:
        second = served.call("deploy", projectName=unique, image=v2, **PRODUCTION)
        assert second.ok, second.body
        assert served.ask_public(unique) == (200, "v1", "blue")
        promoted = served.call("promote", projectName=unique, **PRODUCTION)
        assert promoted.ok, promoted.body
        assert (promoted.body["fromSlot"], promoted.body["toSlot"]) == ("blue", "green")
        assert served.ask_public(unique) == (200, "v2", "green")
        back = served.call("rollback", projectName=unique, reason="try", **PRODUCTION)
        assert back.ok, back.body
        assert back.body["restoredVersion"] == "v1"
        assert served.ask_public(unique) == (200, "v1", "blue")
    assert hammer.failed == 0, (hammer.lost[:5], hammer.answers)
    assert set(hammer.bodies) == {"v1", "v2"}
    states = served.slots(unique)
    assert (states["blue"]["state"], states["green"]["state"]) == ("active", "grace")
    assert served.call("registry_check").body["data"] == []


async def test_the_returned_preview_address_answers_whatever_is_live(
    installation: Installation, sample_images: SampleImages, unique: str
) -> None:
    installation.serve()
    assert installation.call("project_create", projectName=unique).ok
    reply = installation.call("deploy", projectName=unique, image=await sample_images.pushed("v1"))
    assert reply.body["environment"] == "staging", "staging is the default"
    host = reply.body["previewUrl"].removeprefix("http://").partition(":")[0]
    answer = subprocess.run(
        ["curl", "-sf", "-H", f"Host: {host}", f"http://127.0.0.1:{installation.caddy.port}/version"],
        capture_output=True, text=True, timeout=20, check=True,
    )  # fmt: skip
    assert answer.stdout.strip() == "v1"


PIPELINE = """set -e
curl -sf -X POST "{url}/api/tool" \\
  -H "X-API-Key: {key}" \\
  -H "Content-Type: application/json" \\
  -d '{{
    "tool": "deploy",
    "params": {{
      "projectName": "{project}",
      "environment": "staging",
      "version": "{version}",
      "image": "{image}"
    }}
  }}'
"""


async def test_the_pipeline_call_of_the_guide_works_and_a_failed_deploy_fails_it(
    installation: Installation, sample_images: SampleImages, unique: str, tmp_path: Path
) -> None:
    installation.serve()
    assert installation.call("project_create", projectName=unique, healthCheck={"deadlineSeconds": 1}).ok
    token = installation.call("token_create", name="github", role="member").body["token"]["key"]

    def pipeline(image: str, version: str) -> subprocess.CompletedProcess[str]:
        text = PIPELINE.format(url=installation.url(""), key=token, project=unique, version=version, image=image)
        return subprocess.run(["bash", "-c", text], capture_output=True, text=True, timeout=60, check=False)

    good = pipeline(await sample_images.pushed("v1"), "9f8e7d6c5b4a39281706f5e4d3c2b1a098765432")
    assert good.returncode == 0, good
    assert '"success":true' in good.stdout
    bad = pipeline(await sample_images.pushed("bad", HEALTH="fail"), "0000000000000000000000000000000000000000")
    assert bad.returncode == 22, bad
    assert installation.slots(unique, "staging")["blue"]["state"] in ("deployed", "empty")


async def test_a_grace_slot_expires_by_itself(
    installation: Installation, sample_images: SampleImages, unique: str
) -> None:
    installation.serve()
    assert installation.call("project_create", projectName=unique, environments=["production"]).ok
    settings: dict[str, Any] = {"graceHours": 0.0005, "drainSeconds": 1, **PRODUCTION}
    assert installation.call("project_update", projectName=unique, **settings).ok
    for version in ("v1", "v2"):
        image = await sample_images.pushed(version)
        assert installation.call("deploy", projectName=unique, image=image, autoPromote=True, **PRODUCTION).ok
    wait_until(lambda: installation.slots(unique)["blue"]["state"] == "empty", 30, "the grace slot never expires")
    wait_until(lambda: set(installation.containers(unique)) == {f"{unique}-production-green"}, 30, "it still runs")
    wait_until(
        lambda: installation.call("operation_list").body["data"][0]["status"] == "succeeded", 30, "it never ends"
    )
    # A run that has just ended holds its lease for a moment longer.
    answers: list[Reply] = []

    def answered() -> bool:
        answers.append(installation.call("rollback", projectName=unique, **PRODUCTION))
        return answers[-1].status != 423

    wait_until(answered, 10, "the lease is never given back")
    assert (answers[-1].status, answers[-1].body["code"]) == (409, "conflict")
