"""The log of an environment's variables: who changed which names when. Valid JSON, each entry chained to the one before it.

`backup-log.json` is written as a whole each time, one entry per line, so that it stays JSON at any moment and can be read by
people. An entry's hash and seal are those of `chain.py`; it names the file of its version and that file's SHA-256, never a
value. An entry also says whose environment it is about, so that a log cannot stand in for another.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from codeb_mcp.model.errors import RegistryDamaged
from codeb_mcp.registry.chain import GENESIS, chained, checked

LOG = "backup-log.json"
_STAMP = "%Y%m%dT%H%M%S.%fZ"
_HEAD = b'{"format":1,"entries":[\n'
_TAIL = b"\n]}\n"


@dataclass(frozen=True, slots=True)
class EnvAuthor:
    """Who changes something. `key_id` is the id of an API key, never the key."""

    name: str
    key_id: str
    team: str


@dataclass(frozen=True, slots=True)
class EnvVersion:
    """One version: `version` is its id and the name of its file, `sha256` and `size` (bytes) are that file's. `change` is the
    number of the first version that came with the same commit."""

    number: int
    change: int
    version: str
    at: str
    operation: str
    actor: str
    key_id: str
    team: str
    added: tuple[str, ...]
    changed: tuple[str, ...]
    removed: tuple[str, ...]
    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class EnvLog:
    """The log as it is: entries, oldest first, their sealed lines, and the hash of the last one."""

    project: str
    environment: str
    entries: tuple[EnvVersion, ...] = ()
    lines: tuple[bytes, ...] = ()
    last: str = GENESIS

    def with_entry(self, key: bytes, entry: Mapping[str, Any]) -> EnvLog:
        """The log with one more entry."""
        number = len(self.entries) + 1
        whole = {"project": self.project, "environment": self.environment, **entry}
        line, last = chained(key, whole, number, self.last)
        version = _version({"n": number, **whole})
        return EnvLog(self.project, self.environment, (*self.entries, version), (*self.lines, line.rstrip()), last)

    def render(self) -> bytes:
        """The file."""
        return _HEAD + b",\n".join(self.lines) + _TAIL


def read_log(key: bytes, data: bytes, project: str, environment: str, path: str) -> EnvLog:
    """The log in a file's bytes; raises RegistryDamaged with the line where it stops being what was written."""
    if not data.startswith(_HEAD) or not data.endswith(_TAIL):
        raise damaged(path, "it was not written by this program, or was cut short")
    entries: list[EnvVersion] = []
    lines = data[len(_HEAD) : -len(_TAIL)].split(b",\n")
    last = GENESIS
    for number, line in enumerate(lines, 1):
        problem, last = _problem(key, line, number, last)
        if problem:
            raise damaged(path, f"line {number + 1}: {problem}")
        doc = json.loads(line)
        if (doc.get("project"), doc.get("environment")) != (project, environment):
            raise damaged(path, f"line {number + 1}: it is the log of another environment")
        entries.append(_version(doc))
        if number > 1 and entries[-1].version <= entries[-2].version:
            raise damaged(path, f"line {number + 1}: versions are not in order")
    return EnvLog(project, environment, tuple(entries), tuple(lines), last)


def _problem(key: bytes, line: bytes, number: int, last: str) -> tuple[str | None, str]:
    try:
        return checked(key, line, number, last)
    except (ValueError, KeyError, TypeError):
        return "it is no entry", ""


def _version(doc: Mapping[str, Any]) -> EnvVersion:
    return EnvVersion(
        number=doc["n"],
        change=doc["change"],
        version=doc["version"],
        at=doc["at"],
        operation=doc["operation"],
        actor=doc["by"],
        key_id=doc["keyId"],
        team=doc["team"],
        added=tuple(doc["added"]),
        changed=tuple(doc["changed"]),
        removed=tuple(doc["removed"]),
        sha256=doc["sha256"],
        size=doc["size"],
    )


def damaged(path: str, what: str) -> RegistryDamaged:
    """The refusal to go on with a history that cannot be trusted."""
    return RegistryDamaged(
        f"the env history {path} cannot be trusted: {what}",
        hint="Nothing was changed. docs/ENV.md says how to look at it, and how to restore it from the Backup server.",
        path=path,
    )


def next_version(now: datetime, after: str | None) -> str:
    """An id that sorts by time and comes after every earlier one, however many fall into the same moment."""
    stamp = now.astimezone(UTC)
    if after is not None:
        stamp = max(stamp, datetime.strptime(after, _STAMP).replace(tzinfo=UTC) + timedelta(microseconds=1))
    return stamp.strftime(_STAMP)


def is_version(text: str) -> bool:
    """Whether the text is an id of a version."""
    try:
        return datetime.strptime(text, _STAMP).replace(tzinfo=UTC).strftime(_STAMP) == text
    except ValueError:
        return False
