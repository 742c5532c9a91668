"""From empty servers to a site, by the commands of docs/SERVERS.md as they stand there. Run by test_walk.py."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import ssl
import time
from http.client import HTTPSConnection
from pathlib import Path
from typing import Any

import dns.message
import dns.query
import pyrage
import pytest

from codeb_mcp.registry.env_history import values_of
from tests.lab import factory
from tests.lab.apart import CHECKOUT, NewHosts, new_hosts
from tests.lab.host_disk import _facts, _walk
from tests.lab.store_images import HostRegistry, _docker

BLOCK = re.compile(r"^```sh\n# ([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HOSTS = ("app", "streaming", "storage", "backup", "spare")
SITE = "worb.example.com"
AUTHORITY = "/var/lib/caddy/.local/share/caddy/pki/authorities/local/root.crt"
BY_NATURE = {
    "app:/opt/codeb/registry/audit/": "every call is recorded",
    "app:/opt/codeb/registry/leases/": "numbers of leases only grow",
    "app:/opt/codeb/registry/key-use.json": "when each key was last used, written by the server now and then",
    "app:/opt/codeb/registry/.generations/key-use": "the same, as it was",
    "app:/opt/codeb/registry/operations/": "every run has its journal",
    "app:/opt/codeb/run/": "how often each key called, and what may vanish",
    "app:/var/lib/docker": "logs of containers; their ids and images are compared instead",
    "backup:/var/lib/prometheus/": "what it measures",
    "storage:/var/lib/postgresql/": "the server's own bookkeeping, and visits; roles and schemas are compared instead",
}
"""What is left out of the comparison of all disks, and why; logs, caches, `/tmp`, `/run` and systemd's own notes belong to no installation."""
UNCOMPARED = ("/var/log/", "/tmp/", "/run/", "/var/cache/", "/var/lib/systemd/", "/var/tmp/")


def blocks() -> list[tuple[list[str], str]]:
    """What the document tells to type: who and where, and the commands."""
    text = (CHECKOUT / "docs/SERVERS.md").read_text(encoding="utf-8")
    section = text.partition("## From empty servers to a site\n")[2].partition("\n## ")[0]
    return [(who.split(), commands) for who, commands in BLOCK.findall(section)]


class Reader:
    """Somebody who follows the document, and types in what cannot stand there."""

    def __init__(self, lab: NewHosts, secret: str) -> None:
        self.lab, self.secret = lab, secret
        self.registry = factory.Registry(lab)
        self.key_line = ""
        self.centrifugo = factory.deliver_centrifugo(lab)

    def follow(self, *, again: bool = False) -> None:
        """Do all of it, in order. The second time no server is restarted, and nothing is left to promote."""
        for who, commands in blocks():
            for one in who:
                user, _, host = one.partition("@")
                if commands.strip() == "reboot":
                    self.reboot(host) if not again else None
                elif "centrifugo" not in commands or self.centrifugo:
                    self.type(user, host, commands, self.status(commands, again=again))

    def status(self, commands: str, *, again: bool) -> int:
        """The exit status that the block ends with."""
        if commands.startswith("codeb doctor") and not self.centrifugo:
            return 17
        return 14 if again and commands.startswith("codeb promote") else 0

    def type(self, user: str, host: str, commands: str, status: int = 0) -> str:
        """Type one block; answers what was said."""
        began = time.monotonic()
        folder = "codeb" if (user, host) == ("root", "app") else "."
        words = ["su", "-", user, "-c", f"set -e; cd {folder}\n{self.filled(commands)}"]
        done = self.lab.exec(host, *words, check=False, seconds=120)
        said = (done.stdout + done.stderr).decode(errors="replace")
        print(f"--- {user}@{host} ({time.monotonic() - began:.1f} s)\n{commands}{said}", flush=True)
        assert done.returncode == status, f"{user}@{host}: exit {done.returncode} instead of {status}"
        found = re.search(r"^restrict,port-forwarding .*$", said, re.MULTILINE)
        self.key_line = found[0] if found else self.key_line
        return done.stdout.decode(errors="replace")

    def filled(self, commands: str) -> str:
        """The commands with what only this installation knows: keys, fingerprints, the registry of images."""
        said = commands.replace("restrict,port-forwarding ssh-ed25519 AAAA… codeb", self.key_line)
        said = said.replace("TSIG-SECRET", self.secret).replace("ghcr.io/", f"{self.registry.address}/")
        return re.sub(r"--server-key (\w+) (.*) SHA256:…", self._fingerprint, said)

    def _fingerprint(self, found: re.Match[str]) -> str:
        said = self.lab.exec(found[1], "ssh-keygen", "-lf", "/etc/ssh/ssh_host_ed25519_key.pub").stdout.decode()
        return f"--server-key {found[1]} {found[2]} {said.split()[1]}"

    def reboot(self, host: str) -> None:
        """Power off and on: systemd starts what is enabled. The registry of images is not the installation's."""
        self.lab.kill(host)
        self.lab.boot(host)
        self.lab.power_on(host)
        self.registry.start()
        if not self.lab.exec(host, "ls", "/srv/images/data", check=False).stdout:
            self.registry.push("acme/worb:v1", self.lab.engine(host))

    def ask(self, host: str, *words: str) -> str:
        """What a command in a host says, asked as root and not by the document."""
        return self.lab.exec(host, *words).stdout.decode(errors="replace")

    def visit(self, path: str = "/") -> str:
        """The page that a visitor sees, who asks the name server and believes the installation's authority."""
        answer = dns.query.udp(dns.message.make_query(SITE, "A"), self.lab.address(factory.NAME_SERVER), timeout=5)
        (address,) = [item.to_text() for one in answer.answer for item in one]
        assert address == self.lab.inner_address("app")
        context = ssl.create_default_context(cadata=self.ask("app", "cat", AUTHORITY))
        with contextlib.closing(_Site(SITE, context=context, timeout=20)) as connection:
            connection.at = self.lab.address("app")
            connection.request("GET", path)
            response = connection.getresponse()
            text = response.read().decode()
            assert response.status == 200, (response.status, text)
            assert response.headers["Strict-Transport-Security"] == "max-age=31536000"
            return text

    def state(self) -> dict[str, object]:
        """All that the hosts ever wrote to their disks, and what stands for the parts that are left out."""
        found: dict[str, object] = {}
        for host in HOSTS:
            disk = str(self.lab.folder / host / "disk")
            for top in ("upper", "own"):
                for path in _walk(f"{disk}/{top}"):
                    name = path.removeprefix(f"{disk}/{top}")
                    if not name.startswith(UNCOMPARED) and not f"{host}:{name}".startswith(tuple(BY_NATURE)):
                        found[f"{host}:{name}"] = _facts(path)
            found[f"{host}: firewall"] = self.ask(host, "nft", "-s", "list", "ruleset")
            found[f"{host}: enabled"] = self.ask(host, "systemctl", "list-unit-files", "--state=enabled", "--no-legend")
        found["app: containers"] = self.ask("app", "docker", "ps", "-a", "--no-trunc", "--format", "{{.ID}} {{.Names}}")
        found["app: images"] = self.ask("app", "docker", "images", "-a", "--no-trunc", "--format", "{{.ID}}")
        found["app: proxy"] = self.ask("app", "curl", "-fs", "http://127.0.0.1:2019/config/")
        dump = self.ask("storage", "runuser", "-u", "postgres", "--", "pg_dumpall", "-s").splitlines()
        # pg_dump marks each dump with a word of its own.
        found["storage: databases"] = [line for line in dump if not line.startswith(("\\restrict", "\\unrestrict"))]
        return found


class _Site(HTTPSConnection):
    """Connects to an address; the name is checked all the same."""

    at = ""

    def connect(self) -> None:
        self._create_connection = self._there
        super().connect()

    def _there(self, target: tuple[str, int], *more: Any) -> socket.socket:
        return socket.create_connection((self.at, target[1]), *more)


@pytest.fixture(scope="module")
def reader() -> Reader:
    """Somebody with five new servers, one of which is the name server."""
    lab = new_hosts()
    return Reader(lab, factory.furnish(lab))


def test_the_document_leads_from_empty_servers_to_a_site(reader: Reader) -> None:
    reader.follow()
    first, second = reader.visit(), reader.visit()
    assert re.fullmatch(r"good morning\nvisit \d+ of worb as worb\n", first), first
    assert int(second.split()[3]) == int(first.split()[3]) + 1, "each visit is a row in the database"


def test_the_container_has_the_variables_and_the_backup_server_has_them_only_encrypted(reader: Reader) -> None:
    live = values_of((reader.lab.root("app") / "opt/codeb/projects/worb/.env.production").read_bytes())
    assert sorted(live) == ["DATABASE_URL", "GREETING", *sorted(name for name in live if name.startswith("POSTGRES_"))]
    environ = json.loads(reader.ask("app", "docker", "inspect", "-f", "{{json .Config.Env}}", "worb-production-blue"))
    assert {f"{name}={value}" for name, value in live.items()} <= set(environ)
    copies = reader.lab.root("backup") / "opt/codeb/env-backup/worb/production"
    key = (reader.lab.root("app") / "opt/codeb/keys/env.agekey").read_text(encoding="utf-8").split()[-1]
    copied = pyrage.decrypt((copies / "current.env.age").read_bytes(), [pyrage.x25519.Identity.from_str(key)])
    assert dict(values_of(copied)) == dict(live)
    assert len(list(copies.iterdir())) >= 5
    disk = reader.lab.folder / "backup/disk"
    secret = live["POSTGRES_PASSWORD"].encode()
    files = [Path(path) for top in ("upper", "own") for path in _walk(f"{disk}/{top}")]
    assert [path for path in files if path.is_file() and secret in path.read_bytes()] == []


def test_strangers_reach_the_site_and_no_data_store(reader: Reader) -> None:
    knock = 'exec 3<>"/dev/tcp/$0/$1"'
    reached = {
        (host, port): reader.lab.exec(
            "spare", "timeout", "2", "bash", "-c", knock, reader.lab.inner_address(host), str(port), check=False
        ).returncode
        == 0
        for host, port in (("app", 443), ("storage", 22), ("storage", 5432), ("storage", 6379), ("backup", 9090))
    }
    assert [way for way, there in reached.items() if there] == [("app", 443), ("storage", 22)]


def test_the_control_plane_runs_as_its_unit_says_and_its_log_is_rotated(reader: Reader) -> None:
    log = "/var/log/codeb/serve.log"
    assert json.loads(reader.ask("app", "curl", "-fs", "http://127.0.0.1:9101/health"))["status"] == "healthy"
    assert reader.ask("app", "ps", "-o", "user=", "-C", "codeb").split() == ["codeb"]
    assert reader.ask("app", "ps", "-o", "user=", "-C", "caddy").split() == ["caddy"]
    for unit in ("codeb", "caddy-api", "codeb-housekeeping.timer", "codeb-firewall", "docker"):
        assert reader.ask("app", "systemctl", "is-active", unit).strip() == "active"
    reader.ask("app", "systemctl", "start", "codeb-housekeeping")
    over = "--connect http://127.0.0.1:9101"
    said = reader.type("codeb", "app", f"codeb env set worb --environment staging --values worb.env --json {over}\n")
    assert json.loads(said)["backedUp"] is True, "what the unit keeps from the service is not what it needs"
    reader.type("codeb", "app", f"codeb doctor {over}\n", reader.status("codeb doctor", again=False))
    reader.lab.exec("app", "sh", "-c", f"echo last line >> {log}; logrotate --force /etc/logrotate.d/codeb")
    assert "last line" in reader.ask("app", "zcat", f"{log}.1.gz")
    assert "last line" not in reader.ask("app", "cat", log)


def test_root_may_type_commands_and_leaves_nothing_that_the_service_cannot_read(reader: Reader) -> None:
    said = reader.type("root", "app", "bash /opt/codeb/scripts/init-ssot-registry.sh\ncodeb project list\n")
    assert "worb" in said
    assert reader.ask("app", "find", "/opt/codeb", "!", "-user", "codeb").split() == [
        "/opt/codeb/scripts/init-ssot-registry.sh"
    ]


def test_the_same_again_changes_nothing(reader: Reader) -> None:
    before = reader.state()
    reader.follow(again=True)
    after = reader.state()
    changed = [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
    print(
        f"{len(before)} files and facts of {len(HOSTS)} servers compared; left out: {json.dumps(BY_NATURE, indent=1)}"
    )
    assert changed == []


def test_the_table_of_the_guide(reader: Reader) -> None:
    lab = reader.lab
    lab.exec("storage", "systemctl", "start", "docker")
    engine = lab.engine("storage")
    lab.exec("storage", "usermod", "-aG", "docker", "codeb")
    with HostRegistry(lab, "storage", 5001) as registry:
        images = {kind: registry.image(kind, engine) for kind in ("postgres", "redis")}
    settings = "\\n".join(["", "[databases]", *(f'{kind}_image = "{name}"' for kind, name in images.items())])
    own = "--environment production --placement own"
    reader.type(
        "codeb",
        "app",
        f"""printf '{settings}\\n' >> /opt/codeb/codeb.toml
codeb project create w-homepage --environments production
codeb project create da-rak --environments production
codeb database create da-rak {own} --kind postgres --port 5450
codeb database create da-rak {own} --kind redis --port 6400
""",
    )
    ssot = json.loads((lab.root("app") / "opt/codeb/registry/ssot.json").read_text(encoding="utf-8"))
    said = json.loads(reader.type("codeb", "app", "codeb database list --json\n"))
    stores = {(row["projectName"], row["kind"]): row.get("port") for row in said["data"]}
    print(f"{'project':<14}{'blue':>6}{'green':>7}{'PostgreSQL':>12}{'Redis':>7}")
    table = {}
    for name, project in ssot["projects"].items():
        for environment, ports in project["ports"].items():
            label = name if environment == "production" else f"{name}-{environment}"
            found = [stores.get((name, kind)) if label == name else None for kind in ("postgres", "redis")]
            table[label] = (ports["blue"], ports["green"], *found)
            print(f"{label:<14}{ports['blue']:>6}{ports['green']:>7}{found[0] or '':>12}{found[1] or '':>7}")
    assert table == {
        "worb": (4000, 4001, None, None), "worb-staging": (4500, 4501, None, None),
        "w-homepage": (4002, 4003, None, None), "da-rak": (4004, 4005, 5450, 6400),
    }  # fmt: skip
    running = _docker(engine, "ps", "--format", "{{.Names}} {{.Ports}}").splitlines()
    assert sorted(running) == [
        "codeb-store-da-rak-production-postgres 198.51.100.13:5450->5432/tcp",
        "codeb-store-da-rak-production-redis 198.51.100.13:6400->6379/tcp",
    ]
