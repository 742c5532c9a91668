"""The command line on a server: what it believes, what it shows, whom it gives its key to."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from codeb_mcp.faces.cli import run
from codeb_mcp.faces.cli_call import Surroundings
from codeb_mcp.faces.client import base_url, error_of
from codeb_mcp.faces.http import build_app
from codeb_mcp.model.errors import ERRORS, InvalidRequest
from tests.faces.world import IMPATIENT, Served, World, open_world, publish, serving

KEY = "codeb_default_viewer_abcdefghijklmnop"


class Stranger:
    """A little server that answers whatever it is told to and remembers what it got."""

    def __init__(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.seen: list[tuple[str, str | None]] = []
        stranger = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                stranger.seen.append((self.path, self.headers.get("X-API-Key")))
                self.rfile.read(int(self.headers.get("Content-Length", "0")))
                self.send_response(status)
                for name, value in {"Content-Length": str(len(body)), "Connection": "close", **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    @contextmanager
    def running(self) -> Iterator[Stranger]:
        """Serve during the block."""
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join(10)


def codeb(*words: str, url: str, key: str = KEY) -> int:
    """Run a command on a server."""
    return run([*words, "--connect", url], Surroundings(environ={"CODEB_API_KEY": key, "HOME": "/nowhere"}))


@pytest.mark.parametrize(
    ("status", "body", "code"),
    [
        (502, b"<html>Bad Gateway</html>", 20),
        (503, b"", 20),
        (200, b"<html>Welcome</html>", 21),
        (200, b"[]", 21),
        (200, b'{"success":true}', 21),
        (404, b"404 page not found", 21),
        (500, b"\xff\xfe", 21),
        (409, b'{"success":false,"error":"no","code":"of the future"}', 14),
        (401, b'{"success":false,"error":"API key required"}', 11),
        (403, b'{"success":false,"error":"Permission denied"}', 12),
        (400, b'{"success":false,"error":"Tool name required"}', 10),
        (423, b'{"success":false,"error":"busy","code":"lock_held","hint":"Wait."}', 15),
        (429, b'{"success":false,"error":"Rate limit exceeded","retryAfter":3}', 18),
    ],
)
def test_an_answer_that_is_no_success_becomes_an_exit_code(
    status: int, body: bytes, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with Stranger(status, body, {}).running() as stranger:
        assert codeb("slot", "list", url=stranger.url) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")


def test_a_redirect_is_not_followed_so_the_key_stays_with_the_address_that_was_given() -> None:
    with Stranger(200, b"{}", {}).running() as elsewhere:
        location = {"Location": f"{elsewhere.url}/api/tool"}
        with Stranger(307, b"", location).running() as stranger:
            assert codeb("slot", "list", url=stranger.url) == 21
        assert elsewhere.seen == []
        assert stranger.seen == [("/api/tool", KEY)]


def test_a_server_that_is_not_there_is_unavailable(capsys: pytest.CaptureFixture[str]) -> None:
    with Stranger(200, b"", {}).running() as stranger:
        url = stranger.url
    assert codeb("slot", "list", "--json", url=url) == 20
    said = capsys.readouterr()
    assert json.loads(said.out)["code"] == "driver_unavailable"
    assert url in said.err


@pytest.mark.parametrize(
    "text", ["", "127.0.0.1:9101", "ftp://host", "http://", "http://me:secret@host", "http://host/?q=1", "http://[::1"]
)
def test_an_address_that_is_none_is_refused_before_anything_is_sent(text: str) -> None:
    with pytest.raises(InvalidRequest):
        base_url(text)


@pytest.mark.parametrize("tail", ["", "/", "/mcp", "/sse", "/api/tool"])
def test_any_of_the_servers_addresses_will_do(tail: str) -> None:
    assert base_url(f"https://api.example.com/codeb{tail}") == "https://api.example.com/codeb"


def test_every_code_survives_the_way_over_the_wire() -> None:
    for code, kind in ERRORS.items():
        sent = kind("what is", hint="What to do.", operationId="op_1")
        body = {"success": False, "error": sent.message, **sent.as_dict()}
        got = error_of(kind.http_status, body)
        assert (type(got), got.code, got.message, got.hint, got.detail) == (
            kind,
            code,
            "what is",
            "What to do.",
            sent.detail,
        )


# ── on a real server ────────────────────────────────────────────────────────────────────────────────────────────


async def _on(served: Served, *words: str) -> int:
    return await asyncio.to_thread(codeb, *words, url=served.url, key=served.world.keys["acme"]["member"])


async def test_a_run_on_a_server_shows_its_steps_and_starts_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with open_world(tmp_path / "codeb") as world, serving(world) as served:
        publish(world)
        await world.call("project_create", world.keys["acme"]["member"], projectName="shop", healthCheck=IMPATIENT)
        assert await _on(served, "deploy", "shop", "--image", "ghcr.io/acme/shop:v1") == 0
        said = capsys.readouterr()
        assert "health_check" in said.err
        assert "v1 stands healthy" in said.out
        assert "joined" not in said.out
        rows = await world.call("operation_list", world.keys["acme"]["member"])
        assert [row["kind"] for row in rows["data"]] == ["deploy"]


async def test_a_run_that_fails_on_a_server_fails_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with open_world(tmp_path / "codeb") as world, serving(world) as served:
        publish(world)
        await world.call("project_create", world.keys["acme"]["member"], projectName="shop", healthCheck=IMPATIENT)
        assert await _on(served, "deploy", "shop", "--image", "ghcr.io/acme/shop:sick") == 17
        said = capsys.readouterr()
        assert "error: GET /health answered 503" in said.err
        assert said.out == ""


async def test_a_tool_that_only_the_server_knows_can_be_called(served: Served) -> None:
    assert await _on(served, "call", "slot_stats") == 13
    assert await _on(served, "call", "slot_list", "{}") == 0


# ── answers that get lost ───────────────────────────────────────────────────────────────────────────────────────


class LosesAnswers:
    """An application whose first answers to some tools never reach the caller: the connection breaks off instead."""

    def __init__(self, app: Any, tools: list[str]) -> None:
        self._app = app
        self.left = tools
        self.calls: list[dict[str, Any]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        message = await receive()
        call = json.loads(message.get("body") or b"{}")
        self.calls.append(call)
        given = [message]

        async def again() -> Any:
            return given.pop() if given else await receive()

        async def drop(message: Any) -> None:
            if message["type"] == "http.response.start":
                raise ConnectionError("the line is cut")

        if call.get("tool") not in self.left:
            await self._app(scope, again, send)
            return
        self.left.remove(call["tool"])
        cut = {"type": "http.response.start", "status": 504, "headers": [(b"content-length", b"0")]}
        with contextlib.suppress(ConnectionError):
            await self._app(scope, again, drop)
        await send(cut)
        await send({"type": "http.response.body", "body": b""})


@pytest.mark.parametrize("json_too", [[], ["--json"]])
async def test_a_run_whose_answers_are_lost_is_joined_and_not_started_again(
    json_too: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[LosesAnswers] = []

    def losing(services: Any) -> Any:
        made.append(LosesAnswers(build_app(services), ["deploy", "deploy", "promote", "promote"]))
        return made[0]

    async with open_world(tmp_path / "codeb") as world, serving(world, losing) as served:
        publish(world)
        await world.call("project_create", world.keys["acme"]["member"], projectName="shop", healthCheck=IMPATIENT)
        assert await _on(served, "deploy", "shop", "--image", "ghcr.io/acme/shop:v1", *json_too) == 0
        assert "v1 stands healthy" in capsys.readouterr().out
        assert await _on(served, "promote", "shop", *json_too) == 0
        assert "v1 in slot blue serves" in capsys.readouterr().out
        rows = await world.call("operation_list", world.keys["acme"]["member"])
        assert [row["kind"] for row in rows["data"]] == ["promote", "deploy"]
    calls = made[0].calls
    assert made[0].left == []
    deploys = [call["params"] for call in calls if call["tool"] == "deploy"]
    promotes = [call["params"]["idempotencyKey"] for call in calls if call["tool"] == "promote"]
    assert [one for one in deploys if "idempotencyKey" in one] == []
    assert (len(promotes), len(set(promotes))) == (4, 1)


async def test_a_failed_run_is_not_started_again_to_learn_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with open_world(tmp_path / "codeb") as world, serving(world) as served:
        publish(world)
        await world.call("project_create", world.keys["acme"]["member"], projectName="shop", healthCheck=IMPATIENT)
        assert await _on(served, "deploy", "shop", "--image", "ghcr.io/acme/shop:sick") == 17
        rows = await world.call("operation_list", world.keys["acme"]["member"])
        assert rows["total"] == 1
        said = capsys.readouterr().err
        assert "\nbody: " in said
        assert "\nlogs:\n  " in said


async def test_bad_news_from_a_server_has_an_exit_code(shop: World) -> None:
    async with serving(shop) as served:
        assert await _on(served, "health", "check", "shop", "--environment", "production") == 0
        shop.engine.away = True
        assert await _on(served, "health", "check") == 17
        shop.engine.away = False


@pytest.mark.parametrize("words", [["slot", "list"], ["audit", "list", "--json"], ["health", "check"]])
async def test_a_reader_that_has_gone_is_no_interrupt(words: list[str], served: Served) -> None:
    for _ in range(5):
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "codeb_mcp", *words, "--connect", served.url,
            env={"PATH": os.environ["PATH"], "HOME": "/nowhere", "CODEB_API_KEY": served.world.keys["acme"]["viewer"]},
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[2],
        )  # fmt: skip
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout._transport.close()  # type: ignore[attr-defined]
        said = await asyncio.wait_for(child.stderr.read(), 60)
        await child.wait()
        assert child.returncode in (0, 1)
        assert said == b""
