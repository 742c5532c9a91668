"""A walk along a whole trail: everything that is wrong with it, and what of that its owner has sealed.

A seal is a record that also holds, under a name which no other record has, what was found wrong before it and a digest of
every byte before it. Where the digest still holds, nothing has changed since: what was wrong is known, and a new segment of
the chain begins. Where it does not, or where the seal itself was changed, all of it is open again. Files are the caller's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from codeb_mcp.registry.chain import GENESIS, NOT_OURS, misplaced, opened, unlinked

SEAL = "seal"
FLAWS_KEPT = 50
_RUNS = ("changed", "displaced")
"""Kinds that are told once for all lines in a row."""


@dataclass(frozen=True, slots=True)
class Flaw:
    """One thing that is wrong. `kind`: changed, missing, displaced, unlinked, head, key, seal, or more (of all kinds).
    `file` is a name without a path, lines count from 1; records are those that are missing."""

    kind: str
    problem: str
    file: str | None = None
    line: int | None = None
    last_line: int | None = None
    first_record: int | None = None
    last_record: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        found = {
            "kind": self.kind,
            "problem": self.problem,
            "file": self.file,
            "line": self.line,
            "lastLine": self.last_line,
            "firstRecord": self.first_record,
            "lastRecord": self.last_record,
        }
        return {name: value for name, value in found.items() if value is not None}

    @classmethod
    def of(cls, doc: Mapping[str, Any]) -> Flaw:
        """The inverse of `as_dict`."""
        return cls(
            doc["kind"],
            doc["problem"],
            doc.get("file"),
            doc.get("line"),
            doc.get("lastLine"),
            doc.get("firstRecord"),
            doc.get("lastRecord"),
        )


@dataclass(frozen=True, slots=True)
class Seal:
    """Damage that the owner of the machine has acknowledged: in which record, when, by whom, and what was wrong."""

    record: int
    at: str
    by: str | None
    flaws: tuple[Flaw, ...]


class Walk:
    """Hand it every file in order, then ask. `flaws` are those that no seal holds, `seals` the seals that hold, `count` and
    `last` number and hash of the newest sound record, `good` the number of records before the first flaw."""

    def __init__(self, key: bytes, head_count: int | None = None) -> None:
        self.flaws: list[Flaw] = []
        self.seals: list[Seal] = []
        self.count, self.last, self.good = 0, GENESIS, 0
        self.at_head: str | None = None
        self._key = key
        self._head_count = head_count
        self._unread = 0
        self._digest = hashlib.sha256()
        self._file, self._line, self._rest = "", 0, b""

    @property
    def reached(self) -> int:
        """How many records there are, counting lines that cannot be read."""
        return self.count + self._unread

    def digest(self) -> str:
        """Of every byte so far, and of how it is divided into files and lines; a torn end of the last file left out."""
        return self._digest.hexdigest()

    def file(self, name: str, data: bytes) -> None:
        """The next file: its name and all that it holds. What follows its last line end is no line: a crash may leave it."""
        if self._rest:
            self._add(b"T", self._rest)
        self._add(b"F", name.encode())
        *lines, self._rest = data.split(b"\n")
        self._file = name
        for number, line in enumerate(lines, 1):
            self._line = number
            self._read(line)
            self._add(b"L", line)

    def flaw(self, kind: str, problem: str, **where: Any) -> None:
        """Note that something is wrong."""
        if not self.flaws:
            self.good = self.count
        last = self.flaws[-1] if self.flaws else None
        follows = last is not None and (last.kind, last.file) == (kind, where.get("file"))
        if last is not None and follows and kind in _RUNS and (last.last_line or last.line) == where["line"] - 1:
            self.flaws[-1] = replace(last, last_line=where["line"])
        else:
            self.flaws.append(Flaw(kind, problem, **where))

    def _add(self, kind: bytes, data: bytes) -> None:
        self._digest.update(kind + len(data).to_bytes(8, "big") + data)

    def _here(self, kind: str, problem: str, **more: Any) -> None:
        self.flaw(kind, problem, file=self._file, line=self._line, **more)

    def _read(self, line: bytes) -> None:
        found = opened(self._key, line)
        if found is None:
            self._here("changed", NOT_OURS)
            self._unread += 1
            return
        record, digest = found
        if SEAL in record:
            self._sealed(record)
        elif record["n"] <= self.count:
            self._here("displaced", misplaced(record["n"], self.count + 1))
            return
        else:
            self._follows(record)
        self.count, self.last, self._unread = record["n"], digest, 0
        if self.count == self._head_count:
            self.at_head = digest

    def _follows(self, record: Mapping[str, Any]) -> None:
        number, wanted = record["n"], self.count + 1
        if number > self.count + 1 + self._unread:
            span = {"first_record": wanted, "last_record": number - 1}
            self._here("missing", misplaced(number, wanted), **span)
        elif number == wanted and record["prev"] != self.last:
            self._here("unlinked", unlinked(number))

    def _sealed(self, record: Mapping[str, Any]) -> None:
        """A seal that holds answers for all that was wrong before it; else what has changed since comes first."""
        told = record[SEAL]
        seal = Seal(record["n"], record["at"], record["actor"], tuple(Flaw.of(one) for one in told["flaws"]))
        if told["digest"] == self.digest():
            self.seals.append(seal)
            self.flaws = []
            return
        fresh = [one for one in self.flaws if one not in seal.flaws]
        first = fresh[0] if fresh else Flaw("seal", "", self._file, self._line)
        problem = f"what record {seal.record} sealed was changed since"
        self.flaws = [replace(first, kind="seal", problem=problem), *self.flaws]
        self.good = min(self.good, self.count)


def told_flaws(flaws: Sequence[Flaw]) -> list[dict[str, Any]]:
    """What a seal keeps of them: the first ones, and how many more there are."""
    kept = [one.as_dict() for one in flaws[:FLAWS_KEPT]]
    more = len(flaws) - len(kept)
    return [*kept, Flaw("more", f"{more} more").as_dict()] if more > 0 else kept
