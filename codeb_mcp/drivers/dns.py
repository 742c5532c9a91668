"""Zones and names: one small protocol for whoever keeps a zone, and the loop that makes a wish true there.

A provider reads what stands at a name and writes a change that was decided on that; it decides nothing itself, so that all
of them leave foreign records alone in the same way.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from codeb_mcp.model.dns import Caa, Change, Record, Wish, to_have, to_remove
from codeb_mcp.model.errors import DriverRefused

ATTEMPTS = 6


class Zone(Protocol):
    """One zone at one provider. Raises DriverUnavailable, DriverRefused or DeadlineExceeded, which name zone and server and
    never a secret; nothing else."""

    async def read(self, name: str) -> frozenset[Record]:
        """The A, AAAA and CNAME records of the name and the TXT records of its mark, as the provider has them now."""
        ...

    async def write(self, change: Change, seen: frozenset[Record]) -> bool:
        """Make the change, all of it or nothing; False when what was `seen` has changed meanwhile. A provider that cannot
        compare by itself looks again right before."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


class Names(Protocol):
    """The names of the world, and the zones that we may write to."""

    async def lookup(self, name: str, kind: str) -> tuple[str, ...]:
        """Values of type A or AAAA as the configured resolvers tell them now, aliases followed; empty when there
        certainly are none. Raises DriverUnavailable or DeadlineExceeded when nobody knows."""
        ...

    async def caa(self, name: str) -> tuple[Caa, ...]:
        """The CAA records that count for the name: its own, or those of the nearest name above it."""
        ...

    def zone(self, zone: str) -> Zone:
        """The zone as it stands in the settings; raises DriverRefused when its secret cannot be used."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


async def ensure_records(zone: Zone, wish: Wish) -> bool:
    """Have exactly these addresses at the name, marked as the owner's; True when that took a change.

    Raises Conflict when the name has records that are not the owner's, and what the zone raises.
    """
    return await _make(zone, wish.name, lambda present: to_have(present, wish))


async def remove_records(zone: Zone, name: str, owner: str) -> bool:
    """Take away what was written for the owner at the name, and nothing else; False when nothing was."""
    return await _make(zone, name, lambda present: to_remove(present, name, owner))


async def _make(zone: Zone, name: str, decide: Callable[[frozenset[Record]], Change]) -> bool:
    for _ in range(ATTEMPTS):
        seen = await zone.read(name)
        change = decide(seen)
        if not change:
            return False
        if await zone.write(change, seen):
            return True
    raise DriverRefused(
        f"the records of {name} kept changing through {ATTEMPTS} attempts",
        hint="Find out which other program writes that zone, then repeat the call.",
        name=name,
    )


def read_secret(file: Path, zone: str) -> str:
    """The secret in a file that only its owner may read. Raises DriverRefused that names the file, never its content."""
    hint = f"Put the secret of the zone {zone} into {file}, with mode 0600."
    try:
        mode = file.stat().st_mode
        text = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DriverRefused(
            f"the secret of zone {zone} cannot be read from {file}: {type(error).__name__}", hint=hint
        ) from None
    if mode & 0o077:
        raise DriverRefused(f"{file} may be read by others (mode {mode & 0o777:04o})", hint=f"chmod 600 {file}")
    if not text or any(not char.isprintable() or char.isspace() for char in text):
        raise DriverRefused(f"{file} does not hold one secret in one line", hint=hint)
    return text
