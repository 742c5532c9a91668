"""The end of a trail in its files: where the next record goes. Blocking."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass

from codeb_mcp.model.errors import RegistryDamaged

SEAL_IT = "`codeb audit seal` records the damage and goes on"
_CHUNK = 64 * 1024


@dataclass(frozen=True, slots=True)
class Tail:
    """The end of the trail: newest file, its size and inode, count and hash of the newest record."""

    path: str
    size: int
    inode: int
    count: int
    last: str


def tail_of(path: str) -> Tail | None:
    """The end of one month; None when it holds no record. Raises `RegistryDamaged`."""
    size, line = last_line(path)
    if line is None:
        return None
    try:
        record = json.loads(line)
        return Tail(path, size, os.stat(path).st_ino, int(record["n"]), str(record["hash"]))
    except (ValueError, KeyError, TypeError) as error:
        raise RegistryDamaged(
            "the last record of the audit trail cannot be read",
            hint=f"Find out who changed it; then {SEAL_IT}.",
            path=path,
        ) from error


def last_line(path: str) -> tuple[int, bytes | None]:
    """The size of the file and its last line, after removing a torn end."""
    with open(path, "r+b") as file:
        size = file.seek(0, os.SEEK_END)
        data, start = b"", size
        while start and data[:-1].count(b"\n") < 2:
            step = min(start, _CHUNK)
            start -= step
            file.seek(start)
            data = file.read(step) + data
        end = data.rfind(b"\n") + 1
        if end < len(data):
            size = start + end
            file.truncate(size)
    lines = data[:end].split(b"\n")
    return size, lines[-2] if end else None


def unchanged(tail: Tail) -> bool:
    try:
        found = os.stat(tail.path)
    except FileNotFoundError:
        return False
    return (found.st_size, found.st_ino) == (tail.size, tail.inode)
