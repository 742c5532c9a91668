"""A hash chain of lines, each sealed with a key: the arithmetic of the audit trail, without files."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Any

GENESIS = "0" * 64
"""What the first record has as the hash of the one before it."""


def chained(key: bytes, record: dict[str, Any], count: int, prev: str) -> tuple[bytes, str]:
    """The line of the `count`-th record, which follows the one with hash `prev`, and its own hash."""
    body = canonical({"n": count, **record, "prev": prev})
    digest = hashlib.sha256(body).hexdigest()
    return body[:-1] + f',"hash":"{digest}","mac":"{keyed(key, digest.encode())}"}}\n'.encode(), digest


def opened(key: bytes, line: bytes) -> tuple[dict[str, Any], str] | None:
    """The record of a line and its hash; None for a line that was changed, or sealed with another key."""
    start = line.rfind(b',"hash":"')
    body = line[:start] + b"}"
    digest = hashlib.sha256(body).hexdigest()
    if start < 0 or line[start:] != f',"hash":"{digest}","mac":"{keyed(key, digest.encode())}"}}'.encode():
        return None
    record: dict[str, Any] = json.loads(body)
    return record, digest


def checked(key: bytes, line: bytes, count: int, prev: str) -> tuple[str | None, str]:
    """What is wrong with a line (None: nothing) and its hash."""
    found = opened(key, line)
    if found is None:
        return NOT_OURS, ""
    record, digest = found
    if record["n"] != count:
        return misplaced(record["n"], count), ""
    if record["prev"] != prev:
        return unlinked(count), ""
    return None, digest


NOT_OURS = "the record was changed, or sealed with another key"


def misplaced(found: int, wanted: int) -> str:
    """The problem of a record with another number than the one that belongs there."""
    return f"record {found} stands where record {wanted} belongs"


def unlinked(number: int) -> str:
    """The problem of a record that does not name the hash of the one before it."""
    return f"record {number} does not follow the record before it"


def canonical(doc: Mapping[str, Any]) -> bytes:
    """The one way to write a document."""
    return json.dumps(doc, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


def keyed(key: bytes, data: bytes) -> str:
    """The HMAC-SHA256 of the data, in hexadecimal digits."""
    return hmac.new(key, data, hashlib.sha256).hexdigest()
