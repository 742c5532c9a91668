"""App servers behind SSH: lab hosts with an engine, an image registry and a Caddy of their own, used by the account codeb."""

from __future__ import annotations

import json
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.lab import images
from tests.lab.bases import docker
from tests.lab.caddy import caddy_binary
from tests.lab.daemons import LabError, wait_until
from tests.lab.hosts import LabHosts
from tests.lab.store_images import HostRegistry

PUBLIC = 8088
REGISTRY = 5101
FLAGS = "/srv/codeb-flags"
CADDY = {"admin": {"listen": "127.0.0.1:2019"}, "apps": {"http": {"servers": {}}}}


class FarServers:
    """The running servers."""

    def __init__(self, lab: LabHosts, names: Sequence[str], sockets: Sequence[str]) -> None:
        self.lab = lab
        self.names = tuple(names)
        self._sockets = dict(zip(names, sockets, strict=True))
        self._made: list[str] = []

    def toml(self) -> str:
        """The settings that tell an installation about them."""
        own = "".join(
            f'[app_servers.{name}]\nlisten = [":{PUBLIC}"]\npublic = "{self.lab.address(name)}:{PUBLIC}"\n'
            f'flags = "{FLAGS}"\nengine_socket = "/run/docker.sock"\n'
            for name in self.names
        )
        return f'[ssh]\nkey_file = "{self.lab.key_file}"\nconnect_seconds = 2\nkeepalive_seconds = 0.5\n{own}'

    def entries(self) -> dict[str, dict[str, str]]:
        """Them in the inventory, with the host keys that were accepted."""
        return {
            name: {
                "host": self.lab.inner_address(name), "role": "application", "user": "codeb", "engine": "ssh",
                "hostKey": self.lab.host_key(name),
            }
            for name in self.names
        }  # fmt: skip

    async def image(self, unique: str, version: str) -> str:
        """An image that each of them pulls from its own registry, the same to the byte."""
        reference = f"127.0.0.1:{REGISTRY}/{unique}/app:{version}"
        first = self._sockets[self.names[0]]
        await images.build(f"unix://{first}", reference, version)
        packed = self._docker(self.names[0], "save", reference)
        for name in self.names:
            if name != self.names[0]:
                self._docker(name, "load", stdin=packed)
            self._docker(name, "push", reference)
            self._docker(name, "rmi", "-f", reference)
        self._made.append(f"{unique}/app")
        return reference

    def published(self, name: str, container: str) -> list[str]:
        """The addresses on which a container is published."""
        said = self._docker(
            name, "inspect", "-f", "{{range .NetworkSettings.Ports}}{{range .}}{{.HostIp}} {{end}}{{end}}", container
        )
        return said.decode().split()

    def kill(self, name: str, container: str) -> None:
        """Take a container away behind everybody's back."""
        self._docker(name, "rm", "-f", container)

    def containers(self, name: str, project: str) -> dict[str, str]:
        """The project's containers on a server, each with its image id."""
        said = self._docker(
            name,
            "ps",
            "-a",
            "--no-trunc",
            "--filter",
            f"label=codeb.project={project}",
            "--format",
            "{{.Names}} {{.ID}}",
        )
        found = dict(line.split() for line in said.decode().splitlines())
        return {one: self._docker(name, "inspect", "-f", "{{.Image}}", found[one]).decode().strip() for one in found}

    def ask(self, name: str, host: str, path: str = "/version") -> tuple[int, str, str]:
        """`(status, body, slot)` of a request over that server's proxy; status 0 when it cannot be reached."""
        request = urllib.request.Request(f"http://{self.lab.address(name)}:{PUBLIC}{path}", headers={"Host": host})
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return answer.status, answer.read().decode().strip(), answer.headers.get("X-CodeB-Slot", "")
        except urllib.error.HTTPError as error:
            with error:
                return error.code, "", error.headers.get("X-CodeB-Slot", "")
        except OSError:
            return 0, "", ""

    def tidy(self) -> None:
        """Take away what was made there."""
        for name in self.names:
            found = self._docker(name, "ps", "-aq", "--filter", "label=codeb.project").decode().split()
            if found:
                self._docker(name, "rm", "-f", *found)
            self.lab.exec(name, "rm", "-rf", FLAGS, check=False)

    def _docker(self, name: str, *words: str, stdin: bytes | None = None) -> bytes:
        command = [docker(), "-H", f"unix://{self._sockets[name]}", *words]
        done = subprocess.run(command, input=stdin, capture_output=True, timeout=180, check=False)
        if done.returncode:
            raise LabError(f"docker {words[0]} on {name}: {done.stderr.decode(errors='replace')[-500:]}")
        return done.stdout


@contextmanager
def far_servers(lab: LabHosts, *names: str) -> Iterator[FarServers]:
    """These hosts as app servers, for one test module alone."""
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(lab.alone(name))
        sockets = [lab.start_engine(name) for name in names]
        for name in names:
            stack.enter_context(HostRegistry(lab, name, REGISTRY))
            stack.enter_context(_caddy(lab, name))
        made = FarServers(lab, names, sockets)
        made.tidy()
        for name in names:
            lab.exec(name, "install", "-d", "-m", "755", "-o", "codeb", FLAGS)
        try:
            yield made
        finally:
            made.tidy()


@contextmanager
def _caddy(lab: LabHosts, name: str) -> Iterator[None]:
    folder = "/var/lib/lab-caddy"
    lab.exec(name, "mkdir", "-p", folder)
    lab.exec(name, "tee", f"{folder}/caddy.json", stdin=json.dumps(CADDY).encode())
    words = "HOME=$0 setsid $1 run --config $0/caddy.json >$0/log 2>&1 </dev/null & echo $! >$0/pid"
    lab.exec(name, "sh", "-c", words, folder, caddy_binary("caddy-debian"))

    def answers() -> bool:
        words = ["curl", "-fsS", "--max-time", "2", "http://127.0.0.1:2019/config/"]
        return lab.exec(name, *words, check=False).returncode == 0

    try:
        wait_until(answers, 20, f"the proxy of {name} does not come up", log=Path(f"{lab.root(name)}{folder}/log"))
        yield
    finally:
        lab.exec(name, "sh", "-c", "kill $(cat $0/pid); rm -rf $0", folder, check=False)
