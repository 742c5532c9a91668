"""The SSH library's errors in our words. Everything above decides by error class and details."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from codeb_mcp.drivers.attempt import Abandoned, Attempt
from codeb_mcp.drivers.ssh_keys import load
from codeb_mcp.model.errors import CodebError

MAX_SESSIONS_HINT = "Let sshd there allow 10 sessions a connection (MaxSessions 10)."


@contextlib.contextmanager
def ssh_errors(attempt: Attempt) -> Iterator[None]:
    """Turn whatever the library raises inside into our errors."""
    library = load()
    try:
        yield
    except CodebError:
        raise
    except Abandoned:
        raise attempt.unreachable("nobody waits for it any more") from None
    except library.SFTPError as error:
        raise file_error(attempt, error) from error
    except library.ChannelOpenError as error:
        if attempt.sent or error.reason == "SSH connection closed":
            raise attempt.unreachable(error.reason) from error
        raise attempt.refused(f"no session: {error.reason}", MAX_SESSIONS_HINT, reason="no_session") from error
    except (library.Error, OSError) as error:
        raise attempt.unreachable(str(error) or type(error).__name__) from error


def file_error(attempt: Attempt, error: Exception) -> CodebError:
    """An answer of the server's SFTP side that is not yes. What it says for a full disk is found out by the caller."""
    library = load()
    said = str(getattr(error, "reason", "")) or type(error).__name__
    if isinstance(error, (library.SFTPNoConnection, library.SFTPConnectionLost)):
        return attempt.unreachable(said)
    if isinstance(error, library.SFTPPermissionDenied):
        return attempt.forbidden()
    if isinstance(error, (library.SFTPNoSpaceOnFilesystem, library.SFTPQuotaExceeded)):
        return attempt.full(said)
    if isinstance(error, (library.SFTPNoSuchFile, library.SFTPNoSuchPath)):
        return attempt.refused("there is no such file or folder", reason="not_there")
    return attempt.refused(said)
