"""The control plane's own key pair: made once, whole and durable, and never replaced."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path

from codeb_mcp.drivers.ssh_keys import load
from codeb_mcp.model.errors import DriverRefused

LONGEST = 20_000
OPTIONS = "restrict,port-forwarding"
"""What a server allows whoever has the key: commands, files and forwarded sockets; no terminal, agent or X11."""


@dataclass(frozen=True, slots=True)
class KeyPair:
    """`line` goes into the server's `authorized_keys`; `made` is false for a key that was there before."""

    path: Path
    line: str
    fingerprint: str
    made: bool


def have_key(path: Path, comment: str = "codeb") -> KeyPair:
    """Have an ed25519 key at this path (mode 0600, its folder 0700) and its public half beside it (`.pub`).

    Raises DriverRefused for a file that is there and is no private key without a passphrase, or that others may read.
    """
    library = load()
    made = False
    try:
        if not path.exists():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            made = _place(path, library.generate_private_key("ssh-ed25519").export_private_key())
        key = library.import_private_key(_read(path))
        words = " ".join(key.export_public_key().decode("ascii").split()[:2])
        _place(path.with_name(path.name + ".pub"), f"{words} {comment}\n".encode("ascii"), mode=0o644)
    except (library.KeyImportError, library.KeyEncryptionError) as error:
        raise DriverRefused(
            f"{path} is no private key that can be used: {error}",
            hint="It was left alone. Move it away and repeat the command, or set ssh.key_file.",
        ) from None
    except OSError as error:
        raise DriverRefused(
            f"{path} cannot be used: {error.strerror}", hint="Check the folder and its rights."
        ) from None
    return KeyPair(path, f"{OPTIONS} {words} {comment}", key.get_fingerprint(), made)


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        data = file.read(LONGEST)
    if stat.S_IMODE(mode) & 0o077:
        raise DriverRefused(f"the key in {path} can be read by others", hint=f"Run `chmod 600 {path}`.")
    return data


def _place(path: Path, data: bytes, *, mode: int = 0o600) -> bool:
    """Have the file, durable on return; False when another one was there, which stays. A link cannot replace anything."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(part, path, follow_symlinks=False)
        except FileExistsError:
            return False
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
        _sync(path.parent)
    return True


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
