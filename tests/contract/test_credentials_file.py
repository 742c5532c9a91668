"""From the file that `docker login` writes to a pull from a real registry that wants a login."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from codeb_mcp.app import build_drivers
from codeb_mcp.model.errors import CodebError
from codeb_mcp.settings import Docker, Settings
from tests.lab.engine import Engine
from tests.lab.registry import Registry
from tests.lab.samples import SampleImages


async def test_a_login_of_the_credentials_file_pulls_and_a_wrong_one_does_not(
    engine: Engine, sample_images: SampleImages, locked_registry: Registry, tmp_path: Path
) -> None:
    login = ("anna", "right-horse")
    reference = await sample_images.at(locked_registry.address).pushed("v1", labels=None, auth=login)
    for password, pulled in (("wrong-horse", False), ("right-horse", True)):
        auth = base64.b64encode(f"anna:{password}".encode()).decode()
        file = tmp_path / f"{password}.json"
        file.write_text(json.dumps({"auths": {locked_registry.address: {"auth": auth}}}))
        docker = Docker(host=engine.host, credentials_file=file, min_free_mb=0)
        drivers = build_drivers(Settings(root=tmp_path, docker=docker))
        try:
            if pulled:
                assert (await drivers.images.pull(reference)).digest.startswith("sha256:")
            else:
                with pytest.raises(CodebError) as caught:
                    await drivers.images.pull(reference)
                assert "wrong-horse" not in str(caught.value.as_dict())
        finally:
            for driver in (
                drivers.images,
                drivers.containers,
                drivers.proxy,
                drivers.prober,
                drivers.hosts,
                drivers.names,
            ):
                await driver.close()
