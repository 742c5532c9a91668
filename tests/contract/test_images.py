"""The contract of `Images`, kept by the fake and by the driver of a real engine with a real registry."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from codeb_mcp.drivers.docker_images import DockerImages
from codeb_mcp.drivers.protocols import Images
from codeb_mcp.model.errors import CodebError, DeadlineExceeded, DriverRefused, DriverUnavailable, InsufficientStorage
from tests.contract.worlds import LOGIN, WORLDS, FakeWorld, RealWorld, World, healthy, made_world, nobody
from tests.lab import images as lab_images
from tests.lab.engine import PrivateEngine
from tests.lab.faulty_socket import faulty_socket
from tests.lab.registry import Registry


@pytest.fixture(params=WORLDS)
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """The fake and the real one."""
    async with made_world(request, request.param) as made:
        yield made


async def test_a_pull_brings_an_image_that_runs_and_is_known_by_digest(world: World) -> None:
    reference = await world.publish("v3")
    assert await world.images.find(reference) is None
    image = await world.images.pull(reference)
    assert image.reference == reference
    assert image.digest.startswith("sha256:")
    assert image.digest != image.image_id
    assert image.size_bytes > 0
    assert await world.images.find(reference) == image
    spec = world.spec(image)
    await world.containers.ensure(spec)
    assert await healthy(spec.host_port) == "v3"


async def test_an_image_is_found_and_pulled_by_digest_and_found_by_id(world: World) -> None:
    image = await world.images.pull(await world.publish("v1"))
    pinned = f"{image.reference.rpartition(':')[0]}@{image.digest}"
    for name in (pinned, image.image_id):
        found = await world.images.find(name)
        assert found is not None
        assert found.image_id == image.image_id
    assert (await world.images.pull(pinned)).image_id == image.image_id
    spec = world.spec(replace(image, reference=pinned))
    assert (await world.containers.ensure(spec)).image_id == image.image_id


async def test_progress_grows_to_one(world: World) -> None:
    seen: list[tuple[float | None, str]] = []
    await world.images.pull(await world.publish("v1"), progress=lambda fraction, words: seen.append((fraction, words)))
    fractions = [fraction for fraction, _ in seen if fraction is not None]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0
    assert all(words for _, words in seen)


async def test_always_asks_the_registry_and_missing_does_not(world: World) -> None:
    reference = await world.publish("v1")
    old = await world.images.pull(reference)
    await _move_tag(world, reference)
    assert (await world.images.pull(reference, policy="missing")).image_id == old.image_id
    new = await world.images.pull(reference, policy="always")
    assert new.image_id != old.image_id
    assert new.digest != old.digest
    assert (await world.images.pull(reference, policy="never")).image_id == new.image_id


async def test_missing_pulls_what_is_missing_and_never_refuses_it(world: World) -> None:
    reference = await world.publish("v1")
    with pytest.raises(DriverRefused) as refusal:
        await world.images.pull(reference, policy="never")
    assert refusal.value.detail["reason"] == "image_not_found"
    assert (await world.images.pull(reference, policy="missing")).reference == reference


async def test_a_loaded_image_has_its_id_for_digest(world: World) -> None:
    image = await world.image("v1")
    assert image.digest == image.image_id


@pytest.mark.parametrize("change", [":v1", "/app"])
async def test_a_missing_tag_or_repository_is_told_as_not_found(world: World, change: str) -> None:
    reference = (await world.publish("v1")).replace(change, {":v1": ":v404", "/app": "/other"}[change])
    with pytest.raises(DriverRefused) as refusal:
        await world.images.pull(reference)
    assert refusal.value.detail["reason"] == "image_not_found"
    assert refusal.value.detail["image"] == reference
    assert "tag" in refusal.value.hint or "name" in refusal.value.hint


async def test_a_registry_that_is_down_is_unavailable_and_worth_a_retry(world: World) -> None:
    address = f"127.0.0.1:{world.ports()}"
    if isinstance(world, FakeWorld):
        world.engine.registries_down.add(address)
    with pytest.raises(DriverUnavailable) as problem:
        await world.images.pull(f"{address}/some/app:v1")
    assert problem.value.detail["reason"] == "registry_unreachable"
    assert problem.value.retryable


@pytest.mark.parametrize("login", [None, ("anna", "wrong-horse"), ("nobody", "right-horse")])
async def test_without_the_right_credentials_a_pull_is_unauthorized(
    world: World, request: pytest.FixtureRequest, login: tuple[str, str] | None
) -> None:
    reference, _ = await _private_image(world, request)
    with pytest.raises(DriverRefused) as refusal:
        await world.puller(lambda registry: login).pull(reference)
    assert refusal.value.detail["reason"] == "unauthorized"
    assert "credentials" in refusal.value.hint
    assert "horse" not in str(refusal.value.as_dict())


async def test_with_the_right_credentials_a_pull_succeeds(world: World, request: pytest.FixtureRequest) -> None:
    reference, address = await _private_image(world, request)
    asked: list[str] = []

    def credentials(registry: str) -> tuple[str, str]:
        asked.append(registry)
        return LOGIN

    assert (await world.puller(credentials).pull(reference)).reference == reference
    assert asked == [address]


async def test_a_pull_is_refused_while_the_disk_is_too_full(world: World) -> None:
    reference = await world.publish("v1")
    with pytest.raises(InsufficientStorage) as refusal:
        await world.puller(min_free_bytes=1 << 60).pull(reference)
    assert refusal.value.detail["neededBytes"] == 1 << 60
    assert 0 < refusal.value.detail["freeBytes"] < 1 << 60
    assert await world.images.find(reference) is None


async def test_images_are_listed_by_label_and_removed_by_id_when_nothing_uses_them(world: World) -> None:
    labels = {"codeb.unique": world.unique}
    used = await world.images.pull(await world.publish("v1", labels=labels))
    idle = await world.images.pull(await world.publish("v2", labels=labels))
    await world.images.pull(await world.publish("v3"))
    spec = world.spec(used)
    await world.containers.ensure(spec)
    await world.stop(spec.name)
    listed = await world.images.list_labelled(f"codeb.unique={world.unique}")
    assert {image.image_id: image.digest for image in listed} == {
        used.image_id: used.digest,
        idle.image_id: idle.digest,
    }
    assert all(image.labels["codeb.unique"] == world.unique for image in listed)
    assert await world.images.remove(used.image_id) is False
    assert await world.images.remove(idle.image_id) is True
    assert await world.images.remove(idle.image_id) is False
    assert await world.images.find(used.reference) is not None
    assert await world.images.find(idle.reference) is None


async def test_images_are_removed_by_id_only(world: World) -> None:
    reference = await world.load("v1")
    with pytest.raises(DriverRefused):
        await world.images.remove(reference)
    assert await world.images.find(reference) is not None


@pytest.mark.real("docker", "registry")
async def test_an_image_with_several_tags_goes_with_all_of_them_or_stays_with_all(
    request: pytest.FixtureRequest,
) -> None:
    async with made_world(request, "real") as world:
        assert isinstance(world, RealWorld)
        image = await world.images.pull(await world.publish("v1"))
        repository = image.reference.rpartition(":")[0]
        async with world.engine.docker() as docker:
            await docker.images.tag(image.image_id, repository, tag="also")
            await docker.images.tag(image.image_id, f"{repository}/elsewhere", tag="v1")
        spec = world.spec(image)
        await world.containers.ensure(spec)
        assert await world.images.remove(image.image_id) is False
        assert await world.images.find(f"{repository}:also") is not None
        assert await world.images.find(image.reference) is not None
        await world.containers.remove(spec.name, fence=1)
        assert await world.images.remove(image.image_id) is True
        assert await world.images.find(image.image_id) is None
        assert await world.images.find(f"{repository}:also") is None


async def test_a_first_pull_shows_how_far_it_is(spare_engine: PrivateEngine, request: pytest.FixtureRequest) -> None:
    """An engine without a single layer, so that there is something to load."""
    seen: list[float] = []
    async with made_world(request, "real") as world:
        reference = await world.publish("v1")
        images = DockerImages(spare_engine.host, nobody, 0)
        await images.pull(reference, progress=lambda fraction, _: seen.append(fraction or 0.0))
        await images.close()
    assert seen == sorted(seen)
    assert any(0.0 < fraction < 1.0 for fraction in seen)
    assert seen[-1] == 1.0


async def test_a_pull_that_is_cut_off_is_no_success_though_an_older_image_is_there(
    request: pytest.FixtureRequest,
) -> None:
    async with made_world(request, "real") as world:
        assert isinstance(world, RealWorld)
        reference = await world.publish("v1")
        old = await world.images.pull(reference)
        await _move_tag(world, reference)
        for cut_after in (0, 250, 400):
            async with faulty_socket(world.engine.host) as socket:
                socket.order("cut", "POST .*images/create", cut_after=cut_after)
                images = DockerImages(socket.host, nobody, 0)
                with pytest.raises(DriverUnavailable):
                    await images.pull(reference)
                await images.close()
        new = await world.images.pull(reference)
        assert new.image_id != old.image_id


async def test_a_pull_without_news_is_given_up(request: pytest.FixtureRequest) -> None:
    async with made_world(request, "real") as world:
        assert isinstance(world, RealWorld)
        reference = await world.publish("v1")
        async with faulty_socket(world.engine.host) as socket:
            socket.order("hang", "POST .*images/create")
            images = DockerImages(socket.host, nobody, 0, idle_seconds=0.5)
            with pytest.raises(DeadlineExceeded):
                await images.pull(reference)
            await images.close()


@pytest.mark.parametrize("method", ["pull", "find", "list_labelled", "remove"])
async def test_ordered_faults_of_the_fake_strike_once(request: pytest.FixtureRequest, method: str) -> None:
    async with made_world(request, "fake") as world:
        assert isinstance(world, FakeWorld)
        image = await world.images.pull(await world.publish("v1"))
        world.engine.faults.fail(f"images.{method}", DriverUnavailable("away"), nth=2)
        await _call(world.images, method, image.reference, image.image_id)
        with pytest.raises(CodebError, match="away"):
            await _call(world.images, method, image.reference, image.image_id)
        await _call(world.images, method, image.reference, image.image_id)


async def _call(images: Images, method: str, reference: str, image_id: str) -> None:
    if method == "pull":
        await images.pull(reference)
    elif method == "find":
        await images.find(reference)
    elif method == "list_labelled":
        await images.list_labelled("any")
    else:
        await images.remove(image_id)


async def _move_tag(world: World, reference: str) -> None:
    """Push another image under the tag; the engine keeps the former one under it."""
    if isinstance(world, FakeWorld):
        world.engine.publish(reference, "moved")
        return
    assert isinstance(world, RealWorld)
    kept = await world.images.find(reference)
    assert kept is not None
    await lab_images.build(world.engine.host, reference, "moved")
    await lab_images.push(world.engine.host, reference)
    async with world.engine.docker() as docker:
        repository, _, tag = reference.rpartition(":")
        await docker.images.tag(kept.image_id, repository, tag=tag)


async def _private_image(world: World, request: pytest.FixtureRequest) -> tuple[str, str]:
    """An image in a registry that wants LOGIN; its reference and the registry's address."""
    if isinstance(world, FakeWorld):
        reference = await world.publish("v1")
        world.engine.logins["registry.test"] = LOGIN
        return reference, "registry.test"
    assert isinstance(world, RealWorld)
    locked: Registry = request.getfixturevalue("locked_registry")
    return await world.samples.at(locked.address).pushed("v1", labels=None, auth=LOGIN), locked.address
