"""TCP ports for tests: never the same one for two test processes at a time."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

from tests.lab.daemons import LabError, locked, start_time, state_folder

FIRST, LAST = 10000, 29999
"""Below the range from which the kernel takes ports for outgoing connections (32768 and up)."""


def is_free(port: int) -> bool:
    """Whether nothing is bound to the port on any address right now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", port))
        except OSError:
            return False
    return True


class FreePorts:
    """Hands out ports and keeps them reserved until `release` or until this process ends."""

    def __init__(self, folder: Path | None = None) -> None:
        folder = folder or state_folder()
        self._file = folder / "ports.json"
        self._lock = folder / "ports.lock"
        self._mine: set[int] = set()

    def __call__(self) -> int:
        """One port."""
        return self.take(1)[0]

    def pair(self) -> tuple[int, int]:
        """An even port and the odd one after it."""
        first, second = self.take(2, align=2)
        return first, second

    def take(self, count: int, *, align: int = 1) -> list[int]:
        """That many neighbouring ports, the first one divisible by `align`."""
        with locked(self._lock):
            claims = self._claims()
            start = claims.pop("next", [FIRST])[0]
            for offset in range(LAST - FIRST):
                first = FIRST + (start - FIRST + offset) % (LAST - FIRST - count)
                block = range(first, first + count)
                if first % align == 0 and all(str(port) not in claims and is_free(port) for port in block):
                    claims |= {str(port): [os.getpid(), start_time(os.getpid()) or 0] for port in block}
                    # Going on from the last one leaves ports in TIME_WAIT alone for a while.
                    self._file.write_text(json.dumps({**claims, "next": [first + count]}), encoding="utf-8")
                    self._mine.update(block)
                    return list(block)
        raise LabError(f"no {count} free neighbouring ports between {FIRST} and {LAST}")

    def release(self) -> None:
        """Give back all ports that this object handed out."""
        with locked(self._lock):
            claims = self._claims()
            kept = {port: owner for port, owner in claims.items() if port == "next" or int(port) not in self._mine}
            self._file.write_text(json.dumps(kept), encoding="utf-8")
            self._mine.clear()

    def _claims(self) -> dict[str, list[int]]:
        try:
            claims: dict[str, list[int]] = json.loads(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return {port: owner for port, owner in claims.items() if port == "next" or start_time(owner[0]) == owner[1]}
