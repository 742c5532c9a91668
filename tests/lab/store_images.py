"""Stand-ins for the official images of PostgreSQL and Redis: this machine's servers behind the same few promises.

Promised: `POSTGRES_USER`, `POSTGRES_PASSWORD`, `POSTGRES_INITDB_ARGS` and `PGDATA` for the first start, users `postgres` and
`redis`, data folders that belong to them, `redis-server` and `/bin/sh` found by PATH. The kind `postgres-18` has its data
where images of PostgreSQL 18 and later have it: no `data` folder, the volume declared one above, `PGDATA` below it.
"""

from __future__ import annotations

import io
import json
import re
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path

from tests.lab.bases import LIBRARY, docker
from tests.lab.daemons import LabError, wait_until
from tests.lab.hosts import LabHosts

POSTGRES_UID, REDIS_UID = 999, 998
PATH = "/usr/lib/postgresql/15/bin:/usr/bin:/bin"
START = r"""#!/bin/sh
set -e
mkdir -p "$PGDATA"
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  printf '%s\n' "$POSTGRES_PASSWORD" > /tmp/first
  initdb -N -D "$PGDATA" -U "$POSTGRES_USER" --pwfile=/tmp/first --no-locale -E UTF8 $POSTGRES_INITDB_ARGS
  rm /tmp/first
  echo 'host all all all scram-sha-256' >> "$PGDATA/pg_hba.conf"
fi
exec postgres -D "$PGDATA" -c "listen_addresses=*" -c unix_socket_directories=/var/run/postgresql
"""


def _libraries(programs: Iterable[str]) -> set[Path]:
    found: set[Path] = set()
    for program in programs:
        said = subprocess.run(["ldd", program], capture_output=True, text=True, timeout=20, check=False).stdout
        found |= {Path(path) for path in LIBRARY.findall(said)}
    return found


def _files(kind: str) -> set[Path]:
    if kind == "redis":
        return {Path("/usr/bin/redis-server"), *_libraries(["/usr/bin/redis-server"])}
    folder = Path("/usr/lib/postgresql/15")
    programs = [folder / "bin/postgres", folder / "bin/initdb"]
    modules = [folder / "lib" / name for name in ("plpgsql.so", "dict_snowball.so", "libpqwalreceiver.so")]
    share = [
        path for path in Path("/usr/share/postgresql/15").rglob("*") if path.is_file() and "/man/" not in str(path)
    ]
    zones = [path for path in (Path("/usr/share/zoneinfo/UTC"), Path("/usr/share/zoneinfo/Etc/UTC")) if path.exists()]
    return {*programs, *modules, *share, *zones, *_libraries(map(str, [*programs, *modules]))}


def _folder(tar: tarfile.TarFile, name: str, mode: int = 0o755, uid: int = 0) -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.uid, entry.gid = tarfile.DIRTYPE, mode, uid, uid
    tar.addfile(entry)


def _text(tar: tarfile.TarFile, name: str, text: str, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(text.encode()), mode
    tar.addfile(entry, io.BytesIO(text.encode()))


def _fill(tar: tarfile.TarFile, kind: str) -> None:
    for name in ("bin", "etc", "usr", "var", "var/run", "proc", "dev", "sys"):
        _folder(tar, name)
    _folder(tar, "tmp", 0o1777)
    tar.add("/bin/busybox", "bin/busybox")
    for name in ("sh", "printf", "echo", "rm", "mv", "cat", "mkdir", "chmod", "env", "id", "ls"):
        link = tarfile.TarInfo(f"bin/{name}")
        link.type, link.linkname = tarfile.SYMTYPE, "/bin/busybox"
        tar.addfile(link)
    users = f"root:x:0:0::/root:/bin/sh\npostgres:x:{POSTGRES_UID}:{POSTGRES_UID}::/tmp:/bin/sh\nredis:x:{REDIS_UID}:{REDIS_UID}::/tmp:/bin/sh\n"
    _text(tar, "etc/passwd", users)
    _text(tar, "etc/group", f"root:x:0:\npostgres:x:{POSTGRES_UID}:\nredis:x:{REDIS_UID}:\n")
    for path in sorted(_files(kind)):
        tar.add(path.resolve(), path.as_posix().lstrip("/"), recursive=False)
    if kind == "redis":
        _folder(tar, "data", 0o755, REDIS_UID)
        return
    _folder(tar, "var/lib")
    if kind == "postgres-18":
        _folder(tar, "var/lib/postgresql", 0o1777, POSTGRES_UID)
    else:
        _folder(tar, "var/lib/postgresql")
        _folder(tar, "var/lib/postgresql/data", 0o700, POSTGRES_UID)
    _folder(tar, "var/run/postgresql", 0o3777, POSTGRES_UID)
    _text(tar, "start", START, 0o755)


class HostRegistry:
    """A registry on a lab host's own loopback, which its engine may use without TLS, for the time that images are made."""

    def __init__(self, lab: LabHosts, host: str, port: int) -> None:
        self._lab, self._host, self._port = lab, host, port
        self._folder = f"/var/lib/lab-registry-{port}"

    def __enter__(self) -> HostRegistry:
        settings = {
            "version": 0.1,
            "storage": {"filesystem": {"rootdirectory": f"{self._folder}/data"}},
            "http": {"addr": f"127.0.0.1:{self._port}"},
        }
        self._lab.exec(self._host, "mkdir", "-p", self._folder)
        self._lab.exec(self._host, "tee", f"{self._folder}/config.yml", stdin=json.dumps(settings).encode())
        words = "setsid docker-registry serve $0/config.yml >$0/log 2>&1 </dev/null & echo $! >$0/pid"
        self._lab.exec(self._host, "sh", "-c", words, self._folder)
        wait_until(self._answers, 20, "the registry does not come up")
        return self

    def __exit__(self, *ignored: object) -> None:
        self._lab.exec(self._host, "sh", "-c", "kill $(cat $0/pid); rm -rf $0", self._folder, check=False)

    def _answers(self) -> bool:
        words = ["curl", "-fsS", "--max-time", "2", f"http://127.0.0.1:{self._port}/v2/"]
        return self._lab.exec(self._host, *words, check=False).returncode == 0

    def image(self, kind: str, engine: str) -> str:
        """Make the stand-in on the engine (a socket's path); answers its name with digest."""
        reference = f"127.0.0.1:{self._port}/stand-in/{kind}:1"
        change = ["--change", f"ENV PATH={PATH}"]
        if kind != "redis":
            change += ["--change", 'ENTRYPOINT ["/start"]']
        if kind == "postgres-18":
            change += ["--change", "VOLUME /var/lib/postgresql", "--change", "ENV PGDATA=/var/lib/postgresql/18/docker"]
        with tempfile.TemporaryFile() as file:
            with tarfile.open(fileobj=file, mode="w") as tar:
                _fill(tar, kind)
            file.seek(0)
            _docker(engine, "import", *change, "-", reference, stdin=file)
        said = _docker(engine, "push", reference)
        found = re.search(r"digest: (sha256:[0-9a-f]{64})", said)
        if found is None:
            raise LabError(f"docker push: {said}")
        return f"{reference.removesuffix(':1')}@{found[1]}"


def _docker(engine: str, *words: str, stdin: object = None) -> str:
    command = [docker(), "-H", f"unix://{engine}", *words]
    done = subprocess.run(command, stdin=stdin, capture_output=True, text=True, timeout=180, check=False)  # type: ignore[call-overload]
    if done.returncode:
        raise LabError(f"docker {words[0]}: {done.stderr[-500:]}")
    return str(done.stdout) + (str(done.stderr) if words[0] == "logs" else "")
