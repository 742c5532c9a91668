"""`codeb` as a process of its own: entry points, signals, pipes."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import sysconfig
import termios
import time
from pathlib import Path

import pytest

from tests.faces.cli_world import CliWorld

CHECKOUT = Path(__file__).parents[2]
WAIT_SECONDS = 30.0
BAR = "[━╸╺]"


def environment(**more: str) -> dict[str, str]:
    """The variables of a child; nothing of ours that would change what it does."""
    keep = {name: value for name, value in os.environ.items() if not name.startswith("CODEB_")}
    return {**keep, "PYTHONUNBUFFERED": "1", **more}


def script(name: str) -> str:
    """The path of an installed command."""
    return str(Path(sysconfig.get_path("scripts")) / name)


def finished(*argv: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        argv, capture_output=True, text=True, timeout=60, check=False, env=environment(**more), cwd=CHECKOUT
    )


@pytest.mark.parametrize("argv", [[script("codeb")], [sys.executable, "-m", "codeb_mcp"]], ids=["codeb", "module"])
def test_both_ways_to_start_it_are_the_same_command(argv: list[str], tmp_path: Path) -> None:
    root = {"CODEB_ROOT": str(tmp_path / "codeb"), "HOME": str(tmp_path)}
    assert finished(*argv, "init", "--save-key", **root).returncode == 0
    listed = finished(*argv, "project", "list", "--json", **root)
    assert (listed.returncode, listed.stdout) == (0, '{"data":[],"total":0,"limit":50,"offset":0}\n')
    refused = finished(*argv, "deploy", **root)
    assert (refused.returncode, refused.stdout) == (10, "")


def test_codeb_mcp_is_codeb_stdio_with_its_options(tmp_path: Path) -> None:
    asked = finished(script("codeb-mcp"), "--help")
    assert asked.returncode == 0
    assert "--connect" in asked.stdout
    without_key = finished(script("codeb-mcp"), CODEB_ROOT=str(tmp_path / "codeb"), HOME=str(tmp_path))
    assert (without_key.returncode, without_key.stdout) == (11, "")
    assert without_key.stderr.startswith("error: ")


def test_a_reader_that_goes_away_is_no_crash() -> None:
    child = subprocess.Popen(
        [script("codeb"), "project", "update", "--help"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(), cwd=CHECKOUT,
    )  # fmt: skip
    assert child.stdout is not None
    assert child.stderr is not None
    child.stdout.close()
    said = child.stderr.read()
    child.stderr.close()
    assert child.wait(WAIT_SECONDS) in (0, 1)
    assert b"Traceback" not in said


def read_until(child: subprocess.Popen[bytes], text: bytes) -> bytes:
    """What the child says on stderr up to and including `text`; fails when it does not come."""
    assert child.stderr is not None
    said, until = b"", time.monotonic() + WAIT_SECONDS
    while text not in said:
        left = until - time.monotonic()
        assert left > 0, said
        if select.select([child.stderr], [], [], left)[0]:
            part = os.read(child.stderr.fileno(), 65536)
            assert part, said
            said += part
    return said


def test_the_first_interrupt_tells_how_to_go_on_and_the_second_leaves_the_run_open(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = CliWorld(tmp_path / "codeb", capsys).initialised().with_project()
    world("project", "update", "shop", "--health-check-deadline-seconds", "120")
    words = ["deploy", "shop", "--image", "ghcr.io/acme/shop:sick"]
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.faces.cli_child", str(world.root), *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(**world.environ), cwd=CHECKOUT,
    )  # fmt: skip
    try:
        read_until(child, b"health_check")
        child.send_signal(signal.SIGINT)
        said = read_until(child, b"codeb operation resume op_")
        assert b"press Ctrl-C again" in said
        assert child.poll() is None
        child.send_signal(signal.SIGINT)
        rest = read_until(child, b"is left open: codeb operation resume op_")
        assert child.wait(WAIT_SECONDS) == 130
        assert b"Traceback" not in rest
    finally:
        child.kill()
        child.communicate()
    rows = world("operation", "list", "--json").json["data"]
    assert (rows[0]["kind"], rows[0]["status"]) == ("deploy", "interrupted")
    shown = world("operation", "get", rows[0]["operationId"], "--json").json
    assert shown["status"] == "interrupted"


def test_a_bar_moves_on_a_real_terminal_and_is_taken_away(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    world = CliWorld(tmp_path / "codeb", capsys).initialised().with_project()
    words = ["deploy", "shop", "--image", "ghcr.io/acme/shop:sick"]
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.faces.cli_child", str(world.root), *words],
        stdin=theirs, stdout=theirs, stderr=theirs, cwd=CHECKOUT,
        env=environment(**world.environ, TERM="xterm-256color", NO_COLOR="", COLUMNS=""),
    )  # fmt: skip
    os.close(theirs)
    try:
        shown = _all_of(ours)
        assert child.wait(WAIT_SECONDS) == 17
    finally:
        os.close(ours)
        child.kill()
        child.communicate()
    frames = [frame for frame in re.split(r"\r\x1b\[2K|\r", shown) if re.search(BAR, frame)]
    labels = [_plain(frame).partition("  ")[0].strip() for frame in frames]
    lengths = {len(re.findall(BAR, frame)) for frame in frames}
    assert len(frames) > 3, shown
    assert len(dict.fromkeys(labels)) > 1, labels
    assert lengths == {max(lengths)}
    assert all(len(_plain(frame).rstrip()) <= 80 for frame in frames), frames
    done = [len(re.findall(BAR, frame.partition("[38;5;237m")[0])) for frame in frames[1:]]
    assert done[-1] > 0
    assert "\x1b[?25l" in shown
    assert shown.rindex("\x1b[?25h") > max(found.start() for found in re.finditer(BAR, shown))
    ending = _plain(shown[shown.rindex("\x1b[?25h") :])
    assert "error: " in ending
    assert "Traceback" not in shown


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def _all_of(terminal: int) -> str:
    """What a child writes to the terminal until it has closed its side."""
    said, until = b"", time.monotonic() + WAIT_SECONDS
    while (left := until - time.monotonic()) > 0:
        if not select.select([terminal], [], [], left)[0]:
            break
        try:
            part = os.read(terminal, 65536)
        except OSError:  # as Linux tells that nobody has the other side any more
            return said.decode()
        if not part:
            return said.decode()
        said += part
    raise AssertionError(said)


def test_an_interrupt_without_a_run_ends_the_command_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = CliWorld(tmp_path / "codeb", capsys).initialised()
    child = subprocess.Popen(
        [script("codeb"), "login"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=environment(**world.environ), cwd=CHECKOUT,
    )  # fmt: skip
    try:
        assert child.stdin is not None
        until = time.monotonic() + WAIT_SECONDS
        while not _waits_for_input(child.pid) and time.monotonic() < until:
            select.select([], [], [], 0.02)
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=WAIT_SECONDS)
    finally:
        child.kill()
        child.wait()
    assert (child.returncode, said) == (130, b"\nstopped\n")


def _waits_for_input(pid: int) -> bool:
    """Whether the process sits in a read of its stdin."""
    try:
        return Path(f"/proc/{pid}/syscall").read_text(encoding="utf-8").startswith("0 0x0 ")
    except OSError:
        return False
