"""When newer versions of `api-keys` may be lost: what they ended is ended again, as far as the audit trail tells.

A key that was revoked must never come back to life. So what the trail leaves in doubt counts against the key: a caller who
went away while a key was revoked, a removed member whose key nobody can name. Keys that are ended wrongly can be made anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from codeb_mcp.model.access import KeyRecord, Role
from codeb_mcp.model.errors import CodebError, RegistryDamaged
from codeb_mcp.model.redaction import redact_text
from codeb_mcp.operations.access import OVERLAP, revoked_keys
from codeb_mcp.operations.context import Services
from codeb_mcp.operations.keys import records_of, with_key
from codeb_mcp.registry.files import FileStore
from codeb_mcp.registry.store import Document

ENDING = ("token_revoke", "token_rotate", "member_remove", "team_delete")
MAKING = ("token_create", "team_create")
NOT_DONE = frozenset(
    {"invalid_request", "payload_too_large", "unauthenticated", "forbidden", "not_found", "conflict", "lock_held", "rate_limited"}
)  # fmt: skip
"""Outcomes after which certainly nothing was changed. After any other the change may have been made."""
RECORDS = 100_000
SLACK = timedelta(seconds=5)

Row = Mapping[str, Any]
Which = Callable[[KeyRecord], bool]


@dataclass(frozen=True, slots=True)
class Ended:
    """The document with what was ended again. `keys`: whose end was made up for; `said`: what to tell the operator."""

    doc: Document
    keys: tuple[str, ...]
    said: str


@dataclass(frozen=True, slots=True)
class _Told:
    """What can be known of former times. `ended`, `made`: records of the trail, oldest first; `members`: team and key of
    every member that a kept version of `teams` names; `teams`: as they are now, None when that cannot be read."""

    ended: list[Row]
    made: list[Row]
    members: Mapping[str, tuple[str, str]]
    teams: Mapping[str, Any] | None
    problem: str


async def ended_again(services: Services, store: FileStore, doc: Document) -> Ended:
    """The kept version with the ends of keys that the audit trail tells of, whenever they were: none is ever taken back."""
    told = await _look(services, store)
    present, nameless = doc, []
    for row in told.ended:
        if row["tool"] == "token_rotate":
            present = _expiring(present, row)
            continue
        present = revoked_keys(present, _at(row), _which(row, present, told))
        if row["tool"] == "member_remove" and row["outcome"] == "ok" and _member(row) not in told.members:
            nameless.append(_member(row))
    before = {record.id: record for record in records_of(doc)}
    ended = tuple(record.id for record in records_of(present) if record != before[record.id])
    left = sorted(record.id for record in records_of(present) if record.revoked_at is None)
    said = [told.problem, f"revoked again as the audit trail says: {', '.join(sorted(ended)) or 'none'}"]
    if nameless:
        said.append(f"nobody can tell the keys of {', '.join(nameless)}: all that may be theirs are among these")
    said.append(f"review these keys, one of them may have been revoked: {', '.join(left) or 'none'}")
    return Ended(present if ended else doc, ended, "; ".join(part for part in said if part))


async def _look(services: Services, store: FileStore) -> _Told:
    members = {
        member: (team, str(entry["keyId"]))
        for doc in await store.kept("teams")
        for team, own in doc.get("teams", {}).items()
        for member, entry in own.get("members", {}).items()
        if "keyId" in entry
    }
    try:
        stored = await store.get("teams")
        teams = stored.doc.get("teams", {}) if stored else None
    except RegistryDamaged:
        teams = None
    try:
        report = await services.registry.audit.verify()
        ended, made = [await _rows(services, tools) for tools in (ENDING, MAKING)]
    except CodebError as error:
        return _Told(
            [], [], members, teams, f"THE AUDIT TRAIL CANNOT BE READ ({error.message}), so no key was revoked again"
        )
    broken = report.first_problem or next((flaw.problem for seal in report.seals for flaw in seal.flaws), None)
    problem = f"THE AUDIT TRAIL IS DAMAGED ({broken}): what it has lost is not made up for" if broken else ""
    return _Told(ended, made, members, teams, problem)


async def _rows(services: Services, tools: tuple[str, ...]) -> list[Row]:
    """Records of these tools that may have changed something, oldest first."""
    audit = services.registry.audit
    pages = [await audit.page(team=None, limit=RECORDS, offset=0, tool=tool) for tool in tools]
    rows: list[Row] = [row for page, _ in pages for row in page if _sound(row) and row["outcome"] not in NOT_DONE]
    return sorted(rows, key=lambda row: int(row["n"]))


def _sound(row: Row) -> bool:
    """Whether it can be read as a record at all; one that was tampered with need not."""
    try:
        asked = row["arguments"]
        return bool(int(row["n"]) and _at(row).tzinfo and Role(row["role"]) and row["outcome"] and row["team"]) and (
            isinstance(asked, Mapping) and "keyId" in row and isinstance(row.get("durationMs") or 0, int | float)
        )
    except (KeyError, TypeError, ValueError):
        return False


def _at(row: Row) -> datetime:
    return datetime.fromisoformat(row["at"])


def _asked(row: Row) -> Mapping[str, Any]:
    found: Mapping[str, Any] = row.get("arguments", {})
    return found


def _team(row: Row) -> str:
    return str(_asked(row).get("teamId") or row["team"])


def _member(row: Row) -> str:
    return str(_asked(row).get("memberId"))


def _which(row: Row, doc: Document, told: _Told) -> Which:
    """The keys that the record ended, or may have ended."""
    if row["tool"] == "token_revoke":
        return _of_token(row)
    return _of_member(row, doc, told) if row["tool"] == "member_remove" else _of_team(row, told)


def _none(record: KeyRecord) -> bool:
    return False


def _of_token(row: Row) -> Which:
    key, team, role, sure = _asked(row).get("tokenId"), _team(row), Role(row["role"]), row["outcome"] == "ok"
    return lambda record: record.id == key and record.team_id == team and (sure or role.covers(record.role))


def _of_team(row: Row, told: _Told) -> Which:
    """All keys that the team had then; one that was made anew under the same name has later ones."""
    team, at = _team(row), _at(row)
    done = row["outcome"] == "ok" or (_asked(row).get("confirm") == team and team not in (told.teams or {}))
    return (lambda record: record.team_id == team and record.created_at <= at) if done else _none


def _of_member(row: Row, doc: Document, told: _Told) -> Which:
    team, member = _team(row), _member(row)
    known = told.members.get(member)
    if row["outcome"] != "ok":
        still = (told.teams or {}).get(team, {}).get("members", {})
        if member in still or (known is not None and known[0] != team):
            return _none
    lines = _Lines(doc)
    if known is not None:
        return lambda record: known[1] in lines.of(record)
    return _nobodys(row, lines, told)


class _Lines:
    """From which keys each key of a document came by rotation."""

    def __init__(self, doc: Document) -> None:
        self._by_id = {record.id: record for record in records_of(doc)}

    def of(self, record: KeyRecord) -> list[str]:
        """Its own id and those of the keys that it came from, the first one last."""
        return [one.id for one in self._back(record)]

    def first(self, record: KeyRecord) -> KeyRecord:
        """The key that it came from in the end."""
        return list(self._back(record))[-1]

    def _back(self, record: KeyRecord) -> Iterator[KeyRecord]:
        seen: set[str] = set()
        one: KeyRecord | None = record
        while one is not None and one.id not in seen:
            seen.add(one.id)
            yield one
            one = self._by_id.get(one.rotated_from or "")


def _nobodys(row: Row, lines: _Lines, told: _Told) -> Which:
    """Keys of the team that may be those of a member whom nobody can name: made before, by somebody's key, and neither a
    known member's nor made in another way."""
    team, at, held = _team(row), _at(row), {key for _, key in told.members.values()}

    def which(record: KeyRecord) -> bool:
        if record.team_id != team or record.created_at > at or not held.isdisjoint(lines.of(record)):
            return False
        first = lines.first(record)
        return first.created_by.startswith("key_") and not any(_made(made, first) for made in told.made)

    return which


def _made(row: Row, record: KeyRecord) -> bool:
    """Whether the record of the trail is that of the making of this key."""
    at, took = _at(row), timedelta(milliseconds=row.get("durationMs") or 0)
    if row["keyId"] != record.created_by or _team(row) != record.team_id:
        return False
    if not at - took - SLACK <= record.created_at <= at:
        return False
    return row["tool"] == "team_create" or _asked(row).get("name") == redact_text(record.name)


def _expiring(doc: Document, row: Row) -> Document:
    """A key that was rotated ends a while later at most."""
    end = _at(row) + OVERLAP
    for record in records_of(doc):
        due = record.expires_at is None or record.expires_at > end
        if row["outcome"] == "ok" and due and record.id == _asked(row).get("tokenId") and record.team_id == _team(row):
            return with_key(doc, record.model_copy(update={"expires_at": end}), _at(row))
    return doc
