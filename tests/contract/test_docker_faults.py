"""What only a real engine can show: hardening, lost answers, an engine that is away or talks nonsense."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from codeb_mcp.drivers.docker import DockerContainers
from codeb_mcp.drivers.docker_images import DockerImages
from codeb_mcp.drivers.protocols import ContainerSpec
from codeb_mcp.model.errors import (
    CodebError,
    DeadlineExceeded,
    DriverRefused,
    DriverUnavailable,
    InsufficientStorage,
    NotFound,
)
from tests.contract.worlds import RealWorld, eventually, get, healthy, made_world, nobody
from tests.lab import images as lab_images
from tests.lab.engine import PrivateEngine
from tests.lab.faulty_socket import FaultySocket, canned_socket, faulty_socket

pytestmark = pytest.mark.real("docker", "registry")

ALLOWED = (DriverUnavailable, DriverRefused, DeadlineExceeded, NotFound, InsufficientStorage)
VERSION = json.dumps({"ApiVersion": "1.41", "Version": "20.10"}).encode()


@pytest.fixture
async def world(request: pytest.FixtureRequest) -> AsyncIterator[RealWorld]:
    """A real engine and a real registry."""
    async with made_world(request, "real") as made:
        assert isinstance(made, RealWorld)
        yield made


@pytest.fixture
async def faulty(world: RealWorld) -> AsyncIterator[tuple[FaultySocket, DockerContainers]]:
    """A socket before the engine that loses answers on order, and a driver that uses it."""
    async with faulty_socket(world.engine.host) as socket:
        containers = DockerContainers(socket.host)
        yield socket, containers
        await containers.close()


# ── hardening ───────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_container_gets_the_whole_hardening_and_nothing_else(world: RealWorld) -> None:
    spec = world.spec(await world.image(), capabilities=("NET_BIND_SERVICE",), cpus=0.5, tmpfs=("/tmp", "/run/app"))
    await world.containers.ensure(spec)
    raw = await _raw(world, spec.name)
    host = raw["HostConfig"]
    assert host["PortBindings"] == {"8080/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(spec.host_port)}]}
    assert (host["CapDrop"], host["CapAdd"]) == (["ALL"], ["NET_BIND_SERVICE"])
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert (host["PidsLimit"], host["NanoCpus"]) == (64, 500_000_000)
    assert host["Memory"] == host["MemorySwap"] == 128 << 20
    assert (host["ReadonlyRootfs"], host["Init"], host["Privileged"]) == (True, True, False)
    assert set(host["Tmpfs"]) == {"/tmp", "/run/app"}
    assert all("noexec" in options and "nosuid" in options for options in host["Tmpfs"].values())
    assert host["RestartPolicy"]["Name"] == "always"
    assert host["LogConfig"]["Config"] == {"max-size": "10m", "max-file": "3"}
    assert not any(host[option] for option in ("Binds", "Devices", "VolumesFrom", "PublishAllPorts"))
    assert (host["PidMode"], host["UsernsMode"], host["NetworkMode"]) == ("", "", "default")
    assert raw["Config"]["StopTimeout"] == spec.stop_timeout_seconds


async def test_the_root_folder_is_read_only_unless_the_project_says_otherwise(world: RealWorld) -> None:
    image = await world.image(WRITE_ROOT="1")
    closed, open_ = world.spec(image, "closed"), world.spec(image, "open", read_only_root=False)
    for spec in (closed, open_):
        await world.containers.ensure(spec)
        await healthy(spec.host_port)
    assert any("Read-only file system" in line for line in await _log(world.containers, closed.name))
    assert not any("Read-only file system" in line for line in await _log(world.containers, open_.name))


async def test_the_port_is_reachable_on_loopback_only(world: RealWorld) -> None:
    if not world.engine.bridge_address:
        pytest.fail("the engine's bridge has no address to try")
    spec = world.spec(await world.image())
    await world.containers.ensure(spec)
    await healthy(spec.host_port)
    assert await get(spec.host_port, host=world.engine.bridge_address) is None
    assert _listening_addresses(spec.host_port) == {"127.0.0.1"}


async def test_containers_come_back_after_the_engine_was_killed(spare_engine: PrivateEngine, world: RealWorld) -> None:
    await lab_images.build(spare_engine.host, f"{world.unique}:v1", "v1")
    containers, images = DockerContainers(spare_engine.host), DockerImages(spare_engine.host, nobody, 0)
    image = await images.find(f"{world.unique}:v1")
    assert image is not None
    spec = world.spec(image)
    await containers.ensure(spec)
    await healthy(spec.host_port)
    spare_engine.kill()
    for call in (containers.engine, containers.list, lambda: containers.inspect(spec.name)):
        with pytest.raises(DriverUnavailable) as problem:
            await call()
        assert problem.value.detail["reason"] == "engine_unreachable"
        assert problem.value.hint
    spare_engine.start()
    assert await healthy(spec.host_port) == "v1"
    assert (await containers.ensure(spec)).running
    await containers.close()
    await images.close()


# ── lost answers ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("lost", ["POST .*containers/create", "POST .*/start"])
async def test_ensure_looks_when_an_answer_is_lost(
    world: RealWorld, faulty: tuple[FaultySocket, DockerContainers], lost: str
) -> None:
    socket, containers = faulty
    spec = world.spec(await world.image())
    order = socket.order("lose", lost)
    made = await containers.ensure(spec)
    assert order.struck == 1
    assert made.running
    assert await healthy(spec.host_port) == "v1"
    assert len([one for one in await world.containers.list() if one.name == spec.name]) == 1


@pytest.mark.parametrize("kind", ["refuse", "cut", "lose"])
@pytest.mark.parametrize("request_", ["GET .*/json", "POST .*create", "POST .*start", "POST .*stop", "DELETE"])
async def test_a_connection_that_breaks_is_unavailable_and_repeating_succeeds(
    world: RealWorld, faulty: tuple[FaultySocket, DockerContainers], kind: str, request_: str
) -> None:
    socket, containers = faulty
    spec = world.spec(await world.image(TERM="exit"))
    other = replace(spec, labels={**spec.labels, "codeb.run": "run-2"})
    await containers.ensure(spec)
    socket.order(kind, request_, times=3)
    problems: list[CodebError] = []
    while (problem := await _caught(lambda: containers.ensure(other))) is not None and len(problems) < 8:
        problems.append(problem)
    assert {type(problem) for problem in problems} <= {DriverUnavailable}
    made = await world.containers.inspect(spec.name)
    assert made is not None
    assert (made.labels["codeb.run"], made.running) == ("run-2", True)


async def test_a_slow_older_run_does_not_take_away_what_a_newer_one_made_meanwhile(
    world: RealWorld, faulty: tuple[FaultySocket, DockerContainers]
) -> None:
    socket, slow = faulty
    spec = world.spec(await world.image(TERM="exit"), run="run-0", fence=0)
    await world.containers.ensure(spec)
    older, newer = (
        replace(spec, labels={**spec.labels, "codeb.run": f"run-{fence}", "codeb.fence": str(fence)})
        for fence in (1, 2)
    )
    held = socket.order("hold", "POST .*/stop")
    async with asyncio.TaskGroup() as group:
        late = group.create_task(_caught(lambda: slow.ensure(older)))
        async with asyncio.timeout(10):
            await held.reached.wait()
        made = await world.containers.ensure(newer)
        held.go.set()
    error = late.result()
    assert isinstance(error, DriverRefused)
    assert error.detail["reason"] == "fenced"
    found = await world.containers.inspect(spec.name)
    assert found is not None
    assert (found.container_id, found.running) == (made.container_id, True)


# ── refusals ────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_command_that_does_not_exist_ends_with_127_and_says_so_in_the_log(world: RealWorld) -> None:
    spec = world.spec(await _with_command(world, ["/no/such/program"]))
    await world.containers.ensure(spec)

    async def failed() -> bool:
        found = await world.containers.inspect(spec.name)
        return found is not None and found.exit_code == 127

    await eventually(failed, "the exit code of a command that does not exist")
    assert any("/no/such/program" in line for line in await _log(world.containers, spec.name))


async def test_a_user_that_does_not_exist_is_refused_with_its_reason(world: RealWorld) -> None:
    spec = world.spec(await _with_command(world, ["/app.py"], user="ghost"))
    with pytest.raises(DriverRefused) as refusal:
        await world.containers.ensure(spec)
    assert refusal.value.detail["reason"] == "bad_user"
    assert "ghost" in refusal.value.message
    assert await world.containers.remove(spec.name, fence=1) is True


@pytest.mark.parametrize("limits", [{"cpus": 4096.0}, {"memory_bytes": 1024}])
async def test_limits_that_cannot_be_given_are_refused_with_their_reason(
    world: RealWorld, limits: dict[str, Any]
) -> None:
    with pytest.raises(DriverRefused) as refusal:
        await world.containers.ensure(world.spec(await world.image(), **limits))
    assert refusal.value.detail["reason"] == "bad_limits"


async def test_values_of_the_environment_do_not_appear_in_errors(world: RealWorld) -> None:
    spec = world.spec(await world.image(), environment={"": "canary-7f3a9c"})
    with pytest.raises(DriverRefused) as refusal:
        await world.containers.ensure(spec)
    assert "canary" not in json.dumps(refusal.value.as_dict())
    assert "***" in refusal.value.message


async def test_a_container_of_another_image_than_wanted_is_not_left_behind(world: RealWorld) -> None:
    real, other = await world.images.pull(await world.publish("v1")), await world.image("v2")
    pinned = f"{real.reference.rpartition(':')[0]}@{real.digest}"
    spec = world.spec(replace(other, reference=pinned))
    with pytest.raises(DriverRefused) as refusal:
        await world.containers.ensure(spec)
    assert refusal.value.detail["reason"] == "image_mismatch"
    assert await world.containers.inspect(spec.name) is None


async def test_long_lines_and_wrong_bytes_come_through_the_log(world: RealWorld) -> None:
    program = "import sys; b = sys.stdout.buffer; b.write(b'x' * 40000 + b'end\\n' + b'caf\\xe9\\n' + b'no newline')"
    spec = world.spec(await _with_command(world, [], python=program))
    await world.containers.ensure(spec)

    async def three() -> list[str] | None:
        lines = await _log(world.containers, spec.name, tail=1000)
        return lines if len(lines) >= 3 else None

    lines = [line.partition(" ")[2] for line in await eventually(three, "three lines")]
    assert lines[:3] == ["x" * 40000 + "end", "caf�", "no newline"]


# ── nonsense ────────────────────────────────────────────────────────────────────────────────────────────────────


def _http(status: str, body: bytes, kind: str = "application/json", length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {size}\r\n\r\n".encode() + body


NONSENSE = {
    "nothing": b"",
    "no http": b"\x00\x01garbage\r\n\r\n",
    "half a head": b"HTTP/1.1 200 OK\r\nContent-",
    "cut body": _http("200 OK", b'{"Id": "abc"', length=500),
    "cut chunk": b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nff\r\n{",
    "bad chunk": b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n",
    "empty object": _http("200 OK", b"{}"),
    "null": _http("200 OK", b"null"),
    "list of numbers": _http("200 OK", b"[1, 2]"),
    "no json": _http("200 OK", b"<html>"),
    "html": _http("200 OK", b"<html>", "text/html"),
    "bad kind": _http("200 OK", b"x", "nonsense"),
    "wrong bytes": _http("200 OK", b'{"Id": "\xff\xfe"}'),
    "500 without message": _http("500 Oops", b"{}"),
    "500 text": _http("500 Oops", b"it broke", "text/plain"),
    "500 wrong bytes": _http("500 Oops", b"\xff\xfe", "text/plain"),
    "500 no json": _http("500 Oops", b"{", "application/json"),
    "400": _http("400 Bad", b'{"message": "no \\u001b[31m\\n such \\u202e thing"}'),
    "redirect in a circle": b"HTTP/1.1 302 Found\r\nLocation: /v1.41/x\r\nContent-Length: 0\r\n\r\n",
    "stream of nonsense": _http("200 OK", b'{"status": "x"}\n"text"\n', "application/json"),
    "log of nonsense": _http("200 OK", b"\x09\x00\x00\x00\xff\xff\xff\xff nonsense", "application/octet-stream"),
    "huge head": b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 100_000 + b"\r\n\r\n",
}


@pytest.mark.parametrize("kind", NONSENSE)
@pytest.mark.parametrize("version", ["good", "bad"])
async def test_no_foreign_exception_escapes_whatever_the_engine_answers(kind: str, version: str) -> None:
    answer = NONSENSE[kind]
    good = _http("200 OK", VERSION)
    async with canned_socket(good if version == "good" else answer, answer) as host:
        for name, call in _calls(host).items():
            error = await _caught(call)
            if error is not None:
                assert error.message, name
                assert error.hint, name
                assert len(error.message) < 700
                assert not any(ord(letter) < 32 or letter == "\u202e" for letter in error.message)


async def test_a_missing_socket_and_something_that_is_none_are_unavailable(tmp_path: Any) -> None:
    for call in _calls(f"unix://{tmp_path}/none.sock").values():
        with pytest.raises(DriverUnavailable) as problem:
            await call()
        assert "Start the container engine" in problem.value.hint
    no_socket = tmp_path / "file"
    no_socket.write_text("not a socket")
    for call in _calls(f"unix://{no_socket}").values():
        with pytest.raises(DriverUnavailable):
            await call()
    for call in _calls("nonsense://engine").values():
        with pytest.raises(DriverUnavailable):
            await call()


def _calls(host: str) -> dict[str, Callable[[], Awaitable[object]]]:
    """Every method of both drivers, each with a driver of its own that is closed afterwards."""
    spec = ContainerSpec(
        name="app", image_id="sha256:" + "1" * 64, image_reference="r.test/app:v1", labels={"codeb.run": "1"},
        host_port=4000, container_port=80, environment={}, memory_bytes=1 << 28, cpus=1, pids=10,
    )  # fmt: skip

    def containers(use: Callable[[DockerContainers], Awaitable[object]]) -> Callable[[], Awaitable[object]]:
        async def call() -> object:
            driver = DockerContainers(host)
            try:
                return await use(driver)
            finally:
                await driver.close()

        return call

    def images(use: Callable[[DockerImages], Awaitable[object]]) -> Callable[[], Awaitable[object]]:
        async def call() -> object:
            driver = DockerImages(host, nobody, 0, idle_seconds=5)
            try:
                return await use(driver)
            finally:
                await driver.close()

        return call

    return {
        "engine": containers(lambda driver: driver.engine()),
        "ensure": containers(lambda driver: driver.ensure(spec)),
        "remove": containers(lambda driver: driver.remove("app", fence=1, stop_timeout_seconds=1)),
        "inspect": containers(lambda driver: driver.inspect("app")),
        "list": containers(lambda driver: driver.list()),
        "logs": containers(lambda driver: _log(driver, "app")),
        "pull": images(lambda driver: driver.pull("r.test/app:v1")),
        "find": images(lambda driver: driver.find("r.test/app:v1")),
        "list_labelled": images(lambda driver: driver.list_labelled("x")),
        "remove image": images(lambda driver: driver.remove("sha256:" + "1" * 64)),
    }


# ── helpers ─────────────────────────────────────────────────────────────────────────────────────────────────────


async def _caught(call: Callable[[], Awaitable[object]]) -> CodebError | None:
    """The error of the call if it is one of those that a driver may raise; None for none."""
    try:
        async with asyncio.timeout(30):
            await call()
    except ALLOWED as error:
        return error
    return None


async def _raw(world: RealWorld, name: str) -> dict[str, Any]:
    async with world.engine.docker() as docker:
        return await docker.containers.container(name).show()


async def _log(containers: Any, name: str, *, tail: int = 100) -> list[str]:
    return [line async for line in containers.logs(name, tail=tail)]


async def _with_command(world: RealWorld, command: list[str], *, user: str = "1000", python: str = "") -> Any:
    """The sample image with another command (or a Python program) and user."""
    reference = await world.load("v1")
    interpreter = lab_images._python().program
    words = [interpreter, "-I", "-c", python] if python else command
    async with world.engine.docker() as docker:
        container = await docker.containers.create({"Image": reference})
        changes = f"CMD {json.dumps(words)}\nUSER {user}"
        repository, _, _ = reference.rpartition(":")
        await container.commit(repository=repository, tag="other", changes=changes)
        await container.delete()
    image = await world.images.find(f"{repository}:other")
    assert image is not None
    return image


def _listening_addresses(port: int) -> set[str]:
    """Local IPv4 addresses on which the kernel has a listener of that port; IPv6 ones appear in hexadecimal."""
    found = set()
    for table in ("tcp", "tcp6"):
        with open(f"/proc/net/{table}", encoding="ascii") as file:
            for line in list(file)[1:]:
                address, _, number = line.split()[1].partition(":")
                if int(number, 16) == port and line.split()[3] == "0A":
                    four = ".".join(str(byte) for byte in reversed(bytes.fromhex(address)))
                    found.add(four if table == "tcp" else address)
    return found
