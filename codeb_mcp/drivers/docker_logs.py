"""The engine's log stream: frames in, whole lines out. Pure.

A frame is one byte of kind (1 out, 2 err), three of nothing, four of length, then text. The engine cuts lines longer
than 16 KiB into frames of 16 KiB and begins each of them with a time stamp, also in the middle of the line. A shorter
frame without a newline is the last thing a process wrote before it ended.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

HEADER = struct.Struct(">BxxxL")
MAX_LINE = 64 * 1024
CUT = 16 * 1024
MAX_FRAME = 16 * 1024 * 1024

_STAMP = re.compile(rb"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:\d\d) ")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def unix_seconds(moment: datetime) -> str:
    """The aware moment as the engine's `since` takes it, exact to the microsecond.

    Not by way of `timestamp()`: a float has steps of 0.24 microseconds at today's times, so that it may come to lie after
    the very line that it was read from, which would then be left out.
    """
    whole, rest = divmod(moment - _EPOCH, timedelta(seconds=1))
    return f"{whole}.{rest.microseconds:06d}"


class LogLines:
    """Feed it pieces of the stream as they come; it answers the lines that have become whole."""

    def __init__(self, *, framed: bool = True) -> None:
        self._framed = framed
        self._raw = bytearray()
        self._open: dict[int, bytearray] = {}

    def feed(self, piece: bytes) -> Iterator[str]:
        """Lines completed by this piece; raises ValueError when the stream is none of an engine."""
        if not self._framed:
            yield from self._text(1, piece)
            return
        self._raw += piece
        while len(self._raw) >= HEADER.size:
            kind, length = HEADER.unpack_from(self._raw)
            if kind > 3 or length > MAX_FRAME:
                raise ValueError("not a log frame")
            if len(self._raw) < HEADER.size + length:
                return
            text = bytes(self._raw[HEADER.size : HEADER.size + length])
            del self._raw[: HEADER.size + length]
            yield from self._text(kind, text)

    def rest(self) -> Iterator[str]:
        """What was begun and not ended by a newline."""
        for line in self._open.values():
            if line:
                yield _decoded(line)
        self._open.clear()

    def _text(self, kind: int, text: bytes) -> Iterator[str]:
        line = self._open.setdefault(kind, bytearray())
        if self._framed:
            words = _STAMP.sub(b"", text)
            ended = len(words) != CUT and not words.endswith(b"\n")
            text = (words if line else text) + (b"\n" if ended else b"")
        *whole, rest = text.split(b"\n")
        for end in whole:
            line += end[: MAX_LINE - len(line)]
            yield _decoded(line)
            line.clear()
        line += rest[: max(0, MAX_LINE - len(line))]


def _decoded(line: bytearray) -> str:
    return line.decode("utf-8", errors="replace").rstrip("\r")
