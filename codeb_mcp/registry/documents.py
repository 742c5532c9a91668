"""How a document looks in its file: checked JSON, with the store's own `lineage` and `serial` at its end."""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from codeb_mcp.model.errors import InvalidRequest
from codeb_mcp.registry.store import Change, Document

MAX_BYTES = 32 * 1024 * 1024
MAX_DEPTH = 64
ADOPTED_VERSION = 1
"""The version of a document that somebody else wrote: it has neither lineage nor serial until our first write."""

_PRETTY = {"ssot", "slots", "domains", "teams", "api-keys"}
_PRETTY_BYTES = 256 * 1024  # indenting takes ten times as long, and nobody reads more than this by eye
_RESERVED = {"leases", "operations", "audit"}
_KEY = re.compile(r"[a-z0-9-]+(/[a-z0-9_-][a-z0-9._-]*)*")
_OWN = ("lineage", "serial")


@dataclass(frozen=True, slots=True)
class Prepared:
    """A change whose document is known to be readable again. `doc` is what a reader will get, `body` its bytes."""

    key: str
    expected: int
    doc: Document | None
    body: bytes

    def content(self, lineage: str, serial: int) -> bytes:
        """The bytes of the file."""
        own = json.dumps({"lineage": lineage, "serial": serial}, indent=2 if b"\n" in self.body else None)
        if self.body == b"{}":
            return own.encode() + b"\n"
        if b"\n" in self.body:
            return self.body.removesuffix(b"\n}") + b",\n" + own.removeprefix("{\n").encode() + b"\n"
        return self.body.removesuffix(b"}") + b"," + own.removeprefix("{").encode() + b"\n"


def prepare(change: Change) -> Prepared:
    """Check key and document and render it; raises `InvalidRequest`.

    Keys named `lineage` and `serial` belong to the store and are replaced by its own.
    """
    key = check_key(change.key)
    if change.doc is None:
        return Prepared(key, change.expected, None, b"")
    content = {name: value for name, value in change.doc.items() if name not in _OWN}
    try:
        body = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
        doc = parse(body)
        if key.split("/", 1)[0] in _PRETTY and len(body) <= _PRETTY_BYTES:
            body = json.dumps(content, ensure_ascii=False, allow_nan=False, indent=2).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"the document {key} cannot be stored: {error}", key=key) from error
    return Prepared(key, change.expected, doc, body)


@functools.lru_cache(8192)
def check_key(key: str) -> str:
    """The key itself; raises `InvalidRequest` unless it names a document inside the registry."""
    last = key.rsplit("/", 1)[-1]
    if (
        not _KEY.fullmatch(key)
        or ".." in key
        or len(last) > 200
        or len(key) > 400
        or key.split("/", 1)[0] in _RESERVED
        or any(part.endswith((".json", ".gone")) for part in key.split("/"))
    ):
        raise InvalidRequest(
            f"{key[:80]!r} is no document key",
            hint="Use lower-case words with slashes between them, like slots/worb-production.",
            fields=[{"field": "key", "problem": "does not name a document"}],
        )
    return key


def parse(data: bytes) -> dict[str, Any]:
    """The JSON object in `data`; raises ValueError that says what is wrong, for a reader of that text.

    Refused: more than 32 MiB, nesting deeper than 64, a key twice in one object, numbers that are none.
    """
    if len(data) > MAX_BYTES:
        raise ValueError(f"is larger than {MAX_BYTES} bytes")
    try:
        doc = json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite)
    except RecursionError:
        raise ValueError(f"is nested deeper than {MAX_DEPTH}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 at byte {error.start}") from None
    if not isinstance(doc, dict):
        raise ValueError("is not a JSON object")
    _check_depth(doc)
    return doc


def split(doc: dict[str, Any]) -> tuple[dict[str, Any], str | None, int]:
    """`(content, lineage, serial)` of a parsed file; lineage None and version 1 for an adopted one.

    Raises ValueError when only one of the two is there or the serial is no positive whole number.
    """
    lineage, serial = doc.pop("lineage", None), doc.pop("serial", None)
    if lineage is None and serial is None:
        return doc, None, ADOPTED_VERSION
    if not isinstance(lineage, str) or not isinstance(serial, int) or isinstance(serial, bool) or serial < 1:
        raise ValueError("carries a lineage and serial that do not make sense together")
    return doc, lineage, serial


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"has the key {twice[:80]!r} twice in one object")
    return result


def _no_constant(text: str) -> float:
    raise ValueError(f"contains {text}, which is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("contains a number that is too large")
    return value


def _check_depth(doc: Mapping[str, Any]) -> None:
    level: list[Any] = [doc]
    for _ in range(MAX_DEPTH):
        level = [
            value
            for container in level
            for value in (container.values() if isinstance(container, dict) else container)
            if isinstance(value, (dict, list))
        ]
        if not level:
            return
    raise ValueError(f"is nested deeper than {MAX_DEPTH}")
