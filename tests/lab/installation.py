"""A whole installation of ours on real parts: own root folder, own Caddy, a shared engine, a served process to kill."""

from __future__ import annotations

import asyncio
import copy
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codeb_mcp import app
from codeb_mcp.operations.setup import initialise
from codeb_mcp.settings import Settings, load
from tests.lab.caddy import CaddyServer, running_caddy
from tests.lab.daemons import wait_until
from tests.lab.engine import Engine
from tests.lab.ports import FreePorts

PORTS_PER_KIND = 200
"""How many ports the environments of one kind have to share."""


@functools.cache
def application_ports() -> tuple[tuple[int, int], ...]:
    """First and last port for production, staging and previews: claimed until this process ends, so that no server of a
    test and no other test process is given one of them."""
    block = FreePorts().take(3 * PORTS_PER_KIND, align=2)
    starts = block[::PORTS_PER_KIND]
    return tuple((start, start + PORTS_PER_KIND - 1) for start in starts)


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP answer of the server. `status` 0: there was none."""

    status: int
    body: dict[str, Any]

    @property
    def ok(self) -> bool:
        """Whether the call succeeded."""
        return self.status == 200


class Installation:
    """Folder, settings and the served process. Give it to a test through `installed`."""

    def __init__(self, root: Path, engine: Engine, caddy: CaddyServer, port: int, extra: str = "") -> None:
        self.root = root
        self.engine = engine
        self.caddy = caddy
        self.port = port
        self.key = ""
        self.process: subprocess.Popen[bytes] | None = None
        self.victim: dict[str, str] = {}
        (root / "codeb.toml").write_text(self._toml(extra), encoding="utf-8")

    def _toml(self, extra: str) -> str:
        spans = [list(span) for span in application_ports()]
        return (
            'base_domain = "apps.test"\npreview_domain = "preview.test"\nhousekeeping_seconds = 1\n'
            f'[docker]\nhost = "{self.engine.host}"\nmin_free_mb = 64\n'
            f'[proxy]\nadmin = "{self.caddy.admin}"\nlisten = ["127.0.0.1:{self.caddy.port}"]\n'
            f'public = "127.0.0.1:{self.caddy.port}"\n'
            f"[server]\nport = {self.port}\ncalls_per_minute = 100000\nteam_calls_per_minute = 100000\n"
            "[env]\nimmutable_master = false\n"
            f"[ports]\nproduction = [{spans[0]}]\nstaging = [{spans[1]}]\npreview = [{spans[2]}]\n{extra}"
        )

    @property
    def settings(self) -> Settings:
        """As the served process reads them."""
        return load(self.root, {})

    def init(self) -> None:
        """Initialise the registry and keep the owner's key."""

        async def run() -> str | None:
            async with app.opened(self.settings) as services:
                return (await initialise(services)).owner_key

        self.key = asyncio.run(run()) or self.key

    def serve(self, **environ: str) -> None:
        """Start `codeb serve` and wait until it answers."""
        module = ["-m", "tests.crash.victim"] if environ.get("VICTIM_DIES") else ["-m", "codeb_mcp", "serve"]
        with (self.root / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *module],
                env={**os.environ, "CODEB_ROOT": str(self.root), "CODEB_PORT": str(self.port), **environ},
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        wait_until(self._answers, 30, "the server does not answer", log=self.root / "server.log")

    def sibling(self, port: int) -> Installation:
        """A second server on the same registry; the caller serves and stops it."""
        twin = copy.copy(self)
        twin.port, twin.process = port, None
        return twin

    def _answers(self) -> bool:
        if self.process is not None and self.process.poll() is not None:
            raise AssertionError(f"the server ended with {self.process.returncode}: {self.log_tail()}")
        return self.get("/health").status == 200

    def log_tail(self) -> str:
        """The end of the server's log."""
        path = self.root / "server.log"
        return path.read_text(encoding="utf-8", errors="replace")[-4000:] if path.exists() else ""

    def kill(self) -> None:
        """kill -9."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)
            self.process = None

    def wait_dead(self, seconds: float = 60) -> int:
        """Wait until the process has ended by itself; answers its exit status."""
        assert self.process is not None
        status = self.process.wait(seconds)
        self.process = None
        return status

    def stop(self) -> None:
        """SIGTERM, as an operator would."""
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10)
            self.process = None

    def call(self, tool: str, *, key: str | None = None, seconds: float = 120, **params: Any) -> Reply:
        """One call over `POST /api/tool`."""
        body = json.dumps({"tool": tool, "params": params}).encode()
        headers = {"Content-Type": "application/json", "X-API-Key": self.key if key is None else key}
        return self._ask(urllib.request.Request(self.url("/api/tool"), body, headers), seconds)

    def get(self, path: str, seconds: float = 10) -> Reply:
        """One GET with the owner's key."""
        return self._ask(urllib.request.Request(self.url(path), headers={"X-API-Key": self.key}), seconds)

    def url(self, path: str) -> str:
        """An address of the served process."""
        return f"http://127.0.0.1:{self.port}{path}"

    @staticmethod
    def _ask(request: urllib.request.Request, seconds: float) -> Reply:
        try:
            with urllib.request.urlopen(request, timeout=seconds) as answer:
                return Reply(answer.status, json.loads(answer.read() or b"{}"))
        except urllib.error.HTTPError as error:
            with error:
                return Reply(error.code, json.loads(error.read() or b"{}"))
        except (OSError, ValueError):
            return Reply(0, {})

    def slots(self, project: str, environment: str = "production") -> dict[str, Any]:
        """The slot document on the disk."""
        text = (self.root / "registry" / "slots" / f"{project}-{environment}.json").read_text(encoding="utf-8")
        document: dict[str, Any] = json.loads(text)
        return document

    def containers(self, project: str) -> dict[str, Mapping[str, Any]]:
        """Our containers of a project, by name."""
        label = json.dumps({"label": [f"codeb.project={project}"]}).replace('"', "%22").replace(" ", "")
        rows = self.engine.call("GET", f"/containers/json?all=1&filters={label}")
        return {row["Names"][0].lstrip("/"): row for row in rows}

    def ask_public(self, project: str, path: str = "/version", environment: str = "production") -> tuple[int, str, str]:
        """`(status, body, slot)` of a request over the proxy; status 0 when it cannot be reached."""
        label = project if environment == "production" else f"{project}-{environment}"
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.caddy.port}{path}", headers={"Host": f"{label}.apps.test"}
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.read().decode().strip(), answer.headers.get("X-CodeB-Slot", "")
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode().strip(), error.headers.get("X-CodeB-Slot", "")
        except OSError:
            return 0, "", ""

    def remove(self) -> None:
        """End the server and take the containers of this installation's projects away."""
        self.stop()
        ssot = self.root / "registry" / "ssot.json"
        projects = json.loads(ssot.read_text(encoding="utf-8")).get("projects", {}) if ssot.exists() else {}
        for project in projects:
            for name in self.containers(project):
                self.engine.call("DELETE", f"/containers/{name}?force=1&v=1")
        shutil.rmtree(self.root, ignore_errors=True)


@contextmanager
def installed(
    engine: Engine,
    caddy_port: int,
    port: int,
    *,
    which: str = "caddy-wheel",
    extra: str = "",
    proxy_user: int | None = None,
) -> Iterator[Installation]:
    """An initialised installation with a running Caddy; everything of it is gone afterwards."""
    root = Path(tempfile.mkdtemp(prefix="codeb-root-"))
    root.chmod(0o755)
    with running_caddy(which, caddy_port, user_id=proxy_user) as caddy:
        installation = Installation(root, engine, caddy, port, extra)
        try:
            installation.init()
            yield installation
        finally:
            installation.remove()
