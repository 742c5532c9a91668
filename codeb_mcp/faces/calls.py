"""How every face calls an operation: with news of its progress on the way, and a count at the end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from codeb_mcp.model.errors import CodebError
from codeb_mcp.model.redaction import clean_text, redact, redact_text
from codeb_mcp.operations.catalog import CATALOG
from codeb_mcp.operations.context import Event, Progress, Services
from codeb_mcp.operations.invoke import Answer, Call, invoke

Observe = Callable[[str, str, float], None]
"""Told of each call: the operation's true name (`unknown` for none), `ok` or an error code, and its seconds."""

_CORRELATION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_WAITING = 64


def unobserved(tool: str, result: str, seconds: float) -> None:
    """For faces that count nothing."""


def correlation_id(said: str | None) -> str:
    """The caller's own id when it is a harmless one, else a new one."""
    if said and _CORRELATION.fullmatch(said) and redact_text(said) == said:
        return said
    return os.urandom(16).hex()


@dataclass(frozen=True, slots=True)
class Caller:
    """Calls operations and counts them."""

    services: Services
    observe: Observe = unobserved

    async def __call__(self, call: Call) -> Answer:
        """Run the call; raises CodebError and nothing else."""
        started = perf_counter()
        tool, result = "unknown", "ok"
        try:
            answer = await invoke(self.services, call)
            tool = answer.operation.name
            return answer
        except CodebError as error:
            result = error.code
            raise
        finally:
            if result != "ok":
                tool = self._known(call.tool)
            self.observe(tool, result, perf_counter() - started)

    def long(self, name: str) -> bool:
        """Whether the tool may run for more than a second, so that news of it is worth sending."""
        true = self._known(name)
        return true in CATALOG and CATALOG[true].long

    def _known(self, name: str) -> str:
        true = CATALOG.aliases.get(name, name)
        return true if true in CATALOG else "unknown"


def problem(error: CodebError, correlation: str) -> dict[str, Any]:
    """The error as every face shows it. Parts of it come from callers and containers: secrets are masked, since a name that
    is not known may be a key in the wrong place, and control characters removed."""
    shown: dict[str, Any] = _plain(redact({**error.as_dict(), "correlationId": correlation}))
    return shown


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return value if value.isalnum() else clean_text(value)
    if isinstance(value, dict):
        return {_plain(name): _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def next_step(error: CodebError) -> str:
    """What to do about it, in words."""
    steps = [error.hint] if error.hint else []
    if error.retryable:
        steps.append("The same call may be repeated.")
    if operation_id := error.detail.get("operationId"):
        steps.append(f"operation_get with operationId {operation_id} shows its steps.")
    return " ".join(steps)


class Relay:
    """Takes events from a run, which does not wait, and hands them to a face, which does. When the face is slow, news
    within a step is dropped first; the beginning and end of a step never is."""

    def __init__(self, tell: Callable[[Event], Awaitable[None]]) -> None:
        self._tell = tell
        self._queue: asyncio.Queue[Event | None] = asyncio.Queue()

    def put(self, event: Event) -> None:
        """Called by the run."""
        if event.status != "running" or event.fraction is None or self._queue.qsize() < _WAITING:
            self._queue.put_nowait(event)

    async def _pump(self) -> None:
        while (event := await self._queue.get()) is not None:
            await self._tell(event)

    async def _flush(self, pump: asyncio.Task[None]) -> None:
        self._queue.put_nowait(None)
        await pump

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[Progress]:
        """The listener for a call; at the end of the block everything that was heard has been told."""
        pump = asyncio.create_task(self._pump())
        try:
            yield self.put
            await self._flush(pump)
        except CodebError:
            await self._flush(pump)
            raise
        finally:
            pump.cancel()
            await asyncio.gather(pump, return_exceptions=True)
