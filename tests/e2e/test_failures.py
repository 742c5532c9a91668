"""What goes wrong outside: the old version serves throughout, and the answer says what to do."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from tests.lab.daemons import wait_until
from tests.lab.engine import Engine, PrivateEngine
from tests.lab.engine import spare_engine as start_spare_engine
from tests.lab.faulty_admin import faulty_admin
from tests.lab.hammer import Hammer
from tests.lab.installation import Installation, Reply, installed
from tests.lab.ports import FreePorts
from tests.lab.registry import Registry
from tests.lab.rivals import rival_route, without_rival
from tests.lab.samples import SampleImages
from tests.lab.small_disk import SmallDisk, small_disk

PRODUCTION: dict[str, Any] = {"environment": "production"}


async def live(installation: Installation, images: SampleImages, project: str) -> None:
    """v1 serves."""
    installation.serve()
    assert installation.call(
        "project_create", projectName=project, environments=["production"], healthCheck={"deadlineSeconds": 2}
    ).ok
    image = await images.pushed("v1")
    reply = installation.call("deploy", projectName=project, image=image, autoPromote=True, **PRODUCTION)
    assert reply.ok, reply.body


def check_refusal(reply: Reply, status: int, code: str) -> None:
    """A clear answer with a next step."""
    assert (reply.status, reply.body.get("code")) == (status, code), reply.body
    assert reply.body["success"] is False
    assert reply.body["hint"]
    assert reply.body["error"]


def check_untouched(installation: Installation, project: str, hammer: Hammer) -> None:
    """v1 serves as if nothing had been, the idle slot is empty."""
    assert hammer.failed == 0, (hammer.lost[:5], hammer.answers)
    assert set(hammer.bodies) == {"v1"}
    slots = installation.slots(project)
    assert slots["activeSlot"] == "blue"
    assert slots["green"]["state"] == "empty"


@pytest.mark.parametrize(
    ("version", "knobs", "code"),
    [
        ("fails", {"HEALTH": "fail"}, "release_unhealthy"),
        ("hangs", {"HEALTH": "hang"}, "release_unhealthy"),
        ("redirects", {"HEALTH": "redirect"}, "release_unhealthy"),
        ("crashes", {"CRASH_AT_START": "3"}, "release_unhealthy"),
    ],
)
async def test_a_release_that_never_gets_healthy_never_goes_live(
    installation: Installation, sample_images: SampleImages, unique: str, version: str, knobs: dict[str, str], code: str
) -> None:
    await live(installation, sample_images, unique)
    image = await sample_images.pushed(version, **knobs)  # type: ignore[arg-type]
    with Hammer(installation.caddy.port, f"{unique}.apps.test") as hammer:
        reply = installation.call("deploy", projectName=unique, image=image, autoPromote=True, **PRODUCTION)
    check_refusal(reply, 424, code)
    check_untouched(installation, unique, hammer)
    assert set(installation.containers(unique)) == {f"{unique}-production-blue"}
    steps = {step["name"]: step["status"] for step in reply.body["steps"]}
    assert steps["health_check"] == "failed"


async def test_a_missing_image_and_a_registry_that_is_away_are_told_apart(
    installation: Installation, sample_images: SampleImages, unique: str, registry: Registry
) -> None:
    await live(installation, sample_images, unique)
    with Hammer(installation.caddy.port, f"{unique}.apps.test") as hammer:
        missing = installation.call(
            "deploy", projectName=unique, image=f"{sample_images.repository}:nope", **PRODUCTION
        )
        away = installation.call("deploy", projectName=unique, image="127.0.0.1:9/none/app:v9", **PRODUCTION)
    check_refusal(missing, 502, "driver_refused")
    check_refusal(away, 503, "driver_unavailable")
    check_untouched(installation, unique, hammer)


async def test_a_full_disk_stops_a_deploy_before_the_pull(
    installation: Installation, sample_images: SampleImages, unique: str
) -> None:
    await live(installation, sample_images, unique)
    installation.stop()
    toml = installation.root / "codeb.toml"
    toml.write_text(
        toml.read_text(encoding="utf-8").replace("min_free_mb = 64", "min_free_mb = 999999999"), encoding="utf-8"
    )
    installation.serve()
    with Hammer(installation.caddy.port, f"{unique}.apps.test") as hammer:
        reply = installation.call("deploy", projectName=unique, image=await sample_images.pushed("v2"), **PRODUCTION)
    check_refusal(reply, 507, "insufficient_storage")
    check_untouched(installation, unique, hammer)


async def test_a_proxy_that_is_away_refuses_a_promote_and_is_repaired_when_it_is_back(
    installation: Installation, sample_images: SampleImages, unique: str
) -> None:
    await live(installation, sample_images, unique)
    image = await sample_images.pushed("v2")
    installation.caddy.stop()
    deployed = installation.call("deploy", projectName=unique, image=image, **PRODUCTION)
    assert deployed.ok, deployed.body
    assert "previewUrl" not in deployed.body
    assert deployed.body["warnings"]
    refused = installation.call("promote", projectName=unique, **PRODUCTION)
    check_refusal(refused, 503, "driver_unavailable")
    assert installation.slots(unique)["activeSlot"] == "blue"
    installation.caddy.start()
    wait_until(lambda: installation.ask_public(unique) == (200, "v1", "blue"), 30, "the route does not come back")
    assert installation.call("promote", projectName=unique, **PRODUCTION).ok
    assert installation.ask_public(unique) == (200, "v2", "green")


async def test_another_site_that_takes_the_host_makes_the_promote_go_back(
    installation: Installation, sample_images: SampleImages, unique: str
) -> None:
    await live(installation, sample_images, unique)
    assert installation.call("deploy", projectName=unique, image=await sample_images.pushed("v2"), **PRODUCTION).ok
    rival_route(installation.caddy, f"{unique}.apps.test")
    assert installation.ask_public(unique) == (200, "rival", "")
    reply = installation.call("promote", projectName=unique, **PRODUCTION)
    check_refusal(reply, 424, "switch_reverted")
    assert "registry_check" in reply.body["hint"]
    assert [row["kind"] for row in installation.call("registry_check", projectName=unique).body["data"]] == [
        "host_taken"
    ]
    assert installation.slots(unique)["activeSlot"] == "blue"
    without_rival(installation.caddy)
    assert installation.ask_public(unique) == (200, "v1", "blue")
    assert installation.call("promote", projectName=unique, **PRODUCTION).ok
    assert installation.ask_public(unique) == (200, "v2", "green")


@pytest.mark.parametrize("fault", [400, 500, "hang"])
async def test_an_admin_endpoint_that_errs_leaves_the_old_version_serving(
    installation: Installation, sample_images: SampleImages, unique: str, fault: int | str
) -> None:
    with faulty_admin(installation.caddy.socket) as admin:
        setting(installation, installation.caddy.admin, admin.admin)
        await live(installation, sample_images, unique)
        image = await sample_images.pushed("v2")
        with Hammer(installation.caddy.port, f"{unique}.apps.test") as hammer:
            admin.fault = fault
            deployed = installation.call("deploy", projectName=unique, image=image, **PRODUCTION)
            assert deployed.ok, deployed.body
            assert any("preview" in warning for warning in deployed.body["warnings"])
            refused = installation.call("promote", projectName=unique, **PRODUCTION)
            assert refused.status in (502, 503, 504), refused.body
            assert refused.body["hint"]
            assert installation.get("/health").status == 200
            admin.fault = None
        assert admin.struck
        assert hammer.failed == 0, (hammer.lost[:5], hammer.answers)
        assert set(hammer.bodies) == {"v1"}
        assert installation.slots(unique)["activeSlot"] == "blue"
        assert installation.call("promote", projectName=unique, **PRODUCTION).ok
        assert installation.ask_public(unique) == (200, "v2", "green")
        installation.stop()


def setting(installation: Installation, old: str, new: str) -> None:
    """Change a piece of the settings, of which there must be one, for servers that start from now on."""
    toml = installation.root / "codeb.toml"
    text = toml.read_text(encoding="utf-8")
    assert text.count(old) == 1
    toml.write_text(text.replace(old, new), encoding="utf-8")


@pytest.fixture
def small_registry(engine: Engine, free_ports: FreePorts) -> Iterator[tuple[Installation, SmallDisk]]:
    """An installation whose registry has a small disk of its own."""
    with installed(engine, free_ports(), free_ports()) as made, TemporaryDirectory() as aside:
        folder = made.root / "registry"
        shutil.copytree(folder, aside, dirs_exist_ok=True)
        with small_disk(folder, 8) as disk:
            shutil.copytree(aside, folder, dirs_exist_ok=True)
            yield made, disk
            made.remove()


async def test_a_registry_on_a_full_disk_changes_nothing_and_tears_nothing(
    small_registry: tuple[Installation, SmallDisk], sample_images: SampleImages, unique: str
) -> None:
    installation, disk = small_registry
    await live(installation, sample_images, unique)
    image = await sample_images.pushed("v2")
    before = installation.slots(unique)
    with Hammer(installation.caddy.port, f"{unique}.apps.test") as hammer:
        disk.fill()
        reply = installation.call("deploy", projectName=unique, image=image, **PRODUCTION)
        check_refusal(reply, 507, "insufficient_storage")
        assert installation.call("slot_status", projectName=unique, **PRODUCTION).ok
        installation.kill()
        disk.free()
        installation.serve()
    check_untouched(installation, unique, hammer)
    assert installation.slots(unique)["blue"]["version"] == before["blue"]["version"]
    again = installation.call("deploy", projectName=unique, image=image, autoPromote=True, **PRODUCTION)
    assert again.ok, again.body
    assert installation.call("registry_check", projectName=unique).body["data"] == []


@pytest.fixture
def small_engine(free_ports: FreePorts) -> Iterator[tuple[Installation, SmallDisk]]:
    """An installation whose engine has a small disk, and does not ask how full that is before a pull."""
    spare = start_spare_engine(start=False)
    try:
        with small_disk(spare.folder / "data", 256) as disk:
            spare.start()
            with installed(spare, free_ports(), free_ports()) as made:
                setting(made, "min_free_mb = 64", "min_free_mb = 0")
                yield made, disk
                disk.free()
            spare.stop()
    finally:
        spare.stop()


@pytest.mark.real("docker", "spare-engine")
async def test_an_engine_on_a_full_disk_keeps_the_old_version_serving(
    small_engine: tuple[Installation, SmallDisk], registry: Registry, unique: str
) -> None:
    installation, disk = small_engine
    images = SampleImages(installation.engine, registry.address, unique)
    await live(installation, images, unique)
    image = await images.pushed("v2")
    with Hammer(installation.caddy.port, f"{unique}.apps.test") as hammer:
        disk.fill()
        reply = installation.call("deploy", projectName=unique, image=image, **PRODUCTION)
        disk.free()
    check_refusal(reply, 507, "insufficient_storage")
    check_untouched(installation, unique, hammer)
    assert set(installation.containers(unique)) == {f"{unique}-production-blue"}
    again = installation.call("deploy", projectName=unique, image=image, autoPromote=True, **PRODUCTION)
    assert again.ok, again.body
    assert installation.ask_public(unique) == (200, "v2", "green")


@pytest.fixture
def on_spare_engine(spare_engine: PrivateEngine, free_ports: FreePorts) -> Iterator[Installation]:
    """An installation whose engine may be killed."""
    with installed(spare_engine, free_ports(), free_ports()) as made:
        yield made


async def test_an_engine_that_is_away_answers_clearly_and_everything_is_back_afterwards(
    on_spare_engine: Installation, spare_engine: PrivateEngine, registry: Registry, unique: str
) -> None:
    images = SampleImages(spare_engine, registry.address, unique)
    await live(on_spare_engine, images, unique)
    image = await images.pushed("v2")
    spare_engine.kill()
    reply = on_spare_engine.call("deploy", projectName=unique, image=image, **PRODUCTION)
    check_refusal(reply, 503, "driver_unavailable")
    status = on_spare_engine.call("slot_status", projectName=unique, **PRODUCTION)
    assert status.ok, "reading must work while the engine is away"
    assert on_spare_engine.get("/health").status == 200
    spare_engine.start()
    wait_until(lambda: on_spare_engine.ask_public(unique)[:2] == (200, "v1"), 30, "v1 does not come back")
    again = on_spare_engine.call("deploy", projectName=unique, image=image, autoPromote=True, **PRODUCTION)
    assert again.ok, again.body
    assert on_spare_engine.ask_public(unique) == (200, "v2", "green")
