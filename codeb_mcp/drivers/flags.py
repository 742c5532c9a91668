"""Which slot is live, as the name of one file per environment, which the proxy looks for at each request.

| file           | the proxy sends | kept by                                                        |
|----------------|-----------------|----------------------------------------------------------------|
| `{key}.green`  | to green        | the proxy's first look; it wins over `.off`                    |
| `{key}.off`    | 503             | the proxy's second look                                        |
| `{key}.blue`   | to blue         | no look of the proxy: it only says that the key is known       |
| `{key}.fence`  |                 | the highest fencing token that ever asked; outlives `forget`   |

A switch is one rename of that file, so at each moment exactly one slot is chosen, and the proxy changes no configuration.

Off to green leaves `.off` where it is, below green: were it taken away, a request that had looked for green just before and
looks for off just after would be sent to blue, which may be empty. With both there, green is live, for the proxy and for
`live`. Only a switch to blue takes `.off` away first, when blue is about to serve anyway.

Order for a new environment: `switch(key, None)` **before** its route goes into the proxy, because a route without any flag
sends to blue. Order at its end: the route goes first, then `forget`.

The proxy runs as another user: the folder is 0755, the files 0644. `.lock` guards a switch and is never replaced.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from codeb_mcp.model.errors import CodebError, DriverRefused, InsufficientStorage, InvalidRequest, LeaseLost, LockHeld
from codeb_mcp.model.names import Slot
from codeb_mcp.model.routes import KEY_PATTERN

LOCK_SECONDS = 5.0
STATES: dict[str, Slot | None] = {"green": Slot.GREEN, "off": None, "blue": Slot.BLUE}  # in the order the proxy looks


class Flags(Protocol):
    """`Traffic` without waiting."""

    def live(self, key: str) -> Slot | None:
        """See `Traffic.live`."""
        ...

    def switch(self, key: str, slot: Slot | None, *, fence: int) -> bool:
        """See `Traffic.switch`."""
        ...

    def forget(self, key: str, *, fence: int) -> None:
        """See `Traffic.forget`."""
        ...

    def keys(self) -> list[str]:
        """See `Traffic.keys`."""
        ...


class LocalTraffic:
    """`Traffic` by flags of this machine. A look or a rename is done within a millisecond, so it is done on the spot."""

    def __init__(self, flags: Flags) -> None:
        self._flags = flags

    async def live(self, key: str) -> Slot | None:
        """See `Traffic.live`."""
        return self._flags.live(key)

    async def switch(self, key: str, slot: Slot | None, *, fence: int) -> bool:
        """See `Traffic.switch`."""
        return self._flags.switch(key, slot, fence=fence)

    async def forget(self, key: str, *, fence: int) -> None:
        """See `Traffic.forget`."""
        self._flags.forget(key, fence=fence)

    async def keys(self) -> list[str]:
        """See `Traffic.keys`."""
        return self._flags.keys()


class FlagTraffic:
    """Flag files in one folder. Implements `Flags`; safe to use from several processes at once.

    Raises LeaseLost for an old fence, LockHeld when another process holds the folder for 5 s, InsufficientStorage for a
    full disk and DriverRefused for any other failure of the file system; a failed switch left one slot live, the old one
    or the new one.
    """

    def __init__(self, folder: Path, *, lock_seconds: float = LOCK_SECONDS) -> None:
        self._folder = folder
        self._lock_seconds = lock_seconds

    def live(self, key: str) -> Slot | None:
        """The slot that serves now; None when the environment is switched off or unknown."""
        _check(key)
        with _problems(f"look up which slot of {key} is live"):
            state = self._state(key)
            if state is None and self._folder.is_dir():
                with self._locked():  # a rename may have run past our looks: look again while nobody renames
                    state = self._state(key)
        return None if state is None else STATES[state]

    def switch(self, key: str, slot: Slot | None, *, fence: int) -> bool:
        """Send traffic there, durable on return; True when it moved or the key was unknown.

        Raises LeaseLost, and changes nothing, when a higher fence has been seen.
        """
        _check(key)
        wanted = "off" if slot is None else slot.value
        with _problems(f"switch {key} to {wanted}"):
            self._prepare()
            with self._locked():
                self._raise_fence(key, fence)
                return self._move(key, wanted)

    def forget(self, key: str, *, fence: int) -> None:
        """Remove the flags of an environment that no longer exists; its fence stays, to keep late writers out."""
        _check(key)
        with _problems(f"forget {key}"):
            if not self._folder.is_dir():
                return
            with self._locked():
                self._raise_fence(key, fence)
                for state in ("blue", "green", "off"):  # off last: nothing may become live on the way
                    self._path(key, state).unlink(missing_ok=True)
                self._sync_folder()

    def keys(self) -> list[str]:
        """All environments that have a flag, sorted."""
        with _problems("list the flags"):
            names = os.listdir(self._folder) if self._folder.is_dir() else []
        parts = [name.rpartition(".") for name in names if not name.startswith(".")]
        return sorted({key for key, _, state in parts if state in STATES})

    def _state(self, key: str) -> str | None:
        return next((state for state in STATES if self._path(key, state).exists()), None)

    def _move(self, key: str, wanted: str) -> bool:
        present = self._state(key)
        covered = present == "green" and self._path(key, "off").exists()
        if present is None or (present, wanted) == ("off", "green"):
            self._replace(self._path(key, wanted), b"")
        elif covered and wanted == "off":
            self._path(key, "green").unlink()
        elif present != wanted:
            if covered:
                self._path(key, "off").unlink()
                self._sync_folder()  # off must not outlive green, not even through a power cut
            os.rename(self._path(key, present), self._path(key, wanted))
        # Also when nothing moved: whatever brought the present state may have been cut off before its fsync.
        self._sync_folder()
        return present != wanted

    def _raise_fence(self, key: str, fence: int) -> None:
        path = self._path(key, "fence")
        seen = _read_fence(path)
        if fence < seen:
            raise LeaseLost(
                f"fencing token {fence} of {key} is older than {seen}",
                hint="Another run has taken over this environment: stop, and look at its operation.",
                key=key,
                fence=fence,
                seen=seen,
            )
        if fence > seen:
            self._write_fence(path, fence)

    def _write_fence(self, path: Path, fence: int) -> None:
        content = f"{fence:019d}\n".encode()
        if not path.exists():
            self._replace(path, content)
            return
        # One write of always the same 20 bytes within one disk sector: it is there whole or not at all, and costs a
        # third of a new file.
        file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.pwrite(file, content, 0)
            os.fdatasync(file)
        finally:
            os.close(file)

    def _replace(self, path: Path, content: bytes) -> None:
        """Have the content under that name, whole or not at all. The name is durable after `_sync_folder`."""
        part = self._folder / f".{path.name}.part"
        file = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            os.fchmod(file, 0o644)  # whatever the umask
            os.write(file, content)
            os.fsync(file)
        finally:
            os.close(file)
        os.rename(part, path)

    def _sync_folder(self, folder_path: Path | None = None) -> None:
        folder = os.open(folder_path or self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _prepare(self) -> None:
        if not self._folder.is_dir():
            self._folder.mkdir(mode=0o755, parents=True, exist_ok=True)
            self._folder.chmod(0o755)
            self._sync_folder(self._folder.parent)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        file = os.open(self._folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            _flock(file, self._lock_seconds)
            yield
        finally:
            os.close(file)

    def _path(self, key: str, state: str) -> Path:
        return self._folder / f"{key}.{state}"


def _flock(file: int, seconds: float) -> None:
    """Others hold the lock for less than a millisecond, unless they are stopped in the middle."""
    end_at = time.monotonic() + seconds
    while True:
        try:
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end_at:
                raise LockHeld(
                    f"another process has held the traffic flags for {seconds:g} s",
                    hint="Look for a stopped codeb process, end it, then repeat the call.",
                ) from None
            time.sleep(0.0005)


def _read_fence(path: Path) -> int:
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return 0
    if not re.fullmatch(rb"[0-9]{19}\n", text):
        raise DriverRefused(
            f"the fence file {path.name} is damaged",
            hint="Look at what it holds; remove it when no run on this environment is under way.",
        )
    return int(text)


def _check(key: str) -> None:
    if not re.fullmatch(KEY_PATTERN, key):
        raise InvalidRequest(f"{key!r:.100} is no environment key", hint="Keys look like shop-production.")


@contextlib.contextmanager
def _problems(wish: str) -> Iterator[None]:
    try:
        yield
    except CodebError:
        raise
    except OSError as error:
        kind = InsufficientStorage if error.errno in (errno.ENOSPC, errno.EDQUOT) else DriverRefused
        raise kind(
            f"cannot {wish}: {os.strerror(error.errno or 0)}",
            hint="Make the flags folder writable for codeb, then repeat the call.",
        ) from error
