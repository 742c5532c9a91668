"""A proxy of another user that cannot look up the traffic flags sends everything to blue: that is found out before anything
is promoted to blue, and said with the folder's name."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab.caddy import BINARIES, left_out
from tests.lab.engine import Engine
from tests.lab.installation import Installation, installed
from tests.lab.ports import FreePorts
from tests.lab.samples import SampleImages

NOBODY = 65_534
PRODUCTION: dict[str, Any] = {"environment": "production"}


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.real(name)) for name in BINARIES])
def foreign(request: pytest.FixtureRequest, engine: Engine, free_ports: FreePorts) -> Iterator[Installation]:
    """A served installation whose proxy runs as nobody, once for each Caddy."""
    assert not left_out(request.param)
    with installed(engine, free_ports(), free_ports(), which=request.param, proxy_user=NOBODY) as made:
        made.serve()
        yield made


def health(installation: Installation, **of: Any) -> dict[str, dict[str, Any]]:
    """The parts of health_check by name."""
    reply = installation.call("health_check", **of)
    return {part["name"]: part for part in reply.body["parts"]}


async def test_a_release_is_not_served_by_a_proxy_that_sees_no_flags(
    foreign: Installation, sample_images: SampleImages, unique: str
) -> None:
    assert foreign.call("project_create", projectName=unique, environments=["production"]).ok
    image = await sample_images.pushed("v1")
    foreign.root.chmod(0o750)
    refused = foreign.call("deploy", projectName=unique, image=image, **PRODUCTION)
    assert refused.status == 502, refused.body
    assert f"{foreign.root}/traffic" in refused.body["error"]
    assert f"chmod o+x {foreign.root}" in refused.body["hint"]
    assert foreign.containers(unique) == {}
    assert foreign.slots(unique)["blue"]["state"] == "empty"
    foreign.root.chmod(0o755)
    assert foreign.call("deploy", projectName=unique, image=image, **PRODUCTION).ok
    assert foreign.ask_public(unique)[0] == 503
    foreign.root.chmod(0o750)
    blind = foreign.call("promote", projectName=unique, **PRODUCTION)
    assert blind.status == 502, blind.body
    assert blind.body["code"] == "driver_refused"
    assert f"chmod o+x {foreign.root}" in blind.body["hint"]
    assert foreign.slots(unique).get("activeSlot") is None
    assert health(foreign)["traffic flags"]["status"] == "unhealthy"
    assert health(foreign, projectName=unique, **PRODUCTION)[f"{unique}.apps.test"]["status"] == "unhealthy"
    foreign.root.chmod(0o755)
    assert foreign.call("promote", projectName=unique, **PRODUCTION).ok
    assert foreign.ask_public(unique) == (200, "v1", "blue")
    assert health(foreign)["traffic flags"] == {"name": "traffic flags", "status": "healthy", "message": ""}


async def test_a_switch_back_to_blue_is_proven_and_one_to_green_says_what_is_hidden(
    foreign: Installation, sample_images: SampleImages, unique: str
) -> None:
    assert foreign.call("project_create", projectName=unique, environments=["production"]).ok
    for version in ("v1", "v2"):
        image = await sample_images.pushed(version)
        deploy = {"projectName": unique, "image": image, "autoPromote": version == "v1", **PRODUCTION}
        assert foreign.call("deploy", **deploy).ok
    foreign.root.chmod(0o750)
    reverted = foreign.call("promote", projectName=unique, **PRODUCTION)
    assert reverted.body["code"] == "switch_reverted", reverted.body
    assert f"chmod o+x {foreign.root}" in reverted.body["hint"]
    foreign.root.chmod(0o755)
    assert foreign.call("promote", projectName=unique, **PRODUCTION).ok
    foreign.root.chmod(0o750)
    refused = foreign.call("rollback", projectName=unique, **PRODUCTION)
    assert (refused.status, refused.body["code"]) == (502, "driver_refused"), refused.body
    assert foreign.slots(unique)["activeSlot"] == "green"
    foreign.root.chmod(0o755)
    assert foreign.call("rollback", projectName=unique, **PRODUCTION).ok
    assert foreign.ask_public(unique) == (200, "v1", "blue")


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everybody can pass; pytest's own are closed."""
    folder = Path(tempfile.mkdtemp(prefix="codeb-open-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("umask", [0o027, 0o077])
def test_init_under_a_narrow_umask_makes_flags_that_others_can_see(open_folder: Path, umask: int) -> None:
    root = open_folder / "deep" / "root"
    environ = {**os.environ, "CODEB_ROOT": str(root)}
    subprocess.run([sys.executable, "-m", "codeb_mcp", "init"], env=environ, umask=umask, check=True, timeout=60)
    (root / "traffic" / "shop-production.off").touch(mode=0o644)
    looked = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "ls"]
    seen = subprocess.run([*looked, str(root / "traffic")], capture_output=True, text=True, timeout=10, check=True)
    assert "shop-production.off" in seen.stdout
    hidden = subprocess.run([*looked, str(root / "registry")], capture_output=True, timeout=10, check=False)
    assert hidden.returncode != 0
