"""What the program wants from a data store's administrator, in its own words. PostgreSQL and Redis are in files of their own.

Every wish says what is to be there and looks first, so repeating one is harmless. Passwords are never handed in: PostgreSQL
gets a SCRAM verifier, Redis a SHA-256 hash. What carries no mark of ours is refused and left as it is. All raise
DriverUnavailable (cannot be reached), DriverRefused (says no), DeadlineExceeded or Conflict (foreign, or in use).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Door:
    """A way in as an administrator. `socket` is a unix socket on this machine that leads to the store, `server` the name
    for people."""

    server: str
    socket: str
    user: str
    password: str | None = field(default=None, repr=False)
    database: str = "postgres"


@dataclass(frozen=True, slots=True)
class Wish:
    """One environment's share of a store. `mark` says whose it is, `rules` are what a Redis user may do."""

    name: str
    mark: str
    connections: int = 20
    prefix: str = ""


class Store(Protocol):
    """The administrator's side of one kind of store."""

    async def check(self, door: Door) -> None:
        """Raise unless we get in and have the rights that the other wishes need."""
        ...

    async def look(self, door: Door, wish: Wish) -> bool:
        """Whether our share is there; raises Conflict when somebody else's of that name is."""
        ...

    async def ensure(self, door: Door, wish: Wish) -> bool:
        """Have the share, without a password that anybody knows; True when it was made now."""
        ...

    async def set_password(self, door: Door, wish: Wish, password: str) -> None:
        """From now on this password opens the share, and no former one."""
        ...

    async def connections(self, door: Door, wish: Wish) -> int:
        """How many clients are connected to the share."""
        ...

    async def put_aside(self, door: Door, wish: Wish, stamp: str, *, force: bool) -> str | None:
        """Lock the share out and rename it; answers the new name, None when nothing of ours is there. Raises Conflict while
        clients are connected, unless `force` ends them."""
        ...

    async def login(self, door: Door) -> None:
        """Raise unless an app gets in with the door's user and password."""
        ...
