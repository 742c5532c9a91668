"""A client of a running server's `POST /api/tool`, for the command line. Its answers and errors are those of a local call."""

from __future__ import annotations

import ssl
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from codeb_mcp.model.errors import (
    ERRORS,
    Bug,
    CodebError,
    Conflict,
    DeadlineExceeded,
    DriverRefused,
    DriverUnavailable,
    Forbidden,
    InvalidRequest,
    LockHeld,
    NotFound,
    PayloadTooLarge,
    RateLimited,
    Unauthenticated,
    UnsupportedMediaType,
    from_code,
)

if TYPE_CHECKING:
    from httpx2 import AsyncClient, Response

CONNECT_SECONDS = 5.0
READ_SECONDS = 1800.0
"""Longer than any run's own deadline: the server decides when a run has taken too long."""

_ENVELOPE = frozenset(
    {"success", "error", "code", "message", "hint", "retryable", "tool", "duration", "timestamp", "details", "nextStep"}
)
_BY_STATUS: Mapping[int, type[CodebError]] = {
    400: InvalidRequest,
    401: Unauthenticated,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    413: PayloadTooLarge,
    415: UnsupportedMediaType,
    422: InvalidRequest,
    423: LockHeld,
    429: RateLimited,
    500: Bug,
    502: DriverRefused,
    503: DriverUnavailable,
    504: DeadlineExceeded,
}


def base_url(text: str) -> str:
    """The server's address without a trailing path of ours; raises InvalidRequest for what is no http(s) address."""
    try:
        parts = urlsplit(text.strip())
    except ValueError:  # an address of IPv6 that does not end
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query or parts.fragment:
        raise InvalidRequest(
            "the server's address is not valid",
            hint="Give it like https://api.example.com or http://127.0.0.1:9101.",
        )
    path = parts.path.rstrip("/")
    for ours in ("/api/tool", "/mcp", "/sse"):
        path = path.removesuffix(ours)
    return f"{parts.scheme}://{parts.netloc}{path.rstrip('/')}"


class Lost(DriverUnavailable):
    """The call may have been made, but what it came to did not get here."""


def _unreachable(kind: type[DriverUnavailable], base: str, error: Exception) -> DriverUnavailable:
    hint = "Check the address, and that `codeb serve` runs there."
    return kind(f"the server at {base} cannot be reached: {type(error).__name__}", hint=hint)


class Client:
    """Calls tools of one server with one key."""

    def __init__(self, http: AsyncClient, base: str) -> None:
        self._http = http
        self._base = base

    async def call(self, tool: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The result as the server's wire has it, without the envelope.

        Raises the same CodebError as a local call; DriverUnavailable when the server cannot be reached, Lost when it may
        have got the call and its answer did not come.
        """
        import httpx2

        try:
            answer = await self._http.post("/api/tool", json={"tool": tool, "params": dict(arguments)})
        except httpx2.ConnectError as error:
            raise _unreachable(DriverUnavailable, self._base, error) from None
        except (httpx2.ReadTimeout, httpx2.WriteTimeout):
            raise DeadlineExceeded(
                f"{self._base} did not answer in time",
                hint="The run may go on there: look with `codeb operation list`.",
            ) from None
        except httpx2.HTTPError as error:
            raise _unreachable(Lost, self._base, error) from None
        return result_of(answer, self._base)


@asynccontextmanager
async def connected(url: str, key: str) -> AsyncIterator[Client]:
    """A client for the time of a block. Redirects are not followed: the key goes to the address that was given."""
    import httpx2

    base = base_url(url)
    limits = httpx2.Timeout(READ_SECONDS, connect=CONNECT_SECONDS, pool=CONNECT_SECONDS)
    headers = {"X-API-Key": key, "X-Correlation-ID": uuid.uuid4().hex}
    try:
        client = httpx2.AsyncClient(base_url=base, headers=headers, timeout=limits, follow_redirects=False)
    except (ValueError, ssl.SSLError, httpx2.InvalidURL) as error:
        raise InvalidRequest(f"the server's address is not valid: {error}", hint="Correct it.") from None
    async with client:
        yield Client(client, base)


def result_of(answer: Response, base: str) -> dict[str, Any]:
    """The result in a reply; raises its error."""
    body = _json(answer)
    result = body.get("result") if body is not None and answer.is_success and body.get("success") is True else None
    if isinstance(result, dict):
        return result
    if body is not None and body.get("success") is False:
        raise error_of(answer.status_code, body)
    hint = "Something between here and the server answered, or the address is not CodeB's."
    kind = Lost if answer.status_code in (502, 503, 504) else DriverRefused
    raise kind(f"{base} answered {answer.status_code} without a CodeB reply", hint=hint)


def error_of(status: int, body: Mapping[str, Any]) -> CodebError:
    """The error that the envelope carries, by its code, else by the HTTP status."""
    message = str(body.get("message") or body.get("error") or f"the server answered {status}")
    hint = str(body.get("hint") or "")
    detail = {str(name): value for name, value in body.items() if name not in _ENVELOPE}
    code = body.get("code")
    if code in ERRORS:
        return from_code(str(code), message, hint=hint, **detail)
    return _BY_STATUS.get(status, DriverRefused)(message, hint=hint, **detail)


def _json(answer: Response) -> dict[str, Any] | None:
    try:
        body = answer.json()
    except ValueError:
        return None
    return body if isinstance(body, dict) else None
