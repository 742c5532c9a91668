"""`GET /api/logs/stream`: a container's log as server-sent events, followed until the client goes.

The first read is `logs_get`, so rights, limits and audit are the operation's. Lines are cleaned and redacted like there,
and slowed down to a rate that a reader can stand; how many were left out is said.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from typing import Any

from pydantic_core import to_json
from starlette.types import Message, Receive, Scope, Send

from codeb_mcp.faces.calls import Caller
from codeb_mcp.model.access import Principal
from codeb_mcp.model.errors import CodebError, InvalidRequest, RateLimited
from codeb_mcp.model.names import environment_key
from codeb_mcp.model.redaction import clean_text
from codeb_mcp.operations.invoke import Call
from codeb_mcp.operations.logs import LINE_LIMIT, chosen_place

FIRST_LINES = 100
LINES_PER_SECOND = 200
PING_SECONDS = 15.0
STREAMS_PER_KEY = 8
NAMES = {"project": "projectName", "environment": "environment", "slot": "slot"}
LEVELS = ("debug", "info", "warn", "error")
_SAID_LEVEL = re.compile(
    r"\b(?:level[\"']?\s*[=:]\s*[\"']?)?(trace|debug|info|notice|warn(?:ing)?|err(?:or)?|fatal|crit(?:ical)?|panic)\b",
    re.IGNORECASE,
)
_MEANS = {
    "trace": "debug", "notice": "info", "warning": "warn", "err": "error", "fatal": "error", "crit": "error",
    "critical": "error", "panic": "error",
}  # fmt: skip


def level_of(line: str) -> str:
    """The level that a line claims; info when it claims none."""
    found = _SAID_LEVEL.search(line[:300])
    said = found[1].lower() if found else "info"
    return _MEANS.get(said, said)


class Pace:
    """At most so many lines in each second; the rest is counted."""

    def __init__(self, lines: int = LINES_PER_SECOND) -> None:
        self._lines = lines
        self._second = 0
        self._sent = 0
        self.dropped = 0

    def allows(self, now: float) -> bool:
        """Whether this line may go; a new second lets lines go again."""
        if int(now) != self._second:
            self._second, self._sent = int(now), 0
        self._sent += 1
        if self._sent > self._lines:
            self.dropped += 1
            return False
        return True

    def take_dropped(self) -> int:
        """How many were left out since the last time somebody asked."""
        count, self.dropped = self.dropped, 0
        return count


class LogStreams:
    """The endpoint. `open_streams` counts per key."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self.open_streams: Counter[str] = Counter()

    async def open(self, principal: Principal, query: Mapping[str, str], correlation: str) -> Stream:
        """The stream that the query asks for; raises what `logs_get` raises, and RateLimited for too many at once."""
        level = query.get("level", "")
        if level and level not in (*LEVELS, "all"):
            problem = {"field": "level", "problem": f"must be one of {', '.join(LEVELS)} or all"}
            raise InvalidRequest(f"level: {problem['problem']}", hint="Leave level out for all.", fields=[problem])
        if self.open_streams[principal.key_id] >= STREAMS_PER_KEY:
            raise RateLimited(
                f"this key has {STREAMS_PER_KEY} log streams open", hint="Close one of them first.", retryAfter=1
            )
        if unknown := sorted(set(query) - {*NAMES, "level"}):
            fields = [{"field": clean_text(name, limit=100), "problem": "unknown parameter"} for name in unknown[:20]]
            known = ", ".join([*NAMES, "level"])
            raise InvalidRequest(f"{fields[0]['field']}: unknown parameter", hint=f"This takes {known}.", fields=fields)
        arguments: dict[str, Any] = {NAMES[key]: value for key, value in query.items() if key in NAMES}
        answer = await self._caller(Call("logs_get", {**arguments, "tail": 1}, principal, correlation))
        wanted = LEVELS[LEVELS.index(level) if level in LEVELS else 0 :]
        services, body = self._caller.services, answer.body
        key = environment_key(body["projectName"], body["environment"])
        place = await chosen_place(services, key, arguments.get("server"))
        lines = place.drivers.containers.logs(body["container"], tail=FIRST_LINES, follow=True)
        return Stream(self, principal.key_id, lines, frozenset(wanted))


class Stream:
    """One open stream: an ASGI application."""

    def __init__(self, owner: LogStreams, key_id: str, lines: AsyncIterator[str], levels: frozenset[str]) -> None:
        self._owner = owner
        self._key_id = key_id
        self._lines = lines
        self._levels = levels
        self._pace = Pace()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send lines until the container or the client is gone."""
        self._owner.open_streams[self._key_id] += 1
        try:
            await send(event_head())
            sending = asyncio.create_task(self._send_lines(send))
            leaving = asyncio.create_task(event_gone(receive))
            try:
                await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
                if sending.done():
                    await sending
                    await send({"type": "http.response.body", "body": b""})
            finally:
                for task in (sending, leaving):
                    task.cancel()
                await asyncio.gather(sending, leaving, return_exceptions=True)
        finally:
            self._owner.open_streams[self._key_id] -= 1

    async def _send_lines(self, send: Send) -> None:
        source: asyncio.Future[str] | None = None
        loop = asyncio.get_running_loop()
        try:
            while True:
                source = source or asyncio.ensure_future(anext(self._lines))
                await asyncio.wait({source}, timeout=PING_SECONDS)
                if not source.done():
                    await send(event_chunk(b": still here\n\n"))
                    continue
                line, source = source.result(), None
                if (event := self._event(line, loop.time())) is not None:
                    await send(event_chunk(event))
        except StopAsyncIteration:
            await send(event_chunk(event_named("end", {"reason": "the container has stopped"})))
        except CodebError as error:
            await send(event_chunk(event_named("end", {"reason": clean_text(error.message, limit=LINE_LIMIT)})))
        finally:
            if source is not None:
                source.cancel()
                await asyncio.gather(source, return_exceptions=True)
            close = getattr(self._lines, "aclose", None)
            if close is not None:
                with contextlib.suppress(RuntimeError):
                    await close()

    def _event(self, line: str, now: float) -> bytes | None:
        clean = clean_text(line, limit=LINE_LIMIT)
        level = level_of(clean)
        if level not in self._levels or not self._pace.allows(now):
            return None
        stamp, _, text = clean.partition(" ")
        news = b""
        if dropped := self._pace.take_dropped():
            news = event_named("dropped", {"lines": dropped})
        return news + b"data: " + to_json({"timestamp": stamp, "level": level, "line": text}) + b"\n\n"


def event_head() -> Message:
    headers = [
        (b"content-type", b"text/event-stream"),
        (b"cache-control", b"no-cache, no-transform"),
        (b"x-accel-buffering", b"no"),
    ]
    return {"type": "http.response.start", "status": 200, "headers": headers}


def event_chunk(body: bytes) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": True}


def event_named(event: str, data: Mapping[str, Any]) -> bytes:
    return b"event: " + event.encode() + b"\ndata: " + to_json(data) + b"\n\n"


async def event_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
