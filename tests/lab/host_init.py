"""The first process of a lab host: `python -IS host_init.py SPEC.json`. Uses the standard library only.

It enters the host's network, makes namespaces for processes, mounts, host name and IPC, puts an overlay over the machine's
root in place and becomes `tini`, which runs sshd. What starts it gets the host's process id in the file that SPEC names.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from typing import Any

_LIBC = ctypes.CDLL(None, use_errno=True)
_NEW_NS, _NEW_UTS, _NEW_IPC, _NEW_PID, _NEW_NET = 0x20000, 0x4000000, 0x8000000, 0x20000000, 0x40000000
_BIND, _REC, _PRIVATE, _NOSUID, _NODEV = 0x1000, 0x4000, 0x40000, 0x2, 0x4
_DETACH = 2
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")


def main(path: str) -> None:
    """Fork into the new namespaces; the parent leaves the child's id behind and ends."""
    with open(path, encoding="utf-8") as file:
        spec = json.load(file)
    _check(_LIBC.setns(os.open(spec["network"], os.O_RDONLY | os.O_CLOEXEC), _NEW_NET), "setns")
    _check(_LIBC.unshare(_NEW_NS | _NEW_UTS | _NEW_IPC | _NEW_PID), "unshare")
    # The child changes the root of this whole mount namespace, so it waits until the parent has written its file.
    go, ready = os.pipe()
    child = os.fork()
    if child:
        part = spec["pidfile"] + ".part"
        with open(part, "w", encoding="utf-8") as file:
            file.write(f"{child} {_start_time(child)}")
        os.rename(part, spec["pidfile"])
        os._exit(0)
    os.close(ready)
    os.read(go, 1)
    os.close(go)
    _boot(spec)


def _start_time(pid: int) -> int:
    with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
        return int(file.read().rpartition(")")[2].split()[19])


def _boot(spec: dict[str, Any]) -> None:
    os.setsid()
    os.umask(0o022)
    root: str = spec["root"]
    _mount("none", "/", None, _REC | _PRIVATE)
    disk = spec["disk"]
    _mount("overlay", root, "overlay", data=f"lowerdir=/,upperdir={disk}/upper,workdir={disk}/work")
    for folder in spec["own_folders"]:
        os.makedirs(f"{root}/{folder}", exist_ok=True)
        _mount(f"{disk}/own/{folder}", f"{root}/{folder}", None, _BIND)
    _mount("proc", f"{root}/proc", "proc")
    _mount("sysfs", f"{root}/sys", "sysfs")
    _mount("/sys/fs/cgroup", f"{root}/sys/fs/cgroup", None, _BIND | _REC)
    _devices(f"{root}/dev")
    _mount("tmpfs", f"{root}/run", "tmpfs", data="mode=755")
    os.makedirs(f"{root}/run/sshd")
    os.makedirs(f"{root}/run/lock")
    _mount("tmpfs", f"{root}/tmp", "tmpfs", _NOSUID | _NODEV, data="mode=1777")
    _check(_LIBC.sethostname(spec["name"].encode(), len(spec["name"])), "sethostname")
    _pivot(root)
    environ = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "LANG": "C.UTF-8",
    }
    os.execve("/usr/bin/tini", ["tini", "-s", "--", "/usr/sbin/sshd", "-D", "-e"], environ)  # noqa: S606


def _devices(dev: str) -> None:
    _mount("tmpfs", dev, "tmpfs", data="mode=755")
    for name in _DEVICES:
        os.close(os.open(f"{dev}/{name}", os.O_CREAT | os.O_WRONLY, 0o666))
        _mount(f"/dev/{name}", f"{dev}/{name}", None, _BIND)
    os.mkdir(f"{dev}/pts")
    os.mkdir(f"{dev}/shm")
    _mount("devpts", f"{dev}/pts", "devpts", data="newinstance,ptmxmode=0666,mode=620,gid=5")
    _mount("tmpfs", f"{dev}/shm", "tmpfs", data="mode=1777")
    for name, target in (("ptmx", "pts/ptmx"), ("fd", "/proc/self/fd")):
        os.symlink(target, f"{dev}/{name}")
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        os.symlink(f"/proc/self/fd/{number}", f"{dev}/{name}")


def _pivot(root: str) -> None:
    os.chdir(root)
    os.makedirs(".old", exist_ok=True)
    _check(_LIBC.syscall(_PIVOT_ROOT[os.uname().machine], b".", b".old"), "pivot_root")
    os.chdir("/")
    _check(_LIBC.umount2(b"/.old", _DETACH), "umount")


def _mount(source: str, target: str, kind: str | None, flags: int = 0, data: str = "") -> None:
    made = _LIBC.mount(
        source.encode(), target.encode(), kind.encode() if kind else None, ctypes.c_ulong(flags), data.encode() or None
    )
    _check(made, f"mount {target}")


def _check(result: int, what: str) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


if __name__ == "__main__":
    main(sys.argv[1])
