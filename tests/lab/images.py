"""Images of the sample application, made without the internet.

The base image is a copy of this machine's Python with the shared libraries it needs (about 20 megabytes). A version is
that base with other environment variables, so making one takes a moment. No pytest here: the demo uses it.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.lab.daemons import LabError, cache_folder

if TYPE_CHECKING:
    import aiodocker

APP = Path(__file__).with_name("sample_app.py")
REPOSITORY = "codeb-lab/sample"
LABEL = "codeb.lab"
CONTAINER_PORT = 8080
STEP_SECONDS = 120.0
ASK = """
import asyncio, json, os, sys, sysconfig
program = os.path.realpath(os.path.join(sys.base_prefix, "bin", "python%d.%d" % sys.version_info[:2]))
library = {"installed_base": sys.base_prefix, "installed_platbase": sys.base_exec_prefix}
stdlib = [os.path.realpath(sysconfig.get_path(name, vars=library)) for name in ("stdlib", "platstdlib")]
print(json.dumps([program, sys.version, sys.implementation.cache_tag, *stdlib]))
"""
SKIPPED_FOLDERS = re.compile(
    r"^(tests?|idlelib|ensurepip|tkinter|turtledemo|lib2to3|distutils|(site|dist)-packages|pydoc_data|sqlite3|dbm|curses"
    r"|unittest|wsgiref|xmlrpc|venv|config-.*)$"
)
SKIPPED_MODULES = re.compile(r"^(_test|_tkinter|_sqlite|_curses|_dbm|_gdbm|_ssl|_hashlib|readline|nis|ossaudiodev|xx)")
LIBRARY = re.compile(r"^\s+(?:\S+ => )?(/\S+) \(0x[0-9a-f]+\)$", re.MULTILINE)


async def build(host: str, reference: str, version: str, *, labels: Mapping[str, str] | None = None, **env: str) -> str:
    """Make an image `reference` (repository:tag) of the sample application that answers with `version`.

    `env` sets its knobs (see sample_app.py) as the image's own environment; answers the image id. Raises LabError.
    """
    async with _client(host) as docker:
        base = await _base(docker)
        return await _derive(docker, base, reference, {"APP_VERSION": version, **env}, labels or {})


async def push(host: str, reference: str, *, auth: tuple[str, str] | None = None) -> str:
    """Push `reference` to the registry that it names; answers the digest. Raises LabError."""
    repository, _, tag = reference.rpartition(":")
    login = {"username": auth[0], "password": auth[1]} if auth else None
    digest = ""
    async with _client(host) as docker:
        async for entry in docker.images.push(repository, tag=tag, auth=login, stream=True):
            _no_error(entry, f"pushing {reference}")
            digest = entry.get("aux", {}).get("Digest", digest)
    return digest


async def remove(host: str, reference: str) -> None:
    """Take the name (and the image, if nothing else names it) from the engine; not there is fine."""
    async with _client(host) as docker:
        with contextlib.suppress(_docker_error()):
            await docker.images.delete(reference, force=True)


@contextlib.asynccontextmanager
async def _client(host: str) -> AsyncIterator[aiodocker.Docker]:
    import aiodocker
    import aiohttp

    async with aiodocker.Docker(url=host, timeout=aiohttp.ClientTimeout(total=STEP_SECONDS)) as docker:
        try:
            yield docker
        except (aiodocker.DockerError, aiohttp.ClientError, TimeoutError) as error:
            raise LabError(f"the engine at {host}: {error}") from error


def _docker_error() -> type[Exception]:
    import aiodocker

    return aiodocker.DockerError


async def _base(docker: aiodocker.Docker) -> str:
    """The base image with the application in it; its tag changes with the application and the Python."""
    archive = base_archive()
    tag = f"{REPOSITORY}:base-{archive.stem.rpartition('-')[2]}"
    with contextlib.suppress(_docker_error()):
        await docker.images.inspect(tag)
        return tag
    await _import(docker, archive, tag)
    return tag


async def _import(docker: aiodocker.Docker, archive: Path, tag: str) -> None:
    # aiodocker has no call for an import; the engine wants all changes in one text.
    command = json.dumps([_python().program, "-I", "/app.py"])
    changes = f"USER 1000\nEXPOSE {CONTAINER_PORT}\nCMD {command}\nLABEL {LABEL}=1"
    repository, _, version = tag.rpartition(":")
    with archive.open("rb") as file:
        params = {"fromSrc": "-", "repo": repository, "tag": version, "changes": changes}
        headers = {"Content-Type": "application/x-tar"}
        async with docker._query("images/create", method="POST", data=file, headers=headers, params=params) as answer:
            async for line in answer.content:
                _no_error(json.loads(line), "importing the base image")


async def _derive(
    docker: aiodocker.Docker, base: str, reference: str, env: Mapping[str, str], labels: Mapping[str, str]
) -> str:
    """The base with other variables and labels: no build, only a container that is committed and never started."""
    repository, _, tag = reference.rpartition(":")
    lines = [f"ENV {name}={_quoted(value)}" for name, value in env.items()]
    lines += [f"LABEL {_quoted(name)}={_quoted(value)}" for name, value in labels.items()]
    container = await docker.containers.create({"Image": base})
    try:
        made = await container.commit(repository=repository, tag=tag, changes="\n".join(lines))
    finally:
        await container.delete(force=True)
    return str(made["Id"])


def _quoted(value: str) -> str:
    # The engine expands variables in these lines.
    return json.dumps(value, ensure_ascii=False).replace("$", "\\$")


def _no_error(entry: Mapping[str, Any], doing: str) -> None:
    # A failed build, import or push answers 200 and says so in the stream only.
    if "error" in entry:
        raise LabError(f"{doing}: {entry['error']}")


def base_archive() -> Path:
    """The tar of the base image, made once per Python and application and kept in the cache folder."""
    key = hashlib.sha256(f"{_python()}{Path(__file__).read_text('utf-8')}".encode() + APP.read_bytes())
    archive = cache_folder() / f"base-{key.hexdigest()[:12]}.tar"
    with (archive.parent / "base.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not archive.exists():
            for older in archive.parent.glob("base-*.tar*"):
                older.unlink()
            part = archive.with_suffix(".tar.part")
            with tarfile.open(part, "w", dereference=True) as tar:
                _fill(tar)
            part.rename(archive)
    return archive


@dataclass(frozen=True)
class _Python:
    program: str
    version: str
    cache_tag: str
    libraries: tuple[str, ...]


@functools.cache
def _python() -> _Python:
    """The system's Python when there is one (it is stripped, so its image is half as large), else the running one."""
    for candidate in ("/usr/bin/python3", sys.executable):
        ask = [candidate, "-I", "-c", ASK]
        try:
            found = json.loads(subprocess.run(ask, capture_output=True, timeout=30, check=True).stdout)
        except (OSError, subprocess.SubprocessError, ValueError):
            continue
        return _Python(found[0], found[1], found[2], tuple(sorted(set(found[3:]))))
    raise LabError("no Python found that could be put into an image")


def _fill(tar: tarfile.TarFile) -> None:
    for path in sorted({*_stdlib(), *_libraries()}):
        tar.add(path, path.as_posix().lstrip("/"), recursive=False, filter=_readable)
    tar.add(APP, "app.py", filter=_readable)
    passwd = b"root:x:0:0::/:/bin/false\napp:x:1000:1000::/tmp:/bin/false\n"
    for name, data, mode in (("etc/passwd", passwd, 0o644), ("etc/group", b"root:x:0:\napp:x:1000:\n", 0o644)):
        entry = tarfile.TarInfo(name)
        entry.size, entry.mode = len(data), mode
        tar.addfile(entry, io.BytesIO(data))
    folder = tarfile.TarInfo("tmp")
    folder.type, folder.mode = tarfile.DIRTYPE, 0o1777
    tar.addfile(folder)


def _readable(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    entry.mode |= 0o755 if entry.mode & 0o100 else 0o644
    return entry


def _stdlib() -> Iterator[Path]:
    """The standard library without what a web server never imports; compiled files too, for a quick start."""
    tag = _python().cache_tag
    for root in map(Path, _python().libraries):
        for path in root.rglob("*"):
            skipped = any(SKIPPED_FOLDERS.match(part) for part in path.relative_to(root).parts)
            compiled = path.name.endswith(f".{tag}.pyc")
            extension = path.suffix == ".so" and not SKIPPED_MODULES.match(path.name)
            if not skipped and (path.suffix == ".py" or compiled or extension):
                yield path


def _libraries() -> Iterator[Path]:
    """The interpreter and every shared library that it and the extension modules load, where they look for them."""
    binaries = [Path(_python().program), *(path for path in _stdlib() if path.suffix == ".so")]
    yield binaries[0]
    for start in range(0, len(binaries), 50):
        argv = ["ldd", *map(str, binaries[start : start + 50])]
        listing = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False).stdout
        for found in LIBRARY.findall(listing):
            yield Path(found)
