"""Which run each request began, so that the same request again joins it."""

from __future__ import annotations

import contextlib
import hashlib
from datetime import datetime, timedelta

from codeb_mcp.model.errors import Conflict, NotFound
from codeb_mcp.operations.context import Services
from codeb_mcp.registry.entries import RunHeader
from codeb_mcp.registry.journal import Journal
from codeb_mcp.registry.store import Change

JOIN_WINDOW = timedelta(hours=1)
UNASKED = ("wait", "idempotencyKey")
"""Parameters that say how to call, not what for."""


async def begun_by(services: Services, name: str) -> Journal | None:
    """The journal of the run that this request began within the last hour."""
    stored = await services.store.get(_dedupe_key(name))
    if stored is None:
        return None
    if datetime.fromisoformat(stored.doc["createdAt"]) + JOIN_WINDOW < services.drivers.clock.now():
        return None
    try:
        return await services.registry.journals.open(stored.doc["runId"])
    except NotFound:
        return None


async def remember(services: Services, header: RunHeader, run_id: str) -> None:
    """Every name of the request leads to the run from now on."""
    created = header.created_at.isoformat()
    for name in header.dedupe:
        key = _dedupe_key(name)
        stored = await services.store.get(key)
        if stored is None or stored.doc["runId"] != run_id:
            doc = {"runId": run_id, "createdAt": created, "kind": header.kind}
            with contextlib.suppress(Conflict):  # the same request at the same time has just written it
                await services.store.commit([Change(key, doc, stored.version if stored else 0)])


def same_request(one: RunHeader, other: RunHeader) -> bool:
    """Whether both ask for the same thing; whether the caller waits for it does not matter."""
    asked = [{name: value for name, value in header.request.items() if name not in UNASKED} for header in (one, other)]
    return (one.project, one.environment) == (other.project, other.environment) and asked[0] == asked[1]


def _dedupe_key(dedupe: str) -> str:
    return "idempotency/" + hashlib.sha256(dedupe.encode()).hexdigest()
