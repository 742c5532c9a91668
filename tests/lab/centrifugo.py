"""Centrifugo: its program, found or built once a machine, and servers of it inside lab hosts.

The program is that of `CODEB_CENTRIFUGO`, or the one in PATH, or one that Go builds through this machine's module proxy. As a
command (`python -m tests.lab.centrifugo`) this prints the program's path, or says why there is none and exits with 1.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from codeb_mcp.model.centrifugo import SECRET_NAMES, initial_config
from tests.lab.daemons import LabError, cache_folder, locked, wait_until
from tests.lab.hosts import LabHosts

PART = "centrifugo"
VERSION = "6.9.6"
MODULE = "github.com/centrifugal/centrifugo/v6"
LEAST_GO = (1, 26)
BUILD_SECONDS = 900.0
GO_PLACES = ("/usr/local/go/bin/go", "/usr/lib/go/bin/go")
DO_WITHOUT = f"name it in CODEB_CENTRIFUGO, or leave these tests out with CODEB_TEST_WITHOUT={PART}"
USER = "codeb"


def centrifugo() -> Path:
    """The program; raises LabError that says why there is none. What is built is kept between runs."""
    named = os.environ.get("CODEB_CENTRIFUGO")
    if named:
        if not os.access(named, os.X_OK):
            raise LabError(f"CODEB_CENTRIFUGO names {named}, which is no program")
        return Path(named)
    if found := shutil.which("centrifugo"):
        return Path(found)
    folder = cache_folder() / f"centrifugo-{VERSION}"
    with locked(folder.with_suffix(".lock")):
        if not (folder / "centrifugo").exists():
            folder.mkdir(exist_ok=True)
            _build(folder / "centrifugo")
    return folder / "centrifugo"


def _build(target: Path) -> None:
    """By a module of our own: the pinned version is all that is asked for."""
    go = _go()
    with tempfile.TemporaryDirectory(prefix="codeb-centrifugo-") as folder:
        Path(folder, "go.mod").write_text(
            f"module codeb.test/lab\n\ngo {LEAST_GO[0]}.{LEAST_GO[1]}\n\nrequire {MODULE} v{VERSION}\n",
            encoding="utf-8",
        )
        flags = f"-s -w -X {MODULE}/internal/build.Version={VERSION}"
        words = [go, "build", "-trimpath", "-ldflags", flags, "-o", f"{target}.new", MODULE]
        try:
            done = subprocess.run(
                words,
                cwd=folder,
                env=_environment(),
                capture_output=True,
                text=True,
                timeout=BUILD_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise LabError(f"building Centrifugo took more than {BUILD_SECONDS:.0f} s: {DO_WITHOUT}") from None
    if done.returncode:
        said = re.sub(r"https?://[^/\s]+", "…", (done.stderr.strip().splitlines() or ["nothing"])[-1])
        raise LabError(f"Centrifugo {VERSION} cannot be built ({said}): {DO_WITHOUT}")
    os.replace(f"{target}.new", target)


def _go() -> str:
    found = shutil.which("go") or next((one for one in GO_PLACES if os.access(one, os.X_OK)), None)
    if found is None:
        raise LabError(f"there is neither Centrifugo nor Go to build it with: {DO_WITHOUT}")
    said = subprocess.run(
        [found, "env", "GOVERSION"], env=_environment(), capture_output=True, text=True, timeout=60, check=False
    ).stdout
    version = re.match(r"go(\d+)\.(\d+)", said)
    if version is None or (int(version[1]), int(version[2])) < LEAST_GO:
        wanted = ".".join(map(str, LEAST_GO))
        raise LabError(f"Centrifugo needs Go {wanted} to be built, and here is {said.strip() or 'none'}: {DO_WITHOUT}")
    return found


def _environment() -> dict[str, str]:
    """Go's, also where nobody has a home; no other toolchain is downloaded."""
    environ = {**os.environ, "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=mod", "CGO_ENABLED": "0"}
    if not environ.get("HOME"):
        folder = cache_folder() / "go"
        environ |= {"GOPATH": str(folder), "GOCACHE": str(folder / "build")}
    return environ


@dataclass
class LabCentrifugo:
    """A Centrifugo of its own on a lab host, run by the user that CodeB logs in as. `folder` has all that it is made of."""

    lab: LabHosts
    host: str
    port: int
    folder: str = field(default_factory=lambda: f"/srv/centrifugo-{secrets.token_hex(4)}")

    @property
    def config(self) -> str:
        """Its configuration file."""
        return f"{self.folder}/config.json"

    @property
    def program(self) -> str:
        """Its program as the host sees it."""
        return f"{self.folder}/centrifugo"

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of an installation that uses it."""
        return {
            "config": self.config, "secrets": f"{self.folder}/secrets.env", "program": self.program, "port": self.port,
        }  # fmt: skip

    def start(self) -> None:
        """Make it as server_setup would, and have it running."""
        program = centrifugo().read_bytes()
        self._exec("install", "-d", "-o", USER, "-g", USER, "-m", "750", self.folder)
        self._exec("tee", self.program, stdin=program)
        self._exec("chmod", "755", self.program)
        self.write_config({**initial_config(port=self.port), "pid_file": f"{self.folder}/pid"})
        self.new_secrets()
        self.run()

    def write_config(self, config: dict[str, Any] | str) -> None:
        """Put a configuration there as an operator would, without telling the server."""
        text = config if isinstance(config, str) else json.dumps(config)
        self._exec("tee", self.config, stdin=text.encode())
        self._exec("sh", "-c", f'chown {USER}:{USER} "$1"; chmod 640 "$1"', "x", self.config)

    def read_config(self) -> dict[str, Any]:
        """What is there."""
        found: dict[str, Any] = json.loads(self._exec("cat", self.config))
        return found

    def new_secrets(self) -> None:
        """Others than before, in the file only the service's user can read."""
        path = f"{self.folder}/secrets.env"
        lines = "".join(f"{name}={secrets.token_hex(32)}\n" for name in SECRET_NAMES)
        self._exec("tee", path, stdin=lines.encode())
        self._exec("sh", "-c", f'chown {USER}:{USER} "$1"; chmod 600 "$1"', "x", path)

    def secrets(self) -> dict[str, str]:
        """What the file says."""
        lines = self._exec("cat", f"{self.folder}/secrets.env").decode().splitlines()
        return dict(line.split("=", 1) for line in lines)

    def run(self, *, wait: bool = True) -> None:
        """Have it running with the secrets of its file; `wait` until its health endpoint answers."""
        script = 'set -a; . "$0/secrets.env"; exec setsid --fork "$0/centrifugo" -c "$0/config.json" >>"$0/log" 2>&1 </dev/null'
        self._exec("runuser", "-u", USER, "--", "sh", "-c", script, self.folder)
        if wait:
            log = self.lab.root(self.host) / self.folder[1:] / "log"
            wait_until(self.answers, 20, "Centrifugo does not come up", log=log)

    def stop(self) -> None:
        """End it."""
        script = 'pid=$(cat "$0/pid") || exit 0; kill -9 "$pid"; while kill -0 "$pid" 2>/dev/null; do sleep 0.01; done; rm "$0/pid"'
        self.lab.exec(self.host, "sh", "-c", script, self.folder, check=False)

    def remove(self) -> None:
        """Take it away."""
        self.stop()
        self.lab.exec(self.host, "rm", "-rf", self.folder, check=False)

    def answers(self) -> bool:
        """Whether its health endpoint answers."""
        words = ["curl", "-sf", "-m", "2", "-o", "/dev/null", f"http://127.0.0.1:{self.port}/health"]
        return self.lab.exec(self.host, *words, check=False).returncode == 0

    def log(self) -> str:
        """Everything it has said."""
        return self._exec("cat", f"{self.folder}/log").decode()

    def pid(self) -> int:
        """Its process in the host."""
        return int(self._exec("cat", f"{self.folder}/pid"))

    def signal(self, name: str) -> None:
        """A signal to it."""
        self._exec("kill", f"-{name}", str(self.pid()))

    def _exec(self, *argv: str, stdin: bytes = b"") -> bytes:
        return self.lab.exec(self.host, *argv, stdin=stdin).stdout


if __name__ == "__main__":
    try:
        print(centrifugo())
    except LabError as error:
        print(f"NOT TESTED: {PART}: {error}")
        sys.exit(1)
