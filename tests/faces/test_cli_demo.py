"""./scripts/demo on real parts: it loses nothing, and it leaves nothing behind however it ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lab import images
from tests.lab.daemons import start_time
from tests.lab.engine import Engine
from tests.lab.ports import FreePorts

CHECKOUT = Path(__file__).parents[2]
END_SECONDS = 180.0

real_parts = pytest.mark.real("docker", "caddy")


class Demo:
    """The demo on the tests' own engine, with notes of its own."""

    def __init__(self, engine: Engine, folder: Path, ports: FreePorts) -> None:
        self.engine = engine
        self.notes = folder / "notes.json"
        keep = {name: value for name, value in os.environ.items() if not name.startswith("CODEB_")}
        first = ports.take(4, align=2)[0]  # demos do not know of each other's ports
        own = {"CODEB_DEMO_PORTS": f"{first}-{first + 3}", "CODEB_DEMO_STATE": str(self.notes)}
        self._environment = {**keep, **own, "DOCKER_HOST": engine.host, "PYTHONUNBUFFERED": "1"}

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Have it telling its story."""
        argv = [sys.executable, "scripts/_demo.py", *words]
        return subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=self._environment, cwd=CHECKOUT
        )

    def told(self, *words: str) -> tuple[int, str]:
        """Run it to its end."""
        process = self.start(*words)
        out, _ = process.communicate(timeout=END_SECONDS)
        return process.returncode, out

    def started(self) -> dict[str, Any]:
        """What its notes say it has started."""
        notes: dict[str, Any] = json.loads(self.notes.read_text(encoding="utf-8"))
        return notes

    def check_gone(self, notes: dict[str, Any]) -> None:
        """Nothing of what the notes say is left."""
        assert not self.notes.exists()
        assert not Path(notes["folder"]).exists()
        assert [name for name, pid, born in notes["processes"] if start_time(pid) == born] == []
        containers = [name for one in self.engine.call("GET", "/containers/json?all=1") for name in one["Names"]]
        assert [name for name in containers if name.lstrip("/").startswith(notes["containers"])] == []
        tags = [name for one in self.engine.call("GET", "/images/json") for name in one["RepoTags"] or []]
        assert set(tags).isdisjoint(notes["images"])


@pytest.fixture
def demo(engine: Engine, tmp_path: Path, unique: str, free_ports: FreePorts) -> Iterator[Demo]:
    """A demo; what a failing test leaves of it is taken away."""
    # The base image is there beforehand, so that the demo does not take away what other tests need just now.
    image = f"codeb-lab/{unique}:v1"
    asyncio.run(images.build(engine.host, image, "v1"))
    made = Demo(engine, tmp_path, free_ports)
    yield made
    asyncio.run(images.remove(engine.host, image))
    if made.notes.exists():
        made.told("--stop")


@real_parts
def test_the_demo_loses_nothing_stays_when_told_to_and_is_gone_when_stopped(demo: Demo) -> None:
    code, out = demo.told("--stay")
    assert code == 0, out
    served = re.search(r"^([\d,]+) requests served, 0 lost$", out, re.MULTILINE)
    assert served is not None, out
    assert int(served[1].replace(",", "")) > 100
    for words in ("promote", "rollback", "claude mcp add --transport http codeb-deploy", "--server-url", "--stop"):
        assert words in out
    notes = demo.started()
    assert notes["staying"]
    assert all(start_time(pid) == born for _, pid, born in notes["processes"])
    again, said = demo.told()
    assert (again, "still running" in said) == (1, True)
    protected = Path(notes["folder"], "codeb", "env-backup", "web", "production", "master.env")
    protected.parent.mkdir(parents=True)
    protected.write_text("A=1\n")
    subprocess.run(["chattr", "+i", str(protected)], check=False, capture_output=True, timeout=20)
    assert demo.told("--stop")[0] == 0
    demo.check_gone(notes)
    assert demo.told("--stop") == (0, "  no demo is running\n")


@real_parts
def test_a_demo_that_is_interrupted_under_load_leaves_nothing(demo: Demo) -> None:
    process = demo.start()
    assert process.stdout is not None
    try:
        said, until = [], time.monotonic() + END_SECONDS
        for line in process.stdout:
            said.append(line)
            if "Under load" in line or time.monotonic() > until:
                break
        assert "Under load" in said[-1], "".join(said)
        notes = demo.started()
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=END_SECONDS)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 130, rest
    assert "Traceback" not in rest
    demo.check_gone(notes)


def test_without_an_engine_and_without_root_one_sentence_says_what_is_missing(tmp_path: Path) -> None:
    program = (
        "import os, sys; sys.path[:0] = ['.', 'scripts']; os.geteuid = lambda: 1000; os.environ['PATH'] = ''\n"
        "from demo_app.engine import DemoError, need_root\n"
        "try:\n    need_root()\nexcept DemoError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, cwd=CHECKOUT)
    assert done.stdout == "no Docker Engine answers, and without root or sudo none can be started\n"


@pytest.mark.parametrize(("words", "code"), [(["--help"], 0), (["--bogus"], 2), (["--stay", "--stop"], 2)])
def test_the_command_line_is_read_before_anything_is_set_up(tmp_path: Path, words: list[str], code: int) -> None:
    (tmp_path / "scripts").mkdir()
    script = shutil.copy(CHECKOUT / "scripts" / "demo", tmp_path / "scripts" / "demo")
    done = subprocess.run([script, *words], capture_output=True, text=True, timeout=60)
    assert (done.returncode, "usage: ./scripts/demo" in done.stdout + done.stderr) == (code, True)
    assert not (tmp_path / ".venv").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user to become")
def test_another_user_without_engine_and_sudo_is_told_in_one_sentence_and_nothing_is_set_up(tmp_path: Path) -> None:
    for part in ("scripts", "tests"):
        shutil.copytree(CHECKOUT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.geteuid() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o005)
    bare = {"PATH": "/usr/bin:/bin", "DOCKER_HOST": f"unix://{tmp_path}/nobody.sock"}
    argv = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", str(tmp_path / "scripts" / "demo")]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, env=bare, stdin=subprocess.DEVNULL)
    assert done.stderr.splitlines() == [
        "demo: no Docker Engine answers, and without root or sudo none can be started"
    ], done.stdout
    assert done.returncode == 1
    assert not (tmp_path / ".venv").exists()


@pytest.mark.parametrize("drop_every", [0, 7])
async def test_the_load_generator_counts_what_is_lost(drop_every: int) -> None:
    answered = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal answered
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                body = await reader.readexactly(int(head.partition("Content-Length: ")[2].split("\r\n")[0]))
                answered += 1
                if drop_every and answered % drop_every == 0:
                    break
                writer.write(b"HTTP/1.1 200 OK\r\nX-App-Version: v1\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        pipe = asyncio.subprocess.PIPE
        argv = [sys.executable, "-m", "demo_app.load", str(port), "app.test", "4"]
        child = await asyncio.create_subprocess_exec(*argv, stdin=pipe, stdout=pipe, cwd=CHECKOUT / "scripts")
        async with asyncio.timeout(60):
            while answered < 200:
                await asyncio.sleep(0.01)
            out, _ = await child.communicate(b"")
    seen = json.loads(out)
    lost = answered // drop_every if drop_every else 0
    assert seen["lost"] == lost
    assert lost <= seen["connections"] <= 4 + lost
    assert seen["gets"] + seen["posts"] == len(seen["answers"]) == answered - lost
