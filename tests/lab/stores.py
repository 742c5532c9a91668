"""PostgreSQL and Redis of Debian inside a lab host, set up as docs/DATABASES.md says; and images of both for its engine."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.lab.daemons import LabError, wait_until
from tests.lab.hosts import LabHosts

POSTGRES_BIN = "/usr/lib/postgresql/15/bin"
REDIS_ADMIN = "codeb_admin"
REDIS_PASSWORD = "an-administrator's pass/word 1"
REQUIRED = {"postgres": f"{POSTGRES_BIN}/initdb", "redis": "/usr/bin/redis-server"}


def require(part: str) -> None:
    """Raise LabError when the machine has no such server."""
    if not Path(REQUIRED[part]).exists() or shutil.which("runuser") is None:
        raise LabError(
            f"{REQUIRED[part]} is missing: install it, or leave these tests out with CODEB_TEST_WITHOUT={part}"
        )


@dataclass(frozen=True, slots=True)
class LabPostgres:
    """A cluster of its own on a lab host. `port` is also the number in its socket's name."""

    lab: LabHosts
    host: str
    port: int

    @property
    def socket(self) -> str:
        """Its socket as the host sees it."""
        return f"/run/postgresql/.s.PGSQL.{self.port}"

    @property
    def data(self) -> str:
        """Its folder in the host."""
        return f"/var/lib/postgresql/lab-{self.port}"

    def start(self) -> None:
        """Make and start it; logins over TCP want a password, the socket believes the kernel."""
        require("postgres")
        self._exec(
            "sh", "-c", "mkdir -p /run/postgresql && chown postgres: /run/postgresql && chmod 2775 /run/postgresql"
        )
        self._exec("install", "-d", "-o", "postgres", "-m", "755", "/var/lib/postgresql")
        self._as_postgres(
            f"{POSTGRES_BIN}/initdb", "-N", "-D", self.data, "--auth-local=peer", "--auth-host=scram-sha-256"
        )
        hba = b"local all all peer\nhost all all 0.0.0.0/0 scram-sha-256\nhost all all ::1/128 scram-sha-256\n"
        self._exec("tee", f"{self.data}/pg_hba.conf", stdin=hba)
        settings = (
            f"port = {self.port}\nlisten_addresses = '*'\nunix_socket_directories = '/run/postgresql'\n"
            "unix_socket_permissions = 0777\nfsync = off\nlog_statement = 'all'\nlog_min_messages = debug1\nmax_connections = 60\n"
        )
        self._exec("tee", "-a", f"{self.data}/postgresql.conf", stdin=settings.encode())
        self.run()

    def run(self) -> None:
        """Have it running."""
        self._as_postgres(f"{POSTGRES_BIN}/pg_ctl", "-w", "-D", self.data, "-l", f"{self.data}/log", "start")

    def stop(self) -> None:
        """Stop it at once."""
        self.lab.exec(self.host, "runuser", "-u", "postgres", "--", f"{POSTGRES_BIN}/pg_ctl", "-w", "-m", "immediate",
                      "-D", self.data, "stop", check=False)  # fmt: skip

    def remove(self) -> None:
        """Take it away."""
        self.stop()
        self.lab.exec(self.host, "rm", "-rf", self.data, check=False)

    def sql(self, text: str, database: str = "postgres") -> str:
        """What a superuser gets to hear, without decoration."""
        words = [
            "psql",
            "-X",
            "-qAt",
            "-v",
            "ON_ERROR_STOP=1",
            "-h",
            "/run/postgresql",
            "-p",
            str(self.port),
            "-d",
            database,
        ]
        done = self.lab.exec(self.host, "runuser", "-u", "postgres", "--", *words, stdin=text.encode())
        return done.stdout.decode().strip()

    def log(self) -> str:
        """Everything it has logged, with every statement."""
        return self._exec("cat", f"{self.data}/log")

    def _as_postgres(self, *argv: str) -> None:
        self._exec("runuser", "-u", "postgres", "--", *argv)

    def _exec(self, *argv: str, stdin: bytes = b"") -> str:
        return self.lab.exec(self.host, *argv, stdin=stdin).stdout.decode(errors="replace")


@dataclass(frozen=True, slots=True)
class LabRedis:
    """A Redis of its own on a lab host. `acl_file`: users are kept in a file of their own, else in redis.conf."""

    lab: LabHosts
    host: str
    port: int
    acl_file: bool = True

    @property
    def folder(self) -> str:
        """Its folder in the host."""
        return f"/var/lib/redis/lab-{self.port}"

    def start(self) -> None:
        """Make and start it."""
        require("redis")
        self.lab.exec(self.host, "install", "-d", self.folder)
        import hashlib

        digest = hashlib.sha256(REDIS_PASSWORD.encode()).hexdigest()
        users = f"user default off\nuser {REDIS_ADMIN} on #{digest} ~* &* +@all\n"
        settings = (
            f"port {self.port}\nbind 0.0.0.0\nprotected-mode no\ndir {self.folder}\nappendonly yes\ndaemonize yes\n"
        )
        settings += f"logfile {self.folder}/log\npidfile {self.folder}/pid\nloglevel verbose\n"
        if self.acl_file:
            self.lab.exec(self.host, "tee", f"{self.folder}/users.acl", stdin=users.encode())
            settings += f"aclfile {self.folder}/users.acl\n"
        else:
            settings += users
        self.lab.exec(self.host, "tee", f"{self.folder}/redis.conf", stdin=settings.encode())
        self.run()

    def run(self) -> None:
        """Have it running."""
        self.lab.exec(self.host, "redis-server", f"{self.folder}/redis.conf")
        wait_until(lambda: self.cli("PING") == "PONG", 20, "redis does not come up")

    def stop(self) -> None:
        """End it cleanly."""
        words = "p=$(cat $0/pid 2>/dev/null) && kill $p && while kill -0 $p 2>/dev/null; do sleep 0.05; done"
        self.lab.exec(self.host, "sh", "-c", words, self.folder, check=False, seconds=20)

    def remove(self) -> None:
        """Take it away."""
        self.stop()
        self.lab.exec(self.host, "rm", "-rf", self.folder, check=False)

    def cli(self, *words: str, user: str = REDIS_ADMIN, password: str = REDIS_PASSWORD) -> str:
        """What a user gets to hear."""
        command = ["redis-cli", "-p", str(self.port), "--no-auth-warning", "--user", user, "--pass", password, *words]
        return self.lab.exec(self.host, *command, check=False).stdout.decode(errors="replace").strip()

    def persisted(self) -> str:
        """Its users as they stand on the disk."""
        name = "users.acl" if self.acl_file else "redis.conf"
        return self.lab.exec(self.host, "cat", f"{self.folder}/{name}").stdout.decode()
