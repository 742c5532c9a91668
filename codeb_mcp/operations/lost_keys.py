"""When the newest version of `api-keys` is lost: what it revoked is revoked again, as far as the audit trail tells."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from codeb_mcp.model.access import KeyRecord
from codeb_mcp.model.errors import CodebError
from codeb_mcp.operations.access import revoked_keys
from codeb_mcp.operations.context import Services
from codeb_mcp.operations.keys import records_of
from codeb_mcp.operations.members import came_of
from codeb_mcp.registry.files import FileStore
from codeb_mcp.registry.store import Document

TOOLS = ("token_revoke", "member_remove", "team_delete")
RECORDS = 100_000


async def revoked_again(services: Services, store: FileStore, doc: Document) -> tuple[Document, str]:
    """The older document with the revocations of the audit trail, and what to tell the operator about it.

    A revocation is never taken back, so all of the trail's count, whenever they were. Keys of a deleted team or a removed
    member are told by what kept versions of `teams` say and by when they were made.
    """
    try:
        rows = [row for tool in TOOLS for row in (await services.registry.audit.page(
            team=None, limit=RECORDS, offset=0, tool=tool, outcome="ok"))[0]]  # fmt: skip
    except CodebError as error:
        rows, said = [], f"the audit trail cannot be read ({error.message}), no key was revoked again"
    else:
        said = ""
    members = await _members(store)
    before = {record.id for record in records_of(doc) if record.revoked_at is None}
    for row in rows:
        doc = _again(doc, row, members)
    left = [record.id for record in records_of(doc) if record.revoked_at is None]
    again = sorted(before - set(left))
    said = said or f"revoked again as the audit trail says: {', '.join(again) or 'none'}"
    return doc, f"{said}; review these keys, one of them may have been revoked: {', '.join(sorted(left)) or 'none'}"


async def _members(store: FileStore) -> dict[str, str]:
    """The key of every member that any kept version of `teams` names."""
    return {
        member: str(entry["keyId"])
        for doc in await store.kept("teams")
        for team in doc.get("teams", {}).values()
        for member, entry in team.get("members", {}).items()
        if "keyId" in entry
    }


def _again(doc: Document, row: Mapping[str, Any], members: Mapping[str, str]) -> Document:
    at, said = datetime.fromisoformat(row["at"]), row.get("arguments", {})
    if row["tool"] == "token_revoke":
        return revoked_keys(doc, at, lambda record: record.id == said.get("tokenId"))
    if row["tool"] == "member_remove":
        key = members.get(str(said.get("memberId")))
        return revoked_keys(doc, at, came_of(doc, key)) if key else doc
    team = said.get("teamId") or row.get("team")

    def gone(record: KeyRecord) -> bool:
        return record.team_id == team and record.created_at <= at

    return revoked_keys(doc, at, gone)
