"""The short lock around one commit: flock on a file of its own that is never replaced or deleted."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import time
from collections.abc import Iterator

from codeb_mcp.model.errors import DeadlineExceeded


@contextlib.contextmanager
def hold(path: str, *, wait_seconds: float) -> Iterator[None]:
    """Hold the lock inside the block; blocks the thread, so never call it on the event loop.

    Each use opens the file anew, so that it also excludes other threads. Raises `DeadlineExceeded` when the lock does
    not come free in time (its holder may be stopped), and OSError.
    """
    handle = _take(path, time.monotonic() + wait_seconds, wait_seconds)
    try:
        yield
    finally:
        # Unlocked by name: a child that was just being forked may still share the handle for a moment.
        fcntl.flock(handle, fcntl.LOCK_UN)
        os.close(handle)


def _take(path: str, deadline: float, wait_seconds: float) -> int:
    pause = 0.0002
    while True:
        handle = _open(path)
        if try_flock(handle) and _still_named(handle, path):
            return handle
        os.close(handle)
        if time.monotonic() > deadline:
            raise DeadlineExceeded(
                f"the lock {os.path.basename(path)} did not come free within {wait_seconds:g} s",
                hint="Another process holds it; try again, and look for a stopped process if it stays so.",
                path=path,
            )
        # Waiting in the kernel could not be given up at the deadline, so ask again, soon and not in step with others.
        time.sleep(random.uniform(0.5, 1.0) * pause)
        pause = min(pause * 1.5, 0.002)


def _open(path: str) -> int:
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(path, flags)
    except FileNotFoundError:
        handle = os.open(path, flags | os.O_CREAT, 0o600)
        os.fchmod(handle, 0o600)  # whatever the umask: nobody else could open it again
        return handle


def try_flock(handle: int) -> bool:
    """Take the exclusive lock if it is free now."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _still_named(handle: int, path: str) -> bool:
    """Whether the locked file is the one others will lock, should somebody have deleted the file after all."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except FileNotFoundError:
        return False
