"""The caller's own key: from CODEB_API_KEY, else from `~/.config/codeb/key`, which only its owner may read."""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path

from codeb_mcp.model.access import looks_like_key
from codeb_mcp.model.errors import InvalidRequest, Unauthenticated

VARIABLE = "CODEB_API_KEY"
LONGEST = 400


def key_path(environ: Mapping[str, str]) -> Path:
    """`$XDG_CONFIG_HOME/codeb/key`, by default `~/.config/codeb/key`."""
    base = environ.get("XDG_CONFIG_HOME") or str(Path(environ.get("HOME") or Path.home(), ".config"))
    return Path(base) / "codeb" / "key"


def configured_key(environ: Mapping[str, str]) -> str:
    """The key to use. Raises Unauthenticated when there is none or others may read its file."""
    if given := environ.get(VARIABLE, "").strip():
        return given
    path = key_path(environ)
    try:
        with path.open(encoding="utf-8") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(LONGEST).strip()
    except FileNotFoundError:
        raise Unauthenticated(
            "there is no API key",
            hint=f"Set {VARIABLE}, or store one with `codeb login`; `codeb init` prints the first one.",
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise Unauthenticated(
            f"the key in {path} cannot be read: {type(error).__name__}", hint=f"Repair it, or set {VARIABLE}."
        ) from None
    if stat.S_IMODE(mode) & 0o077:
        raise Unauthenticated(f"the key in {path} can be read by others", hint=f"Run `chmod 600 {path}`.")
    return text


def save_key(text: str, environ: Mapping[str, str]) -> Path:
    """Store the key for later commands, mode 0600, whole or not at all. Raises InvalidRequest for a text that is none."""
    if not looks_like_key(text):
        raise InvalidRequest("that is no CodeB key", hint="A key looks like codeb_team_role_….")
    path = key_path(environ)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=path.parent, prefix=".key-")  # mode 0600 from the first moment
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text + "\n")
                file.flush()
                os.fsync(file.fileno())
            Path(part).replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(part).unlink()
            raise
    except OSError as error:
        raise InvalidRequest(f"{path} cannot be written: {error.strerror}", hint=f"Set {VARIABLE} instead.") from None
    return path
