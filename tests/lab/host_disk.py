"""The disk of a lab host: what it has beyond the machine's own root, on a tmpfs of its own; and what it wrote since."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.lab.daemons import LabError

SIZE = "3g"
USER, USER_ID = "codeb", 2000
OWN_FOLDERS = (
    "root", "opt", "srv", "home", "var/lib/docker", "var/lib/postgresql", "etc/postgresql", "var/lib/redis", "var/lib/caddy",
)  # fmt: skip
"""Empty at first, never the machine's own."""
ALIASES = {
    "app": "app.codeb.test api.codeb.test", "streaming": "ws.codeb.test", "storage": "db.codeb.test",
    "backup": "backup.codeb.test", "spare": "spare.codeb.test",
}  # fmt: skip
SSHD = """\
HostKey /etc/ssh/ssh_host_ed25519_key
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
MaxStartups 100
Subsystem sftp internal-sftp
"""
_LIBC = ctypes.CDLL(None, use_errno=True)
_DETACH = 2
_UNHASHED = ("/upper/var/log", "/upper/var/cache", "/upper/tmp", "/upper/run")


def make_disk(folder: Path, host: str, public_key: str, addresses: Mapping[str, str]) -> None:
    """A new disk below `folder`, with accounts, host key and sshd's configuration."""
    disk = folder / "disk"
    for path in (disk, folder / "root"):
        path.mkdir(mode=0o755, parents=True, exist_ok=True)
    if _LIBC.mount(b"tmpfs", str(disk).encode(), b"tmpfs", 0, f"size={SIZE},mode=755".encode()):
        raise LabError(f"no disk for {host}: {os.strerror(ctypes.get_errno())}")
    (disk / "upper/etc/ssh").mkdir(parents=True)
    (disk / "work").mkdir()
    for own in OWN_FOLDERS:
        (disk / "own" / own).mkdir(parents=True)
    (folder / "own.txt").write_text("\n".join(str(disk / "own" / own) for own in OWN_FOLDERS), encoding="utf-8")
    _accounts(disk / "upper/etc")
    _logins(disk / "own", public_key)
    etc = disk / "upper/etc"
    key = etc / "ssh/ssh_host_ed25519_key"
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", host, "-f", str(key)],
        stdin=subprocess.DEVNULL, capture_output=True, timeout=20, check=True,
    )  # fmt: skip
    shutil.copy(f"{key}.pub", folder / "host_key.pub")
    (etc / "ssh/sshd_config").write_text(SSHD, encoding="utf-8")
    (etc / "hostname").write_text(f"{host}\n", encoding="utf-8")
    lines = ["127.0.0.1 localhost", "198.51.100.1 registry.codeb.test"]
    lines += [f"{address} {name} {ALIASES[name]}" for name, address in addresses.items()]
    (etc / "hosts").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _accounts(etc: Path) -> None:
    passwd = Path("/etc/passwd").read_text(encoding="utf-8")
    etc.joinpath("passwd").write_text(
        f"{passwd.rstrip()}\n{USER}:x:{USER_ID}:{USER_ID}::/home/{USER}:/bin/sh\n", encoding="utf-8"
    )
    shadow = Path("/etc/shadow").read_text(encoding="utf-8")
    etc.joinpath("shadow").write_text(f"{shadow.rstrip()}\n{USER}:*:19000:0:99999:7:::\n", encoding="utf-8")
    etc.joinpath("shadow").chmod(0o600)
    groups = []
    for line in Path("/etc/group").read_text(encoding="utf-8").splitlines():
        name, _, rest = line.partition(":")
        groups.append(f"{line}{',' if line[-1] != ':' else ''}{USER}" if name == "docker" else f"{name}:{rest}")
    etc.joinpath("group").write_text("\n".join([*groups, f"{USER}:x:{USER_ID}:"]) + "\n", encoding="utf-8")


def _logins(own: Path, public_key: str) -> None:
    own.joinpath("root").chmod(0o700)
    for home, owner, rights in ((own / "root", 0, ""), (own / "home" / USER, USER_ID, "restrict,port-forwarding ")):
        (home / ".ssh").mkdir(parents=True)
        file = home / ".ssh/authorized_keys"
        file.write_text(f"{rights}{public_key}\n", encoding="utf-8")
        for path, mode in ((home, 0o700), (home / ".ssh", 0o700), (file, 0o600)):
            os.chown(path, owner, owner)
            path.chmod(mode)


def remove_disk(folder: Path, host: str) -> None:
    """Unmount and remove it, and the control groups that the host's engine left."""
    disk = str(folder / "disk")
    if os.path.ismount(disk):
        # What is still open keeps a detached tmpfs alive only until it is closed.
        _LIBC.umount2(disk.encode(), _DETACH)
    shutil.rmtree(folder, ignore_errors=True)
    for controller in Path("/sys/fs/cgroup").glob("*"):
        for path, _, _ in os.walk(controller / f"cbh-{host}", topdown=False):
            if os.path.isdir(path):
                os.rmdir(path)


def tree_hash(disk: Path) -> str:
    """See `LabHosts.tree_hash`."""
    digest = hashlib.sha256()
    for top in ("upper", "own"):
        for path in _walk(str(disk / top)):
            name = path.removeprefix(str(disk))
            if not name.startswith(_UNHASHED):
                digest.update(repr((name, *_facts(path))).encode())
    return digest.hexdigest()


def _walk(top: str) -> Iterator[str]:
    for folder, folders, files in os.walk(top):
        folders.sort()
        yield from (os.path.join(folder, name) for name in sorted([*folders, *files]))


def _facts(path: str) -> tuple[object, ...]:
    status = os.lstat(path)
    content: object = None
    if stat.S_ISLNK(status.st_mode):
        content = os.readlink(path)
    elif stat.S_ISREG(status.st_mode):
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
    elif stat.S_ISCHR(status.st_mode):
        content = status.st_rdev
    return status.st_mode, status.st_uid, status.st_gid, content
