"""Who may do what: roles, scopes, the shape of keys. Default deny.

Key format: `codeb_{team}_{role}_{30 base62}{6 base62 of CRC32}`. The text in a key is only a label; rights come from the
record that its hash leads to.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from fnmatch import fnmatchcase
from ipaddress import ip_address, ip_network
from typing import Any

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

from codeb_mcp.model.preview import parent_of

BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
RANDOM_LENGTH, CHECK_LENGTH = 30, 6


class Role(StrEnum):
    """Levels from 1 to 4 (infrastructure guide §10); each includes the ones below."""

    VIEWER = "viewer"
    MEMBER = "member"
    ADMIN = "admin"
    OWNER = "owner"

    @property
    def level(self) -> int:
        """1 for viewer … 4 for owner."""
        return _LEVELS[self]

    def covers(self, other: Role) -> bool:
        """Whether this role may do what `other` may."""
        return self.level >= other.level


_LEVELS = {role: number for number, role in enumerate(Role, 1)}


class Reach(StrEnum):
    """What an operation touches, and so whose it must be."""

    ANYONE = "anyone"
    TEAM = "team"
    PROJECT = "project"
    PLATFORM = "platform"


@dataclass(frozen=True, slots=True)
class Principal:
    """The caller, as its key's record says. `platform`: its team runs this installation."""

    key_id: str
    name: str
    team: str
    role: Role
    scopes: tuple[str, ...] = ()
    platform: bool = False
    via: str = ""
    source: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For journals and audit records."""
        return {"keyId": self.key_id, "name": self.name, "team": self.team, "role": self.role.value, "via": self.via}


SCOPE_KINDS = ("project", "environment", "tool", "source")


def scope_problem(scope: str) -> str | None:
    """Why a scope text is not valid (`project:shop`, `environment:staging`, `tool:slot_*`, `source:192.0.2.0/24`)."""
    kind, _, value = scope.partition(":")
    if kind not in SCOPE_KINDS or not value or len(scope) > 100:
        return f"must be one of {', '.join(SCOPE_KINDS)} followed by ':' and a value"
    if kind == "source":
        try:
            ip_network(value, strict=False)
        except ValueError:
            return "must hold an address range like 192.0.2.0/24"
    return None


def in_scope(scopes: tuple[str, ...], kind: str, value: str | None) -> bool:
    """Whether the scopes of one kind allow the value; a key without scopes of that kind is not restricted in it. Who may use
    a project may use its previews."""
    wanted = [scope.partition(":")[2] for scope in scopes if scope.startswith(kind + ":")]
    if not wanted:
        return True
    if value is None:
        return False
    if kind == "source":
        return any(_is_within(value, text) for text in wanted)
    if kind == "project" and (parent := parent_of(value)) is not None:
        return any(fnmatchcase(name, text) for text in wanted for name in (value, parent))
    return any(fnmatchcase(value, text) for text in wanted)


def _is_within(source: str, span: str) -> bool:
    """Whether the address lies in the range; a text that is no address lies in none. A dual-stack listener tells IPv4
    callers as `::ffff:192.0.2.1`, and they are the same callers."""
    try:
        address = ip_address(source)
    except ValueError:
        return False
    address = getattr(address, "ipv4_mapped", None) or address
    return address in ip_network(span, strict=False)


class KeyRecord(BaseModel):
    """One key in `api-keys.json` (documented keys; unknown ones survive)."""

    model_config = ConfigDict(
        frozen=True, extra="allow", alias_generator=to_camel, populate_by_name=True, defer_build=True
    )

    id: str
    key_hash: str
    name: str
    team_id: str
    role: Role
    created_at: datetime
    created_by: str
    scopes: tuple[str, ...] = ()
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last4: str | None = None
    rotated_from: str | None = None

    def usable(self, now: datetime) -> bool:
        """Neither revoked nor expired."""
        return self.revoked_at is None and (self.expires_at is None or self.expires_at > now)


def key_hash(key: str) -> str:
    """SHA-256 in hex. A slow hash would gain nothing: the secret part has 178 random bits."""
    return hashlib.sha256(key.encode()).hexdigest()


def _base62(number: int, width: int) -> str:
    digits = ""
    for _ in range(width):
        number, rest = divmod(number, 62)
        digits = BASE62[rest] + digits
    return digits


def compose_key(team: str, role: Role, random_part: str) -> str:
    """The key's text; `random_part` is 30 base62 characters from a cryptographic source."""
    body = f"codeb_{team}_{role}_{random_part}"
    return body + _base62(zlib.crc32(body.encode()), CHECK_LENGTH)


def looks_like_key(text: str) -> bool:
    """Whether the text is a key that was typed right. Long ones must pass their checksum, which turns typos and guesses
    away before any look-up; short ones (issued by earlier versions) have none."""
    head, _, tail = text.rpartition("_")
    parts = head.split("_", 2)
    if len(parts) != 3 or parts[0] != "codeb" or not parts[2].replace("-", "").isalnum():
        return False
    if not text.isascii() or not tail.isalnum() or len(text) > 200:
        return False
    if len(tail) != RANDOM_LENGTH + CHECK_LENGTH:
        return 16 <= len(tail) < RANDOM_LENGTH
    body, check = text[:-CHECK_LENGTH], text[-CHECK_LENGTH:]
    return _base62(zlib.crc32(body.encode()), CHECK_LENGTH) == check


def find_key(keys: Mapping[str, Any], presented_hash: str) -> str | None:
    """The id of the record with this hash."""
    for key_id, record in keys.items():
        if record.get("keyHash") == presented_hash:
            return key_id
    return None
