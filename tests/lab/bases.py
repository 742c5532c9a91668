"""Base images for builds without the internet: this machine's Node, Python or Go with a busybox around it.

They stand in for the official images that generated Dockerfiles name: same programs under the same names, found by PATH.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.lab.daemons import LabError

PATH = "/usr/local/go/bin:/usr/local/bin:/usr/bin:/bin"
LIBRARY = re.compile(r"^\s+(?:\S+ => )?(/\S+) \(0x[0-9a-f]+\)$", re.MULTILINE)
SKIPPED = re.compile(r"/(testdata|test|tests|idlelib|tkinter|__pycache__|man|docs)/")


@dataclass(frozen=True)
class Base:
    """How to fill a base image; None is answered by `missing` when this machine has what it needs."""

    name: str
    files: Callable[[], Iterable[Path]]
    links: dict[str, str]
    needs: tuple[str, ...]

    def missing(self) -> str | None:
        """What this machine lacks for it."""
        return next((path for path in self.needs if not Path(path).exists()), None)


def build(base: Base, host: str, reference: str) -> None:
    """Make the image on that engine; raises LabError."""
    words = [docker(), "-H", host, "import", "--change", f"ENV PATH={PATH}", "-", reference]
    with tempfile.TemporaryFile() as file:
        with tarfile.open(fileobj=file, mode="w", dereference=True) as tar:
            _fill(tar, base)
        file.seek(0)
        done = subprocess.run(words, stdin=file, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise LabError(f"docker import: {done.stderr}")


def docker() -> str:
    """The client that came with the engine: newer ones build with a plugin that may not be there."""
    found = "/usr/bin/docker" if Path("/usr/bin/docker").exists() else shutil.which("docker")
    if found is None:
        raise LabError("there is no docker client (package docker.io)")
    return found


def _fill(tar: tarfile.TarFile, base: Base) -> None:
    tar.add("/bin/busybox", "bin/busybox")
    applets = subprocess.run(["/bin/busybox", "--list"], capture_output=True, text=True, timeout=20, check=True).stdout
    for name in set(applets.split()) - {"busybox"}:
        _link(tar, f"bin/{name}", "/bin/busybox")
    _link(tar, "usr/bin/env", "/bin/busybox")
    for name, mode in (("tmp", 0o1777), ("root", 0o700), ("etc", 0o755)):
        folder = tarfile.TarInfo(name)
        folder.type, folder.mode = tarfile.DIRTYPE, mode
        tar.addfile(folder)
    passwd = b"root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/tmp:/bin/sh\n"
    for file, data in (("etc/passwd", passwd), ("etc/group", b"root:x:0:\napp:x:1000:\n")):
        entry = tarfile.TarInfo(file)
        entry.size, entry.mode = len(data), 0o644
        tar.addfile(entry, io.BytesIO(data))
    for path in sorted(set(base.files())):
        tar.add(path, path.as_posix().lstrip("/"), recursive=False)
    for link, target in base.links.items():
        _link(tar, link, target)


def _link(tar: tarfile.TarFile, name: str, target: str) -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = tarfile.SYMTYPE, target
    tar.addfile(entry)


def _with_libraries(*programs: Path) -> Iterator[Path]:
    for program in programs:
        yield program
        said = subprocess.run(["ldd", str(program)], capture_output=True, text=True, timeout=30, check=False).stdout
        for found in LIBRARY.findall(said):
            yield Path(found)


def _below(folder: str) -> Iterator[Path]:
    for above, _, names in os.walk(folder):
        for name in names:
            path = Path(above, name)
            if path.is_file() and not SKIPPED.search(f"{path.parent}/"):
                yield path


def _node() -> Iterator[Path]:
    yield from _with_libraries(Path("/usr/bin/node"))
    yield from _below("/usr/lib/node_modules/npm")


def _python() -> Iterator[Path]:
    modules = [path for path in _below("/usr/lib/python3.11") if path.suffix == ".so"]
    yield from _with_libraries(Path("/usr/bin/python3.11"), *modules)
    yield from _below("/usr/lib/python3.11")
    yield from _below("/usr/share/python-wheels")


def _go() -> Iterator[Path]:
    for part in ("bin", "pkg", "src", "lib"):
        yield from _below(f"/usr/local/go/{part}")
    yield from (Path("/usr/local/go/go.env"), Path("/usr/local/go/VERSION"))


NODE = Base(
    "node",
    _node,
    {"usr/bin/npm": "../lib/node_modules/npm/bin/npm-cli.js"},
    ("/bin/busybox", "/usr/bin/node", "/usr/lib/node_modules/npm/bin/npm-cli.js"),
)
PYTHON = Base(
    "python",
    _python,
    {"usr/bin/python": "python3.11", "usr/bin/python3": "python3.11"},
    ("/bin/busybox", "/usr/bin/python3.11", "/usr/lib/python3.11/ensurepip", "/usr/share/python-wheels"),
)
GO = Base("go", _go, {}, ("/bin/busybox", "/usr/local/go/bin/go"))
EMPTY = Base("empty", tuple, {}, ("/bin/busybox",))
