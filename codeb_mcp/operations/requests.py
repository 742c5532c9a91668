"""Which run each request began, so that the same request again joins it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from codeb_mcp.model.errors import Conflict, LockHeld, NotFound
from codeb_mcp.model.names import lease_name
from codeb_mcp.operations.context import Services
from codeb_mcp.registry.entries import RunHeader
from codeb_mcp.registry.journal import Journal
from codeb_mcp.registry.store import Change, Lease

JOIN_WINDOW = timedelta(hours=1)
UNASKED = ("wait", "idempotencyKey")
"""Parameters that say how to call, not what for."""
_FREE = (*UNASKED, "reason")
JOINED_WHILE_OPEN = (
    "promote", "rollback", "slot_cleanup", "project_delete", "database_create", "database_delete", "database_rotate",
)  # fmt: skip
"""Kinds whose open run is joined by the same request, with or without a key. While it is open nothing else can be done
to its environment, so the same request means the same target. Once it has ended the request means the next one. (A
deploy says what it deploys, and is joined by that for an hour.)"""
TIMER = "timer"
RELEASE_TRIES, RELEASE_SECONDS = 20, 0.05


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
    return _asked(one, UNASKED) == _asked(other, UNASKED)


def repeats(asked: RunHeader, begun: RunHeader) -> bool:
    """Whether the request asks for what that run, unless it has ended, is doing: the same kind, by the same team, for the
    same target. Why it is asked for does not matter; what a timer began is nobody's request."""
    if asked.kind != begun.kind or asked.kind not in JOINED_WHILE_OPEN:
        return False
    if TIMER in (asked.caller.get("via"), begun.caller.get("via")):
        return False
    return asked.caller["team"] == begun.caller["team"] and _asked(asked, _FREE) == _asked(begun, _FREE)


def ended_before(journal: Journal, asked: RunHeader) -> bool:
    """Whether the run had already ended when the request was made: then it is no answer to it."""
    return journal.finished() is not None and datetime.fromisoformat(journal.entries[-1]["at"]) < asked.created_at


def occupied(held: LockHeld) -> LockHeld:
    """The refusal of a request that cannot join the run that is under way, with what to do about it."""
    run_id = held.detail.get("operationId")
    if run_id is None:
        return held
    hint = f"It does something else. Look with operation_get {run_id}; repeat this call when it has ended."
    return LockHeld(held.message, hint=hint, **held.detail)


def how_to_go_on(header: RunHeader) -> str:
    """What whoever waited for a run that had to stay open can do."""
    hint = f"It is taken up again by itself: look with operation_get {header.run_id}."
    if header.dedupe or header.kind in JOINED_WHILE_OPEN:
        hint += (
            " While it is open the same call again joins it; once it has ended, only one with the same idempotencyKey "
        )
        hint += "is sure to get its answer."
    return hint


def _asked(header: RunHeader, without: tuple[str, ...]) -> tuple[object, ...]:
    said = {name: value for name, value in header.request.items() if name not in without}
    return header.project, header.environment, said


def _dedupe_key(dedupe: str) -> str:
    return "idempotency/" + hashlib.sha256(dedupe.encode()).hexdigest()


async def lease_for(services: Services, header: RunHeader) -> Lease:
    """The lease that the run needs; raises LockHeld. A run that has ended gives its lease back a moment after its end can be
    seen: who saw it and calls at once is not turned away for that."""
    name = lease_name(header.project, header.environment)
    for _ in range(RELEASE_TRIES):
        try:
            return await services.store.acquire(name, f"run:{header.run_id}")
        except LockHeld as held:
            if not await _has_ended(services, held.detail.get("operationId")):
                raise
        await asyncio.sleep(RELEASE_SECONDS)
    return await services.store.acquire(name, f"run:{header.run_id}")


async def _has_ended(services: Services, run_id: str | None) -> bool:
    if run_id is None:
        return False
    try:
        return (await services.registry.journals.open(run_id)).finished() is not None
    except NotFound:
        return False


def why_open(steps: Sequence[Mapping[str, Any]]) -> str:
    """The last failure among these steps, as the end of a sentence; empty when none failed."""
    failed = [one for one in steps if one.get("error")]
    return f": {failed[-1]['name']} failed, {failed[-1]['error']}" if failed else ""
