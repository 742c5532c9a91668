"""The engine's errors in our words.

The engine and the registries behind it tell most failures apart only by English text, so this is the one place that
reads such text. Everything above decides by error class and by `detail["reason"]`.
"""

from __future__ import annotations

import contextlib
import errno
import re
from collections.abc import Iterable, Iterator
from typing import Any

from codeb_mcp.model.errors import CodebError, DeadlineExceeded, DriverRefused, DriverUnavailable, InsufficientStorage
from codeb_mcp.model.names import image_parts

MAX_WORDS = 500
MIN_SECRET = 4
"""Shorter values are ordinary words and numbers; hiding them would only garble messages."""

CANNOT_CONNECT = 900
"""The status that aiodocker gives to a connection that failed or broke before an answer came."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\s]+")


def clean(text: str, secrets: Iterable[str] = ()) -> str:
    """One line of plain text of at most 500 characters, with the secrets masked."""
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= MIN_SECRET:
            text = text.replace(secret, "***")
    text = _CONTROL.sub(" ", text).strip()
    return text if len(text) <= MAX_WORDS else text[: MAX_WORDS - 1] + "…"


@contextlib.contextmanager
def engine_errors(doing: str, secrets: Iterable[str] = ()) -> Iterator[None]:
    """Turn whatever the libraries raise inside into our errors; `doing` completes "while ..." in messages."""
    import aiodocker
    import aiohttp

    try:
        yield
    except CodebError:
        raise
    except TimeoutError as error:
        raise DeadlineExceeded(
            f"the container engine took too long while {doing}",
            hint="See whether the machine is overloaded; try again.",
        ) from error
    except aiodocker.DockerError as error:
        raise _said(error, doing, secrets) from error
    except (aiohttp.ClientError, OSError, EOFError) as error:
        raise unreachable(clean(str(error), secrets) or type(error).__name__, doing) from error
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        # What answers is no engine, or broke off in the middle of its answer; or our own session was closed.
        raise unreachable(f"its answer makes no sense ({type(error).__name__})", doing) from error


def unreachable(words: str, doing: str, hint: str = "") -> DriverUnavailable:
    """The engine cannot be talked to."""
    return DriverUnavailable(
        f"the container engine cannot be reached while {doing}: {words}",
        hint=hint or "See that the engine runs (systemctl status docker) and that CodeB's engine address is right.",
        reason="engine_unreachable",
    )


def _said(error: Any, doing: str, secrets: Iterable[str]) -> CodebError:
    words = clean(str(error.message), secrets)
    if error.status == CANNOT_CONNECT:
        return unreachable(words, doing, _connection_hint(error.__context__))
    if "no space left on device" in words:
        return disk_full(words, doing)
    return DriverRefused(
        f"the container engine refused {doing}: {words}",
        hint="The engine's own words say what is wrong.",
        reason="engine_refused",
        engineStatus=error.status,
    )


def disk_full(words: str, doing: str) -> InsufficientStorage:
    """The engine's disk ran full in the middle of something."""
    return InsufficientStorage(
        f"the engine's disk is full while {doing}: {words}",
        hint="Free disk space on the engine's machine (unused images: slot_cleanup), then try again.",
    )


def _connection_hint(cause: BaseException | None) -> str:
    number = getattr(getattr(cause, "os_error", cause), "errno", None)
    if number in (errno.EACCES, errno.EPERM):
        return "Run CodeB as root or as a user who may use the engine's socket (group docker)."
    if number in (errno.ENOENT, errno.ECONNREFUSED):
        return "Start the container engine (systemctl start docker) or correct CodeB's engine address."
    return ""


def status_of(error: CodebError) -> int | None:
    """The engine's HTTP status behind an error, if it answered at all."""
    status = error.detail.get("engineStatus")
    return status if isinstance(status, int) else None


def _engine_words(error: CodebError) -> str:
    """What the engine said, without the part of the message that is ours."""
    return error.message.partition(": ")[2]


_START_REASONS = (
    (
        re.compile(r"port is already allocated|address already in use|failed to bind", re.I),
        "port_in_use",
        "Another process or container listens on the slot's port; end it, or run registry_check to see who it is.",
    ),
    (
        re.compile(r"exec format error|no matching manifest", re.I),
        "wrong_platform",
        "The image was built for another processor architecture; build it for this machine's.",
    ),
    (
        re.compile(r"executable file not found|no such file or directory|permission denied|no command specified", re.I),
        "bad_command",
        "The image's command does not exist or may not be run; correct its ENTRYPOINT or CMD.",
    ),
    (
        re.compile(r"unable to find user|no matching entries in passwd|unable to find group", re.I),
        "bad_user",
        "The image's USER does not exist in it; add the user or correct USER.",
    ),
    (
        re.compile(r"memory limit|cannot allocate memory|range of cpus|pids limit", re.I),
        "bad_limits",
        "The engine cannot give these limits; change the project's limits.",
    ),
    (re.compile(r"no such image", re.I), "image_not_found", "The image is no longer on the engine; deploy it again."),
)


def refused_container(error: DriverRefused, name: str) -> DriverRefused:
    """A refusal to create or start a container, with its reason and what to do about it."""
    words = _engine_words(error)
    for pattern, reason, hint in _START_REASONS:
        if pattern.search(words):
            return DriverRefused(error.message, hint=hint, **{**error.detail, "reason": reason, "container": name})
    return DriverRefused(error.message, hint=error.hint, **{**error.detail, "container": name})


_CHECK_CREDENTIALS = "Add or correct CodeB's credentials for this registry, and see that they may read this image."
_CHECK_NAME = (
    "Check the image's name and tag, and that it was pushed. "
    "A private image looks the same to registries when credentials are missing."
)
_PULL_REASONS: tuple[tuple[re.Pattern[str], type[CodebError], str, str], ...] = (
    (
        re.compile(r"toomanyrequests|too many requests|rate limit", re.I),
        DriverUnavailable, "registry_busy", "The registry limits pulls; wait, or add credentials for it.",
    ),
    (
        re.compile(r"x509:|certificate|server gave HTTP response to HTTPS client|tls: ", re.I),
        DriverUnavailable, "registry_tls",
        "The registry's TLS certificate is not trusted by the engine; install its CA there or use a trusted one.",
    ),
    (
        re.compile(
            r"connection refused|no such host|i/o timeout|timeout|unexpected EOF|: EOF|connection reset|unreachable"
            r"|no route to host|request canceled|server misbehaving|HTTP status:? 5\d\d|network is down|bad gateway",
            re.I,
        ),
        DriverUnavailable, "registry_unreachable", "See that the registry is up and reachable from the engine's machine.",
    ),
    (
        re.compile(r"manifest unknown|not found|name unknown|does not exist|no such image", re.I),
        DriverRefused, "image_not_found", _CHECK_NAME,
    ),
    (
        re.compile(r"no basic auth|unauthorized|authentication required|denied|forbidden|\b40[13]\b", re.I),
        DriverRefused, "unauthorized", _CHECK_CREDENTIALS,
    ),
    (
        re.compile(r"no matching manifest|does not match the specified platform", re.I),
        DriverRefused, "wrong_platform", "The image was built for another processor architecture; build it for this one.",
    ),
    (
        re.compile(r"invalid reference|repository name must|invalid tag", re.I),
        DriverRefused, "invalid_reference", "Write the image as registry/name:tag.",
    ),
)  # fmt: skip


def refused_pull(error: CodebError, image: str) -> CodebError:
    """A pull that failed, told apart: no such image, no right, registry away, TLS, disk full."""
    repository, tag, _ = image_parts(image)
    # An image may be called "denied/timeout:404".
    words = _engine_words(error).replace(repository, "").replace(f":{tag}", "").replace(f"/{tag}", "")
    for pattern, kind, reason, hint in _PULL_REASONS:
        if pattern.search(words):
            return kind(error.message, hint=hint, **{**error.detail, "reason": reason, "image": image})
    return DriverRefused(error.message, hint=error.hint, **{**error.detail, "reason": "pull_failed", "image": image})
