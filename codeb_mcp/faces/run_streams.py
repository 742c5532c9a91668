"""`GET /api/operations/{operationId}/stream`: a run's steps as server-sent events, those so far and those to come.

The first read is `operation_get`, so rights, limits and audit are the operation's. Steps come from the run's journal, so
that none is missed however slowly they are read; of the news within a step a slow reader gets the newest only.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from typing import Any

from starlette.types import Receive, Scope, Send

from codeb_mcp.faces.calls import Caller
from codeb_mcp.faces.streams import (
    PING_SECONDS,
    STREAMS_PER_KEY,
    event_chunk,
    event_gone,
    event_head,
    event_named,
)
from codeb_mcp.model.access import Principal
from codeb_mcp.model.errors import CodebError, RateLimited
from codeb_mcp.model.redaction import clean_text, redact_text
from codeb_mcp.operations.context import Event
from codeb_mcp.operations.invoke import Call
from codeb_mcp.operations.runs import Runs, RunView
from codeb_mcp.operations.runs_api import described

LOOK_SECONDS = 0.5
"""How late a step is told of a run that another process drives."""


class RunStreams:
    """The endpoint. `open_streams` counts per key."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self.open_streams: Counter[str] = Counter()

    async def open(self, principal: Principal, run_id: str, correlation: str) -> RunStream:
        """The stream of that run; raises what `operation_get` raises, and RateLimited for too many at once."""
        if self.open_streams[principal.key_id] >= STREAMS_PER_KEY:
            raise RateLimited(
                f"this key follows {STREAMS_PER_KEY} runs already", hint="Close a stream first.", retryAfter=1
            )
        await self._caller(Call("operation_get", {"operationId": run_id}, principal, correlation))
        return RunStream(self.open_streams, principal.key_id, self._caller.services.runs, run_id)


class RunStream:
    """One open stream: an ASGI application."""

    def __init__(self, counted: Counter[str], key_id: str, runs: Runs, run_id: str) -> None:
        self._counted = counted
        self._key_id = key_id
        self._runs = runs
        self._run_id = run_id
        self._sent: list[dict[str, Any]] = []
        self._newest: Event | None = None
        self._news = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send steps until the run has ended or the client is gone."""
        self._counted[self._key_id] += 1
        try:
            await send(event_head())
            telling = asyncio.create_task(self._tell(send))
            leaving = asyncio.create_task(event_gone(receive))
            try:
                await asyncio.wait({telling, leaving}, return_when=asyncio.FIRST_COMPLETED)
                if telling.done():
                    await telling
                    await send({"type": "http.response.body", "body": b""})
            finally:
                for task in (telling, leaving):
                    task.cancel()
                await asyncio.gather(telling, leaving, return_exceptions=True)
        finally:
            self._counted[self._key_id] -= 1

    def _hear(self, event: Event) -> None:
        """Called by the run, which does not wait."""
        self._newest = event
        self._news.set()

    async def _tell(self, send: Send) -> None:
        """Steps so far, then what happens, then the result: a run that stays open ends the stream as interrupted."""
        ending = asyncio.create_task(self._ended())
        loop = asyncio.get_running_loop()
        told = loop.time()
        try:
            while not ending.done():
                if await self._tell_steps(send, await self._runs.look(self._run_id)):
                    told = loop.time()
                elif loop.time() - told >= PING_SECONDS:
                    await send(event_chunk(b": still here\n\n"))
                    told = loop.time()
                await self._next_news(ending)
            view = await self._runs.look(self._run_id)
            await self._tell_steps(send, view)
            await send(event_chunk(event_named("result", described(view).wire())))
        except CodebError as error:
            await send(event_chunk(event_named("end", {"reason": clean_text(redact_text(error.message), limit=500)})))
        finally:
            ending.cancel()
            await asyncio.gather(ending, return_exceptions=True)

    async def _ended(self) -> None:
        with contextlib.suppress(CodebError):  # how it ended is in its journal
            await self._runs.wait(self._run_id, self._hear)

    async def _next_news(self, ending: asyncio.Task[None]) -> None:
        news = asyncio.create_task(self._news.wait())
        try:
            await asyncio.wait({news, ending}, timeout=LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        finally:
            news.cancel()
            await asyncio.gather(news, return_exceptions=True)

    async def _tell_steps(self, send: Send, view: RunView) -> bool:
        """Steps that are new or have changed, and the newest news within one; answers whether there was any."""
        self._news.clear()
        parts = []
        for position, step in enumerate(view.steps):
            if position < len(self._sent) and self._sent[position] == step:
                continue
            self._sent[position : position + 1] = [step]
            parts.append(event_named("step", {"position": position + 1, **step}))
        newest, self._newest = self._newest, None
        if newest is not None:
            parts.append(event_named("progress", _shown(newest)))
        if parts:
            await send(event_chunk(b"".join(parts)))
        return bool(parts)


def _shown(event: Event) -> dict[str, Any]:
    return {
        "step": event.step,
        "status": event.status,
        "position": event.position,
        "total": event.total,
        "fraction": event.fraction,
        "message": clean_text(redact_text(event.message), limit=500),
    }
