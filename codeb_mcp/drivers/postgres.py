"""PostgreSQL through its administrator's socket: roles and databases of environments.

Names and verifiers are quoted by the server itself: `format('%I', …)` with parameters makes each statement.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import tempfile
from collections.abc import AsyncIterator
from typing import Any

from codeb_mcp.drivers.stores import Door, Wish
from codeb_mcp.model.databases import aside_name, scram_verifier
from codeb_mcp.model.errors import CodebError, Conflict, DeadlineExceeded, DriverRefused, DriverUnavailable

CONNECT_SECONDS = 10.0
STATEMENT_SECONDS = 20.0
TERMINATE_TRIES = 20
TERMINATE_PAUSE_SECONDS = 0.1

_FIND = """
SELECT (SELECT shobj_description(oid, 'pg_authid') FROM pg_roles WHERE rolname = $1) AS mark,
       (SELECT true FROM pg_roles WHERE rolname = $1) AS role,
       (SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = $1) AS owner
"""
_CLIENTS = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND pid <> pg_backend_pid()"


def first_sql(role: str) -> str:
    """What a superuser has to run once on the server, so that we may make databases there."""
    return f'CREATE ROLE "{role}" LOGIN CREATEROLE CREATEDB'


class PostgresStore:
    """The `Store` protocol on PostgreSQL 14 or newer."""

    async def check(self, door: Door) -> None:
        """See `Store.check`."""
        async with _connected(door) as link:
            row = await link.fetchrow(
                "SELECT rolcreaterole AND rolcreatedb OR rolsuper AS able FROM pg_roles WHERE rolname = current_user"
            )
            if not row["able"]:
                raise DriverRefused(
                    f"PostgreSQL on {door.server}: role {door.user} may not make roles and databases",
                    hint=f'Run once on {door.server} as superuser: ALTER ROLE "{door.user}" CREATEROLE CREATEDB',
                    server=door.server,
                    reason="role",
                )

    async def look(self, door: Door, wish: Wish) -> bool:
        """See `Store.look`."""
        async with _connected(door) as link:
            return await _ours(link, door, wish)

    async def ensure(self, door: Door, wish: Wish) -> bool:
        """See `Store.ensure`. The role owns its database only; nobody else may connect to it."""
        async with _connected(door) as link:
            found = await _found(link, door, wish)
            if not found["role"]:
                await _make_role(link, wish)
            await _say(link, "GRANT %I TO CURRENT_USER", wish.name)
            if found["owner"] is None:
                await _say(link, "CREATE DATABASE %I OWNER %I", wish.name, wish.name)
            # Repeated each time: a crash may have come right after the database was made.
            await _say(link, "REVOKE ALL ON DATABASE %I FROM PUBLIC", wish.name)
            return found["owner"] is None

    async def set_password(self, door: Door, wish: Wish, password: str) -> None:
        """See `Store.set_password`. What goes over the line is the verifier."""
        verifier = scram_verifier(password, secrets.token_bytes(16))
        async with _connected(door) as link:
            if not await _ours(link, door, wish):
                raise _gone(door, wish)
            statement = (
                "SELECT format('ALTER ROLE %I LOGIN CONNECTION LIMIT %s PASSWORD %L', $1::text, $2::int, $3::text)"
            )
            await link.execute(await link.fetchval(statement, wish.name, wish.connections, verifier))

    async def connections(self, door: Door, wish: Wish) -> int:
        """See `Store.connections`."""
        async with _connected(door) as link:
            return int(await link.fetchval(_CLIENTS, wish.name))

    async def put_aside(self, door: Door, wish: Wish, stamp: str, *, force: bool) -> str | None:
        """See `Store.put_aside`. The data stays whole under the new name; dropping it is an operator's work."""
        name = aside_name(wish.name, stamp)
        async with _connected(door) as link:
            found = await _found(link, door, wish)
            if not found["role"]:
                return name if (await link.fetchrow(_FIND, name))["role"] else None
            await _say(link, "GRANT %I TO CURRENT_USER", wish.name)
            await _say(link, "ALTER ROLE %I NOLOGIN PASSWORD NULL", wish.name)
            if found["owner"] is not None:
                await _renamed(link, wish, name, force=force)
            await _say(link, "ALTER ROLE %I RENAME TO %I", wish.name, name)
            return name

    async def login(self, door: Door) -> None:
        """See `Store.login`."""
        async with _connected(door) as link:
            await link.fetchval("SELECT 1")


async def _found(link: Any, door: Door, wish: Wish) -> Any:
    found = await link.fetchrow(_FIND, wish.name)
    foreign_role = found["role"] and found["mark"] != wish.mark
    if foreign_role or (found["owner"] is not None and found["owner"] != wish.name):
        raise Conflict(
            f"PostgreSQL on {door.server} has a {'role' if foreign_role else 'database'} {wish.name} that is not ours",
            hint="Rename it there, or use another project name; nothing of it was touched.",
            server=door.server,
            name=wish.name,
        )
    return found


async def _ours(link: Any, door: Door, wish: Wish) -> bool:
    found = await _found(link, door, wish)
    return bool(found["role"] and found["owner"] is not None)


async def _make_role(link: Any, wish: Wish) -> None:
    async with link.transaction():  # a role without its mark would be a stranger's for ever
        await _say(
            link, "CREATE ROLE %I LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION PASSWORD NULL", wish.name
        )
        await _say(link, "COMMENT ON ROLE %I IS %L", wish.name, wish.mark)


async def _renamed(link: Any, wish: Wish, name: str, *, force: bool) -> None:
    import asyncpg

    for _ in range(TERMINATE_TRIES):
        if force:
            await link.fetch("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", wish.name)
        try:
            await _say(link, "ALTER DATABASE %I RENAME TO %I", wish.name, name)
            return
        except asyncpg.ObjectInUseError:
            if not force:
                await _say(link, "ALTER ROLE %I LOGIN", wish.name)
                break
        await asyncio.sleep(TERMINATE_PAUSE_SECONDS)
    raise Conflict(
        f"clients are connected to database {wish.name}",
        hint="Stop the app first, or say force to end its connections.",
        name=wish.name,
    )


async def _say(link: Any, template: str, *words: str) -> None:
    """Run a statement whose words the server itself quotes."""
    places = ", ".join(f"${number}::text" for number in range(2, len(words) + 2))
    await link.execute(await link.fetchval(f"SELECT format($1::text, {places})", template, *words))


def _gone(door: Door, wish: Wish) -> Conflict:
    return Conflict(
        f"PostgreSQL on {door.server} has no database {wish.name} any more",
        hint="Restore it from a backup, or take it out of the registry with database_delete.",
        server=door.server,
    )


@contextlib.asynccontextmanager
async def _connected(door: Door) -> AsyncIterator[Any]:
    import asyncpg

    with _translated(door), tempfile.TemporaryDirectory(prefix="codeb-pg-") as folder:
        # The library finds a unix socket only under PostgreSQL's own name for it.
        os.symlink(door.socket, f"{folder}/.s.PGSQL.5432")
        link = await asyncpg.connect(
            host=folder, port=5432, user=door.user, password=door.password or "", database=door.database,
            passfile=f"{folder}/none", ssl=False, timeout=CONNECT_SECONDS, command_timeout=STATEMENT_SECONDS,
            statement_cache_size=0, server_settings={"application_name": "codeb"},
        )  # fmt: skip
        try:
            yield link
        finally:
            with contextlib.suppress(Exception):
                await link.close(timeout=2)


@contextlib.contextmanager
def _translated(door: Door) -> Any:
    import asyncpg

    try:
        yield
    except (CodebError, asyncio.CancelledError):
        raise
    except TimeoutError:
        raise DeadlineExceeded(
            f"PostgreSQL on {door.server} took too long", hint="See whether it is overloaded.", server=door.server
        ) from None
    except asyncpg.InvalidAuthorizationSpecificationError:
        raise DriverRefused(
            f"PostgreSQL on {door.server} does not let {door.user} in",
            hint=f"Run once on {door.server} as superuser: {first_sql(door.user)}",
            server=door.server,
            reason="role",
        ) from None
    except (asyncpg.CannotConnectNowError, asyncpg.TooManyConnectionsError, asyncpg.PostgresConnectionError):
        raise _away(door) from None
    except asyncpg.PostgresError as error:
        # Its own text may repeat the statement, and with it a verifier.
        raise DriverRefused(
            f"PostgreSQL on {door.server} refused: {type(error).__name__} ({error.sqlstate})",
            hint="PostgreSQL's own log says more.",
            server=door.server,
            reason=str(error.sqlstate),
        ) from None
    except (asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, EOFError):
        raise _away(door) from None


def _away(door: Door) -> DriverUnavailable:
    return DriverUnavailable(
        f"PostgreSQL on {door.server} cannot be reached",
        hint="See that it runs and that databases.postgres_socket is its socket, then try again.",
        server=door.server,
    )
