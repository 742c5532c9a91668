"""Generated Dockerfiles are built and run as a deploy runs them: read-only, no rights, not root, with their own PORT.

The official base images are not to be had without the internet: this machine's Node, Python and Go stand in for them. What
could not be tried is printed.
"""

from __future__ import annotations

import re
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from codeb_mcp.model.dockerfiles import SECRETS, AppType, dockerfile, dockerignore
from tests.lab import bases
from tests.lab.bases import Base
from tests.lab.daemons import wait_until
from tests.lab.engine import Engine
from tests.lab.ports import FreePorts

NODE = """
const server = require("http").createServer((ask, reply) => {
  reply.writeHead(ask.url === "/health" ? 200 : 404); reply.end(String(process.getuid()));
}).listen(process.env.PORT, process.env.HOST);
process.on("SIGTERM", () => server.close(() => process.exit(0)));
"""
PYTHON = """
import http.server, os, signal, sys, threading
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
        self.wfile.write(str(os.getuid()).encode())
    def log_message(self, *words): pass
server = http.server.ThreadingHTTPServer(("0.0.0.0", int(os.environ["PORT"])), Page)
signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
server.serve_forever()
"""
GO = """
package main

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	http.HandleFunc("/health", func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, os.Getuid()) })
	server := &http.Server{Addr: ":" + os.Getenv("PORT")}
	done, _ := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	go server.ListenAndServe()
	<-done.Done()
	server.Shutdown(context.Background())
}
"""
LOCK = (
    '{"name": "shop", "version": "1.0.0", "lockfileVersion": 3, "requires": true, '
    '"packages": {"": {"name": "shop", "version": "1.0.0"}}}'
)
PACKAGE = '{"name": "shop", "version": "1.0.0", "main": "index.js", "scripts": {"build": "node -p 1+1"}}'
APPS: Mapping[AppType, tuple[Base, Mapping[str, str]]] = {
    AppType.NODEJS: (bases.NODE, {"package.json": PACKAGE, "package-lock.json": LOCK, "index.js": NODE}),
    AppType.PYTHON: (bases.PYTHON, {"main.py": PYTHON, "requirements.txt": ""}),
    AppType.GO: (bases.GO, {"go.mod": "module shop\n\ngo 1.24\n", "main.go": GO}),
}
SECRET = "right-horse-battery"


@pytest.fixture
def names(engine: Engine, unique: str) -> Iterator[str]:
    """The first part of the names of images and containers of this test, which are all gone afterwards."""
    yield unique
    engine.sweep(unique)
    for entry in engine.call("GET", "/images/json"):
        for name in entry["RepoTags"] or []:
            if name.startswith(unique):
                engine.call("DELETE", f"/images/{name}?force=1")


def docker(engine: Engine, *words: str, **environ: str) -> str:
    """Run the docker client; answers its stdout."""
    done = subprocess.run(
        [bases.docker(), "-H", engine.host, *words], env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", **environ},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (words, done.stdout[-3000:], done.stderr[-3000:])
    return done.stdout


def made(engine: Engine, kind: AppType, names: str, checkout: Path) -> str:
    """Build the generated Dockerfile with an app, on bases of this machine; answers the image."""
    base, files = APPS[kind]
    text = dockerfile(kind, 8080)
    for number, official in enumerate(dict.fromkeys(re.findall(r"^FROM (\S+)", text, re.MULTILINE))):
        reference = f"{names}:base{number}"
        bases.build(bases.EMPTY if "distroless" in official else base, engine.host, reference)
        text = text.replace(f"FROM {official}", f"FROM {reference}")
    for path, content in {**files, "Dockerfile": text, ".dockerignore": dockerignore(kind), ".env": SECRET}.items():
        (checkout / path).write_text(content, encoding="utf-8")
    secret = SECRETS[kind]
    given = {
        "NPMRC": f"//x.test/:_authToken={SECRET}\n",
        "PIP_CONF": f"# {SECRET}\n",
        "NETRC": f"machine x password {SECRET}\n",
    }
    docker(
        engine, "build", "--network", "none", "--secret", f"id={secret.id},env={secret.name}", "--tag", f"{names}:app",
        str(checkout), DOCKER_BUILDKIT="1", **{secret.name: given[secret.name]},
    )  # fmt: skip
    return f"{names}:app"


def answer(port: int) -> str | None:
    """What /health says, or None while nobody answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as reply:
            return str(reply.read().decode())
    except (OSError, urllib.error.HTTPError):
        return None


@pytest.mark.parametrize("kind", [AppType.NODEJS, AppType.PYTHON, pytest.param(AppType.GO, marks=pytest.mark.nightly)])
def test_an_app_is_built_and_runs_without_rights_and_ends_when_told(
    kind: AppType, engine: Engine, names: str, tmp_path: Path, free_ports: FreePorts
) -> None:
    if (lacking := APPS[kind][0].missing()) is not None:
        print(f"NOT TESTED: the {kind} Dockerfile is not built, this machine has no {lacking}", file=sys.__stderr__)
        return
    image = made(engine, kind, names, tmp_path)
    for number, inside in enumerate((8080, 9090)):
        port = free_ports()
        chosen = ["--env", f"PORT={inside}"] if inside != 8080 else []
        docker(
            engine, "run", "--detach", "--name", f"{names}-{number}", "--init", "--read-only", "--cap-drop", "ALL",
            "--security-opt", "no-new-privileges", "--tmpfs", "/tmp:noexec", "--publish", f"127.0.0.1:{port}:{inside}",
            *chosen, image,
        )  # fmt: skip
        wait_until(lambda port=port: answer(port) is not None, 30, f"{kind} never answers on {inside}")  # type: ignore[misc]
        assert int(answer(port) or 0) >= 1000
        docker(engine, "stop", "--time", "20", f"{names}-{number}")
        state = engine.call("GET", f"/containers/{names}-{number}/json")["State"]
        assert state["ExitCode"] == 0, f"SIGTERM did not reach the app: {state}"


@pytest.mark.parametrize("kind", [AppType.NODEJS, AppType.PYTHON])
def test_no_secret_of_the_build_is_in_any_layer(kind: AppType, engine: Engine, names: str, tmp_path: Path) -> None:
    if APPS[kind][0].missing() is not None:
        print(f"NOT TESTED: layers of the {kind} image", file=sys.__stderr__)
        return
    image = made(engine, kind, names, tmp_path)
    assert SECRET not in docker(engine, "history", "--no-trunc", image)
    saved = tmp_path.parent / f"{names}.tar"
    docker(engine, "save", "--output", str(saved), image)
    try:
        found = subprocess.run(["grep", "-c", SECRET, str(saved)], capture_output=True, timeout=120, check=False)
        control = subprocess.run(
            ["grep", "-c", "shop\\|do_GET", str(saved)], capture_output=True, timeout=120, check=False
        )
    finally:
        saved.unlink()
    assert found.returncode == 1, found
    assert control.returncode == 0, "the layers are readable, so that nothing found means nothing there"


def test_what_is_not_built_here_is_said() -> None:
    print("NOT TESTED: nextjs and remix images (their packages are not on this machine)", file=sys.__stderr__)
    assert set(AppType) - set(APPS) == {AppType.NEXTJS, AppType.REMIX}
