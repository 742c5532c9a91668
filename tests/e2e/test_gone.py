"""Addresses of what is no longer there."""

from __future__ import annotations

import urllib.error
import urllib.request

from tests.lab.installation import Installation
from tests.lab.samples import SampleImages


def status(installation: Installation, host: str) -> int:
    """What a visitor of that name gets."""
    request = urllib.request.Request(f"http://127.0.0.1:{installation.caddy.port}/version", headers={"Host": host})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


async def test_the_addresses_of_a_deleted_project_answer_404(
    served: Installation, sample_images: SampleImages, unique: str
) -> None:
    for project in (unique, f"{unique}-other"):
        assert served.call("project_create", projectName=project, environments=["staging"]).ok
    image = await sample_images.pushed("v1")
    assert served.call("deploy", projectName=unique, image=image, autoPromote=True).ok
    hosts = [f"{unique}-staging.apps.test", f"{unique}-staging-blue.preview.test"]
    assert [status(served, host) for host in hosts] == [200, 200]
    assert served.call("project_delete", projectName=unique, confirm=unique).ok
    assert [status(served, host) for host in hosts] == [404, 404]
    assert status(served, f"{unique}-other-staging.apps.test") == 503
