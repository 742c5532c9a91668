"""An image registry on a loopback port (Debian's docker-registry), with or without users."""

from __future__ import annotations

import ctypes
import http.client
import json
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

from tests.lab.daemons import LabError, Shared, end, launch, program, read_pid, state_folder, wait_until
from tests.lab.ports import FreePorts

PART = PACKAGE = "docker-registry"
BCRYPT_LOW_COST = "$2b$04$"
"""The hash is computed at every request, so a realistic cost would make pushes take seconds."""


class Registry:
    """A registry with its data in one folder; `address` (127.0.0.1:port) is the first part of image names.

    An engine on the same machine needs no setting for it: it trusts loopback registries without TLS.
    """

    def __init__(self, folder: Path, port: int, users: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.port = port
        self.address = f"127.0.0.1:{port}"
        self.users = dict(users or {})
        self._pidfile = folder / "pid"

    def start(self) -> None:
        """Have it answering. The images of an earlier start are still there."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        binary = program("docker-registry", part="registry", package=PACKAGE)
        if read_pid(self._pidfile, PART) is None:
            config = self.folder / "config.json"  # the registry reads YAML, of which JSON is a part
            config.write_text(json.dumps(self._config()), encoding="utf-8")
            launch([binary, "serve", str(config)], pidfile=self._pidfile, log=self.folder / "log")
        wait_until(self.answers, 15, "the registry did not answer", log=self.folder / "log")

    def stop(self) -> None:
        """End it; its images stay, for another start."""
        pid = read_pid(self._pidfile, PART)
        if pid is not None:
            end(pid, grace_seconds=5)

    def remove(self) -> None:
        """End it and remove all it has."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def answers(self) -> bool:
        """Whether it can be talked to now (also when it wants a login)."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
        try:
            connection.request("GET", "/v2/")
            return connection.getresponse().status in (200, 401)
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _config(self) -> dict[str, object]:
        config: dict[str, object] = {
            "version": "0.1",
            "log": {"level": "warn"},
            "storage": {"filesystem": {"rootdirectory": str(self.folder / "data")}, "delete": {"enabled": True}},
            "http": {"addr": self.address, "secret": secrets.token_hex(8)},
        }
        if self.users:
            file = self.folder / "htpasswd"
            lines = [f"{name}:{_bcrypt(password)}\n" for name, password in self.users.items()]
            file.write_text("".join(lines), encoding="utf-8")
            config["auth"] = {"htpasswd": {"realm": "lab", "path": str(file)}}
        return config


def shared_registry() -> tuple[Registry, Shared]:
    """The registry without users that all test processes share, and the hold on it, to be released."""
    folder = state_folder() / "registry"
    ports = FreePorts()

    def start() -> dict[str, object]:
        registry = Registry(folder, ports())
        registry.start()
        return {"port": registry.port}

    hold = Shared(folder, start=start, stop=Registry(folder, 0).stop)
    return Registry(folder, int(hold.acquire()["port"])), hold


def _bcrypt(password: str) -> str:
    try:
        library = ctypes.CDLL("libcrypt.so.1")
    except OSError as error:
        raise LabError(f"libcrypt.so.1 is missing: apt-get install libcrypt1 ({error})") from error
    library.crypt.restype = ctypes.c_char_p
    salt = BCRYPT_LOW_COST + secrets.token_hex(11)
    made = library.crypt(password.encode(), salt.encode())
    if not made or not made.startswith(BCRYPT_LOW_COST.encode()):
        raise LabError("this machine's libcrypt cannot do bcrypt")
    return str(made, "ascii")
