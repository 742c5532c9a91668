"""New lab hosts as a provider hands them over: what Debian's packages would have made, a name server, packages for pip."""

from __future__ import annotations

import base64
import io
import os
import secrets
import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.lab.apart import CHECKOUT, WHEELS, NewHosts
from tests.lab.daemons import wait_until
from tests.lab.store_images import _docker, _folder, _libraries, _text

ZONE = "example.com"
NAME_SERVER = "spare"
REGISTRY_PORT = 5000
SERVICES: dict[str, tuple[str, ...]] = {
    "app": ("docker", "containerd", "caddy"),
    "streaming": (),
    "storage": ("postgresql", "redis-server"),
    "backup": ("prometheus",),
}
"""What the packages of each server's role start by themselves: on the machine all of them are installed."""
AS_DELIVERED = r"""
set -e
rm -rf /etc/systemd/system/*.target.wants /etc/docker/daemon.json /etc/apt/sources.list.d/*
systemctl -q enable ssh "$@"
systemctl -q mask getty.target systemd-sysctl systemd-modules-load systemd-remount-fs systemd-networkd-wait-online
"""
"""Only its own services start, and none that changes the machine's kernel."""
APP = """#!/bin/sh
echo "Content-Type: text/plain"; echo
echo "$GREETING"
exec psql -X -qAt -v ON_ERROR_STOP=1 "$DATABASE_URL" <<'END'
CREATE TABLE IF NOT EXISTS visits (at timestamptz DEFAULT now());
INSERT INTO visits DEFAULT VALUES;
SELECT 'visit ' || count(*) || ' of ' || current_database() || ' as ' || current_user FROM visits;
END
"""
"""A site in one CGI script: it greets by a variable and counts its visits in its database."""


def furnish(lab: NewHosts) -> str:
    """Have all hosts as they come; answers the secret by which the name server's zone is updated."""
    for host, services in SERVICES.items():
        lab.exec(host, "sh", "-c", f"echo 'nameserver {lab.inner_address(NAME_SERVER)}' > /etc/resolv.conf")
        lab.exec(host, "userdel", "-r", "codeb")
        lab.exec(host, "sh", "-c", AS_DELIVERED, "x", *services)
    lab.exec("app", "install", "-d", "-o", "caddy", "-g", "caddy", "/var/lib/caddy")
    lab.exec("storage", "install", "-d", "-o", "redis", "-g", "redis", "/var/lib/redis")
    lab.exec("storage", "install", "-d", "-o", "postgres", "-g", "postgres", "/var/lib/postgresql", "/etc/postgresql")
    lab.exec("storage", "pg_createcluster", "15", "main")
    _checkout(lab)
    for host in SERVICES:
        lab.power_on(host)
    return _name_server(lab)


def deliver_centrifugo(lab: NewHosts) -> bool:
    """Put Centrifugo's program into root's home on the streaming server; False when this machine has none."""
    named = os.environ.get("CODEB_CENTRIFUGO")
    if not named:
        return False
    shutil.copy(named, lab.root("streaming") / "root/centrifugo")
    return True


def _checkout(lab: NewHosts) -> None:
    """This checkout in root's home, and an index for pip: the packages that the tests run with, as wheels."""
    home, wheels = lab.root("app") / "root/codeb", lab.root("app") / "usr/lib/lab-wheels"
    wheels.mkdir()
    for path in Path(os.environ[WHEELS]).iterdir():
        shutil.copy(path, wheels)
    for name in needed_by("codeb-mcp") - {"codeb-mcp"}:
        packed(name, wheels)
    (lab.root("app") / "etc/pip.conf").write_text(
        "[global]\nno-index = true\nfind-links = /usr/lib/lab-wheels\nno-compile = true\n"
        "disable-pip-version-check = true\nquiet = 1\n", encoding="utf-8",
    )  # fmt: skip
    left_out = shutil.ignore_patterns("__pycache__", "tests", ".*", "build", "*.egg-info")
    shutil.copytree(CHECKOUT, home, ignore=left_out)


def needed_by(name: str) -> set[str]:
    """The names of all packages that an installed one needs, itself included."""
    found: set[str] = set()
    left = [name]
    while left:
        one = Requirement(left.pop())
        if one.marker is not None and not one.marker.evaluate({"extra": ""}):
            continue
        known = canonicalize_name(one.name)
        if known not in found:
            found.add(known)
            left += metadata.requires(one.name) or []
            left += [need for extra in one.extras for need in _of_extra(one.name, extra)]
    return found


def _of_extra(name: str, extra: str) -> Iterator[str]:
    for text in metadata.requires(name) or []:
        marker = Requirement(text).marker
        if marker is not None and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""}):
            yield text.partition(";")[0]


def packed(name: str, folder: Path) -> Path:
    """An installed package as the wheel that it came in."""
    package = metadata.distribution(name)
    text = package.read_text("WHEEL") or ""
    tags = [line.partition(": ")[2].split("-") for line in text.splitlines() if line.startswith("Tag: ")]
    tag = "-".join(".".join(sorted({one[at] for one in tags})) for at in range(3))
    path = folder / f"{canonicalize_name(name).replace('-', '_')}-{package.version}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for file in package.files or ():
            place = Path(str(package.locate_file(file)))
            ours = not str(file).startswith(("..", "/")) and "__pycache__" not in file.parts
            if ours and place.is_file() and file.name not in ("INSTALLER", "REQUESTED", "direct_url.json"):
                archive.write(place, str(file))
    return path


def _name_server(lab: NewHosts) -> str:
    secret = base64.b64encode(secrets.token_bytes(32)).decode()
    address = lab.inner_address(NAME_SERVER)
    config = (
        f'key "codeb" {{ algorithm hmac-sha256; secret "{secret}"; }};\n'
        f'options {{ directory "/srv/dns"; listen-on {{ {address}; }}; listen-on-v6 {{ none; }}; recursion no;\n'
        "  pid-file none; session-keyfile none; dnssec-validation no; notify no; };\ncontrols { };\n"
        f'zone "{ZONE}" {{ type primary; file "zone"; allow-update {{ key "codeb"; }}; }};\n'
    )
    zone = f"$TTL 60\n@ SOA ns.{ZONE}. admin.{ZONE}. 1 3600 600 86400 1\n@ NS ns\nns A {address}\n"
    lab.exec(NAME_SERVER, "mkdir", "/srv/dns")
    for name, text in (("named.conf", config), ("zone", zone)):
        lab.exec(NAME_SERVER, "tee", f"/srv/dns/{name}", stdin=text.encode())
    lab.exec(NAME_SERVER, "sh", "-c", "setsid named -g -c /srv/dns/named.conf >/srv/dns/log 2>&1 </dev/null &")
    return secret


class Registry:
    """An image registry on the application server's loopback, with the site in it."""

    address = f"127.0.0.1:{REGISTRY_PORT}"

    def __init__(self, lab: NewHosts) -> None:
        self._lab = lab
        self._folder = "/srv/images"

    def start(self) -> None:
        """Have it answering."""
        lab, folder = self._lab, self._folder
        lab.exec("app", "mkdir", "-p", folder)
        text = (
            f"version: 0.1\nlog: {{level: warn}}\nstorage: {{filesystem: {{rootdirectory: {folder}/data}}}}\n"
            f"http: {{addr: {self.address}}}\n"
        )
        lab.exec("app", "tee", f"{folder}/config.yml", stdin=text.encode())
        words = "setsid docker-registry serve $0/config.yml >$0/log 2>&1 </dev/null &"
        lab.exec("app", "sh", "-c", words, folder)
        wait_until(self._answers, 20, "the registry does not come up")

    def _answers(self) -> bool:
        words = ["curl", "-fsS", "--max-time", "2", f"http://{self.address}/v2/"]
        return self._lab.exec("app", *words, check=False).returncode == 0

    def push(self, name: str, engine: str) -> None:
        """Make the site's image and push it as `name`; the engine (a socket's path) forgets it."""
        reference = f"{self.address}/{name}"
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w") as tar:
            _site(tar)
        command = 'CMD ["/bin/busybox", "httpd", "-f", "-p", "8080", "-h", "/www"]'
        change = ["--change", "ENV PATH=/usr/lib/postgresql/15/bin:/bin", "--change", "USER 1000", "--change", command]
        with (self._lab.folder / "site.tar").open("w+b") as kept:
            kept.write(file.getvalue())
            kept.seek(0)
            _docker(engine, "import", *change, "-", reference, stdin=kept)
        _docker(engine, "push", reference)
        _docker(engine, "rmi", reference)


def _site(tar: tarfile.TarFile) -> None:
    psql = Path("/usr/lib/postgresql/15/bin/psql")
    for name in ("bin", "etc", "proc", "dev", "sys", "www", "www/cgi-bin"):
        _folder(tar, name)
    _folder(tar, "tmp", 0o1777)
    tar.add("/bin/busybox", "bin/busybox")
    for name in ("sh", "echo", "cat"):
        link = tarfile.TarInfo(f"bin/{name}")
        link.type, link.linkname = tarfile.SYMTYPE, "/bin/busybox"
        tar.addfile(link)
    _text(tar, "etc/passwd", "app:x:1000:1000::/tmp:/bin/sh\n")
    _text(tar, "www/health", "ok\n")
    _text(tar, "www/cgi-bin/index.cgi", APP, 0o755)
    for path in sorted({psql, *_libraries([str(psql)])}):
        tar.add(path.resolve(), path.as_posix().lstrip("/"), recursive=False)
