"""The answers of `POST /api/tool` and its neighbours, in the shapes that existing clients read.

A result stands at the top level, under `result` and under `data` (unless it has `data` of its own). JSON is compact:
there are workflows that look for the literal text `"success":true`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from pydantic_core import to_json

from codeb_mcp.faces.calls import next_step, problem
from codeb_mcp.model.errors import CodebError
from codeb_mcp.model.redaction import clean_text
from codeb_mcp.model.times import utc_text
from codeb_mcp.operations.invoke import Answer

JSON = (b"content-type", b"application/json")
OWN_KEYS = frozenset({"success", "tool", "duration", "timestamp", "correlationId", "result", "error"})
TOOL_SHOWN = 64
CORRELATION_HEADER = b"x-correlation-id"

Headers = list[tuple[bytes, bytes]]
Reply = tuple[int, Headers, bytes]
"""Status, headers, body."""


def timestamp() -> str:
    """Now, as ISO 8601 in UTC."""
    return utc_text(datetime.now(UTC), "milliseconds")


def success(answer: Answer, tool: str, correlation: str) -> Reply:
    """200, or 202 for a run that was started and not waited for."""
    accepted = answer.operation.long and answer.body.get("status") == "running"
    head = {
        "success": True,
        "tool": tool,
        "duration": round(answer.duration_ms, 1),
        "timestamp": timestamp(),
        "correlationId": correlation,
    }
    inner = answer.text.encode()
    flat = inner
    if not OWN_KEYS.isdisjoint(answer.body):
        flat = to_json({key: value for key, value in answer.body.items() if key not in OWN_KEYS})
    parts = [to_json(head)[:-1], b',"result":', inner]
    if "data" not in answer.body:
        parts += [b',"data":', inner]
    if len(flat) > 2:
        parts += [b",", flat[1:-1]]
    return 202 if accepted else 200, [JSON], b"".join([*parts, b"}"])


def plain(doc: Mapping[str, Any], status: int = 200) -> Reply:
    """Any other document."""
    return status, [JSON], to_json(doc)


def failure(
    error: CodebError, correlation: str, *, status: int | None = None, tool: str | None = None, duration_ms: float = 0.0
) -> Reply:
    """An error with everything that is known about it. `details` lists the fields of a request that does not fit."""
    body = {**_error_body(error, correlation), "duration": round(duration_ms, 1)}
    if tool is not None:
        body["tool"] = clean_text(tool, limit=TOOL_SHOWN)
    return status or error.http_status, [JSON, *_headers(error)], to_json(body)


def unknown_tool(error: CodebError, tool: str, available: Sequence[str], correlation: str) -> Reply:
    """404 with the tools that the caller may use."""
    body = _error_body(error, correlation)
    body["error"] = f"Unknown tool: {clean_text(tool, limit=TOOL_SHOWN)}"
    body["availableTools"] = body["available"] = list(available)
    return error.http_status, [JSON], to_json(body)


def _error_body(error: CodebError, correlation: str) -> dict[str, Any]:
    shown = problem(error, correlation)
    detail = {key: value for key, value in shown.items() if key not in ("code", "message", "hint", "retryable")}
    details = detail.get("fields") or {key: detail[key] for key in detail if key != "correlationId"}
    return {
        **detail,
        "success": False,
        "error": _said(error, shown),
        "code": shown["code"],
        "hint": shown["hint"],
        "nextStep": next_step(error),
        "retryable": shown["retryable"],
        "details": details,
        "timestamp": timestamp(),
    }


def _said(error: CodebError, shown: Mapping[str, Any]) -> str:
    """The words that existing clients know, for the errors that they know."""
    message: str = shown["message"]
    if error.code == "forbidden":
        permission = error.detail.get("permission")
        return f"Permission denied: {permission} required" if permission else f"Permission denied: {message}"
    if error.code == "rate_limited":
        return "Rate limit exceeded"
    if error.code == "unauthenticated":
        missing = error.detail.get("reason") == "missing"
        return "API key required. Use X-API-Key header." if missing else "Invalid API key"
    return message


def _headers(error: CodebError) -> Headers:
    found: Headers = []
    if error.code == "unauthenticated":
        found.append((b"www-authenticate", b"Bearer"))
    if (wait := error.detail.get("retryAfter")) is not None:
        found.append((b"retry-after", str(wait).encode()))
    if error.code == "rate_limited":
        for name, key in ((b"limit", "limit"), (b"remaining", "remaining"), (b"reset", "reset")):
            value = error.detail.get(key)
            if value is not None:
                found.append((b"x-ratelimit-" + name, str(value).encode()))
    return found
