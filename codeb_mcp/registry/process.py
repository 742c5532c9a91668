"""Who holds a lease, said so that another process can tell for certain that the holder is gone."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """A process for ever: its number, when it started (clock ticks since boot), which boot, which pid namespace."""

    pid: int
    started: int
    boot: str
    namespace: int

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {"pid": self.pid, "started": self.started, "boot": self.boot, "namespace": self.namespace}

    @classmethod
    def of(cls, value: Any) -> ProcessIdentity | None:
        """The inverse; None when the facts are incomplete, which means that nothing can be said about the holder."""
        match value:
            case {"pid": int(pid), "started": int(started), "boot": str(boot), "namespace": int(namespace)}:
                return cls(pid, started, boot, namespace)
        return None


def boot_id() -> str:
    """The kernel's id of this boot; empty where there is none."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def this_process() -> ProcessIdentity | None:
    """Us; None where the kernel does not tell."""
    try:
        started = _state_and_start(os.getpid())[1]
        return ProcessIdentity(os.getpid(), started, boot_id(), os.stat("/proc/self/ns/pid").st_ino)
    except (OSError, ValueError):
        return None


def certainly_gone(holder: ProcessIdentity | None) -> bool:
    """Whether that process can never act again. False whenever there is any doubt (other boot, host or namespace)."""
    me = this_process()
    if holder is None or me is None or (holder.boot, holder.namespace) != (me.boot, me.namespace) or not me.boot:
        return False
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    try:
        state, started = _state_and_start(holder.pid)
        # A zombie leader with living threads can still act; one that is alone cannot.
        dead = state in "ZX" and len(os.listdir(f"/proc/{holder.pid}/task")) <= 1
    except (OSError, ValueError):
        return False
    return dead or started != holder.started


def _state_and_start(pid: int) -> tuple[str, int]:
    with open(f"/proc/{pid}/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()  # the name before it may contain anything
    return fields[0].decode(), int(fields[19])
