"""What every `Prober` keeps, and how the real one puts each kind of failure into words."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from codeb_mcp.drivers.clock import SystemClock
from codeb_mcp.drivers.kernel import KernelPorts
from codeb_mcp.drivers.probe import HEAD_CHARS, HttpProber
from codeb_mcp.drivers.protocols import Answer
from codeb_mcp.model.errors import DriverUnavailable, InvalidRequest
from codeb_mcp.model.names import Slot
from tests.contract.edges import Case, Handler, serving, site
from tests.lab.ports import FreePorts

OK = b"HTTP/1.1 200 OK\r\n"


async def test_a_slot_is_asked_directly_and_a_port_where_nobody_listens_says_so(edge: Case) -> None:
    shop = site("shop-production", edge.ports)
    await edge.serve(shop.blue_port, "release one")
    answer = await edge.prober.port(shop.blue_port, "/health", timeout_seconds=5)
    assert (answer.status, answer.body_head, answer.problem) == (200, "release one", "")
    nobody = await edge.prober.port(shop.green_port, "/health", timeout_seconds=5)
    assert nobody.status is None
    assert nobody.problem.startswith("connection refused")


async def test_a_host_that_nobody_serves_has_no_slot(edge: Case) -> None:
    shop = site("shop-production", edge.ports)
    edge.traffic.switch(shop.key, Slot.BLUE, fence=1)
    await edge.proxy().apply(upsert=[shop])
    answer = await edge.prober.public("stranger.test", "/", timeout_seconds=5)
    assert answer.slot is None


def says(*parts: bytes, then: Callable[[asyncio.StreamWriter], None] | None = None) -> Handler:
    """Read the head of the request, say this, and do that (close, by default)."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for part in parts:
            writer.write(part)
            await writer.drain()
        (then or asyncio.StreamWriter.close)(writer)

    return handler


def reset(writer: asyncio.StreamWriter) -> None:
    """End the connection the rude way."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    writer.transport.abort()


def stay(writer: asyncio.StreamWriter) -> None:
    """Say no more and keep the connection."""


@pytest.fixture
async def prober() -> AsyncIterator[HttpProber]:
    """The real one."""
    one = HttpProber()
    yield one
    await one.close()


async def asked(
    prober: HttpProber, ports: FreePorts, handler: Handler, *, seconds: float = 5, path: str = "/"
) -> Answer:
    """What the prober makes of such a server."""
    port = ports()
    async with serving(port, handler):
        return await prober.port(port, path, timeout_seconds=seconds)


@pytest.mark.parametrize(
    ("handler", "words"),
    [
        (says(then=reset), "the connection was reset before an answer came"),
        (says(), "the connection was closed before an answer came"),
        (says(b"SSH-2.0-OpenSSH_9.2\r\n"), "what answered does not speak HTTP"),
        (says(b"HTTP/1.1 20x OK\r\n\r\n"), "what answered does not speak HTTP"),
        (says(OK + b"X: " + b"y" * 100_000 + b"\r\n\r\n"), "what answered does not speak HTTP"),
        (says(OK + b"Content-Length: 9\r\n\r\nshort"), "answered 200, but the connection broke before its body ended"),
        (says(then=stay), "no answer within 0.3 s"),
        (says(OK, then=stay), "no answer within 0.3 s"),
        (
            says(OK + b"Content-Length: 9\r\n\r\nshort", then=stay),
            "answered 200, but its body did not arrive within 0.3 s",
        ),
    ],
)
async def test_each_kind_of_failure_has_its_own_words(
    prober: HttpProber, ports: FreePorts, handler: Handler, words: str
) -> None:
    seconds = 0.3 if "0.3" in words else 5
    assert await asked(prober, ports, handler, seconds=seconds) == Answer(None, problem=words)


async def test_a_redirect_is_shown_and_not_followed(prober: HttpProber, ports: FreePorts) -> None:
    answer = await asked(prober, ports, says(b"HTTP/1.1 302 Found\r\nLocation: /login\r\nContent-Length: 0\r\n\r\n"))
    assert (answer.status, answer.location) == (302, "/login")


async def test_what_an_application_sends_cannot_steer_a_terminal(prober: HttpProber, ports: FreePorts) -> None:
    body = "a\x1b[2Jb\0c\r\nd\u202ee\u200b\xff".encode("latin-1", "ignore") + "\u202e\u200bz".encode()
    head = OK + b"Content-Length: %d\r\n\r\n" % len(body)
    answer = await asked(prober, ports, says(head + body))
    assert answer.status == 200
    assert answer.body_head.isprintable()
    assert answer.body_head.startswith("a [2Jb c d")


@pytest.mark.parametrize("head", [b"Content-Length: 100000000\r\n\r\n", b"\r\n"])
async def test_an_endless_body_is_read_only_as_far_as_needed(prober: HttpProber, ports: FreePorts, head: bytes) -> None:
    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK + head)
        while not writer.is_closing():
            writer.write(b"x" * 65536)
            await writer.drain()

    answer = await asked(prober, ports, endless)
    assert (answer.status, answer.body_head) == (200, "x" * HEAD_CHARS)


async def test_a_probe_takes_no_cookies_and_a_new_connection_each_time(prober: HttpProber, ports: FreePorts) -> None:
    heads: list[bytes] = []

    async def remember(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(OK + b"Set-Cookie: a=b\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()

    port = ports()
    async with serving(port, remember):
        for _ in range(3):
            assert (await prober.port(port, "/health?deep=1&x=%2F", timeout_seconds=5)).status == 200
    assert len(heads) == 3
    assert all(head.startswith(b"GET /health?deep=1&x=%2F HTTP/1.1\r\n") for head in heads)
    assert b"cookie" not in b"".join(heads).lower()


@pytest.mark.parametrize("path", ["", "health", "/a b", "/a\r\nX: y", "/\0", "/ä", "http://elsewhere/"])
async def test_a_path_that_could_become_something_else_is_refused(prober: HttpProber, path: str) -> None:
    with pytest.raises(InvalidRequest):
        await prober.port(1, path, timeout_seconds=1)


@pytest.mark.parametrize("host", ["", "a b", "a\r\nX: y", "a/b", "a@b"])
async def test_a_host_that_could_become_something_else_is_refused(prober: HttpProber, host: str) -> None:
    with pytest.raises(InvalidRequest):
        await prober.public(host, "/", timeout_seconds=1)


async def test_plain_http_where_tls_is_wanted_is_a_tls_failure(ports: FreePorts) -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    port = ports()
    prober = HttpProber(port=port, tls="internal")
    async with serving(port, plain):
        answer = await prober.public("shop.test", "/", timeout_seconds=5)
    await prober.close()
    assert answer.status is None
    assert "TLS failed" in answer.problem


async def test_a_root_certificate_that_is_not_there_yet_is_a_problem_in_words(ports: FreePorts, tmp_path: Path) -> None:
    prober = HttpProber(port=ports(), tls="internal", authority=tmp_path / "root.crt")
    answer = await prober.public("shop.test", "/", timeout_seconds=5)
    await prober.close()
    assert answer.status is None
    assert answer.problem


def test_no_unverified_tls_beyond_loopback() -> None:
    with pytest.raises(ValueError):
        HttpProber(address="192.0.2.1", port=443, tls="internal")


# --- the kernel's ports and the clock


@pytest.mark.parametrize(
    ("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "127.0.0.9"), (socket.AF_INET6, "::1")]
)
async def test_a_listening_port_is_seen_on_any_address_and_a_bound_one_is_not(
    ports: FreePorts, family: socket.AddressFamily, address: str
) -> None:
    port, kernel = ports(), KernelPorts()
    assert port not in await kernel.listening()
    with socket.socket(family) as taken:
        taken.bind((address, port))
        assert port not in await kernel.listening()
        taken.listen()
        assert port in await kernel.listening()
    assert port not in await kernel.listening()


async def test_a_kernel_that_shows_nothing_is_not_taken_for_free_ports(tmp_path: Path) -> None:
    with pytest.raises(DriverUnavailable):
        await KernelPorts(tmp_path).listening()


async def test_a_host_without_ipv6_still_shows_its_ports(tmp_path: Path) -> None:
    (tmp_path / "tcp").write_text(
        "head\n  0: 0100007F:0FA0 00000000:0000 0A 0 0\n  1: 0100007F:0FA1 0100007F:1 01 0 0\n"
    )
    assert await KernelPorts(tmp_path).listening() == {4000}


def test_the_clock_is_aware_and_does_not_go_back() -> None:
    first, second = SystemClock().now(), SystemClock().now()
    assert first.tzinfo is not None
    assert first <= second
