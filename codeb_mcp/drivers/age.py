"""Sealing files so that only the holder of an identity can read them, in the age format (age-encryption.org/v1, X25519)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from codeb_mcp.model.errors import DriverRefused, RegistryDamaged

if TYPE_CHECKING:
    from pyrage.x25519 import Identity


def new_identity() -> str:
    """A new secret identity, `AGE-SECRET-KEY-1…`."""
    from pyrage import x25519

    return str(x25519.Identity.generate())


def recipient_of(identity: str) -> str:
    """The public half, `age1…`; raises RegistryDamaged for a text that is no identity."""
    return str(_parsed(identity).to_public())


def seal(data: bytes, identity: str) -> bytes:
    """The data as an age file for the holder of this identity."""
    import pyrage

    return bytes(pyrage.encrypt(data, [_parsed(identity).to_public()]))


def unseal(data: bytes, identity: str) -> bytes:
    """The data of an age file; raises DriverRefused when it is damaged or for somebody else."""
    import pyrage

    try:
        return bytes(pyrage.decrypt(data, [_parsed(identity)]))
    except pyrage.DecryptError:
        raise DriverRefused(
            "an encrypted copy cannot be read: it is damaged, or was made with another identity",
            hint="Use the identity that the copies were made with.",
        ) from None


def _parsed(identity: str) -> Identity:
    import pyrage
    from pyrage import x25519

    try:
        return x25519.Identity.from_str(identity.strip())
    except pyrage.IdentityError:
        raise RegistryDamaged(
            "env.agekey does not hold an age identity", hint="Restore it from where you keep copies of `keys/`."
        ) from None
