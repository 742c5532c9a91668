"""A route that another program put before ours in a real Caddy: the check names it, and it goes away with it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.lab.hammer import Hammer
from tests.lab.installation import Installation
from tests.lab.rivals import rival_route, without_rival
from tests.lab.samples import SampleImages

PRODUCTION: dict[str, Any] = {"environment": "production"}


async def live(installation: Installation, images: SampleImages, project: str) -> None:
    """v1 serves in blue, v2 waits in green."""
    assert installation.call("project_create", projectName=project, environments=["production"]).ok
    for version in ("v1", "v2"):
        deploy: dict[str, Any] = {
            "projectName": project,
            "image": await images.pushed(version),
            "autoPromote": version == "v1",
        }
        assert installation.call("deploy", **deploy, **PRODUCTION).ok


def drift(installation: Installation, project: str) -> list[dict[str, Any]]:
    """What registry_check finds."""
    rows: list[dict[str, Any]] = installation.call("registry_check", projectName=project).body["data"]
    return rows


@pytest.mark.parametrize("pattern", ["{project}.apps.test", "*.apps.test", None])
async def test_a_route_before_ours_is_named_with_its_place(
    served: Installation, sample_images: SampleImages, unique: str, pattern: str | None
) -> None:
    await live(served, sample_images, unique)
    assert drift(served, unique) == []
    host = f"{unique}.apps.test"
    rival_route(served.caddy, pattern.format(project=unique) if pattern else None)
    rows = [row for row in drift(served, unique) if "preview.test" not in row["message"]]
    assert [(row["kind"], row["repair"]) for row in rows] == [("host_taken", "none")], rows
    assert f"{host} is answered by route 0 (rival) of the proxy's server" in rows[0]["message"]
    assert "route 0 (rival)" in rows[0]["proposal"]
    mended = served.call("registry_repair", driftIds=[rows[0]["id"]])
    assert mended.body["data"][0]["repaired"] is False
    refused = served.call("promote", projectName=unique, **PRODUCTION)
    assert (refused.body["code"], "registry_check" in refused.body["hint"]) == ("switch_reverted", True), refused.body
    without_rival(served.caddy)
    assert drift(served, unique) == []
    with Hammer(served.caddy.port, host) as hammer:
        assert served.call("promote", projectName=unique, **PRODUCTION).ok
    assert hammer.failed == 0
