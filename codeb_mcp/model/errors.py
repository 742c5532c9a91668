"""Every way a request can fail, once: stable code, HTTP status, exit code and whether a retry may help.

```
CodebError
├── InvalidRequest            PayloadTooLarge   UnsupportedMediaType
├── Unauthenticated           Forbidden         RateLimited
├── NotFound                  UnknownTool       Conflict
├── LockHeld                  LeaseLost
├── ReleaseUnhealthy          SwitchReverted    Cancelled
├── DriverUnavailable         DriverRefused     DeadlineExceeded   InsufficientStorage
├── HostKeyChanged
└── RegistryDamaged           Bug
```
Faces translate by these attributes only; nothing ever tells errors apart by their text.
"""

from __future__ import annotations

from typing import Any, ClassVar


class CodebError(Exception):
    """An anticipated failure whose text is meant for the caller.

    `message` says what is (lower case, no full stop), `hint` is a sentence that says what to do next, `detail` holds
    JSON-serialisable facts (field names, ids, times). Secrets must not be put into any of them.
    """

    code: ClassVar[str] = "bug"
    http_status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 70
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str = "", **detail: Any) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.detail = detail

    def as_dict(self) -> dict[str, Any]:
        """The wire form: `code`, `message`, `hint`, `retryable` and the details at the same level."""
        return {
            **self.detail,
            "code": self.code,
            "message": self.message,
            "hint": self.hint,
            "retryable": self.retryable,
        }


class InvalidRequest(CodebError):
    """The request does not fit its model. `fields` lists every problem: `{field, problem}`."""

    code, http_status, exit_code = "invalid_request", 422, 10


class PayloadTooLarge(CodebError):
    """The request body is larger than the server reads."""

    code, http_status, exit_code = "payload_too_large", 413, 10


class UnsupportedMediaType(CodebError):
    """The request body is not declared as JSON."""

    code, http_status, exit_code = "unsupported_media_type", 415, 10


class Unauthenticated(CodebError):
    """No key, or not a valid one."""

    code, http_status, exit_code = "unauthenticated", 401, 11


class Forbidden(CodebError):
    """The key's role or scope is too small."""

    code, http_status, exit_code = "forbidden", 403, 12


class NotFound(CodebError):
    """There is no such thing; looked for and certain, never a failed look-up."""

    code, http_status, exit_code = "not_found", 404, 13


class UnknownTool(CodebError):
    """The catalog has no operation of that name."""

    code, http_status, exit_code = "unknown_tool", 404, 13


class Conflict(CodebError):
    """The present state does not allow the request."""

    code, http_status, exit_code = "conflict", 409, 14


class LockHeld(CodebError):
    """Another run holds the lease. Details: `holder`, `since`, `until`, `operationId` where known."""

    code, http_status, exit_code, retryable = "lock_held", 423, 15, True


class LeaseLost(CodebError):
    """Our fencing token is older than the newest one: whoever holds it must stop at once."""

    code, http_status, exit_code = "lease_lost", 409, 16


class ReleaseUnhealthy(CodebError):
    """The release never passed its health check; the former one still serves."""

    code, http_status, exit_code = "release_unhealthy", 424, 17


class SwitchReverted(CodebError):
    """Traffic was switched, the public route did not prove the new slot, and the switch was taken back."""

    code, http_status, exit_code = "switch_reverted", 424, 17


class RateLimited(CodebError):
    """Too many calls. Detail: `retryAfter` in seconds."""

    code, http_status, exit_code, retryable = "rate_limited", 429, 18, True


class Cancelled(CodebError):
    """The run was cancelled and its effects were undone."""

    code, http_status, exit_code = "cancelled", 409, 19


class DriverUnavailable(CodebError):
    """The engine, proxy or server cannot be reached."""

    code, http_status, exit_code, retryable = "driver_unavailable", 503, 20, True


class DriverRefused(CodebError):
    """The engine, proxy or server answered no."""

    code, http_status, exit_code = "driver_refused", 502, 21


class DeadlineExceeded(CodebError):
    """A step or the whole run took longer than its deadline."""

    code, http_status, exit_code, retryable = "timeout", 504, 22, True


class InsufficientStorage(CodebError):
    """There is not enough free disk space to go on safely."""

    code, http_status, exit_code = "insufficient_storage", 507, 23


class HostKeyChanged(CodebError):
    """A server shows another host key than the one that was accepted for it: it may be somebody else. Nothing was sent."""

    code, http_status, exit_code = "host_key_changed", 502, 24


class RegistryDamaged(CodebError):
    """A registry file does not parse or breaks its rules. It is never guessed around."""

    code, http_status, exit_code = "registry_damaged", 500, 30


class Bug(CodebError):
    """Anything else. The caller gets an id, the log gets the trace."""


ERRORS: dict[str, type[CodebError]] = {
    error.code: error
    for error in (
        InvalidRequest, PayloadTooLarge, UnsupportedMediaType, Unauthenticated, Forbidden, NotFound, UnknownTool, Conflict,
        LockHeld, LeaseLost, ReleaseUnhealthy, SwitchReverted, RateLimited, Cancelled, DriverUnavailable, DriverRefused,
        DeadlineExceeded, InsufficientStorage, HostKeyChanged, RegistryDamaged, Bug,
    )
}  # fmt: skip


def from_code(code: str, message: str, *, hint: str = "", **detail: Any) -> CodebError:
    """The error of a journalled outcome, with its class restored from the stable code."""
    return ERRORS.get(code, Bug)(message, hint=hint, **detail)
