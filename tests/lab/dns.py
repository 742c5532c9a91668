"""Name servers of our own on loopback: BIND for dynamic updates (RFC 2136), PowerDNS for its HTTP API.

Both answer for the same zones, `lab.test` and `other.test`, and are resolvers as well as authorities: what a test writes can
be looked up there at once.
"""

from __future__ import annotations

import base64
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import dns.exception
import dns.message
import dns.query
import dns.rcode
import dns.tsig
import dns.tsigkeyring
import dns.update

from tests.lab.daemons import end, freeze, launch, program, read_pid, wait_until
from tests.lab.ports import FreePorts

PART = "dns"
PACKAGES = {"named": "bind9", "pdns_server": "pdns-server pdns-backend-sqlite3", "sqlite3": "sqlite3"}
ZONES = ("lab.test", "other.test")
ABOVE = "test"
"""Also served by BIND, as a resolver would: who looks for CAA climbs up to there."""
KEY = "codeb-lab"


def _program(name: str) -> str:
    return program(name, part=PART, package=PACKAGES[name])


class _Server:
    """What both have: a folder, an address, questions."""

    name = ""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self.port = port
        self.address = f"127.0.0.1:{port}"
        self._pidfile = folder / "pid"
        self._stopped = False

    def ask(self, name: str, kind: str) -> list[str]:
        """Values as they are served, sorted, in zone file format."""
        answer = dns.query.tcp(dns.message.make_query(name, kind), "127.0.0.1", port=self.port, timeout=5)
        return sorted(one.to_text() for rrset in answer.answer if rrset.rdtype.name == kind for one in rrset)

    def answers(self) -> bool:
        """Whether it serves its zones."""
        with suppress(OSError, EOFError, dns.exception.DNSException):
            return bool(self.ask(ZONES[-1], "SOA"))
        return False

    def freeze(self) -> None:
        """Let it take connections and say nothing."""
        freeze(self._pid())
        self._stopped = True

    def thaw(self) -> None:
        """Let it go on."""
        os.kill(self._pid(), signal.SIGCONT)
        self._stopped = False

    def stop(self) -> None:
        """End it; its zones stay."""
        if self._stopped:
            self.thaw()
        if (pid := read_pid(self._pidfile, self.name)) is not None:
            end(pid, grace_seconds=5)

    def _pid(self) -> int:
        pid = read_pid(self._pidfile, self.name)
        if pid is None:
            raise RuntimeError(f"{self.name} does not run")
        return pid

    def _launch(self, argv: Sequence[str]) -> None:
        if read_pid(self._pidfile, self.name) is None:
            launch(list(argv), pidfile=self._pidfile, log=self.folder / "log")
        wait_until(self.answers, 15, f"{self.name} did not answer", log=self.folder / "log")


class Bind(_Server):
    """BIND with a TSIG key that may update `lab.test` and `other.test`."""

    name = "named"

    def __init__(self, folder: Path, port: int) -> None:
        super().__init__(folder, port)
        self.secret = base64.b64encode(secrets.token_bytes(32)).decode()
        self.secret_file = folder / "tsig.secret"

    def start(self) -> None:
        """Have it answering."""
        if not self.secret_file.exists():
            self.secret_file.write_text(self.secret + "\n", encoding="utf-8")
            self.secret_file.chmod(0o600)
            for zone in (*ZONES, ABOVE):
                (self.folder / f"{zone}.zone").write_text(_zone_file(zone), encoding="utf-8")
            (self.folder / "named.conf").write_text(self._config(), encoding="utf-8")
        self._launch([_program("named"), "-g", "-4", "-n", "1", "-c", str(self.folder / "named.conf")])

    def change(self, zone: str, *lines: tuple[str, str, str], delete: bool = False) -> None:
        """Add or delete records as the person who keeps the zone would: `(name, type, value)`."""
        keyring = dns.tsigkeyring.from_text({KEY: self.secret})
        update = dns.update.UpdateMessage(zone, keyring=keyring, keyalgorithm=dns.tsig.HMAC_SHA256)
        for name, kind, value in lines:
            if delete:
                update.delete(name + ".", kind, value)
            else:
                update.add(name + ".", 60, kind, value)
        answer = dns.query.tcp(update, "127.0.0.1", port=self.port, timeout=5)
        if answer.rcode() != dns.rcode.NOERROR:
            raise RuntimeError(dns.rcode.to_text(answer.rcode()))

    def _config(self) -> str:
        zones = "".join(
            f'zone "{zone}" {{ type primary; file "{zone}.zone"; allow-update {{ key "{KEY}"; }}; }};\n'
            for zone in (*ZONES, ABOVE)
        )
        return (
            f'key "{KEY}" {{ algorithm hmac-sha256; secret "{self.secret}"; }};\n'
            f'options {{ directory "{self.folder}"; listen-on port {self.port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }};\n'
            f'  pid-file none; session-keyfile none; managed-keys-directory "{self.folder}"; recursion no;\n'
            f"  dnssec-validation no; notify no; tcp-clients 500; }};\n"
            f"controls {{ }};\n"
            f"{zones}"
        )


class PowerDns(_Server):
    """PowerDNS with its SQLite backend and its HTTP API; `api` is the API's address."""

    name = "pdns_server"

    def __init__(self, folder: Path, port: int, api_port: int) -> None:
        super().__init__(folder, port)
        self.api = f"http://127.0.0.1:{api_port}"
        self._api_port = api_port
        self.secret = secrets.token_hex(16)
        self.secret_file = folder / "api.secret"

    def start(self) -> None:
        """Have it answering."""
        database = self.folder / "pdns.sqlite3"
        if not database.exists():
            self.secret_file.write_text(self.secret + "\n", encoding="utf-8")
            self.secret_file.chmod(0o600)
            self._make(database)
        self._launch([_program("pdns_server"), f"--config-dir={self.folder}"])

    def change(self, zone: str, *lines: tuple[str, str, str], delete: bool = False) -> None:
        """Add or delete records as the person who keeps the zone would: `(name, type, value)`."""
        for name, kind, value in lines:
            kept = self.ask(name, kind)
            values = [one for one in kept if one != value] if delete else [*kept, value]
            own = name.removesuffix(zone).rstrip(".") or "@"
            argv = ["replace-rrset", zone, own, kind, "60", *values] if values else ["delete-rrset", zone, own, kind]
            subprocess.run(
                ["pdnsutil", f"--config-dir={self.folder}", *argv], check=True, capture_output=True, timeout=20
            )

    def _make(self, database: Path) -> None:
        schema = Path("/usr/share/pdns-backend-sqlite3/schema/schema.sqlite3.sql").read_text(encoding="utf-8")
        rows = "".join(
            f"INSERT INTO domains(id,name,type) VALUES({number},'{zone}','NATIVE');"
            f"INSERT INTO records(domain_id,name,type,content,ttl,auth) VALUES"
            f"({number},'{zone}','SOA','ns.{zone} hostmaster.{zone} 1 3600 600 86400 60',60,1),"
            f"({number},'{zone}','NS','ns.{zone}',60,1),({number},'ns.{zone}','A','127.0.0.1',60,1);"
            for number, zone in enumerate(ZONES, 1)
        )
        subprocess.run([_program("sqlite3"), str(database)], input=schema + rows, text=True, check=True, timeout=20)
        (self.folder / "pdns.conf").write_text(
            f"launch=gsqlite3\ngsqlite3-database={database}\nlocal-address=127.0.0.1\nlocal-port={self.port}\n"
            f"webserver=yes\nwebserver-address=127.0.0.1\nwebserver-port={self._api_port}\napi=yes\napi-key={self.secret}\n"
            f"socket-dir={self.folder}\nguardian=no\ndaemon=no\ncache-ttl=0\nnegquery-cache-ttl=0\nquery-cache-ttl=0\n"
            f"zone-cache-refresh-interval=0\ngsqlite3-pragma-synchronous=0\n",
            encoding="utf-8",
        )


def _zone_file(zone: str) -> str:
    return (
        f"$TTL 60\n@ IN SOA ns.{zone}. hostmaster.{zone}. 1 3600 600 86400 60\n@ IN NS ns.{zone}.\nns IN A 127.0.0.1\n"
    )


def free_udp_and_tcp(ports: FreePorts) -> int:
    """A port that is free for both."""
    while True:
        port = ports()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


@contextmanager
def running_bind(ports: FreePorts) -> Iterator[Bind]:
    """A started BIND; ended, and its folder removed, afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="codeb-bind-"))
    server = Bind(folder, free_udp_and_tcp(ports))
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def running_powerdns(ports: FreePorts) -> Iterator[PowerDns]:
    """A started PowerDNS; ended, and its folder removed, afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="codeb-pdns-"))
    server = PowerDns(folder, free_udp_and_tcp(ports), ports())
    try:
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)
