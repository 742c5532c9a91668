"""What a `Host` promises, on this machine and over a real sshd."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator

import pytest

from codeb_mcp.drivers.hosts import FileStat
from codeb_mcp.model.errors import DeadlineExceeded, DriverRefused, InsufficientStorage
from tests.contract.hosts_worlds import SECONDS, HostWorld, host_world
from tests.faces.payloads import texts

SSH = [pytest.param(kind, marks=pytest.mark.real("hosts")) for kind in ("ssh-root", "ssh-codeb")]
KINDS = ["local", *SSH]
ALL_BYTES = bytes(range(256)) * 300
LISTENER = (
    "use IO::Socket::UNIX; my $s = IO::Socket::UNIX->new(Local => $ARGV[0], Listen => 1) or die;"
    'my $c = $s->accept; my $l = <$c>; print $c "heard $l"; close $c'
)


@pytest.fixture(params=KINDS)
async def world(request: pytest.FixtureRequest, unique: str) -> AsyncIterator[HostWorld]:
    lab = request.getfixturevalue("hosts") if request.param != "local" else None
    async with host_world(request.param, unique, lab) as made:
        yield made


async def test_a_command_gets_its_words_and_input_and_answers_status_and_both_streams(world: HostWorld) -> None:
    done = await world.host.run(["sh", "-c", 'cat; echo "$1" >&2; exit 7', "sh", "a  b"], stdin=ALL_BYTES)
    assert (done.status, done.stdout, done.stderr, done.ok) == (7, ALL_BYTES, b"a  b\n", False)


async def test_a_command_that_does_not_read_its_input_ends_all_the_same(world: HostWorld) -> None:
    assert (await world.host.run(["true"], stdin=b"x" * 2_000_000)).ok


async def test_a_signal_is_a_status_of_128_and_its_number(world: HostWorld) -> None:
    assert (await world.host.run(["sh", "-c", "kill -9 $$"])).status == 137
    assert (await world.host.run(["sh", "-c", "kill -15 $$"])).status == 143


async def test_a_command_that_is_not_there_is_status_127_and_one_that_is_no_program_126(world: HostWorld) -> None:
    await world.host.write(world.path("plain"), b"hello", mode=0o644)
    assert (await world.host.run(["no-such-command-here", "x"])).status == 127
    assert (await world.host.run([world.path("plain")])).status == 126


async def test_nothing_of_this_process_environment_arrives(world: HostWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODEB_CANARY", "canary-in-the-environment")
    monkeypatch.setenv("LC_CANARY", "canary-in-the-environment")
    shown = (await world.host.run(["env"])).stdout
    assert b"canary" not in shown
    assert b"HOME=" in shown


async def test_more_output_than_allowed_is_refused_and_ends_the_command(world: HostWorld, unique: str) -> None:
    for stream in ("", " >&2"):
        script = f"yes {unique}{stream}"
        with pytest.raises(DriverRefused) as refused:
            await world.host.run(["sh", "-c", script], max_output=100_000, timeout_seconds=SECONDS)
        assert refused.value.detail["inDoubt"] is True
        await world.until(lambda: not world.running(f"^yes {unique}"), "it still runs")
    exact = await world.host.run(["head", "-c", "1000", "/dev/zero"], max_output=1000)
    assert len(exact.stdout) == 1000


async def test_a_command_that_takes_too_long_is_ended_with_its_children(world: HostWorld, unique: str) -> None:
    script = f"sleep 600.{_number(unique)} & sleep 601.{_number(unique)}"
    with pytest.raises(DeadlineExceeded) as late:
        await world.host.run(["sh", "-c", script], timeout_seconds=1.0)
    assert late.value.detail == {"server": world.host.key, "inDoubt": True}
    await world.until(lambda: not world.running(f"sleep 60[01].{_number(unique)}"), "it still runs")


async def test_a_cancelled_command_is_ended(world: HostWorld, unique: str) -> None:
    mark = f"sleep 602.{_number(unique)}"
    task = asyncio.create_task(world.host.run(["sh", "-c", f"{mark}; true"], timeout_seconds=600))
    await world.until(lambda: world.running(mark), "it never ran")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await world.until(lambda: not world.running(mark), "it still runs")


async def test_no_command_an_empty_word_or_a_nul_is_refused_before_anything_is_sent(world: HostWorld) -> None:
    for argv in ([], [""], ["true", "a\0b"], ["true", "x" * 200_000], ["true", "\ud800"]):
        with pytest.raises(DriverRefused) as refused:
            await world.host.run(argv)
        assert refused.value.detail["inDoubt"] is False
    assert (await world.host.run(["printf", "%s", ""])).stdout == b""


async def test_hostile_words_arrive_byte_for_byte_and_do_nothing(world: HostWorld) -> None:
    words = _hostile(world)
    await world.host.write(world.path("victim"), b"as it was")
    sent = 0
    for first in range(0, len(words), 40):
        batch = words[first : first + 40]
        done = await world.host.run(["printf", "%s\\0", *batch])
        assert done.stdout.split(b"\0")[:-1] == [word.encode() for word in batch]
        sent += len(batch)
    for word in words[::5]:
        assert (await world.host.run([f"/none/{word}"], timeout_seconds=SECONDS)).status in (126, 127)
    assert world.names() == ["victim"]
    assert world.content("victim") == b"as it was"
    assert sent >= 400
    print(f"{sent} hostile words, 0 effects")


async def test_hostile_names_and_contents_of_files_come_back_as_they_were(world: HostWorld) -> None:
    words = _hostile(world)
    await world.host.make_folder(world.path("names"))
    await world.host.write(world.path("victim"), b"as it was")
    names = [word for word in words if "/" not in word and word not in ("", ".", "..") and len(word.encode()) <= 200]
    for word in names:
        await world.host.write(world.path(f"names/{word}"), word.encode())
    assert world.names("names") == sorted(set(names))
    assert await world.host.list(world.path("names")) == sorted(set(names))
    for word in names:
        assert await world.host.read(world.path(f"names/{word}")) == word.encode()
        assert await world.host.remove(world.path(f"names/{word}"))
    everything = "\n".join(words).encode()
    await world.host.write(world.path("contents"), everything)
    assert world.content("contents") == everything
    assert world.names() == ["contents", "names", "victim"]
    assert world.content("victim") == b"as it was"
    assert len(names) >= 200
    print(f"{len(names)} hostile names, 0 effects")


async def test_paths_that_are_none_are_refused(world: HostWorld) -> None:
    for path in ("relative", "", "~", f"{world.folder}/a\0b", f"{world.folder}/{'x' * 256}", "/" + "x/" * 3000):
        for call in (world.host.read(path), world.host.write(path, b""), world.host.stat(path), world.host.list(path)):
            with pytest.raises(DriverRefused):
                await call
    for path in ("/", f"{world.folder}/", f"{world.folder}/.."):
        for wish in (world.host.read(path), world.host.write(path, b""), world.host.remove(path)):
            with pytest.raises(DriverRefused):
                await wish


async def test_a_written_file_has_its_content_mode_and_owner_and_replaces_the_former(world: HostWorld) -> None:
    path = world.path("file")
    for data, mode in ((b"", 0o600), (ALL_BYTES * 20, 0o640), (b"short", 0o444), (b"last", 0o755)):
        await world.host.write(path, data, mode=mode)
        assert world.content("file") == data
        assert await world.host.read(path, max_bytes=2_000_000) == data
        found = await world.host.stat(path)
        assert found is not None
        assert (found.kind, found.mode, found.size) == ("file", mode, len(data))
    owner = world.do("stat", "-c", "%U", path).decode().strip()
    assert owner == world.user
    assert world.names() == ["file"]


async def test_a_reader_sees_the_former_or_the_new_file_whole(world: HostWorld) -> None:
    path, sizes = world.path("file"), (100_000, 200_000)
    await world.host.write(path, b"a" * sizes[0])
    writing = True

    async def write() -> None:
        nonlocal writing
        for turn in range(30):
            await world.host.write(path, (b"a", b"b")[turn % 2] * sizes[turn % 2])
        writing = False

    async with asyncio.TaskGroup() as group:
        group.create_task(write())
        seen = set()
        while writing:
            content = await world.host.read(path)
            assert content is not None
            seen.add((content[:1], len(content), len(set(content))))
            outside = await asyncio.to_thread(world.content, "file")
            assert len(set(outside)) == 1
            assert len(outside) == sizes[outside[:1] == b"b"]
    assert seen <= {(b"a", sizes[0], 1), (b"b", sizes[1], 1)}


async def test_what_is_not_there_is_none(world: HostWorld) -> None:
    await world.host.write(world.path("file"), b"x")
    for path in (world.path("none"), world.path("none/deep"), world.path("file/below")):
        assert await world.host.read(path) is None
        assert await world.host.stat(path) is None
        assert await world.host.list(path) is None
        assert await world.host.remove(path) is False


async def test_a_file_in_a_missing_folder_is_refused_and_leaves_nothing(world: HostWorld) -> None:
    with pytest.raises(DriverRefused) as refused:
        await world.host.write(world.path("none/file"), b"x")
    assert refused.value.detail["inDoubt"] is False
    assert refused.value.detail["reason"] == "not_there"
    assert world.names() == []


async def test_a_file_larger_than_asked_for_is_refused(world: HostWorld) -> None:
    await world.host.write(world.path("file"), b"x" * 1001)
    with pytest.raises(DriverRefused):
        await world.host.read(world.path("file"), max_bytes=1000)
    assert await world.host.read(world.path("file"), max_bytes=1001) == b"x" * 1001


async def test_a_file_that_tells_no_size_is_read(world: HostWorld) -> None:
    assert b"Linux" in (await world.host.read("/proc/version") or b"")


async def test_links_are_not_followed(world: HostWorld) -> None:
    await world.host.write(world.path("victim"), b"as it was")
    await world.host.make_folder(world.path("folder"))
    for name, target in (("link", "victim"), ("loose", "none"), ("inside", "folder"), ("loop", "loop")):
        world.do("ln", "-s", target, world.path(name))
    for name in ("link", "loose", "inside", "loop"):
        found = await world.host.stat(world.path(name))
        assert found is not None
        assert found.kind == "link"
        for call in (
            world.host.read(world.path(name)), world.host.list(world.path(name)), world.host.make_folder(world.path(name)),
        ):  # fmt: skip
            with pytest.raises(DriverRefused):
                await call
    await world.host.write(world.path("link"), b"mine")
    assert (world.content("link"), world.content("victim")) == (b"mine", b"as it was")
    assert await world.host.remove(world.path("loose"))
    assert await world.host.remove(world.path("inside"))
    assert world.names() == ["folder", "link", "loop", "victim"]


async def test_what_is_no_file_is_refused_without_waiting_for_it(world: HostWorld) -> None:
    world.do("mkfifo", world.path("pipe"))
    await world.host.make_folder(world.path("folder"))
    for call in (
        world.host.read(world.path("pipe")), world.host.read(world.path("folder")), world.host.list(world.path("pipe")),
        world.host.write(world.path("folder"), b"x"), world.host.remove(world.path("folder")), world.host.read("/dev/zero"),
        world.host.make_folder(world.path("pipe")),
    ):  # fmt: skip
        with pytest.raises(DriverRefused):
            await call
    assert world.names() == ["folder", "pipe"]


async def test_a_folder_is_made_once_with_those_above_and_its_mode(world: HostWorld) -> None:
    path = world.path("a/b/c")
    assert await world.host.make_folder(path, mode=0o2770) is True
    assert await world.host.make_folder(path, mode=0o2770) is False
    found = await world.host.stat(path)
    assert isinstance(found, FileStat)
    assert (found.kind, found.mode) == ("folder", 0o2770)
    assert (await world.host.stat(world.path("a/b"))) is not None
    assert await world.host.make_folder(path, mode=0o700) is False
    assert (await world.host.stat(path) or found).mode == 0o700
    made = await asyncio.gather(*(world.host.make_folder(world.path("many/deep")) for _ in range(20)))
    assert made.count(True) == 1
    assert await world.host.make_folder("/") is False


async def test_a_full_disk_is_insufficient_storage_and_keeps_the_former_file(world: HostWorld) -> None:
    small = world.path("small")
    world.do("mkdir", small)
    world.do("mount", "-t", "tmpfs", "-o", "size=256k,nr_inodes=8,mode=1777", "tmpfs", small)
    try:
        await world.host.write(f"{small}/file", b"as it was")
        with pytest.raises(InsufficientStorage) as full:
            await world.host.write(f"{small}/file", b"x" * 1_000_000)
        assert full.value.detail == {"server": world.host.key, "inDoubt": False}
        assert world.content("small/file") == b"as it was"
        assert world.names("small") == ["file"]
        with pytest.raises(InsufficientStorage):
            await world.host.make_folder(f"{small}/{'/'.join('abcdefghij')}")
        await world.host.remove(f"{small}/file")
    finally:
        world.do("umount", small)


async def test_no_permission_is_refused(world: HostWorld) -> None:
    if world.user == "root":
        world.do("install", "-d", world.path("fixed"))
        world.do("mount", "-t", "tmpfs", "-o", "ro", "tmpfs", world.path("fixed"))
        calls = [world.host.write(world.path("fixed/file"), b"x"), world.host.make_folder(world.path("fixed/a"))]
    else:
        calls = [
            world.host.write("/etc/file", b"x"), world.host.remove("/etc/passwd"), world.host.make_folder("/etc/a"),
        ]  # fmt: skip
        with pytest.raises(DriverRefused):
            await world.host.read("/etc/shadow")
    try:
        for call in calls:
            with pytest.raises(DriverRefused):
                await call
    finally:
        if world.user == "root":
            world.do("umount", world.path("fixed"))


async def test_two_hundred_calls_at_once_all_get_their_own_answer(world: HostWorld) -> None:
    async def one(number: int) -> None:
        path, data = world.path(f"file{number}"), str(number).encode()
        await world.host.write(path, data)
        assert (await world.host.run(["cat", path], timeout_seconds=60)).stdout == data
        assert await world.host.read(path) == data

    async with asyncio.TaskGroup() as group:
        for number in range(200):
            group.create_task(one(number))
    assert len(await world.host.list(world.folder) or []) == 200


async def test_a_socket_leads_to_a_unix_socket_and_to_a_port(world: HostWorld) -> None:
    target = world.path("service.sock")
    serving = asyncio.create_task(world.host.run(["perl", "-e", LISTENER, target], timeout_seconds=60))
    await world.until(lambda: "service.sock" in world.names(), "the service does not come up")
    assert await _ask(await world.host.socket(target), b"hello\n") == b"heard hello\n"
    assert (await serving).ok
    server = await asyncio.start_server(_greet, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1] if world.host.key == "here" else 22
    ways = [await world.host.socket(f"127.0.0.1:{port}") for _ in range(2)]
    assert ways[0] == ways[1]
    assert (await _ask(ways[0], b""))[:4] == b"SSH-"
    assert os.stat(os.path.dirname(ways[0])).st_mode & 0o777 == 0o700
    server.close()


async def test_a_target_that_is_none_is_refused(world: HostWorld) -> None:
    for target in (
        "",
        "nobody",
        "host:0",
        "host:65536",
        "host:port",
        "a b:22",
        "/x\0",
        "/" + "x" * 200,
        "$(id):22",
        "/..",
    ):
        with pytest.raises(DriverRefused):
            await world.host.socket(target)


def _greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-lab")
    writer.close()


async def _ask(path: str, line: bytes) -> bytes:
    async with asyncio.timeout(SECONDS):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(line)
        answer = await reader.readline() if line else await reader.read(4)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        return answer


def _hostile(world: HostWorld) -> list[str]:
    filled = (
        text.replace("{canary}", world.path("canary")).replace("{victim}", world.path("victim")) for text in texts()
    )
    return [text for text in filled if "\0" not in text]


def _number(unique: str) -> str:
    return str(int(unique[1:], 16))
