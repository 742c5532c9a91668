"""Redis through its administrator: ACL users of environments, each with a key prefix of its own."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

from codeb_mcp.drivers.stores import Door, Wish
from codeb_mcp.model.databases import redis_rules
from codeb_mcp.model.errors import CodebError, Conflict, DeadlineExceeded, DriverRefused, DriverUnavailable

CALL_SECONDS = 10.0
WHOLE_SECONDS = 120.0
SCAN_COUNT = 500


class RedisStore:
    """The `Store` protocol on Redis 7 or newer."""

    async def check(self, door: Door) -> None:
        """See `Store.check`."""
        async with _connected(door) as link:
            await link.execute_command("ACL", "USERS")

    async def look(self, door: Door, wish: Wish) -> bool:
        """See `Store.look`. A user of ours is known by its one key pattern."""
        async with _connected(door) as link:
            return await _ours(link, door, wish)

    async def ensure(self, door: Door, wish: Wish) -> bool:
        """See `Store.ensure`. The user comes with its first password, so that nothing is there before."""
        async with _connected(door) as link:
            there = await _ours(link, door, wish)
            await _persist(link, door)  # refused now is better than after the password was set
            return not there

    async def set_password(self, door: Door, wish: Wish, password: str) -> None:
        """See `Store.set_password`. What goes over the line is the hash."""
        async with _connected(door) as link:
            await _ours(link, door, wish)
            digest = hashlib.sha256(password.encode()).hexdigest()
            await link.execute_command("ACL", "SETUSER", wish.name, *redis_rules(wish.prefix, digest))
            await _persist(link, door)

    async def connections(self, door: Door, wish: Wish) -> int:
        """See `Store.connections`."""
        async with _connected(door) as link:
            return await _clients(link, wish)

    async def put_aside(self, door: Door, wish: Wish, stamp: str, *, force: bool) -> str | None:
        """See `Store.put_aside`. The user is gone, its keys get `_deleted_{stamp}:` before their names."""
        async with _connected(door) as link:
            if not await _ours(link, door, wish):
                return await self._rename(link, wish, stamp)
            count = await _clients(link, wish)
            if count and not force:
                raise Conflict(
                    f"{count} clients are connected as {wish.name}",
                    hint="Stop the app first, or say force to end its connections.",
                    name=wish.name,
                )
            await link.execute_command("ACL", "DELUSER", wish.name)  # ends its connections too
            await _persist(link, door)
            return await self._rename(link, wish, stamp)

    async def login(self, door: Door) -> None:
        """See `Store.login`."""
        async with _connected(door) as link:
            await link.execute_command("PING")

    async def _rename(self, link: Any, wish: Wish, stamp: str) -> str:
        aside = f"_deleted_{stamp}:"
        if wish.prefix:
            pattern = f"{wish.prefix}*"
            async for key in link.scan_iter(match=pattern, count=SCAN_COUNT):
                await link.rename(key, aside.encode() + key)
        return f"{aside}{wish.prefix}*"


async def _ours(link: Any, door: Door, wish: Wish) -> bool:
    found = await link.execute_command("ACL", "LIST")
    lines = [line.decode() if isinstance(line, bytes) else str(line) for line in found]
    line = next((one for one in lines if one.split()[1:2] == [wish.name]), None)
    if line is None:
        return False
    if f"~{wish.prefix}*" not in line.split():
        raise Conflict(
            f"Redis on {door.server} has a user {wish.name} that is not ours",
            hint="Rename it there, or use another project name; nothing of it was touched.",
            server=door.server,
            name=wish.name,
        )
    return True


async def _clients(link: Any, wish: Wish) -> int:
    found = await link.execute_command("CLIENT", "LIST", "TYPE", "NORMAL")
    rows = found if isinstance(found, list) else []
    text = found.decode() if isinstance(found, bytes) else ""
    users = [row.get("user") for row in rows] + [
        word.removeprefix("user=") for word in text.split() if word.startswith("user=")
    ]
    return users.count(wish.name)


async def _persist(link: Any, door: Door) -> None:
    """Users outlive a restart only when they are written: into the ACL file, or into the configuration where there is none."""
    import redis.exceptions

    for words in (("ACL", "SAVE"), ("CONFIG", "REWRITE")):
        with contextlib.suppress(redis.exceptions.ResponseError):
            await link.execute_command(*words)
            return
    raise DriverRefused(
        f"Redis on {door.server} cannot keep its users over a restart",
        hint="Give it an aclfile, or start it with a configuration file that it may write.",
        server=door.server,
        reason="acl",
    )


@contextlib.asynccontextmanager
async def _connected(door: Door) -> AsyncIterator[Any]:
    import redis.asyncio
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    with _translated(door):
        link = redis.asyncio.Redis(
            unix_socket_path=door.socket, username=door.user if door.password else None, password=door.password,
            socket_timeout=CALL_SECONDS, socket_connect_timeout=CALL_SECONDS, retry=Retry(NoBackoff(), 0), protocol=2,
        )  # fmt: skip
        try:
            async with asyncio.timeout(WHOLE_SECONDS):
                yield link
        finally:
            with contextlib.suppress(Exception):
                await link.aclose()


@contextlib.contextmanager
def _translated(door: Door) -> Iterator[None]:
    import redis.exceptions as theirs

    try:
        yield
    except (CodebError, asyncio.CancelledError):
        raise
    except (theirs.AuthenticationError, theirs.NoPermissionError):
        raise _not_let_in(door) from None
    except (TimeoutError, theirs.TimeoutError):
        raise DeadlineExceeded(
            f"Redis on {door.server} took too long", hint="See whether it is overloaded.", server=door.server
        ) from None
    except theirs.ResponseError as error:
        code = str(error).partition(" ")[0][:20]
        raise DriverRefused(
            f"Redis on {door.server} refused: {code if code.isalpha() else 'ERR'}", hint="Redis's own log says more.",
            server=door.server, reason="refused",
        ) from None  # fmt: skip
    except (theirs.RedisError, OSError, EOFError) as error:
        if isinstance(error.__cause__, theirs.AuthenticationError):  # how the library says it on a unix socket
            raise _not_let_in(door) from None
        raise DriverUnavailable(
            f"Redis on {door.server} cannot be reached",
            hint="See that it runs and that databases.redis_address is right, then try again.",
            server=door.server,
        ) from None


def _not_let_in(door: Door) -> DriverRefused:
    return DriverRefused(
        f"Redis on {door.server} does not let {door.user} do that",
        hint="Set databases.redis_user and databases.redis_password_file to a user who may administer it.",
        server=door.server,
        reason="role",
    )
