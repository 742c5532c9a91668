"""Keys: issued once, looked up by hash, revoked at once everywhere."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from pydantic import ValidationError

from codeb_mcp.model.access import (
    BASE62,
    RANDOM_LENGTH,
    KeyRecord,
    Principal,
    Role,
    compose_key,
    key_hash,
    looks_like_key,
)
from codeb_mcp.model.errors import RateLimited, RegistryDamaged, Unauthenticated
from codeb_mcp.model.times import utc_text
from codeb_mcp.operations.context import Services
from codeb_mcp.registry.store import Document, StateStore

DEFAULT_LIFE = timedelta(days=90)
PLATFORM_TEAM = "default"
KEY_USE = "key-use"
"""Document with the moment each key was last used."""


@dataclass(frozen=True, slots=True)
class Issued:
    """A new key: `text` is shown once and kept nowhere."""

    text: str
    record: KeyRecord


@dataclass(frozen=True, slots=True)
class NewKey:
    """What a new key may do, and for how long (None: for ever)."""

    team: str
    role: Role
    name: str
    scopes: tuple[str, ...] = ()
    life: timedelta | None = DEFAULT_LIFE


def issue(wanted: NewKey, *, by: str, now: datetime) -> Issued:
    """A new key; the caller writes its record into the registry."""
    random_part = "".join(secrets.choice(BASE62) for _ in range(RANDOM_LENGTH))
    text = compose_key(wanted.team, wanted.role, random_part)
    record = KeyRecord(
        id=f"key_{secrets.token_hex(6)}",
        key_hash=key_hash(text),
        name=wanted.name,
        team_id=wanted.team,
        role=wanted.role,
        created_at=now,
        created_by=by,
        scopes=wanted.scopes,
        expires_at=now + wanted.life if wanted.life else None,
        last4=text[-4:],
    )
    return Issued(text, record)


def with_key(doc: Document | None, record: KeyRecord, now: datetime) -> dict[str, Any]:
    """The document `api-keys` with the record added or replaced."""
    keys = dict((doc or {}).get("keys", {}))
    keys[record.id] = record.model_dump(mode="json", by_alias=True, exclude_none=True)
    return {"version": "1.0", **(doc or {}), "updatedAt": utc_text(now), "keys": keys}


def records_of(doc: Document | None) -> list[KeyRecord]:
    """All records of the document `api-keys`; raises RegistryDamaged naming the one that is not valid."""
    return [parse_key(key_id, entry) for key_id, entry in ((doc or {}).get("keys") or {}).items()]


def parse_key(key_id: str, entry: Mapping[str, Any]) -> KeyRecord:
    """One record; raises RegistryDamaged."""
    try:
        return KeyRecord.model_validate(dict(entry))
    except (ValidationError, TypeError, ValueError):
        raise RegistryDamaged(
            f"the record of key {key_id} in api-keys is not valid",
            hint="Mend or remove the record; `codeb registry rebuild` restores a damaged document.",
            document="api-keys",
        ) from None


class KeyRing:
    """Finds the caller behind a key. The index is rebuilt only when the registry's document has changed."""

    def __init__(self) -> None:
        self._version = -1
        self._by_hash: Mapping[str, KeyRecord] = {}
        self.used: dict[str, datetime] = {}

    async def authenticate(self, services: Services, text: str, *, via: str, source: str | None = None) -> Principal:
        """The caller. Raises Unauthenticated for a key that is malformed, unknown, revoked or expired (always the same
        words), RateLimited after too many failures from one source."""
        record = await self._find(services.store, text)
        now = services.drivers.clock.now()
        if record is None or not record.usable(now):
            if record is not None:
                services.log.warning("a key that is no longer valid was used", key_id=record.id, source=source)
            raise self._refused(services, source)
        self.used[record.id] = now
        return Principal(
            key_id=record.id,
            name=record.name,
            team=record.team_id,
            role=record.role,
            scopes=record.scopes,
            platform=await is_platform(services.store, record.team_id),
            via=via,
            source=source,
        )

    async def _find(self, store: StateStore, text: str) -> KeyRecord | None:
        wanted = key_hash(text)
        if wanted not in self._by_hash and not looks_like_key(text):
            return None
        stored = await store.get("api-keys")
        if stored is None:
            return None
        if stored.version != self._version:
            self._by_hash = {record.key_hash: record for record in records_of(stored.doc)}
            self._version = stored.version
        record = self._by_hash.get(wanted)
        return record if record is not None and secrets.compare_digest(record.key_hash, wanted) else None

    def _refused(self, services: Services, source: str | None) -> Unauthenticated | RateLimited:
        allowed = services.settings.server.failed_logins_per_minute
        taken = services.registry.limiter.take(f"login:{source or 'local'}", limit=allowed, per_seconds=60)
        if not taken.allowed:
            wait = max(1, round(taken.retry_after_seconds))
            return RateLimited(
                "too many failed logins",
                hint=f"Wait {wait} seconds.",
                retryAfter=wait,
                limit=allowed,
                remaining=0,
                reset=taken.reset_at_seconds,
            )
        return Unauthenticated("invalid API key", hint="Use a key that token_create or codeb init printed.")


async def is_platform(store: StateStore, team: str) -> bool:
    """Whether the team runs this installation; never guessed from its name once teams.json says."""
    stored = await store.get("teams")
    entry = stored.doc.get("teams", {}).get(team, {}) if stored else {}
    return bool(entry.get("platform", False))
