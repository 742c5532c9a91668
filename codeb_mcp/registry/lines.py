"""One JSON object per line, sealed with a CRC, so that a torn end can be told from damage."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any

_MARK = b',"crc":"'


def seal(entry: Mapping[str, Any]) -> bytes:
    """The line of an entry that is not empty; raises ValueError for what JSON cannot say."""
    body = json.dumps(entry, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    return body[:-1] + b'%s%08x"}\n' % (_MARK, zlib.crc32(body))


def unseal(line: bytes) -> dict[str, Any]:
    """The entry of a line without its end; raises ValueError when it is not what was written."""
    start = line.rfind(_MARK)
    body = line[:start] + b"}"
    if start < 0 or line[start:] != b'%s%08x"}' % (_MARK, zlib.crc32(body)):
        raise ValueError("does not match its checksum")
    entry = json.loads(body)
    if not isinstance(entry, dict):
        raise ValueError("is not a JSON object")
    return entry


def unseal_all(data: bytes) -> tuple[list[dict[str, Any]], int, str | None]:
    """`(entries, good, problem)`: the entries up to byte `good`, and what is wrong there if it is not a torn end.

    A torn end is what a crash leaves of the last append: a line without its end, or one with holes of NUL bytes where
    a block was never written. Only such an append was never acknowledged.
    """
    entries: list[dict[str, Any]] = []
    good = 0
    while good < len(data):
        end = data.find(b"\n", good)
        if end < 0:
            break
        line = data[good:end]
        try:
            entries.append(unseal(line))
        except ValueError as error:
            torn = end + 1 == len(data) and b"\0" in line
            return entries, good, None if torn else f"line {len(entries) + 1} {error}"
        good = end + 1
    return entries, good, None
